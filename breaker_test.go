package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// serveBreaker sends one request through h without a connection. It returns the response, and the value that
// h panicked with, if any.
func serveBreaker(h http.Handler, ctx context.Context) (res *http.Response, panicked any) {
	w := httptest.NewRecorder()
	defer func() {
		panicked = recover()
		res = w.Result()
	}()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	return
}

// breakerAnswer is a handler that sends the statuses, the body and the error, as far as it has them, and then
// panics if panics is not nil.
type breakerAnswer struct {
	status []int
	body   string
	err    error
	panics any
}

func (a breakerAnswer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, status := range a.status {
		w.WriteHeader(status)
	}
	if a.body != "" {
		_, _ = io.WriteString(w, a.body)
	}
	if a.err != nil {
		gateway.WriteError(w, r, a.err)
	}
	if a.panics != nil {
		panic(a.panics)
	}
}

func TestBreakerCounts(t *testing.T) {
	gone, leave := context.WithCancel(context.Background())
	leave()
	late, cancel := context.WithTimeout(context.Background(), -1)
	defer cancel()
	openCircuit := func() *gateway.Circuit {
		c := gateway.NewCircuit("inner", nil)
		c.Trip(time.Hour)
		return c
	}
	// Each handler is behind a circuit that has seen one failure and opens at two in a row. How is it
	// counted?
	const failure, success, neutral = "failure", "success", "neutral"
	tests := []struct {
		name   string
		h      http.Handler
		ctx    context.Context
		want   string
		panics any
	}{
		{"200", breakerAnswer{status: []int{200}}, nil, success, nil},
		{"404", breakerAnswer{status: []int{404}}, nil, success, nil},
		{"silence", breakerAnswer{}, nil, success, nil},
		{"a body without a status", breakerAnswer{body: "ok"}, nil, success, nil},
		{"101", breakerAnswer{status: []int{101}}, nil, success, nil},
		{"103, then 500", breakerAnswer{status: []int{103, 500}}, nil, failure, nil},
		{"500", breakerAnswer{status: []int{500}}, nil, failure, nil},
		{"503", breakerAnswer{status: []int{503}}, nil, failure, nil},
		{"an upstream's failure", breakerAnswer{err: gateway.ErrBadGateway}, nil, failure, nil},
		{"an upstream's timeout", breakerAnswer{err: gateway.ErrTimeout}, nil, failure, nil},
		{"an unknown error", breakerAnswer{err: errors.New("oops")}, nil, failure, nil},
		{"401 of the gateway", breakerAnswer{err: gateway.ErrUnauthenticated}, nil, neutral, nil},
		{"429 of the gateway", breakerAnswer{err: gateway.ErrRateLimited}, nil, neutral, nil},
		{"413 of the gateway", breakerAnswer{err: gateway.ErrBodyTooLarge}, nil, neutral, nil},
		{"overload", breakerAnswer{err: gateway.ErrOverloaded}, nil, neutral, nil},
		{"an open circuit inside", gateway.Breaker(openCircuit(), nil)(breakerAnswer{status: []int{200}}), nil, neutral, nil},
		{"an open circuit inside, with a fallback", gateway.Breaker(openCircuit(), &gateway.BreakerOptions{Fallback: breakerAnswer{status: []int{200}}})(breakerAnswer{status: []int{200}}), nil, neutral, nil},
		{"an open circuit inside, with a fallback that fails", gateway.Breaker(openCircuit(), &gateway.BreakerOptions{Fallback: breakerAnswer{status: []int{500}}})(breakerAnswer{status: []int{200}}), nil, neutral, nil},
		{"a client that left, 500", breakerAnswer{status: []int{500}}, gone, neutral, nil},
		{"a client that left, 200", breakerAnswer{status: []int{200}}, gone, neutral, nil},
		{"a client that left, silence", breakerAnswer{}, gone, neutral, nil},
		{"a client that left, cancel answered", breakerAnswer{err: context.Canceled}, gone, neutral, nil},
		{"a client that left, aborted", breakerAnswer{panics: http.ErrAbortHandler}, gone, neutral, http.ErrAbortHandler},
		{"time over, 503", breakerAnswer{status: []int{503}}, late, failure, nil},
		{"time over, silence", breakerAnswer{}, late, failure, nil},
		{"a panic", breakerAnswer{panics: "oops"}, nil, neutral, "oops"},
		{"a panic after the headers", breakerAnswer{status: []int{200}, panics: "oops"}, nil, success, "oops"},
		{"aborted before the headers", breakerAnswer{panics: http.ErrAbortHandler}, nil, failure, http.ErrAbortHandler},
		{"aborted after the headers", breakerAnswer{status: []int{200}, panics: http.ErrAbortHandler}, nil, failure, http.ErrAbortHandler},
		{"aborted after a body", breakerAnswer{body: "ok", panics: http.ErrAbortHandler}, nil, failure, http.ErrAbortHandler},
		{"aborted after a 500", breakerAnswer{status: []int{500}, panics: http.ErrAbortHandler}, nil, failure, http.ErrAbortHandler},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := &gateway.CircuitOptions{Failures: 2}
			ctx := tt.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			// A failure opens c at once. After a neutral outcome, the next failure opens it; after a success,
			// the second.
			c := gateway.NewCircuit("c", opts)
			playCircuit(t, c, "f")
			_, p := serveBreaker(gateway.Breaker(c, nil)(tt.h), ctx)
			if p != tt.panics {
				t.Errorf("panicked with %v, want %v", p, tt.panics)
			}
			got := success
			if c.State() == gateway.CircuitOpen {
				got = failure
			} else if playCircuit(t, c, "f"); c.State() == gateway.CircuitOpen {
				got = neutral
			}
			if got != tt.want {
				t.Errorf("counts as %s, want %s", got, tt.want)
			}

			// Of two Breakers, both circuits get the result, also through a foreign wrapper.
			outer, inner := gateway.NewCircuit("outer", opts), gateway.NewCircuit("inner", opts)
			playCircuit(t, outer, "f")
			playCircuit(t, inner, "f")
			foreign := func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
				})
			}
			serveBreaker(gateway.Chain(gateway.Breaker(outer, nil), foreign, gateway.Breaker(inner, nil))(tt.h), ctx)
			for _, c := range []*gateway.Circuit{outer, inner} {
				if opened := c.State() == gateway.CircuitOpen; opened != (tt.want == failure) {
					t.Errorf("of two, the %s is open: %v", c.Name(), opened)
				}
			}
		})
	}
}

// sleepyBody is a body that its client sends by and by.
type sleepyBody struct {
	pause time.Duration
	err   error
}

func (b *sleepyBody) Read([]byte) (int, error) { time.Sleep(b.pause); return 0, b.err }
func (b *sleepyBody) Close() error             { return nil }

// When the time that Timeout gives is over, Breaker judges a handler by its share of it, and as an Upstream judges a target.
func TestBreakerInsideTimeout(t *testing.T) {
	const limit = time.Second
	waits := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	for _, tt := range []struct {
		name   string
		before time.Duration // spent between Timeout and Breaker
		body   *sleepyBody   // nil: none
		h      http.HandlerFunc
		want   string
	}{
		{"it had all of the time", 0, nil, waits, "failure"},
		{"it had half", limit / 2, nil, waits, "failure"},
		{"it had less than half", limit/2 + 1, nil, waits, "neutral"},
		{"less than half, then 500", limit/2 + 1, nil, func(w http.ResponseWriter, r *http.Request) { waits(w, r); w.WriteHeader(500) }, "neutral"},
		{"less than half, then an error", limit/2 + 1, nil, func(w http.ResponseWriter, r *http.Request) {
			waits(w, r)
			gateway.WriteError(w, r, gateway.ErrBadGateway)
		}, "neutral"},
		{"less than half, and a panic", limit/2 + 1, nil, func(w http.ResponseWriter, r *http.Request) { waits(w, r); panic(http.ErrAbortHandler) }, "neutral"},
		{"less than half, and 500 in time", limit/2 + 1, nil, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, "failure"},
		{"less than half, and 200 in time", limit/2 + 1, nil, func(w http.ResponseWriter, r *http.Request) {}, "success"},
		{"cut off, begun in time", 0, nil, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			waits(w, r)
			panic(http.ErrAbortHandler)
		}, "success"},
		{"cut off in time", 0, nil, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200); panic(http.ErrAbortHandler) }, "failure"},
		{"the client sent for less than half", 0, &sleepyBody{limit / 2, io.EOF}, waits, "failure"},
		{"the client sent for more than half", 0, &sleepyBody{limit/2 + 1, io.EOF}, waits, "neutral"},
		{"the client sent for half of the rest", limit / 2, &sleepyBody{limit/4 + 1, io.EOF}, waits, "neutral"},
		{"the client has not sent all", 0, &sleepyBody{limit + 1, io.ErrUnexpectedEOF}, waits, "neutral"},
		{"the client may have sent all", 0, &sleepyBody{limit + 1, io.EOF}, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "failure"},
	} {
		for _, by := range []string{"Timeout", "a foreign deadline"} {
			t.Run(tt.name+"/"+by, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := gateway.NewCircuit("c", nil)
					playCircuit(t, c, "f")
					slow := func(next http.Handler) http.Handler {
						return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							time.Sleep(tt.before)
							next.ServeHTTP(w, r)
						})
					}
					want, mw := tt.want, gateway.Timeout(limit)
					if by != "Timeout" {
						// It does not say how long it was, so the handler's share is not known. The client's is.
						mw = func(next http.Handler) http.Handler {
							return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
								ctx, cancel := context.WithTimeout(r.Context(), limit)
								defer cancel()
								next.ServeHTTP(w, r.WithContext(ctx))
							})
						}
						if tt.body == nil && want == "neutral" {
							want = "failure"
						}
					}
					r := httptest.NewRequest("GET", "/", nil)
					if tt.body != nil {
						r = httptest.NewRequest("POST", "/", tt.body)
					}
					func() {
						defer func() { _ = recover() }()
						gateway.Chain(mw, slow, gateway.Breaker(c, nil))(tt.h).ServeHTTP(httptest.NewRecorder(), r)
					}()
					if got := verdictOf(t, c); got != want {
						t.Errorf("counted as %s, want %s", got, want)
					}
				})
			})
		}
	}
}

// A stream must not hold a probe's place, and its success can be taken back while it lasts.
func TestBreakerReportsAtTheHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, outer := gateway.NewCircuit("c", nil), gateway.NewCircuit("outer", nil)
		h := gateway.Chain(gateway.Breaker(outer, nil), gateway.Breaker(c, nil))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			if c.State() != gateway.CircuitClosed || outer.State() != gateway.CircuitClosed {
				t.Error("the headers were not reported to the circuits")
			}
		}))
		playCircuit(t, c, "fffff")
		playCircuit(t, outer, "fffff wait:10s")
		serveBreaker(h, context.Background())
		playCircuit(t, c, "closed ffff")
		serveBreaker(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			playCircuit(t, c, "closed")
			panic(http.ErrAbortHandler)
		})), context.Background())
		playCircuit(t, c, "open")
	})
}

// Clients that are refused at the same moment do not all return at the same moment, and none too early.
func TestBreakerRetryAfterVaries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gateway.NewCircuit("c", nil)
		c.Trip(59500 * time.Millisecond)
		h := gateway.Breaker(c, nil)(breakerAnswer{panics: "called"})
		seen := make(map[string]int)
		for range 1400 {
			res, _ := serveBreaker(h, context.Background())
			seen[res.Header.Get("Retry-After")]++
		}
		for s := 60; s <= 66; s++ {
			if n := seen[strconv.Itoa(s)]; n < 100 || n > 300 {
				t.Errorf("%d times %ds: %v", n, s, seen)
			}
		}
		if len(seen) != 7 {
			t.Errorf("not from 60 to 66 alone: %v", seen)
		}
		c.Trip(math.MaxInt64)
		res, _ := serveBreaker(h, context.Background())
		if s, err := strconv.ParseInt(res.Header.Get("Retry-After"), 10, 64); err != nil || s < math.MaxInt64/2/int64(time.Second) {
			t.Errorf("open for ever: %d, %v", s, err)
		}
	})
}

func TestBreakerRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gateway.NewCircuit("payments", nil)
		var calls int
		h := gateway.Breaker(c, nil)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
		check := func(when string, from, to int) {
			t.Helper()
			res, _ := serveBreaker(h, context.Background())
			body, _ := io.ReadAll(res.Body)
			retryAfter, _ := strconv.Atoi(res.Header.Get("Retry-After"))
			if res.StatusCode != 503 || retryAfter < from || retryAfter > to ||
				res.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(string(body), "payments") {
				t.Errorf("%s: got %d %v %s", when, res.StatusCode, res.Header, body)
			}
			if calls != 0 {
				t.Errorf("%s: the handler was called", when)
			}
		}
		playCircuit(t, c, "fffff")
		check("open", 10, 11)
		time.Sleep(3500 * time.Millisecond)
		check("open for a while", 7, 7)
		c.Trip(time.Minute)
		check("prolonged", 60, 66)
		time.Sleep(time.Minute - time.Nanosecond)
		check("almost over", 1, 1)
		time.Sleep(time.Nanosecond)
		playCircuit(t, c, "1=allow")
		check("half-open, all places taken", 1, 1)
		playCircuit(t, c, "wait:10s")
		if res, _ := serveBreaker(h, context.Background()); res.StatusCode != 200 || calls != 1 {
			t.Error("a hung probe's place was not given to another")
		}
	})
}

func TestBreakerFallback(t *testing.T) {
	c := gateway.NewCircuit("c", nil)
	c.Trip(time.Hour)
	var before, during, after error
	fallback := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		during = gateway.ErrorFrom(r.Context())
		w.Header().Set("X-From", "fallback")
		_, _ = io.WriteString(w, "stale")
	})
	outer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			before = gateway.ErrorFrom(r.Context())
			next.ServeHTTP(w, r)
			after = gateway.ErrorFrom(r.Context())
		})
	}
	// Anything that is not neutral opens this one.
	judge := gateway.NewCircuit("judge", &gateway.CircuitOptions{Failures: 1, IsFailure: func(gateway.Outcome, int) bool { return true }})
	h := gateway.Chain(gateway.Breaker(judge, nil), outer, gateway.Breaker(c, &gateway.BreakerOptions{Fallback: fallback}))(breakerAnswer{panics: "called"})
	res, p := serveBreaker(h, context.Background())
	body, _ := io.ReadAll(res.Body)
	if p != nil || res.StatusCode != 200 || string(body) != "stale" || res.Header.Get("X-From") != "fallback" {
		t.Errorf("got %d %v %q, panic %v", res.StatusCode, res.Header, body, p)
	}
	var e *gateway.Error
	if !errors.Is(during, gateway.ErrCircuitOpen) || !errors.As(during, &e) || e.Status != 503 {
		t.Errorf("inside the fallback, ErrorFrom is %v", during)
	}
	if before != nil || after != nil {
		t.Errorf("outside the fallback, ErrorFrom is %v and %v", before, after)
	}
	if judge.State() != gateway.CircuitClosed {
		t.Error("a refusal that a fallback answered counted for the circuit around it")
	}

	t.Run("a panic restores too", func(t *testing.T) {
		h := gateway.Breaker(c, &gateway.BreakerOptions{Fallback: breakerAnswer{panics: "fallback"}})(breakerAnswer{panics: "called"})
		_, p := serveBreaker(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gateway.HandleErrors(func(http.ResponseWriter, *http.Request, *gateway.Error) {})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if err := gateway.ErrorFrom(r.Context()); err != nil {
						t.Errorf("ErrorFrom is %v", err)
					}
				}()
				h.ServeHTTP(w, r)
			})).ServeHTTP(w, r)
		}), context.Background())
		if p != "fallback" {
			t.Errorf("panicked with %v", p)
		}
	})
	t.Run("another circuit in the fallback counts for itself", func(t *testing.T) {
		for _, tt := range []struct {
			name string
			h    http.Handler
			want gateway.CircuitState
		}{
			{"failure", breakerAnswer{err: gateway.ErrBadGateway}, gateway.CircuitOpen},
			{"500", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }), gateway.CircuitOpen},
			{"refusal", breakerAnswer{err: gateway.ErrRateLimited}, gateway.CircuitClosed},
			{"success", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), gateway.CircuitClosed},
		} {
			second := gateway.NewCircuit("second", &gateway.CircuitOptions{Failures: 1})
			h := gateway.Breaker(c, &gateway.BreakerOptions{Fallback: gateway.Breaker(second, nil)(tt.h)})(breakerAnswer{panics: "called"})
			serveBreaker(h, context.Background())
			if got := second.State(); got != tt.want {
				t.Errorf("%s: the second circuit is %v, want %v", tt.name, got, tt.want)
			}
		}
	})
}

// A refusal counts as one, also when the request's identity was changed on the way.
func TestBreakerBetweenIdentities(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2})
	identify := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: "ada"})))
		})
	}
	first := gateway.Breaker(gateway.NewCircuit("first", nil), nil)
	playCircuit(t, c, "f")
	serveBreaker(gateway.Chain(first, identify, gateway.Breaker(c, nil), identify)(breakerAnswer{err: gateway.ErrForbidden}), context.Background())
	playCircuit(t, c, "closed f open")
}

func TestBreakerInsideItsOwnCircuit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inside func(c *gateway.Circuit, u *gateway.Upstream, h http.Handler) http.Handler
	}{
		{"Breaker", func(c *gateway.Circuit, _ *gateway.Upstream, h http.Handler) http.Handler {
			return gateway.Chain(gateway.Breaker(gateway.NewCircuit("between", nil), nil), gateway.Breaker(c, nil))(h)
		}},
		{"Upstream", func(_ *gateway.Circuit, u *gateway.Upstream, _ http.Handler) http.Handler {
			return gateway.Proxy(u, nil)
		}},
		{"part of an aggregate", func(_ *gateway.Circuit, u *gateway.Upstream, _ http.Handler) http.Handler {
			return gateway.Aggregate([]gateway.Part{{Name: "a", From: u, Path: "/"}}, nil)
		}},
		{"HandlerTransport", func(c *gateway.Circuit, _ *gateway.Upstream, h http.Handler) http.Handler {
			return gateway.Proxy(gateway.HandlerTransport(gateway.Breaker(c, nil)(h)), nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := gateway.NewCircuit("c", nil)
				status := 500
				local := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
					Circuit: c,
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						return answered(r, status, io.NopCloser(strings.NewReader("{}"))), nil
					}),
				})
				h := gateway.Breaker(c, nil)(tt.inside(c, u, local))
				serveBreaker(h, t.Context())
				playCircuit(t, c, "fff closed") // one failure, not two
				serveBreaker(h, t.Context())
				playCircuit(t, c, "open wait:10s half-open")
				status = 200
				serveBreaker(h, t.Context())
				playCircuit(t, c, "closed")
				res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
			})
		})
	}
}

// What a Breaker admits ends with its handler: a second call within the same exchange asks the circuit again.
func TestBreakerTwiceInOneExchange(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2})
	twice := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			playCircuit(t, c, "closed")
			next.ServeHTTP(w, r)
		})
	}
	outer := gateway.Breaker(gateway.NewCircuit("outer", nil), nil)
	serveBreaker(gateway.Chain(outer, twice, gateway.Breaker(c, nil))(breakerAnswer{err: gateway.ErrBadGateway}), context.Background())
	playCircuit(t, c, "open")
}

func TestBreakerPanicsAtSetup(t *testing.T) {
	if p := panicOf(func() { gateway.Breaker(nil, nil) }); p != "gateway: Breaker: nil circuit" {
		t.Errorf("panicked with %q", p)
	}
}

// The whole way, through a listener: it fails, opens, refuses at once, and comes back.
func TestBreakerOnTheWire(t *testing.T) {
	c := gateway.NewCircuit("payments", &gateway.CircuitOptions{Failures: 3, OpenFor: 100 * time.Millisecond})
	var broken atomic.Bool
	var calls atomic.Int32
	srv := httptest.NewServer(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.URL.Path == "/cut" {
			_, _ = io.WriteString(w, "half of")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if broken.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})))
	defer srv.Close()
	get := func(path string) *http.Response {
		t.Helper()
		res, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res
	}
	recovers := func() {
		t.Helper()
		// State would turn it half-open, should this have taken long.
		if changes := c.Changes(); len(changes) == 0 || changes[len(changes)-1].To != gateway.CircuitOpen {
			t.Fatalf("it has not opened: %v", changes)
		}
		reached := calls.Load()
		for late := deadline(); ; {
			res := get("/")
			if res.StatusCode == 200 {
				break
			}
			if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" {
				t.Fatalf("while open: %d %v", res.StatusCode, res.Header)
			}
			if time.Now().After(late) {
				t.Fatal("it never comes back")
			}
		}
		if n := calls.Load() - reached; n != 1 {
			t.Errorf("the handler was called %d times, want once, by the probe", n)
		}
	}

	broken.Store(true)
	for i := range 3 {
		if res := get("/"); res.StatusCode != 502 {
			t.Fatalf("request %d: %d", i, res.StatusCode)
		}
	}
	broken.Store(false)
	recovers()

	for range 3 {
		get("/cut")
	}
	recovers()

	away := gateway.NewCircuit("away", nil)
	away.Trip(time.Hour)
	refuses := httptest.NewServer(gateway.Breaker(away, nil)(breakerAnswer{panics: "called"}))
	defer refuses.Close()
	res, err := refuses.Client().Get(refuses.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var problem struct{ Status int }
	retryAfter, _ := strconv.Atoi(res.Header.Get("Retry-After"))
	if err := json.NewDecoder(res.Body).Decode(&problem); err != nil || problem.Status != 503 || res.StatusCode != 503 || retryAfter < 3600 || retryAfter > 3960 {
		t.Errorf("an open circuit: %d %v, %v", res.StatusCode, res.Header, err)
	}

	// A client that leaves is not a failure.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	slow := httptest.NewServer(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel() // the client leaves once its request is here
		<-r.Context().Done()
		gateway.WriteError(w, r, fmt.Errorf("asking: %w", r.Context().Err()))
	})))
	defer slow.Close()
	before := len(c.Changes())
	req, _ := http.NewRequestWithContext(ctx, "GET", slow.URL, nil)
	if _, err := slow.Client().Do(req); err == nil {
		t.Fatal("the client did not leave")
	}
	slow.Close() // waits for the handler
	if n := len(c.Changes()); n != before || c.State() != gateway.CircuitClosed {
		t.Errorf("%d changes by a client that left", n-before)
	}
}
