package gateway_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// FuzzRouterPath sends one path through a small gateway. ServeHTTP and Explain must agree, what is
// forwarded must be what was matched and hold no dot segment, and what stands under /admin must never be
// forwarded past its guard, whatever the spelling.
func FuzzRouterPath(f *testing.F) {
	for _, seed := range []string{
		"/", "/admin", "/admin/x", "//admin", "/public/../admin", "/public/%2e%2e/admin", "/public/..%2fadmin",
		`/public/..\admin`, "/public/%5c..%5cadmin", "/%61dmin", "/public/..;/admin", "/files/a%2Fb{", "/files/%2F",
		"/c%2Fd", "/tree", "/tree//x?y=1", "//evil.example/%2e%2e", "/files/é|^\"", "*", "/%00", "/%252e%252e/admin",
		"/admin;x/y", "/admin%2Fx", "/admin%20/x", "/%2fadmin.;a/b", "/admin%3Bx%2Fy", "/a;b/c.%2Fd", "/tree/a;x/b%2F.c",
	} {
		f.Add("GET", seed, "example.com")
	}
	f.Add("OPTIONS", "/tree", "API.example.:80")
	f.Add("CONNECT", "//x", "h:1")
	f.Fuzz(func(t *testing.T, method, target, host string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := (&http.Request{Method: method, URL: u, Host: host, Header: http.Header{}, Body: http.NoBody}).WithContext(t.Context())

		guarded := false
		var sent *url.URL
		to := gateway.Proxy(roundTrip(func(out *http.Request) (*http.Response, error) {
			sent = out.URL
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}, nil
		}), nil)
		guard := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				guarded = true
				next.ServeHTTP(w, r)
			})
		}
		var rt gateway.Router
		took, values := "", map[string]string{}
		note := func(names ...string) gateway.Middleware {
			return func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					took = r.Pattern
					for _, n := range names {
						values[n] = r.PathValue(n)
					}
					next.ServeHTTP(w, r)
				})
			}
		}
		rt.Handle("/", to, note())
		rt.Handle("/admin", to, guard, note())
		rt.Handle("/admin/", to, guard, note())
		rt.Handle("GET /files/{name}", to, note("name"))
		rt.Handle("/tree/{a}/{rest...}", to, note("a", "rest"))
		rt.Handle("/tree/", to, note())
		rt.Handle("api.example/{x}", to, note("x"))

		x := rt.Explain(r)
		w := recorded(&rt, r)

		explained := ""
		if x.Route != nil {
			explained = x.Route.Pattern
		}
		if explained != took || x.Route != nil && x.Status != 200 || x.Route == nil && x.Status != w.Code {
			t.Fatalf("Explain: %q, %d; ServeHTTP: %q, %d", explained, x.Status, took, w.Code)
		}
		if len(x.PathValues) != len(values) {
			t.Fatalf("Explain: %v; ServeHTTP: %v", x.PathValues, values)
		}
		for k, v := range values {
			if x.PathValues[k] != v {
				t.Fatalf("Explain: %v; ServeHTTP: %v", x.PathValues, values)
			}
		}

		if to := w.Header().Get("Location"); w.Code == 308 {
			if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n") {
				t.Fatalf("redirected off the site: %q", to)
			}
		}
		if sent == nil {
			return
		}
		escaped := sent.EscapedPath()
		for segment := range strings.SplitSeq(sent.Path, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("forwarded %q", escaped)
			}
		}
		if strings.Contains(escaped, "//") || strings.ContainsAny(sent.Path, "\\\x00") {
			t.Fatalf("forwarded %q", escaped)
		}
		// What the target makes of it, be it one that decodes before it splits or after.
		if strings.Count(escaped, "/") == strings.Count(sent.Path, "/") {
			clean := path.Clean(sent.Path)
			if (clean == "/admin" || strings.HasPrefix(clean, "/admin/")) && !guarded && !strings.HasPrefix(took, "api.example") {
				t.Fatalf("%q reached %q unguarded by %q", target, escaped, took)
			}
		}
		// And one that drops parameters, decodes slashes and cuts dots and blanks, or does some of these.
		for how := range 8 {
			var segments []string
			for s := range strings.SplitSeq(escaped[1:], "/") {
				s, _ = url.PathUnescape(s)
				pieces := []string{s}
				if how&1 != 0 {
					pieces = strings.Split(s, "/")
				}
				for _, p := range pieces {
					if how&2 != 0 {
						p, _, _ = strings.Cut(p, ";")
					}
					if how&4 != 0 {
						p = strings.TrimRight(p, ". \t")
					}
					if p != "" {
						segments = append(segments, p)
					}
				}
			}
			if len(segments) > 0 && segments[0] == "admin" && !guarded && !strings.HasPrefix(took, "api.example") {
				t.Fatalf("%q reached %q, which some read as %q, unguarded by %q", target, escaped, segments, took)
			}
		}
		first, _, _ := strings.Cut(escaped[1:], "/")
		if d, _ := url.PathUnescape(first); d == "admin" && !guarded && !strings.HasPrefix(took, "api.example") {
			t.Fatalf("%q reached %q unguarded by %q", target, escaped, took)
		}
	})
}

// FuzzRouterServeMux holds the Router against http.ServeMux: what ServeMux takes the Router takes, what it
// refuses the Router does too, but for what only the Router can order; and where both take the patterns,
// they choose alike. The bytes pick patterns and requests from a small alphabet, so that most tables
// overlap.
func FuzzRouterServeMux(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		b := make([]byte, 64)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, picks []byte) {
		pick := func(from ...string) string {
			if len(picks) == 0 {
				return from[0]
			}
			i := int(picks[0]) % len(from)
			picks = picks[1:]
			return from[i]
		}
		var rt gateway.Router
		mux := http.NewServeMux()
		var took string
		var patterns []string
		for n := len(pick("", "1", "22", "333", "4444")); n >= 0; n-- {
			p := pick("", "", "GET ", "POST ", "HEAD ") + pick("", "", "", "h")
			depth := len(pick("", "1", "22", "333"))
			for i := range depth {
				p += "/" + pick("a", "b", "{x"+string(rune('0'+i))+"}")
			}
			p += pick("", "/", "/{$}", "/{r...}")
			if strings.IndexByte(p, '/') < 0 {
				p += "/"
			}
			h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				took = fmt.Sprint(p, r.PathValue("x0"), r.PathValue("x1"), r.PathValue("x2"), r.PathValue("r"))
			})
			ours := panicOf(func() { rt.Handle(p, h) })
			theirs := panicOf(func() { mux.Handle(p, h) })
			switch {
			case ours != "" && theirs == "":
				t.Fatalf("ServeMux takes %q beside %q: %s", p, patterns, ours)
			case ours == "" && theirs != "" && !strings.Contains(theirs, "methods than"):
				t.Fatalf("ServeMux refuses %q beside %q: %s", p, patterns, theirs)
			case ours == "" && theirs != "":
				return // the Router orders them by path
			case ours != "":
				continue
			}
			patterns = append(patterns, p)
		}
		for range 4 {
			method, host, target := pick("GET", "POST", "HEAD", "PUT"), pick("h", "other"), ""
			for range len(pick("", "1", "22", "333", "4444")) {
				target += "/" + pick("a", "b", "c")
			}
			target += pick("", "/")
			if target == "" {
				target = "/"
			}
			ask := func(h http.Handler) string {
				took = ""
				w := httptest.NewRecorder()
				r := httptest.NewRequest(method, target, nil)
				r.Host = host
				h.ServeHTTP(w, r)
				if w.Code == http.StatusTemporaryRedirect {
					w.Code = http.StatusPermanentRedirect
				}
				allow := slices.DeleteFunc(strings.Split(w.Header().Get("Allow"), ", "), func(m string) bool { return m == "OPTIONS" })
				return fmt.Sprint(took, w.Code, allow, w.Header().Get("Location"))
			}
			if ours, theirs := ask(&rt), ask(mux); ours != theirs {
				t.Fatalf("%s %s%s among %q: Router %q, ServeMux %q", method, host, target, patterns, ours, theirs)
			}
		}
	})
}
