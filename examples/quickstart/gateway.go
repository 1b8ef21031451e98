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

// newGateway is the whole gateway, and the console that shows it.
func newGateway(s settings) (handler, console http.Handler, err error) {
	keys, err := gateway.NewJWKS(s.keySet, nil)
	if err != nil {
		return nil, nil, err
	}
	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: s.issuer, Audience: s.audience, Algorithms: []string{"ES256"}})
	var upstreams []*gateway.Upstream
	upstream := func(name string, circuit *gateway.Circuit) *gateway.Upstream {
		u := gateway.NewUpstream(name, gateway.MustTargets(s.backends(name)), &gateway.UpstreamOptions{
			Timeout: 10 * time.Second, Circuit: circuit, Meter: s.meter,
		})
		upstreams = append(upstreams, u)
		return u
	}
	paymentsCircuit := gateway.NewCircuit("payments", &gateway.CircuitOptions{Failures: 3, OpenFor: 2 * time.Second, Meter: s.meter})
	users, payments := upstream("users", nil), upstream("payments", paymentsCircuit)
	recommendations, continueWatching := upstream("recommendations", nil), upstream("continue-watching", nil)
	top10, myList, newReleases := upstream("top-10", nil), upstream("my-list", nil), upstream("new-releases", nil)

	perAddress, checkouts := gateway.NewTokenBucket(100, 200, nil), gateway.NewTokenBucket(0.5, 5, nil)
	stats := new(gateway.Stats)

	rt := new(gateway.Router)
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: s.log, Meter: s.meter, Stats: stats}),
		gateway.RateLimit(perAddress, gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil))
	rt.Handle("POST /checkout", gateway.Proxy(payments, &gateway.ProxyOptions{MaxBodyBytes: 64 << 10}),
		gateway.RequireScopes("pay"),
		gateway.RateLimit(checkouts, gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "checkout", Refund: true}),
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
	console = gateway.Console(gateway.ConsoleOptions{
		Router: rt, Stats: stats, Upstreams: upstreams, Circuits: []*gateway.Circuit{paymentsCircuit},
		Limiters: map[string]gateway.Limiter{"address": perAddress, "checkout": checkouts},
	})
	return rt, console, nil
}
