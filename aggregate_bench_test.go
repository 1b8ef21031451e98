package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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

// BenchmarkAggregateUpstream asks five targets over loopback. The targets' side does not allocate.
func BenchmarkAggregateUpstream(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer ln.Close()
	body := `{"items":"` + strings.Repeat("x", 488) + `"}`
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\n"+
		"Content-Type: application/json\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				request := make([]byte, 4<<10)
				for n := 0; ; {
					m, err := c.Read(request[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(request[:n], []byte("\r\n\r\n")) {
						n = 0
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			})
		}
	})
	transport := gateway.NewTransport(nil)
	defer transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	up := gateway.NewUpstream("parts", gateway.MustTargets("http://"+ln.Addr().String()),
		&gateway.UpstreamOptions{Circuit: gateway.NewCircuit("parts", nil), Transport: transport})
	var parts []gateway.Part
	for _, name := range []string{"user", "orders", "history", "offers", "messages"} {
		parts = append(parts, gateway.Part{Name: name, From: up, Path: "/" + name})
	}
	h := gateway.Aggregate(parts, nil)
	req := httptest.NewRequest("GET", "/", nil)
	req.Header.Set("Authorization", "Bearer x")
	req.Header.Set("Accept-Language", "en")
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(discardWriter{make(http.Header, 8)}, req)
	}
}
