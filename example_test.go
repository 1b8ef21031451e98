package gateway_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"time"

	"github.com/golang-jwt/jwt/v5"

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

// Two identity providers may each have a user with the subject "1". The backend is told the issuer beside the subject,
// in a field that no client can set.
func ExampleIssuers() {
	const staff, customers = "https://staff.example", "https://customers.example"
	verifying, signing := make(map[string]*gateway.JWT), make(map[string]ed25519.PrivateKey)
	for _, issuer := range []string{staff, customers} {
		public, private, err := ed25519.GenerateKey(nil) // in earnest, NewOIDC or NewJWKS
		if err != nil {
			log.Fatal(err)
		}
		verifying[issuer] = gateway.NewJWT(gateway.StaticKey(public), gateway.JWTOptions{
			Issuer: issuer, Audience: "api", Algorithms: []string{"EdDSA"},
		})
		signing[issuer] = private
	}

	backend := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("user %s of %s\n", r.Header.Get("X-User-ID"), r.Header.Get("X-User-Issuer"))
	}))
	h := gateway.Auth(gateway.Issuers(verifying), nil)(gateway.Proxy(backend, &gateway.ProxyOptions{
		Identity: map[string]string{"X-User-ID": "sub", "X-User-Issuer": "iss"},
	}))

	for _, issuer := range []string{staff, customers} {
		token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"iss": issuer, "aud": "api", "sub": "1", "exp": time.Now().Add(time.Hour).Unix(),
		}).SignedString(signing[issuer])
		if err != nil {
			log.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("X-User-Issuer", staff) // forged, and removed
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	// Output:
	// user 1 of https://staff.example
	// user 1 of https://customers.example
}
