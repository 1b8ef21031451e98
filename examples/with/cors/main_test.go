package main

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestCORS has preflights answered before Auth, and refusals that the page can read.
func TestCORS(t *testing.T) {
	var asked atomic.Int32
	srv := ask.Serve(t, newHandler(ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Access-Control-Allow-Origin", "*") // its own policy, which must not show
		ask.Echo(w, r)
	})))
	const page = "https://app.example"
	preflight := []string{"Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-api-key"}
	for _, tt := range []struct {
		name, method, origin string
		fields               []string
		want                 string // status and what the body begins with
		allowed              []string
		asked                int32 // how often the backend has been asked by then
	}{
		{"preflight", "OPTIONS", page, preflight, "204", []string{page}, 0},
		{"preflight of another site", "OPTIONS", "https://evil.example", preflight, "204", nil, 0},
		{"request", "PUT", page, []string{"X-API-Key", "key of alice"}, `200 PUT /items/7 by "alice"`, []string{page}, 1},
		{"refusal", "PUT", page, []string{"X-API-Key", "key of mallory"}, "401", []string{page}, 1},
		{"an OPTIONS that is no preflight", "OPTIONS", page, nil, "401", []string{page}, 1},
	} {
		got := ask.Do(t, tt.method, srv+"/items/7", "", append(tt.fields, "Origin", tt.origin)...)
		if allowed := got.Header["Access-Control-Allow-Origin"]; !strings.HasPrefix(got.String(), tt.want) || !slices.Equal(allowed, tt.allowed) {
			t.Errorf("%s: %s, allowed for %q; want %s for %q", tt.name, got, allowed, tt.want, tt.allowed)
		}
		if asked.Load() != tt.asked {
			t.Errorf("%s: the backend was asked %d times; want %d", tt.name, asked.Load(), tt.asked)
		}
	}
}
