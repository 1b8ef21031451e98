package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestProxyBodyLimit(t *testing.T) {
	backend := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			w.Write(body)
		}
	}
	f := newFront(t, &gateway.ProxyOptions{MaxBodyBytes: 10}, backend)
	for _, tt := range []struct {
		name string
		body io.Reader
		want int
	}{
		{"at the limit", strings.NewReader("0123456789"), 200},
		{"announced", strings.NewReader("0123456789x"), 413},
		{"found while streaming", io.MultiReader(strings.NewReader("0123456789"), strings.NewReader("x")), 413},
		{"found late", io.LimitReader(neverEnds{}, 1<<20), 413},
		{"streaming at the limit", io.MultiReader(strings.NewReader("01234"), strings.NewReader("56789")), 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := http.Post(f.URL, "text/plain", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != tt.want {
				t.Fatalf("got %d, want %d", res.StatusCode, tt.want)
			}
			line := f.journal.next(t)
			if tt.want == 413 {
				if p := readProblem(t, res); p.TraceID == "" {
					t.Errorf("got %+v", p)
				}
				if line["outcome"] != "rejected" {
					t.Errorf("logged %v", line)
				}
			}
		})
	}
}

type neverEnds struct{}

func TestProxyEarlyAnswer(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 4)
		for {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				return
			}
			w.Write(buf)
			w.(http.Flusher).Flush()
		}
	})
	in, out := io.Pipe()
	r, _ := http.NewRequest("POST", f.URL, in)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	// The answer has begun, the body has not.
	for _, s := range []string{"ping", "pong"} {
		io.WriteString(out, s)
		buf := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != s {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	out.Close()
}

// TestProxyUnreadBodies holds that a connection can be used again after a body that nobody read, whether the
// target answered early or there was none to ask.
func TestProxyUnreadBodies(t *testing.T) {
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "early") }))
	for name, u := range map[string]*gateway.Upstream{
		"early answer": gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil),
		"no target":    gateway.NewUpstream("u", nil, nil),
		"dead target":  gateway.NewUpstream("u", gateway.MustTargets("http://127.0.0.1:1"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			crashed := make(chan string, 10)
			s := httptest.NewUnstartedServer(gateway.Proxy(u, nil))
			s.Config.ErrorLog = log.New(writerFunc(func(p []byte) (int, error) { crashed <- string(p); return len(p), nil }), "", 0)
			s.Start()
			t.Cleanup(s.Close)
			body := strings.Repeat("x", 1000)
			conn := raw(t, s, "")
			br := bufio.NewReader(conn)
			for range 20 {
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.Close {
					t.Fatal("the connection was closed")
				}
			}
			if len(crashed) > 0 {
				t.Errorf("the server logged %s", <-crashed)
			}
		})
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestForwardClientStopsInMidBody: the client leaves while it sends. That is its own doing over any protocol.
func TestForwardClientStopsInMidBody(t *testing.T) {
	for _, before := range []string{http1, http2, h2c} {
		t.Run(before, func(t *testing.T) {
			begun, gone := make(chan bool), make(chan error, 1)
			w := newWay(t, before, http1, nil, func(w http.ResponseWriter, r *http.Request) {
				io.ReadFull(r.Body, make([]byte, 4))
				begun <- true
				_, err := io.Copy(io.Discard, r.Body)
				gone <- err
			})
			in, out := io.Pipe()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
				io.WriteString(out, "half")
				<-begun
				cancel()
				out.CloseWithError(context.Canceled)
			}()
			if res, err := w.Do(newRequest(t, "POST", w.url, in).WithContext(ctx)); err == nil {
				res.Body.Close()
				t.Errorf("got %d", res.StatusCode)
			}
			if err := <-gone; err == nil {
				t.Error("the target took half a body for a whole one")
			}
			if line := w.journal.next(t); line["outcome"] != "client_canceled" || line["status"] != "499" {
				t.Errorf("logged %v", line)
			}
		})
	}
}

// TestForwardDuplex: answers begin while bodies are still on their way, and may end before them.
func TestForwardDuplex(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http2, http2}, {h2c, h2c}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			w := newWay(t, pair[0], pair[1], nil, func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				if r.URL.Path == "/early" {
					return
				}
				buf := make([]byte, 4)
				for {
					if _, err := io.ReadFull(r.Body, buf); err != nil {
						return
					}
					w.Write(buf)
					w.(http.Flusher).Flush()
				}
			})
			in, out := io.Pipe()
			res := w.do(t, newRequest(t, "POST", w.url+"/echo", in))
			for _, s := range []string{"ping", "pong"} {
				io.WriteString(out, s)
				buf := make([]byte, 4)
				if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != s {
					t.Fatalf("got %q, %v", buf, err)
				}
			}
			out.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}

			in, out = io.Pipe()
			defer out.Close()
			res = w.do(t, newRequest(t, "POST", w.url+"/early", in))
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("early: %q, %v", rest, err)
			}
			in.CloseWithError(errors.New("enough"))
		})
	}
}

// TestForwardUnreadBodies: a target that answers without reading the body spoils neither connection for the
// next request.
func TestForwardUnreadBodies(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			body, _ := io.ReadAll(r.Body)
			w.Write(body)
			return
		}
		io.WriteString(w, "unread")
	})
	for n := range 20 {
		size := 10 << (n % 18)
		path, want := "/read", strings.Repeat(string(rune('a'+n)), size)
		body := want
		if n%2 == 0 {
			path, want = "/", "unread"
		}
		res := w.do(t, newRequest(t, "POST", w.url+path, strings.NewReader(body)))
		got, err := io.ReadAll(res.Body)
		if err != nil || string(got) != want {
			t.Errorf("request %d of %d bytes: %.20q, %v", n, size, got, err)
		}
	}
}

// TestForwardUnreadBodyIsNoRequest: a target answers before the body is here, and what comes of it later is not
// taken for a request, though it looks like one.
func TestForwardUnreadBodyIsNoRequest(t *testing.T) {
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, ask := range map[string][2]string{
		"length":           {fmt.Sprintf("Content-Length: %d\r\n\r\n%shalf", longBody+4+len(inner), strings.Repeat("x", longBody)), inner},
		"chunks":           {"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)},
		"within a chunk":   {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\nhalf", 4+len(inner)), inner + "\r\n0\r\n\r\n"},
		"the chunk's size": {"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n" + fmt.Sprintf("%x", len(inner)), "\r\n" + inner + "\r\n0\r\n\r\n"},
	} {
		for _, status := range []string{"200 x\r\nContent-Length: 2\r\n\r\nok", "200 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "204 x\r\n\r\n"} {
			t.Run(name+"/"+status[:3], func(t *testing.T) {
				w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
					head, err := readHead(br)
					if err != nil {
						return
					}
					if strings.Contains(head, "smuggled") {
						t.Error("the body was taken for a request")
					}
					if name != "within a chunk" { // net/http holds it until it is whole
						br.ReadString('f') // the body has begun
					}
					io.WriteString(conn, "HTTP/1.1 "+status)
					io.Copy(io.Discard, br)
				})
				conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\n"+ask[0])
				br := bufio.NewReader(conn)
				res, err := http.ReadResponse(br, nil)
				if err != nil || !res.Close {
					t.Fatalf("got %v, %v", res, err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Error(err)
				}
				io.WriteString(conn, ask[1])
				conn.(*net.TCPConn).CloseWrite()
				if rest, _ := io.ReadAll(br); len(rest) > 0 {
					t.Errorf("and then %q", rest)
				}
			})
		}
	}
}

// TestForwardShortBody: a short body is sent with its header in one write, so a target that answers without reading it
// does not cost the client its connection.
func TestForwardShortBody(t *testing.T) {
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			if flag.Lookup("standard").Value.String() == "false" && br.Buffered() < 100 {
				t.Errorf("%d bytes of the body came with %q", br.Buffered(), head)
			}
			io.WriteString(conn, "HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok")
			br.Discard(100)
		}
	})
	conn := raw(t, w.server, "")
	br := bufio.NewReader(conn)
	for range 3 {
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"+strings.Repeat("b", 50))
		io.WriteString(conn, strings.Repeat("b", 50))
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 200 || res.Close {
			t.Fatalf("got %v, %v", res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
}

// TestForwardAbortReachesASender: an answer that breaks off is seen by a client that has not sent its body and
// will not.
func TestForwardAbortReachesASender(t *testing.T) {
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		readHead(br)
		br.ReadString('f')
		io.WriteString(conn, "HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nhalf")
	})
	for _, framing := range []string{"Content-Length: 20000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		br := bufio.NewReader(raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\n"+framing))
		if _, err := readHead(br); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(br)
		var slow net.Error
		if string(rest) != "half" || errors.As(err, &slow) && slow.Timeout() {
			t.Errorf("got %q, %v", rest, err)
		}
		if line := w.journal.next(t); line["outcome"] != "aborted" {
			t.Errorf("logged %v", line)
		}
	}
}

// TestForwardAbortsWhileSending: the answer breaks off while the client still sends, many times at once.
func TestForwardAbortsWhileSending(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				r := newRequest(t, "POST", w.url, io.LimitReader(neverEnds{}, 2<<20))
				r.ContentLength = 2 << 20
				if res, err := w.Do(r); err == nil {
					if _, err := io.Copy(io.Discard, res.Body); err == nil {
						t.Error("half an answer came as a whole one")
					}
					res.Body.Close()
				}
			}
		})
	}
	wg.Wait()
}

// TestForwardModifyResponseSaysNoEarly has the client wait for the answer in the middle of its body.
func TestForwardModifyResponseSaysNoEarly(t *testing.T) {
	opts := &gateway.ProxyOptions{ModifyResponse: func(*http.Response) error { return errors.New("no") }}
	w := toPlain(t, opts, func(conn net.Conn, br *bufio.Reader) {
		readHead(br)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, br)
	})
	conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nhi")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := readProblem(t, res); p.Status != 502 || !res.Close {
		t.Errorf("got %+v, close %v", p, res.Close)
	}
}
