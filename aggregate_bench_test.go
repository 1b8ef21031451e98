package gateway_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func jsonHandler(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = []string{"application/json"}
		io.WriteString(w, body)
	})
}

func BenchmarkHandlerTransport(b *testing.B) {
	for name, body := range map[string]string{"short": `{"a":1}`, "64KiB": `"` + strings.Repeat("x", 64<<10) + `"`} {
		b.Run(name, func(b *testing.B) {
			rt := gateway.HandlerTransport(jsonHandler(body))
			req := httptest.NewRequest("GET", "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				res, err := rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}

func BenchmarkAggregate(b *testing.B) {
	from := gateway.HandlerTransport(jsonHandler(`{"id":1,"items":[` + strings.Repeat(`{"title":"x","score":1.50},`, 40) + `{}]}`))
	five := []gateway.Part{
		{Name: "recommendations", From: from, Path: "/a"},
		{Name: "continue-watching", From: from, Path: "/b"},
		{Name: "top-10", From: from, Path: "/c"},
		{Name: "my-list", From: from, Path: "/d"},
		{Name: "new-releases", From: from, Path: "/e"},
	}
	chained := append([]gateway.Part(nil), five...)
	chained[4].Path = "/e/{my-list.id}"
	for name, c := range map[string]struct {
		parts []gateway.Part
		opts  *gateway.AggregateOptions
	}{
		"five":    {five, nil},
		"chained": {chained, nil},
		"one":     {five[:1], nil},
		"merged":  {five, &gateway.AggregateOptions{Merge: true}},
	} {
		b.Run(name, func(b *testing.B) {
			h := gateway.Aggregate(c.parts, c.opts)
			req := httptest.NewRequest("GET", "/", nil)
			req.Header.Set("Authorization", "Bearer x")
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(discardWriter{make(http.Header, 8)}, req)
			}
		})
	}
}
