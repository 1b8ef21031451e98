package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// drive sends requests of every kind through a gateway, and returns its metrics and its log.
func drive(t *testing.T, tel *telemetry) (metrics, log string) {
	inService := httptest.NewRecorder() // the metrics while a request is in service
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/users/metrics" {
			tel.page.ServeHTTP(inService, httptest.NewRequest("GET", "/metrics", nil))
		}
		ownBackend(w, r)
	}))
	defer backend.Close()
	var lines bytes.Buffer
	h, err := newGateway(tel, slog.New(slog.NewJSONHandler(&lines, &slog.HandlerOptions{ReplaceAttr: rename})), backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []struct {
		method, target string
		times, status  int
	}{
		{"GET", "/users/7", 3, 200}, {"GET", "/users/metrics", 1, 200}, {"GET", "/nowhere", 1, 404}, {"GET", "/users/7?fail", 5, 500}, {"POST", "/checkout", 1, 503},
	} {
		for range request.times {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest(request.method, request.target, nil))
			if rec.Code != request.status {
				t.Fatalf("%s %s: %d", request.method, request.target, rec.Code)
			}
		}
	}
	rec := httptest.NewRecorder()
	tel.page.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return inService.Body.String() + rec.Body.String(), lines.String()
}

// exported returns the names of the metrics and of the labels of each.
func exported(metrics string) map[string][]string {
	names := make(map[string][]string)
	label := regexp.MustCompile(`(\w+)="`)
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			names[name] = append(names[name], m[1])
		}
		names[name] = append(names[name], "")
	}
	return names
}

// The dashboard and the alerts use no metric and no label that the gateway does not export.
func TestDashboardAndAlerts(t *testing.T) {
	tel, err := newTelemetry(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer tel.shutdown(context.Background())
	metrics, _ := drive(t, tel)
	names := exported(metrics)

	dashboard := read(t, "dashboard.json")
	var parsed struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(dashboard), &parsed); err != nil || len(parsed.Panels) < 10 {
		t.Fatalf("%d panels, %v", len(parsed.Panels), err)
	}
	expressions := []string{regexp.MustCompile(`label_values\([^)]*\)`).FindString(dashboard)}
	for _, p := range parsed.Panels {
		for _, target := range p.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	alerts := read(t, "alerts.yml")
	for _, rule := range strings.Split(alerts, "expr:")[1:] {
		expr, _, _ := strings.Cut(rule, "for:")
		expressions = append(expressions, expr)
	}
	used := 0
	metric := regexp.MustCompile(`\b(http|gateway)_\w+\b`)
	quoted := regexp.MustCompile(`"[^"]*"`)
	for _, expr := range expressions {
		all := metric.FindAllString(quoted.ReplaceAllString(expr, ""), -1)
		var labels []string
		for _, name := range all {
			if _, ok := names[name]; ok {
				used++
				labels = append(labels, names[name]...)
			}
		}
		for _, name := range all {
			if _, ok := names[name]; !ok && !slices.Contains(labels, name) {
				t.Errorf("%s is neither a metric nor one of its labels, in %s", name, expr)
			}
		}
		if len(labels) == 0 {
			t.Errorf("no metric in %s", expr)
		}
	}
	if used < 20 {
		t.Errorf("%d uses of metrics", used)
	}
	// And the signals of RED are there for each route.
	for _, want := range []string{
		`http_server_request_duration_seconds_count{error_type="500",gateway_outcome="upstream_error",gateway_route="GET /users/{id}",http_request_method="GET",http_response_status_code="500",http_route="/users/{id}"`,
		`gateway_circuit_state{gateway_circuit_name="backend"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

// With an endpoint, metrics and spans go to the collector too.
func TestOTLP(t *testing.T) {
	var mu sync.Mutex
	received := make(map[string]int)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		received[r.URL.Path] += len(body)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tel, err := newTelemetry(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, tel)
	if err := tel.shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if received["/v1/metrics"] == 0 || received["/v1/traces"] == 0 {
		t.Errorf("received %v", received)
	}
}

// The log has OpenTelemetry's names, and those alone.
func TestLogNames(t *testing.T) {
	tel, err := newTelemetry(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer tel.shutdown(context.Background())
	_, log := drive(t, tel)
	for line := range strings.Lines(log) {
		var keys map[string]any
		if err := json.Unmarshal([]byte(line), &keys); err != nil {
			t.Fatal(err)
		}
		for key := range keys {
			if otelNames[key] != "" {
				t.Errorf("%s has the key %s", line, key)
			}
		}
		if took, ok := keys["http.server.request.duration"].(float64); !ok || took > 10 {
			t.Errorf("duration %v", keys["http.server.request.duration"])
		}
	}
	doc := read(t, "../../docs/telemetry.md")
	for key := range otelNames {
		if !strings.Contains(doc, "| `"+key+"` |") {
			t.Errorf("docs/telemetry.md lacks the key %s", key)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
