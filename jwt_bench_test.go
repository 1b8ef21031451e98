package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/seed-96248d0c/gateway"
)

// benchRequest returns a request with the fields that a script in a browser sends.
func benchRequest(token string) *http.Request {
	r := httptest.NewRequest("GET", "/users/1", nil)
	r.Header = http.Header{
		"Authorization":   {"Bearer " + token},
		"Accept":          {"application/json"},
		"Accept-Encoding": {"gzip, br"},
		"Accept-Language": {"en"},
		"User-Agent":      {"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
		"Referer":         {"https://app.example/"},
		"Origin":          {"https://app.example"},
	}
	return r
}

// outside creates the record, as Observe does around Auth, and does nothing else.
var outside = gateway.HandleErrors(func(http.ResponseWriter, *http.Request, *gateway.Error) {})

// BenchmarkAuthHit sends a token that is in the cache; its key is in a key set. The record exists already in
// all cases. So the cost of Auth is the difference between "Auth" and "nothing", and between "Auth in
// Observe" and "Observe".
func BenchmarkAuthHit(b *testing.B) {
	k := must(gateway.NewJWKS("https://id.example/keys", &gateway.JWKSOptions{
		Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, keySet(jwk("k", &testRSA().PublicKey, nil)), nil), nil
		})},
	}))
	tokens := gateway.NewJWT(k, gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"RS256"}})
	token := sign("RS256", testRSA(), map[string]any{"kid": "k", "typ": "JWT"}, claimSet(nil))
	observe := gateway.Observe(nil)
	for _, bb := range []struct {
		name string
		h    http.Handler
	}{
		{"nothing", outside(silent)},
		{"Auth", outside(gateway.Auth(tokens, nil)(silent))},
		{"Observe", observe(silent)},
		{"Auth in Observe", observe(gateway.Auth(tokens, nil)(silent))},
	} {
		name, h := bb.name, bb.h
		r := benchRequest(token)
		w := discardWriter{make(http.Header)}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
		b.Run(name+" parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := discardWriter{make(http.Header)}
				for pb.Next() {
					h.ServeHTTP(w, r)
				}
			})
		})
	}
}

// BenchmarkJWTMiss verifies a token without a cache, beside golang-jwt with the same rules.
func BenchmarkJWTMiss(b *testing.B) {
	for _, bb := range []struct {
		alg       string
		sign, key any
	}{
		{"HS256", testSecret, testSecret},
		{"RS256", testRSA(), &testRSA().PublicKey},
		{"ES256", testEC(), &testEC().PublicKey},
		{"EdDSA", testEd(), testEd().Public()},
	} {
		token := sign(bb.alg, bb.sign, map[string]any{"kid": "k", "typ": "JWT"}, claimSet(nil))
		b.Run(bb.alg+"/gateway", func(b *testing.B) {
			j := gateway.NewJWT(gateway.StaticKey(bb.key), gateway.JWTOptions{
				Issuer: testIssuer, Audience: testAudience, Algorithms: []string{bb.alg}, CacheSize: -1,
			})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Verify(context.Background(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bb.alg+"/bare", func(b *testing.B) {
			p := jwt.NewParser(jwt.WithValidMethods([]string{bb.alg}), jwt.WithIssuer(testIssuer), jwt.WithAudience(testAudience),
				jwt.WithExpirationRequired(), jwt.WithIssuedAt())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Parse(token, func(*jwt.Token) (any, error) { return bb.key, nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkJWTMissCached verifies a token that then displaces another one from a full cache.
func BenchmarkJWTMissCached(b *testing.B) {
	j := gateway.NewJWT(gateway.StaticKey(testSecret), gateway.JWTOptions{
		Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"HS256"}, CacheSize: 256,
	})
	tokens := make([]string, 4096)
	for i := range tokens {
		tokens[i] = sign("HS256", testSecret, nil, claimSet(map[string]any{"sub": fmt.Sprint("user-", i)}))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if _, err := j.Verify(context.Background(), tokens[i%len(tokens)]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDPoP accepts a cached token that is bound to a key, with a new proof for each request.
func BenchmarkDPoP(b *testing.B) {
	token := boundToken(nil)
	j := edJWT(func(o *gateway.JWTOptions) { o.DPoP = &gateway.DPoPOptions{MaxSeen: 1 << 20} })
	requests := make([]*http.Request, 256)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(requests) == 0 {
			b.StopTimer()
			for k := range requests {
				requests[k] = proven(token, proofFor(token, nil, nil))
			}
			b.StartTimer()
		}
		if _, err := j.Authenticate(requests[i%len(requests)]); err != nil {
			b.Fatal(err)
		}
	}
}
