package gateway_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestObserveLogs(t *testing.T) {
	j := make(journal, 10)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{
		Logger:      slog.New(j),
		TraceHeader: "x-request-id",
		Quiet:       func(r *http.Request) bool { return r.URL.Path == "/healthz" },
	}))
	rt.Handle("GET /users/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := gateway.TraceID(r.Context()); got == "" || got != w.Header().Get("X-Request-Id") {
			t.Errorf("TraceID %q, answer %q", got, w.Header().Get("X-Request-Id"))
		}
		io.WriteString(w, "hello")
	}))
	rt.Handle("GET /healthz", text("ok"))
	rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/healthz", nil))
	rec := httptest.NewRecorder()
	rt.ServeHTTP(rec, httptest.NewRequest("GET", "/users/7?token=secret", nil))
	line := j.next(t)
	for key, want := range map[string]string{
		"message": "request", "level": "INFO", "method": "GET", "path": "/users/7", "route": "GET /users/{id}", "status": "200",
		"outcome": "ok", "bytes": "5", "client": "192.0.2.1", "trace_id": rec.Header().Get("X-Request-Id"),
	} {
		if line[key] != want {
			t.Errorf("%s: %q, want %q", key, line[key], want)
		}
	}
	if strings.Contains(fmt.Sprint(line), "secret") {
		t.Errorf("the query was logged: %v", line)
	}
	if len(j) > 0 {
		t.Errorf("logged too: %v", <-j)
	}
	// What a client makes as long as it likes is cut.
	rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/"+strings.Repeat("x", 100_000), nil))
	if line := j.next(t); len(line["path"]) > 600 {
		t.Errorf("%d bytes of path", len(line["path"]))
	}
}
