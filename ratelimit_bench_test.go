package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// BenchmarkRateLimit measures what RateLimit adds to a request that has a record already.
func BenchmarkRateLimit(b *testing.B) {
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, tt := range []struct {
		name string
		key  gateway.KeyFunc
		opts *gateway.RateLimitOptions
	}{
		{"one key", byName("alice"), nil},
		{"one key, no fields", byName("alice"), &gateway.RateLimitOptions{Headers: gateway.RateLimitNone}},
		{"one key, refund", byName("alice"), &gateway.RateLimitOptions{Headers: gateway.RateLimitNone, Refund: true}},
		{"by IP", gateway.KeyByIP, nil},
	} {
		b.Run(tt.name, func(b *testing.B) {
			limited := gateway.RateLimit(gateway.NewTokenBucket(1e6, 1e9, nil), tt.key, tt.opts)(nothing)
			gateway.TrustProxies("X-Forwarded-For")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b.ReportAllocs()
				for b.Loop() {
					limited.ServeHTTP(w, r)
					clear(w.Header())
				}
			})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		})
	}
}
