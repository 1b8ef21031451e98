package routing

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// BenchmarkDecide finds the route, beside http.ServeMux.Handler, for the routes of the GitHub
// API that have path values.
func BenchmarkDecide(b *testing.B) {
	table, err := os.ReadFile("../../testdata/github-api.txt")
	if err != nil {
		b.Fatal(err)
	}
	var tree Tree
	var mux http.ServeMux
	var requests []*http.Request
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for line := range strings.Lines(string(table)) {
		words := strings.Fields(line)
		if words[0] == "#" {
			continue
		}
		for _, method := range words[1:] {
			p, err := Parse(method + " " + words[0])
			if err == nil {
				_, err = tree.Add(Route{Pattern: p})
			}
			if err != nil {
				b.Fatal(err)
			}
			mux.Handle(method+" "+words[0], h)
			if strings.Contains(words[0], "{") {
				path := strings.NewReplacer("{", "", "}", "").Replace(words[0])
				requests = append(requests, httptest.NewRequest(method, path, nil))
			}
		}
	}
	b.Run("Tree", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			var s Search
			tree.Decide(requests[i%len(requests)], &s)
		}
	})
	b.Run("ServeMux", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			mux.Handler(requests[i%len(requests)])
		}
	})
}
