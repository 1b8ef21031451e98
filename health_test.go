package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// ward is a transport to fake targets. Those in sick fail, the others answer 200.
type ward struct {
	mu     sync.Mutex
	sick   map[string]int // status, by host; 0 for an error
	traced map[string]int // requests, by host and path
}

func (w *ward) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.traced[r.URL.Host+r.URL.Path]++
	status, sick := w.sick[r.URL.Host]
	switch {
	case !sick:
		return answered(r, 200, http.NoBody), nil
	case status == 0:
		return nil, io.EOF
	}
	return answered(r, status, http.NoBody), nil
}

func (w *ward) set(host string, status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sick[host] = status
}

func (w *ward) heal(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sick, host)
}

// ask makes n requests and returns how many each target got.
func (w *ward) ask(u *gateway.Upstream, n int) map[string]int {
	w.mu.Lock()
	clear(w.traced)
	w.mu.Unlock()
	for range n {
		if res, err := u.RoundTrip(httptest.NewRequest("GET", "/x", nil)); err == nil {
			res.Body.Close()
		}
	}
	got := map[string]int{}
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, v := range w.traced {
		if host, ok := strings.CutSuffix(k, "/x"); ok {
			got[host] = v
		}
	}
	return got
}

func newWard() *ward { return &ward{sick: map[string]int{}, traced: map[string]int{}} }

func states(u *gateway.Upstream) string {
	var b strings.Builder
	for _, s := range u.Status() {
		if s.Healthy {
			fmt.Fprintf(&b, "%s ", s.Target.URL.Host)
			if s.Reason != "" {
				b.WriteString("with a reason ")
			}
		} else {
			fmt.Fprintf(&b, "-%s ", s.Target.URL.Host)
			if s.Reason == "" {
				b.WriteString("without a reason ")
			}
		}
	}
	return strings.TrimSpace(b.String())
}

func TestPassiveEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{EjectFor: time.Minute},
		})
		w.set("a", 503)
		w.ask(u, 6)
		if got := states(u); got != "a b c" {
			t.Errorf("after two failures: %s", got)
		}
		w.ask(u, 3)
		if got := states(u); got != "-a b c" {
			t.Errorf("after three: %s", got)
		}
		if got := w.ask(u, 10); got["a"] != 0 || got["b"] != 5 || got["c"] != 5 {
			t.Errorf("asked %v", got)
		}
		// No more than half of the pool is ejected.
		w.set("b", 504)
		w.ask(u, 20)
		if got := states(u); got != "-a b c" {
			t.Errorf("a second of three: %s", got)
		}
		w.heal("b")
		w.ask(u, 4)
		// The first ejection lasts a minute. After three more failures, the second one lasts two.
		time.Sleep(time.Minute)
		if got := states(u); got != "a b c" {
			t.Errorf("after a minute: %s", got)
		}
		w.ask(u, 9)
		time.Sleep(2*time.Minute - time.Second)
		if got := states(u); got != "-a b c" {
			t.Errorf("in the second ejection: %s", got)
		}
		time.Sleep(time.Second)
		w.heal("a")
		if got := w.ask(u, 9); got["a"] != 3 {
			t.Errorf("asked %v", got)
		}
		// A success ends the row of ejections: the next one lasts a minute again.
		w.set("a", 503)
		w.ask(u, 9)
		time.Sleep(time.Minute)
		if got := states(u); got != "a b c" {
			t.Errorf("a minute after the third: %s", got)
		}
	})
}

// Requests that are in flight when their target is ejected may fail, too. That must neither prolong the ejection nor
// change its reason, nor double the next one.
func TestFailuresWhileEjectedChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := make(chan error)
		first := pick(func(gateway.Outcome) func(gateway.Outcome) { return nil })
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
			Balancer: first, Health: gateway.HealthOptions{EjectFor: time.Minute, MaxEjected: 1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return nil, <-fail }),
		})
		begin := func(n int) {
			for range n {
				go u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			}
			synctest.Wait()
		}
		end := func(n int, err error) {
			for range n {
				fail <- err
			}
			synctest.Wait()
		}
		begin(9)
		end(3, io.EOF)
		const reason = "ejected: 3 failures in a row, the last: upstream_error"
		if got := u.Status()[0]; got.Healthy || got.Reason != reason {
			t.Fatalf("after three failures: %+v", got)
		}
		time.Sleep(30 * time.Second)
		end(6, gateway.ErrTimeout)
		if got := u.Status()[0]; got.Healthy || got.Reason != reason || got.Pending != 0 {
			t.Errorf("after six more: %+v", got)
		}
		time.Sleep(30 * time.Second)
		if got := states(u); got != "a b c" {
			t.Errorf("after a minute: %s", got)
		}
		begin(3)
		end(3, io.EOF)
		time.Sleep(2*time.Minute - time.Second)
		if got := states(u); got != "-a b c" {
			t.Errorf("in the second ejection: %s", got)
		}
		time.Sleep(time.Second)
		if got := states(u); got != "a b c" {
			t.Errorf("after the second ejection, of two minutes: %s", got)
		}
	})
}

func TestEjectionIsOfTheTargetsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, err := range map[string]error{
			"client left": context.Canceled, "body": &http.MaxBytesError{},
		} {
			u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return nil, err }),
				Health:    gateway.HealthOptions{Unhealthy: 1, MaxEjected: 1},
			})
			ctx, cancel := context.WithCancel(context.Background())
			if err == context.Canceled {
				cancel()
			}
			for range 10 {
				u.RoundTrip(httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			}
			cancel()
			if got := states(u); got != "a b" {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}

// down are the errors by which ward's targets fail, worst first.
var down = []struct {
	name string
	err  error
}{
	{"dial", errDial},
	{"protocol", io.EOF},
	{"status", nil}, // 503
}

// A target that cannot serve at all takes the place of one that was ejected for less, and of no other.
func TestEjectionTakesAPlace(t *testing.T) {
	for i, first := range down {
		for j, second := range down {
			t.Run(first.name+", then "+second.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					fails := map[string]error{}
					var sick string
					u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
						Balancer: gateway.RoundRobin(),
						Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
							switch err, failing := fails[r.URL.Host]; {
							case failing && err != nil:
								return nil, err
							case failing:
								return answered(r, 503, http.NoBody), nil
							}
							return answered(r, 200, http.NoBody), nil
						}),
					})
					fail := func(host string, err error) {
						fails[host] = err
						for range 8 {
							u.RoundTrip(httptest.NewRequest("GET", "/", nil))
						}
					}
					fail("a", first.err)
					if sick = states(u); sick != "-a b" {
						t.Fatalf("after failures of a: %s", sick)
					}
					delete(fails, "a") // it was never sick: one URL failed
					want := "-a b"
					if j < i {
						want = "a -b"
					}
					if fail("b", second.err); states(u) != want {
						t.Errorf("after failures of b: %s, want %s", states(u), want)
					}
				})
			})
		}
	}
}

// The mildest failure of a row is what a target is ejected for.
func TestEjectionForTheMildestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{Unhealthy: 2},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if err == nil {
					return answered(r, 503, http.NoBody), nil
				}
				return nil, err
			}),
		})
		for _, err = range []error{errDial, errDial, nil, io.EOF, io.EOF, io.EOF} { // a dial, b dial, a 503, then b alone
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		}
		if got := states(u); got != "a -b" {
			t.Errorf("%s", got)
		}
	})
}

// Two targets, A alive and B refusing connections: a URL that fails must not make an outage, neither with retries nor
// without.
func TestFailingURLBesideADeadTarget(t *testing.T) {
	for _, status := range []int{500, 503} {
		for _, attempts := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d, %d attempts", status, attempts), func(t *testing.T) {
				alive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/failing" {
						w.WriteHeader(status)
					}
				}))
				defer alive.Close()
				u := gateway.NewUpstream("u", gateway.MustTargets(alive.URL, "http://127.0.0.1:1"), &gateway.UpstreamOptions{
					Retry: gateway.RetryOptions{Attempts: attempts, Backoff: -1},
				})
				h := gateway.Proxy(u, nil)
				ask := func(path string) int {
					w := recorded(h, httptest.NewRequest("GET", path, nil))
					return w.Code
				}
				for range 12 {
					ask("/failing")
				}
				failed := 0
				for range 30 {
					if ask("/x") != 200 {
						failed++
					}
				}
				// Without retries, three failures in a row have to show first that B is down.
				if most := []int{0, 3, 0}[attempts]; failed > most {
					t.Errorf("%d of 30 requests failed: %+v", failed, u.Status())
				}
				if last := ask("/x"); last != 200 {
					t.Errorf("status %d in the end", last)
				}
				if got := u.Status(); got[0].Reason != "" || got[1].Reason != "" && got[1].Reason != "ejected: 3 failures in a row, the last: upstream_error, not reachable" {
					t.Errorf("status %+v", got)
				}
			})
		}
	}
}

// A retry asks what was not asked, ejected targets and sick ones too, before it asks one again.
func TestRetryAsksEjectedTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		fails := map[string]error{"a": io.EOF}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Balancer: gateway.RoundRobin(), Retry: gateway.RetryOptions{Attempts: 3, Budget: 10},
			Health: gateway.HealthOptions{Path: "/", EjectFor: time.Hour},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				asked = append(asked, r.URL.Host)
				if err := fails[r.URL.Host]; err != nil {
					return nil, err
				}
				return answered(r, 200, http.NoBody), nil
			}),
		})
		get := func() (string, error) {
			asked = nil
			_, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			return strings.Join(asked, " "), err
		}
		for range 6 {
			get()
		}
		if got := states(u); got != "-a b" {
			t.Fatal(got)
		}
		fails = map[string]error{"b": io.EOF}
		if got, err := get(); got != "b a" || err != nil {
			t.Errorf("asked %s, %v", got, err)
		}
		fails["a"] = io.EOF
		if got, _ := get(); got != "b a b" && got != "b a a" {
			t.Errorf("with both down, asked %s", got)
		}
	})
}

func TestAllOutAreTriedAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{MaxEjected: 1},
		})
		w.set("a", 503)
		w.set("b", 503)
		w.ask(u, 20)
		if got := states(u); got != "-a -b" {
			t.Errorf("states %s", got)
		}
		if got := w.ask(u, 10); got["a"]+got["b"] != 10 {
			t.Errorf("asked %v", got)
		}
	})
}

func TestNoEjection(t *testing.T) {
	for name, h := range map[string]gateway.HealthOptions{"MaxEjected": {MaxEjected: -1}, "Unhealthy": {Unhealthy: -1, MaxEjected: 1}} {
		w := newWard()
		w.set("a", 503)
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{Transport: w, Health: h})
		w.ask(u, 50)
		if got := states(u); got != "a b" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestCheckHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a/base", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{Path: "/healthz", Interval: 10 * time.Second, MaxEjected: 1},
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- u.CheckHealth(ctx) }()
		synctest.Wait()
		if w.traced["a/base/healthz"] != 1 || w.traced["b/healthz"] != 1 {
			t.Errorf("the first round: %v", w.traced)
		}
		round := func(n int) { time.Sleep(time.Duration(n) * 10600 * time.Millisecond); synctest.Wait() }
		w.set("a", 503)
		round(2)
		if got := states(u); got != "a b" {
			t.Errorf("after two: %s", got)
		}
		round(1)
		if got := states(u); got != "-a b" {
			t.Errorf("after three: %s", got)
		}
		if got := w.ask(u, 4); got["b"] != 4 {
			t.Errorf("asked %v", got)
		}
		w.heal("a")
		round(1)
		if got := states(u); got != "-a b" {
			t.Errorf("after one pass: %s", got)
		}
		round(2)
		if got := states(u); got != "a b" {
			t.Errorf("after two passes: %s", got)
		}
		// An added target is probed, a removed one is not.
		u.SetTargets(gateway.MustTargets("http://b", "http://c"))
		w.mu.Lock()
		clear(w.traced)
		w.mu.Unlock()
		round(1)
		if w.traced["a/base/healthz"] != 0 || w.traced["c/healthz"] == 0 {
			t.Errorf("after SetTargets: %v", w.traced)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("CheckHealth: %v", err)
		}
	})
	if err := gateway.NewUpstream("u", nil, nil).CheckHealth(context.Background()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("without a path: %v", err)
	}
}

func TestProbesEndEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{Path: "/", EjectFor: time.Hour, Interval: time.Second},
		})
		w.set("a", 0)
		w.ask(u, 10)
		if got := states(u); got != "-a b" {
			t.Errorf("ejected: %s", got)
		}
		w.heal("a")
		ctx, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
		defer cancel()
		u.CheckHealth(ctx)
		if got := states(u); got != "a b" {
			t.Errorf("after two passes: %s", got)
		}
	})
}

func TestPassesBeforeEjectionDoNotEndIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(),
			Health: gateway.HealthOptions{Path: "/", EjectFor: math.MaxInt64, Interval: time.Second, Healthy: 3},
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		go u.CheckHealth(ctx)
		for round := range 2 { // EjectFor cannot be doubled
			time.Sleep(10 * time.Second)
			w.set("a", 503)
			w.ask(u, 6)
			w.heal("a")
			time.Sleep(1800 * time.Millisecond)
			if got := states(u); got != "-a b" {
				t.Errorf("round %d, after two passes: %s", round, got)
			}
			time.Sleep(2 * time.Second)
			if got := states(u); got != "a b" {
				t.Errorf("round %d, after three passes: %s", round, got)
			}
		}
	})
}

func TestHealthOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]gateway.UpstreamOptions{
		"interval":    {Health: gateway.HealthOptions{Interval: -1}},
		"timeout":     {Health: gateway.HealthOptions{Timeout: -1}},
		"eject for":   {Health: gateway.HealthOptions{EjectFor: -1}},
		"max ejected": {Health: gateway.HealthOptions{MaxEjected: 2}},
		"path":        {Health: gateway.HealthOptions{Path: "healthz"}},
		"attempts":    {Retry: gateway.RetryOptions{Attempts: -1}},
	} {
		if got := panicOf(func() { gateway.NewUpstream("u", nil, &o) }); !strings.HasPrefix(got, "gateway: NewUpstream: ") {
			t.Errorf("%s: panicked with %q", name, got)
		}
	}
}

// A panic in the transport fails a probe. It does not end the process.
func TestProbePanics(t *testing.T) {
	logged := captureDefaultLog(t)
	synctest.Test(t, func(t *testing.T) {
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Transport: roundTrip(func(*http.Request) (*http.Response, error) { panic("transport") }),
			Health:    gateway.HealthOptions{Path: "/", Unhealthy: 1, Interval: time.Minute},
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		u.CheckHealth(ctx)
		if got := u.Status()[0].Reason; got != "probe: panic: transport" {
			t.Errorf("reason %q", got)
		}
	})
	if n := strings.Count(logged.String(), "a probe panicked"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged)
	}
}

// The reason is that of what keeps the target out now.
func TestReasonIsWhatHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{Path: "/", Unhealthy: 1, EjectFor: time.Minute},
		})
		w.set("a", 503)
		probe := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			u.CheckHealth(ctx)
		}
		w.ask(u, 2)
		const ejected = "ejected: 1 failures in a row, the last: upstream_error, status 503"
		if got := u.Status()[0].Reason; got != ejected {
			t.Errorf("ejected: %q", got)
		}
		probe()
		if got := u.Status()[0].Reason; got != "probe: status 503; "+ejected {
			t.Errorf("both: %q", got)
		}
		time.Sleep(time.Minute)
		if got := u.Status()[0].Reason; got != "probe: status 503" {
			t.Errorf("the ejection has ended: %q", got)
		}
		w.heal("a")
		probe()
		probe()
		if got := u.Status()[0]; got.Reason != "" || !got.Healthy {
			t.Errorf("back: %+v", got)
		}
	})
}
