package gateway

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// BenchmarkRouterMatch finds the route alone, beside http.ServeMux.Handler, for the routes of the GitHub
// API that have path values.
func BenchmarkRouterMatch(b *testing.B) {
	table, err := os.ReadFile("testdata/github-api.txt")
	if err != nil {
		b.Fatal(err)
	}
	var rt Router
	var mux http.ServeMux
	var requests []*http.Request
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for line := range strings.Lines(string(table)) {
		words := strings.Fields(line)
		if words[0] == "#" {
			continue
		}
		for _, method := range words[1:] {
			rt.Handle(method+" "+words[0], h)
			mux.Handle(method+" "+words[0], h)
			if strings.Contains(words[0], "{") {
				path := strings.NewReplacer("{", "", "}", "").Replace(words[0])
				requests = append(requests, httptest.NewRequest(method, path, nil))
			}
		}
	}
	b.Run("Router", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r := requests[i%len(requests)]
			s := routeSearch{req: r, method: r.Method}
			rt.decide(&s)
		}
	})
	b.Run("ServeMux", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			mux.Handler(requests[i%len(requests)])
		}
	})
}
