package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func BenchmarkCircuit(b *testing.B) {
	for _, bench := range []struct {
		name string
		opts *gateway.CircuitOptions
	}{
		{"Row", nil},
		{"RatioAndSlowCall", &gateway.CircuitOptions{Ratio: 0.5, SlowCall: time.Second}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := gateway.NewCircuit("c", bench.opts)
			b.ReportAllocs()
			for b.Loop() {
				done, _ := c.Allow()
				done(gateway.OutcomeOK, 200)
			}
		})
	}
	b.Run("Parallel", func(b *testing.B) {
		c := gateway.NewCircuit("c", nil)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				done, _ := c.Allow()
				done(gateway.OutcomeOK, 200)
			}
		})
	})
	b.Run("Open", func(b *testing.B) {
		c := gateway.NewCircuit("c", nil)
		c.Trip(time.Hour)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = c.Allow()
		}
	})
}

func BenchmarkBreaker(b *testing.B) {
	noop := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	stale := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	open := gateway.NewCircuit("open", nil)
	open.Trip(time.Hour)
	closed := gateway.NewCircuit("closed", nil)
	for _, bench := range []struct {
		name string
		h    http.Handler
	}{
		{"Closed", gateway.Breaker(closed, nil)(noop)},
		{"ClosedTwice", gateway.Breaker(closed, nil)(gateway.Breaker(closed, nil)(noop))}, // the second, with a record there
		{"Refused", gateway.Breaker(open, nil)(noop)},
		{"Fallback", gateway.Breaker(open, &gateway.BreakerOptions{Fallback: stale})(noop)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			w := discardWriter{make(http.Header)}
			r := httptest.NewRequest("GET", "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				bench.h.ServeHTTP(w, r)
			}
		})
	}
}
