package gateway_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestProxyPath(t *testing.T) {
	for _, tt := range []struct {
		name    string
		opts    gateway.ProxyOptions
		pattern string
		ask     string
		want    string // "": refused
	}{
		{"as it is", gateway.ProxyOptions{}, "/", "/a/b?q=1", "/base/a/b?q=1"},
		{"prefix", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/api/a%2Fb", "/base/a%2Fb"},
		{"prefix with slash", gateway.ProxyOptions{StripPrefix: "/api/"}, "/", "/api/a", "/base/a"},
		{"prefix alone", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/api", "/base/"},
		{"prefix of a segment", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/apis", ""},
		{"prefix decoded", gateway.ProxyOptions{StripPrefix: "/café/a b"}, "/", "/caf%c3%a9/a%20b/x%2Fy", "/base/x%2Fy"},
		{"prefix encoded", gateway.ProxyOptions{StripPrefix: "/caf%C3%A9"}, "/", "/caf%c3%a9", "/base/"},
		{"prefix spelled otherwise", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/%61pi/%61", "/base/%61"},
		{"encoded slash is none of the prefix", gateway.ProxyOptions{StripPrefix: "/api/v1"}, "/", "/api%2Fv1/a", ""},
		{"prefix longer than the path", gateway.ProxyOptions{StripPrefix: "/api/v1"}, "/", "/api", ""},
		{"no prefix", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/x", ""},
		{"template", gateway.ProxyOptions{Path: "/v2/users/{id}/x%2Fy"}, "/users/{id}", "/users/7", "/base/v2/users/7/x%2Fy"},
		{"template escapes", gateway.ProxyOptions{Path: "/u/{id}"}, "/users/{id}", "/users/a%2Fb%3Fc%20d", "/base/u/a%2Fb%3Fc%20d"},
		{"template rest", gateway.ProxyOptions{Path: "/f/{p...}"}, "/files/{p...}", "/files/a/b%20c", "/base/f/a/b%20c"},
		{"plain hole for a rest", gateway.ProxyOptions{Path: "/f/{p}"}, "/files/{p...}", "/files/a%2Fb/c%20d/", "/base/f/a%2Fb/c%20d/"},
		{"empty rest", gateway.ProxyOptions{Path: "/f/{p}"}, "/files/{p...}", "/files/", "/base/f/"},
		{"empty rest in between", gateway.ProxyOptions{Path: "/f/{p...}/x"}, "/files/{p...}", "/files/", "/base/f/x"},
		{"query is cleaned", gateway.ProxyOptions{}, "/", "/?a=1;b=2&c=3&d=%zz", "/base/?c=3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := make(chan string, 1)
			backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RequestURI }))
			mux := http.NewServeMux()
			mux.Handle(tt.pattern, gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL+"/base/"), nil), &tt.opts))
			s := serve(t, mux)
			res := get(t, s.URL+tt.ask)
			if tt.want == "" {
				if p := readProblem(t, res); p.Status != 404 {
					t.Errorf("got %+v", p)
				}
				return
			}
			if res.StatusCode != 200 {
				t.Fatalf("got %d", res.StatusCode)
			}
			if got := <-seen; got != tt.want {
				t.Errorf("backend saw %s, want %s", got, tt.want)
			}
		})
	}
}

// TestForwardNowhere: an absolute URL says nothing about where a request goes.
func TestForwardNowhere(t *testing.T) {
	var got *url.URL
	p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r.URL
		return answered(r, 200, http.NoBody), nil
	}), nil)
	r := httptest.NewRequest("GET", "http://user:pass@evil.example/x?a=1", nil)
	p.ServeHTTP(httptest.NewRecorder(), r)
	if got.String() != "/x?a=1" {
		t.Errorf("sent to %s", got)
	}
}

func TestForwardQuery(t *testing.T) {
	w := newWay(t, http2, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Query", r.URL.RawQuery)
		w.Header().Set("X-Uri", r.RequestURI)
	})
	for _, tt := range []struct{ query, want string }{
		{"", ""}, {"a=1&b=2", "a=1&b=2"}, {"b=2&a=1&b=1", "b=2&a=1&b=1"}, {"a=%41%2f&b=+", "a=%41%2f&b=+"},
		{"a", "a"}, {"a=1&&b", "a=1&&b"}, {"a=?/:@[]!$'()*,", "a=?/:@[]!$'()*,"},
		{"a=1&a=2;b=3", "a=1"}, {"a=1&a=%zz&b=3", "a=1&b=3"}, {"a=%zz", ""}, {"a=%", ""}, {"a=%2", ""},
		{strings.Repeat("a=1&", 10_000) + "a=1", ""},
		{`a="<>\^` + "`{|}", "a=%22%3C%3E%5C%5E%60%7B%7C%7D"}, {"a=\xc3\xa4", "a=%C3%A4"}, {"a=#b", "a=%23b"},
		{"a= HTTP/1.0", "a=%20HTTP/1.0"},
	} {
		r := newRequest(t, "GET", w.url, nil)
		r.URL.RawQuery = tt.query
		res := w.do(t, r)
		if got := res.Header.Get("X-Query"); res.StatusCode != 200 || got != tt.want {
			t.Errorf("%.40q: %d, the target saw %q, want %q", tt.query, res.StatusCode, got, tt.want)
		}
	}
}

// TestForwardNoDotSegments: whatever mux stands before a Proxy, no path goes on that is another behind it.
func TestForwardNoDotSegments(t *testing.T) {
	seen := make(chan string, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RequestURI }))
	up := gateway.NewUpstream("x", gateway.MustTargets(backend.URL+"/base"), nil)
	j, observe := observed()
	for name, h := range map[string]http.Handler{
		"bare":     gateway.Proxy(up, nil),
		"prefix":   http.StripPrefix("/api", gateway.Proxy(up, nil)),
		"own":      gateway.Proxy(up, &gateway.ProxyOptions{StripPrefix: "/api"}),
		"template": gateway.Proxy(up, &gateway.ProxyOptions{Path: "/fixed"}),
	} {
		s := serve(t, observe(h))
		for _, path := range []string{
			"/api/..", "/api/../admin", "/api/%2e%2e/admin", "/api/.%2E/admin", "/api/./x", "/api/x/..%2fadmin", "/api/..%2Fadmin",
			"/api/%2e%2e%2fadmin", "/api/x%2f..%2fadmin", "/api/..;/admin", "/api/..;a=b/admin", "/api/%2e%2e;/x", `/api/..\admin`, "/api/x%5c..%5cadmin",
			"/api/x%00", "/api/x\\y",
		} {
			conn := raw(t, s, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if p := readProblem(t, res); p.Status != 400 {
				t.Errorf("%s: %s: %+v", name, path, p)
			}
			if line := j.next(t); line["outcome"] != "rejected" || line["error"] == "" {
				t.Errorf("%s: %s: logged %v", name, path, line)
			}
		}
		for _, path := range []string{"/api/...", "/api/.x", "/api/x..", "/api/..x", "/api/x;y", "/api/%2e%2e%2e"} {
			get(t, s.URL+path)
			j.next(t)
			want := "/base" + path
			switch name {
			case "prefix", "own":
				want = "/base" + strings.TrimPrefix(path, "/api")
			case "template":
				want = "/base/fixed"
			}
			if got := <-seen; got != want {
				t.Errorf("%s: the target saw %s, want %s", name, got, want)
			}
		}
		select {
		case got := <-seen:
			t.Errorf("%s: the target saw %s", name, got)
		default:
		}
	}
}

// TestForwardPathValues: a path value makes no segment that is none of its own.
func TestForwardPathValues(t *testing.T) {
	var got string
	p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r.URL.EscapedPath()
		return answered(r, 200, http.NoBody), nil
	}), &gateway.ProxyOptions{Path: "/v/{one}/{rest...}"})
	for _, tt := range []struct{ one, rest, want string }{
		{"a", "b/c", "/v/a/b/c"}, {"a/b", "", "/v/a%2Fb/"}, {"a?b", "c#d", "/v/a%3Fb/c%23d"}, {"ä", "", "/v/%C3%A4/"},
		{"..", "", ""}, {".", "", ""}, {"a", "../b", ""}, {"a", "b/..", ""}, {"a/../b", "", ""}, {"..;x", "", ""}, {"a\\b", "", ""}, {"a\x00", "", ""},
	} {
		got = ""
		r := httptest.NewRequest("GET", "/x", nil)
		r.SetPathValue("one", tt.one)
		r.SetPathValue("rest", tt.rest)
		rec := recorded(p, r)
		if got != tt.want || (rec.Code == 400) != (tt.want == "") {
			t.Errorf("%q, %q: %d, sent %q, want %q", tt.one, tt.rest, rec.Code, got, tt.want)
		}
	}
}

// TestPathValueOfNestedRouters: of two patterns with one name, the inner one says whether its value has slashes.
func TestPathValueOfNestedRouters(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })
	up := gateway.NewUpstream("backend", gateway.MustTargets(f.backend.URL), nil)
	proxy := gateway.Proxy(up, &gateway.ProxyOptions{Path: "/v/{id}"})
	for _, tt := range []struct{ outer, inner, path, want string }{
		{"/a/{id...}", "/a/{id}/show", "/a/x%2Fy/show", "/v/x%2Fy"},
		{"/a/{id}/{x...}", "/a/{id...}", "/a/x/y", "/v/x/y"},
		{"/a/{id...}", "/a/{other}/show", "/a/x%2Fy/show", "/v/x%2Fy/show"},
	} {
		var inner, outer gateway.Router
		inner.Handle(tt.inner, proxy)
		outer.Handle(tt.outer, &inner)
		rec := httptest.NewRecorder()
		outer.ServeHTTP(rec, httptest.NewRequest("GET", tt.path, nil))
		if got := rec.Body.String(); got != tt.want {
			t.Errorf("%s in %s: %s became %s", tt.inner, tt.outer, tt.path, got)
		}
	}
}

// TestTargetPathsKeepTheirEscaping: one slash stands between the path of a target and the one below it, and an escaped
// slash is none.
func TestTargetPathsKeepTheirEscaping(t *testing.T) {
	for _, tt := range [][3]string{
		{"/a%2Fb%2F", "/c", "/a%2Fb%2F/c"},
		{"/a%2Fb%2F/", "/c", "/a%2Fb%2F/c"},
		{"/a%2F", "/%2Fc", "/a%2F/%2Fc"},
		{"/a/", "/%2Fc%20d", "/a/%2Fc%20d"},
		{"/a//", "//c", "/a///c"},
	} {
		var got string
		up := gateway.NewUpstream("u", gateway.MustTargets("http://x"+tt[0]), &gateway.UpstreamOptions{
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				got = r.URL.RequestURI()
				return answeredText(r, 200, "", nil), nil
			}),
		})
		if res, err := up.RoundTrip(newRequest(t, "GET", "http://y"+tt[1], nil)); err != nil {
			t.Fatal(err)
		} else if res.Body.Close(); got != tt[2] {
			t.Errorf("%s at %s: %s, want %s", tt[1], tt[0], got, tt[2])
		}
	}
}
