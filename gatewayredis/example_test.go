package gatewayredis_test

import (
	"context"
	"log"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis"
)

// One limit for each user over all gateways, and one circuit that opens for all.
func Example() {
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: []string{"redis:6379"}, ContextTimeoutEnabled: true,
	})
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	perUser := gatewayredis.NewTokenBucket(client, 100, 200, nil)
	circuit := gateway.NewCircuit("payments", nil)
	go gatewayredis.ShareCircuits(ctx, client, circuit)

	payments := gateway.NewUpstream("payments", gateway.MustTargets("http://10.0.0.5:80"), &gateway.UpstreamOptions{
		Circuit: circuit,
	})
	var rt gateway.Router
	rt.Use(gateway.RateLimit(perUser, gateway.KeyByHeader("X-User"), nil))
	rt.Handle("POST /checkout", gateway.Proxy(payments, nil))
	log.Print(gateway.Serve(ctx, &http.Server{Addr: ":8080", Handler: &rt}, nil))
}

// With leases, most decisions of a limit that is used much need no round trip.
func ExampleNewFixedWindow() {
	client := redis.NewClient(&redis.Options{Addr: "redis:6379", ContextTimeoutEnabled: true})
	defer client.Close()
	perTenant := gatewayredis.NewFixedWindow(client, 1_000_000, 24*time.Hour, &gatewayredis.Options{Lease: 100})
	gateway.RateLimit(perTenant, gateway.KeyByHeader("X-Tenant"), nil)
}
