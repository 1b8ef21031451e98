package gateway_test

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// A whole gateway: it routes, authenticates, limits, breaks circuits, forwards, aggregates, measures and
// traces.
func Example() {
	keys, err := gateway.NewJWKS("https://id.example/.well-known/jwks.json", nil)
	if err != nil {
		log.Fatal(err)
	}
	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: "https://id.example", Audience: "api", Algorithms: []string{"RS256"}})

	users := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1:80", "http://10.0.0.2:80"), nil)
	payments := gateway.NewUpstream("payments", gateway.MustTargets("http://10.0.0.5:80"), &gateway.UpstreamOptions{
		Timeout: 2 * time.Second,
		Circuit: gateway.NewCircuit("payments", nil),
	})

	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: slog.Default()}),
		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
		gateway.RateLimit(gateway.NewTokenBucket(10, 20, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil))
	rt.Handle("POST /checkout", gateway.Proxy(payments, nil), gateway.RequireScopes("pay"))
	rt.Handle("GET /home", gateway.Aggregate([]gateway.Part{
		{Name: "user", From: users, Path: "/me"},
		{Name: "orders", From: payments, Path: "/orders?user={user.id}", Optional: true, Timeout: 300 * time.Millisecond},
	}, nil))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	srv := &http.Server{Addr: ":8080", Handler: &rt, ReadHeaderTimeout: 5 * time.Second}
	if err := gateway.Serve(ctx, srv, nil); err != nil {
		log.Fatal(err)
	}
}
