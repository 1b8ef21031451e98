package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// gather asks five backends at once and writes one object of their answers: what a team writes by hand. combine reads
// an answer into a member.
func gather(from http.RoundTripper, names []string, combine func(io.Reader) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		var mu sync.Mutex
		var all sync.WaitGroup
		var failed error
		members := map[string]any{}
		for _, name := range names {
			all.Go(func() {
				var v any
				req, err := http.NewRequestWithContext(ctx, "GET", "http://backend/"+name, nil)
				if err == nil {
					var res *http.Response
					if res, err = from.RoundTrip(req); err == nil {
						v, err = combine(res.Body)
						res.Body.Close()
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = err
					cancel()
				}
				members[name] = v
			})
		}
		all.Wait()
		out, err := json.Marshal(members)
		if failed != nil || err != nil {
			http.Error(w, "bad gateway", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(out)
	})
}

// BenchmarkAggregate stitches five JSON answers into one object, over a transport without a network. "decode-encode"
// decodes each and encodes the whole, which loses the order of members and big numbers; "raw" keeps the bytes in
// json.RawMessage, which encoding/json checks and compacts again.
func BenchmarkAggregate(b *testing.B) {
	names := []string{"user", "orders", "history", "offers", "messages"}
	for _, items := range []int{11, 450} {
		item := `{"id":1234,"title":"x","score":1.25}`
		body := []byte(`{"items":[` + strings.Repeat(item+",", items) + item + `]}`)
		from := respond(body)
		var parts []gateway.Part
		for _, name := range names {
			parts = append(parts, gateway.Part{Name: name, From: from, Request: func(in *http.Request) (*http.Request, error) {
				return http.NewRequestWithContext(in.Context(), "GET", "http://backend/"+name, nil)
			}})
		}
		for _, peer := range []struct {
			name string
			h    http.Handler
		}{
			{"gateway", gateway.Aggregate(parts, nil)},
			{"decode-encode", gather(from, names, func(r io.Reader) (v any, err error) {
				err = json.NewDecoder(r).Decode(&v)
				return v, err
			})},
			{"raw", gather(from, names, func(r io.Reader) (any, error) {
				b, err := io.ReadAll(r)
				return json.RawMessage(b), err
			})},
		} {
			b.Run(fmt.Sprintf("%dB/%s", len(body), peer.name), func(b *testing.B) {
				r := httptest.NewRequest("GET", "/home", nil)
				checked := httptest.NewRecorder()
				if peer.h.ServeHTTP(checked, r); checked.Code != 200 || checked.Body.Len() < 5*len(body) {
					b.Fatalf("status %d and %d bytes", checked.Code, checked.Body.Len())
				}
				serve(b, peer.h, r)
			})
		}
	}
}
