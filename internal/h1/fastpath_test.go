package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// warm opens a connection and leaves it idle, so that the next request uses the fast path on it.
func warm(t *testing.T, tr *Transport, addr string) *conn {
	t.Helper()
	ask(t, tr, newRequest(t, "GET", "http://"+addr+"/warm", nil))
	c := tr.hosts[hostKey{false, addr}].idle[0]
	if canProbe && !c.hasFastPath() {
		t.Fatal("takes no turns")
	}
	return c
}

// afterWarm answers the first request and lets handle answer the second.
func afterWarm(handle func(c net.Conn, br *bufio.Reader)) func(int, net.Conn) {
	return func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if req.URL.Path != "/warm" {
				handle(c, br)
				return
			}
			io.WriteString(c, okAnswer)
		}
	}
}

// The fast path ends with the context and with ResponseHeaderTimeout, like any other wait.
func TestFastPathIsInterrupted(t *testing.T) {
	for _, begun := range []string{"", "HTTP/1.1 200 OK\r\nContent-"} {
		addr := serve(t, afterWarm(func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, begun)
			io.Copy(io.Discard, br)
		}))
		cause := errors.New("left")
		for _, after := range []time.Duration{time.Millisecond, 3 * watchAfter} {
			tr := newTransport(t, nil)
			warm(t, tr, addr)
			ctx, cancel := context.WithTimeoutCause(t.Context(), after, cause)
			if _, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil).WithContext(ctx)); !errors.Is(err, cause) {
				t.Error(err)
			}
			cancel()
			tr = newTransport(t, nil)
			warm(t, tr, addr)
			tr.opts.ResponseHeaderTimeout = after // for the next request alone
			if _, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil)); !errors.Is(err, ErrResponseHeaderTimeout) {
				t.Error(err)
			}
			if len(tr.hosts) != 0 {
				t.Error("the connection was kept")
			}
		}
	}
}

// If the socket does not accept the whole request at once, the rest is written afterwards.
func TestFastPathWithLargeRequest(t *testing.T) {
	body := pattern(20 << 20)
	addr := serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if got, err := io.ReadAll(req.Body); err != nil || len(got) > 0 && !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			io.WriteString(c, okAnswer)
		}
	})
	tr := newTransport(t, &Options{InlineBody: 100 << 20})
	warm(t, tr, addr)
	for range 2 {
		if reused, answer := askReused(t, tr, newRequest(t, "POST", "http://"+addr+"/", bytes.NewReader(body))); !reused || answer != "ok" {
			t.Error(reused, answer)
		}
	}
}

// If the fast path finds the connection closed, a POST is sent on another one, since no byte of it was
// written.
func TestFastPathOnClosedConnection(t *testing.T) {
	addr := serve(t, afterWarm(func(c net.Conn, br *bufio.Reader) { io.WriteString(c, okAnswer) }))
	tr := newTransport(t, &Options{MaxPerHost: 1})
	c := warm(t, tr, addr)
	c.wire.Conn.(*net.TCPConn).CloseRead() // the next read finds the end
	var g got
	res, err := tr.Do(newRequest(t, "POST", "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.conns) != 2 || !g.conns[0].Reused || g.conns[1].Reused {
		t.Error(g.conns)
	}
	res.Body.Close()
}
