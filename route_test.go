package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestRouterMatch(t *testing.T) {
	tests := []struct {
		name     string
		patterns []string
		request  string // method and target
		want     string // the pattern that takes it, "" for none
	}{
		{"literal", []string{"/a", "/b"}, "GET /b", "/b"},
		{"wildcard", []string{"/a/{x}"}, "GET /a/1", "/a/{x}"},
		{"wildcard needs a segment", []string{"/a/{x}"}, "GET /a/", ""},
		{"wildcard takes one segment", []string{"/a/{x}"}, "GET /a/1/2", ""},
		{"literal before wildcard", []string{"/a/{x}", "/a/b"}, "GET /a/b", "/a/b"},
		{"wildcard before rest", []string{"/a/{x...}", "/a/{x}"}, "GET /a/b", "/a/{x}"},
		{"back from a literal", []string{"/a/b/z", "/a/{x}/c"}, "GET /a/b/c", "/a/{x}/c"},
		{"back to rest", []string{"/a/b/z", "/a/"}, "GET /a/b/c", "/a/"},
		{"rest may be empty", []string{"/a/{x...}"}, "GET /a/", "/a/{x...}"},
		{"end of path", []string{"/a/{$}", "/a/"}, "GET /a/", "/a/{$}"},
		{"end of path and more", []string{"/a/{$}", "/a/"}, "GET /a/b", "/a/"},
		{"root alone", []string{"/{$}"}, "GET /", "/{$}"},
		{"root alone and more", []string{"/{$}"}, "GET /a", ""},
		{"path before method", []string{"GET /", "/foo"}, "GET /foo", "/foo"},
		{"method before none", []string{"/foo", "GET /foo"}, "GET /foo", "GET /foo"},
		{"other methods", []string{"/foo", "GET /foo"}, "POST /foo", "/foo"},
		{"a method elsewhere", []string{"POST /a/{x}", "GET /a/b"}, "POST /a/b", "POST /a/{x}"},
		{"HEAD by GET", []string{"GET /a"}, "HEAD /a", "GET /a"},
		{"HEAD before GET", []string{"GET /a", "HEAD /a"}, "HEAD /a", "HEAD /a"},
		{"GET not by HEAD", []string{"GET /a/", "HEAD /a/b"}, "GET /a/b", "GET /a/"},
		{"paths that overlap with other methods", []string{"GET /{x}/b", "POST /a/{x}"}, "GET /a/b", "GET /{x}/b"},
		{"host", []string{"/a", "h.example/a"}, "GET http://h.example/a", "h.example/a"},
		{"no host", []string{"/a", "h.example/a"}, "GET http://other.example/a", "/a"},
		{"host before a better path", []string{"/a", "h.example/"}, "GET http://h.example/a", "h.example/"},
		{"host without the method", []string{"/a", "POST h.example/a"}, "GET http://h.example/a", "/a"},
		{"port of a host", []string{"h.example/a"}, "GET http://h.example:8080/a", "h.example/a"},
		{"case of a host", []string{"h.Example/a"}, "GET http://H.example/a", "h.Example/a"},
		{"final dot of a host", []string{"h.example/a"}, "GET http://h.example./a", "h.example/a"},
		{"wildcard host", []string{"*.example.com/", "/"}, "GET http://a.example.com/", "*.example.com/"},
		{"wildcard host of two labels", []string{"*.example.com/", "/"}, "GET http://A.b.example.COM.:80/", "*.example.com/"},
		{"wildcard host is not its name", []string{"*.example.com/", "/"}, "GET http://example.com/", "/"},
		{"wildcard host is not a suffix", []string{"*.example.com/", "/"}, "GET http://aexample.com/", "/"},
		{"wildcard host needs a label", []string{"*.example.com/", "/"}, "GET http://.example.com/", "/"},
		{"exact host before a wildcard", []string{"*.example.com/a", "a.example.com/"}, "GET http://a.example.com/a", "a.example.com/"},
		{"longer wildcard host first", []string{"*.com/a", "*.example.com/", "*.b.example.com/"}, "GET http://a.example.com/a", "*.example.com/"},
		{"back to a shorter wildcard host", []string{"*.com/a", "POST *.example.com/a", "/a"}, "GET http://a.example.com/a", "*.com/a"},
		{"back from an exact host", []string{"*.com/a", "POST a.example.com/a", "/a"}, "GET http://a.example.com/a", "*.com/a"},
		{"back to no host", []string{"*.com/b", "/a"}, "GET http://a.example.com/a", "/a"},
		{"IPv6 host", []string{"[::1]/a"}, "GET http://[::1]:80/a", "[::1]/a"},
		{"case of a path", []string{"/a"}, "GET /A", ""},
		{"unknown method", []string{"/a"}, "BREW /a", "/a"},
		{"encoded literal", []string{"/a%20b/%7Bx}"}, "GET /a%20b/%7bx%7d", "/a%20b/%7Bx}"},
		{"encoded slash in a pattern", []string{"/a%2Fb", "/a/b"}, "GET /a%2fb", "/a%2Fb"},
		{"plain slash beside it", []string{"/a%2Fb", "/a/b"}, "GET /a/b", "/a/b"},
		{"encoded slash in a segment", []string{"/files/{name}"}, "GET /files/a%2Fb", "/files/{name}"},
		{"encoded slash is no final slash", []string{"/files/{$}", "/files/{name}"}, "GET /files/%2F", ""},
		{"encoded slash is part of its segment", []string{"/files/{name}"}, "GET /files/%2F", "/files/{name}"},
		{"encoded slash beside a raw brace", []string{"/files/{name}", "/files/a/"}, "GET /files/a%2Fb{", ""},
		{"encoded slash beside a raw brace, alone", []string{"/files/{name}", "/files/c/"}, "GET /files/a%2Fb{", "/files/{name}"},
		{"encoded slash beside a letter", []string{"/files/{name}", "/files/a/"}, "GET /files/a%2Fbé", ""},
		{"encoded slash beside a letter, alone", []string{"/files/{name}", "/files/c/"}, "GET /files/a%2Fbé", "/files/{name}"},
		{"many children", []string{"/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9", "/10/{x}", "/11"}, "GET /10/a", "/10/{x}"},
		{"tunnel has no path", []string{"/", "/{$}"}, "CONNECT h.example:443", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, reverse := range []bool{false, true} {
				patterns := slices.Clone(tt.patterns)
				if reverse {
					slices.Reverse(patterns)
				}
				var rt gateway.Router
				got := ""
				for _, p := range patterns {
					rt.Handle(p, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						got = r.Pattern
						if r.Pattern != p || gateway.RoutePattern(r.Context()) != p {
							t.Errorf("%q was told of %q and %q", p, r.Pattern, gateway.RoutePattern(r.Context()))
						}
					}))
				}
				method, target, _ := strings.Cut(tt.request, " ")
				res := ask(&rt, method, target)
				if got != tt.want {
					t.Errorf("%s went to %q (%s), want %q", tt.request, got, res.Status, tt.want)
				}
			}
		})
	}
}

func TestRouterPathValues(t *testing.T) {
	tests := []struct{ pattern, target, want string }{
		{"/{a}/x/{b}", "/1/x/2", "a=1 b=2 c= "},
		{"/{a}/{b}/{c}", "/1/2/3", "a=1 b=2 c=3 "},
		{"/x/{a...}", "/x/1/2/", "a=1/2/ b= c= "},
		{"/x/{a...}", "/x/", "a= b= c= "},
		{"/x/{a}/{b...}", "/x/1%2F2/3%2f4/5", "a=1/2 b=3/4/5 c= "},
		{"/x/{a}", "/x/%7Bé%25", "a={é% b= c= "},
		{"/x/{a}/", "/x/1/2", "a=1 b= c= "},
	}
	for _, tt := range tests {
		t.Run(tt.pattern+" "+tt.target, func(t *testing.T) {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, n := range []string{"a", "b", "c"} {
					fmt.Fprintf(w, "%s=%s ", n, r.PathValue(n))
				}
			})
			var rt gateway.Router
			rt.Handle(tt.pattern, h)
			var mux http.ServeMux
			mux.Handle(tt.pattern, h)
			for name, h := range map[string]http.Handler{"Router": &rt, "ServeMux": &mux} {
				if got := bodyOf(t, ask(h, "GET", tt.target)); got != tt.want {
					t.Errorf("%s: %q, want %q", name, got, tt.want)
				}
			}
		})
	}
}

// What no route takes.
func TestRouterAnswers(t *testing.T) {
	patterns := []string{
		"GET /a", "POST /a", "/any", "GET /tree/", "PUT /tree/{x}", "GET /item/{id}/{$}",
		"DELETE h.example/a", "/public/", "/admin",
	}
	tests := []struct {
		request  string
		status   int
		allow    string
		location string
	}{
		{"GET /none", 404, "", ""},
		{"OPTIONS /none", 404, "", ""},
		{"DELETE /a", 405, "GET, HEAD, OPTIONS, POST", ""},
		{"PUT http://h.example/a", 405, "DELETE, GET, HEAD, OPTIONS, POST", ""},
		{"OPTIONS /a", 204, "GET, HEAD, OPTIONS, POST", ""},
		{"OPTIONS /any", 200, "", ""},
		{"OPTIONS *", 204, "", ""},
		{"GET *", 400, "", ""},
		{"POST /tree", 405, "GET, HEAD, OPTIONS", ""},
		{"PATCH /tree/1", 405, "GET, HEAD, OPTIONS, PUT", ""},

		{"GET /tree", 308, "", "/tree/"},
		{"HEAD /tree?a=%2F&b", 308, "", "/tree/?a=%2F&b"},
		{"GET /item/a%2Fb", 308, "", "/item/a%2Fb/"},
		{"GET /item/a%2Fb{", 308, "", "/item/a%2Fb%7B/"},
		{"POST //a?x=1", 308, "", "/a?x=1"},
		{"GET //evil.example/%2e", 400, "", ""},
		{"GET //evil.example//x", 308, "", "/evil.example/x"},
		{"GET ///evil.example", 308, "", "/evil.example"},
		{"GET //", 308, "", "/"},
		{"GET //tree", 308, "", "/tree"},
		{"GET /a//%2F/b%7c|", 308, "", "/a/%2F/b%7c%7C"},
		{"CONNECT h.example:443", 404, "", ""},

		{"GET /public/../admin", 400, "", ""},
		{"GET /public/%2e%2E/admin", 400, "", ""},
		{"GET /public/.%2e/admin", 400, "", ""},
		{"GET /public/..%2fadmin", 400, "", ""},
		{"GET /public/x%2f..%2fadmin", 400, "", ""},
		{"GET /public/..;/admin", 400, "", ""},
		{"GET /public/..;x=1/admin", 400, "", ""},
		{"GET /public/./admin", 400, "", ""},
		{"GET /public/.", 400, "", ""},
		{"GET /public/..", 400, "", ""},
		{"GET /..", 400, "", ""},
		{`GET /public/..\admin`, 400, "", ""},
		{`GET /\evil.example`, 400, "", ""},
		{"GET /%5cevil.example", 400, "", ""},
		{"GET /public/%5C", 400, "", ""},
		{"GET /public/%00", 400, "", ""},
		{"GET /public/...", 200, "", ""},
		{"GET /public/.well-known", 200, "", ""},
		{"GET /public/..a/b..", 200, "", ""},
		{"GET /public/%252e%252e/x", 200, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.request, func(t *testing.T) {
			var rt gateway.Router
			through := false
			rt.Use(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					through = true
					next.ServeHTTP(w, r)
				})
			})
			for _, p := range patterns {
				rt.Handle(p, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			}
			method, target, _ := strings.Cut(tt.request, " ")
			res := ask(&rt, method, target)
			if res.StatusCode != tt.status || res.Header.Get("Allow") != tt.allow || res.Header.Get("Location") != tt.location {
				t.Errorf("%d, Allow %q, Location %q; want %d, %q, %q", res.StatusCode, res.Header.Get("Allow"),
					res.Header.Get("Location"), tt.status, tt.allow, tt.location)
			}
			if !through {
				t.Error("Use's middleware did not see it")
			}
			if tt.status >= 400 {
				var problem struct{ Status int }
				if res.Header.Get("Content-Type") != "application/problem+json" ||
					json.NewDecoder(res.Body).Decode(&problem) != nil || problem.Status != tt.status {
					t.Errorf("no problem: %v", res.Header)
				}
			}
		})
	}
}

func TestRouterErrNoRoute(t *testing.T) {
	for request, want := range map[string]int{"GET /none": 404, "POST /a": 405} {
		var rt gateway.Router
		var seen error
		rt.Use(gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
			seen = e
			w.WriteHeader(e.Status)
		}))
		rt.Handle("GET /a", named("a"))
		method, target, _ := strings.Cut(request, " ")
		if res := ask(&rt, method, target); res.StatusCode != want || !errors.Is(seen, gateway.ErrNoRoute) {
			t.Errorf("%s: %s, %v", request, res.Status, seen)
		}
	}
}

func TestRouterMiddleware(t *testing.T) {
	var rt gateway.Router
	built := 0
	rt.Use(mark("use1"))
	rt.Use(mark("use2"), func(next http.Handler) http.Handler { built++; return next })
	rt.Handle("/plain", named("plain"))
	rt.Handle("/own", named("own"), mark("own1"), mark("own2"))
	g := rt.With(mark("group1"))
	g.Handle("/group", named("group"), mark("own"))
	inner, other := g.With(mark("inner")), g.With(mark("other"))
	inner.Add(gateway.Route{Name: "inner", Pattern: "/inner", Handler: named("inner"), Middleware: []gateway.Middleware{mark("own")}})
	other.Handle("/other", named("other"))

	for target, want := range map[string]string{
		"/plain": "use1 use2",
		"/own":   "use1 use2 own1 own2",
		"/group": "use1 use2 group1 own",
		"/inner": "use1 use2 group1 inner own",
		"/other": "use1 use2 group1 other",
		"/none":  "use1 use2",
	} {
		for range 2 {
			if got := strings.Join(ask(&rt, "GET", target).Header["Via"], " "); got != want {
				t.Errorf("%s: %s, want %s", target, got, want)
			}
		}
	}
	if built != 6 {
		t.Errorf("Use's middleware was built %d times, want once for each of 5 routes and for the rest", built)
	}
}

func TestRouterRoutes(t *testing.T) {
	var rt gateway.Router
	for _, p := range []string{"/", "GET /a/{x}", "/a/b", "/a/{x}", "b.example/", "HEAD /a/{x}", "POST /a/{x}", "a.example/{$}", "a.example/"} {
		rt.Handle(p, named(p))
	}
	rt.With(mark("g")).Add(gateway.Route{Name: "last", Pattern: "/a/", Handler: named("last"), Middleware: []gateway.Middleware{mark("own")}})
	var got []string
	for r := range rt.Routes() {
		got = append(got, r.Name)
		if r.Name == "last" && (len(r.Middleware) != 2 || r.Handler == nil) {
			t.Errorf("last has %d middleware", len(r.Middleware))
		}
	}
	want := []string{"a.example/{$}", "a.example/", "b.example/", "/a/b", "HEAD /a/{x}", "GET /a/{x}", "POST /a/{x}", "/a/{x}", "last", "/"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for range rt.Routes() {
		break // must not go on
	}
}

func TestRouterSetupPanics(t *testing.T) {
	h := named("")
	malformed := map[string]string{
		"":             "empty pattern",
		"GET":          "missing /",
		"a.example":    "missing /",
		"G@T /":        "invalid method",
		"{x}/":         "host contains '{'",
		"h.example:8/": "host with a port",
		"/a{x}":        "must start with '{'",
		"/{x}a":        "must end with '}'",
		"/{":           "must end with '}'",
		"/{x":          "must end with '}'",
		"/{}":          "empty wildcard",
		"/{...}":       "empty wildcard",
		"/{1x}":        "bad wildcard name",
		"/{x-y}":       "bad wildcard name",
		"/{$}/a":       "{$} not at end",
		"/{x...}/a":    "not at end",
		"/{x}/{x}":     "duplicate wildcard name",
		"//":           "unclean",
		"/a//b":        "unclean",
		"/a/../b":      "a dot segment",
		"/a/%2e":       "a dot segment",
		"/a/x%2f..":    "a dot segment",
		`/a\b`:         "a backslash",
		"/%00":         "NUL",
		"/users/:id":   "write {id}",
		"/static/*":    "write {name...}",
		"/a?x=1":       "has no query; write MatchQuery",
		"/a#x":         "no fragment",
		"get /x":       "write GET",
		"Post h/x":     "write POST",
		"http://h/x":   "leave out the scheme",
		"*./":          "a wildcard host is",
		"*/":           "a wildcard host is",
		"a.*.b/":       "a wildcard host is",
		"*.*.b/":       "a wildcard host is",
		"*a.b/":        "a wildcard host is",
	}
	for pattern, want := range malformed {
		var rt gateway.Router
		if got := panicOf(func() { rt.Handle(pattern, h) }); !strings.HasPrefix(got, "gateway: Router.Handle: ") ||
			!strings.Contains(got, want) || !strings.Contains(got, "route_test.go:") {
			t.Errorf("%q: %q, want %q", pattern, got, want)
		}
	}

	conflicts := []struct {
		name, one, two, want string // want "" is no conflict
	}{
		{"alike", "/a", "/a", "matches the same requests"},
		{"alike but for names", "GET /a/{x}/{y...}", "GET /a/{z}/", "matches the same requests"},
		{"hosts alike", "h.example/a", "H.example./a", "matches the same requests"},
		{"overlap", "/{x}/b", "/a/{x}", `like "/a/b"`},
		{"overlap with a slash", "/a/{x}/", "/{x}/b/{$}", `like "/a/b/"`},
		{"rest over literals", "/a/{x...}", "/{x}/b", `like "/a/b"`},
		{"rest over wildcards", "/a/", "/{x}/{y}/{z}", `like "/a/y/z"`},
		{"rest and rest", "/a/{x}/", "/{x}/b/", `like "/a/b/"`},
		{"GET and HEAD overlap", "GET /{x}/b", "HEAD /a/{x}", `like "/a/b"`},
		{"one method and all", "GET /{x}/b", "/a/{x}", `like "/a/b"`},
		{"deep", "/a/{x}/c/{y}", "/a/b/{x}/d", `like "/a/b/c/d"`},
		{"more specific path, fewer methods", "GET /", "/foo", ""},
		{"more specific path, more methods", "GET /a/b", "/a/{x}", ""},
		{"other methods", "GET /{x}/b", "POST /a/{x}", ""},
		{"other hosts", "h.example/{x}/b", "/a/{x}", ""},
		{"wildcard hosts alike", "*.Example.com/a", "*.example.com./a", "matches the same requests"},
		{"overlap on a wildcard host", "*.example.com/{x}/b", "*.example.com/a/{x}", `like "/a/b"`},
		{"a wildcard host and a name below it", "*.example.com/{x}/b", "a.example.com/a/{x}", ""},
		{"other lengths", "/{x}/b", "/a/{x}/c", ""},
		{"slash and segment", "/{x}/{$}", "/a/{x}", ""},
		{"rest in rest", "/a/", "/a/b/", ""},
		{"wildcard in rest", "/a/{x}", "/a/", ""},
		{"path and path with slash", "/a", "/a/", ""},
	}
	for _, tt := range conflicts {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range [][2]string{{tt.one, tt.two}, {tt.two, tt.one}} {
				var rt gateway.Router
				got := panicOf(func() {
					rt.Handle(p[0], h)
					rt.With(mark("x")).With().Handle(p[1], h)
				})
				switch {
				case tt.want == "" && got != "":
					t.Errorf("%q then %q: %s", p[0], p[1], got)
				case tt.want != "" && (!strings.Contains(got, tt.want) || strings.Count(got, "route_test.go:") != 2):
					t.Errorf("%q then %q: %q, want %q and two locations", p[0], p[1], got, tt.want)
				}
			}
		})
	}

	others := map[string]func(rt *gateway.Router){
		"Router.Use: called after": func(rt *gateway.Router) { rt.Handle("/", h); rt.Use(mark("x")) },
		"Router.Use: nil":          func(rt *gateway.Router) { rt.Use(nil) },
		"Router.With: nil":         func(rt *gateway.Router) { rt.With(nil) },
		"Group.With: nil":          func(rt *gateway.Router) { rt.With().With(nil) },
		"Router.Handle: nil":       func(rt *gateway.Router) { rt.Handle("/", h, nil) },
		"has no handler":           func(rt *gateway.Router) { rt.Handle("/", nil) },
		`"/nil" (registered at `:   func(rt *gateway.Router) { rt.Handle("/nil", http.HandlerFunc(nil)) },
		"has RawRest, but neither": func(rt *gateway.Router) { rt.Add(gateway.Route{Pattern: "/a/{b}", Handler: h, RawRest: true}) },
		"middleware returned nil": func(rt *gateway.Router) {
			rt.Handle("/", h, func(http.Handler) http.Handler { return http.HandlerFunc(nil) })
		},
		"returned nil": func(rt *gateway.Router) {
			rt.Handle("/", h, func(http.Handler) http.Handler { return nil })
		},
	}
	for want, f := range others {
		if got := panicOf(func() { f(new(gateway.Router)) }); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Where our middleware stands outside, it learns the pattern, whatever routes inside.
func TestRoutePattern(t *testing.T) {
	ours := gateway.TrustProxies("X-Forwarded-For") // any middleware of the package begins the record
	router := func(pattern string, h http.Handler, mw ...gateway.Middleware) http.Handler {
		var rt gateway.Router
		rt.Use(mw...)
		rt.Handle(pattern, h)
		return &rt
	}
	mux := func(pattern string, h http.Handler) http.Handler {
		m := http.NewServeMux()
		m.Handle(pattern, h)
		return m
	}
	asked := func(inside *string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { *inside = gateway.RoutePattern(r.Context()) })
	}
	var inside string
	anonymous := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), nil)))
		})
	}
	tests := []struct {
		name string
		h    http.Handler
		want string
	}{
		{"Router", router("GET /a/{x}", asked(&inside)), "GET /a/{x}"},
		{"outermost Router", router("/a/", router("GET /a/{x}", asked(&inside))), "/a/"},
		{"ServeMux", mux("GET /a/{x}", ours(asked(&inside))), "GET /a/{x}"},
		{"Router under ServeMux", mux("/a/", router("GET /a/{x}", asked(&inside))), "GET /a/{x}"},
		{"ServeMux under Router", router("/a/", mux("GET /a/{x}", asked(&inside))), "/a/"},
		{"Router under another identity", anonymous(router("GET /a/{x}", asked(&inside))), "GET /a/{x}"},
		{"no route", router("/b", asked(&inside)), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inside = ""
			var outside, standard string
			h := ours(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tt.h.ServeHTTP(w, r)
				outside, standard = gateway.RoutePattern(r.Context()), r.Pattern
			}))
			ask(h, "GET", "/a/1")
			if inside != tt.want || outside != tt.want {
				t.Errorf("inside %q, outside %q, want %q", inside, outside, tt.want)
			}
			if tt.want != "" && tt.name != "Router under another identity" && standard == "" {
				t.Error("Request.Pattern is empty outside")
			}
		})
	}
	if got := gateway.RoutePattern(context.Background()); got != "" {
		t.Errorf("without request: %q", got)
	}
}

// The match is made before Use's middleware, so that it can tell routes apart.
func TestRouterMatchesBeforeMiddleware(t *testing.T) {
	var rt gateway.Router
	var pattern, id string
	rt.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			pattern, id = gateway.RoutePattern(r.Context()), r.PathValue("id")
			next.ServeHTTP(w, r)
		})
	})
	rt.Handle("GET /users/{id}", named("user", "id"))
	ask(&rt, "GET", "/users/7")
	if pattern != "GET /users/{id}" || id != "7" {
		t.Errorf("pattern %q, id %q", pattern, id)
	}
}

// Path values of nested routers add up, the inner one's counting where names meet.
func TestRouterNests(t *testing.T) {
	var inner gateway.Router
	inner.Handle("/{tenant}/{b}", named("inner", "tenant", "a", "b"))
	var outer gateway.Router
	outer.Handle("/{a}/{b...}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.StripPrefix("", &inner).ServeHTTP(w, r)
	}))
	mux := http.NewServeMux()
	mux.Handle("/api/", http.StripPrefix("/api", &outer))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	for target, want := range map[string]string{
		"/api/x/y":     "inner tenant=x a=x b=y",
		"/api/x/y%2Fz": "inner tenant=x a=x b=y/z",
	} {
		res, err := http.Get(srv.URL + target)
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyOf(t, res); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
		res.Body.Close()
	}
}

// An empty path is "/", so a Router behind http.StripPrefix does not redirect out of it.
func TestRouterEmptyPath(t *testing.T) {
	var rt gateway.Router
	rt.Handle("/{$}", named("root"))
	if res := ask(http.StripPrefix("/api", &rt), "GET", "/api"); res.StatusCode != 200 {
		t.Errorf("%s to %q", res.Status, res.Header.Get("Location"))
	}
}

// Behind http.StripPrefix, a redirect goes where the client will find it.
func TestRouterRedirectsUnderPrefix(t *testing.T) {
	var rt gateway.Router
	rt.Handle("/tree/", named("tree"))
	for _, tt := range [][2]string{
		{"/api/tree?x=/tree", "/api/tree/?x=/tree"},
		{"/api//tree", "/api/tree"},
		{"http://h.example/api/tree", "/tree/"}, // an absolute form names no prefix
	} {
		if got := ask(http.StripPrefix("/api", &rt), "GET", tt[0]).Header.Get("Location"); got != tt[1] {
			t.Errorf("%s: %q, want %q", tt[0], got, tt[1])
		}
	}
	if got := ask(http.StripPrefix("//evil.example", &rt), "GET", "//evil.example/tree").Header.Get("Location"); got != "/evil.example/tree/" {
		t.Errorf("off the site: %q", got)
	}
}

// What was matched is what is forwarded, in a template too.
func TestRouterForwardsWhatItMatched(t *testing.T) {
	tests := []struct {
		pattern string
		opts    gateway.ProxyOptions
		target  string
		want    string
	}{
		{"/files/{name}", gateway.ProxyOptions{}, "/files/a%2Fb{", "/files/a%2Fb%7B"},
		{"/files/{name}", gateway.ProxyOptions{}, "/files/%2F", "/files/%2F"},
		{"/{x}", gateway.ProxyOptions{}, "/c%2Fd", "/c%2Fd"},
		{"/{x}", gateway.ProxyOptions{}, "/%252e%252e", "/%252e%252e"},
		{"/api/", gateway.ProxyOptions{StripPrefix: "/api"}, "/api/a%2fb|/é", "/a%2fb%7C/%C3%A9"},
		{"/files/{name}", gateway.ProxyOptions{Path: "/v2/{name}/x"}, "/files/a%2Fb{", "/v2/a%2Fb%7B/x"},
		{"/files/{rest...}", gateway.ProxyOptions{Path: "/v2/{rest...}"}, "/files/a%2fb/c{/%20d/", "/v2/a%2fb/c%7B/%20d/"},
		{"/files/{rest...}", gateway.ProxyOptions{Path: "/v2/{rest...}"}, "/files/", "/v2/"},
	}
	for _, tt := range tests {
		t.Run(tt.pattern+" "+tt.target, func(t *testing.T) {
			backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.RequestURI)
			}))
			defer backend.Close()
			var rt gateway.Router
			rt.Handle(tt.pattern, gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), &tt.opts))
			if got := bodyOf(t, ask(&rt, "GET", tt.target)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestRouterZero(t *testing.T) {
	var rt gateway.Router
	if res := ask(&rt, "GET", "/"); res.StatusCode != http.StatusNotFound {
		t.Error(res.Status)
	}
}

func TestRouterFirstUsedConcurrently(t *testing.T) {
	var rt gateway.Router
	rt.Use(mark("use"))
	rt.Handle("/a/{x}", named("a", "x"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, target := range []string{"/a/1", "/none"} {
				if res := ask(&rt, "GET", target); res.Header.Get("Via") != "use" {
					t.Errorf("%s: %v", target, res.Header)
				}
			}
		})
	}
	wg.Wait()
}

func TestLive(t *testing.T) {
	var l gateway.Live
	if res := ask(&l, "GET", "/"); res.StatusCode != http.StatusServiceUnavailable ||
		res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("zero: %s", res.Status)
	}
	if l.Load() != nil {
		t.Error("zero holds a handler")
	}
	for _, name := range []string{"one", "two"} {
		l.Store(named(name))
		if got := bodyOf(t, ask(&l, "GET", "/")); got != name {
			t.Errorf("%q, want %q", got, name)
		}
	}
	l.Store(nil)
	if res := ask(&l, "GET", "/"); res.StatusCode != http.StatusServiceUnavailable || l.Load() != nil {
		t.Errorf("emptied: %s", res.Status)
	}
}

// A thousand swaps under traffic: every request is answered, and the limiter and the circuit, which every
// Router shares, lose nothing.
func TestLiveSwaps(t *testing.T) {
	const swaps, burst = 1000, 300
	limiter := gateway.NewTokenBucket(1e-6, burst, nil)
	circuit := gateway.NewCircuit("guarded", &gateway.CircuitOptions{OpenFor: time.Hour})
	circuit.Trip(time.Hour)
	build := func() http.Handler {
		var rt gateway.Router
		rt.Handle("GET /free/{x}", named("free", "x"))
		rt.Handle("GET /limited", named("limited"), gateway.RateLimit(limiter, gateway.KeyByIP, nil))
		rt.Handle("GET /guarded", named("guarded"), gateway.Breaker(circuit, nil))
		return &rt
	}
	var live gateway.Live
	live.Store(build())
	srv := httptest.NewServer(&live)
	defer srv.Close()

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	defer client.CloseIdleConnections()
	status := func(path string) int {
		res, err := client.Get(srv.URL + path)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	var admitted atomic.Int64
	answered := make(chan struct{}, 1)
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					if n >= burst {
						return
					}
				default:
				}
				if got := status("/free/1"); got != 200 {
					t.Errorf("free: %d", got)
				}
				switch got := status("/limited"); got {
				case 200:
					admitted.Add(1)
				case 429:
				default:
					t.Errorf("limited: %d", got)
				}
				if got := status("/guarded"); got != 503 {
					t.Errorf("guarded: %d", got)
				}
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		})
	}
	for i := range swaps {
		if i%10 == 0 {
			<-answered // so that there is traffic all along
		}
		live.Store(build())
	}
	close(done)
	clients.Wait()
	if n := admitted.Load(); n != burst {
		t.Errorf("the limiter let %d pass, want %d", n, burst)
	}
}

// A request in flight finishes where it began.
func TestLiveInFlight(t *testing.T) {
	var live gateway.Live
	live.Store(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		live.Store(named("new"))
		fmt.Fprint(w, "old")
	}))
	for _, want := range []string{"old", "new"} {
		if got := bodyOf(t, ask(&live, "GET", "/")); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
