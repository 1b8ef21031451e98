package gateway_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway"
)

// issuer is an identity provider with a key set on a real URL.
type issuer struct {
	url string
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	set, _ := json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "kid": "1", "use": "sig", "alg": "ES256", "x": enc(point[1:33]), "y": enc(point[33:]),
	}}})
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(set) }))
	return &issuer{url: s.URL, key: key}
}

// token signs claims, over those of an honest token.
func (i *issuer) token(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	all := jwt.MapClaims{"iss": i.url, "aud": "api", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read"}
	for name, value := range claims {
		all[name] = value
	}
	tok := jwt.NewWithClaims(jwt.SigningMethodES256, all)
	tok.Header["kid"] = "1"
	s, err := tok.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestWholeGatewayRefuses sends what a gateway must not let through, over a real listener, through every
// concern at once. Each answer is a problem with the trace id and says nothing of what is inside; each is
// logged once, with its outcome; and nothing reaches the backend.
func TestWholeGatewayRefuses(t *testing.T) {
	id := newIssuer(t)
	reached := make(chan string, 100)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached <- r.Header.Get("X-User-Id")
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/fails" {
			w.WriteHeader(500)
		}
	}))
	keys, err := gateway.NewJWKS(id.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: id.url, Audience: "api", Algorithms: []string{"ES256"}})
	up := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("backend", &gateway.CircuitOptions{Failures: 1, OpenFor: time.Hour}),
	})
	dead := gateway.NewUpstream("dead", gateway.MustTargets("http://127.0.0.1:1"), nil)
	j, observe := observed()
	var rt gateway.Router
	rt.Use(observe)
	private := rt.With(gateway.Auth(tokens, nil))
	private.Handle("GET /users/{id}", gateway.Proxy(up, nil))
	private.Handle("POST /upload", gateway.Proxy(up, &gateway.ProxyOptions{MaxBodyBytes: 5}))
	private.Handle("GET /admin", gateway.Proxy(up, nil), gateway.RequireScopes("admin"))
	private.Handle("GET /once", gateway.Proxy(up, nil), gateway.RateLimit(gateway.NewFixedWindow(1, time.Hour, nil), gateway.KeyBySubject, nil))
	private.Handle("GET /fails", gateway.Proxy(up, nil))
	private.Handle("GET /dead", gateway.Proxy(dead, nil))
	s := serve(t, &rt)

	good := id.token(t, nil)
	other := newIssuer(t)
	other.url = id.url
	forged := good[:len(good)-8] + "AAAAAAAA"
	none := func() string {
		enc := base64.RawURLEncoding.EncodeToString
		_, rest, _ := strings.Cut(good, ".")
		payload, _, _ := strings.Cut(rest, ".")
		return enc([]byte(`{"alg":"none","kid":"1","typ":"JWT"}`)) + "." + payload + "."
	}()

	for _, tt := range []struct {
		name, method, path, token, body string
		status                          int
		outcome                         string
		header                          string // that must be there
		passes                          bool
	}{
		{name: "honest", path: "/users/7", token: good, status: 200, outcome: "ok", passes: true},
		{name: "unknown route", path: "/nowhere", token: good, status: 404, outcome: "rejected"},
		{name: "wrong method", method: "DELETE", path: "/users/7", token: good, status: 405, outcome: "rejected", header: "Allow"},
		{name: "dot segments", path: "/users/..%2fadmin", token: good, status: 400, outcome: "rejected"},
		{name: "missing token", path: "/users/7", status: 401, outcome: "rejected", header: "Www-Authenticate"},
		{name: "garbage", path: "/users/7", token: "x.y.z", status: 401, outcome: "rejected", header: "Www-Authenticate"},
		{name: "expired", path: "/users/7", token: id.token(t, jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}), status: 401, outcome: "rejected"},
		{name: "without exp", path: "/users/7", token: id.token(t, jwt.MapClaims{"exp": nil}), status: 401, outcome: "rejected"},
		{name: "forged signature", path: "/users/7", token: forged, status: 401, outcome: "rejected"},
		{name: "another's key", path: "/users/7", token: other.token(t, nil), status: 401, outcome: "rejected"},
		{name: "alg none", path: "/users/7", token: none, status: 401, outcome: "rejected"},
		{name: "wrong issuer", path: "/users/7", token: id.token(t, jwt.MapClaims{"iss": "https://evil.example"}), status: 401, outcome: "rejected"},
		{name: "wrong audience", path: "/users/7", token: id.token(t, jwt.MapClaims{"aud": "other"}), status: 401, outcome: "rejected"},
		{name: "subject with a line break", path: "/users/7", token: id.token(t, jwt.MapClaims{"sub": "a\r\nX-Role: admin"}), status: 401, outcome: "rejected"},
		{name: "without the scope", path: "/admin", token: good, status: 403, outcome: "rejected", header: "Www-Authenticate"},
		{name: "body over the limit", method: "POST", path: "/upload", body: "123456", token: good, status: 413, outcome: "rejected"},
		{name: "within the limit of rate", path: "/once", token: good, status: 200, outcome: "ok", passes: true},
		{name: "over the limit of rate", path: "/once", token: good, status: 429, outcome: "rejected", header: "Retry-After"},
		{name: "dead upstream", path: "/dead", token: good, status: 502, outcome: "upstream_error"},
		{name: "failing upstream", path: "/fails", token: good, status: 500, outcome: "upstream_error", passes: true},
		{name: "open circuit", path: "/users/7", token: good, status: 503, outcome: "rejected", header: "Retry-After"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = "GET"
			}
			r, err := http.NewRequest(tt.method, s.URL+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if tt.token != "" {
				r.Header.Set("Authorization", "Bearer "+tt.token)
			}
			r.Header.Set("X-User-ID", "mallory")
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			if tt.header != "" && res.Header.Get(tt.header) == "" {
				t.Errorf("no %s in %v", tt.header, res.Header)
			}
			if !tt.passes {
				p := readProblem(t, res)
				if p.TraceID == "" || p.TraceID != res.Header.Get("X-Trace-Id") {
					t.Errorf("trace id %q, field %q", p.TraceID, res.Header.Get("X-Trace-Id"))
				}
				for _, inside := range []string{"127.0.0.1", "gateway:", "token", "expired", "signature"} {
					if strings.Contains(fmt.Sprint(p), inside) {
						t.Errorf("the problem tells %q: %+v", inside, p)
					}
				}
			}
			line := j.next(t)
			if line["outcome"] != tt.outcome || line["status"] != fmt.Sprint(tt.status) {
				t.Errorf("logged %v", line)
			}
			if tt.status >= 400 && !tt.passes && line["error"] == "" {
				t.Errorf("no cause logged: %v", line)
			}
			if len(j) > 0 {
				t.Errorf("logged twice: %v", <-j)
			}
			select {
			case who := <-reached:
				if !tt.passes || who != "alice" {
					t.Errorf("the backend was reached as %q", who)
				}
			default:
				if tt.passes {
					t.Error("the backend was not reached")
				}
			}
		})
	}
}
