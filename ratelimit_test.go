package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// scriptLimiter is a limiter that returns d and err, and records its calls.
type scriptLimiter struct {
	d   gateway.Decision
	err error

	mu    sync.Mutex
	calls []string
}

func (s *scriptLimiter) note(what, key string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, what+" "+key+" "+strconv.Itoa(n))
}

func (s *scriptLimiter) Take(_ context.Context, key string, n int) (gateway.Decision, error) {
	s.note("take", key, n)
	return s.d, s.err
}

func (s *scriptLimiter) Return(ctx context.Context, key string, n int, d gateway.Decision) error {
	if ctx.Err() != nil || d != s.d {
		s.note("bad return", key, n)
	}
	s.note("return", key, n)
	return nil
}

func (s *scriptLimiter) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, ", ")
}

func byName(name string) gateway.KeyFunc {
	return func(*http.Request) (string, error) { return name, nil }
}

func TestRateLimitFields(t *testing.T) {
	ok := gateway.Decision{OK: true, Limit: 100, Remaining: 50, Window: time.Minute, ResetAfter: 29*time.Second + 1}
	no := gateway.Decision{Limit: 100, Window: time.Minute, RetryAfter: 200 * msec, ResetAfter: 30 * time.Second}
	for _, tt := range []struct {
		name   string
		d      gateway.Decision
		opts   *gateway.RateLimitOptions
		status int
		want   map[string]string
	}{
		{"admitted", ok, nil, 200, map[string]string{
			"RateLimit-Policy": `"default";q=100;w=60`, "RateLimit": `"default";r=50;t=30`, "Retry-After": "", "X-RateLimit-Limit": ""}},
		{"refused", no, nil, 429, map[string]string{
			"RateLimit-Policy": `"default";q=100;w=60`, "RateLimit": `"default";r=0;t=1`, "Retry-After": "1"}},
		{"refused for a second and a bit", gateway.Decision{Limit: 1, RetryAfter: time.Second + 1, Window: 1}, nil, 429, map[string]string{
			"RateLimit-Policy": `"default";q=1;w=1`, "RateLimit": `"default";r=0;t=2`, "Retry-After": "2"}},
		{"refused for ever", gateway.Decision{Limit: 5, Remaining: 5, Window: time.Second}, nil, 429, map[string]string{
			"RateLimit": `"default";r=5;t=0`, "Retry-After": ""}},
		{"name", ok, &gateway.RateLimitOptions{Name: `per "user" \o/`}, 200, map[string]string{
			"RateLimit-Policy": `"per \"user\" \\o/";q=100;w=60`, "RateLimit": `"per \"user\" \\o/";r=50;t=30`}},
		{"numbers beyond a structured field", gateway.Decision{OK: true, Limit: math.MaxInt, Remaining: -3, ResetAfter: longest}, nil, 200, map[string]string{
			"RateLimit-Policy": `"default";q=999999999999999`, "RateLimit": `"default";r=0;t=9223372037`}},
		{"legacy", ok, &gateway.RateLimitOptions{Headers: gateway.RateLimitLegacy}, 200, map[string]string{
			"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "50", "X-RateLimit-Reset": "30", "RateLimit": "", "RateLimit-Policy": ""}},
		{"legacy refused", no, &gateway.RateLimitOptions{Headers: gateway.RateLimitLegacy}, 429, map[string]string{
			"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30", "Retry-After": "1"}},
		{"none", ok, &gateway.RateLimitOptions{Headers: gateway.RateLimitNone}, 200, map[string]string{
			"X-RateLimit-Limit": "", "RateLimit": "", "RateLimit-Policy": ""}},
		{"none refused", no, &gateway.RateLimitOptions{Headers: gateway.RateLimitNone}, 429, map[string]string{
			"RateLimit": "", "RateLimit-Policy": "", "Retry-After": "1"}},
		{"report only", no, &gateway.RateLimitOptions{ReportOnly: true}, 200, map[string]string{
			"RateLimit-Policy": `"default";q=100;w=60`, "RateLimit": `"default";r=0;t=1`, "Retry-After": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := askServer(t, gateway.RateLimit(&scriptLimiter{d: tt.d}, byName("k"), tt.opts)(text("hello")), nil)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			for name, want := range tt.want {
				if got := strings.Join(res.Header.Values(name), "|"); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
			if tt.status == 200 {
				if body != "hello" {
					t.Errorf("body %q", body)
				}
				return
			}
			var problem struct{ Status int }
			if err := json.Unmarshal([]byte(body), &problem); err != nil || problem.Status != 429 {
				t.Errorf("body %q", body)
			}
			if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("Content-Type %s", ct)
			}
		})
	}
}

func TestRateLimitFieldsOfSeveral(t *testing.T) {
	limit := func(name string, left int, headers gateway.RateLimitHeaders) gateway.Middleware {
		d := gateway.Decision{OK: left >= 0, Limit: 10, Remaining: max(left, 0), Window: time.Second, ResetAfter: time.Second, RetryAfter: time.Second}
		if !d.OK {
			d.Limit = 20
		}
		return gateway.RateLimit(&scriptLimiter{d: d}, byName("k"), &gateway.RateLimitOptions{Name: name, Headers: headers})
	}
	ietf, legacy := gateway.RateLimitIETF, gateway.RateLimitLegacy
	for _, tt := range []struct {
		name string
		mw   gateway.Middleware
		want map[string]string
	}{
		{"lists", gateway.Chain(limit("a", 3, ietf), limit("b", 2, ietf), limit("c", 5, ietf)), map[string]string{
			"RateLimit-Policy": `"a";q=10;w=1, "b";q=10;w=1, "c";q=10;w=1`, "RateLimit": `"a";r=3;t=1, "b";r=2;t=1, "c";r=5;t=1`}},
		{"legacy: least remaining inside", gateway.Chain(limit("a", 3, legacy), limit("b", 2, legacy)), map[string]string{"X-RateLimit-Remaining": "2"}},
		{"legacy: least remaining outside", gateway.Chain(limit("a", 1, legacy), limit("b", 2, legacy)), map[string]string{"X-RateLimit-Remaining": "1"}},
		{"legacy: refused", gateway.Chain(limit("a", 0, legacy), limit("b", -1, legacy)), map[string]string{"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "Retry-After": "1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, _ := askServer(t, tt.mw(text("hello")), nil)
			for name, want := range tt.want {
				if got := strings.Join(res.Header.Values(name), "|"); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
		})
	}
}

// What a client sees: a burst passes, then it gets 429, and other clients are not affected.
func TestRateLimit(t *testing.T) {
	h := gateway.RateLimit(gateway.NewTokenBucket(0.01, 2, nil), gateway.KeyByHeader("X-Api-Key"), nil)(text("hello"))
	srv := httptest.NewServer(h)
	defer srv.Close()
	for i, tt := range []struct {
		key       string
		status    int
		remaining string
	}{
		{"alice", 200, `"default";r=1`},
		{"alice", 200, `"default";r=0`},
		{"alice", 429, `"default";r=0`},
		{"bob", 200, `"default";r=1`},
		{"alice", 429, `"default";r=0`},
		{"", 400, ""},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
		if tt.key != "" {
			req.Header.Set("X-Api-Key", tt.key)
		}
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tt.status || !strings.HasPrefix(res.Header.Get("RateLimit"), tt.remaining) {
			t.Errorf("%d: %d %s, want %d %s", i, res.StatusCode, res.Header.Get("RateLimit"), tt.status, tt.remaining)
		}
		after, err := strconv.Atoi(res.Header.Get("Retry-After"))
		if (tt.status == 429) != (err == nil && after >= 1 && after <= 100) {
			t.Errorf("%d: Retry-After %q", i, res.Header.Get("Retry-After"))
		}
	}
}

func TestRateLimitCannotDecide(t *testing.T) {
	secret := errors.New("dial tcp 10.1.2.3:6379: connection refused")
	noKey := func(err error) gateway.KeyFunc {
		return func(*http.Request) (string, error) { return "", err }
	}
	for _, tt := range []struct {
		name   string
		l      gateway.Limiter
		key    gateway.KeyFunc
		opts   *gateway.RateLimitOptions
		status int
	}{
		{"limiter errs", &scriptLimiter{err: secret}, byName("k"), nil, 503},
		{"limiter errs with a status", &scriptLimiter{err: &gateway.Error{Status: 200, Detail: "10.1.2.3"}}, byName("k"), nil, 503},
		{"limiter errs, fail open", &scriptLimiter{err: secret}, byName("k"), &gateway.RateLimitOptions{FailOpen: true}, 200},
		{"limiter errs, report only", &scriptLimiter{err: secret}, byName("k"), &gateway.RateLimitOptions{ReportOnly: true}, 200},
		{"key errs", &scriptLimiter{}, noKey(secret), nil, 500},
		{"key errs, fail open", &scriptLimiter{}, noKey(secret), &gateway.RateLimitOptions{FailOpen: true}, 500},
		{"key errs, report only", &scriptLimiter{}, noKey(secret), &gateway.RateLimitOptions{ReportOnly: true}, 200},
		{"key errs with a status", &scriptLimiter{}, noKey(&gateway.Error{Status: 418}), nil, 418},
		{"nobody", &scriptLimiter{}, gateway.KeyBySubject, nil, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := askServer(t, gateway.RateLimit(tt.l, tt.key, tt.opts)(text("hello")), nil)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			if strings.Contains(body, "10.1.2.3") {
				t.Errorf("body tells internals: %s", body)
			}
			if tt.status == 401 && res.Header.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
		})
	}
}

func TestRateLimitCost(t *testing.T) {
	own, plan := &scriptLimiter{d: gateway.Decision{OK: true}}, &scriptLimiter{d: gateway.Decision{OK: true}}
	h := gateway.RateLimit(own, byName("k"), &gateway.RateLimitOptions{
		Cost: func(r *http.Request) int {
			n, _ := strconv.Atoi(r.Header.Get("Cost"))
			return n
		},
		Limiter: func(r *http.Request) gateway.Limiter {
			if r.Header.Get("Plan") == "gold" {
				return plan
			}
			return nil
		},
	})(text("hello"))
	for _, header := range []http.Header{{"Cost": {"3"}}, {"Cost": {"0"}}, {"Cost": {"-1"}}, {"Cost": {"7"}, "Plan": {"gold"}}} {
		if res, _ := askServer(t, h, header); res.StatusCode != 200 {
			t.Errorf("%v: %d", header, res.StatusCode)
		}
	}
	if got, want := own.asked(), "take k 3"; got != want {
		t.Errorf("own: %s, want %s", got, want)
	}
	if got, want := plan.asked(), "take k 7"; got != want {
		t.Errorf("plan: %s, want %s", got, want)
	}
}

func TestRateLimitRefund(t *testing.T) {
	forbid := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, gateway.ErrForbidden) })
	limited := gateway.RateLimit(&scriptLimiter{}, byName("k"), nil)(text("hello"))
	anonymous := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limited.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), nil)))
	})
	fallback := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway.HandleErrors(func(w http.ResponseWriter, _ *http.Request, _ *gateway.Error) { w.WriteHeader(200) })(limited).ServeHTTP(w, r)
	})
	for _, tt := range []struct {
		name   string
		inside http.Handler
		opts   gateway.RateLimitOptions
		want   string
	}{
		{"admitted", text("hello"), gateway.RateLimitOptions{Refund: true}, "take k 1"},
		{"refused by a limit", limited, gateway.RateLimitOptions{Refund: true}, "take k 1, return k 1"},
		{"refused for another identity", anonymous, gateway.RateLimitOptions{Refund: true}, "take k 1, return k 1"},
		{"refused, answered by a fallback", fallback, gateway.RateLimitOptions{Refund: true}, "take k 1, return k 1"},
		{"forbidden", forbid, gateway.RateLimitOptions{Refund: true, Cost: func(*http.Request) int { return 4 }}, "take k 4, return k 4"},
		{"forbidden by the handler itself", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }), gateway.RateLimitOptions{Refund: true}, "take k 1"},
		{"failed", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, gateway.ErrBadGateway) }), gateway.RateLimitOptions{Refund: true}, "take k 1"},
		{"refused, no refund", limited, gateway.RateLimitOptions{}, "take k 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &scriptLimiter{d: gateway.Decision{OK: true, Limit: 10, Remaining: 9}}
			askServer(t, gateway.RateLimit(l, byName("k"), &tt.opts)(tt.inside), nil)
			if got := l.asked(); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// In the fallback of a Breaker the request has been refused already, so that a refusal inside is nothing to refund.
func TestRateLimitRefundInAFallback(t *testing.T) {
	c := gateway.NewCircuit("c", nil)
	c.Trip(time.Hour)
	for _, tt := range []struct {
		does    string // see acts
		settles bool   // for 4 units, of 10
		want    string
	}{
		{"hello", false, "take k 1"},
		{"limited", false, "take k 1"},
		{"hello", true, "take k 10, return k 6"},
		{"limited", true, "take k 10, return k 6"},
	} {
		l := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true, Limit: 10, Remaining: 9}}}
		opts := &gateway.RateLimitOptions{Refund: true}
		if tt.settles {
			opts.Cost, opts.Settle = costs(10), costs2(4)
		}
		fallback := gateway.RateLimit(l, byName("k"), opts)(acts(tt.does))
		askServer(t, gateway.Breaker(c, &gateway.BreakerOptions{Fallback: fallback})(http.NotFoundHandler()), nil)
		if got := l.asked(); got != tt.want {
			t.Errorf("%s, settles %t: %s, want %s", tt.does, tt.settles, got, tt.want)
		}
	}
}

func TestRateLimitReportOnly(t *testing.T) {
	type D = gateway.Decision
	noKey := func(*http.Request) (string, error) { return "", gateway.ErrUnauthenticated }
	for _, tt := range []struct {
		name string
		l    *scriptLimiter
		key  gateway.KeyFunc
		want string // in the log
	}{
		{"admitted", &scriptLimiter{d: D{OK: true}}, byName("k"), ""},
		{"admitted after a pause", &scriptLimiter{d: D{OK: true, Wait: time.Second}}, byName("k"), ""},
		{"refused", &scriptLimiter{d: D{RetryAfter: 1}}, byName("k"), "status=429"},
		{"refused for ever", &scriptLimiter{}, byName("k"), "status=429"},
		{"too long a pause", &scriptLimiter{d: D{OK: true, Wait: time.Second + 1}}, byName("k"), "status=429"},
		{"no key", &scriptLimiter{}, noKey, "status=401"},
		{"limiter errs", &scriptLimiter{err: errors.New("away")}, byName("k"), "status=503"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := captureDefaultLog(t)
			w := recorded(gateway.RateLimit(tt.l, tt.key, &gateway.RateLimitOptions{Name: "trial", ReportOnly: true})(text("hello")), nil)
			if w.Code != 200 || w.Body.String() != "hello" || w.Header().Get("Retry-After") != "" {
				t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
			}
			if strings.Contains(tt.l.asked(), "return") {
				t.Errorf("given back though it passed: %s", tt.l.asked())
			}
			got := log.String()
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) || tt.want != "" && !strings.Contains(got, `policy="ratelimit trial"`) {
				t.Errorf("log %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRateLimitWait(t *testing.T) {
	type D = gateway.Decision
	const sec = time.Second
	for _, tt := range []struct {
		name     string
		d        D
		opts     *gateway.RateLimitOptions
		deadline time.Duration // of the request; 0: none
		status   int
		after    time.Duration
		asked    string
		fields   map[string]string
	}{
		{"the longest", D{OK: true, Limit: 9, Remaining: 5, Wait: sec, Window: sec, ResetAfter: sec}, nil, 0, 200, sec, "take k 1", nil},
		{"too long", D{OK: true, Limit: 9, Remaining: 5, Wait: 2500 * msec, Window: sec, ResetAfter: 4 * sec}, nil, 0, 429, 0, "take k 1, return k 1",
			map[string]string{"Retry-After": "2", "RateLimit": `"default";r=0;t=2`}},
		{"none waits", D{OK: true, Limit: 9, Wait: 1, Window: sec}, &gateway.RateLimitOptions{MaxWait: -1}, 0, 429, 0, "take k 1, return k 1",
			map[string]string{"Retry-After": "1"}},
		{"report only", D{OK: true, Limit: 9, Wait: time.Hour, Window: sec}, &gateway.RateLimitOptions{ReportOnly: true}, 0, 200, 0, "take k 1", nil},
		{"beyond the deadline", D{OK: true, Limit: 9, Wait: 500 * msec, Window: sec}, nil, 300 * msec, 429, 0, "take k 1, return k 1", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			captureDefaultLog(t)
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.deadline)
					defer cancel()
				}
				l := &scriptLimiter{d: tt.d}
				start := time.Now()
				w := recorded(gateway.RateLimit(l, byName("k"), tt.opts)(text("hello")), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
				if after := time.Since(start); w.Code != tt.status || after != tt.after || l.asked() != tt.asked {
					t.Errorf("%d after %v: %s; want %d after %v: %s", w.Code, after, l.asked(), tt.status, tt.after, tt.asked)
				}
				for name, want := range tt.fields {
					if got := w.Header().Get(name); got != want {
						t.Errorf("%s: %s, want %s", name, got, want)
					}
				}
			})
		})
	}
}

// Requests of a leaky bucket that come at once pass one by one.
func TestRateLimitWaitEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := gateway.RateLimit(gateway.NewLeakyBucket(10, 5, nil), byName("k"), nil)(text("hello"))
		start := time.Now()
		var mu sync.Mutex
		seen := map[time.Duration]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				w := recorded(h, nil)
				mu.Lock()
				defer mu.Unlock()
				if w.Code == 429 {
					seen[-1]++
				} else {
					seen[time.Since(start)]++
				}
			})
		}
		wg.Wait()
		for _, at := range []time.Duration{0, 100 * msec, 200 * msec, 300 * msec, 400 * msec, 500 * msec} {
			if seen[at] != 1 {
				t.Errorf("%d passed at %v, want 1", seen[at], at)
			}
		}
		if seen[-1] != 2 {
			t.Errorf("%d refused, want 2", seen[-1])
		}
	})
}

// statuses is a middleware that appends the status of each error that is answered, and 499 for a client that left.
func statuses(to *[]int) gateway.Middleware {
	return gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
		status := e.Status
		if errors.Is(e, context.Canceled) && status == 400 {
			status = 499
		}
		*to = append(*to, status)
		gateway.WriteError(w, r, e)
	})
}

// A client that leaves while it waits is no refusal, and its slot is given back.
func TestRateLimitClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &scriptLimiter{d: gateway.Decision{OK: true, Limit: 9, Wait: 500 * msec, Window: time.Second}}
		outer := &scriptLimiter{d: gateway.Decision{OK: true, Limit: 9}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*msec, cancel)
		start := time.Now()
		var got []int
		w := recorded(gateway.Chain(
			statuses(&got),
			gateway.RateLimit(outer, byName("outer"), &gateway.RateLimitOptions{Refund: true}),
			gateway.RateLimit(l, byName("k"), nil),
		)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("admitted") })), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if len(got) != 1 || got[0] != 499 || time.Since(start) != 200*msec || l.asked() != "take k 1, return k 1" {
			t.Errorf("%v after %v: %s", got, time.Since(start), l.asked())
		}
		if outer.asked() != "take outer 1" {
			t.Errorf("counted as a refusal: %s", outer.asked())
		}
		if w.Header().Get("Retry-After") != "" {
			t.Errorf("%v", w.Header())
		}
	})
}

// A client that has left before the limiter answers gets no other error, also with FailOpen.
func TestRateLimitClientLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var got []int
		for _, opts := range []*gateway.RateLimitOptions{nil, {FailOpen: true}} {
			recorded(gateway.Chain(statuses(&got), gateway.RateLimit(&scriptLimiter{err: context.Canceled}, byName("k"), opts))(text("hello")), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		}
		if len(got) != 2 || got[0] != 499 || got[1] != 499 {
			t.Errorf("%v", got)
		}
	})
}

// A client that leaves makes room in the queue for another.
func TestRateLimitClientMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := gateway.RateLimit(gateway.NewLeakyBucket(10, 1, nil), byName("k"), nil)(text("hello"))
		recorded(h, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); recorded(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil)) }()
		synctest.Wait()
		if w := recorded(h, nil); w.Code != 429 {
			t.Errorf("the queue is full: %d", w.Code)
		}
		cancel()
		<-done
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("the queue has room: %d", w.Code)
		}
	})
}

func TestKeyFuncs(t *testing.T) {
	from := func(addr string, header ...string) *http.Request {
		r := httptest.NewRequest("GET", "http://api.example/", nil)
		r.RemoteAddr = addr
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		return r
	}
	as := func(issuer, subject string) *http.Request {
		r := from("")
		return r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Issuer: issuer, Subject: subject}))
	}
	header := gateway.KeyByHeader("x-api-key")
	pair := gateway.Keys(header, gateway.KeyByHeader("X-Tenant"))
	for _, tt := range []struct {
		name   string
		key    gateway.KeyFunc
		r      *http.Request
		want   string
		status int // of the error
	}{
		{"IPv4", gateway.KeyByIP, from("192.0.2.7:80"), "192.0.2.7", 0},
		{"IPv4 as IPv6", gateway.KeyByIP, from("[::ffff:192.0.2.7]:80"), "192.0.2.7", 0},
		{"IPv6", gateway.KeyByIP, from("[2001:db8:1:2:3:4:5:6]:80"), "2001:db8:1:2::/64", 0},
		{"IPv6, same net", gateway.KeyByIP, from("[2001:db8:1:2:ffff::1]:80"), "2001:db8:1:2::/64", 0},
		{"IPv6, another net", gateway.KeyByIP, from("[2001:db8:1:3::1]:80"), "2001:db8:1:3::/64", 0},
		{"IPv6 with a zone", gateway.KeyByIP, from("[fe80::1%eth0]:80"), "fe80::/64", 0},
		{"X-Forwarded-For is not believed", gateway.KeyByIP, from("192.0.2.7:80", "X-Forwarded-For", "203.0.113.1"), "192.0.2.7", 0},
		{"Unix socket", gateway.KeyByIP, from("@"), "-", 0},
		{"no address", gateway.KeyByIP, from(""), "-", 0},

		{"subject", gateway.KeyBySubject, as("https://id.example", "alice"), "18:https://id.example5:alice", 0},
		{"subject of another issuer", gateway.KeyBySubject, as("https://id.examplea", "lice"), "19:https://id.examplea4:lice", 0},
		{"nobody", gateway.KeyBySubject, from(""), "", 401},

		{"field", header, from("", "X-API-KEY", "abc"), "abc", 0},
		{"field absent", header, from(""), "", 400},
		{"field empty", header, from("", "X-Api-Key", ""), "", 400},
		{"field twice", header, from("", "X-Api-Key", "a", "X-Api-Key", "b"), "", 400},
		{"Host", gateway.KeyByHeader("host"), from(""), "api.example", 0},
		{"Host absent, as HTTP/1.0 allows", gateway.KeyByHeader("Host"), &http.Request{}, "", 400},

		{"cookie", gateway.KeyByCookie("sid"), from("", "Cookie", "a=b; sid=abc"), "abc", 0},
		{"cookie absent", gateway.KeyByCookie("sid"), from("", "Cookie", "a=b"), "", 400},
		{"cookie empty", gateway.KeyByCookie("sid"), from("", "Cookie", "sid="), "", 400},
		{"cookie twice", gateway.KeyByCookie("sid"), from("", "Cookie", "sid=a; sid=b"), "", 400},

		{"pair", pair, from("", "X-Api-Key", "a", "X-Tenant", "b1:c"), "1:a4:b1:c", 0},
		{"pair that looks alike", pair, from("", "X-Api-Key", "a4:b", "X-Tenant", "c"), "4:a4:b1:c", 0},
		{"pair, half", pair, from("", "X-Api-Key", "a"), "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.key(tt.r)
			if got != tt.want || (err != nil) != (tt.status != 0) {
				t.Fatalf("%q, %v; want %q", got, err, tt.want)
			}
			if err == nil {
				return
			}
			w := httptest.NewRecorder()
			gateway.WriteError(w, tt.r, err)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
		})
	}
}

func TestKeyByRouteUnderForeignMux(t *testing.T) {
	key := ""
	mux := http.NewServeMux()
	mux.Handle("GET /users/{id}", gateway.RateLimit(&scriptLimiter{d: gateway.Decision{OK: true}}, func(r *http.Request) (string, error) {
		key, _ = gateway.KeyByRoute(r)
		return key, nil
	}, nil)(text("hello")))
	h := gateway.Timeout(time.Hour)(http.StripPrefix("/api", mux))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/api/users/7", nil))
	if key != "GET /users/{id}" {
		t.Errorf("%q", key)
	}
}
