package gateway_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// brokenPipe takes whole writes, as a buffer does, and reports that the last of them failed.
type brokenPipe struct {
	http.ResponseWriter
	left int // writes that succeed
}

func (w *brokenPipe) Write(p []byte) (int, error) {
	if w.left--; w.left >= 0 {
		return len(p), nil
	}
	return len(p), errors.New("broken pipe")
}

// TestFailedWriteIsNotComplete: a client that leaves has its answer when every declared byte was written, and only
// when no write failed.
func TestFailedWriteIsNotComplete(t *testing.T) {
	for _, tt := range []struct {
		name     string
		succeed  int // writes, of two
		answer   func(http.ResponseWriter)
		declared string
		want     string
	}{
		{"all written", 2, func(w http.ResponseWriter) { io.WriteString(w, "o"); io.WriteString(w, "k") }, "2", "ok"},
		{"the last write failed", 1, func(w http.ResponseWriter) { io.WriteString(w, "o"); io.WriteString(w, "k") }, "2", "client_canceled"},
		{"the first write failed", 0, func(w http.ResponseWriter) { io.WriteString(w, "o"); io.WriteString(w, "k") }, "2", "client_canceled"},
		{"less was written", 2, func(w http.ResponseWriter) { io.WriteString(w, "o") }, "2", "client_canceled"},
		{"no length", 2, func(w http.ResponseWriter) { io.WriteString(w, "ok") }, "", "client_canceled"},
		{"no body", 0, func(w http.ResponseWriter) { w.WriteHeader(204) }, "", "ok"},
		{"no body, and a write that failed", 0, func(w http.ResponseWriter) { w.WriteHeader(204); io.WriteString(w, "x") }, "", "client_canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, observe := observed()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			h := observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if tt.declared != "" {
					w.Header().Set("Content-Length", tt.declared)
				}
				tt.answer(w)
				leave()
			}))
			h.ServeHTTP(&brokenPipe{httptest.NewRecorder(), tt.succeed}, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
			if line := j.next(t); line["outcome"] != tt.want {
				t.Errorf("outcome %s, want %s", line["outcome"], tt.want)
			}
		})
	}
}
