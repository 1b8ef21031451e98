// Mux combines the gateway with github.com/gorilla/mux: its router outside, with the gateway's middleware and
// Proxy in it, and inside, as the handler of a route of gateway.Router.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"

	"github.com/gorilla/mux"

	"github.com/seed-96248d0c/gateway"
)

// newOutside has mux choose the route. Its middleware runs once the route is known.
func newOutside(users http.RoundTripper, auth gateway.Middleware, logger *slog.Logger) http.Handler {
	r := mux.NewRouter()
	r.Use(named, gateway.Observe(&gateway.ObserveOptions{Logger: logger}), mux.MiddlewareFunc(auth))
	r.Handle("/users/{id:[0-9]+}", gateway.Proxy(users, &gateway.ProxyOptions{Path: "/v1/people/{id}"})).Methods("GET")
	return r
}

// named sets what net/http's own mux would: the pattern, which labels metrics and logs, and the path values,
// which ProxyOptions.Path takes. The request is mux's own copy.
func named(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path, err := mux.CurrentRoute(r).GetPathTemplate(); err == nil {
			r.Pattern = path
		}
		for name, value := range mux.Vars(r) {
			r.SetPathValue(name, value)
		}
		next.ServeHTTP(w, r)
	})
}

// newInside has the gateway choose the route first. A service with a router of its own stays as it is.
func newInside(auth gateway.Middleware, logger *slog.Logger) http.Handler {
	service := mux.NewRouter()
	service.HandleFunc("/shop/items/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "item %s for %s", mux.Vars(r)["id"], r.Header.Get("X-User-ID"))
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
	all := http.NewServeMux()
	all.Handle("/", newOutside(users, auth, logger))
	all.Handle("/shop/", newInside(auth, logger))
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: all}, nil))
}
