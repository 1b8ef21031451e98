package main

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/seed-96248d0c/gateway"
	"go.opentelemetry.io/otel/metric"
)

// settings are what a gateway is told from outside.
type settings struct {
	issuer   string                   // whose tokens are believed
	keySet   string                   // URL of the issuer's keys
	audience string                   // for whom its tokens must be
	backends func(name string) string // a backend's URL
	log      *slog.Logger
	meter    metric.MeterProvider
}

// newGateway is the whole gateway.
func newGateway(s settings) (http.Handler, error) {
	keys, err := gateway.NewJWKS(s.keySet, nil)
	if err != nil {
		return nil, err
	}
	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: s.issuer, Audience: s.audience, Algorithms: []string{"ES256"}})
	upstream := func(name string, circuit *gateway.Circuit) *gateway.Upstream {
		return gateway.NewUpstream(name, gateway.MustTargets(s.backends(name)), &gateway.UpstreamOptions{
			Timeout: 10 * time.Second, Circuit: circuit, Meter: s.meter,
		})
	}
	users := upstream("users", nil)
	payments := upstream("payments", gateway.NewCircuit("payments", &gateway.CircuitOptions{
		Failures: 3, OpenFor: 2 * time.Second, Meter: s.meter,
	}))
	recommendations, continueWatching := upstream("recommendations", nil), upstream("continue-watching", nil)
	top10, myList, newReleases := upstream("top-10", nil), upstream("my-list", nil), upstream("new-releases", nil)

	rt := new(gateway.Router)
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: s.log, Meter: s.meter}),
		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil))
	rt.Handle("POST /checkout", gateway.Proxy(payments, &gateway.ProxyOptions{MaxBodyBytes: 64 << 10}),
		gateway.RequireScopes("pay"),
		gateway.RateLimit(gateway.NewTokenBucket(0.5, 5, nil), gateway.KeyBySubject,
			&gateway.RateLimitOptions{Name: "checkout", Refund: true}),
	)
	rt.Handle("GET /homepage", gateway.Aggregate([]gateway.Part{
		{Name: "continue-watching", From: continueWatching, Path: "/row", Optional: true},
		{Name: "my-list", From: myList, Path: "/row", Optional: true},
		{Name: "top-10", From: top10, Path: "/row"},
		{Name: "recommendations", From: recommendations, Path: "/row", Optional: true, Timeout: time.Second},
		{Name: "new-releases", From: newReleases, Path: "/row", Optional: true},
	}, nil))
	rt.Handle("GET /mobile/homepage", gateway.Aggregate([]gateway.Part{
		{Name: "continue", From: continueWatching, Path: "/row?limit=1", Pick: "/items/0", Optional: true},
		{Name: "top", From: top10, Path: "/row?limit=3", Pick: "/items"},
	}, nil))
	return rt, nil
}
