// Package ask has what the tests of the examples share: a backend, and questions to a server.
package ask

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// Serve runs h on a listener of its own until the test ends, and returns its URL.
func Serve(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

// Upstream returns an Upstream whose one target runs h.
func Upstream(t testing.TB, h http.HandlerFunc) *gateway.Upstream {
	t.Helper()
	return gateway.NewUpstream("backend", gateway.MustTargets(Serve(t, h)), nil)
}

// Echo is a backend that answers with the method, the path and the user that it was asked with.
func Echo(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s by %q", r.Method, r.URL.Path, r.Header.Get("X-User-ID"))
}

// Answer is an answer that was read to its end.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// String returns the status and the body.
func (a Answer) String() string { return fmt.Sprint(a.Status, " ", a.Body) }

// Do sends a request with fields, which are names and values in turn, and reads the answer. Redirects are
// answers.
func Do(t testing.TB, method, url, body string, fields ...string) Answer {
	t.Helper()
	return DoWith(t, http.DefaultTransport, method, url, body, fields...)
}

// DoWith is Do over a transport.
func DoWith(t testing.TB, over http.RoundTripper, method, url, body string, fields ...string) Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	res, err := over.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return Answer{res.StatusCode, res.Header, string(b)}
}

// Log returns a logger in text form, and the lines that it wrote.
func Log() (*slog.Logger, Lines) {
	lines := make(Lines, 100)
	return slog.New(slog.NewTextHandler(lines, nil)), lines
}

// Lines are log lines. A hundred of them may wait to be read.
type Lines chan string

func (l Lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// Next waits for a line and returns the value of its attribute, "" if it has none.
func (l Lines) Next(t testing.TB, attribute string) string {
	t.Helper()
	select {
	case line := <-l:
		_, value, _ := strings.Cut(line, " "+attribute+"=")
		if rest, ok := strings.CutPrefix(value, `"`); ok {
			value, _, _ = strings.Cut(rest, `"`)
			return value
		}
		value, _, _ = strings.Cut(value, " ")
		return strings.TrimSpace(value)
	case <-time.After(10 * time.Second):
		t.Fatal("no line in the log")
		return ""
	}
}
