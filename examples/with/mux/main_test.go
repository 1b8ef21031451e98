package main

import (
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestMux asks both ways round. The log line has the pattern of the route that mux chose.
func TestMux(t *testing.T) {
	logger, lines := ask.Log()
	auth := gateway.Auth(gateway.AuthenticatorFunc(byKey), nil)
	outside := ask.Serve(t, newOutside(ask.Upstream(t, ask.Echo), auth, logger))
	inside := ask.Serve(t, newInside(auth, logger))
	for _, tt := range []struct{ url, key, want, route string }{
		{outside + "/users/7", "key of alice", `200 GET /v1/people/7 by "alice"`, "/users/{id:[0-9]+}"},
		{outside + "/users/7", "", "401", "/users/{id:[0-9]+}"},
		{inside + "/shop/items/7", "key of alice", "200 item 7 for alice", "/shop/"},
		{inside + "/shop/items/7", "key of mallory", "401", "/shop/"},
	} {
		got := ask.Do(t, "GET", tt.url, "", "X-API-Key", tt.key, "X-User-ID", "admin")
		if !strings.HasPrefix(got.String(), tt.want) {
			t.Errorf("%s: %s; want %s", tt.url, got, tt.want)
		}
		if route := lines.Next(t, "route"); route != tt.route {
			t.Errorf("%s: logged with route %q; want %q", tt.url, route, tt.route)
		}
	}
}
