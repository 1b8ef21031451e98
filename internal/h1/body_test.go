package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pattern returns n bytes in which displaced data can be detected.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func lengthAnswer(body []byte) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func chunkedAnswer(body []byte, size int) string {
	var b strings.Builder
	b.WriteString(chunkedHead)
	for len(body) > 0 {
		n := min(size, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	b.WriteString("0\r\nX-Sum: 1\r\n\r\n")
	return b.String()
}

// writerOnly hides all methods of a writer except Write.
type writerOnly struct{ io.Writer }

// Every way to read a body returns the same bytes and makes the connection idle.
func TestWaysToReadABody(t *testing.T) {
	ways := map[string]func(io.ReadCloser) ([]byte, error){
		"ReadAll": func(b io.ReadCloser) ([]byte, error) { return io.ReadAll(struct{ io.Reader }{b}) },
		"bytes": func(b io.ReadCloser) (all []byte, err error) {
			for one := make([]byte, 300); ; {
				n, err := b.Read(one)
				all = append(all, one[:n]...)
				if err == io.EOF {
					return all, nil
				} else if err != nil {
					return all, err
				}
			}
		},
		"WriteTo": func(b io.ReadCloser) ([]byte, error) {
			var buf bytes.Buffer
			_, err := b.(Body).WriteTo(writerOnly{&buf})
			return buf.Bytes(), err
		},
		"WriteTo after Read": func(b io.ReadCloser) ([]byte, error) {
			first := make([]byte, 1)
			if _, err := io.ReadFull(b, first); err != nil {
				return nil, err
			}
			buf := bytes.NewBuffer(first)
			_, err := b.(Body).WriteTo(writerOnly{buf})
			return buf.Bytes(), err
		},
		"WriteTo a ReaderFrom": func(b io.ReadCloser) ([]byte, error) {
			var buf bytes.Buffer
			_, err := b.(Body).WriteTo(&buf)
			return buf.Bytes(), err
		},
	}
	for _, size := range []int{2, 1000, bufferSize, 100 << 10, 1 << 20} {
		body := pattern(size)
		answers := map[string]string{
			"length": lengthAnswer(body), "chunks": chunkedAnswer(body, 5000), "one chunk": chunkedAnswer(body, size),
			"stream": "HTTP/1.1 200 OK\r\n\r\n" + string(body),
		}
		if size <= 1000 {
			answers["small chunks"] = chunkedAnswer(body, 1)
		}
		for kind, answer := range answers {
			addr := serve(t, func(_ int, c net.Conn) {
				br := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					io.WriteString(c, answer)
					if kind == "stream" {
						return
					}
				}
			})
			for way, read := range ways {
				t.Run(fmt.Sprint(kind, "/", size, "/", way), func(t *testing.T) {
					tr := newTransport(t, nil)
					for i := range 2 {
						var g got
						res, err := tr.Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
						if err != nil {
							t.Fatal(err)
						}
						all, err := read(res.Body)
						if err != nil || !bytes.Equal(all, body) {
							t.Fatalf("%d bytes, %v", len(all), err)
						}
						if strings.Contains(kind, "chunk") && res.Trailer.Get("X-Sum") != "1" {
							t.Error("no trailer")
						}
						if n, err := res.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
							t.Error(n, err)
						}
						res.Body.Close()
						if _, err := res.Body.Read(make([]byte, 1)); err != http.ErrBodyReadAfterClose {
							t.Error(err)
						}
						if kind != "stream" && g.conns[0].Reused != (i > 0) {
							t.Error("not reused")
						}
					}
				})
			}
		}
	}
}

// Closing a body early closes the connection, unless the rest of the body has been received.
func TestCloseEarly(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		reused       bool
	}{
		{"short", lengthAnswer(pattern(1000)), true},
		{"short chunks", chunkedAnswer(pattern(1000), 100), true},
		{"long", lengthAnswer(pattern(1 << 20)), false},
		{"long chunks", chunkedAnswer(pattern(1<<20), 1000), false},
		{"missing", lengthAnswer(pattern(1000))[:500], false},
		{"missing chunks", chunkedAnswer(pattern(1000), 100)[:500], false},
		{"broken chunks", chunkedHead + "1\r\na\r\nb\r\n", false},
		{"more", lengthAnswer(pattern(1000)) + "x", false},
		{"stream", "HTTP/1.1 200 OK\r\n\r\nhello", false},
	} {
		for _, read := range []int{0, 1} {
			t.Run(tt.name, func(t *testing.T) {
				tr := New(&Options{Dial: pipes(answerAll(tt.answer))})
				for i := range 2 {
					var g got
					res, err := tr.Do(newRequest(t, "GET", "http://a/", nil), Deadline{}, gotHooks, &g)
					if err != nil {
						t.Fatal(err)
					}
					io.ReadFull(res.Body, make([]byte, read))
					if err := res.Body.Close(); err != nil {
						t.Error(err)
					}
					if err := res.Body.Close(); err != nil {
						t.Error(err)
					}
					if g.conns[0].Reused != (tt.reused && i > 0) {
						t.Errorf("request %d: reused %v", i, g.conns[0].Reused)
					}
				}
				tr.CloseIdleConnections()
				if len(tr.hosts) != 0 {
					t.Error("hosts are left")
				}
			})
		}
	}
}

// Close ends a Read that is blocked on another goroutine.
func TestCloseWhileReading(t *testing.T) {
	for _, ctx := range []context.Context{context.Background(), nil} {
		synctest.Test(t, func(t *testing.T) {
			if ctx == nil {
				ctx = t.Context()
			}
			tr := New(&Options{Dial: pipes(func(_ int, c net.Conn) {
				readRequest(c)
				io.WriteString(c, lengthAnswer(pattern(1000))[:500])
				io.Copy(io.Discard, c)
			})})
			res, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { _, err := io.Copy(io.Discard, res.Body); done <- err }()
			time.Sleep(time.Second)
			synctest.Wait()
			res.Body.Close()
			if err := <-done; err == nil {
				t.Error("no error")
			}
			if _, err := res.Body.Read(make([]byte, 1)); err != http.ErrBodyReadAfterClose {
				t.Error(err)
			}
			if synctest.Wait(); len(tr.hosts) != 0 {
				t.Error("hosts are left")
			}
		})
	}
}

// Close at any moment of a concurrent Read does not affect other requests.
func TestCloseRacesWithReading(t *testing.T) {
	body := pattern(50 << 10)
	addr := serve(t, answerAll(chunkedAnswer(body, 3000)))
	tr := newTransport(t, nil)
	for i := range 200 {
		res, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() { io.CopyN(io.Discard, res.Body, int64(i)*500) })
		all.Go(func() { res.Body.Close() })
		if _, got := ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); got != string(body) {
			t.Fatal("another body")
		}
		all.Wait()
	}
}

// An error of the writer is a *WriteError and an error of the target is not, in user space and in the kernel.
func TestErrorsOfWriteTo(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{100, 1 << 20} {
		addr := serve(t, answerAll(lengthAnswer(pattern(size))))
		res, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Fatal(err)
		}
		n, err := res.Body.(Body).WriteTo(errorWriter{broken})
		var werr *WriteError
		if n != 0 || !errors.As(err, &werr) || !errors.Is(err, broken) {
			t.Error(n, err)
		}
		res.Body.Close()

		addr = serve(t, func(_ int, c net.Conn) {
			readRequest(c)
			io.WriteString(c, lengthAnswer(pattern(size))[:size])
		})
		res, err = newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = res.Body.(Body).WriteTo(io.Discard); errors.As(err, &werr) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		res.Body.Close()
	}
}

type errorWriter struct{ err error }

func (w errorWriter) Write([]byte) (int, error) { return 0, w.err }

// splicer is a TCP connection whose ReadFrom records its argument.
type splicer struct {
	*net.TCPConn
	spliced int64
	cancel  func()
}

func (s *splicer) ReadFrom(r io.Reader) (int64, error) {
	limited := r.(*io.LimitedReader)
	if _, ok := limited.R.(*net.TCPConn); !ok {
		return 0, errors.New("not over TCP")
	}
	s.spliced = limited.N
	if s.cancel != nil {
		time.AfterFunc(10*time.Millisecond, s.cancel)
	}
	return s.TCPConn.ReadFrom(r)
}

// sink returns a TCP connection whose peer reads take bytes and then closes it.
func sink(t *testing.T, take int64) (*splicer, chan []byte) {
	received := make(chan []byte, 1)
	addr := serve(t, func(_ int, c net.Conn) {
		b, _ := io.ReadAll(io.LimitReader(c, take))
		received <- b
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &splicer{TCPConn: c.(*net.TCPConn)}, received
}

func TestSplice(t *testing.T) {
	body := pattern(1 << 20)
	t.Run("whole", func(t *testing.T) {
		addr := serve(t, answerAll(lengthAnswer(body)))
		tr := newTransport(t, nil)
		for range 2 {
			res, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
			if err != nil {
				t.Fatal(err)
			}
			out, received := sink(t, 1<<30)
			n, err := io.Copy(out, res.Body)
			out.CloseWrite()
			if err != nil || n != int64(len(body)) || !bytes.Equal(<-received, body) {
				t.Error(n, err)
			}
			if out.spliced < spliceFrom || len(tr.hosts[hostKey{false, addr}].idle) != 1 {
				t.Errorf("%d bytes spliced", out.spliced)
			}
			res.Body.Close()
		}
	})
	t.Run("the target ends", func(t *testing.T) {
		addr := serve(t, func(_ int, c net.Conn) {
			readRequest(c)
			io.WriteString(c, lengthAnswer(body)[:500<<10])
		})
		res, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Fatal(err)
		}
		out, _ := sink(t, 1<<30)
		var werr *WriteError
		if _, err := io.Copy(out, res.Body); !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &werr) {
			t.Error(err)
		}
		res.Body.Close()
	})
	t.Run("the client leaves", func(t *testing.T) {
		addr := serve(t, func(_ int, c net.Conn) {
			readRequest(c)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", 1<<40)
			io.Copy(c, zeros{})
		})
		res, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Fatal(err)
		}
		out, _ := sink(t, 100)
		var werr *WriteError
		if _, err := io.Copy(out, res.Body); !errors.As(err, &werr) {
			t.Error(err)
		}
		res.Body.Close()
	})
	t.Run("canceled", func(t *testing.T) {
		addr := serve(t, func(_ int, c net.Conn) {
			readRequest(c)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", 1<<40)
			c.Read(make([]byte, 1))
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		res, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		cause := errors.New("left")
		out, _ := sink(t, 1<<30)
		out.cancel = func() { cancel(cause) }
		if _, err := io.Copy(out, res.Body); !errors.Is(err, cause) {
			t.Error(err)
		}
		res.Body.Close()
	})
}

// A body is spliced through ReadFrom of net/http's response writer, and the client receives it unchanged.
func TestSpliceThroughServer(t *testing.T) {
	body := pattern(5 << 20)
	addr := serve(t, answerAll(lengthAnswer(body)))
	tr := newTransport(t, nil)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		res, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		w.Header().Set("Content-Length", res.Header.Get("Content-Length"))
		if n, err := io.Copy(w, res.Body); err != nil || n != int64(len(body)) {
			t.Error(n, err)
		}
	}))
	client := newTransport(t, nil)
	for range 2 {
		if _, got := ask(t, client, newRequest(t, "GET", srv.URL, nil)); got != string(body) {
			t.Error("another body")
		}
	}
	client.CloseIdleConnections()
	srv.Close() // and so the handlers have returned
	if len(tr.hosts[hostKey{false, addr}].idle) == 0 {
		t.Error("the connection was not kept")
	}
}

func upgradeRequest(t *testing.T, url string) *http.Request {
	req := newRequest(t, "GET", url, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	return req
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

func TestUpgrade(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			handle := func(_ int, c net.Conn) {
				br := bufio.NewReader(c)
				http.ReadRequest(br)
				io.WriteString(c, switching+"first ")
				io.Copy(c, br) // until the client ends its side
				io.WriteString(c, " end")
			}
			url, opts := "", &Options{MaxPerHost: 1}
			if secure {
				url, opts.TLS = serveTLS(t, nil, handle)
			} else {
				url = "http://" + serve(t, handle) + "/"
			}
			tr := newTransport(t, opts)
			for range 2 {
				ctx, cancel := context.WithCancel(t.Context())
				res, err := tr.RoundTrip(upgradeRequest(t, url).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" {
					t.Error(res)
				}
				cancel() // does not concern the connection any more
				up := res.Body.(Upgraded)
				if _, err := up.ReadFrom(strings.NewReader("hello")); err != nil {
					t.Error(err)
				}
				io.WriteString(up, " you")
				if err := up.CloseWrite(); err != nil {
					t.Error(err)
				}
				var all bytes.Buffer
				if _, err := up.WriteTo(&all); err != nil || all.String() != "first hello you end" {
					t.Error(err, all.String())
				}
				up.Close()
				up.Close()
				if len(tr.hosts) != 0 {
					t.Error("the connection still counts")
				}
			}
		})
	}
}

func TestUpgradeRefused(t *testing.T) {
	addr := serve(t, answerAll(switching))
	if _, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil)); !errors.Is(err, ErrInvalidResponse) {
		t.Error(err)
	}
	addr = serve(t, answerAll(okAnswer))
	if res, body := ask(t, newTransport(t, nil), upgradeRequest(t, "http://"+addr+"/")); res.StatusCode != 200 || body != "ok" {
		t.Error(res.Status, body)
	}
}

// A server of net/http over both schemes, with bodies in both directions and trailers.
func TestNetHTTPServer(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		n, err := io.Copy(w, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Sum", fmt.Sprint(n, r.Trailer.Get("X-Sent")))
	})
	for _, secure := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(handler)
		opts := &Options{}
		if secure {
			srv.StartTLS()
			opts.TLS = srv.Client().Transport.(*http.Transport).TLSClientConfig
		} else {
			srv.Start()
		}
		t.Cleanup(srv.Close)
		tr := newTransport(t, opts)
		for i, size := range []int{1, 100 << 10, 1 << 20} {
			body := pattern(size)
			req := newRequest(t, "POST", srv.URL, hiddenReader{bytes.NewReader(body)})
			req.Trailer = http.Header{"X-Sent": {"!"}}
			var g got
			res, err := tr.Do(req, Deadline{}, gotHooks, &g)
			if err != nil {
				t.Fatal(err)
			}
			all, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(all, body) || res.Trailer.Get("X-Sum") != fmt.Sprint(size, "!") || (res.TLS != nil) != secure {
				t.Error(len(all), err, res.Trailer)
			}
			if g.conns[0].Reused != (i > 0) {
				t.Error("reused", g.conns[0].Reused)
			}
		}
	}
}

// TestBuffered checks how much a body of known length says that Read returns without blocking.
func TestBuffered(t *testing.T) {
	for _, tt := range []struct {
		name, first, rest string
		want, then        int // before the first Read, and after the first byte was read
	}{
		{"whole", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", "", 4, 3},
		{"part", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo", "dy", 2, 1},
		{"nothing", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", "body", 0, 3},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", "0\r\n\r\n", -1, -1},
		{"until the end", "HTTP/1.1 200 OK\r\n\r\nbo", "dy", -1, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			release := make(chan bool)
			url := serve(t, func(_ int, c net.Conn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, tt.first)
				<-release
				io.WriteString(c, tt.rest)
			})
			res, err := newTransport(t, nil).RoundTrip(newRequest(t, "GET", "http://"+url, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body := res.Body.(interface{ Buffered() int })
			if n := body.Buffered(); n != tt.want {
				t.Errorf("%d bytes, want %d", n, tt.want)
			}
			close(release)
			var one [1]byte
			if _, err := io.ReadFull(res.Body, one[:]); err != nil || one[0] != 'b' {
				t.Fatalf("read %q, %v", one, err)
			}
			if n := body.Buffered(); n != tt.then {
				t.Errorf("then %d bytes, want %d", n, tt.then)
			}
			if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "ody" {
				t.Errorf("then read %q, %v", rest, err)
			}
			if n := body.Buffered(); n > 0 {
				t.Errorf("at the end %d bytes", n)
			}
			res.Body.Close()
			if n := body.Buffered(); n > 0 {
				t.Errorf("once closed %d bytes", n)
			}
		})
	}
}
