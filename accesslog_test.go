package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestObserveLogs(t *testing.T) {
	j := make(journal, 10)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{
		Logger:      j.logger(),
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
	rec := recorded(&rt, httptest.NewRequest("GET", "/users/7?token=secret", nil))
	line := j.next(t)
	for key, want := range map[string]string{
		"message": "request", "level": "INFO", "method": "GET", "host": "example.com", "path": "/users/7", "route": "GET /users/{id}", "status": "200",
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

// TestLogNamesTheTarget: the log line says where a request went, how often, and at which target it failed.
func TestLogNamesTheTarget(t *testing.T) {
	good := serve(t, text("fine"))
	const gone, other = "http://127.0.0.1:1", "http://127.0.0.1:2" // where nobody listens
	cut := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "cut")
	}))
	retry := gateway.UpstreamOptions{Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1}}
	for _, tt := range []struct {
		name    string
		targets []string
		opts    gateway.UpstreamOptions
		want    map[string]string // "" means that the key is not there
		error   string            // in the error
	}{
		{"an answer", []string{good.URL}, gateway.UpstreamOptions{},
			map[string]string{"upstream": "u", "target": good.URL, "attempts": "1", "error": "", "duration": "*"}, ""},
		{"a target that is away", []string{gone}, gateway.UpstreamOptions{},
			map[string]string{"upstream": "u", "target": gone, "attempts": "1"}, gone},
		{"a retry", []string{gone, other}, retry,
			map[string]string{"upstream": "u", "attempts": "2"}, "target http://127.0.0.1:"},
		{"no target", nil, gateway.UpstreamOptions{},
			map[string]string{"upstream": "u", "target": "", "attempts": ""}, "no target"},
		{"an answer that is cut off", []string{cut.URL}, gateway.UpstreamOptions{},
			map[string]string{"target": cut.URL, "attempts": "1", "outcome": "aborted"}, cut.URL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, observe := observed()
			h := observe(gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets(tt.targets...), &tt.opts), nil))
			panicOf(func() { recorded(h, nil) }) // http.ErrAbortHandler
			line := j.next(t)
			for key, want := range tt.want {
				if got, ok := line[key]; want == "" && ok || want == "*" && got == "" || want != "*" && got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if !strings.Contains(line["error"], tt.error) {
				t.Errorf("error is %q, want %q in it", line["error"], tt.error)
			}
		})
	}
}

// TestLogNamesBothValues: an operator who has configured another issuer or audience than the provider's sees both. The
// client does not.
func TestLogNamesBothValues(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change map[string]any
		want   []string
	}{
		{"issuer", map[string]any{"iss": "https://other.example"}, []string{"https://other.example", "https://id.example"}},
		{"audience", map[string]any{"aud": []any{"mobile", "web"}}, []string{"mobile", "web", "api"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, observe := observed()
			r := withBearer(edToken(tt.change))
			rec := recorded(observe(gateway.Auth(edJWT(nil), nil)(text("in"))), r)
			line := j.next(t)
			for _, want := range tt.want {
				if !strings.Contains(line["error"], want) {
					t.Errorf("error is %q, want %q in it", line["error"], want)
				}
				if strings.Contains(rec.Body.String()+fmt.Sprint(rec.Header()), want) {
					t.Errorf("the client was told %q", want)
				}
			}
			if rec.Code != 401 {
				t.Errorf("status %d", rec.Code)
			}
		})
	}
}

// TestLogNamesWhoHidesTheHijacker: http.TimeoutHandler's writer cannot be taken over, which an upgrade needs.
func TestLogNamesWhoHidesTheHijacker(t *testing.T) {
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	}))
	j, observe := observed()
	s := serve(t, observe(http.TimeoutHandler(gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil), nil), time.Minute, "")))
	conn := raw(t, s, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 500 {
		t.Errorf("got %v, %v", res, err)
	}
	if line := j.next(t); !strings.Contains(line["error"], "*http.timeoutWriter") {
		t.Errorf("error is %q", line["error"])
	}
}

// TestMetricsNameTheRoute: hosts whose routes have the same path are told apart.
func TestMetricsNameTheRoute(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Meter: tel, Tracer: tel}))
	for _, host := range []string{"a.example", "b.example"} {
		rt.Add(gateway.Route{Name: "home of " + host, Pattern: host + "/", Handler: text(host)})
		rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://"+host+"/", nil))
	}
	series := tel.Series("http.server.request.duration")
	if len(series) != 2 {
		t.Fatalf("%d series, want 2", len(series))
	}
	for _, s := range series {
		name, _ := s.Attributes.Value("gateway.route")
		path, _ := s.Attributes.Value("http.route")
		if !strings.HasPrefix(name.AsString(), "home of ") || path.AsString() != "/" {
			t.Errorf("labels %v", s.Attributes)
		}
	}
}
