package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed-96248d0c/gateway"
)

// askHandler asks h for target and returns the response and its body.
func askHandler(t *testing.T, h http.HandlerFunc, req *http.Request) (*http.Response, string, error) {
	t.Helper()
	res, err := gateway.HandlerTransport(h).RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	return res, string(body), err
}

// TestHandlerTransportAsServer holds HandlerTransport beside a real server: what a client sees is the same.
func TestHandlerTransportAsServer(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4<<10)
	handlers := map[string]http.HandlerFunc{
		"silent":       func(http.ResponseWriter, *http.Request) {},
		"status alone": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
		"short":        func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"a":1}`) },
		"long":         func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, long) },
		"in pieces": func(w http.ResponseWriter, _ *http.Request) {
			for piece := range strings.SplitSeq(long, "f") {
				io.WriteString(w, piece)
			}
		},
		"flushed": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			w.(http.Flusher).Flush()
			io.WriteString(w, "a")
			_ = http.NewResponseController(w).Flush()
			io.WriteString(w, "b")
		},
		"fields after the status": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Before", "1")
			w.WriteHeader(201)
			w.WriteHeader(500)
			w.Header().Set("X-After", "1")
			w.Header().Set("X-Before", "2")
		},
		"declared length": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			io.WriteString(w, "abc")
			if _, err := io.WriteString(w, "d"); err != http.ErrContentLength {
				panic("more than declared was taken")
			}
		},
		"length left out": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Length"] = nil
			io.WriteString(w, "abc")
		},
		"less than declared": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "abc")
		},
		"less than declared, flushed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "abc")
			w.(http.Flusher).Flush()
		},
		"no content": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); err != http.ErrBodyNotAllowed {
				panic("a body was taken")
			}
		},
		"not modified, flushed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Etag", `"1"`)
			w.WriteHeader(http.StatusNotModified)
			w.(http.Flusher).Flush()
		},
		"announced trailers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum, X-Unset")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "4")
		},
		"trailers by prefix": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "body")
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		},
		"aborted":        func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"aborted unsent": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x"); panic(http.ErrAbortHandler) },
		"aborted within": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "begun")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"echo": func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Saw", r.Method+" "+r.RequestURI+" "+r.URL.Path+" "+r.URL.RawQuery+" "+r.Proto)
			if r.URL.Host != "" || r.Host == "" {
				panic("not as a server would hand it over")
			}
			w.Write(b)
		},
	}
	for name, h := range handlers {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			t.Run(name+"/"+method, func(t *testing.T) {
				srv := httptest.NewUnstartedServer(h)
				srv.Config.ErrorLog = log.New(io.Discard, "", 0)
				srv.Start()
				defer srv.Close()
				request := func() *http.Request {
					var body io.Reader
					if method == "POST" {
						body = strings.NewReader(`{"sent":true}`)
					}
					return newRequest(t, method, srv.URL+"/a%2Fb/c?d=e", body)
				}
				type seen struct {
					status, length int
					header         string
					body           string
					trailer        string
					failed, cut    bool
				}
				look := func(rt http.RoundTripper) seen {
					res, err := rt.RoundTrip(request())
					if err != nil {
						return seen{failed: true}
					}
					announced := len(res.Trailer)
					body, err := io.ReadAll(res.Body)
					res.Body.Close()
					var trailer, header bytes.Buffer
					res.Trailer.Write(&trailer)
					res.Header.Del("Date")
					if method == "HEAD" {
						// A HEAD's answer tells the length or not, at the server's discretion.
						res.Header.Del("Content-Length")
						res.Header.Del("Content-Type")
						res.Header.Del("Trailer")
						res.ContentLength = 0
						announced = 0
						trailer.Reset()
					}
					res.Header.Write(&header)
					return seen{res.StatusCode, int(res.ContentLength), header.String(), string(body),
						string(rune('0'+announced)) + trailer.String(), false, err != nil}
				}
				direct := &http.Transport{}
				defer direct.CloseIdleConnections()
				want, got := look(direct), look(gateway.HandlerTransport(h))
				if got != want {
					t.Errorf("got  %+v\nwant %+v", got, want)
				}
			})
		}
	}
}

func TestHandlerTransportStreams(t *testing.T) {
	more, ended := make(chan bool), make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			<-more
			io.WriteString(w, string(rune('a'+i)))
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		_, err := w.Write(make([]byte, 64<<10))
		ended <- err
	})
	go func() { more <- true }()
	res, err := gateway.HandlerTransport(h).RoundTrip(newRequest(t, "GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	for _, want := range []string{"a", "b", "c"} {
		if _, err := io.ReadFull(res.Body, one); err != nil || string(one) != want {
			t.Fatalf("got %q, %v; want %q", one, err, want)
		}
		if want != "c" {
			more <- true
		}
	}
	res.Body.Close() // ends the handler's context
	if err := <-ended; err == nil {
		t.Error("a write after Close succeeded")
	}
	if _, err := res.Body.Read(one); err == nil {
		t.Error("a read after Close succeeded")
	}
}

// A handler that ignores its context holds nobody up.
func TestHandlerTransportDeafHandler(t *testing.T) {
	for _, begun := range []bool{false, true} {
		runs, release, wrote := make(chan bool), make(chan bool), make(chan error, 1)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if begun {
				w.(http.Flusher).Flush()
			}
			close(runs)
			<-release
			_, err := w.Write(make([]byte, 64<<10))
			wrote <- err
		})
		ctx, cancel := context.WithCancel(t.Context())
		arrived := make(chan bool)
		go func() {
			<-runs
			if begun {
				<-arrived
			}
			cancel()
		}()
		res, err := gateway.HandlerTransport(h).RoundTrip(newRequest(t, "GET", "/", nil).WithContext(ctx))
		if begun {
			if err != nil {
				t.Fatal(err)
			}
			arrived <- true
			_, err = res.Body.Read(make([]byte, 1))
			res.Body.Close()
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("begun %v: got %v", begun, err)
		}
		close(release)
		if err := <-wrote; err == nil {
			t.Errorf("begun %v: a write after the end succeeded", begun)
		}
	}
}

// What a handler leaves unfinished because its context ended is not taken for the whole.
func TestHandlerTransportGivesUp(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "[1")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		res, err := gateway.HandlerTransport(h).RoundTrip(newRequest(t, "GET", "/", nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(res.Body); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		res.Body.Close()
	}
}

func TestHandlerTransportPanics(t *testing.T) {
	var logged bytes.Buffer
	ctx := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{ErrorLog: log.New(&logged, "", 0)})
	boom := func(http.ResponseWriter, *http.Request) { panic("boom") }
	_, _, err := askHandler(t, boom, newRequest(t, "GET", "/", nil).WithContext(ctx))
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(logged.String(), "boom") || !strings.Contains(logged.String(), "handlertransport_test.go") {
		t.Errorf("log: %s", &logged)
	}
	begun := func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); panic("boom") }
	_, _, err = askHandler(t, begun, newRequest(t, "GET", "/", nil).WithContext(ctx))
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("after the header: got %v", err)
	}
	goexit := func(http.ResponseWriter, *http.Request) { runtime.Goexit() }
	if _, _, err = askHandler(t, goexit, newRequest(t, "GET", "/", nil)); err == nil {
		t.Error("Goexit is an answer")
	}
	if v := panicOf(func() { gateway.HandlerTransport(nil) }); v != "gateway: HandlerTransport: nil handler" {
		t.Errorf("panicked with %q", v)
	}
}

func TestHandlerTransportRequest(t *testing.T) {
	req := newRequest(t, "", "http://h.example:81/a?b=c", nil)
	req.Method = ""
	req.Header = nil
	req.SetPathValue("id", "outer's")
	_, body, err := askHandler(t, func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X", "changed")
		r.URL.Path = "changed"
		io.WriteString(w, strings.Join([]string{r.Method, r.Host, r.RequestURI, r.URL.RawQuery, r.PathValue("id")}, "|"))
	}, req)
	if err != nil || body != "GET|h.example:81|/a?b=c|b=c|" {
		t.Errorf("got %q, %v", body, err)
	}
	if req.Header != nil || req.URL.Path != "/a" {
		t.Error("the caller's request was changed")
	}

	req = newRequest(t, "POST", "/", io.NopCloser(strings.NewReader("unknown length")))
	req.Trailer = http.Header{"X-End": {"1"}}
	closed := make(chan bool, 1)
	req.Body = &closing{req.Body, closed}
	_, body, err = askHandler(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.ContentLength != -1 || r.Trailer.Get("X-End") != "1" {
			t.Errorf("length %d, trailer %v", r.ContentLength, r.Trailer)
		}
		w.Write(b)
	}, req)
	if err != nil || body != "unknown length" {
		t.Errorf("got %q, %v", body, err)
	}
	<-closed

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := askHandler(t, func(http.ResponseWriter, *http.Request) { t.Error("asked") }, req.WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestHandlerTransportClosesBody holds that the request's body is closed once, also when nobody waits for the handler
// any more and the handler does not look at its context. A read of the body that blocks then returns.
func TestHandlerTransportClosesBody(t *testing.T) {
	closedOnce := func(t *testing.T, closed chan bool) {
		t.Helper()
		synctest.Wait()
		if len(closed) != 1 {
			t.Errorf("the body was closed %d times", len(closed))
		}
	}
	with := func(t *testing.T, ctx context.Context, body io.Reader) (*http.Request, chan bool) {
		closed := make(chan bool, 3)
		req := newRequest(t, "POST", "/", nil).WithContext(ctx)
		req.Body = &closing{body, closed}
		return req, closed
	}
	t.Run("abandoned and not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			release, wrote := make(chan bool), make(chan error, 1)
			req, closed := with(t, ctx, strings.NewReader("body"))
			go func() { synctest.Wait(); cancel() }()
			_, _, err := askHandler(t, func(w http.ResponseWriter, r *http.Request) {
				<-release
				_, err := io.WriteString(w, "late")
				wrote <- err
			}, req)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			closedOnce(t, closed) // while the handler runs
			close(release)
			if err := <-wrote; err == nil {
				t.Error("a write after the end succeeded")
			}
			closedOnce(t, closed)
		})
	})
	t.Run("abandoned in a read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			body, client := io.Pipe()
			defer client.Close()
			req, read := newRequest(t, "POST", "/", body).WithContext(ctx), make(chan error, 1)
			go func() { synctest.Wait(); cancel() }()
			_, _, err := askHandler(t, func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				read <- err
			}, req)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			synctest.Wait()
			select {
			case err := <-read:
				if err != io.ErrClosedPipe {
					t.Errorf("the read returned %v", err)
				}
			default:
				t.Error("the handler still reads the body")
			}
		})
	})
	t.Run("answered and not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			req, closed := with(t, t.Context(), strings.NewReader("body"))
			if _, _, err := askHandler(t, func(http.ResponseWriter, *http.Request) {}, req); err != nil {
				t.Error(err)
			}
			closedOnce(t, closed)
		})
	})
	t.Run("not asked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			never := func(http.ResponseWriter, *http.Request) { t.Error("asked") }
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			req, closed := with(t, ctx, strings.NewReader("body"))
			if _, _, err := askHandler(t, never, req); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			closedOnce(t, closed)
			req, closed = with(t, t.Context(), strings.NewReader("body"))
			req.URL = nil
			if _, _, err := askHandler(t, never, req); err == nil {
				t.Error("a request without URL was answered")
			}
			closedOnce(t, closed)
		})
	})
}

type closing struct {
	io.Reader
	closed chan bool
}

func (c *closing) Close() error {
	c.closed <- true
	return nil
}

func TestHandlerTransportInformational(t *testing.T) {
	var early []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			early = append(early, http.StatusText(code)+" "+h.Get("Link"))
			return nil
		},
	})
	res, body, err := askHandler(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "done")
	}, newRequest(t, "GET", "/", nil).WithContext(ctx))
	if err != nil || res.StatusCode != 201 || body != "done" || len(early) != 1 || early[0] != "Early Hints </style.css>" {
		t.Errorf("got %v %q %v, %q", res, body, err, early)
	}
}

// A round trip's record knows what the outer request's knows, and tells it nothing.
func TestHandlerTransportRecord(t *testing.T) {
	inner := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := gateway.IdentityFrom(r.Context())
		io.WriteString(w, id.Subject+" "+gateway.ClientAddr(r).String()+" "+gateway.TraceID(r.Context()))
		gateway.WriteError(httptest.NewRecorder(), r, gateway.ErrOverloaded)
	}))
	logged := make(journal, 1)
	outer := gateway.Observe(&gateway.ObserveOptions{Logger: logged.logger()})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addr := gateway.ClientAddr(r).String()
		r = r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: "ann"}))
		req, _ := http.NewRequestWithContext(r.Context(), "GET", "/", nil)
		res, err := inner.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if want := "ann " + addr + " " + gateway.TraceID(r.Context()); string(body) != want {
			t.Errorf("got %q, want %q", body, want)
		}
	}))
	srv := httptest.NewServer(outer)
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if line := logged.next(t); line["outcome"] != "ok" {
		t.Errorf("log: %v", line)
	}
}

func TestHandlerTransportLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	})
	for i := range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		res, err := gateway.HandlerTransport(stream).RoundTrip(newRequest(t, "GET", "/", nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			res.Body.Close()
		} else {
			cancel() // and nobody closes
		}
		defer cancel()
	}
	waitGoroutines(t, before)
}
