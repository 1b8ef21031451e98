//go:build linux

package main

import (
	"net/http"

	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/seed-96248d0c/gateway"
)

// gatewayHandler is this library, built by one of the functions below.
func gatewayHandler(build func(target string, key any) http.Handler) func(target, dir string) (http.Handler, error) {
	return func(target, dir string) (http.Handler, error) {
		key, err := tokenKey(dir)
		if err != nil {
			return nil, err
		}
		return build("http://"+target, key), nil
	}
}

// bare is Proxy and Upstream with their defaults, and nothing around them.
func bare(target string, _ any) http.Handler {
	u := gateway.NewUpstream("files", gateway.MustTargets(target), nil)
	proxy, home := gateway.Proxy(u, nil), gateway.Aggregate(parts(u), nil)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == homePath {
			home.ServeHTTP(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func parts(u *gateway.Upstream) (out []gateway.Part) {
	for _, name := range partNames {
		out = append(out, gateway.Part{Name: name, From: u, Path: partPath})
	}
	return out
}

// everyConcern has no log, and its metrics go nowhere: that is Observe in a process that sets no MeterProvider.
func everyConcern(target string, key any) http.Handler { return whole(target, key, nil) }

// everyConcernAndMetrics collects metrics as a process with Prometheus does, but is never scraped.
func everyConcernAndMetrics(target string, key any) http.Handler {
	return whole(target, key, sdk.NewMeterProvider(sdk.WithReader(sdk.NewManualReader())))
}

// never is a limit that no load of this program reaches.
const never = 1e9

func whole(target string, key any, meter metric.MeterProvider) http.Handler {
	tokens := gateway.NewJWT(gateway.StaticKey(key), gateway.JWTOptions{Issuer: issuer, Audience: audience, Algorithms: []string{"RS256"}})
	files := gateway.NewUpstream("files", gateway.MustTargets(target), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("files", &gateway.CircuitOptions{Meter: meter}),
		Retry:   gateway.RetryOptions{Attempts: 3},
		Meter:   meter,
	})
	rt := new(gateway.Router)
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Meter: meter}),
		gateway.RateLimit(gateway.NewTokenBucket(never, never, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
		gateway.RateLimit(gateway.NewTokenBucket(never, never, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
	)
	rt.Handle("GET /files/{name}", gateway.Proxy(files, nil), gateway.RequireScopes("read"))
	rt.Handle("POST /files/{name}", gateway.Proxy(files, nil), gateway.RequireScopes("write"))
	rt.Handle("GET "+homePath, gateway.Aggregate(parts(files), nil), gateway.RequireScopes("read"))
	return rt
}
