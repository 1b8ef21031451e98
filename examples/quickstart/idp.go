package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// audience is for whom the identity provider's tokens are.
const audience = "quickstart"

// identityProvider issues tokens and publishes the key that they can be verified with, as Keycloak, Auth0
// or Entra ID would. Its key is made at start and lives as long as the process.
type identityProvider struct {
	url    string // its issuer name, and where it listens
	key    *ecdsa.PrivateKey
	keySet []byte // the public half (RFC 7517)
}

func newIdentityProvider() (*identityProvider, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes() // 4, X, Y (SEC 1 section 2.3.3)
	if err != nil {
		return nil, err
	}
	coordinate := base64.RawURLEncoding.EncodeToString
	keySet, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": keyID,
		"x": coordinate(point[1:33]), "y": coordinate(point[33:]),
	}}})
	return &identityProvider{key: key, keySet: keySet}, err
}

const keyID = "1"

func (p *identityProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/.well-known/jwks.json" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(p.keySet)
}

// claims are what a good token says of subject.
func (p *identityProvider) claims(subject, scope string) jwt.MapClaims {
	return jwt.MapClaims{
		"iss": p.url, "aud": audience, "sub": subject, "scope": scope,
		"exp": time.Now().Add(8 * time.Hour).Unix(),
	}
}

// token signs claims.
func (p *identityProvider) token(claims jwt.MapClaims) (string, error) {
	return sign(jwt.SigningMethodES256, claims, p.key)
}

func sign(method jwt.SigningMethod, claims jwt.MapClaims, key any) (string, error) {
	t := jwt.NewWithClaims(method, claims)
	t.Header["kid"] = keyID
	return t.SignedString(key)
}
