// Cache puts a shared cache of answers (RFC 9111) in front of an Upstream: a RoundTripper around a
// RoundTripper, which Proxy and Aggregate take alike. The cache itself is in cache.go.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(backend http.RoundTripper) http.Handler {
	cached := newCache(backend, 1000, 256<<10) // at most 256 MB
	var rt gateway.Router
	rt.Use(gateway.Observe(nil))
	// The cache stands behind Auth, so that a hit is for those alone who may ask. An answer to a request with
	// Authorization is stored only if it says that it is for all. Where Identity makes answers differ, and
	// the backend does not send "Vary: X-User-ID" or "private", do not cache.
	rt.Handle("/catalog/", gateway.Proxy(cached, nil))
	rt.Handle("/", gateway.Proxy(backend, nil))
	return &rt
}

func main() {
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: newHandler(backend)}, nil))
}
