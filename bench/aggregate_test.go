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
	"time"

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

// BenchmarkAggregate stitches five JSON answers, of 500 bytes and of 50 KB each, into one object, over a transport
// without a network. "decode-encode" decodes each and encodes the whole, which loses the order of members and big
// numbers; "raw" keeps the bytes in json.RawMessage, which encoding/json checks and compacts again.
func BenchmarkAggregate(b *testing.B) {
	names := []string{"user", "orders", "history", "offers", "messages"}
	for _, items := range []int{12, 1350} {
		item := `{"id":1234,"title":"x","score":1.25}`
		body := []byte(`{"items":[` + strings.Repeat(item+",", items) + item + `]}`)
		from := respond(body)
		var parts []gateway.Part
		for _, name := range names {
			parts = append(parts, gateway.Part{Name: name, From: from, Path: "http://backend/" + name})
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
				serveCPU(b, peer.h, r)
			})
		}
	}
}

// serveCPU is serve, with the processor time of the whole process for each request, garbage collection included. What
// runs on several goroutines is not measured by the clock.
func serveCPU(b *testing.B, h http.Handler, r *http.Request) {
	before := cpuTime()
	serve(b, h, r)
	if used := cpuTime() - before; used > 0 {
		b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
	}
}

// BenchmarkReshape keeps three members of each element of an array. "decode-encode" decodes the body, drops the other
// members and encodes the rest, with encoding/json, from and to bytes that are in memory.
func BenchmarkReshape(b *testing.B) {
	item := `{"id":1234567,"title":"The Long Tide","synopsis":"All that there is to say about The Long Tide, and more.","artwork":{"wide":"/artwork/the-long-tide-1920x1080.jpg","tall":"/artwork/the-long-tide-600x900.jpg"},"cast":["A. Actor","B. Actor","C. Actor"],"score":8.75,"seen":false}`
	body := []byte(`{"items":[` + strings.Repeat(item+",", 3520) + item + `]}`)
	kept := []string{"id", "title", "score"}
	answers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	for _, peer := range []struct {
		name string
		h    http.Handler
	}{
		{"gateway", gateway.Reshape(gateway.Shape{Only: []string{"items.*.id", "items.*.title", "items.*.score"}})(answers)},
		{"decode-encode", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var document map[string]any
			if err := json.Unmarshal(body, &document); err != nil {
				panic(err)
			}
			items := document["items"].([]any)
			for i, item := range items {
				few := make(map[string]any, len(kept))
				for _, name := range kept {
					few[name] = item.(map[string]any)[name]
				}
				items[i] = few
			}
			out, err := json.Marshal(map[string]any{"items": items})
			if err != nil {
				panic(err)
			}
			w.Header().Set("Content-Type", "application/json")
			w.Write(out)
		})},
		{"decode-encode-typed", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var document struct {
				Items []struct {
					ID    int     `json:"id"`
					Title string  `json:"title"`
					Score float64 `json:"score"`
				} `json:"items"`
			}
			if err := json.Unmarshal(body, &document); err != nil {
				panic(err)
			}
			out, err := json.Marshal(document)
			if err != nil {
				panic(err)
			}
			w.Header().Set("Content-Type", "application/json")
			w.Write(out)
		})},
	} {
		b.Run(fmt.Sprintf("%dB/%s", len(body), peer.name), func(b *testing.B) {
			r := httptest.NewRequest("GET", "/items", nil)
			checked := httptest.NewRecorder()
			var seen struct{ Items []map[string]any }
			peer.h.ServeHTTP(checked, r)
			if err := json.Unmarshal(checked.Body.Bytes(), &seen); err != nil || len(seen.Items) != 3521 || len(seen.Items[0]) != 3 {
				b.Fatalf("%v, %d items", err, len(seen.Items))
			}
			b.SetBytes(int64(len(body)))
			serveCPU(b, peer.h, r)
		})
	}
}

// BenchmarkHomepage asks five backends that take 20, 40, 60, 80 and 100 ms, over connections, and reports the slowest of
// all answers: what the aggregate adds to its slowest part.
func BenchmarkHomepage(b *testing.B) {
	var parts []gateway.Part
	for i := range 5 {
		wait := time.Duration(i+1) * 20 * time.Millisecond
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(wait):
			case <-r.Context().Done():
			}
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"items":[]}`)
		}))
		defer backend.Close()
		name := fmt.Sprint("row", i+1)
		parts = append(parts, gateway.Part{Name: name, From: gateway.NewUpstream(name, gateway.MustTargets(backend.URL), nil), Path: "/row"})
	}
	front := httptest.NewServer(gateway.Aggregate(parts, nil))
	defer front.Close()
	var slowest time.Duration
	for first := true; b.Loop(); first = false {
		began := time.Now()
		res, err := front.Client().Get(front.URL + "/homepage")
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if took := time.Since(began); !first { // the first one opens the connections
			slowest = max(slowest, took)
		}
	}
	b.ReportMetric(float64(slowest)/float64(time.Millisecond), "ms/slowest")
}
