package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis"
)

const perMinute = 10 // for each user

// newGateway returns a gateway before a backend. Until ctx ends, it shares its circuit with the others.
func newGateway(ctx context.Context, client redis.UniversalClient, backend string, log *slog.Logger) http.Handler {
	limit := gatewayredis.NewTokenBucket(client, perMinute/60.0, perMinute, &gatewayredis.Options{Logger: log})
	circuit := gateway.NewCircuit("backend", &gateway.CircuitOptions{Failures: 3, OpenFor: 5 * time.Second})
	go gatewayredis.ShareCircuits(ctx, client, circuit)

	up := gateway.NewUpstream("backend", gateway.MustTargets(backend), &gateway.UpstreamOptions{Circuit: circuit})
	var rt gateway.Router
	rt.Use(gateway.RateLimit(limit, gateway.KeyByHeader("X-User"), nil))
	rt.Handle("GET /hello", gateway.Proxy(up, nil))
	return &rt
}
