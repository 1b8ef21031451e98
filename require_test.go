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
		Claims: map[string]any{"tenant": "t1", "roles": []any{"admin", 1}, "level": 3, "empty": "",
			"realm_access": map[string]any{"roles": []any{"Domain Users"}}, "https://acme.example/roles": "r"},
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
		"a path":                 {gateway.RequireClaim("realm_access.roles", "Domain Users"), true, ""},
		"a path, another value":  {gateway.RequireClaim("realm_access.roles", "Domain"), false, ""},
		"a path into a string":   {gateway.RequireClaim("tenant.x", "t1"), false, ""},
		"a path to an object":    {gateway.RequireClaim("realm_access", "Domain Users"), false, ""},
		"a name with dots":       {gateway.RequireClaim("https://acme.example/roles", "r"), true, ""},
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

// TestRequireReportOnly: who lacks what is required passes, is logged and counted, and keeps the identity.
func TestRequireReportOnly(t *testing.T) {
	report := gateway.RequireOptions{ReportOnly: true}
	id := &gateway.Identity{Subject: "u", Scopes: []string{"read"}}
	for name, tt := range map[string]struct {
		mw   gateway.Middleware
		id   *gateway.Identity
		want string // in the remarks; "" for none
	}{
		"scope":       {report.RequireScopes("pay"), id, "require would refuse: gateway: forbidden: needs the scopes pay"},
		"claim":       {report.RequireClaim("tenant", "t"), id, "claim tenant"},
		"function":    {report.Require("admin", func(*gateway.Identity, *http.Request) bool { return false }), id, "forbidden: admin"},
		"nobody":      {report.RequireScopes("pay"), nil, "no credentials"},
		"has it":      {report.RequireScopes("read"), id, ""},
		"not to test": {gateway.RequireOptions{}.RequireScopes("read"), id, ""},
	} {
		j, observe := observed()
		mw := gateway.Chain(observe, tt.mw)
		if tt.id != nil {
			mw = gateway.Chain(observe, gateway.Auth(fixedAuthenticator(tt.id, nil), nil), tt.mw)
		}
		w := recorded(mw(caller), nil)
		if w.Code != 200 || tt.id != nil && !strings.HasPrefix(w.Body.String(), "u|") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if line := j.next(t); (line["remarks"] != "" && line["remarks"] != "[]") != (tt.want != "") || !strings.Contains(line["remarks"], tt.want) {
			t.Errorf("%s: logged %v", name, line)
		}
	}
	if w := recorded(gateway.Auth(fixedAuthenticator(id, nil), nil)(gateway.RequireOptions{}.RequireScopes("pay")(caller)), nil); w.Code != 403 {
		t.Errorf("without ReportOnly: %d", w.Code)
	}
}

// TestRequireInsideAuth: the challenges of Require have the realm and the metadata of the Auth around it.
func TestRequireInsideAuth(t *testing.T) {
	opts := &gateway.AuthOptions{Optional: true, Realm: "api", ResourceMetadata: "https://api.example/m"}
	auth := gateway.Auth(edJWT(nil), opts)
	r := withBearer(edToken(nil))
	w := recorded(gateway.Chain(auth, gateway.RequireScopes("admin"))(caller), r)
	if got := w.Header().Get("WWW-Authenticate"); w.Code != 403 || got != `Bearer realm="api", error="insufficient_scope", scope="admin", resource_metadata="https://api.example/m"` {
		t.Errorf("%d %s", w.Code, got)
	}
	w = recorded(gateway.Chain(auth, gateway.RequireClaim("a", "b"))(caller), nil)
	if got := w.Header().Get("WWW-Authenticate"); w.Code != 401 || got != `Bearer realm="api", resource_metadata="https://api.example/m"` {
		t.Errorf("%d %s", w.Code, got)
	}
}
