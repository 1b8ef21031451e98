package gateway_test

import (
	_ "embed"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

//go:embed testdata/github-api.txt
var githubAPI string

// githubPatterns are the 203 routes of the GitHub API, a pattern each.
func githubPatterns() (patterns []string) {
	for line := range strings.Lines(githubAPI) {
		if words := strings.Fields(line); words[0] != "#" {
			for _, method := range words[1:] {
				patterns = append(patterns, method+" "+words[0])
			}
		}
	}
	return patterns
}

// manyPatterns are n routes of services that have ten each.
func manyPatterns(n int) (patterns []string) {
	for i := range n / 10 {
		service := fmt.Sprintf("/service-%d", i)
		for _, p := range []string{
			"GET %s", "GET %s/status", "GET %s/items", "POST %s/items", "GET %s/items/{id}", "PUT %s/items/{id}",
			"DELETE %s/items/{id}", "GET %s/items/{id}/parts", "GET %s/items/{id}/parts/{part}", "GET %s/files/{path...}",
		} {
			patterns = append(patterns, fmt.Sprintf(p, service))
		}
	}
	return patterns
}

// requestsFor makes a request for each pattern.
func requestsFor(patterns []string) []*http.Request {
	requests := make([]*http.Request, len(patterns))
	for i, p := range patterns {
		method, path, _ := strings.Cut(p, " ")
		requests[i] = httptest.NewRequest(method, strings.NewReplacer("{", "", "}", "", "...", "").Replace(path), nil)
	}
	return requests
}

func withoutValues(patterns []string) (static, dynamic []string) {
	for _, p := range patterns {
		if strings.Contains(p, "{") {
			dynamic = append(dynamic, p)
		} else {
			static = append(static, p)
		}
	}
	return static, dynamic
}

var nothing = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

func routerOf(patterns []string) *gateway.Router {
	rt := new(gateway.Router)
	for _, p := range patterns {
		rt.Handle(p, nothing)
	}
	return rt
}

func TestGitHubRoutes(t *testing.T) {
	patterns := githubPatterns()
	if len(patterns) != 203 {
		t.Fatalf("%d patterns", len(patterns))
	}
	rt := routerOf(patterns)
	for i, r := range requestsFor(patterns) {
		rt.ServeHTTP(httptest.NewRecorder(), r)
		if r.Pattern != patterns[i] {
			t.Errorf("%s %s went to %q", r.Method, r.URL, r.Pattern)
		}
	}
}

// inRecord gives requests a record, as Observe outside would, and a writer that belongs to it.
func inRecord(requests []*http.Request) ([]*http.Request, http.ResponseWriter) {
	var writer http.ResponseWriter
	out := make([]*http.Request, len(requests))
	gateway.TrustProxies("X-Forwarded-For")(http.HandlerFunc(func(w http.ResponseWriter, outer *http.Request) {
		writer = w
		for i, r := range requests {
			out[i] = r.WithContext(outer.Context())
		}
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	return out, writer
}

// BenchmarkRouter routes requests that have their record already. Request and handler cost the same in
// every line; a path value is a map in the request, as in every router that fills Request.PathValue.
func BenchmarkRouter(b *testing.B) {
	github := githubPatterns()
	static, dynamic := withoutValues(github)
	for _, bm := range []struct {
		name            string
		routes, request []string
	}{
		{"github/static", github, static},
		{"github/values", github, dynamic},
		{"github/all", github, github},
		{"routes=100", manyPatterns(100), nil},
		{"routes=10000", manyPatterns(10000), nil},
		{"routes=100/one", manyPatterns(100), []string{"GET /service-7/items/{id}/parts"}},
		{"routes=10000/one", manyPatterns(10000), []string{"GET /service-7/items/{id}/parts"}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			rt := routerOf(bm.routes)
			if bm.request == nil {
				bm.request = bm.routes
			}
			requests, w := inRecord(requestsFor(bm.request))
			b.ReportAllocs()
			var r http.Request
			for i := 0; b.Loop(); i++ {
				r = *requests[i%len(requests)] // without path values
				rt.ServeHTTP(w, &r)
			}
		})
	}
	b.Run("github/unrouted", func(b *testing.B) {
		rt := routerOf(github)
		requests, _ := inRecord([]*http.Request{httptest.NewRequest("GET", "/repos/a/b/none", nil)})
		b.ReportAllocs()
		for b.Loop() {
			rt.ServeHTTP(httptest.NewRecorder(), requests[0])
		}
	})
	b.Run("github/encoded", func(b *testing.B) {
		rt := routerOf(github)
		requests, w := inRecord([]*http.Request{httptest.NewRequest("GET", "/repos/a%2Fb/c/issues", nil)})
		b.ReportAllocs()
		var r http.Request
		for b.Loop() {
			r = *requests[0]
			rt.ServeHTTP(w, &r)
		}
	})
}

func BenchmarkRouterBuild(b *testing.B) {
	for _, n := range []int{100, 10000} {
		patterns := manyPatterns(n)
		b.Run(fmt.Sprint("routes=", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				routerOf(patterns)
			}
		})
	}
}

// BenchmarkRouterPredicates has 10,000 routes on one pattern, each for one value of a header field.
func BenchmarkRouterPredicates(b *testing.B) {
	const n = 10000
	build := func(common ...gateway.Match) *gateway.Router {
		rt := new(gateway.Router)
		rt.Handle("/{x}", nothing)
		for i := range n {
			rt.Add(gateway.Route{Pattern: "/{x}", Match: append(common[:len(common):len(common)], gateway.MatchHeader("X-Tenant", fmt.Sprint(i))), Handler: nothing})
		}
		return rt
	}
	b.Run("build", func(b *testing.B) {
		for b.Loop() {
			build()
		}
	})
	b.Run("build/common", func(b *testing.B) {
		for b.Loop() {
			build(gateway.MatchHeader("X-Beta", "1"))
		}
	})
	b.Run("match", func(b *testing.B) {
		rt := build()
		r := httptest.NewRequest("GET", "/a", nil)
		r.Header.Set("X-Tenant", "5000")
		requests, w := inRecord([]*http.Request{r})
		b.ReportAllocs()
		var in http.Request
		for b.Loop() {
			in = *requests[0]
			rt.ServeHTTP(w, &in)
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	h := gateway.Split(byHeader, gateway.Branch{Weight: 95, Handler: nothing}, gateway.Branch{Weight: 5, Handler: nothing})
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Key", "user-4711")
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(nil, r)
	}
}
