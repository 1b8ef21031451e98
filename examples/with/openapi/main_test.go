package main

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestValidation has requests that match pass as they came, and the others refused before the backend is
// asked.
func TestValidation(t *testing.T) {
	var asked atomic.Int32
	h, err := newHandler(ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.Copy(w, r.Body)
	}))
	if err != nil {
		t.Fatal(err)
	}
	srv := ask.Serve(t, h)
	const good = `{"item": "cup", "count": 2}`
	for _, tt := range []struct {
		name, method, path, kind, body string
		want                           int
		says                           string // in the body
	}{
		{"as described", "PUT", "/orders/7", "application/json", good, 200, good},
		{"too many", "PUT", "/orders/7", "application/json", `{"item": "cup", "count": 100}`, 400, "at most 99"},
		{"a member too many", "PUT", "/orders/7", "application/json", `{"item": "cup", "count": 1, "price": 0}`, 400, "price"},
		{"no JSON", "PUT", "/orders/7", "application/json", `{"item": `, 400, "does not match"},
		{"of another type", "PUT", "/orders/7", "text/plain", good, 400, "does not match"},
		{"empty", "PUT", "/orders/7", "application/json", "", 400, "does not match"},
		{"a body where there is none", "GET", "/orders/7", "application/json", good, 400, "does not match"},
		{"path", "PUT", "/orders/seven", "application/json", good, 400, "parameter id"},
		{"method", "DELETE", "/orders/7", "", "", 405, ""},
		{"no such path", "PUT", "/orders/7/items", "application/json", good, 404, ""},
		{"too large", "PUT", "/orders/7", "application/json", good + strings.Repeat(" ", maxBody), 413, ""},
	} {
		got := ask.Do(t, tt.method, srv+tt.path, tt.body, "Content-Type", tt.kind)
		if got.Status != tt.want || !strings.Contains(got.Body, tt.says) {
			t.Errorf("%s: %s; want %d with %q", tt.name, got, tt.want, tt.says)
		}
		if tt.want != 200 && got.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: Content-Type %q", tt.name, got.Header.Get("Content-Type"))
		}
	}
	if asked.Load() != 1 {
		t.Errorf("the backend was asked %d times; want 1", asked.Load())
	}
}
