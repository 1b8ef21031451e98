package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// ward is a pool of fake targets, each of which is as sick as its entry says.
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

// ask makes n requests and returns who got them.
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
		w.set("a", 500)
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
		w.set("b", 0)
		w.ask(u, 20)
		if got := states(u); got != "-a b c" {
			t.Errorf("a second of three: %s", got)
		}
		w.heal("b")
		w.ask(u, 4)
		// Back after a minute, out again after three more failures, for two.
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
		// A success ended the row: the next ejection is short again.
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

func TestAllOutAreTriedAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard()
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Transport: w, Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{MaxEjected: 1},
		})
		w.set("a", 500)
		w.set("b", 500)
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
		w.set("a", 500)
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
		// A target that comes is probed, one that goes is not.
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
			w.set("a", 500)
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

func TestSetTargets(t *testing.T) {
	w := newWard()
	release := make(chan bool)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/slow" {
				<-release
			}
			return w.RoundTrip(r)
		}),
		Balancer: gateway.RoundRobin(), Health: gateway.HealthOptions{EjectFor: time.Hour},
	})
	w.set("a", 500)
	w.ask(u, 10)
	done := make(chan error)
	go func() {
		res, err := u.RoundTrip(httptest.NewRequest("GET", "/slow", nil))
		if err == nil {
			res.Body.Close()
		}
		done <- err
	}()
	for u.Status()[1].Pending == 0 {
		runtime.Gosched()
	}
	u.SetTargets([]gateway.Target{gateway.MustTargets("http://c")[0], {URL: gateway.MustTargets("http://a")[0].URL, Weight: 3}, gateway.MustTargets("http://b")[0]})
	// What is known of those that stay stays known.
	if got := states(u); got != "c -a b" {
		t.Errorf("states %s", got)
	}
	if s := u.Status(); s[1].Target.Weight != 3 || s[2].Pending != 1 {
		t.Errorf("status %+v", s)
	}
	if got := w.ask(u, 10); got["c"] != 5 || got["b"] != 5 {
		t.Errorf("asked %v", got)
	}
	u.SetTargets(nil)
	close(release)
	if err := <-done; err != nil {
		t.Errorf("in flight: %v", err)
	}
	if _, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); !errors.Is(err, gateway.ErrNoTarget) {
		t.Errorf("without targets: %v", err)
	}
	defer func() {
		if got, _ := recover().(string); !strings.HasPrefix(got, "gateway: SetTargets: ") {
			t.Errorf("recovered %q", got)
		}
	}()
	u.SetTargets([]gateway.Target{{}})
}

func TestSetTargetsAtOnce(t *testing.T) {
	w := newWard()
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{Transport: w, Health: gateway.HealthOptions{Path: "/", Interval: time.Millisecond, EjectFor: time.Microsecond}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { u.CheckHealth(ctx) })
	for range 4 {
		wg.Go(func() {
			for i := range 300 {
				w.set("a", 500)
				if res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); err != nil {
					t.Error(err)
				} else {
					res.Body.Close()
				}
				w.heal("a")
				u.SetTargets(gateway.MustTargets("http://a", fmt.Sprintf("http://t%d", i%5)))
				u.Status()
			}
		})
	}
	go func() { wg.Wait() }()
	time.AfterFunc(100*time.Millisecond, cancel)
	wg.Wait()
	cancel()
}

func TestHashBy(t *testing.T) {
	b := gateway.HashBy(gateway.KeyByHeader("X-Key"))
	where := func(targets []gateway.Target, key string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Key", key)
		i, done := b.Pick(r, targets)
		if done != nil {
			done(gateway.OutcomeOK)
		}
		return targets[i].URL.Host
	}
	all := weighted(1, 1, 2, 1)
	const keys = 20_000
	before := map[string]string{}
	counts := map[string]int{}
	for i := range keys {
		key := fmt.Sprint("key-", i)
		before[key] = where(all, key)
		counts[before[key]]++
	}
	for host, share := range map[string]float64{"0": 0.2, "1": 0.2, "2": 0.4, "3": 0.2} {
		if got := float64(counts[host]) / keys; got < share-0.02 || got > share+0.02 {
			t.Errorf("target %s has %.3f of the keys, want %.2f", host, got, share)
		}
	}
	lost := append(append([]gateway.Target{}, all[:1]...), all[2:]...) // without 1
	for key, host := range before {
		after := where(lost, key)
		if host != "1" && after != host {
			t.Fatalf("%s moved from %s to %s", key, host, after)
		}
	}
	// Without a key, by chance.
	got := map[int]bool{}
	for range 100 {
		i, _ := b.Pick(httptest.NewRequest("GET", "/", nil), all)
		got[i] = true
	}
	if len(got) < 3 {
		t.Errorf("requests without a key went to %v", got)
	}
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
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.HasPrefix(got, "gateway: NewUpstream: ") {
					t.Errorf("%s: recovered %q", name, got)
				}
			}()
			gateway.NewUpstream("u", nil, &o)
		}()
	}
}
