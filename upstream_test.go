package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestParseTargets(t *testing.T) {
	for raw, ok := range map[string]bool{
		"http://10.0.0.1:80": true, "https://a.example/base": true, "h2c://[::1]:50051": true,
		"10.0.0.1:80": false, "ftp://x": false, "http://": false, "http://u:p@x": false, "http://x?q": false, "http://x#f": false,
		"http:x": false, "": false, "http://x/%zz": false, "//x": false,
		"unix:///run/app.sock": true, "unix:///run/my%20app.sock": true, "unix:///run/%C3%A4": true,
		"unix://run/app.sock": false, "unix://": false, "unix:///": false, "unix:///run/": false, "unix://@abstract": false,
		"unix://localhost/run/app.sock": false, "unix:run/app.sock": false, "unix:///run/app.sock?q": false, "unix:///run/app.sock#f": false,
		"unix:///run/a%00b": false, "unix:///" + strings.Repeat("a", 106): true, "unix:///" + strings.Repeat("a", 107): false,
	} {
		targets, err := gateway.ParseTargets(raw)
		if (err == nil) != ok {
			t.Errorf("%q: %v", raw, err)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "gateway: ParseTargets: ") || strings.Contains(err.Error(), ":p@")) {
			t.Errorf("%q: %v", raw, err)
		}
		if ok && (len(targets) != 1 || targets[0].URL.String() != raw) {
			t.Errorf("%q: %v", raw, targets)
		}
	}
	if panicOf(func() { gateway.MustTargets("ftp://x") }) == "" {
		t.Error("MustTargets took it")
	}
}

func TestUpstreamSends(t *testing.T) {
	var got *http.Request
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r
		return answered(r, 200, http.NoBody), nil
	})
	for target, want := range map[string]string{
		"http://t.example":         "http://t.example/a%2Fb?q=1",
		"https://t.example:1/":     "https://t.example:1/a%2Fb?q=1",
		"http://t.example/base":    "http://t.example/base/a%2Fb?q=1",
		"http://t.example/b%2Fc/":  "http://t.example/b%2Fc/a%2Fb?q=1",
		"h2c://t.example/x y/%7Bz": "h2c://t.example/x%20y/%7Bz/a%2Fb?q=1",
	} {
		u := gateway.NewUpstream("u", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
		r := httptest.NewRequest("GET", "/a%2Fb?q=1", nil)
		r.Host = ""
		before := *r.URL
		res, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got.URL.String() != want || got.Host != "" {
			t.Errorf("to %s: sent %s, Host %q, want %s", target, got.URL, got.Host, want)
		}
		if *r.URL != before || got == r {
			t.Errorf("the request was changed: %v", r.URL)
		}
	}
	if n := gateway.NewUpstream("users", nil, nil).Name(); n != "users" {
		t.Errorf("name %q", n)
	}
}

func TestUpstreamCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, status = 0, 500
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2, OpenFor: time.Minute})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{Circuit: c, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			return answered(r, status, http.NoBody), nil
		})})
		ask := func() error {
			res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			if err == nil {
				res.Body.Close()
			}
			return err
		}
		ask()
		ask()
		if err := ask(); !errors.Is(err, gateway.ErrCircuitOpen) || asked != 2 {
			t.Errorf("%v after %d", err, asked)
		}
		rec := recorded(gateway.Proxy(u, nil), nil)
		if wait, _ := strconv.Atoi(rec.Header().Get("Retry-After")); rec.Code != 503 || wait < 60 || wait > 66 {
			t.Errorf("got %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
		}
		time.Sleep(time.Minute)
		status = 200
		if err := ask(); err != nil || c.State() != gateway.CircuitClosed {
			t.Errorf("%v, %v", err, c.State())
		}
	})
}

func TestNewUpstreamPanics(t *testing.T) {
	for name, targets := range map[string][]gateway.Target{
		"nil URL":         {{}},
		"no host":         {{URL: &url.URL{Scheme: "http"}}},
		"scheme":          {{URL: &url.URL{Scheme: "ws", Host: "x"}}},
		"negative weight": {{URL: &url.URL{Scheme: "http", Host: "x"}, Weight: -1}},
	} {
		if got := panicOf(func() { gateway.NewUpstream("u", targets, nil) }); !strings.HasPrefix(got, "gateway: NewUpstream: ") {
			t.Errorf("%s: panicked with %q", name, got)
		}
	}
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
	w.set("a", 503)
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
	// Targets that were there before keep their state.
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
	if got := panicOf(func() { u.SetTargets([]gateway.Target{{}}) }); !strings.HasPrefix(got, "gateway: SetTargets: ") {
		t.Errorf("panicked with %q", got)
	}
}

// TestSetTargetsDuringRetries needs the race detector: a retry chooses among targets whose weights change.
func TestSetTargetsDuringRetries(t *testing.T) {
	answer := roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, 503, http.NoBody), nil })
	targets := gateway.MustTargets("http://a", "http://b")
	u := gateway.NewUpstream("u", targets, &gateway.UpstreamOptions{
		Transport: answer, Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1, Budget: 1}, Health: gateway.HealthOptions{Unhealthy: -1},
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 300 {
			targets[0].Weight, targets[1].Weight = 1+i, 300-i
			u.SetTargets(targets)
		}
	})
	for range 300 {
		if res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); err != nil || res.StatusCode != 503 {
			t.Fatal(res, err)
		}
	}
	wg.Wait()
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
				w.set("a", 503)
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
	time.AfterFunc(100*time.Millisecond, cancel)
	wg.Wait()
	cancel()
}
