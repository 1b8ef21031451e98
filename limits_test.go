package gateway_test

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// The largest number works as "no limit" in every option that is a limit.
func TestLargestNumberIsNoLimit(t *testing.T) {
	const most, forever = math.MaxInt64, time.Duration(math.MaxInt64)
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	defer echo.Close()
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"keys":[]}`) }))
	defer keys.Close()

	newUpstream := func(transport http.RoundTripper) *gateway.Upstream {
		return gateway.NewUpstream("u", gateway.MustTargets(echo.URL), &gateway.UpstreamOptions{
			Transport: transport, Timeout: forever, Idle: forever,
			Circuit: gateway.NewCircuit("c", &gateway.CircuitOptions{
				Failures: most, Ratio: 1, MinRequests: most, Window: forever, SlowCall: forever, OpenFor: forever,
			}),
			Retry:  gateway.RetryOptions{Attempts: most, Backoff: forever, Budget: math.Inf(1), MaxBodyBytes: most},
			Health: gateway.HealthOptions{Path: "/", Interval: forever, Timeout: forever, Healthy: most, Unhealthy: most, EjectFor: forever},
		})
	}
	u := newUpstream(gateway.NewTransportUnderTest(&gateway.TransportOptions{
		DialTimeout: forever, MaxIdlePerHost: most, MaxPerHost: most, IdleTimeout: forever, Ping: forever,
	}))
	quote := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `1`) }))
	proxy := gateway.Proxy(u, &gateway.ProxyOptions{MaxBodyBytes: most, MaxFieldBytes: most})
	shadowed := make(chan bool, 3)
	shadow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy.ServeHTTP(w, r)
		shadowed <- true
	})
	largest := &gateway.LimiterOptions{MaxKeys: most}
	limited := func(l gateway.Limiter) http.Handler {
		return gateway.RateLimit(l, gateway.KeyByIP, &gateway.RateLimitOptions{MaxWait: forever, Cost: func(*http.Request) int { return 1 }})(proxy)
	}
	for name, h := range map[string]http.Handler{
		"Proxy":     proxy,
		"Timeout":   gateway.Timeout(forever)(proxy),
		"Mirror":    gateway.Mirror(shadow, &gateway.MirrorOptions{MaxBodyBytes: most, MaxInFlight: most, Timeout: forever})(proxy),
		"Aggregate": gateway.Aggregate([]gateway.Part{{Name: "a", From: quote, Path: "/", Timeout: forever}}, &gateway.AggregateOptions{Timeout: forever, MaxBytes: most, MaxTotalBytes: most, MaxInFlight: most}),
		"bucket":    limited(gateway.NewTokenBucket(1, most, largest)),
		"rate":      limited(gateway.NewTokenBucket(math.MaxFloat64, most, largest)),
		"queue":     limited(gateway.NewLeakyBucket(1, most, largest)),
		"window":    limited(gateway.NewFixedWindow(most, forever, largest)),
	} {
		for range 3 {
			srv := httptest.NewServer(h)
			res, err := http.Post(srv.URL, "text/plain", strings.NewReader("hello"))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			srv.Close()
			want := "hello"
			if name == "Aggregate" {
				want = `{"a":1}` + "\n"
			}
			if err != nil || res.StatusCode != 200 || string(body) != want {
				t.Errorf("%s: %d %q, %v", name, res.StatusCode, body, err)
			}
		}
	}

	for range 3 { // a shadow request that found the target closed would wait forever before it tries again
		<-shadowed
	}

	set, err := gateway.NewJWKS(keys.URL, &gateway.JWKSOptions{MaxBytes: most, MaxAge: forever, MinInterval: forever})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Key(t.Context(), "k", "RS256"); err == nil || !strings.Contains(err.Error(), "among 0") {
		t.Errorf("JWKS: %v", err)
	}
	gateway.NewJWT(set, gateway.JWTOptions{Issuer: "i", Audience: "a", Algorithms: []string{"RS256"}, Leeway: forever, CacheSize: most, MaxBytes: most})
	if _, err := gateway.NewIntrospection(keys.URL, gateway.IntrospectionOptions{CacheFor: forever, CacheSize: most}); err != nil {
		t.Error(err)
	}

	synctest.Test(t, func(t *testing.T) { // probes once, and not without a pause
		probes := 0
		u := newUpstream(roundTrip(func(r *http.Request) (*http.Response, error) {
			probes++
			return answered(r, 200, http.NoBody), nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if u.CheckHealth(ctx); probes != 1 {
			t.Errorf("%d probes", probes)
		}
	})
}

// A client's Content-Length is not trusted with memory, however much Mirror may keep.
func TestMirrorWithoutLimitBelievesNoLength(t *testing.T) {
	h := gateway.Mirror(http.NotFoundHandler(), &gateway.MirrorOptions{MaxBodyBytes: math.MaxInt64})(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		r.Body.Read(make([]byte, 8))
	}))
	r := httptest.NewRequest("POST", "/", bytes.NewReader([]byte("hello")))
	r.ContentLength = math.MaxInt64
	h.ServeHTTP(httptest.NewRecorder(), r)
}
