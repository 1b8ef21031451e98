package gateway_test

import (
	"crypto/ed25519"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

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
