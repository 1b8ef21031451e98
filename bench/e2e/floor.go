//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
)

// floor is the least that a proxy behind net/http's server can cost. It forwards no field either way, survives nothing
// that goes wrong, and knows of the answer only where it ends.
type floor struct {
	target string
	gets   map[string][]byte // a whole request by path
	post   []byte            // the head of one, up to the length

	mu   sync.Mutex
	free []*floorConn
}

type floorConn struct {
	net.Conn
	buf [32 << 10]byte
}

func floorHandler(target, _ string) (http.Handler, error) {
	f := &floor{target: target, gets: map[string][]byte{}}
	for name := range files {
		path := "/files/" + name
		f.gets[path] = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, target)
	}
	f.post = fmt.Appendf(nil, "POST /files/swallow HTTP/1.1\r\nHost: %s\r\nContent-Length: ", target)
	return f, nil
}

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := f.conn()
	if err == nil {
		err = f.forward(c, w, r)
	}
	if err != nil {
		if c != nil {
			c.Close()
		}
		panic(http.ErrAbortHandler)
	}
	f.mu.Lock()
	f.free = append(f.free, c)
	f.mu.Unlock()
}

func (f *floor) conn() (*floorConn, error) {
	f.mu.Lock()
	if n := len(f.free); n > 0 {
		c := f.free[n-1]
		f.free = f.free[:n-1]
		f.mu.Unlock()
		return c, nil
	}
	f.mu.Unlock()
	c, err := net.Dial("tcp", f.target)
	if err != nil {
		return nil, err
	}
	return &floorConn{Conn: c}, nil
}

var (
	headEnd    = []byte("\r\n\r\n")
	lengthName = []byte("\r\nContent-Length: ")
)

func (f *floor) forward(c *floorConn, w http.ResponseWriter, r *http.Request) error {
	request := f.gets[r.URL.Path]
	if r.Method == http.MethodPost {
		if r.ContentLength < 0 || r.ContentLength > 16<<10 {
			return errors.New("a body that does not fit")
		}
		request = strconv.AppendInt(append(c.buf[:0], f.post...), r.ContentLength, 10)
		request = append(request, headEnd...)
		n := len(request)
		request = request[:n+int(r.ContentLength)]
		if _, err := io.ReadFull(r.Body, request[n:]); err != nil {
			return err
		}
	}
	if request == nil {
		return errors.New("an unknown path")
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	have, end := 0, -1
	for end < 0 {
		n, err := c.Read(c.buf[have:])
		if err != nil {
			return err
		}
		have += n
		end = bytes.Index(c.buf[:have], headEnd)
	}
	_, digits, ok := bytes.Cut(c.buf[:end+2], lengthName)
	if !ok {
		return errors.New("an answer without a length")
	}
	digits = digits[:bytes.IndexByte(digits, '\r')]
	length, err := strconv.Atoi(string(digits))
	if err != nil {
		return err
	}
	w.Header()["Content-Length"] = []string{string(digits)}
	have, left := copy(c.buf[:], c.buf[end+4:have]), length
	for {
		if _, err := w.Write(c.buf[:have]); err != nil {
			return err
		}
		if left -= have; left <= 0 {
			return nil
		}
		if have, err = c.Read(c.buf[:min(left, len(c.buf))]); err != nil {
			return err
		}
	}
}
