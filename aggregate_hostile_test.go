package gateway_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// TestAggregateHostileParts: whatever the parts do over their connections, the answer keeps its deadline, in bounded
// memory, and nothing of them is left.
func TestAggregateHostileParts(t *testing.T) {
	var bomb bytes.Buffer // 16 MB of blanks
	zw := gzip.NewWriter(&bomb)
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for range 16 {
		zw.Write(blanks)
	}
	zw.Close()

	settle(t)
	before := runtime.NumGoroutine()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		start := func(text string) {
			io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
		switch r.URL.Path {
		case "/good":
			io.WriteString(w, `{"ok":true}`)
		case "/hangs":
			<-r.Context().Done()
		case "/hangs-within":
			start(`{"a":`)
			<-r.Context().Done()
		case "/drips":
			start(`"`)
			for {
				if _, err := io.WriteString(w, "x"); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(time.Millisecond):
				case <-r.Context().Done():
					return
				}
			}
		case "/dies":
			start(`{"a":`)
			panic(http.ErrAbortHandler)
		case "/huge": // 10 GB of one string, if anybody reads it
			h.Set("Content-Length", strconv.Itoa(10<<30))
			fallthrough
		case "/endless":
			start(`"`)
			for range 10 << 10 {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
					return
				}
			}
		case "/bomb":
			h.Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		case "/deep":
			io.WriteString(w, strings.Repeat(`[{"":`, 20_000))
		case "/many":
			io.WriteString(w, "["+strings.Repeat("0,", 40_000)+"0]")
		case "/fields":
			for i := range 2000 {
				h.Set(fmt.Sprint("X-Field-", i), strings.Repeat("x", 1000))
			}
		case "/error":
			w.WriteHeader(500)
			for range 10 << 10 {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
					return
				}
			}
		}
	}))
	outcomes := map[string]string{
		"hangs": `504,"outcome":"timeout"`, "hangs-within": `504,"outcome":"timeout"`, "drips": `504,"outcome":"timeout"`, "dies": `502,"outcome":"aborted"`,
		"huge": `502,"outcome":"upstream_error"`, "endless": `502,"outcome":"upstream_error"`, "bomb": `502,"outcome":"upstream_error"`,
		"deep": `502,"outcome":"upstream_error"`, "fields": `502,"outcome":"upstream_error"`, "error": `502,"outcome":"upstream_error"`,
	}
	plain := &http.Transport{}
	own := gateway.NewTransportUnderTest(nil)
	for name, from := range map[string]http.RoundTripper{
		"upstream":  gateway.NewUpstream("hostile", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{Transport: own, Health: gateway.HealthOptions{}}),
		"transport": plain,
		"handler":   gateway.HandlerTransport(backend.Config.Handler),
	} {
		t.Run(name, func(t *testing.T) {
			base := ""
			if name == "transport" {
				base = backend.URL
			}
			for _, path := range []string{"hangs", "hangs-within", "drips", "dies", "huge", "endless", "bomb", "deep", "many", "fields", "error"} {
				timeout := time.Minute
				if strings.HasPrefix(outcomes[path], "504") {
					timeout = 500 * time.Millisecond // in which the other part answers, on a busy machine too
				}
				h := gateway.Aggregate([]gateway.Part{
					{Name: "bad", From: from, Path: base + "/" + path, Optional: true, Shape: gateway.Shape{Only: []string{"0"}}},
					{Name: "good", From: answersJSON(200, `{"ok":true}`), Path: "/"},
				}, &gateway.AggregateOptions{Timeout: timeout})
				began, heap := time.Now(), heapInUse()
				w := recorded(h, nil)
				took := time.Since(began)
				want := `{"bad":null,"good":{"ok":true},"errors":[{"name":"bad","status":` + outcomes[path] + "}]}\n"
				if path == "many" {
					want = `{"bad":[0],"good":{"ok":true}}` + "\n"
				}
				if got := w.Body.String(); w.Code != 200 || got != want {
					t.Errorf("%s: got %d %.200s\nwant %s", path, w.Code, got, want)
				}
				if took > timeout/2+10*time.Second {
					t.Errorf("%s: took %v", path, took)
				}
				if grown := heapInUse() - heap; grown > 4<<20 {
					t.Errorf("%s: the heap has grown by %d bytes", path, grown)
				}
			}
		})
	}
	backend.Close()
	plain.CloseIdleConnections()
	own.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	waitGoroutines(t, before)
}
