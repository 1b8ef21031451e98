package examples_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/rs/cors"

	"github.com/seed-96248d0c/gateway"
)

// TestCORS has github.com/rs/cors where a preflight, which has no credentials, comes to it before Auth: in Use, in
// With and on one route.
func TestCORS(t *testing.T) {
	policy := cors.New(cors.Options{
		AllowedOrigins: []string{"https://app.example"}, AllowedMethods: []string{"GET", "PUT"},
		AllowedHeaders: []string{"Authorization"}, AllowCredentials: true,
	}).Handler
	auth := gateway.Auth(gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		if r.Header.Get("Authorization") == "" {
			return nil, gateway.ErrNoCredentials
		}
		return &gateway.Identity{Subject: "u"}, nil
	}), nil)
	item := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "item") })
	for name, build := range map[string]func(rt *gateway.Router){
		"Use":   func(rt *gateway.Router) { rt.Use(policy, auth); rt.Handle("PUT /items/{id}", item) },
		"With":  func(rt *gateway.Router) { rt.With(policy, auth).Handle("PUT /items/{id}", item) },
		"route": func(rt *gateway.Router) { rt.Handle("PUT /items/{id}", item, policy, auth) },
		"beside a site": func(rt *gateway.Router) {
			rt.Handle("/", http.NotFoundHandler())
			rt.With(policy, auth).Handle("PUT /items/{id}", item)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var rt gateway.Router
			build(&rt)
			srv := httptest.NewServer(&rt)
			defer srv.Close()
			for _, tt := range []struct {
				method, origin, token string
				status                int
				allowed               string
			}{
				{"OPTIONS", "https://app.example", "", 204, "https://app.example"},
				{"OPTIONS", "https://evil.example", "", 204, ""},
				{"PUT", "https://app.example", "t", 200, "https://app.example"},
				{"PUT", "https://app.example", "", 401, "https://app.example"}, // so that the page can read why
			} {
				r, err := http.NewRequest(tt.method, srv.URL+"/items/7", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Origin", tt.origin)
				if tt.method == "OPTIONS" {
					r.Header.Set("Access-Control-Request-Method", "PUT")
					r.Header.Set("Access-Control-Request-Headers", "authorization")
				}
				if tt.token != "" {
					r.Header.Set("Authorization", tt.token)
				}
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if got := res.Header.Get("Access-Control-Allow-Origin"); res.StatusCode != tt.status || got != tt.allowed {
					t.Errorf("%s from %s: %s, allowed %q; want %d, %q", tt.method, tt.origin, res.Status, got, tt.status, tt.allowed)
				}
			}
		})
	}
}
