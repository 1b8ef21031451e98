package gateway_test

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stats gateway.Stats
		if got := stats.Routes(); len(got) != 0 {
			t.Errorf("of nothing: %v", got)
		}
		var rt gateway.Router
		rt.Use(gateway.Observe(&gateway.ObserveOptions{Stats: &stats}))
		rt.Add(gateway.Route{Name: "users", Pattern: "GET /users/{id}", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var n int
			fmt.Sscan(r.PathValue("id"), &n)
			time.Sleep(time.Duration(n) * time.Millisecond)
		})})
		rt.Handle("GET /fails", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
		rt.Handle("GET /panics", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("bug") }))
		ask := func(path string) {
			defer func() { recover() }()
			rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
		}
		began := time.Now()
		for n := range 100 {
			ask(fmt.Sprintf("/users/%d", n+1))
		}
		if took := time.Since(began); took != 5050*time.Millisecond {
			t.Fatalf("took %v", took)
		}
		for range 3 {
			ask("/fails")
		}
		ask("/panics")
		ask("/nowhere")

		got := stats.Routes()
		if len(got) != 4 || got[0].Route != "" || got[1].Route != "GET /fails" || got[2].Route != "GET /panics" || got[3].Route != "users" {
			t.Fatalf("routes %v", got)
		}
		for _, tt := range []struct {
			i         int
			requests  int64
			outcome   gateway.Outcome
			errorRate float64
		}{
			{0, 1, gateway.OutcomeRejected, 0},
			{1, 3, gateway.OutcomeUpstreamError, 1},
			{2, 1, gateway.OutcomeInternal, 0},
			{3, 100, gateway.OutcomeOK, 0},
		} {
			s := got[tt.i]
			if s.Requests != tt.requests || len(s.Outcomes) != 1 || s.Outcomes[tt.outcome] != tt.requests || s.ErrorRate != tt.errorRate {
				t.Errorf("%q: %+v, want %+v", s.Route, s, tt)
			}
		}
		near := func(name string, got, want float64) {
			t.Helper()
			if math.Abs(got-want) > want/16 {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		users := got[3]
		near("P50", users.P50.Seconds(), 0.050)
		near("P95", users.P95.Seconds(), 0.095)
		near("P99", users.P99.Seconds(), 0.099)
		near("rate", users.Rate, 10)

		// The recent figures are forgotten, the totals are not.
		time.Sleep(10 * time.Second)
		users = stats.Routes()[3]
		if users.Requests != 100 || users.Rate != 0 || users.P99 != 0 {
			t.Errorf("later: %+v", users)
		}
	})
}

// A program that makes routes without end must not grow without end.
func TestStatsAreBounded(t *testing.T) {
	var stats gateway.Stats
	h := gateway.Observe(&gateway.ObserveOptions{Stats: &stats})
	for n := range 1500 {
		var rt gateway.Router
		rt.Handle(fmt.Sprintf("/%d", n), text("ok"))
		h(&rt).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", fmt.Sprintf("/%d", n), nil))
	}
	all := stats.Routes()
	if len(all) != 1025 {
		t.Fatalf("%d routes", len(all))
	}
	for _, s := range all {
		if want := map[bool]int64{true: 1500 - 1024, false: 1}[s.Route == "(other)"]; s.Requests != want {
			t.Errorf("%q: %d requests, want %d", s.Route, s.Requests, want)
		}
	}
}

func TestStatsConcurrently(t *testing.T) {
	var stats gateway.Stats
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Stats: &stats}))
	for n := range 20 {
		rt.Handle(fmt.Sprintf("/%d", n), text("ok"))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 2000 {
				rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", fmt.Sprintf("/%d", i%20), nil))
				if i%500 == 0 {
					stats.Routes()
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stats.Routes() {
		if s.Requests != 400 {
			t.Errorf("%q: %d requests", s.Route, s.Requests)
		}
	}
}

// BenchmarkObserveStats tells what Stats adds to a request.
func BenchmarkObserveStats(b *testing.B) {
	for _, tt := range []struct {
		name  string
		stats *gateway.Stats
	}{{"without", nil}, {"with", new(gateway.Stats)}} {
		b.Run(tt.name, func(b *testing.B) {
			h := gateway.Observe(&gateway.ObserveOptions{Stats: tt.stats})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			w := discardWriter{make(http.Header)}
			r := httptest.NewRequest("GET", "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}
