package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func always(name string) gateway.Match {
	return gateway.Match{Name: name, Func: func(*http.Request) bool { return true }}
}

func TestMatch(t *testing.T) {
	header := func(lines ...string) *http.Request {
		r := httptest.NewRequest("GET", "/", nil)
		for _, l := range lines {
			name, value, _ := strings.Cut(l, ": ")
			r.Header.Add(name, value)
		}
		return r
	}
	query := func(q string) *http.Request { return httptest.NewRequest("GET", "/?"+q, nil) }
	tests := []struct {
		match gateway.Match
		name  string
		r     *http.Request
		want  bool
	}{
		{gateway.MatchHeader("x-beta", ""), "header X-Beta", header("X-Beta: "), true},
		{gateway.MatchHeader("X-Beta", ""), "header X-Beta", header(), false},
		{gateway.MatchHeader("X-Beta", "1"), `header X-Beta = "1"`, header("X-Beta: 0", "X-Beta: 1"), true},
		{gateway.MatchHeader("X-Beta", "1"), `header X-Beta = "1"`, header("X-Beta: 10"), false},
		{gateway.MatchHeaderRegexp("x-beta", "^v[12]$"), `header X-Beta ~ "^v[12]$"`, header("X-Beta: v2"), true},
		{gateway.MatchHeaderRegexp("X-Beta", "^v[12]$"), `header X-Beta ~ "^v[12]$"`, header("X-Beta: v3"), false},
		{gateway.MatchQuery("v", ""), "query v", query("a=1&v"), true},
		{gateway.MatchQuery("v", ""), "query v", query("a=v"), false},
		{gateway.MatchQuery("v", "2"), `query v = "2"`, query("v=1&v=2"), true},
		{gateway.MatchQuery("v", "2"), `query v = "2"`, query("v=22"), false},
		{gateway.MatchQuery("a b", "c&d"), `query a+b = "c&d"`, query("a+b=c%26d"), true},
		{gateway.MatchQuery("v", "2"), `query v = "2"`, query("x;v=2&%zz=1"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name+" on "+tt.r.URL.RawQuery, func(t *testing.T) {
			if tt.match.Name != tt.name {
				t.Errorf("name %q, want %q", tt.match.Name, tt.name)
			}
			if got := tt.match.Func(tt.r); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
	for want, f := range map[string]func(){
		"MatchHeader: \"\"":          func() { gateway.MatchHeader("", "1") },
		"MatchHeader: Host":          func() { gateway.MatchHeader("host", "h.example") },
		"MatchHeaderRegexp: \"a b\"": func() { gateway.MatchHeaderRegexp("a b", "") },
		"MatchHeaderRegexp: error":   func() { gateway.MatchHeaderRegexp("a", "(") },
	} {
		if got := panicOf(f); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzMatchQuery holds MatchQuery against net/url.
func FuzzMatchQuery(f *testing.F) {
	f.Add("a=1&b=2", "b", "2")
	f.Add("a+b=%41;&%zz&=", "", "")
	f.Fuzz(func(t *testing.T, query, name, value string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.RawQuery = query
		want := false
		values, ok := r.URL.Query()[name]
		if value == "" {
			want = ok
		}
		for _, v := range values {
			want = want || v == value
		}
		if got := gateway.MatchQuery(name, value).Func(r); got != want {
			t.Errorf("%q has %q = %q: %v, want %v", query, name, value, got, want)
		}
	})
}

func TestRouterPrecedence(t *testing.T) {
	type routes = []gateway.Route
	h1, h2 := gateway.MatchHeader("A", ""), gateway.MatchHeader("B", "")
	q1, q2 := gateway.MatchQuery("a", ""), gateway.MatchQuery("b", "")
	own := always("own")
	never := gateway.Match{Name: "never", Func: func(*http.Request) bool { return false }}
	route := func(pattern string, m ...gateway.Match) gateway.Route {
		return gateway.Route{Pattern: pattern, Match: m}
	}
	tests := []struct {
		name    string
		routes  routes
		request string // method and target; fields A and B are set
		want    int    // index; or a status
	}{
		{"a predicate before none", routes{route("/"), route("/", h1)}, "GET /", 1},
		{"more headers before fewer", routes{route("/", h1), route("/", h1, h2)}, "GET /", 1},
		{"headers before queries", routes{route("/", q1, q2), route("/", h1)}, "GET /?a&b", 1},
		{"queries break the tie of headers", routes{route("/", h1), route("/", h2, q1)}, "GET /?a", 1},
		{"more queries before fewer", routes{route("/", q1), route("/", q1, q2)}, "GET /?a&b", 1},
		{"registered first", routes{route("/", h1), route("/", h2)}, "GET /", 0},
		{"own predicates in order", routes{route("/", own), route("/")}, "GET /", 0},
		{"method before headers", routes{route("/", h1, h2), route("GET /")}, "GET /", 1},
		{"path before headers", routes{route("/a/", h1), route("/a/b")}, "GET /a/b", 1},
		{"host before headers", routes{route("/", h1), route("example.com/")}, "GET /", 1},
		{"a predicate fails to the same path", routes{route("/a", q1), route("/a")}, "GET /a", 1},
		{"a predicate fails to no method", routes{route("GET /a", q1), route("/a", h1)}, "GET /a", 1},
		{"a predicate fails to a wider path", routes{route("/a", never), route("/")}, "GET /a", 1},
		{"a predicate fails to no host", routes{route("example.com/a", never), route("/a")}, "GET /a", 1},
		{"no predicate holds", routes{route("/a", never), route("/a", q1)}, "GET /a", 404},
		{"another method would do", routes{route("GET /a", never), route("PUT /a", h1)}, "GET /a", 405},
		{"another method would not do", routes{route("PUT /a", q1)}, "GET /a", 404},
		{"a redirect needs its predicates", routes{route("/a/", never), route("/b/", h1)}, "GET /a", 404},
		{"a redirect has its predicates", routes{route("/a/", never), route("/b/", h1)}, "GET /b", 308},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var rt gateway.Router
			got := -1
			for i, r := range tt.routes {
				r.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { got = i })
				rt.Add(r)
			}
			method, target, _ := strings.Cut(tt.request, " ")
			r := httptest.NewRequest(method, target, nil)
			r.Header.Set("A", "1")
			r.Header.Set("B", "1")
			w := recorded(&rt, r)
			if got < 0 {
				got = w.Code
			}
			if got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

func TestRouterShadows(t *testing.T) {
	a, b, own := gateway.MatchHeader("A", "1"), gateway.MatchQuery("b", ""), always("own")
	type matches = []gateway.Match
	tests := []struct {
		name     string
		one, two matches
		want     string
	}{
		{"alike", matches{a, b}, matches{b, a}, "matches the same requests"},
		{"alike but for a repetition", matches{a}, matches{a, a}, "matches the same requests"},
		{"own ones of one name", matches{own}, matches{always("own")}, "matches the same requests"},
		{"more, but asked later", nil, matches{own}, "can never match"},
		{"more of the same, but asked later", matches{a}, matches{a, own}, "can never match"},
		{"more and asked sooner", nil, matches{a}, ""},
		{"fewer and asked later", matches{own}, nil, ""},
		{"different", matches{own}, matches{always("other")}, ""},
		{"different values", matches{a}, matches{gateway.MatchHeader("A", "2")}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var rt gateway.Router
			got := panicOf(func() {
				rt.With().Add(gateway.Route{Pattern: "/a/{x}", Match: tt.one, Handler: named("")})
				rt.Add(gateway.Route{Pattern: "/a/{y}", Match: tt.two, Handler: named("")})
			})
			switch {
			case tt.want == "" && got != "":
				t.Error(got)
			case tt.want != "" && (!strings.Contains(got, tt.want) || strings.Count(got, "match_test.go:") != 2):
				t.Errorf("%q, want %q and two locations", got, tt.want)
			}
		})
	}
	// Other methods and hosts take other requests.
	var rt gateway.Router
	for _, p := range []string{"/", "GET /", "HEAD /", "h.example/"} {
		rt.Handle(p, named(p))
	}
	for _, m := range []gateway.Match{{Name: "", Func: own.Func}, {Name: "x"}} {
		if got := panicOf(func() { rt.Add(gateway.Route{Pattern: "/x", Match: matches{m}, Handler: named("")}) }); !strings.Contains(got, "without name or function") {
			t.Errorf("%+v: %q", m, got)
		}
	}
}

func TestExplain(t *testing.T) {
	var rt gateway.Router
	add := func(name, pattern string, m ...gateway.Match) {
		rt.Add(gateway.Route{Name: name, Pattern: pattern, Match: m, Handler: named(name)})
	}
	add("site", "/")
	add("user", "GET /users/{id}")
	add("beta", "GET /users/{id}", gateway.MatchHeader("X-Beta", "1"))
	add("me", "GET /users/me")
	add("make", "POST /users/{id}")
	add("files", "GET /files/{path...}")
	add("other", "other.example/users/{id}")
	add("tree", "GET /tree/")

	tests := []struct {
		request string
		route   string
		status  int
		values  map[string]string
		tried   string // candidates up to those with another path or host
	}{
		{"GET /users/7", "user", 200, map[string]string{"id": "7"},
			`beta:header X-Beta = "1", user:+, make:method, site:precedence, other:host, me:path, files:path, tree:path`},
		{"GET /users/me", "me", 200, nil,
			`me:+, beta:header X-Beta = "1", user:precedence, make:method, site:precedence, other:host, files:path, tree:path`},
		{"GET http://other.example/users/7", "other", 200, map[string]string{"id": "7"},
			`other:+, beta:header X-Beta = "1", user:precedence, make:method, site:precedence, me:path, files:path, tree:path`},
		{"GET /files/a%2Fb/c", "files", 200, map[string]string{"path": "a/b/c"},
			"files:+, site:precedence, other:host, me:path, beta:path, user:path, make:path, tree:path"},
		{"GET /tree", "", 308, nil, "site:precedence, other:host, me:path, beta:path, user:path, make:path, files:path, tree:path"},
		{"GET //x", "", 308, nil, ""},
		{"GET /users/..", "", 400, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.request, func(t *testing.T) {
			method, target, _ := strings.Cut(tt.request, " ")
			x := rt.Explain(httptest.NewRequest(method, target, nil))
			name := ""
			if x.Route != nil {
				name = x.Route.Name
			}
			var tried []string
			for _, c := range x.Candidates {
				if c.Matched {
					c.Reason += "+"
				}
				tried = append(tried, c.Route.Name+":"+c.Reason)
			}
			if name != tt.route || x.Status != tt.status || !reflect.DeepEqual(x.PathValues, tt.values) {
				t.Errorf("%q, %d, %v; want %q, %d, %v", name, x.Status, x.PathValues, tt.route, tt.status, tt.values)
			}
			if got := strings.Join(tried, ", "); got != tt.tried {
				t.Errorf("tried %s\n want %s", got, tt.tried)
			}
		})
	}

	r := httptest.NewRequest("GET", "/users/7", nil)
	want := `200 OK: user, id="7"
- beta  GET /users/{id}   header X-Beta = "1"
+ user  GET /users/{id}   taken
- make  POST /users/{id}  method
- site  /                 precedence
3 of another path
1 of another host
`
	if got := rt.Explain(r).String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	for request, want := range map[string]gateway.Explanation{
		"GET /users/..":          {Status: 400, Reason: "a dot segment"},
		"GET /users/7;x/../me":   {Status: 400, Reason: "a dot segment"},
		"GET /users/me%20":       {Status: 400, Reason: `a dot or a blank at the end of a segment that leads some servers to another route ("GET /users/me")`},
		"GET /tree?x":            {Status: 308, Location: "/tree/?x"},
		"GET //x":                {Status: 308, Location: "/x"},
		"OPTIONS http://h/files": {Status: 200},
	} {
		method, target, _ := strings.Cut(request, " ")
		x := rt.Explain(httptest.NewRequest(method, target, nil))
		if x.Status != want.Status || x.Reason != want.Reason || x.Location != want.Location || x.Allow != nil {
			t.Errorf("%s: %d, %q, %q, %q", request, x.Status, x.Reason, x.Location, x.Allow)
		}
		if s := x.String(); !strings.Contains(s, want.Reason) || !strings.Contains(s, want.Location) {
			t.Errorf("%s: %s", request, s)
		}
	}

	var bare gateway.Router
	bare.Handle("GET /a", named("a"))
	for request, want := range map[string]int{"GET /b": 404, "POST /a": 405, "OPTIONS /a": 204} {
		method, target, _ := strings.Cut(request, " ")
		r := httptest.NewRequest(method, target, nil)
		if x := bare.Explain(r); x.Status != want || x.Route != nil || len(x.Candidates) != 1 || x.Candidates[0].Matched {
			t.Errorf("%s: %+v", request, x)
		}
		if allow := strings.Join(bare.Explain(r).Allow, " "); allow != map[int]string{404: "", 405: "GET HEAD OPTIONS", 204: "GET HEAD OPTIONS"}[want] {
			t.Errorf("%s: Allow %q", request, allow)
		}
		if r.Pattern != "" || fmt.Sprint(r.PathValue("id")) != "" {
			t.Errorf("%s: the request was changed", request)
		}
	}
}

// Two predicates of one name must be the same one.
func TestMatchesOfOneName(t *testing.T) {
	same := gateway.Match{Name: "beta", Func: func(r *http.Request) bool { return true }}
	other := gateway.Match{Name: "beta", Func: func(r *http.Request) bool { return r.Host == "" }}
	tenant := func(name string) gateway.Match {
		return gateway.Match{Name: "tenant " + name, Func: func(r *http.Request) bool { return r.Header.Get("Tenant") == name }}
	}
	forged := gateway.Match{Name: gateway.MatchHeader("X", "1").Name, Func: same.Func}
	for _, tt := range []struct {
		name          string
		first, second gateway.Match
		panics        bool
	}{
		{"one value", same, same, false},
		{"two functions", same, other, true},
		{"one constructor", tenant("a"), tenant("a"), false},
		{"two names", tenant("a"), tenant("b"), false},
		{"MatchHeader twice", gateway.MatchHeader("X", "1"), gateway.MatchHeader("x", "1"), false},
		{"MatchQuery twice", gateway.MatchQuery("q", ""), gateway.MatchQuery("q", ""), false},
		{"MatchHeaderRegexp twice", gateway.MatchHeaderRegexp("X", "a+"), gateway.MatchHeaderRegexp("X", "a+"), false},
		{"the name of MatchHeader", gateway.MatchHeader("X", "1"), forged, true},
	} {
		for _, routes := range [][]gateway.Route{
			{{Pattern: "/", Match: []gateway.Match{tt.first, tt.second}}},
			{{Pattern: "/a", Match: []gateway.Match{tt.first}}, {Pattern: "/b", Match: []gateway.Match{tt.second}}},
		} {
			got := panicOf(func() {
				var rt gateway.Router
				for _, r := range routes {
					r.Handler = http.NotFoundHandler()
					rt.Add(r)
				}
			})
			if (got != "") != tt.panics || tt.panics && !strings.Contains(got, "different function") {
				t.Errorf("%s, %d routes: panicked with %q", tt.name, len(routes), got)
			}
		}
	}
}
