//go:build !race

package gateway_test

import (
	"bufio"
	"crypto/ed25519"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

// TestStackOfAConnection holds what the package says of memory: with every concern on, a request fits on a stack of
// 8 KiB. A stack does not shrink while a connection is idle, so that one frame too many costs 8 KiB for each connection.
// The race detector makes frames larger.
func TestStackOfAConnection(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") }))
	defer backend.Close()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": "https://id.example", "aud": "api", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read",
	}).SignedString(private)
	if err != nil {
		t.Fatal(err)
	}
	var rt gateway.Router
	rt.Use(
		gateway.Observe(nil),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
		gateway.Auth(gateway.NewJWT(gateway.StaticKey(public), gateway.JWTOptions{
			Issuer: "https://id.example", Audience: "api", Algorithms: []string{"EdDSA"}}), nil),
		gateway.RateLimit(gateway.NewTokenBucket(1e9, 1e9, nil), gateway.KeyBySubject, nil),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(gateway.NewUpstream("users", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("users", nil), Retry: gateway.RetryOptions{Attempts: 3},
	}), nil), gateway.RequireScopes("read"))
	front := httptest.NewServer(&rt)
	defer front.Close()

	const conns = 200
	open := make([]net.Conn, 0, conns)
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	ask := func() {
		c, err := net.Dial("tcp", front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		io.WriteString(c, "GET /users/7 HTTP/1.1\r\nHost: gw.example\r\nAuthorization: Bearer "+token+"\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReaderSize(c, 1024), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		ask() // what is made once: the token's verification, caches of stacks
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection halves stacks that are mostly unused
	before := stackBytes()
	for range conns {
		ask()
	}
	if each := (stackBytes() - before) / conns; each > 12<<10 {
		t.Errorf("a connection has %d bytes of stack, want at most 8 KiB and the stack of its reader", each)
	}
}

func stackBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
