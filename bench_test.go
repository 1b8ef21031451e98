package gateway_test

import (
	"crypto/ed25519"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// chain is a gateway with every concern on, over a transport without a network, and a request that it
// lets through.
func chain(b *testing.B, transport http.RoundTripper, opts *gateway.ObserveOptions) (http.Handler, *http.Request) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read",
	}).SignedString(private)
	if err != nil {
		b.Fatal(err)
	}
	tokens := gateway.NewJWT(gateway.StaticKey(public), gateway.JWTOptions{
		Issuer: "https://id.example", Audience: "api", Algorithms: []string{"EdDSA"},
	})
	users := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1", "http://10.0.0.2"), &gateway.UpstreamOptions{
		Transport: transport,
		Circuit:   gateway.NewCircuit("users", nil),
	})
	var rt gateway.Router
	rt.Use(
		gateway.Observe(opts),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(tokens, nil),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyBySubject, nil),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil), gateway.RequireScopes("read"))
	rt.Handle("POST /checkout", gateway.Proxy(users, nil))

	r := request()
	r.Header.Set("Authorization", "Bearer "+token)
	return &rt, r
}

// request is what a browser might send.
func request() *http.Request {
	r := httptest.NewRequest("GET", "/users/7?fields=name", nil)
	r.Header = http.Header{
		"Accept": {"application/json"}, "Accept-Encoding": {"gzip, br"}, "Accept-Language": {"en"}, "User-Agent": {"Mozilla/5.0"},
		"Cookie": {"a=b"}, "Referer": {"https://shop.example/"}, "Origin": {"https://shop.example"}, "Authorization": {"Bearer x"},
	}
	return r
}

// instant answers at once, with a small body.
type instant struct{}

func (instant) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: 2, Body: http.NoBody,
		Header: http.Header{"Content-Type": {"application/json"}, "Date": {"Mon, 01 Jan 2024 00:00:00 GMT"}, "Content-Length": {"2"}},
	}, nil
}

func run(b *testing.B, h http.Handler, r *http.Request) {
	b.ReportAllocs()
	w := discardWriter{make(http.Header)}
	for b.Loop() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

// BenchmarkChain is a request through every concern, without a network.
func BenchmarkChain(b *testing.B) {
	b.Run("gateway", func(b *testing.B) {
		h, r := chain(b, instant{}, nil)
		run(b, h, r)
	})
	b.Run("gateway with metrics and log", func(b *testing.B) {
		h, r := chain(b, instant{}, &gateway.ObserveOptions{Meter: new(gatewaytest.Telemetry), Logger: slog.New(slog.DiscardHandler)})
		run(b, h, r)
	})
	b.Run("Proxy alone", func(b *testing.B) {
		run(b, gateway.Proxy(gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1"), &gateway.UpstreamOptions{Transport: instant{}}), nil), request())
	})
	b.Run("ReverseProxy alone", func(b *testing.B) {
		target, _ := url.Parse("http://10.0.0.1")
		run(b, &httputil.ReverseProxy{Transport: instant{}, Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			pr.SetXForwarded()
		}}, request())
	})
}
