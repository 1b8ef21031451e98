package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// allowOrigin answers preflights as CORS middleware does.
func allowOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		if r.Method == "OPTIONS" && r.Header.Get("Access-Control-Request-Method") != "" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func preflight(h http.Handler, method, target string) *http.Response {
	r := httptest.NewRequest("OPTIONS", target, nil)
	r.Header.Set("Origin", "https://app.example")
	r.Header.Set("Access-Control-Request-Method", method)
	return recorded(h, r).Result()
}

// A preflight passes the middleware of the route that the request to come would take, wherever that stands.
func TestRouterPreflight(t *testing.T) {
	refuse := gateway.Auth(fixedAuthenticator(nil, gateway.ErrUnauthenticated), nil)
	for _, tt := range []struct {
		name   string
		build  func(rt *gateway.Router)
		method string // of the request to come
		status int
		cors   bool // the CORS middleware saw it
		body   string
	}{
		{"Use", func(rt *gateway.Router) { rt.Use(allowOrigin, refuse); rt.Handle("GET /a", named("a")) }, "GET", 204, true, ""},
		{"With", func(rt *gateway.Router) { rt.With(allowOrigin, refuse).Handle("GET /a", named("a")) }, "GET", 204, true, ""},
		{"a group in a group", func(rt *gateway.Router) { rt.With(allowOrigin).With(refuse).Handle("GET /a", named("a")) }, "GET", 204, true, ""},
		{"one route", func(rt *gateway.Router) { rt.Handle("GET /a", named("a"), allowOrigin) }, "GET", 204, true, ""},
		{"any method", func(rt *gateway.Router) { rt.With(allowOrigin).Handle("/a", named("a")) }, "GET", 204, true, ""},
		{"behind Auth", func(rt *gateway.Router) { rt.With(refuse, allowOrigin).Handle("GET /a", named("a")) }, "GET", 401, false, ""},
		{"the method's route", func(rt *gateway.Router) {
			rt.Handle("GET /a", named("get"), refuse)
			rt.Handle("PUT /a", named("put"), allowOrigin)
		}, "PUT", 204, true, ""},
		{"no middleware", func(rt *gateway.Router) { rt.With(mark("x")).Handle("GET /a", named("a")) }, "GET", 204, false, ""},
		{"no such method", func(rt *gateway.Router) { rt.With(allowOrigin).Handle("GET /a", named("a")) }, "PUT", 204, false, ""},
		{"no route", func(rt *gateway.Router) { rt.With(allowOrigin).Handle("GET /b", named("a")) }, "GET", 404, false, ""},
		{"beside a site", func(rt *gateway.Router) {
			rt.Handle("/", named("site"))
			rt.With(allowOrigin).Handle("GET /a", named("a"))
		}, "GET", 204, true, ""},
		{"a site answers", func(rt *gateway.Router) {
			rt.Handle("/", named("site"), mark("own"))
			rt.With(mark("group")).Handle("GET /a", named("a"))
		}, "GET", 200, false, "site"},
		{"a route for OPTIONS", func(rt *gateway.Router) {
			rt.Handle("OPTIONS /", named("options"))
			rt.With(allowOrigin).Handle("GET /a", named("a"))
		}, "GET", 200, false, "options"},
		{"fields to come", func(rt *gateway.Router) {
			rt.With(allowOrigin).Add(gateway.Route{Pattern: "GET /a", Match: []gateway.Match{gateway.MatchHeader("X-V", "2")}, Handler: named("a")})
		}, "GET", 204, true, ""},
		{"a query that is not there", func(rt *gateway.Router) {
			rt.With(allowOrigin).Add(gateway.Route{Pattern: "GET /a", Match: []gateway.Match{gateway.MatchQuery("v", "2")}, Handler: named("a")})
		}, "GET", 404, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var rt gateway.Router
			tt.build(&rt)
			for range 2 {
				res := preflight(&rt, tt.method, "/a")
				if got := res.Header.Get("Access-Control-Allow-Origin") != ""; res.StatusCode != tt.status || got != tt.cors {
					t.Errorf("%s, CORS %v; want %d, %v", res.Status, got, tt.status, tt.cors)
				}
				if got := bodyOf(t, res); res.StatusCode == 200 && got != tt.body {
					t.Errorf("%q, want %q", got, tt.body)
				}
				if via := strings.Join(res.Header["Via"], " "); tt.name == "a site answers" && via != "group own" {
					t.Errorf("passed %q", via)
				}
			}
		})
	}
	// What is no preflight is as before.
	var rt gateway.Router
	rt.With(allowOrigin).Handle("GET /a", named("a"))
	if res := ask(&rt, "OPTIONS", "/a"); res.StatusCode != 204 || res.Header.Get("Allow") != "GET, HEAD, OPTIONS" || res.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("no preflight: %s, %v", res.Status, res.Header)
	}
}
