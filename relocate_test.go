package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// relocated asks a Proxy with opts, at gw.example, for path, and returns the values of a field of the answer. The target
// is http://users.internal:8080 in an Upstream and answers with the values given.
func relocated(opts gateway.ProxyOptions, path, field string, values ...string) []string {
	opts.RewriteLocation = true
	up := gateway.NewUpstream("users", gateway.MustTargets("http://users.internal:8080"), &gateway.UpstreamOptions{
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 201, Header: http.Header{field: values}, Body: http.NoBody, Request: r}, nil
		})})
	r := httptest.NewRequest("GET", path, nil)
	r.Host = "gw.example"
	r.Header.Set("X-Forwarded-For", "203.0.113.7")
	r.Header.Set("X-Forwarded-Proto", "https")
	rec := httptest.NewRecorder()
	h := gateway.Proxy(up, &opts)
	gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24"))(h).ServeHTTP(rec, r)
	return rec.Header()[field]
}

func TestRewriteLocation(t *testing.T) {
	strip := gateway.ProxyOptions{StripPrefix: "/api"}
	for _, tt := range []struct {
		name     string
		opts     gateway.ProxyOptions
		path     string // asked for
		in, want string
	}{
		{"path", strip, "/api/x", "/users/7?a=%2f#b", "/api/users/7?a=%2f#b"},
		{"root", strip, "/api/x", "/", "/api/"},
		{"path that looks prefixed is the target's own", strip, "/api/x", "/api/7", "/api/api/7"},
		{"absolute", strip, "/api/x", "http://users.internal:8080/users/7", "https://gw.example/api/users/7"},
		{"absolute without a path", strip, "/api/x", "http://users.internal:8080", "https://gw.example/api"},
		{"absolute with a query alone", strip, "/api/x", "http://users.internal:8080?a", "https://gw.example/api?a"},
		{"absolute in other case", strip, "/api/x", "HTTP://Users.Internal:8080/A", "https://gw.example/api/A"},
		{"absolute by another scheme", strip, "/api/x", "https://users.internal:8080/a", "https://gw.example/api/a"},
		{"scheme-relative", strip, "/api/x", "//users.internal:8080/a", "//gw.example/api/a"},
		{"another port", strip, "/api/x", "http://users.internal:9090/a", "http://users.internal:9090/a"},
		{"no port", strip, "/api/x", "http://users.internal/a", "http://users.internal/a"},
		{"another host", strip, "/api/x", "https://id.example/login?to=/a", "https://id.example/login?to=/a"},
		{"another host, scheme-relative", strip, "/api/x", "//id.example/a", "//id.example/a"},
		{"the target's name is a prefix of another", strip, "/api/x", "http://users.internal:8080.evil/a", "http://users.internal:8080.evil/a"},
		{"a user", strip, "/api/x", "http://users.internal:8080@evil/a", "http://users.internal:8080@evil/a"},
		{"the gateway's host, unprefixed", strip, "/api/x", "https://gw.example/users/7", "https://gw.example/api/users/7"},
		{"the gateway's host, prefixed", strip, "/api/x", "https://GW.example/api/users/7", "https://GW.example/api/users/7"},
		{"the gateway's host, almost prefixed", strip, "/api/x", "https://gw.example/apis", "https://gw.example/api/apis"},
		{"relative", strip, "/api/a/b", "../c", "../c"},
		{"relative query", strip, "/api", "?page=2", "?page=2"},
		{"relative to the bare prefix", strip, "/api", "c", "/api/c"},
		{"empty", strip, "/api", "", ""},
		{"another scheme", strip, "/api/x", "mailto:a@users.internal", "mailto:a@users.internal"},
		{"another scheme with an authority", strip, "/api/x", "ftp://users.internal:8080/a", "ftp://users.internal:8080/a"},
		{"no scheme but a colon", strip, "/api/x", "1:2/3", "1:2/3"},
		{"no prefix", gateway.ProxyOptions{}, "/x", "http://users.internal:8080/a", "https://gw.example/a"},
		{"no prefix, a path", gateway.ProxyOptions{}, "/x", "/a", "/a"},
		{"an escaped prefix", gateway.ProxyOptions{StripPrefix: "/a%7Cb"}, "/a%7Cb/x", "/c", "/a%7Cb/c"},
		{"two segments", gateway.ProxyOptions{StripPrefix: "/a/b/"}, "/a/b/x", "/c", "/a/b/c"},
		{"Path cannot be undone", gateway.ProxyOptions{StripPrefix: "/api", Path: "/v2"}, "/api/x", "/v2/7", "/v2/7"},
		{"Path cannot be undone, absolute", gateway.ProxyOptions{Path: "/v2"}, "/x", "http://users.internal:8080/v2/7", "https://gw.example/v2/7"},
		{"the Host that was sent", gateway.ProxyOptions{StripPrefix: "/api", PreserveHost: true}, "/api/x", "https://gw.example/api/7", "https://gw.example/api/api/7"},
	} {
		for _, field := range []string{"Location", "Content-Location"} {
			t.Run(field+" "+tt.name, func(t *testing.T) {
				if got := relocated(tt.opts, tt.path, field, tt.in); len(got) != 1 || got[0] != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
	}
}

func TestRewriteCookies(t *testing.T) {
	strip := gateway.ProxyOptions{StripPrefix: "/api"}
	for _, tt := range []struct {
		name     string
		opts     gateway.ProxyOptions
		path     string // asked for
		in, want string
	}{
		{"root", strip, "/api/x", "a=1; Path=/; HttpOnly", "a=1; Path=/api; HttpOnly"},
		{"below", strip, "/api/x", "a=1;path=/users;Secure", "a=1;path=/api/users;Secure"},
		{"blanks stay", strip, "/api/x", "a=1 ;  PATH = /u\t ; Max-Age=1", "a=1 ;  PATH = /api/u\t ; Max-Age=1"},
		{"last", strip, "/api/x", "a=1; Path=/", "a=1; Path=/api"},
		{"value that looks like it", strip, "/api/x", "Path=/; Path=/u", "Path=/; Path=/api/u"},
		{"none", strip, "/api/x", "a=1; Secure", "a=1; Secure"},
		{"none at the bare prefix", strip, "/api", "a=1; Secure", "a=1; Secure; Path=/api"},
		{"not a path", strip, "/api/x", "a=1; Path=u", "a=1; Path=u"},
		{"not a path at the bare prefix", strip, "/api", "a=1; Path=", "a=1; Path=; Path=/api"},
		{"Domain stays", strip, "/api/x", "a=1; Domain=users.internal; Path=/", "a=1; Domain=users.internal; Path=/api"},
		{"__Host-", strip, "/api/x", "__host-a=1; Path=/; Secure", "__host-a=1; Path=/; Secure"},
		{"no prefix", gateway.ProxyOptions{}, "/x", "a=1; Path=/", "a=1; Path=/"},
		{"Path cannot be undone", gateway.ProxyOptions{StripPrefix: "/api", Path: "/v2"}, "/api/x", "a=1; Path=/v2", "a=1; Path=/v2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := relocated(tt.opts, tt.path, "Set-Cookie", "other=1; Domain=x", tt.in); len(got) != 2 || got[1] != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestRewriteLocationKeepsTheResponse: a RoundTripper that keeps a response finds it as it was.
func TestRewriteLocationKeepsTheResponse(t *testing.T) {
	kept := []string{"/a"}
	for range 2 {
		if got := relocated(gateway.ProxyOptions{StripPrefix: "/api"}, "/api/x", "Location", kept...); strings.Join(got, "") != "/api/a" {
			t.Errorf("got %q", got)
		}
	}
	if kept[0] != "/a" {
		t.Errorf("the response became %q", kept)
	}
}

// TestNoRewriteLocation: without the option nothing changes.
func TestNoRewriteLocation(t *testing.T) {
	h := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 302, Header: http.Header{"Location": {"/a"}, "Set-Cookie": {"a=1; Path=/"}}, Body: http.NoBody}, nil
	}), &gateway.ProxyOptions{StripPrefix: "/api"})
	rec := recorded(h, httptest.NewRequest("GET", "/api/x", nil))
	if got := rec.Header(); got.Get("Location") != "/a" || got.Get("Set-Cookie") != "a=1; Path=/" {
		t.Errorf("got %v", got)
	}
}

// TestRewriteLocationBehindAProxy: the address is the one that the trusted proxy names. ResponseFields.Add does not write
// to the spare room of a slice that is the RoundTripper's.
func TestRewriteLocationBehindAProxy(t *testing.T) {
	kept := append(make([]string, 0, 2), "http://users.internal/a")
	h := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		r.URL.Scheme, r.URL.Host = "http", "users.internal"
		return &http.Response{StatusCode: 201, Header: http.Header{"Location": {kept[0]}, "X-A": kept}, Body: http.NoBody, Request: r}, nil
	}), &gateway.ProxyOptions{RewriteLocation: true, ResponseFields: gateway.FieldEdits{Add: map[string]string{"X-A": "b"}}})
	h = gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24"))(h)
	r := httptest.NewRequest("GET", "/x", nil)
	r.Header.Set("X-Forwarded-For", "203.0.113.7")
	r.Header.Set("X-Forwarded-Host", "public.example, inner.example")
	rec := recorded(h, r)
	if got := rec.Header().Get("Location"); got != "http://public.example/a" {
		t.Errorf("got %q", got)
	}
	if got := rec.Header()["X-A"]; len(got) != 2 || kept[:2][1] != "" {
		t.Errorf("got %q, and the RoundTripper's slice became %q", got, kept[:2])
	}
}

// TestRewriteLocationWithoutHost: where the client named no host, what is left of the reference is a path of this one.
func TestRewriteLocationWithoutHost(t *testing.T) {
	for _, path := range []string{"//evil.example/x", `/\evil.example/x`, "/evil.example/x"} {
		up := gateway.NewUpstream("u", gateway.MustTargets("http://users.internal"), &gateway.UpstreamOptions{
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				res := answered(r, 302, http.NoBody)
				res.Header = http.Header{"Location": {"http://users.internal" + path}}
				return res, nil
			}),
		})
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = ""
		rec := httptest.NewRecorder()
		gateway.Proxy(up, &gateway.ProxyOptions{RewriteLocation: true}).ServeHTTP(rec, r)
		if got := rec.Header().Get("Location"); got != "/evil.example/x" {
			t.Errorf("%s became %q", path, got)
		}
	}
}
