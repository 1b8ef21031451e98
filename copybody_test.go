package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// TestAnswerDoesNotWait: the header and what has arrived of the body reach the client while the target keeps back the
// rest, whether the length is known or not.
func TestAnswerDoesNotWait(t *testing.T) {
	for _, before := range []string{http1, http2, h2c} {
		for _, tt := range []struct{ name, head, first, rest string }{
			{"known length", "Content-Length: 10\r\n\r\n", "12345", "67890"},
			{"one byte late", "Content-Length: 10\r\n\r\n", "123456789", "0"},
			{"larger than a packet", "Content-Length: 5000\r\n\r\n", strings.Repeat("x", 4000), strings.Repeat("y", 1000)},
			{"larger than the buffer", "Content-Length: 50000\r\n\r\n", strings.Repeat("x", 40_000), strings.Repeat("y", 10_000)},
			{"chunked", "Transfer-Encoding: chunked\r\n\r\n", "5\r\n12345\r\n", "5\r\n67890\r\n0\r\n\r\n"},
			{"chunked, nothing of the body", "Transfer-Encoding: chunked\r\n\r\n", "", "5\r\n67890\r\n0\r\n\r\n"},
			{"until the end of the connection", "Connection: close\r\n\r\n", "12345", "67890"},
		} {
			t.Run(before+"/"+tt.name, func(t *testing.T) {
				release := make(chan bool)
				up := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
					readHead(br)
					io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+tt.head+tt.first)
					<-release
					io.WriteString(conn, tt.rest)
				})
				transport := newTransport(t, nil)
				w := newWayTo(t, before, gateway.NewUpstream("target", gateway.MustTargets(up),
					&gateway.UpstreamOptions{Transport: transport}), nil)
				res := w.do(t, newRequest(t, "GET", w.url, nil)) // hangs when the header waits
				first, rest := tt.first, tt.rest
				if strings.HasPrefix(tt.head, "Transfer") {
					first, rest = strings.Repeat("12345", min(1, len(first))), "67890"
				}
				got := make([]byte, len(first))
				if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != first {
					t.Errorf("got %.20q, %v", got, err)
				}
				close(release)
				if got, err := io.ReadAll(res.Body); err != nil || string(got) != rest {
					t.Errorf("then got %.20q, %v", got, err)
				}
				if line := w.journal.next(t); line["outcome"] != "ok" {
					t.Errorf("logged %v", line)
				}
			})
		}
	}
}

// lateBody is a body of 4 bytes that knows that nothing of it has arrived before release is closed.
type lateBody struct {
	io.Reader
	release chan bool
}

func (b lateBody) Buffered() int { return 0 }
func (b lateBody) Close() error  { return nil }
func (b lateBody) Read(p []byte) (int, error) {
	<-b.release
	return b.Reader.Read(p)
}

// TestHeaderDoesNotWait: where it is known that a body is late, the header goes first.
func TestHeaderDoesNotWait(t *testing.T) {
	for _, before := range []string{http1, http2, h2c} {
		t.Run(before, func(t *testing.T) {
			release := make(chan bool)
			up := gateway.NewUpstream("target", gateway.MustTargets("http://target"), &gateway.UpstreamOptions{
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: 200, Header: http.Header{"Content-Length": {"4"}}, ContentLength: 4,
						Body: lateBody{strings.NewReader("late"), release}, Request: r}, nil
				})})
			w := newWayTo(t, before, up, nil)
			res := w.do(t, newRequest(t, "GET", w.url, nil))
			close(release)
			if got, err := io.ReadAll(res.Body); err != nil || string(got) != "late" {
				t.Errorf("got %q, %v", got, err)
			}
			if line := w.journal.next(t); line["outcome"] != "ok" {
				t.Errorf("logged %v", line)
			}
		})
	}
}

// countingListener counts the writes on its connections.
type countingListener struct {
	net.Listener
	writes *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return countingConn{conn, l.writes}, err
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestWholeAnswerIsOneWrite: a small answer that arrives whole leaves in one write with its header.
func TestWholeAnswerIsOneWrite(t *testing.T) {
	for _, size := range []int{0, 1, 100, 1000, 3000} {
		for _, separate := range []bool{false, true} {
			name := fmt.Sprintf("%d bytes", size)
			if separate {
				name += ", header and body in two writes of the target"
			}
			t.Run(name, func(t *testing.T) {
				body := strings.Repeat("x", size)
				target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
					for {
						if _, err := readHead(br); err != nil {
							return
						}
						head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
						if separate {
							io.WriteString(conn, head)
							io.WriteString(conn, body)
						} else {
							io.WriteString(conn, head+body)
						}
					}
				})
				transport := newTransport(t, nil)
				up := gateway.NewUpstream("target", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
				var writes atomic.Int64
				s := httptest.NewUnstartedServer(gateway.Proxy(up, nil))
				s.Listener = countingListener{s.Listener, &writes}
				s.Start()
				t.Cleanup(s.Close)
				const times = 10
				for range times {
					res := get(t, s.URL)
					if got, err := io.ReadAll(res.Body); err != nil || string(got) != body {
						t.Fatalf("got %.20q, %v", got, err)
					}
				}
				// A scheduler may part the target's two writes for longer than a header waits.
				if n := writes.Load(); n < times || n > times && !separate || n > 2*times {
					t.Errorf("%d answers took %d writes", times, n)
				}
			})
		}
	}
}

// TestLateFlushPanics: a panic of a foreign writer in the flush of a header goes up like any other.
func TestLateFlushPanics(t *testing.T) {
	release := make(chan bool)
	h := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: 4, Body: lateBody{strings.NewReader("late"), release}}, nil
	}), nil)
	w := &panickingFlusher{httptest.NewRecorder(), release}
	if p := panicOf(func() { h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)) }); p != "flush" {
		t.Errorf("panicked with %q", p)
	}
}

type panickingFlusher struct {
	http.ResponseWriter
	flushed chan bool
}

func (f *panickingFlusher) FlushError() error {
	close(f.flushed)
	panic("flush")
}

// TestLongBodies: a long body of known length comes whole, whatever copies it, and the record knows its bytes and who
// broke it off.
func TestLongBodies(t *testing.T) {
	const size = 3 << 20
	body := strings.Repeat("0123456789abcdef", size/16)
	for _, before := range []string{http1, http2} {
		for _, idle := range []time.Duration{0, time.Minute} {
			for _, fault := range []string{"", "target", "client"} {
				t.Run(fmt.Sprint(before, " ", idle, " ", fault), func(t *testing.T) {
					up := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
						for {
							if _, err := readHead(br); err != nil {
								return
							}
							whole := body
							if fault != "" {
								whole = body[:size/2]
							}
							length := int64(size)
							if fault == "client" {
								length = 1 << 40
							}
							fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, whole)
							for err := error(nil); fault == "client" && err == nil; {
								_, err = io.WriteString(conn, body)
							}
							if fault != "" {
								return
							}
						}
					})
					transport := newTransport(t, nil)
					w := newWayTo(t, before, gateway.NewUpstream("target", gateway.MustTargets(up),
						&gateway.UpstreamOptions{Transport: transport, Idle: idle}), nil)
					for range 2 {
						res := w.do(t, newRequest(t, "GET", w.url, nil))
						if fault == "client" {
							io.ReadFull(res.Body, make([]byte, size/2))
							res.Body.Close()
							if line := w.journal.next(t); line["outcome"] != "client_canceled" {
								t.Errorf("logged %v", line)
							}
							return
						}
						got, err := io.ReadAll(res.Body)
						line := w.journal.next(t)
						if fault == "target" {
							if err == nil || string(got) != body[:size/2] || line["outcome"] != "aborted" || line["bytes"] != fmt.Sprint(size/2) {
								t.Errorf("got %d bytes, %v, logged %v", len(got), err, line)
							}
							return
						}
						if err != nil || string(got) != body || line["outcome"] != "ok" || line["bytes"] != fmt.Sprint(size) {
							t.Errorf("got %d bytes, %v, logged %v", len(got), err, line)
						}
					}
				})
			}
		}
	}
}
