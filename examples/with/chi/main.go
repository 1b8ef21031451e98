// Chi combines the gateway with github.com/go-chi/chi: its router outside, with the gateway's middleware and
// Proxy in it, and inside, as the handler of a route of gateway.Router.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"

	"github.com/go-chi/chi/v5"

	"github.com/seed-96248d0c/gateway"
)

// newOutside has chi choose the route. Put Observe into Use of the outermost router, and not around it: chi
// tells a route's pattern, which labels metrics and logs, only to what runs inside. Proxy takes path values
// from chi too.
func newOutside(users http.RoundTripper, auth gateway.Middleware, logger *slog.Logger) http.Handler {
	r := chi.NewRouter()
	r.Use(gateway.Observe(&gateway.ObserveOptions{Logger: logger}))
	r.Get("/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "well") })
	r.Group(func(r chi.Router) {
		r.Use(auth)
		r.Method("GET", "/users/{id}", gateway.Proxy(users, &gateway.ProxyOptions{Path: "/v1/people/{id}"}))
	})
	return r
}

// newInside has the gateway choose the route first. A service with a router of its own stays as it is.
func newInside(auth gateway.Middleware, logger *slog.Logger) http.Handler {
	service := chi.NewRouter()
	service.Get("/shop/items/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "item %s for %s", chi.URLParam(r, "id"), r.Header.Get("X-User-ID"))
	})
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Logger: logger}), auth)
	rt.Handle("/shop/", service)
	return &rt
}

// byKey authenticates by a header field, as a stand-in for NewOIDC.
func byKey(r *http.Request) (*gateway.Identity, error) {
	switch r.Header.Get("X-API-Key") {
	case "":
		return nil, gateway.ErrNoCredentials
	case "key of alice":
		return &gateway.Identity{Subject: "alice"}, nil
	}
	return nil, gateway.ErrUnauthenticated
}

func main() {
	users := gateway.NewUpstream("users", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	auth := gateway.Auth(gateway.AuthenticatorFunc(byKey), nil)
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	mux := http.NewServeMux()
	mux.Handle("/", newOutside(users, auth, logger))
	mux.Handle("/shop/", newInside(auth, logger))
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: mux}, nil))
}
