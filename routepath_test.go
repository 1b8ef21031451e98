package gateway_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// A path that another server could read as another route's gets 400. Where the reading makes no difference, the
// path goes on as it came.
func TestRouterReadings(t *testing.T) {
	patterns := []string{"/", "/admin/", "/admin", "GET /one/{a}", "POST /two/x", "/tree/", "/spelled;out", "/spelled", "h.example/secret", "/lists/{a}/{b}", "/lists/{a}"}
	for _, tt := range []struct {
		request string
		want    string // the pattern, or the status
	}{
		{"/admin;x/y", "400"}, {"/admin;x", "400"}, {"/admin;", "400"}, {"/admin%3Bx/y", "400"}, {"/;x/admin", "400"}, {"/a;x/y", "/"},
		{"/admin%2Fx", "400"}, {"/admin%2f", "400"}, {"/%2Fadmin/x", "400"}, {"/%2fadmin", "400"}, {"/a%2Fadmin", "/"},
		{"/admin%20/x", "400"}, {"/admin./x", "400"}, {"/admin%2e/x", "400"}, {"/admin%09", "400"}, {"/admin.%20.", "400"}, {"/admin...", "400"},
		{"/a./b%20/c.", "/"}, {"/a.b/c%20d", "/"},
		{"/admin%20;x/y", "400"}, {"/admin.%2Fx", "400"}, {"/admin;x%2Fy", "400"}, {"/admin.;a.%2Fb;c", "400"},
		{"/a%2Fb;x./c", "/"},
		{"/admin/x;y", "/admin/"}, {"/admin/a%2Fb", "/admin/"}, {"/admin/a.", "/admin/"},
		{"/one/a%2Fb", "400"}, {"/one/a;v=1", "GET /one/{a}"},
		{"/two;a/x", "/"}, // a GET of "/two/x" goes there, too
		{"/tree;x", "400"},
		{"/spelled;out", "/spelled;out"}, {"/spelled;outer", "400"}, {"/spelled;out.", "400"},
		{"http://h.example/secret;x", "400"}, {"http://other.example/secret;x", "/"},
		{"/lists/a%2Fb", "400"}, {"/lists/a;x", "/lists/{a}"}, {"/lists/a;x/b", "/lists/{a}/{b}"},
		{"/public/..%20/admin", "400"}, {"/public/.%20", "400"}, {"/public/..%09;x/admin", "400"}, {"/public/...", "/"},
	} {
		var rt gateway.Router
		took := ""
		for _, p := range patterns {
			rt.Handle(p, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { took = p }))
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", tt.request, nil)
		x := rt.Explain(r)
		rt.ServeHTTP(w, r)
		if took == "" {
			took = fmt.Sprint(w.Code)
		}
		if took != tt.want {
			t.Errorf("%s: %s, want %s", tt.request, took, tt.want)
		}
		if (x.Status == 400) != (w.Code == 400) || w.Code == 400 && strings.Contains(w.Body.String(), "admin/") {
			t.Errorf("%s: explained as %d, %s; answered %s", tt.request, x.Status, x.Reason, w.Body)
		}
	}
}

// An encoded slash and a parameter do no harm where no other route takes what servers make of them.
func TestRouterReadingsElsewhere(t *testing.T) {
	var rt gateway.Router
	rt.Handle("/packages/{name}", named("package", "name"))
	rt.Handle("DELETE /packages/{name}/{version}", named("delete"))
	for target, want := range map[string]string{
		"/packages/@scope%2Fname": "package name=@scope/name", "/packages/a;v=1": "package name=a;v=1", "/packages/a%20": "package name=a ",
	} {
		if got := bodyOf(t, ask(&rt, "GET", target)); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if res := ask(&rt, "DELETE", "/packages/a%2Fb"); res.StatusCode != 400 {
		t.Errorf("a DELETE that another route takes: %s", res.Status)
	}
}

// What {name...} takes goes on as it came with RawRest, through the Router, a Proxy and its options.
func TestRouteRawRest(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) }))
	defer backend.Close()
	up := gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil)
	var rt gateway.Router
	add := func(pattern string, raw bool, opts *gateway.ProxyOptions) {
		rt.Add(gateway.Route{Pattern: pattern, RawRest: raw, Handler: gateway.Proxy(up, opts)})
	}
	add("/fetch/{url...}", true, nil)
	add("/fetch/admin/", false, nil)
	add("/fetch/exact", false, nil)
	add("/objects/{bucket}/keys/{key...}", true, &gateway.ProxyOptions{Path: "/s3/{bucket}/{key...}"})
	add("/strip/", true, &gateway.ProxyOptions{StripPrefix: "/strip"})
	add("/plain/{rest...}", false, nil)
	add("GET /get/{rest...}", true, nil)
	srv := httptest.NewServer(&rt)
	defer srv.Close()
	for _, tt := range []struct{ path, want string }{
		{"/fetch/https://host//x", "/fetch/https://host//x"},
		{"/fetch//x", "/fetch//x"},
		{"/fetch/x//", "/fetch/x//"},
		{`/fetch/a%5Cb`, "/fetch/a%5Cb"},
		{`/fetch/a\b`, "/fetch/a%5Cb"},
		{"/fetch/a%2F%2fb;c./%20", "/fetch/a%2F%2fb;c./%20"},
		{"/objects/b/keys//a//b%2F/", "/s3/b//a//b%2F/"},
		{"/strip//a", "//a"},
		{"/strip/a//", "/a//"},

		{"/fetch/..//x", "400"}, {"/fetch/a//..", "400"}, {"/fetch/a//%2e%2e/x", "400"}, {`/fetch/a%5C..%5Cb`, "400"}, {`/fetch/..%5Cb`, "400"},
		{"/fetch/a%5C%2e", "400"}, {"/fetch//..;x/b", "400"}, {"/fetch//..%20/b", "400"}, {"/fetch//%00", "400"}, {"/fetch/%2f..%5c", "400"},
		{"//fetch/x", "308 /fetch/x"}, {"//fetch//x", "308 /fetch/x"}, {"/objects/b//keys/x", "308 /objects/b/keys/x"}, {"/objects/a%5Cb/keys/x", "400"},
		{"/plain//x", "308 /plain/x"}, {"/plain/a%5Cb", "400"},
		{"/fetch//admin/x", "308 /fetch/admin/x"}, {"/fetch/admin//x", "308 /fetch/admin/x"}, {"/fetch/%5Cadmin/x", "400"}, {"/fetch/admin%5Cx", "400"},
		{"/fetch//exact", "308 /fetch/exact"}, {"/fetch//exact;x", "400"},
	} {
		got := rawGet(t, srv, tt.path)
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.path, got, tt.want)
		}
	}
	w := recorded(&rt, httptest.NewRequest("POST", "/get//x", nil))
	if w.Code != 308 { // as without RawRest: no route takes it
		t.Errorf("another method: %d", w.Code)
	}
	w = httptest.NewRecorder() // no Router has allowed it
	gateway.Proxy(up, nil).ServeHTTP(w, httptest.NewRequest("GET", `/fetch/a%5Cb`, nil))
	if w.Code != 400 {
		t.Errorf("a Proxy alone: %d", w.Code)
	}
}

// rawGet returns the body of an answer with 200, and otherwise its status and Location.
func rawGet(t *testing.T, srv *httptest.Server, path string) string {
	t.Helper()
	r, err := http.NewRequest("GET", srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = path
	if strings.HasPrefix(path, "//") {
		r.URL.Opaque = "//" + r.URL.Host + path // net/http takes the host for it
	}
	res, err := srv.Client().Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode == 200 {
		return bodyOf(t, res)
	}
	return strings.TrimSpace(fmt.Sprint(res.StatusCode, " ", res.Header.Get("Location")))
}

// A hostile Host costs no more than the longest wildcard.
func TestRouterLongHost(t *testing.T) {
	var rt gateway.Router
	rt.Handle("*.example.com/", named("below"))
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = strings.Repeat("a.", 1<<20) + "example.com"
	w := recorded(&rt, r)
	if w.Body.String() != "below" {
		t.Error(w.Code, w.Body)
	}
}

// With many routes on one path, a header field's value finds its routes: the others are not asked. The order stays.
func TestRouterManyPredicates(t *testing.T) {
	const n = 1000
	var rt gateway.Router
	asked := 0
	count := func(name string, holds bool) gateway.Match {
		return gateway.Match{Name: name, Func: func(*http.Request) bool { asked++; return holds }}
	}
	beta := gateway.MatchHeader("X-Beta", "1")
	add := func(name string, m ...gateway.Match) {
		rt.Add(gateway.Route{Name: name, Pattern: "/{x}", Match: m, Handler: named(name)})
	}
	add("none")
	for i := range n {
		tenant := gateway.MatchHeader("X-Tenant", fmt.Sprint(i))
		add(fmt.Sprint("beta ", i), beta, tenant)
		add(fmt.Sprint("never ", i), count(fmt.Sprint("never ", i), false), tenant)
		add(fmt.Sprint("tenant ", i), count(fmt.Sprint("always ", i), true), tenant)
		if i == n/2 {
			add("language", gateway.MatchHeaderRegexp("Accept-Language", "^de"))
		}
	}
	for _, tt := range []struct {
		fields, want string
		asked        int
	}{
		{"X-Tenant: 7", "tenant 7", 2},
		{"X-Tenant: 7, X-Beta: 1", "beta 7", 0},
		{"X-Tenant: 900, X-Tenant: 7", "tenant 7", 2},
		{"X-Tenant: 7, Accept-Language: de", "tenant 7", 2},
		{"X-Tenant: 900, Accept-Language: de", "language", 0},
		{"X-Tenant: no, X-Beta: 1", "none", 0},
		{strings.Repeat("X-Tenant: 3, ", 1000) + "X-Tenant: 2", "tenant 2", 2},
		{"X-Tenant: 19, X-Tenant: 18, X-Tenant: 17, X-Tenant: 16, X-Tenant: 15, X-Tenant: 14, X-Tenant: 13, X-Tenant: 12, X-Tenant: 11", "tenant 11", 2},
		{"", "none", 0},
	} {
		asked = 0
		r := httptest.NewRequest("GET", "/x", nil)
		for f := range strings.SplitSeq(tt.fields, ", ") {
			if name, value, ok := strings.Cut(f, ": "); ok {
				r.Header.Add(name, value)
			}
		}
		w := recorded(&rt, r)
		if w.Body.String() != tt.want || asked != tt.asked {
			t.Errorf("%.60s: %s after %d, want %s after %d", tt.fields, w.Body, asked, tt.want, tt.asked)
		}
		if x := rt.Explain(r); x.Route == nil || x.Route.Name != tt.want || len(x.Candidates) != 3*n+2 {
			t.Errorf("%.60s: explained as %v", tt.fields, x.Route)
		}
	}
	changed := gateway.MatchHeader("X-Tenant", "changed")
	changed.Func = func(r *http.Request) bool { return r.Header.Get("X-Other") == "1" }
	add("changed", beta, changed, always("more"))
	r := httptest.NewRequest("GET", "/x", nil)
	r.Header = http.Header{"X-Beta": {"1"}, "X-Other": {"1"}}
	if x := rt.Explain(r); x.Route.Name != "changed" || bodyOf(t, recorded(&rt, r).Result()) != "changed" {
		t.Errorf("a function of its own: explained as %v", x.Route.Name)
	}
	for _, m := range [][]gateway.Match{
		{gateway.MatchHeader("X-Tenant", "7"), beta},
		{gateway.MatchHeader("X-Tenant", "7"), beta, always("more")},
		{gateway.MatchHeader("X-Tenant", "7"), beta, gateway.MatchQuery("a", "b")},
	} {
		got := panicOf(func() { add("twice", m...) })
		if want := len(m) < 3 || m[2].Name == "more"; (got != "") != want {
			t.Errorf("%v: %q", m, got)
		}
	}
}
