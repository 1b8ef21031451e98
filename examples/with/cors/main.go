// Cors puts github.com/rs/cors before Auth: a browser sends its preflight without credentials, and reads a
// refusal only if it carries the fields of CORS too.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/rs/cors"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(items http.RoundTripper) http.Handler {
	policy := cors.New(cors.Options{
		AllowedOrigins: []string{"https://app.example"},
		AllowedMethods: []string{"GET", "PUT"},
		AllowedHeaders: []string{"X-API-Key"},
		ExposedHeaders: []string{"X-Trace-ID", "Retry-After"}, // what a page may read of an answer
		MaxAge:         600,
	})
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), policy.Handler, gateway.Auth(gateway.AuthenticatorFunc(byKey), nil))
	rt.Handle("/items/{id}", gateway.Proxy(items, &gateway.ProxyOptions{
		// A backend with a CORS policy of its own would add its fields to those above, and browsers refuse
		// two.
		ResponseFields: gateway.FieldEdits{Drop: []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"}},
	}))
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
	items := gateway.NewUpstream("items", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: newHandler(items)}, nil))
}
