//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A call is a request as it goes over the wire and the length of the one right answer to it.
type call struct {
	wire []byte
	want int64
}

// A client is one keep-alive connection. It is far cheaper than net/http's, so that one processor can load another.
type client struct {
	conn    net.Conn
	in      *bufio.Reader
	closing bool // the last answer had Connection: close
}

// dial opens a connection; a nil config means no TLS.
func dial(addr string, config *tls.Config) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if config != nil {
		secure := tls.Client(conn, config)
		secure.SetDeadline(time.Now().Add(10 * time.Second))
		if err := secure.Handshake(); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secure
	}
	return conn, nil
}

// do sends a request and reads its answer. Any status but 200, any other length and any byte too many is an error.
func (c *client) do(call call) error {
	if _, err := c.conn.Write(call.wire); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 || string(line[9:12]) != "200" {
		return fmt.Errorf("status line %.60q", line)
	}
	length, chunked := int64(-1), false
	for {
		line, err = c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return err
			}
		case len(name) == len("Transfer-Encoding") && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		case len(name) == len("Connection") && bytes.EqualFold(name, []byte("Connection")):
			c.closing = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	switch {
	case chunked:
		if length, err = c.skipChunks(); err != nil {
			return err
		}
	case length < 0:
		return errors.New("an answer without a length")
	default:
		if err := c.skip(length); err != nil {
			return err
		}
	}
	if length != call.want {
		return fmt.Errorf("a body of %d bytes, want %d", length, call.want)
	}
	if n := c.in.Buffered(); n > 0 {
		return fmt.Errorf("%d bytes after the answer", n)
	}
	return nil
}

func (c *client) skip(n int64) error {
	_, err := c.in.Discard(int(n))
	return err
}

func (c *client) skipChunks() (sum int64, err error) {
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return sum, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return sum, err
		}
		sum += n
		if err := c.skip(n + 2); err != nil || n == 0 {
			return sum, err
		}
	}
}

// A load is what a contender gets: the same call over every connection.
type load struct {
	clients  []*client
	call     call
	dial     func() (net.Conn, error)
	reopened atomic.Int64 // connections that the contender closed after an answer

	mu sync.Mutex // guards the clients' conn, which is replaced while an interrupt may end it
}

func (l *load) close() {
	for _, c := range l.clients {
		c.conn.Close()
	}
}

// open opens n connections to addr, one after the other.
func open(addr string, config *tls.Config, n int, c call) (*load, error) {
	l := &load{call: c, dial: func() (net.Conn, error) { return dial(addr, config) }}
	buffer := 4 << 10
	if c.want > int64(buffer) {
		buffer = 64 << 10
	}
	for range n {
		conn, err := l.dial()
		if err != nil {
			l.close()
			return nil, err
		}
		l.clients = append(l.clients, &client{conn: conn, in: bufio.NewReaderSize(conn, buffer)})
	}
	return l, nil
}

// reopen opens a connection anew that the contender has closed as HTTP lets it. That takes part of the next request's
// time, as it would of anybody's.
func (l *load) reopen(ctx context.Context, c *client, limit time.Time) error {
	if !c.closing {
		return nil
	}
	conn, err := l.dial()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c.conn.Close()
	c.conn, c.closing = conn, false
	c.in.Reset(conn)
	l.reopened.Add(1)
	if err := ctx.Err(); err != nil {
		return err
	}
	return conn.SetDeadline(limit)
}

// send sends n requests and returns how long each took. With a rate of 0 every connection sends its next request as
// soon as it has an answer. Otherwise a request has its time, rate of them a second. One that is late because its
// connection still waits for an answer counts from its time on, so that a contender that stalls cannot hide it; one
// that is late because this program woke up late counts from there.
func (l *load) send(ctx context.Context, n int, rate float64) ([]time.Duration, error) {
	limit := time.Now().Add(2 * time.Minute)
	for _, c := range l.clients {
		c.conn.SetDeadline(limit)
	}
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.clients {
			c.conn.SetDeadline(time.Unix(1, 0))
		}
	})()
	took := make([]time.Duration, n)
	errs := make([]error, len(l.clients))
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i, c := range l.clients {
		all.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= n {
					return
				}
				var start time.Time
				if rate > 0 {
					start = began.Add(time.Duration(float64(k) / rate * float64(time.Second)))
					if wait := time.Until(start); wait > 0 {
						time.Sleep(wait)
						start = time.Now()
					}
				} else {
					start = time.Now()
				}
				err := l.reopen(ctx, c, limit)
				if err == nil {
					err = c.do(l.call)
				}
				if err != nil {
					errs[i] = err
					next.Add(int64(n)) // the others stop, too
					return
				}
				took[k] = time.Since(start)
			}
		})
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, err := range errs {
		if err != nil {
			return nil, err // one is enough: most often all fail alike
		}
	}
	return took, nil
}
