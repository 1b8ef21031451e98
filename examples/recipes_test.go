package examples_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/cors"
	"go.opentelemetry.io/otel"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/seed-96248d0c/gateway"
)

// The recipes of docs/recipes.md. The comment of each function is the title of its section, and its body is
// the section's code.

// CORS
func recipeCORS(rt *gateway.Router, tokens gateway.Authenticator, items http.Handler) {
	policy := cors.New(cors.Options{
		AllowedOrigins: []string{"https://app.example"},
		AllowedMethods: []string{"GET", "PUT"},
		AllowedHeaders: []string{"Authorization"},
		ExposedHeaders: []string{"X-Trace-ID", "Retry-After"},
	})
	rt.Use(policy.Handler, gateway.Auth(tokens, nil))
	rt.Handle("/items/{id}", items)
}

// WebSocket from a browser
func recipeWebSocket(rt *gateway.Router, keys gateway.KeySource, chat http.Handler) {
	session := gateway.NewJWT(keys, gateway.JWTOptions{
		Issuer: "https://id.example", Audience: "app", Algorithms: []string{"ES256"},
		Token: gateway.CookieToken("__Host-session"),
	})
	rt.Handle("GET /chat", chat, gateway.Auth(session, &gateway.AuthOptions{
		Origins: []string{"https://app.example"},
	}))
}

// StripPrefix and absolute links
func recipeStripPrefix(rt *gateway.Router, wiki http.RoundTripper) {
	rt.Handle("/wiki/", gateway.Proxy(wiki, &gateway.ProxyOptions{
		StripPrefix:     "/wiki",
		RewriteLocation: true,
	}))
}

// TLS
func recipeTLS(ctx context.Context, rt *gateway.Router) error {
	certs, err := gateway.CertFiles(gateway.CertPair{Cert: "tls.crt", Key: "tls.key"})
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: ":443", Handler: rt, TLSConfig: &tls.Config{
		GetCertificate: certs, MinVersion: tls.VersionTLS12,
	}}
	return gateway.Serve(ctx, srv, nil)
}

// HTTP/2 without TLS
func recipeH2C(rt *gateway.Router) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	rt.Handle("/shop.Orders/", gateway.Proxy(
		gateway.NewUpstream("orders", gateway.MustTargets("h2c://10.0.0.1:50051"), nil), nil))
	return &http.Server{Addr: ":8080", Handler: rt, Protocols: protocols}
}

// Behind AWS, Cloudflare or nginx
func recipeTrustProxies(where string, cloudflare []netip.Prefix) gateway.Middleware {
	switch where {
	case "AWS": // an Application Load Balancer in the subnets of your VPC
		return gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("10.0.0.0/16"))
	case "Cloudflare": // the prefixes of www.cloudflare.com/ips
		return gateway.TrustProxies("CF-Connecting-IP", cloudflare...)
	default: // nginx on this host, with proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for
		return gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("127.0.0.0/8"))
	}
}

// Kubernetes probes
func recipeProbes(ctx context.Context, rt *gateway.Router) error {
	rt.Handle("GET /live", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv := &http.Server{Addr: ":8080", Handler: rt}
	return gateway.Serve(ctx, srv, &gateway.ServeOptions{
		Ready: "/ready",
		Delay: 5 * time.Second,
		Drain: 20 * time.Second,
	})
}

// Metrics
func recipeMetrics() error {
	exporter, err := otelprom.New()
	if err != nil {
		return err
	}
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(exporter)))
	http.Handle("GET /metrics", promhttp.Handler())
	go func() { log.Print(http.ListenAndServe("127.0.0.1:9464", nil)) }()
	return nil
}

// When the backend needs the client's Host
func recipePreserveHost(rt *gateway.Router, objects, files http.RoundTripper) {
	rt.Add(gateway.Route{Pattern: "s3.example/{key...}", RawRest: true, Handler: gateway.Proxy(objects,
		&gateway.ProxyOptions{PreserveHost: true, KeepQuery: true, MaxBodyBytes: 5 << 30})})
	rt.Handle("dav.example/", gateway.Proxy(files,
		&gateway.ProxyOptions{PreserveHost: true, MaxBodyBytes: 1 << 30}))
}

// Body limits
func recipeBodyLimits(rt *gateway.Router, api, git, registry http.RoundTripper) {
	rt.Handle("/api/", gateway.Proxy(api, &gateway.ProxyOptions{MaxBodyBytes: 1 << 20}))
	rt.Handle("POST /api/files", gateway.Proxy(api, &gateway.ProxyOptions{MaxBodyBytes: 200 << 20}))
	rt.Handle("git.example/", gateway.Proxy(git, &gateway.ProxyOptions{MaxBodyBytes: -1}))
	rt.Handle("registry.example/v2/", gateway.Proxy(registry, &gateway.ProxyOptions{
		MaxBodyBytes: -1, PreserveHost: true, // it answers with absolute links
	}))
}

// What counts as a failure
func recipeFailures() *gateway.Circuit {
	return gateway.NewCircuit("payments", &gateway.CircuitOptions{
		IsFailure: func(o gateway.Outcome, status int) bool {
			return status == http.StatusTooManyRequests || o == gateway.OutcomeTimeout ||
				o == gateway.OutcomeAborted || o == gateway.OutcomeUpstreamError
		},
	})
}

// TestRecipesShown compares the code of docs/recipes.md with this file, both ways.
func TestRecipesShown(t *testing.T) {
	shown := make(map[string]string)
	for section := range strings.SplitSeq(read(t, "../docs/recipes.md"), "\n## ") {
		title, text, _ := strings.Cut(section, "\n")
		_, code, ok := strings.Cut(text, "```go\n")
		if !ok {
			continue
		}
		shown[title], text, _ = strings.Cut(code, "```\n")
		if strings.Contains(text, "```go") {
			t.Errorf("%s has two pieces of code", title)
		}
	}
	for part := range strings.SplitSeq(read(t, "recipes_test.go"), "\n// ") {
		title, text, _ := strings.Cut(part, "\n")
		if !strings.HasPrefix(text, "func recipe") {
			continue
		}
		_, body, _ := strings.Cut(text, " {\n")
		body, _, _ = strings.Cut(body, "\n}\n")
		var code strings.Builder
		for line := range strings.Lines(body + "\n") {
			code.WriteString(strings.TrimPrefix(line, "\t"))
		}
		if shown[title] != code.String() {
			t.Errorf("docs/recipes.md has under %q\n%sinstead of\n%s", title, shown[title], code.String())
		}
		if n := strings.Count(code.String(), "\n"); n > 10 {
			t.Errorf("%s has %d lines", title, n)
		}
		delete(shown, title)
	}
	for title := range shown {
		t.Errorf("the code of %q is not in this file", title)
	}
}

// TestRecipes asks what can be asked of them without a network.
func TestRecipes(t *testing.T) {
	told := make(chan *http.Request, 1)
	echo := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told <- r
		w.Header().Set("Location", "/page")
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}))
	nobody := gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) { return nil, gateway.ErrNoCredentials })
	var rt, browsers, site gateway.Router
	recipeCORS(&browsers, nobody, http.NotFoundHandler())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": "https://id.example", "aud": "app", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	recipeWebSocket(&rt, gateway.StaticKey(key.Public()), http.NotFoundHandler())
	chat := func(origin string) []string {
		return []string{"Origin", origin, "Cookie", "__Host-session=" + token, "Connection", "Upgrade", "Upgrade", "websocket"}
	}
	recipeStripPrefix(&rt, echo)
	recipeBodyLimits(&rt, echo, echo, echo)
	recipePreserveHost(&site, echo, echo)
	if srv := recipeH2C(&rt); !srv.Protocols.UnencryptedHTTP2() {
		t.Error("no HTTP/2 without TLS")
	}
	for _, tt := range []struct {
		name, method, url string
		h                 http.Handler
		body              int64
		fields            []string
		status            int
		location, target  string // of the answer, and of what the backend is asked
	}{
		{"a preflight", "OPTIONS", "http://gw.example/items/7", &browsers, 0, []string{"Origin", "https://app.example", "Access-Control-Request-Method", "PUT"}, 204, "", ""},
		{"no token", "PUT", "http://gw.example/items/7", &browsers, 0, nil, 401, "", ""},
		{"the app's page", "GET", "http://gw.example/chat", &rt, 0, chat("https://app.example"), 404, "", ""},
		{"another site's page", "GET", "http://gw.example/chat", &rt, 0, chat("https://evil.example"), 403, "", ""},
		{"a prefix", "GET", "http://gw.example/wiki/a%2Fb", &rt, 0, nil, 200, "/wiki/page", "/a%2Fb"},
		{"an API's limit", "POST", "http://gw.example/api/x", &rt, 1<<20 + 1, nil, 413, "", ""},
		{"an upload", "POST", "http://gw.example/api/files", &rt, 1<<20 + 1, nil, 200, "/page", "/api/files"},
		{"a push", "POST", "http://git.example/repo/git-receive-pack", &rt, 11 << 20, nil, 200, "/page", "/repo/git-receive-pack"},
		{"an object", "PUT", "http://s3.example/a//b?x=1;y", &site, 0, nil, 200, "/page", "/a//b?x=1;y"},
	} {
		r := httptest.NewRequest(tt.method, tt.url, io.LimitReader(zeros{}, tt.body))
		r.ContentLength = tt.body
		for i := 0; i < len(tt.fields); i += 2 {
			r.Header.Set(tt.fields[i], tt.fields[i+1])
		}
		w := httptest.NewRecorder()
		tt.h.ServeHTTP(w, r)
		if w.Code != tt.status || w.Header().Get("Location") != tt.location {
			t.Errorf("%s: %d %s; want %d %s", tt.name, w.Code, w.Header().Get("Location"), tt.status, tt.location)
		}
		select {
		case out := <-told:
			if got := out.URL.RequestURI(); got != tt.target {
				t.Errorf("%s: the backend is asked for %s; want %s", tt.name, got, tt.target)
			}
		default:
			if tt.target != "" {
				t.Errorf("%s: the backend is not asked", tt.name)
			}
		}
	}

	c := recipeFailures()
	for range 5 {
		done, err := c.Allow()
		if err != nil {
			t.Fatal(err)
		}
		done(gateway.OutcomeOK, http.StatusTooManyRequests)
	}
	if c.State() != gateway.CircuitOpen {
		t.Error("429 does not count")
	}
}

// TestRecipesTrustProxies has each proxy tell the client's address in its own way.
func TestRecipesTrustProxies(t *testing.T) {
	cloudflare := []netip.Prefix{netip.MustParsePrefix("173.245.48.0/20")}
	for _, tt := range []struct{ where, peer, field, value string }{
		{"AWS", "10.0.3.4:80", "X-Forwarded-For", "1.2.3.4, 203.0.113.9"},
		{"Cloudflare", "173.245.48.9:80", "CF-Connecting-IP", "203.0.113.9"},
		{"nginx", "127.0.0.1:80", "X-Forwarded-For", "1.2.3.4, 203.0.113.9"},
	} {
		var got netip.Addr
		h := recipeTrustProxies(tt.where, cloudflare)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = gateway.ClientAddr(r) }))
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tt.peer
		r.Header.Set(tt.field, tt.value)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got.String() != "203.0.113.9" {
			t.Errorf("behind %s: %s", tt.where, got)
		}
	}
}

// Those that serve and listen are compiled alone.
var _ = []any{recipeTLS, recipeProbes, recipeMetrics}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
