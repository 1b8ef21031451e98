package gateway_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// TestProtectedResource follows the way of a client that knows the resource alone: it asks, reads the challenge, and
// fetches the metadata.
func TestProtectedResource(t *testing.T) {
	metadata := map[string]any{"authorization_servers": []string{"https://id.example"}, "scopes_supported": []string{"read"}}
	var rt gateway.Router
	s := httptest.NewUnstartedServer(&rt)
	base := "http://" + s.Listener.Addr().String()
	metadata["resource"] = base + "/mcp"
	const path = "/.well-known/oauth-protected-resource/mcp"
	rt.Handle(path, gateway.ProtectedResource(metadata))
	metadata["resource"] = "https://evil.example" // too late
	rt.Handle("/mcp", caller, gateway.Auth(edJWT(nil), &gateway.AuthOptions{ResourceMetadata: base + path}), gateway.RequireScopes("admin"))
	s.Start()
	defer s.Close()

	challenge := get(t, base+"/mcp").Header.Get("WWW-Authenticate")
	_, at, ok := strings.Cut(challenge, `resource_metadata="`)
	if !ok {
		t.Fatalf("challenge %s", challenge)
	}
	res := get(t, strings.TrimSuffix(at, `"`))
	var got struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil || got.Resource != base+"/mcp" || len(got.Servers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if res.Header.Get("Content-Type") != "application/json" || res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("%v", res.Header)
	}

	// A token without the scope leads there, too.
	r := withBearer(edToken(nil))
	r.URL.Path = "/mcp"
	w := recorded(&rt, r)
	want := `Bearer error="insufficient_scope", scope="admin", resource_metadata="` + base + path + `"`
	if got := w.Header().Get("WWW-Authenticate"); w.Code != 403 || got != want {
		t.Errorf("%d, %s", w.Code, got)
	}
}

func TestProtectedResourceMethods(t *testing.T) {
	h := gateway.ProtectedResource(map[string]any{"resource": "https://api.example"})
	for method, want := range map[string]int{"GET": 200, "HEAD": 200, "OPTIONS": 204, "POST": 405, "DELETE": 405} {
		res := ask(h, method, "/")
		if res.StatusCode != want || method == "OPTIONS" && res.Header.Get("Access-Control-Allow-Methods") == "" ||
			want == 405 && res.Header.Get("Allow") == "" || method == "HEAD" && bodyOf(t, res) != "" {
			t.Errorf("%s: %d, %v", method, res.StatusCode, res.Header)
		}
	}
	for name, metadata := range map[string]map[string]any{
		"nothing": nil, "no resource": {"a": 1}, "resource a number": {"resource": 1}, "a path": {"resource": "/mcp"},
		"a fragment": {"resource": "https://api.example/#a"}, "not JSON": {"resource": "https://api.example", "f": func() {}},
	} {
		if v := panicOf(func() { gateway.ProtectedResource(metadata) }); !strings.HasPrefix(v, "gateway: ProtectedResource: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
	var _ http.Handler = h
}
