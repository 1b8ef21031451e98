package gateway_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestRequire(t *testing.T) {
	id := &gateway.Identity{
		Subject: "u", Issuer: "i", Audience: []string{"api"}, Scopes: []string{"read", "pay"}, Expiry: time.Now().Add(time.Hour),
		Claims: map[string]any{"tenant": "t1", "roles": []any{"admin", 1}, "level": 3, "empty": ""},
	}
	for name, tt := range map[string]struct {
		mw        gateway.Middleware
		ok        bool
		challenge string
	}{
		"function":               {gateway.Require("u", func(id *gateway.Identity, r *http.Request) bool { return id.Subject == "u" && r != nil }), true, ""},
		"function says no":       {gateway.Require("v", func(*gateway.Identity, *http.Request) bool { return false }), false, ""},
		"scope":                  {gateway.RequireScopes("pay"), true, ""},
		"both scopes":            {gateway.RequireScopes("pay", "read"), true, ""},
		"one of two scopes":      {gateway.RequireScopes("pay", "admin"), false, `Bearer error="insufficient_scope", scope="pay admin"`},
		"part of a scope":        {gateway.RequireScopes("re"), false, `Bearer error="insufficient_scope", scope="re"`},
		"claim":                  {gateway.RequireClaim("tenant", "t0", "t1"), true, ""},
		"another value":          {gateway.RequireClaim("tenant", "t2"), false, ""},
		"claim in other case":    {gateway.RequireClaim("Tenant", "t1"), false, ""},
		"list that holds it":     {gateway.RequireClaim("roles", "admin"), true, ""},
		"list that does not":     {gateway.RequireClaim("roles", "1"), false, ""},
		"number":                 {gateway.RequireClaim("level", "3"), false, ""},
		"absent":                 {gateway.RequireClaim("nothing", ""), false, ""},
		"empty":                  {gateway.RequireClaim("empty", ""), false, ""},
		"subject, not in claims": {gateway.RequireClaim("sub", "u"), true, ""},
		"audience":               {gateway.RequireClaim("aud", "api"), true, ""},
		"scope as a claim":       {gateway.RequireClaim("scope", "read"), true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, _ := askServer(t, gateway.Chain(gateway.Auth(fixedAuthenticator(id, nil), nil), tt.mw)(caller), nil)
			want := 200
			if !tt.ok {
				want = 403
			}
			if resp.StatusCode != want || resp.Header.Get("WWW-Authenticate") != tt.challenge {
				t.Errorf("status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
			}
			resp, _ = askServer(t, tt.mw(caller), nil)
			if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("anonymous: status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
			}
		})
	}
}

func TestRequirePanics(t *testing.T) {
	ok := func(*gateway.Identity, *http.Request) bool { return true }
	for name, f := range map[string]func(){
		"nameless":       func() { gateway.Require("", ok) },
		"nil function":   func() { gateway.Require("a", nil) },
		"no scopes":      func() { gateway.RequireScopes() },
		"blank in scope": func() { gateway.RequireScopes("a b") },
		"quote in scope": func() { gateway.RequireScopes(`a"`) },
		"nameless claim": func() { gateway.RequireClaim("", "a") },
		"no values":      func() { gateway.RequireClaim("a") },
	} {
		if v := panicOf(f); !strings.HasPrefix(v, "gateway: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}
