package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// hedgeStep is how a target answers one attempt.
type hedgeStep struct {
	after  time.Duration
	status int // 0: an error
	panics bool
}

// hedgePool answers the attempts at a request in the order in which they begin.
type hedgePool struct {
	steps []hedgeStep

	mu       sync.Mutex
	asked    []string // hosts
	canceled int
	left     int // transports under way
}

func (p *hedgePool) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	p.mu.Lock()
	step := p.steps[min(len(p.asked), len(p.steps)-1)]
	p.asked = append(p.asked, r.URL.Host)
	p.left++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.left--
		p.mu.Unlock()
	}()
	select {
	case <-time.After(step.after):
	case <-r.Context().Done():
		p.mu.Lock()
		p.canceled++
		p.mu.Unlock()
		return nil, r.Context().Err()
	}
	switch {
	case step.panics:
		panic("bug")
	case step.status == 0:
		return nil, io.ErrUnexpectedEOF
	}
	return answered(r, step.status, io.NopCloser(strings.NewReader(r.URL.Host))), nil
}

// outcomes is a balancer that takes the targets in turn and records how the attempts ended.
type outcomes struct {
	mu  sync.Mutex
	all []gateway.Outcome
}

func (b *outcomes) Pick(*http.Request, []gateway.Target) (int, func(gateway.Outcome)) {
	return 0, func(o gateway.Outcome) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.all = append(b.all, o)
	}
}

func TestHedge(t *testing.T) {
	ok, second := 200, time.Second
	for _, tt := range []struct {
		name     string
		method   string
		header   http.Header
		body     io.Reader
		opts     gateway.RetryOptions
		timeout  time.Duration
		steps    []hedgeStep
		status   int // 0: an error
		from     string
		took     time.Duration
		asked    int
		canceled int
		outcomes []gateway.Outcome // sorted
	}{
		{name: "in time", steps: []hedgeStep{{after: 99 * time.Millisecond, status: ok}}, status: ok, from: "a", took: 99 * time.Millisecond, asked: 1,
			outcomes: []gateway.Outcome{gateway.OutcomeOK}},
		{name: "the second wins", steps: []hedgeStep{{after: second, status: ok}, {after: 50 * time.Millisecond, status: ok}}, status: ok, from: "b", took: 150 * time.Millisecond, asked: 2, canceled: 1,
			outcomes: []gateway.Outcome{gateway.OutcomeOK, gateway.OutcomeClientCanceled}},
		{name: "the second wins, without a timeout", timeout: -1, steps: []hedgeStep{{after: second, status: ok}, {after: 50 * time.Millisecond, status: ok}}, status: ok, from: "b", took: 150 * time.Millisecond, asked: 2, canceled: 1},
		{name: "the first wins", steps: []hedgeStep{{after: 120 * time.Millisecond, status: ok}, {after: second, status: ok}}, status: ok, from: "a", took: 120 * time.Millisecond, asked: 2, canceled: 1,
			outcomes: []gateway.Outcome{gateway.OutcomeOK, gateway.OutcomeClientCanceled}},
		{name: "a 500 is an answer", steps: []hedgeStep{{after: second, status: ok}, {status: 500}}, status: 500, from: "b", took: 100 * time.Millisecond, asked: 2, canceled: 1},
		{name: "the second fails", steps: []hedgeStep{{after: second, status: ok}, {after: 50 * time.Millisecond}}, status: ok, from: "a", took: second, asked: 2,
			outcomes: []gateway.Outcome{gateway.OutcomeOK, gateway.OutcomeUpstreamError}},
		{name: "the second says 503", steps: []hedgeStep{{after: second, status: ok}, {status: 503}}, status: ok, from: "a", took: second, asked: 2},
		{name: "the first fails while the second is asked", steps: []hedgeStep{{after: 110 * time.Millisecond}, {after: 50 * time.Millisecond, status: ok}}, status: ok, from: "b", took: 150 * time.Millisecond, asked: 2},
		{name: "both fail, and there is a third attempt", opts: gateway.RetryOptions{Attempts: 3}, steps: []hedgeStep{{after: 110 * time.Millisecond}, {after: 50 * time.Millisecond, status: 503}, {status: ok}}, status: ok, from: "c", took: 150 * time.Millisecond, asked: 3},
		{name: "both fail, and there is none", steps: []hedgeStep{{after: 110 * time.Millisecond, status: 503}, {after: 50 * time.Millisecond}, {status: ok}}, status: 503, from: "a", took: 150 * time.Millisecond, asked: 2},
		{name: "the first fails before the time", steps: []hedgeStep{{after: 50 * time.Millisecond}, {after: second, status: ok}}, status: ok, from: "b", took: second + 50*time.Millisecond, asked: 2},
		{name: "both time out", timeout: 500 * time.Millisecond, steps: []hedgeStep{{after: time.Hour}}, took: 600 * time.Millisecond, asked: 2, canceled: 2,
			outcomes: []gateway.Outcome{gateway.OutcomeTimeout, gateway.OutcomeTimeout}},
		{name: "a second that panics", steps: []hedgeStep{{after: second, status: ok}, {panics: true}}, status: ok, from: "a", took: second, asked: 2,
			outcomes: []gateway.Outcome{gateway.OutcomeOK, gateway.OutcomeInternal}},
		{name: "POST", method: "POST", steps: []hedgeStep{{after: second, status: ok}}, status: ok, from: "a", took: second, asked: 1},
		{name: "POST of gRPC", method: "POST", opts: gateway.RetryOptions{GRPC: true}, header: http.Header{"Content-Type": {"application/grpc"}}, steps: []hedgeStep{{after: second, status: ok}, {status: ok}}, status: ok, from: "b", took: 100 * time.Millisecond, asked: 2, canceled: 1},
		{name: "upgrade", header: http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}, steps: []hedgeStep{{after: second, status: ok}}, status: ok, from: "a", took: second, asked: 1},
		{name: "PUT", method: "PUT", body: strings.NewReader("hello"), steps: []hedgeStep{{after: second, status: ok}, {status: ok}}, status: ok, from: "b", took: 100 * time.Millisecond, asked: 2, canceled: 1},
		{name: "PUT with a body that is not kept", method: "PUT", body: strings.NewReader("hello"), opts: gateway.RetryOptions{MaxBodyBytes: 4}, steps: []hedgeStep{{after: second, status: ok}}, status: ok, from: "a", took: second, asked: 1},
		{name: "PUT with a body that is still on its way", method: "PUT", body: &slowReader{first: "x", pause: 200 * time.Millisecond}, steps: []hedgeStep{{after: second, status: ok}}, status: ok, from: "a", took: 1200 * time.Millisecond, asked: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.name == "a second that panics" {
					log := captureDefaultLog(t)
					defer func() {
						if !strings.Contains(log.String(), "a second attempt panicked") {
							t.Errorf("logged %q", log)
						}
					}()
				}
				pool, ends := &hedgePool{steps: tt.steps}, new(outcomes)
				tt.opts.Attempts = max(2, tt.opts.Attempts)
				tt.opts.HedgeAfter, tt.opts.Backoff = 100*time.Millisecond, -1
				c := gateway.NewCircuit("c", nil)
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
					Transport: pool, Retry: tt.opts, Timeout: tt.timeout, Circuit: c, Balancer: ends,
				})
				r := httptest.NewRequest(tt.method, "/", tt.body)
				if tt.body == nil {
					r.Body = nil
				}
				if tt.header != nil {
					r.Header = tt.header
				}
				start := time.Now()
				res, err := u.RoundTrip(r)
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if pool.left != 0 {
					t.Errorf("%d attempts are under way after RoundTrip", pool.left)
				}
				if status := 0; err == nil {
					status = res.StatusCode
					from, err := io.ReadAll(res.Body)
					res.Body.Close()
					if status != tt.status || string(from) != tt.from || err != nil {
						t.Errorf("%d from %q, %v; want %d from %q", status, from, err, tt.status, tt.from)
					}
				} else if tt.status != 0 {
					t.Errorf("%v, want %d", err, tt.status)
				}
				if len(pool.asked) != tt.asked || pool.canceled != tt.canceled {
					t.Errorf("asked %v, of which %d were canceled; want %d and %d", pool.asked, pool.canceled, tt.asked, tt.canceled)
				}
				for i, host := range pool.asked {
					if slices.Contains(pool.asked[:i], host) {
						t.Errorf("%s was asked twice: %v", host, pool.asked)
					}
				}
				if slices.Sort(ends.all); tt.outcomes != nil && !slices.Equal(ends.all, tt.outcomes) {
					t.Errorf("outcomes %v, want %v", ends.all, tt.outcomes)
				}
				if len(ends.all) != tt.asked {
					t.Errorf("%d attempts ended, want %d", len(ends.all), tt.asked)
				}
				for _, s := range u.Status() {
					if s.Pending != 0 {
						t.Errorf("%d pending", s.Pending)
					}
				}
			})
		})
	}
}

// slowReader is a body with a pause in it.
type slowReader struct {
	first string
	pause time.Duration
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.first != "" {
		n := copy(p, s.first)
		s.first = s.first[n:]
		return n, nil
	}
	time.Sleep(s.pause)
	return 0, io.EOF
}

// The attempt that loses counts against nobody, however strict circuit and health are.
func TestHedgeLoserCountsAgainstNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel := new(gatewaytest.Telemetry)
		pool := &hedgePool{}
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1, SlowCall: 300 * time.Millisecond, IsFailure: func(o gateway.Outcome, _ int) bool { return o != gateway.OutcomeOK }})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: pool, Circuit: c, Meter: tel,
			Retry:  gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond, Budget: 1},
			Health: gateway.HealthOptions{Unhealthy: 1},
		})
		for n := range 20 {
			pool.steps, pool.asked = []hedgeStep{{after: time.Hour, status: 200}, {after: time.Millisecond, status: 200}}, nil
			if n%2 == 0 {
				pool.steps = []hedgeStep{{after: 200 * time.Millisecond, status: 200}, {after: time.Hour, status: 200}}
			}
			res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
		if pool.canceled != 20 {
			t.Errorf("%d were canceled", pool.canceled)
		}
		if got := c.Changes(); len(got) != 0 {
			t.Errorf("the circuit changed: %v", got)
		}
		for _, s := range u.Status() {
			if !s.Healthy || s.Pending != 0 {
				t.Errorf("%+v", s)
			}
		}
		count := map[string]int{}
		for _, s := range tel.Series("http.client.request.duration") {
			o, _ := s.Attributes.Value("gateway.outcome")
			count[o.AsString()] += s.Count
			if _, bad := s.Attributes.Value("error.type"); bad {
				t.Errorf("an error: %v", s.Attributes.ToSlice())
			}
		}
		if count["ok"] != 20 || count["client_canceled"] != 20 || len(count) != 2 {
			t.Errorf("measured %v", count)
		}
	})
}

// A target that hangs is ejected although a hedge saves each of its requests, and one that answers now and then is not.
func TestHedgeEjectsTheSilent(t *testing.T) {
	const timeout = 2 * time.Second
	always := func(time.Duration) bool { return true }
	for _, tt := range []struct {
		name      string
		timeout   time.Duration
		unhealthy int
		every     time.Duration                  // between two requests
		hangs     func(since time.Duration) bool // whether a attempt at a hangs that begins then
		after     time.Duration                  // when it is ejected, at the earliest; 0 for never
		before    time.Duration
	}{
		{"it hangs", timeout, 0, 10 * time.Millisecond, always, timeout, timeout + 500*time.Millisecond},
		{"it hangs, with little traffic", timeout, 0, 250 * time.Millisecond, always, 9 * time.Second, 11 * time.Second},
		{"it stops for a while", timeout, 0, 10 * time.Millisecond, func(d time.Duration) bool { return d > 2*time.Second && d < 3900*time.Millisecond }, 0, 0},
		{"it answers now and then", timeout, 0, 10 * time.Millisecond, func(d time.Duration) bool { return d%(1900*time.Millisecond) > 100*time.Millisecond }, 0, 0},
		{"there is no timeout", -1, 0, 10 * time.Millisecond, always, 0, 0},
		{"there is no ejection", timeout, -1, 10 * time.Millisecond, always, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
					Timeout: tt.timeout, Balancer: gateway.RoundRobin(),
					Circuit: gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1, IsFailure: func(o gateway.Outcome, _ int) bool { return o == gateway.OutcomeTimeout }}),
					Retry:   gateway.RetryOptions{Attempts: 2, HedgeAfter: 50 * time.Millisecond, Budget: 1},
					Health:  gateway.HealthOptions{Unhealthy: tt.unhealthy},
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						if r.URL.Host == "a" && tt.hangs(time.Since(start)) {
							<-r.Context().Done()
							return nil, r.Context().Err()
						}
						time.Sleep(time.Millisecond)
						return answered(r, 500, http.NoBody), nil // an answer all the same
					}),
				})
				var wg sync.WaitGroup
				var ejected time.Duration
				for time.Since(start) < 12*time.Second && ejected == 0 {
					wg.Go(func() {
						began := time.Now()
						res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
						if err == nil {
							res.Body.Close()
						}
						// Those under way when the target is ejected get no hedge: then the pool is sick.
						if took := time.Since(began); (err != nil || took > 60*time.Millisecond) && (tt.after == 0 || began.Sub(start) < tt.after) {
							t.Errorf("took %v: %v", took, err)
						}
					})
					time.Sleep(tt.every)
					for i, s := range u.Status() {
						if !s.Healthy {
							if ejected = time.Since(start); i != 0 || !strings.Contains(s.Reason, "timeout") {
								t.Errorf("%+v", s)
							}
						}
					}
				}
				wg.Wait()
				if ejected < tt.after || ejected > tt.before {
					t.Errorf("ejected after %v, want between %v and %v", ejected, tt.after, tt.before)
				}
			})
		})
	}
}

func TestHedgeIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, observe := observed()
		pool := &hedgePool{steps: []hedgeStep{{after: time.Second, status: 200}, {status: 200}}}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: pool, Balancer: new(outcomes), Retry: gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond},
		})
		w := httptest.NewRecorder()
		observe(gateway.Proxy(u, nil)).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		line := <-j
		if w.Body.String() != "b" || line["attempts"] != "2" || line["target"] != "http://b" || line["outcome"] != "ok" {
			t.Errorf("%q, logged %v", w.Body, line)
		}
	})
}

func TestHedgeNotWhileSick(t *testing.T) {
	for _, tt := range []struct {
		name    string
		targets []string
		sicken  func(t *testing.T, u *gateway.Upstream, c *gateway.Circuit, pool *hedgePool)
		want    int // attempts
	}{
		{"healthy", []string{"http://a", "http://b"}, nil, 2},
		{"one target", []string{"http://a"}, nil, 1},
		{"a target is out", []string{"http://a", "http://b", "http://c"}, func(t *testing.T, u *gateway.Upstream, _ *gateway.Circuit, pool *hedgePool) {
			pool.steps = []hedgeStep{{}}
			u.RoundTrip(httptest.NewRequest("POST", "/", nil))
		}, 1},
		{"the circuit is half-open", []string{"http://a", "http://b"}, func(t *testing.T, _ *gateway.Upstream, c *gateway.Circuit, _ *hedgePool) {
			c.Trip(time.Second)
			time.Sleep(time.Second)
		}, 1},
		{"the circuit opens meanwhile", []string{"http://a", "http://b"}, func(t *testing.T, _ *gateway.Upstream, c *gateway.Circuit, _ *hedgePool) {
			time.AfterFunc(50*time.Millisecond, func() { c.Trip(time.Second) })
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := &hedgePool{}
				c := gateway.NewCircuit("c", nil)
				u := gateway.NewUpstream("u", gateway.MustTargets(tt.targets...), &gateway.UpstreamOptions{
					Transport: pool, Circuit: c,
					Retry:  gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond},
					Health: gateway.HealthOptions{Unhealthy: 1},
				})
				if tt.sicken != nil {
					tt.sicken(t, u, c, pool)
				}
				pool.steps, pool.asked = []hedgeStep{{after: time.Second, status: 200}, {status: 200}}, nil
				res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if len(pool.asked) != tt.want {
					t.Errorf("asked %v", pool.asked)
				}
			})
		})
	}
}

// When nothing is left of the budget, a slow pool gets no more requests than it would without hedging.
func TestHedgeBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &hedgePool{steps: []hedgeStep{{after: 10 * time.Second, status: 200}}}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: pool, Retry: gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond, Budget: 0.1},
		})
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); err == nil {
					res.Body.Close()
				}
			})
		}
		wg.Wait()
		if extra := len(pool.asked) - 1000; extra < 100 || extra > 105 {
			t.Errorf("%d more requests", extra)
		}
	})
}

func TestHedgeClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &hedgePool{steps: []hedgeStep{{after: time.Hour, status: 200}}}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: pool, Retry: gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond}, Health: gateway.HealthOptions{Unhealthy: 1},
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := u.RoundTrip(httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if !errors.Is(err, context.Canceled) || len(pool.asked) != 2 || pool.canceled != 2 || pool.left != 0 {
			t.Errorf("%v, asked %v, %d canceled", err, pool.asked, pool.canceled)
		}
		for _, s := range u.Status() {
			if !s.Healthy || s.Pending != 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func TestHedgePanicOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := &hedgePool{steps: []hedgeStep{{after: time.Second, panics: true}, {after: time.Hour, status: 200}}}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: pool, Retry: gateway.RetryOptions{Attempts: 2, HedgeAfter: 100 * time.Millisecond},
		})
		defer func() {
			if p := recover(); p != "bug" || pool.canceled != 1 || pool.left != 0 {
				t.Errorf("panicked with %v, %d canceled", p, pool.canceled)
			}
			for _, s := range u.Status() {
				if s.Pending != 0 {
					t.Errorf("%+v", s)
				}
			}
		}()
		u.RoundTrip(httptest.NewRequest("GET", "/", nil))
	})
}

func TestHedgePanicsAtSetup(t *testing.T) {
	for _, o := range []gateway.RetryOptions{{HedgeAfter: time.Second}, {HedgeAfter: time.Second, Attempts: 1}, {HedgeAfter: -1, Attempts: 2}} {
		func() {
			defer func() {
				if p, _ := recover().(string); !strings.HasPrefix(p, "gateway: NewUpstream: Retry.HedgeAfter ") {
					t.Errorf("%+v panicked with %v", o, p)
				}
			}()
			gateway.NewUpstream("u", nil, &gateway.UpstreamOptions{Retry: o})
		}()
	}
}

// Over real connections, with bodies, and many at once: whoever wins, the answer is whole and belongs to its request.
func TestHedgeOnTheWire(t *testing.T) {
	var requests atomic.Int64
	backend := func() string {
		return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if requests.Add(1)%5 == 0 {
				select {
				case <-time.After(50 * time.Millisecond):
				case <-r.Context().Done():
				}
			}
			fmt.Fprintf(w, "%s %s", r.URL.Path, body)
		})).URL
	}
	j, observe := observed()
	u := gateway.NewUpstream("u", gateway.MustTargets(backend(), backend()), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1}),
		Retry:   gateway.RetryOptions{Attempts: 2, HedgeAfter: 5 * time.Millisecond, Budget: 1},
		Health:  gateway.HealthOptions{Unhealthy: 1},
	})
	front := serve(t, observe(gateway.Proxy(u, nil)))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 12 {
				method, body := "GET", ""
				if i%2 == 0 {
					method, body = "PUT", strings.Repeat(fmt.Sprint(g), 2000)
				}
				req, _ := http.NewRequest(method, fmt.Sprintf("%s/%d/%d", front.URL, g, i), strings.NewReader(body))
				res, err := front.Client().Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if want := fmt.Sprintf("/%d/%d %s", g, i, body); string(got) != want || err != nil {
					t.Errorf("got %.20q, %v, want %.20q", got, err, want)
				}
			}
		})
	}
	wg.Wait()
	hedged := 0
	for range 96 {
		line := <-j
		if line["outcome"] != "ok" {
			t.Errorf("logged %v", line)
		}
		if line["attempts"] == "2" {
			hedged++
		}
	}
	if hedged == 0 {
		t.Error("no request was hedged")
	}
	for _, s := range u.Status() {
		if !s.Healthy {
			t.Errorf("%+v", s)
		}
	}
}

// A pool in which 2 % of answers take a second. Its answers begin after 4 to 9 ms and are whole after 18 to 22 more.
//
// A hedged request takes HedgeAfter and a whole second answer. So its time can be below twice the median only where
// answers begin well before they end, or where part of the time is spent before the gateway: with answers that are
// whole when they begin, HedgeAfter is at the least the median, and p99 is a little above twice the median.
func TestHedgeTail(t *testing.T) {
	const requests = 20_000
	measure := func(t *testing.T, hedgeAfter time.Duration) (median, p99 time.Duration, sent int64) {
		rnd := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		var attempts atomic.Int64
		random := func(from, to time.Duration) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return from + time.Duration(rnd.Int64N(int64(to-from)))
		}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, HedgeAfter: hedgeAfter, Budget: 0.05},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				attempts.Add(1)
				header, rest := random(4*time.Millisecond, 9*time.Millisecond), random(18*time.Millisecond, 22*time.Millisecond)
				if random(0, 50) == 0 {
					header = time.Second
				}
				select {
				case <-time.After(header):
				case <-r.Context().Done():
					return nil, r.Context().Err()
				}
				return answered(r, 200, io.NopCloser(&slowReader{pause: rest})), nil
			}),
		})
		took := make([]time.Duration, requests)
		var wg sync.WaitGroup
		for i := range took {
			wg.Go(func() {
				start := time.Now()
				res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				took[i] = time.Since(start)
			})
			time.Sleep(2 * time.Millisecond) // 500 a second
		}
		wg.Wait()
		slices.Sort(took)
		return took[requests/2], took[requests*99/100], attempts.Load()
	}
	synctest.Test(t, func(t *testing.T) {
		median, p99, sent := measure(t, 0)
		t.Logf("without: median %v, p99 %v, %d requests sent", median, p99, sent)
		if p99 < time.Second || sent != requests {
			t.Errorf("without hedging, p99 is %v with %d requests", p99, sent)
		}
		median, p99, sent = measure(t, 10*time.Millisecond)
		t.Logf("hedged:  median %v, p99 %v, %d requests sent", median, p99, sent)
		if p99 >= 2*median || sent > requests*105/100 {
			t.Errorf("p99 is %v at a median of %v, with %d requests", p99, median, sent)
		}
	})
}
