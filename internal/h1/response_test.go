package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// memoryConn is a connection from which data can be read, at most step bytes at once.
type memoryConn struct {
	net.Conn
	data   []byte
	step   int
	readBy time.Time
}

func (c *memoryConn) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		if !c.readBy.IsZero() {
			return 0, os.ErrDeadlineExceeded
		}
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.step)], c.data)
	c.data = c.data[n:]
	return n, nil
}
func (c *memoryConn) Write(p []byte) (int, error)       { return len(p), nil }
func (c *memoryConn) Close() error                      { return nil }
func (c *memoryConn) SetDeadline(time.Time) error       { return nil }
func (c *memoryConn) SetReadDeadline(t time.Time) error { c.readBy = t; return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error  { return nil }

// answer is the result of reading a response.
type answer struct {
	res     *http.Response
	body    []byte
	bodyErr error
	reused  bool // the connection was given back to be used again
}

// readOwn reads data as the response to a request.
func readOwn(data []byte, method string, step int) (answer, error) {
	return readWith(&noHooks, data, method, step)
}

// takingHooks takes the fields of a response. They come back as its Header in readWith.
var takingHooks = Hooks{Fields: func(to any, names, values []string) bool {
	h := make(http.Header)
	for i, name := range names {
		h[name] = append(h[name], values[i])
	}
	*to.(*http.Header) = h
	return true
}}

func readWith(hooks *Hooks, data []byte, method string, step int) (answer, error) {
	tr := New(&Options{IdleTimeout: -1})
	h := &host{open: 1}
	cn := &conn{t: tr, host: h, wire: newWire(&memoryConn{data: data, step: step})}
	cn.rw = cn.wire
	req, _ := http.NewRequest(method, "http://a/", nil)
	var taken http.Header
	c := newCall(tr, req, hooks, &taken)
	c.upgrade = true
	defer c.release()
	cn.wire.begin(context.Background())
	res, err := c.receive(cn, new(failure))
	if err != nil {
		cn.finish(false)
		return answer{}, err
	}
	if res.Header == nil {
		res.Header = taken
	}
	a := answer{res: &res.Response}
	if res.StatusCode != 101 {
		a.body, a.bodyErr = io.ReadAll(res.Body)
		res.Body.Close()
	}
	a.reused = len(h.idle) == 1 && h.idle[0].alive()
	return a, nil
}

// readStd is like readOwn, with the standard library.
func readStd(data []byte, method string) (answer, error) {
	req, _ := http.NewRequest(method, "http://a/", nil)
	br := bufio.NewReaderSize(bytes.NewReader(data), max(len(data), 4096))
	for {
		res, err := http.ReadResponse(br, req)
		if err != nil {
			return answer{}, err
		}
		if res.StatusCode >= 100 && res.StatusCode < 200 && res.StatusCode != 101 {
			continue
		}
		a := answer{res: res}
		if res.StatusCode != 101 {
			a.body, a.bodyErr = io.ReadAll(res.Body)
			res.Body.Close()
		}
		return a, nil
	}
}

// stricter lists the beginnings of the errors for responses that only this package refuses. See parseHead.
var stricter = []string{
	"status line", "it begins with", "trailer with a line", "chunk size ", "header larger",
}

func mayRefuse(err error) bool {
	if !errors.Is(err, ErrInvalidResponse) {
		return false
	}
	_, text, _ := strings.Cut(err.Error(), ErrInvalidResponse.Error()+": ")
	return slices.ContainsFunc(stricter, func(s string) bool { return strings.HasPrefix(text, s) })
}

// compare checks that this package accepts no more than the standard library, with the same result.
func compare(t *testing.T, data []byte, method string, step int) {
	t.Helper()
	for _, hooks := range []*Hooks{&noHooks, &takingHooks} {
		compareWith(t, hooks, data, method, step)
	}
}

func compareWith(t *testing.T, hooks *Hooks, data []byte, method string, step int) {
	t.Helper()
	own, err := readWith(hooks, data, method, step)
	std, stdErr := readStd(data, method)
	if err == nil {
		err = own.bodyErr
	}
	if stdErr == nil {
		stdErr = std.bodyErr
	}
	switch {
	case err != nil && own.reused:
		t.Fatalf("the connection is used again after %v", err)
	case err != nil && stdErr == nil && !mayRefuse(err):
		t.Fatalf("refused: %v", err)
	case err == nil && stdErr != nil:
		t.Fatalf("accepted: %v", stdErr)
	}
	if own.res == nil || std.res == nil {
		return
	}
	a, b := own.res, std.res
	if a.Proto != b.Proto || a.ProtoMajor != b.ProtoMajor || a.ProtoMinor != b.ProtoMinor || a.Status != withoutControls(b.Status) ||
		a.StatusCode != b.StatusCode || a.ContentLength != b.ContentLength || a.Close != b.Close ||
		!slices.Equal(a.TransferEncoding, b.TransferEncoding) || a.Uncompressed {
		t.Fatalf("got  %+v\nwant %+v", a, b)
	}
	header := a.Header.Clone()
	if values := header["Pragma"]; len(values) > 0 && values[0] == "no-cache" && header["Cache-Control"] == nil {
		header["Cache-Control"] = []string{"no-cache"} // which http.ReadResponse adds
	}
	if !maps.EqualFunc(header, b.Header, slices.Equal) {
		t.Fatalf("header %v, want %v", header, b.Header)
	}
	if err != nil {
		return
	}
	if !maps.EqualFunc(a.Trailer, b.Trailer, slices.Equal) {
		t.Fatalf("trailer %v, want %v", a.Trailer, b.Trailer)
	}
	if !bytes.Equal(own.body, std.body) {
		t.Fatalf("body %q, want %q", own.body, std.body)
	}
}

// responses is the corpus of the fuzz test: the responses of the table hostile, and well-formed ones.
func responses() []string {
	var all []string
	for _, tt := range hostile {
		all = append(all, tt.data)
	}
	return append(all,
		okAnswer,
		"HTTP/1.0 200 OK\r\n\r\nto the end",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 200 OK\r\nconnection: Keep-Alive, close\r\ncontent-length: 3\r\nset-cookie: a=b\r\nSet-Cookie: c=d\r\nx-custom-name: 1\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum, Grpc-Status\r\n\r\n5\r\nhello\r\na;ext=\"v\"\r\n0123456789\r\n0\r\nX-Sum: 7\r\nX-Other: 8\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nEtag: x\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nPragma: no-cache\r\n\r\nok",
		"HTTP/1.1 200 OK\nContent-Length: 2\nServer: old\n\nok",
		"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
	)
}

// hostile lists what a broken or hostile target can send. The connection must be closed unless reused is set.
// If body is "refused", the round trip must fail. If it ends with "!", reading the body must fail after the
// bytes before that: "ok!" is "ok" and then an error.
var hostile = []struct {
	name, data, body string
	reused           bool
}{
	{name: "nothing", data: "", body: "refused"},
	{name: "a blank line first", data: "\r\n" + okAnswer, body: "refused"},
	{name: "another protocol", data: "SSH-2.0-OpenSSH_9.6\r\n", body: "refused"},
	{name: "HTTP/0.9", data: "<html>hello</html>", body: "refused"},
	{name: "HTTP/2 preface", data: "HTTP/2.0 200 OK\r\n\r\n", body: "refused"},
	{name: "lower case", data: "http/1.1 200 OK\r\n\r\n", body: "refused"},
	{name: "no minor version", data: "HTTP/1 200 OK\r\n\r\n", body: "refused"},
	{name: "long minor version", data: "HTTP/1.10 200 OK\r\n\r\n", body: "refused"},
	{name: "no status", data: "HTTP/1.1\r\n\r\n", body: "refused"},
	{name: "empty status", data: "HTTP/1.1 \r\n\r\n", body: "refused"},
	{name: "status of two digits", data: "HTTP/1.1 20 OK\r\n\r\n", body: "refused"},
	{name: "status of four digits", data: "HTTP/1.1 2000 OK\r\n\r\n", body: "refused"},
	{name: "status with a sign", data: "HTTP/1.1 +20 OK\r\n\r\n", body: "refused"},
	{name: "status below 100", data: "HTTP/1.1 099 OK\r\n\r\n", body: "refused"},
	{name: "status in letters", data: "HTTP/1.1 abc OK\r\n\r\n", body: "refused"},
	{name: "two blanks before the status", data: "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "blanks for a status", data: "HTTP/1.1     \r\n\r\n", body: "refused"},
	{name: "tab before the status", data: "HTTP/1.1\t200 OK\r\n\r\n", body: "refused"},
	{name: "NUL in the reason", data: "HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "CR in the reason", data: "HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "no reason", data: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", body: "", reused: true},
	{name: "no reason but a blank", data: "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", body: "", reused: true},
	{name: "LF alone", data: "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", body: "ok"},
	{name: "LF alone once", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok", body: "ok"},
	{name: "no colon", data: "HTTP/1.1 200 OK\r\nContent-Length 2\r\n\r\nok", body: "refused"},
	{name: "no name", data: "HTTP/1.1 200 OK\r\n: 2\r\n\r\nok", body: "refused"},
	{name: "blank before the colon", data: "HTTP/1.1 200 OK\r\nX : 2\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "blank before the length's colon", data: "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nok", body: "ok"},
	{name: "tab before the colon", data: "HTTP/1.1 200 OK\r\nX\t: 2\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "blank in the name", data: "HTTP/1.1 200 OK\r\nContent Length: 1\r\n\r\nok", body: "ok"},
	{name: "NUL in the name", data: "HTTP/1.1 200 OK\r\nX\x00: 2\r\n\r\nok", body: "refused"},
	{name: "letter beyond ASCII in the name", data: "HTTP/1.1 200 OK\r\nX\xe9: 2\r\n\r\nok", body: "refused"},
	{name: "NUL in the value", data: "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "CR in the value", data: "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "two CR", data: "HTTP/1.1 200 OK\r\nX: a\r\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "line of CR", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\r\nok", body: "refused"},
	{name: "DEL in the value", data: "HTTP/1.1 200 OK\r\nX: a\x7fb\r\n\r\n", body: "refused"},
	{name: "continued field", data: "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\t c \r\n \r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "continued length", data: "HTTP/1.1 200 OK\r\nContent-Length:\n 2\r\n\r\nok", body: "ok"},
	{name: "continued name", data: "HTTP/1.1 200 OK\r\nX\r\n : a\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "NUL in a continued field", data: "HTTP/1.1 200 OK\r\nX: a\r\n \x00\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "continued last field", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a\r\n b\r\n\r\nok", body: "ok"},
	{name: "continued first field", data: "HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok", body: "refused"},
	{name: "two lengths", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", body: "refused"},
	{name: "two lengths in a list", data: "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", body: "refused"},
	{name: "the same length twice", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", body: "ok", reused: true},
	{name: "length with a sign", data: "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", body: "refused"},
	{name: "length below 0", data: "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", body: "refused"},
	{name: "hexadecimal length", data: "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", body: "refused"},
	{name: "no length", data: "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", body: "refused"},
	{name: "length too large", data: "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nok", body: "refused"},
	{name: "length and chunked", data: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", body: "ok"},
	{name: "chunked in HTTP/1.0", data: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", body: "ok"},
	{name: "chunked twice", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", body: "refused"},
	{name: "gzip, chunked", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", body: "refused"},
	{name: "chunked with a vertical tab", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", body: "refused"},
	{name: "identity", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok", body: "refused"},
	{name: "chunk size with a sign", data: chunkedHead + "+2\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "chunk size below 0", data: chunkedHead + "-2\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "chunk size with 0x", data: chunkedHead + "0x2\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "blank before the chunk size", data: chunkedHead + " 2\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "blank behind the chunk size", data: chunkedHead + "2 \r\nok\r\n0\r\n\r\n", body: "ok"},
	{name: "blank before the extension", data: chunkedHead + "2 ;a\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "no chunk size", data: chunkedHead + "\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "chunk size of 17 digits", data: chunkedHead + "00000000000000002\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "chunk size that overflows", data: chunkedHead + "ffffffffffffffff\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "chunk size with LF alone", data: chunkedHead + "2\nok\r\n0\r\n\r\n", body: "!"},
	{name: "CR in an extension", data: chunkedHead + "2;a\rb\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "NUL in an extension", data: chunkedHead + "2;a\x00b\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "extension", data: chunkedHead + "2;a=\"b\"\r\nok\r\n0;x\r\n\r\n", body: "ok", reused: true},
	{name: "extension of 1 MB", data: chunkedHead + "2;" + strings.Repeat("a", 1<<20) + "\r\nok\r\n0\r\n\r\n", body: "!"},
	{name: "many extensions", data: chunkedHead + strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\nx\r\n", 100) + "0\r\n\r\n", body: strings.Repeat("x", 16) + "!"},
	{name: "chunk that is longer", data: chunkedHead + "2\r\nokk\r\n0\r\n\r\n", body: "ok!"},
	{name: "chunk that ends with LF", data: chunkedHead + "2\r\nok\n0\r\n\r\n", body: "ok!"},
	{name: "no last chunk", data: chunkedHead + "2\r\nok\r\n", body: "ok!"},
	{name: "no end of the trailer", data: chunkedHead + "2\r\nok\r\n0\r\n", body: "ok!"},
	{name: "trailer that frames", data: chunkedHead + "2\r\nok\r\n0\r\nContent-Length: 5\r\n\r\n", body: "ok"},
	{name: "continued trailer", data: chunkedHead + "2\r\nok\r\n0\r\nX: 5\r\n 6\r\n\r\n", body: "ok"},
	{name: "trailer with a blank in its name", data: chunkedHead + "2\r\nok\r\n0\r\nX : 5\r\n\r\n", body: "ok"},
	{name: "announced trailer with a blank in its name", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X Y\r\n\r\n2\r\nok\r\n0\r\n\r\n", body: "ok"},
	{name: "trailer without a colon", data: chunkedHead + "2\r\nok\r\n0\r\nX\r\n\r\n", body: "ok!"},
	{name: "trailer with LF alone", data: chunkedHead + "2\r\nok\r\n0\r\nX: a\n\r\n", body: "ok!"},
	{name: "trailer of 2 MB", data: chunkedHead + "2\r\nok\r\n0\r\nX: " + strings.Repeat("a", 2<<20) + "\r\n\r\n", body: "ok!"},
	{name: "announced trailer that frames", data: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\n\r\n", body: "refused"},
	{name: "body cut off", data: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", body: "ok!"},
	{name: "bytes after the answer", data: okAnswer + "x", body: "ok"},
	{name: "a second answer", data: okAnswer + okAnswer, body: "ok"},
	{name: "bytes after the last chunk", data: chunkedHead + "2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", body: "ok"},
	{name: "204 with a body", data: "HTTP/1.1 204 No Content\r\n\r\nbody", body: ""},
	{name: "204 with a length", data: "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", body: ""},
	{name: "204 with chunks", data: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", body: ""},
	{name: "204 with length 0", data: "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", body: "", reused: true},
	{name: "304 with a body", data: "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody", body: ""},
	{name: "304 with a length", data: "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", body: "", reused: true},
	{name: "length 0 with a body", data: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nbody", body: ""},
	{name: "endless 1xx", data: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100000), body: "refused"},
	{name: "1xx with a length", data: "HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\n\r\n" + okAnswer, body: "ok"},
	{name: "10 MB of fields", data: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("a", 1000)+"\r\n", 10000) + "\r\n", body: "refused"},
	{name: "10 MB of one field", data: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 10<<20) + "\r\n\r\n", body: "refused"},
	{name: "too many fields", data: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X:\r\n", maxFields+1) + "\r\n", body: "refused"},
	{name: "closing", data: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "HTTP/1.0", data: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", body: "ok"},
	{name: "HTTP/1.0 that keeps alive", data: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", body: "ok", reused: true},
	{name: "to the end of the connection", data: "HTTP/1.1 200 OK\r\n\r\nok", body: "ok"},
}

const chunkedHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

func TestHostileResponses(t *testing.T) {
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			steps := []int{1, 7, 1 << 20}
			if len(tt.data) > 1<<16 {
				steps = steps[2:]
			}
			for i, step := range append(steps, steps...) {
				hooks := &noHooks
				if i >= len(steps) {
					hooks = &takingHooks
				}
				a, err := readWith(hooks, []byte(tt.data), "GET", step)
				got := string(a.body)
				if a.bodyErr != nil {
					got += "!"
				}
				if err != nil {
					got = "refused"
					if len(tt.data) > 0 && !errors.Is(err, ErrInvalidResponse) && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Error(err)
					}
				}
				if got != tt.body || a.reused != tt.reused {
					t.Errorf("in pieces of %d: %q, reused %v, want %q, reused %v (%v)", step, got, a.reused, tt.body, tt.reused, a.bodyErr)
				}
			}
		})
	}
}

// A response that is cut off at any byte is never taken for a complete one.
func TestEarlyCloseAtEveryByte(t *testing.T) {
	for _, whole := range []string{
		okAnswer,
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okAnswer,
		chunkedHead + "5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
	} {
		for cut := range len(whole) {
			for _, step := range []int{1, 1 << 20} {
				a, err := readOwn([]byte(whole[:cut]), "GET", step)
				if err == nil {
					err = a.bodyErr
				}
				if !errors.Is(err, io.ErrUnexpectedEOF) || a.reused {
					t.Errorf("after %q: %v, reused %v", whole[:cut], err, a.reused)
				}
			}
		}
		if a, err := readOwn([]byte(whole), "GET", 1); err != nil || a.bodyErr != nil || !a.reused {
			t.Errorf("the whole of %q: %v, %v", whole, err, a)
		}
	}
}

func TestAsReadResponse(t *testing.T) {
	for _, data := range responses() {
		if len(data) > 1<<20 {
			continue // the standard library takes its time for long trailers
		}
		for _, method := range []string{"GET", "HEAD", "POST"} {
			compare(t, []byte(data), method, 1<<20)
		}
	}
}

func FuzzReadResponse(f *testing.F) {
	for _, data := range responses() {
		if len(data) < 4096 {
			f.Add([]byte(data), false, 0)
			f.Add([]byte(data), true, 1)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, head bool, step int) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		if step = step % 100; step <= 0 {
			step = 1 << 20
		}
		compare(t, data, method, step)
	})
}

func TestHeadResponses(t *testing.T) {
	for _, tt := range []struct {
		data   string
		length int64
		reused bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 5, true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", -1, true},
		{"HTTP/1.1 200 OK\r\n\r\n", -1, true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5, false},
	} {
		a, err := readOwn([]byte(tt.data), "HEAD", 1<<20)
		if err != nil || a.res.ContentLength != tt.length || a.reused != tt.reused || len(a.body) > 0 {
			t.Errorf("%q: %v, length %d, reused %v", tt.data, err, a.res.ContentLength, a.reused)
		}
	}
}

// MaxHeaderBytes limits the interim responses and the final one together, and the trailer separately.
func TestMaxHeaderBytes(t *testing.T) {
	header := func(n int) string { return "X: " + strings.Repeat("a", n-5) + "\r\n" }
	interim := "HTTP/1.1 103 Early Hints\r\n" + header(100-26-2) + "\r\n"
	final := "HTTP/1.1 204 No Content\r\n" + header(100-25-2) + "\r\n"
	trailer := chunkedHead + "0\r\n" + header(200-2) + "\r\n"
	for _, tt := range []struct {
		data string
		max  int
		ok   bool
	}{
		{final, 100, true}, {final, 99, false}, {interim + final, 200, true}, {interim + final, 199, false},
		{interim + interim + final, 299, false}, {trailer, 200, true}, {trailer, 199, false},
	} {
		tr := New(&Options{MaxHeaderBytes: tt.max, Dial: pipes(answerAll(tt.data))})
		res, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrInvalidResponse) {
			t.Errorf("%d of %d bytes: %v", len(tt.data), tt.max, err)
		}
		tr.CloseIdleConnections()
	}
}

// Appending to the values of one field does not change those of the next.
func TestHeaderValuesAreApart(t *testing.T) {
	a, err := readOwn([]byte("HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nA: 3\r\nC: 4\r\nContent-Length: 0\r\n\r\n"), "GET", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	a.res.Header.Add("B", "5")
	if got := fmt.Sprint(a.res.Header); got != "map[A:[1 3] B:[2 5] C:[4] Content-Length:[0]]" {
		t.Error(got)
	}
}
