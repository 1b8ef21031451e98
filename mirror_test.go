package gateway_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// shadowed is what a shadow saw.
type shadowed struct {
	path, body, value, subject string
	length                     int64
}

// shadowInto returns a handler that tells what it sees.
func shadowInto(seen chan<- shadowed) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s := shadowed{path: r.URL.Path, body: string(body), value: r.PathValue("x"), length: r.ContentLength}
		if id, ok := gateway.IdentityFrom(r.Context()); ok {
			s.subject = id.Subject
		}
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "thrown away")
		seen <- s
	})
}

func TestMirrorBodies(t *testing.T) {
	readAll := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(b)
	})
	exactly := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // as a transport does, without asking for the end
		b := make([]byte, r.ContentLength)
		_, _ = io.ReadFull(r.Body, b)
		_, _ = w.Write(b)
	})
	some := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.CopyN(w, r.Body, 1) })
	big := strings.Repeat("0123456789abcdef", 8<<10)
	tests := []struct {
		name     string
		opts     *gateway.MirrorOptions
		next     http.Handler
		body     string
		chunked  bool
		mirrored bool
	}{
		{"none", nil, readAll, "", false, true},
		{"read to the end", nil, readAll, "hello", false, true},
		{"read to its length", nil, exactly, "hello", false, true},
		{"of unknown length", nil, readAll, strings.Repeat("hello ", 1000), true, true},
		{"empty, of unknown length", nil, readAll, "", true, true},
		{"not read to the end", nil, some, "hello", false, false},
		{"not read at all", nil, named(""), "hello", true, false},
		{"as large as may be", &gateway.MirrorOptions{MaxBodyBytes: 5}, readAll, "hello", false, true},
		{"too large", &gateway.MirrorOptions{MaxBodyBytes: 4}, readAll, "hello", false, false},
		{"too large, of unknown length", &gateway.MirrorOptions{MaxBodyBytes: 4}, readAll, "hello", true, false},
		{"larger than the default", nil, readAll, big, true, false},
		{"unwanted", &gateway.MirrorOptions{MaxBodyBytes: -1}, readAll, "hello", true, false},
		{"unwanted, but there is none", &gateway.MirrorOptions{MaxBodyBytes: -1}, readAll, "", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := make(chan shadowed, 1)
				var rt gateway.Router
				rt.Handle("/a/{x}", gateway.Mirror(shadowInto(seen), tt.opts)(tt.next))
				var body io.Reader = strings.NewReader(tt.body)
				if tt.chunked {
					body = io.MultiReader(body) // hides its length
				} else if tt.body == "" {
					body = nil
				}
				r := httptest.NewRequest("POST", "/a/1", body).WithContext(t.Context())
				r = r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: "alice"}))
				w := recorded(&rt, r)
				if got := w.Body.String(); w.Code != 200 || len(got) > 1 && got != tt.body {
					t.Errorf("the client got %d, %.20q", w.Code, got)
				}
				synctest.Wait()
				select {
				case got := <-seen:
					want := shadowed{"/a/1", tt.body, "1", "alice", int64(len(tt.body))}
					if !tt.mirrored || got != want {
						t.Errorf("shadow saw %.60v, want %.60v", got, want)
					}
				default:
					if tt.mirrored {
						t.Error("shadow saw nothing")
					}
				}
			})
		})
	}
}

// The client waits for the shadow never, and learns of its failure never.
func TestMirrorIsolation(t *testing.T) {
	shadows := map[string]http.HandlerFunc{
		"hangs":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"panics": func(http.ResponseWriter, *http.Request) { panic("shadow") },
		"aborts": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"fails":  func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, gateway.ErrBadGateway) },
		"takes fields away": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Keep")
			r.Header.Set("X-Shadow", "1")
			r.SetPathValue("x", "shadow")
			w.Header().Set("Keep", "shadow")
		},
	}
	for name, shadow := range shadows {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var rt gateway.Router
				rt.Handle("/{x}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					synctest.Wait() // until the shadow is done, or hangs
					if r.Header.Get("Keep") != "1" || r.Header.Get("X-Shadow") != "" || r.PathValue("x") != "a" {
						t.Errorf("the shadow changed the request: %v, %q", r.Header, r.PathValue("x"))
					}
					_, _ = io.WriteString(w, "answer")
				}), gateway.Mirror(shadow, nil))
				ctx, cancel := context.WithCancel(t.Context())
				r := httptest.NewRequest("GET", "/a", nil).WithContext(ctx)
				r.Header.Set("Keep", "1")
				w := recorded(&rt, r)
				cancel() // as the server does; the shadow goes on
				if w.Code != 200 || w.Body.String() != "answer" || w.Header().Get("Keep") != "" {
					t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("the client waited %v", took)
				}
				time.Sleep(30 * time.Second) // the default Timeout ends what hangs
				synctest.Wait()
			})
		})
	}
}

// The shadow goes on when the client is gone, until Timeout.
func TestMirrorOutlivesRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var ended time.Duration
		var why error
		shadow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			ended, why = time.Since(start), r.Context().Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		h := gateway.Mirror(shadow, &gateway.MirrorOptions{Timeout: time.Second})(named(""))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
		cancel()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if ended != time.Second || why != context.DeadlineExceeded {
			t.Errorf("ended after %v: %v", ended, why)
		}
	})
}

// At most MaxInFlight at once, counting those whose bodies are still being read; every place comes back.
func TestMirrorMaxInFlight(t *testing.T) {
	captureDefaultLog(t) // of the panics
	synctest.Test(t, func(t *testing.T) {
		var running, most, ran atomic.Int64
		shadow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			ran.Add(1)
			<-r.Context().Done()
			panic("over")
		})
		h := gateway.Mirror(shadow, &gateway.MirrorOptions{MaxInFlight: 3, Timeout: time.Second})(named(""))
		unread := func() {
			r := httptest.NewRequest("POST", "/", strings.NewReader("unread"))
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		for range 2 {
			for range 10 {
				unread()
			}
			for range 10 {
				ask(h, "GET", "/")
			}
			synctest.Wait()
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if most.Load() != 3 || ran.Load() != 6 {
			t.Errorf("%d at once, %d in all; want 3 and 6", most.Load(), ran.Load())
		}
	})
}

func TestMirrorFraction(t *testing.T) {
	for fraction, want := range map[float64][2]int{0: {1000, 1000}, 1: {1000, 1000}, 0.5: {400, 600}, -1: {0, 0}} {
		synctest.Test(t, func(t *testing.T) {
			var ran atomic.Int64
			shadow := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran.Add(1) })
			h := gateway.Mirror(shadow, &gateway.MirrorOptions{Fraction: fraction, MaxInFlight: 1000})(named(""))
			for range 1000 {
				ask(h, "GET", "/")
			}
			synctest.Wait()
			if n := int(ran.Load()); n < want[0] || n > want[1] {
				t.Errorf("fraction %v: %d of 1000", fraction, n)
			}
		})
	}
}

func TestMirrorSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shadow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("mirrored %s %v", r.Method, r.Header) })
		h := gateway.Mirror(shadow, nil)(named(""))
		ask(h, "CONNECT", "h.example:443")
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Upgrade", "websocket")
		h.ServeHTTP(httptest.NewRecorder(), r)
		synctest.Wait()
	})
}

func TestMirrorSetupPanics(t *testing.T) {
	for want, opts := range map[string]*gateway.MirrorOptions{
		"Fraction":    {Fraction: 1.1},
		"MaxInFlight": {MaxInFlight: -1},
		"Timeout":     {Timeout: -1},
	} {
		if got := panicOf(func() { gateway.Mirror(named(""), opts) }); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := panicOf(func() { gateway.Mirror(nil, nil) }); !strings.Contains(got, "nil handler") {
		t.Errorf("%q", got)
	}
}

// On the wire: a proxied upload is mirrored to another server, byte for byte, with its trace id.
func TestMirrorProxies(t *testing.T) {
	seen := make(chan string, 1)
	shadowServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- r.URL.EscapedPath() + " " + r.Header.Get("X-Trace-ID") + " " + string(b)
	}))
	defer shadowServer.Close()
	mainServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}))
	defer mainServer.Close()
	proxy := func(to string) http.Handler {
		return gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(to), nil), nil)
	}
	var rt gateway.Router
	rt.Use(gateway.Observe(nil))
	rt.Handle("POST /{x}", proxy(mainServer.URL), gateway.Mirror(proxy(shadowServer.URL), nil))
	srv := httptest.NewServer(&rt)
	defer srv.Close()

	upload := bytes.Repeat([]byte("0123456789"), 5000)
	res, err := http.Post(srv.URL+"/a%2Fb", "text/plain", bytes.NewReader(upload))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := bodyOf(t, res); res.StatusCode != 200 || got != string(upload) {
		t.Errorf("%s, %d bytes", res.Status, len(got))
	}
	want := "/a%2Fb " + res.Header.Get("X-Trace-ID") + " " + string(upload)
	if got := <-seen; got != want {
		t.Errorf("shadow got %.100q, want %.100q", got, want)
	}
}

// A panic of a shadow ends the shadow alone, and is logged once.
func TestMirrorLogsAPanicOnce(t *testing.T) {
	logged := captureDefaultLog(t)
	synctest.Test(t, func(t *testing.T) {
		for _, value := range []any{"shadow", http.ErrAbortHandler} {
			h := gateway.Mirror(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(value) }), &gateway.MirrorOptions{MaxInFlight: 1})(text("ok"))
			for range 2 {
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)); w.Code != 200 {
					t.Errorf("status %d", w.Code)
				}
				synctest.Wait()
			}
		}
	})
	if n := strings.Count(logged.String(), "shadow of Mirror panicked"); n != 2 {
		t.Errorf("logged %d times, want once for each of two: %s", n, logged)
	}
}
