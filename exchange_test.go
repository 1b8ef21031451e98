package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// brokenPipe takes whole writes, as a buffer does, and reports that the last of them failed.
type brokenPipe struct {
	http.ResponseWriter
	left int // writes that succeed
}

func (w *brokenPipe) Write(p []byte) (int, error) {
	if w.left--; w.left >= 0 {
		return len(p), nil
	}
	return len(p), errors.New("broken pipe")
}

// TestFailedWriteIsNotComplete: a client that leaves has its answer when every declared byte was written, and only
// when no write failed.
func TestFailedWriteIsNotComplete(t *testing.T) {
	for _, tt := range []struct {
		name     string
		succeed  int    // writes
		status   int    // of the answer
		writes   string // one byte each
		declared string // Content-Length
		want     string
	}{
		{"all written", 2, 200, "ok", "2", "ok"},
		{"the last write failed", 1, 200, "ok", "2", "client_canceled"},
		{"the first write failed", 0, 200, "ok", "2", "client_canceled"},
		{"less was written", 2, 200, "o", "2", "client_canceled"},
		{"no length", 2, 200, "ok", "", "client_canceled"},
		{"no body", 0, 204, "", "", "ok"},
		{"no body, and a write that failed", 0, 204, "x", "", "client_canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, observe := observed()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			h := observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tt.declared != "" {
					w.Header().Set("Content-Length", tt.declared)
				}
				w.WriteHeader(tt.status)
				for i := range tt.writes {
					io.WriteString(w, tt.writes[i:i+1])
				}
				leave()
			}))
			h.ServeHTTP(&brokenPipe{httptest.NewRecorder(), tt.succeed}, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
			if line := j.next(t); line["outcome"] != tt.want {
				t.Errorf("outcome %s, want %s", line["outcome"], tt.want)
			}
		})
	}
}

// as runs next for a caller that is known by other means.
func as(subject string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: subject})))
	})
}

// below runs next behind a writer that is not this package's, and behind a middleware that is.
func below(next http.Handler) http.Handler {
	next = gateway.Timeout(time.Hour)(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(foreign{w}, r) })
}

// TestWithIdentityRecord holds that the record of the whole request gets what happens inside WithIdentity, at any
// depth of it.
func TestWithIdentityRecord(t *testing.T) {
	rateLimited := gateway.RateLimit(gateway.NewFixedWindow(1, time.Hour, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{
		Cost: func(*http.Request) int { return 2 },
	})
	for _, tt := range []struct {
		name   string
		inside http.Handler
		status int
		want   map[string]string // of the log line
	}{
		{"an answer", text("hello"), 200, map[string]string{"outcome": "ok", "bytes": "5", "level": "INFO"}},
		{"a refusal", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, gateway.ErrOverloaded) }), 503,
			map[string]string{"outcome": "rejected", "error": gateway.ErrOverloaded.Error()}},
		{"a refusal by a middleware", rateLimited(text("hello")), 429, map[string]string{"outcome": "rejected"}},
		{"a failure behind a good answer", gateway.Aggregate([]gateway.Part{
			{Name: "ads", From: gateway.HandlerTransport(text("<html>")), Path: "/", Optional: true},
		}, nil), 200, map[string]string{"outcome": "ok", "level": "WARN", "remarks": "part ads upstream_error: "}},
	} {
		for depth, h := range []http.Handler{as("ann", tt.inside), as("bob", as("ann", tt.inside)), as("bob", below(as("ann", tt.inside)))} {
			t.Run(fmt.Sprintf("%s/%d", tt.name, depth), func(t *testing.T) {
				var mux http.ServeMux
				mux.Handle("GET /things/{id}", h)
				handled, pattern := 0, ""
				j, observe := observed()
				rec := httptest.NewRecorder()
				after := func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						next.ServeHTTP(w, r)
						pattern = gateway.RoutePattern(r.Context())
					})
				}
				gateway.Chain(observe, after, gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
					handled++
					w.WriteHeader(e.Status)
				}))(&mux).ServeHTTP(rec, httptest.NewRequest("GET", "/things/7", nil))
				line := j.next(t)
				if rec.Code != tt.status || line["status"] != fmt.Sprint(tt.status) || line["route"] != "GET /things/{id}" || pattern != line["route"] {
					t.Errorf("got %d, pattern %q, logged %v", rec.Code, pattern, line)
				}
				for name, want := range tt.want {
					if !strings.HasPrefix(line[name], want) {
						t.Errorf("%s: logged %v, want %q", name, line, want)
					}
				}
				if refused := tt.status >= 400; refused != (handled == 1) {
					t.Errorf("HandleErrors was called %d times", handled)
				}
			})
		}
	}
}

// TestWithIdentityWriter holds that a middleware inside WithIdentity wraps the writer no second time.
func TestWithIdentityWriter(t *testing.T) {
	var outer, inner http.ResponseWriter
	note := func(w *http.ResponseWriter, next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { *w = rw; next.ServeHTTP(rw, r) })
	}
	for name, h := range map[string]http.Handler{
		"once":                    as("ann", outside(note(&inner, silent))),
		"twice":                   as("bob", as("ann", outside(note(&inner, silent)))),
		"a middleware in between": as("bob", outside(as("ann", outside(note(&inner, silent))))),
	} {
		outer, inner = nil, nil
		outside(note(&outer, h)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		if outer == nil || inner != outer {
			t.Errorf("%s: the writer is %p inside and %p outside", name, inner, outer)
		}
	}
}

// TestWithIdentityStaysInside holds that neither WithIdentity nor an Auth inside it tells the request around it who
// the caller is.
func TestWithIdentityStaysInside(t *testing.T) {
	subject := func(r *http.Request) string {
		if id, ok := gateway.IdentityFrom(r.Context()); ok {
			return id.Subject
		}
		return "nobody"
	}
	auth := func(subject string) gateway.Middleware {
		return gateway.Auth(gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
			return &gateway.Identity{Subject: subject}, nil
		}), nil)
	}
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, subject(r)) })
	anonymous := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r.WithContext(gateway.WithIdentity(r.Context(), nil)))
	})
	around := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			io.WriteString(w, " in "+subject(r))
		})
	}
	for _, tt := range []struct {
		name         string
		h            http.Handler
		want, logged string
	}{
		{"in an anonymous request", around(as("ann", answer)), "ann in nobody", ""},
		{"in another's request", auth("bob")(around(as("ann", answer))), "ann in bob", "bob"},
		{"in another WithIdentity", as("bob", around(as("ann", answer))), "ann in bob", ""},
		{"anonymous", auth("bob")(around(anonymous)), "nobody in bob", "bob"},
		{"Auth inside", around(as("ann", auth("eve")(answer))), "eve in nobody", ""},
		{"Auth inside another's request", auth("bob")(around(as("ann", auth("eve")(answer)))), "eve in bob", "bob"},
	} {
		j, observe := observed()
		rec := recorded(observe(tt.h), nil)
		if got, line := rec.Body.String(), j.next(t); got != tt.want || line["subject"] != tt.logged {
			t.Errorf("%s: got %q, want %q; logged the subject %q, want %q", tt.name, got, tt.want, line["subject"], tt.logged)
		}
	}
}
