// Package bench compares this library with its peers, in one run.
package bench

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/seed-96248d0c/gateway"
)

// githubPatterns are the 203 routes of the GitHub API, a pattern each.
func githubPatterns(tb testing.TB) (patterns []string) {
	table, err := os.ReadFile("../testdata/github-api.txt")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
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
			"DELETE %s/items/{id}", "GET %s/items/{id}/parts", "GET %s/items/{id}/parts/{part}", "GET %s/files/{path}",
		} {
			patterns = append(patterns, fmt.Sprintf(p, service))
		}
	}
	return patterns
}

func only(patterns []string, values bool) (out []string) {
	for _, p := range patterns {
		if strings.Contains(p, "{") == values {
			out = append(out, p)
		}
	}
	return out
}

func requestsFor(patterns []string) []*http.Request {
	requests := make([]*http.Request, len(patterns))
	for i, p := range patterns {
		method, path, _ := strings.Cut(p, " ")
		requests[i] = httptest.NewRequest(method, strings.NewReplacer("{", "", "}", "").Replace(path), nil)
	}
	return requests
}

var nothing = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

// routers are built alike: from patterns as http.ServeMux writes them.
var routers = []struct {
	name  string
	build func(patterns []string, h http.Handler) http.Handler
}{
	{"gateway", func(patterns []string, h http.Handler) http.Handler {
		rt := new(gateway.Router)
		for _, p := range patterns {
			rt.Handle(p, h)
		}
		return rt
	}},
	{"ServeMux", func(patterns []string, h http.Handler) http.Handler {
		mux := http.NewServeMux()
		for _, p := range patterns {
			mux.Handle(p, h)
		}
		return mux
	}},
	{"chi", func(patterns []string, h http.Handler) http.Handler {
		r := chi.NewRouter()
		for _, p := range patterns {
			method, path, _ := strings.Cut(p, " ")
			r.Method(method, path, h)
		}
		return r
	}},
}

// record gives requests what an Observe outside of the Router would have: their record and the writer
// that belongs to it.
func record(requests []*http.Request) http.ResponseWriter {
	var writer http.ResponseWriter
	gateway.TrustProxies("X-Forwarded-For")(http.HandlerFunc(func(w http.ResponseWriter, outer *http.Request) {
		writer = w
		for i, r := range requests {
			requests[i] = r.WithContext(outer.Context())
		}
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	return writer
}

// BenchmarkRoute routes requests to a handler that does nothing. With "record", a middleware of this
// library stands outside, as in a gateway; without, its Router begins the record itself.
func BenchmarkRoute(b *testing.B) {
	github := githubPatterns(b)
	hundred, many := manyPatterns(100), manyPatterns(10000)
	var spread []string // as many as hundred, from all over many
	for i := 0; i < len(many); i += 101 {
		spread = append(spread, many[i])
	}
	for _, table := range []struct {
		name             string
		routes, requests []string
	}{
		{"github-static", github, only(github, false)},
		{"github-values", github, only(github, true)},
		{"github-all", github, github},
		{"many-100", hundred, hundred},
		{"many-10000-spread", many, spread},
		{"many-10000-all", many, many},
	} {
		for _, peer := range routers {
			h := peer.build(table.routes, nothing)
			for _, outside := range []string{"record", "bare"} {
				if outside == "bare" && strings.HasPrefix(table.name, "many") {
					continue
				}
				b.Run(table.name+"/"+outside+"/"+peer.name, func(b *testing.B) {
					requests := requestsFor(table.requests)
					var w http.ResponseWriter = httptest.NewRecorder()
					if outside == "record" {
						w = record(requests)
					}
					b.ReportAllocs()
					var r http.Request
					for i := 0; b.Loop(); i++ {
						r = *requests[i%len(requests)] // without the path values of the last time
						h.ServeHTTP(w, &r)
					}
				})
			}
		}
	}
}

// BenchmarkRouteBuild registers a table.
func BenchmarkRouteBuild(b *testing.B) {
	many := manyPatterns(10000)
	for _, peer := range routers {
		b.Run(peer.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				peer.build(many, nothing)
			}
		})
	}
}
