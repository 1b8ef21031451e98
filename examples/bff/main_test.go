package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestRun is what main does, over a shorter link and once.
func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out, 4*time.Millisecond, 1); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	if !strings.Contains(out.String(), "mobile: GET /home") {
		t.Error("it did not come to its end")
	}
}

// TestClients asks each gateway, chosen by host, field and path, with all well and with a backend away.
func TestClients(t *testing.T) {
	b := startBackends()
	defer b.close()
	h := clients(b.services)
	size := make(map[string]int)
	for _, tt := range []struct{ name, url, client, members string }{
		{"web", "http://www.example/home", "", "user history suggestions top fresh"},
		{"mobile by host", "http://m.example/home", "", "user history suggestions top fresh"},
		{"mobile by field", "http://www.example/home", "mobile", "user history suggestions top fresh"},
		{"television by path", "http://www.example/tv/home", "", "suggestions top fresh"},
		{"title, web", "http://www.example/titles/7", "", "id title artwork cast reviews"},
		{"title, mobile", "http://m.example/titles/7", "", "id title artwork"},
	} {
		r := httptest.NewRequest("GET", tt.url, nil)
		if tt.client != "" {
			r.Header.Set("X-Client", tt.client)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := members(t, w.Body.String()); w.Code != 200 || got != tt.members {
			t.Errorf("%s: %d, %q", tt.name, w.Code, got)
		}
		size[tt.name] = w.Body.Len()
	}
	if size["mobile by host"] != size["mobile by field"] || size["mobile by host"] > size["web"]/3 || size["title, mobile"] > size["title, web"]/3 {
		t.Errorf("sizes %v", size)
	}

	b.servers[2].Close() // suggestions
	for _, url := range []string{"http://www.example/home", "http://m.example/home"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", url, nil))
		if got := members(t, w.Body.String()); got != "user history suggestions top fresh errors" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s without suggestions: %d %q", url, w.Code, got)
		}
	}
	b.servers[0].Close() // users
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://m.example/home", nil))
	if w.Code != http.StatusBadGateway {
		t.Errorf("without users: %d", w.Code)
	}
}

// members returns the names in an object, in their order.
func members(t *testing.T, object string) string {
	d := json.NewDecoder(strings.NewReader(object))
	var names []string
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
	}
	return strings.Join(names, " ")
}
