package h1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// readRequest reads a request and its body at the far end of a pipe.
func readRequest(c net.Conn) bool {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

// silent is a target that reads and never answers.
func silent(_ int, c net.Conn) { io.Copy(io.Discard, c) }

// The end of the context ends a round trip at each of its stages, with an error that wraps the cause.
func TestCancel(t *testing.T) {
	cause := errors.New("the client has left")
	for _, tt := range []struct {
		name string
		opts Options
		edit func(*http.Request)
	}{
		{name: "before it begins", opts: Options{Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("dialed")
		}}},
		{name: "in the dial", opts: Options{DialTimeout: -1, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}},
		{name: "while nothing is read", opts: Options{Dial: pipes(func(_ int, c net.Conn) { time.Sleep(time.Hour) })}},
		{name: "while half of the request is read", opts: Options{Dial: pipes(func(_ int, c net.Conn) {
			io.ReadFull(c, make([]byte, 10))
			time.Sleep(time.Hour)
		})}},
		{name: "before the response", opts: Options{Dial: pipes(silent)}},
		{name: "in the header", opts: Options{Dial: pipes(func(_ int, c net.Conn) {
			readRequest(c)
			io.WriteString(c, okAnswer[:20])
			time.Sleep(time.Hour)
		})}},
		{name: "after an interim response", opts: Options{Dial: pipes(func(_ int, c net.Conn) {
			readRequest(c)
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
			time.Sleep(time.Hour)
		})}},
		{name: "while the body is sent", opts: Options{Dial: pipes(func(_ int, c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			time.Sleep(time.Hour)
		})}, edit: func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(io.LimitReader(zeros{}, 1<<30)), -1
		}},
		{name: "while 100 Continue is awaited", opts: Options{ContinueTimeout: time.Hour, Dial: pipes(silent)}, edit: func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader("hello")), 5
			r.Header.Set("Expect", "100-continue")
		}},
	} {
		for _, how := range []string{"cancel", "deadline", "limit"} {
			if how == "limit" && tt.name == "before it begins" {
				continue
			}
			t.Run(tt.name+", "+how, func(t *testing.T) {
				deadline := how == "deadline"
				synctest.Test(t, func(t *testing.T) {
					tr := New(&tt.opts)
					if how == "limit" {
						start := time.Now()
						req := newRequest(t, "GET", "http://a/", nil).WithContext(context.Background())
						if tt.edit != nil {
							tt.edit(req)
						}
						if _, err := tr.RoundTripBy(req, Deadline{time.Now().Add(50 * time.Second), cause}); !errors.Is(err, cause) || time.Since(start) != 50*time.Second {
							t.Errorf("after %v: %v", time.Since(start), err)
						}
						time.Sleep(2 * time.Hour)
						return
					}
					ctx, cancel := context.WithCancelCause(t.Context())
					after := 50 * time.Second
					if deadline {
						var stop context.CancelFunc
						ctx, stop = context.WithTimeoutCause(ctx, after, cause)
						defer stop()
					} else if tt.name == "before it begins" {
						cancel(cause)
						after = 0
					} else {
						time.AfterFunc(after, func() { cancel(cause) })
					}
					defer cancel(nil)
					if deadline && tt.name == "before it begins" {
						time.Sleep(after + 1) // at after itself, the context may not have ended yet
						after = 0
					}
					req := newRequest(t, "GET", "http://a/", nil).WithContext(ctx)
					if tt.edit != nil {
						tt.edit(req)
					}
					start := time.Now()
					_, err := tr.RoundTrip(req)
					if !errors.Is(err, cause) || errors.Is(err, ErrInvalidResponse) {
						t.Error(err)
					}
					if d := time.Since(start); d != after {
						t.Errorf("after %v", d)
					}
					if tr.mu.Lock(); len(tr.hosts) != 0 {
						t.Error("hosts are left")
					}
					tr.mu.Unlock()
					time.Sleep(2 * time.Hour)
				})
			})
		}
	}
}

// The deadline of RoundTripBy includes the wait for a slot, but not the body of the response.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := errors.New("late")
		tr := New(&Options{MaxPerHost: 1, Dial: pipes(func(_ int, c net.Conn) {
			readRequest(c)
			time.Sleep(9 * time.Second)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			time.Sleep(time.Minute)
			io.WriteString(c, "ok")
		})})
		res, err := tr.RoundTripBy(newRequest(t, "GET", "http://a/", nil).WithContext(context.Background()), Deadline{time.Now().Add(10 * time.Second), late})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := tr.RoundTripBy(newRequest(t, "GET", "http://a/", nil), Deadline{time.Now().Add(10 * time.Second), late}); err != late || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "ok" || err != nil {
			t.Error(string(body), err)
		}
		res.Body.Close()
		tr.CloseIdleConnections()
	})
}

// The end of the context ends the reading of a body, whether the read is blocked or not.
func TestCancelWhileBodyIsRead(t *testing.T) {
	for _, tt := range []struct {
		name string
		send func(c net.Conn)
		read func(io.ReadCloser) error
	}{
		{"blocked", func(c net.Conn) { time.Sleep(time.Hour) }, func(b io.ReadCloser) error { _, err := io.ReadAll(struct{ io.Reader }{b}); return err }},
		{"blocked in WriteTo", func(c net.Conn) { time.Sleep(time.Hour) }, func(b io.ReadCloser) error { _, err := io.Copy(io.Discard, b); return err }},
		{"in small pieces", func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, func(b io.ReadCloser) error { _, err := io.Copy(io.Discard, b); return err }},
		{"in a hurry", func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}, func(b io.ReadCloser) error { _, err := io.Copy(io.Discard, b); return err }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := New(&Options{Dial: pipes(func(_ int, c net.Conn) {
					readRequest(c)
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nok")
					tt.send(c)
				})})
				cause := errors.New("left")
				ctx, cancel := context.WithCancelCause(t.Context())
				res, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(10*time.Second, func() { cancel(cause) })
				start := time.Now()
				err = tt.read(res.Body)
				if !errors.Is(err, cause) {
					t.Error(err)
				}
				if d := time.Since(start); d < 10*time.Second || d > 10*time.Second+watchAfter {
					t.Error(d)
				}
				if _, again := res.Body.Read(make([]byte, 1)); again != err {
					t.Error(again)
				}
				res.Body.Close()
				if len(tr.hosts) != 0 {
					t.Error("hosts are left")
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A watcher is started for a slow response and not for a fast one.
func TestWatcherIsLazy(t *testing.T) {
	for _, slow := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			tr := New(&Options{Dial: pipes(func(_ int, c net.Conn) {
				for readRequest(c) {
					if slow {
						time.Sleep(time.Second)
					}
					io.WriteString(c, okAnswer)
				}
			})})
			ask(t, tr, newRequest(t, "GET", "http://a/", nil)) // dials, which watches the context
			ctx := &countingContext{Context: t.Context(), done: make(chan struct{})}
			ask(t, tr, newRequest(t, "GET", "http://a/", nil).WithContext(ctx))
			if ctx.watched != slow || ctx.watching {
				t.Errorf("slow %v: watched %v, watching %v", slow, ctx.watched, ctx.watching)
			}
			tr.CloseIdleConnections()
		})
	}
}

// A connection is not reused if its watcher has run or may be running.
func TestLateWatcher(t *testing.T) {
	for range 100 {
		w := newWire(&memoryConn{})
		ctx, cancel := context.WithCancel(t.Context())
		w.begin(ctx)
		if err := w.watchNow(); err != nil {
			t.Fatal(err)
		}
		cancel()
		if w.end() {
			t.Fatal("the watcher was not seen")
		}
	}
}

// countingContext counts the calls of context.AfterFunc for it.
type countingContext struct {
	context.Context
	done              chan struct{}
	watched, watching bool
}

func (c *countingContext) Done() <-chan struct{} { return c.done }
func (c *countingContext) AfterFunc(func()) func() bool {
	c.watched, c.watching = true, true
	return func() bool { c.watching = false; return true }
}

// After a slow exchange, only the context of the next request can end the next exchange on the connection.
func TestNextRequestHasItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{Dial: pipes(func(_ int, c net.Conn) {
			br := bufio.NewReader(c)
			for {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				time.Sleep(time.Second)
				io.WriteString(c, okAnswer)
			}
		})})
		defer tr.CloseIdleConnections()
		for i, ctx := range []context.Context{t.Context(), context.Background(), t.Context(), context.Background()} {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			if i == 1 {
				ctx = context.Background()
			}
			reused, body := askReused(t, tr, newRequest(t, "GET", "http://a/", nil).WithContext(ctx))
			if reused != (i > 0) || body != "ok" {
				t.Error(i, reused, body)
			}
			cancel() // of a request that is over
			synctest.Wait()
		}
	})
}

func TestResponseHeaderTimeout(t *testing.T) {
	for _, tt := range []struct {
		name  string
		body  io.Reader
		after time.Duration
	}{
		{"without a body", nil, 5 * time.Second},
		{"with a body in memory", strings.NewReader("hello"), 5 * time.Second},
		{"with a body that takes its time", readerFunc(func() func([]byte) (int, error) {
			n := 0
			return func(p []byte) (int, error) {
				time.Sleep(10 * time.Second)
				if n++; n > 3 {
					return 0, io.EOF
				}
				return 1, nil
			}
		}()), 45 * time.Second},
	} {
		for _, ctx := range []context.Context{context.Background(), nil} {
			t.Run(tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if ctx == nil {
						ctx = t.Context()
					}
					tr := New(&Options{ResponseHeaderTimeout: 5 * time.Second, Dial: pipes(silent)})
					start := time.Now()
					_, err := tr.RoundTrip(newRequest(t, "POST", "http://a/", tt.body).WithContext(ctx))
					var timeout net.Error
					if !errors.Is(err, ErrResponseHeaderTimeout) || !errors.As(err, &timeout) || !timeout.Timeout() {
						t.Error(err)
					}
					if d := time.Since(start); d != tt.after {
						t.Error(d)
					}
				})
			})
			if tt.name == "with a body that takes its time" {
				break
			}
		}
	}
}

// ResponseHeaderTimeout does not affect the body, even if no watcher was started for the header.
func TestResponseHeaderTimeoutSparesBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{ResponseHeaderTimeout: 5 * time.Second, Dial: pipes(func(n int, c net.Conn) {
			readRequest(c)
			io.WriteString(c, okAnswer[:len(okAnswer)-2])
			time.Sleep(time.Minute)
			io.WriteString(c, "ok")
		})})
		ask(t, tr, newRequest(t, "GET", "http://a/", nil))
	})
}

// ResponseHeaderTimeout starts after the request's body is sent. Interim responses do not stop it.
func TestResponseHeaderTimeoutIsOfTheHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{ResponseHeaderTimeout: 5 * time.Second, Dial: pipes(func(n int, c net.Conn) {
			br := bufio.NewReader(c)
			http.ReadRequest(br)
			time.Sleep(4 * time.Second)
			io.WriteString(c, okAnswer[:len(okAnswer)-2])
			time.Sleep(time.Minute)
			io.WriteString(c, "ok")
			http.ReadRequest(br)
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n"); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})})
		ask(t, tr, newRequest(t, "GET", "http://a/", nil))
		start := time.Now()
		if _, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil)); !errors.Is(err, ErrResponseHeaderTimeout) || time.Since(start) != 5*time.Second {
			t.Error(err, time.Since(start))
		}
		time.Sleep(time.Hour)
	})
}

func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{DialTimeout: 3 * time.Second, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		start := time.Now()
		if _, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil)); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Error(err, time.Since(start))
		}
	})
}

func TestTLSHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{TLSHandshakeTimeout: 3 * time.Second, Dial: pipes(silent)})
		start := time.Now()
		_, err := tr.RoundTrip(newRequest(t, "GET", "https://a/", nil))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != 3*time.Second {
			t.Error(err, time.Since(start))
		}
		if len(tr.hosts) != 0 {
			t.Error("hosts are left")
		}
	})
}

func TestExpectContinue(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(c net.Conn, br *bufio.Reader) // after the header of the request
		status int
		body   bool // was sent
		reused bool
		took   time.Duration
	}{
		{"100", func(c net.Conn, br *bufio.Reader) {
			time.Sleep(time.Millisecond)
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}, 200, true, true, time.Millisecond},
		{"another interim response", func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}, 200, true, true, 2 * time.Second},
		{"nothing", func(net.Conn, *bufio.Reader) {}, 200, true, true, 2 * time.Second},
		{"final", func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
		}, 417, false, false, 0},
		{"final and close", func(c net.Conn, br *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}, 401, false, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent := make(chan bool, 1)
				tr := New(&Options{ContinueTimeout: 2 * time.Second, Dial: pipes(func(_ int, c net.Conn) {
					br := bufio.NewReader(c)
					for {
						req, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						if req.Header.Get("Expect") != "" {
							tt.answer(c, br)
							b, err := io.ReadAll(req.Body)
							if sent <- err == nil && string(b) == "hello"; err != nil {
								return
							}
						}
						io.WriteString(c, okAnswer)
					}
				})})
				start := time.Now()
				body := &closeCounter{Reader: strings.NewReader("hello")}
				req := newRequest(t, "POST", "http://a/", body)
				req.ContentLength = 5
				req.Header.Set("Expect", "100-continue")
				res, _ := ask(t, tr, req)
				if res.StatusCode != tt.status || time.Since(start) != tt.took {
					t.Error(res.Status, time.Since(start))
				}
				if got := <-sent; got != tt.body {
					t.Errorf("the body was sent: %v", got)
				}
				if synctest.Wait(); body.closed.Load() != 1 {
					t.Errorf("the body was closed %d times", body.closed.Load())
				}
				if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://a/", nil)); reused != tt.reused {
					t.Errorf("reused %v", reused)
				}
				tr.CloseIdleConnections()
			})
		})
	}
}

// A response that arrives while the request's body is sent is returned, and the connection is not reused.
func TestEarlyResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(&Options{Dial: pipes(func(_ int, c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
			time.Sleep(time.Minute)
		})})
		r, w := io.Pipe()
		body := &closeCounter{Reader: r}
		start := time.Now()
		res, text := ask(t, tr, newRequest(t, "POST", "http://a/", body))
		if res.StatusCode != 413 || text != "no" || time.Since(start) != bodyEndGrace {
			t.Error(res.Status, text, time.Since(start))
		}
		if len(tr.hosts) != 0 {
			t.Error("the connection was kept")
		}
		w.Close() // and so the goroutine ends
		if synctest.Wait(); body.closed.Load() != 1 {
			t.Error("the body is open")
		}
		time.Sleep(time.Hour)
	})
}

// If the target stops reading but answers, the response is returned and not the error of the write.
func TestResponseIsPreferredToWriteError(t *testing.T) {
	addr := serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		http.ReadRequest(br)
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
		c.(*net.TCPConn).CloseWrite()
		io.CopyN(io.Discard, br, 1<<20)
	})
	tr := newTransport(t, nil)
	for range 10 {
		res, err := tr.RoundTrip(newRequest(t, "POST", "http://"+addr+"/", io.LimitReader(zeros{}, 100<<20)))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); res.StatusCode != 413 || string(b) != "no" || err != nil {
			t.Error(res.Status, string(b), err)
		}
		res.Body.Close()
	}
}

// An error of the hook for interim responses ends the round trip.
func TestInterimResponses(t *testing.T) {
	addr := serve(t, answerAll("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"+okAnswer))
	tr := newTransport(t, nil)
	refused := errors.New("refused")
	var seen []string
	hooks := &Hooks{Got1xxResponse: func(arg any, code int, header textproto.MIMEHeader) error {
		seen = append(seen, http.StatusText(code)+header.Get("Link"))
		err, _ := arg.(error)
		return err
	}}
	res, err := tr.Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, hooks, nil)
	if err != nil || res.StatusCode != 200 || strings.Join(seen, ",") != "Continue,Early Hints</a>" || res.Header.Get("Link") != "" {
		t.Fatal(err, seen)
	}
	io.Copy(io.Discard, res.Body)
	if _, err := tr.Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, hooks, refused); err != refused {
		t.Error(err)
	}
	if len(tr.hosts) != 0 {
		t.Error("the connection was kept")
	}
}
