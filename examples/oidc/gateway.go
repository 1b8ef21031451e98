package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// audience is for whom the provider's tokens must be.
const audience = "notes"

// newGateway is the whole gateway: who has a token of issuer's may ask the resource server.
func newGateway(ctx context.Context, issuer string, minInterval time.Duration, resource string) (http.Handler, error) {
	tokens, err := newTokens(ctx, issuer, minInterval)
	if err != nil {
		return nil, err
	}
	notes := gateway.NewUpstream("notes", gateway.MustTargets(resource), nil)
	rt := new(gateway.Router)
	rt.Use(gateway.Observe(nil), gateway.Auth(tokens, nil))
	rt.Handle("GET /notes", gateway.Proxy(notes, nil), gateway.RequireScopes("notes"))
	return rt, nil
}

// newTokens is all that there is to set up for tokens. NewOIDC finds the key set by itself and suits every
// provider that publishes its keys well ahead. One that takes a new key every few seconds wants to be asked
// more often than NewOIDC's 10s.
func newTokens(ctx context.Context, issuer string, minInterval time.Duration) (*gateway.JWT, error) {
	options := gateway.JWTOptions{Audience: audience, Algorithms: []string{"ES256"}}
	if minInterval == 0 {
		return gateway.NewOIDC(ctx, issuer, gateway.OIDCOptions{JWT: options})
	}
	keys, err := gateway.NewJWKS(issuer+keySetPath, &gateway.JWKSOptions{MinInterval: minInterval})
	if err != nil {
		return nil, err
	}
	options.Issuer = issuer
	return gateway.NewJWT(keys, options), nil
}

// notes is the resource server. It knows nothing of tokens: the gateway has told it who asks, and nobody else
// can, as long as nobody else reaches it.
func notes(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "the notes of %s\n", r.Header.Get("X-User-ID"))
}
