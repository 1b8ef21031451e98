package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// BenchmarkUpstream is a round trip without a network.
func BenchmarkUpstream(b *testing.B) {
	for _, bm := range []struct {
		name string
		body string
		opts gateway.UpstreamOptions
	}{
		{"plain", "", gateway.UpstreamOptions{}},
		{"with a circuit", "", gateway.UpstreamOptions{Circuit: gateway.NewCircuit("c", nil)}},
		{"with retries and a body", "body", gateway.UpstreamOptions{Retry: gateway.RetryOptions{Attempts: 3}}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			bm.opts.Transport = instant{}
			u := gateway.NewUpstream("u", gateway.MustTargets("http://10.0.0.1", "http://10.0.0.2"), &bm.opts)
			r := request()
			b.ReportAllocs()
			for b.Loop() {
				if bm.body != "" {
					r.Body = io.NopCloser(strings.NewReader(bm.body))
				}
				res, err := u.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				res.Body.Close()
			}
		})
	}
}

// BenchmarkBalancer is one pick, and its end.
func BenchmarkBalancer(b *testing.B) {
	r := request()
	for _, bm := range []struct {
		name     string
		balancer func() gateway.Balancer
	}{
		{"RoundRobin", gateway.RoundRobin},
		{"LeastPending", gateway.LeastPending},
		{"HashBy", func() gateway.Balancer { return gateway.HashBy(gateway.KeyByHeader("Accept")) }},
	} {
		for _, n := range []int{2, 50} {
			b.Run(fmt.Sprintf("%s of %d", bm.name, n), func(b *testing.B) {
				balancer, targets := bm.balancer(), weighted(make([]int, n)...)
				b.ReportAllocs()
				for b.Loop() {
					if _, done := balancer.Pick(r, targets); done != nil {
						done(gateway.OutcomeOK)
					}
				}
			})
		}
	}
}

// BenchmarkObserve is a request through Observe alone.
func BenchmarkObserve(b *testing.B) {
	run(b, gateway.Observe(nil)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), request())
}
