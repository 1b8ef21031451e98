package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

const (
	issuer   = "https://id.example"
	audience = "api"
)

// keySet is a JSON Web Key Set of one key.
func keySet(tb testing.TB, alg string, public crypto.PublicKey) []byte {
	encode := base64.RawURLEncoding.EncodeToString
	k := map[string]string{"kid": "k", "use": "sig", "alg": alg}
	switch p := public.(type) {
	case *rsa.PublicKey:
		k["kty"], k["n"], k["e"] = "RSA", encode(p.N.Bytes()), encode(big.NewInt(int64(p.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 4, X and Y
		if err != nil {
			tb.Fatal(err)
		}
		k["kty"], k["crv"], k["x"], k["y"] = "EC", "P-256", encode(point[1:33]), encode(point[33:])
	case ed25519.PublicKey:
		k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", encode(p)
	}
	return mustBe(json.Marshal(map[string]any{"keys": []any{k}}))
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// respond is a transport that answers everything with body, without a network.
func respond(body []byte) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{
			Status: "200 OK", StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header:        http.Header{"Content-Type": {"application/json"}},
			ContentLength: int64(len(body)),
			Body:          io.NopCloser(bytes.NewReader(body)),
		}, nil
	})
}

// BenchmarkToken verifies a token by a key set, with issuer, audience and expiry required. "seen" is a token that was
// verified before, which this library remembers; jwt with keyfunc verifies it anew.
func BenchmarkToken(b *testing.B) {
	rsaKey := mustBe(rsa.GenerateKey(rand.Reader, 2048))
	ecKey := mustBe(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for _, alg := range []struct {
		name   string
		method jwt.SigningMethod
		key    crypto.Signer
	}{
		{"RS256", jwt.SigningMethodRS256, rsaKey},
		{"ES256", jwt.SigningMethodES256, ecKey},
		{"EdDSA", jwt.SigningMethodEdDSA, edKey},
	} {
		set := keySet(b, alg.name, alg.key.Public())
		token := jwt.NewWithClaims(alg.method, jwt.MapClaims{
			"iss": issuer, "aud": audience, "sub": "alice", "scope": "read write", "exp": time.Now().Add(time.Hour).Unix(),
		})
		token.Header["kid"] = "k"
		raw := mustBe(token.SignedString(alg.key))
		ours := func(cache int) func() error {
			keys := mustBe(gateway.NewJWKS(issuer+"/keys", &gateway.JWKSOptions{Client: &http.Client{Transport: respond(set)}}))
			tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: issuer, Audience: audience, Algorithms: []string{alg.name}, CacheSize: cache})
			return func() error {
				_, err := tokens.Verify(context.Background(), raw)
				return err
			}
		}
		keys := mustBe(keyfunc.NewJWKSetJSON(set))
		parser := jwt.NewParser(jwt.WithValidMethods([]string{alg.name}), jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
		for _, peer := range []struct {
			name   string
			verify func() error
		}{
			{"seen/gateway", ours(0)},
			{"new/gateway", ours(-1)},
			{"new/keyfunc+jwt", func() error {
				_, err := parser.Parse(raw, keys.Keyfunc)
				return err
			}},
		} {
			b.Run(alg.name+"/"+peer.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := peer.verify(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
