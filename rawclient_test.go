package gateway_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// rawRequest is a request as a hostile client may write it: nothing in it is checked. It is sent over HTTP/1.1 or
// HTTP/2.
type rawRequest struct {
	method, path string
	host         string   // "" means x
	fields       []string // "name: value"
	body         string
	whole        bool     // the request ends after body
	trailer      []string // "name: value", sent if whole
	raw          string   // over HTTP/1.1: all of it
}

// http1 returns r as the bytes of HTTP/1.1. The body is chunked if the fields say so.
func (r rawRequest) http1() string {
	if r.raw != "" {
		return r.raw
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.method, r.path, r.authority())
	chunked := false
	for _, f := range r.fields {
		b.WriteString(f + "\r\n")
		chunked = chunked || f == "Transfer-Encoding: chunked"
	}
	b.WriteString("\r\n")
	switch {
	case !chunked:
		b.WriteString(r.body)
	default:
		if r.body != "" {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", len(r.body), r.body)
		}
		if r.whole {
			b.WriteString("0\r\n")
			for _, f := range r.trailer {
				b.WriteString(f + "\r\n")
			}
			b.WriteString("\r\n")
		}
	}
	return b.String()
}

func (r rawRequest) authority() string {
	if r.host == "" {
		return "x"
	}
	return r.host
}

// The frames of HTTP/2 and their flags (RFC 9113 section 6).
const (
	frameData, frameHeaders, frameReset, frameSettings, frameGoAway, frameContinuation = 0, 1, 3, 4, 7, 9

	flagEndStream, flagAck, flagEndHeaders = 1, 1, 4
)

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// appendHeaders appends fields as one HEADERS frame with as many CONTINUATION frames as are needed.
func appendHeaders(b []byte, flags byte, fields []string) []byte {
	var block []byte
	for _, f := range fields {
		name, value, _ := strings.Cut(f[1:], ": ")
		block = append(block, 0) // a literal field without indexing (RFC 7541 section 6.2.2)
		block = appendHPACKString(block, strings.ToLower(f[:1]+name))
		block = appendHPACKString(block, value)
	}
	const most = 16 << 10
	for kind := byte(frameHeaders); ; kind, flags = frameContinuation, 0 {
		if len(block) <= most {
			return appendFrame(b, kind, flags|flagEndHeaders, 1, block)
		}
		b = appendFrame(b, kind, flags, 1, block[:most])
		block = block[most:]
	}
}

// appendHPACKString appends a string literal without Huffman code (RFC 7541 section 5.2).
func appendHPACKString(b []byte, s string) []byte {
	if len(s) < 127 {
		return append(append(b, byte(len(s))), s...)
	}
	b = append(b, 127)
	n := len(s) - 127
	for ; n >= 128; n >>= 7 {
		b = append(b, byte(n&127|128))
	}
	return append(append(b, byte(n)), s...)
}

// http2 returns r as the first bytes of a connection of HTTP/2, on stream 1. Fields that are for HTTP/1.1 alone are left
// out.
func (r rawRequest) http2() []byte {
	b := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	b = appendFrame(b, frameSettings, 0, 0, nil)
	fields := []string{":method: " + r.method, ":scheme: http", ":authority: " + r.authority(), ":path: " + r.path}
	for _, f := range r.fields {
		if !strings.HasPrefix(f, "Connection") && !strings.HasPrefix(f, "Transfer-Encoding") && !strings.HasPrefix(f, "Upgrade") {
			fields = append(fields, f)
		}
	}
	end := func(is bool) byte {
		if is {
			return flagEndStream
		}
		return 0
	}
	b = appendHeaders(b, end(r.whole && r.body == "" && r.trailer == nil), fields)
	for rest := r.body; rest != ""; {
		n := min(len(rest), 16<<10)
		b = appendFrame(b, frameData, end(r.whole && n == len(rest) && r.trailer == nil), 1, []byte(rest[:n]))
		rest = rest[n:]
	}
	if r.trailer != nil && r.whole {
		b = appendHeaders(b, flagEndStream, r.trailer)
	}
	return b
}

// What a rawClient does when its request is sent.
const (
	thenRead          = iota // reads the answer to its end
	thenLeave                // leaves at once
	thenLeaveReached         // leaves when reached is received from
	thenLeaveInAnswer        // leaves when the answer has begun
	thenHalfClose            // closes its half of the connection, and reads the answer
)

// rawClient sends one request on a connection of its own.
type rawClient struct {
	request rawRequest
	then    int
	reached <-chan bool
}

// run sends the request to s over protocol: HTTP/2 without TLS, or else HTTP/1.1. It returns when the answer has been
// read, or the client has left.
func (c rawClient) run(t *testing.T, protocol string, s *httptest.Server) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(deadline())
	h2 := protocol == http2 || protocol == h2c
	request := []byte(c.request.http1())
	if h2 {
		request = c.request.http2()
	}
	// The server may answer and close before it has read all.
	sent := make(chan bool)
	go func() {
		defer close(sent)
		conn.Write(request)
		if c.then == thenHalfClose {
			conn.(*net.TCPConn).CloseWrite()
		}
	}()
	defer func() { conn.Close(); <-sent }()

	br := bufio.NewReader(conn)
	switch c.then {
	case thenLeave:
		<-sent
	case thenLeaveReached:
		select {
		case <-c.reached:
		case <-t.Context().Done():
		}
	case thenLeaveInAnswer:
		if h2 {
			err = readFrames(br, conn, func(kind, _ byte) bool { return kind == frameHeaders })
		} else {
			_, err = readHead(br)
		}
	default:
		if h2 {
			err = readFrames(br, conn, func(kind, flags byte) bool {
				return kind == frameReset || kind <= frameHeaders && flags&flagEndStream != 0
			})
		} else {
			err = readAnswer(br, c.request.method)
		}
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		t.Errorf("no answer: %v", err)
	}
	if h2 && c.then != thenRead {
		conn.Write(appendFrame(nil, frameReset, 0, 1, []byte{0, 0, 0, 8})) // CANCEL
	}
}

// readAnswer reads the final answer of HTTP/1.1 to a request with this method, to its end.
func readAnswer(br *bufio.Reader, method string) error {
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return err
		}
		if res.StatusCode == http.StatusContinue {
			continue
		}
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
}

// readFrames reads frames until one satisfies done, and acknowledges the server's settings.
func readFrames(br *bufio.Reader, conn net.Conn, done func(kind, flags byte) bool) error {
	for {
		var head [9]byte
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return err
		}
		length, kind, flags := int(head[0])<<16|int(head[1])<<8|int(head[2]), head[3], head[4]
		if _, err := br.Discard(length); err != nil {
			return err
		}
		if kind == frameSettings && flags&flagAck == 0 {
			if _, err := conn.Write(appendFrame(nil, frameSettings, flagAck, 0, nil)); err != nil {
				return err
			}
		}
		if kind == frameGoAway || kind != frameSettings && done(kind, flags) {
			return nil
		}
	}
}
