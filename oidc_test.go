package gateway_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestNewOIDC(t *testing.T) {
	set := keySet(jwk("k", edPublic(), nil))
	opts := gateway.OIDCOptions{JWT: gateway.JWTOptions{Audience: testAudience, Algorithms: []string{"EdDSA"}}}
	for name, tt := range map[string]struct {
		path   string // of the issuer
		config string // ISSUER and BASE stand for the issuer and the server's URL
		ok     bool
	}{
		"good":                  {"", `{"issuer":"ISSUER","jwks_uri":"BASE/keys"}`, true},
		"with a path":           {"/tenant", `{"issuer":"ISSUER","jwks_uri":"BASE/keys"}`, true},
		"with a slash":          {"/tenant/", `{"issuer":"ISSUER","jwks_uri":"BASE/keys"}`, true},
		"with an escaped slash": {"/tenant%2Fone", `{"issuer":"ISSUER","jwks_uri":"BASE/keys"}`, true},
		"with a query":          {"/?a=b", `{"issuer":"ISSUER","jwks_uri":"BASE/keys"}`, false},
		"other issuer":          {"", `{"issuer":"ISSUER/","jwks_uri":"BASE/keys"}`, false},
		"no issuer":             {"", `{"jwks_uri":"BASE/keys"}`, false},
		"no keys":               {"", `{"issuer":"ISSUER"}`, false},
		"keys by http":          {"", `{"issuer":"ISSUER","jwks_uri":"http://keys.example/"}`, false},
		"issuer twice":          {"", `{"issuer":"x","issuer":"ISSUER","jwks_uri":"BASE/keys"}`, false},
		"garbage":               {"", "<html>", false},
		"far too large":         {"", "{" + strings.Repeat(" ", 2<<20), false},
	} {
		t.Run(name, func(t *testing.T) {
			var issuer, base string
			mux := http.NewServeMux()
			mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) })
			mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
				if r.RequestURI == strings.TrimSuffix(tt.path, "/")+"/.well-known/openid-configuration" {
					io.WriteString(w, strings.NewReplacer("ISSUER", issuer, "BASE", base).Replace(tt.config))
				} else {
					http.NotFound(w, r)
				}
			})
			s := httptest.NewServer(mux)
			defer s.Close()
			base = s.URL
			issuer = base + tt.path
			j, err := gateway.NewOIDC(t.Context(), issuer, opts)
			if (err == nil) != tt.ok {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				if !strings.HasPrefix(err.Error(), "gateway: NewOIDC: ") {
					t.Errorf("error %v", err)
				}
				return
			}
			token := sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(map[string]any{"iss": issuer}))
			if _, err := j.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
			if _, err := j.Verify(t.Context(), sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(nil))); err == nil {
				t.Error("another issuer's token is taken")
			}
		})
	}

	// The default client trusts the test server's certificate until the test ends.
	secure := httptest.NewUnstartedServer(nil)
	var keysAt string
	secure.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"issuer":"%s","jwks_uri":%q}`, secure.URL, keysAt)
	})
	secure.StartTLS()
	defer secure.Close()
	usual := http.DefaultTransport
	http.DefaultTransport = secure.Client().Transport
	defer func() { http.DefaultTransport = usual }()
	for at, ok := range map[string]bool{
		secure.URL + "/keys": true, "https://keys.example/": true,
		"http://127.0.0.1/keys": false, "HTTP://127.0.0.1/keys": false, "hTTp://localhost/keys": false, "//127.0.0.1/keys": false, "/keys": false,
	} {
		keysAt = at
		if _, err := gateway.NewOIDC(t.Context(), secure.URL, opts); (err == nil) != ok {
			t.Errorf("keys of an https issuer at %s: %v", at, err)
		}
	}

	if _, err := gateway.NewOIDC(t.Context(), "http://id.example", opts); err == nil {
		t.Error("plain http is taken")
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gateway.NewOIDC(ctx, s.URL, opts); err == nil {
		t.Error("no error after its context")
	}
	for name, o := range map[string]gateway.JWTOptions{
		"no audience":   {Algorithms: []string{"EdDSA"}},
		"no algorithms": {Audience: testAudience},
		"issuer twice":  {Issuer: s.URL, Audience: testAudience, Algorithms: []string{"EdDSA"}},
	} {
		if v := panicOf(func() { _, _ = gateway.NewOIDC(t.Context(), s.URL, gateway.OIDCOptions{JWT: o}) }); !strings.HasPrefix(v, "gateway: NewOIDC: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}
