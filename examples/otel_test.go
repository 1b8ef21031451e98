package examples_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
)

// These tests hold what gateway.Observe and gateway.Upstream report to the SDK of OpenTelemetry. The tests of
// the gateway module use a small recorder instead, so that the module does not require the SDK.

// answers is a transport that answers every request with a status, and keeps the header of the last one.
type answers struct {
	status int
	seen   http.Header
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.seen = r.Header
	return &http.Response{StatusCode: a.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, Request: r}, nil
}

// over returns an upstream whose target is a.
func (a *answers) over(opts gateway.UpstreamOptions) *gateway.Upstream {
	opts.Transport = a
	return gateway.NewUpstream("u", gateway.MustTargets("https://t.example"), &opts)
}

func newTracer(t *testing.T) (*sdktrace.TracerProvider, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	t.Cleanup(func() { tracer.Shutdown(t.Context()) })
	return tracer, spans
}

func TestSDKSpan(t *testing.T) {
	tracer, exporter := newTracer(t)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Tracer: tracer}))
	var inside trace.SpanContext
	rt.Handle("GET /users/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside = trace.SpanContextFromContext(r.Context())
		_, child := tracer.Tracer("handler").Start(r.Context(), "child")
		child.End()
		gateway.WriteError(w, r, fmt.Errorf("%w: secret cause", gateway.ErrBadGateway))
	}))
	rec := httptest.NewRecorder()
	rt.ServeHTTP(rec, httptest.NewRequest("GET", "/users/7", nil))
	spans := exporter.GetSpans()
	if len(spans) != 2 {
		t.Fatalf("%d spans", len(spans))
	}
	child, s := spans[0], spans[1]
	if s.Name != "GET /users/{id}" || s.SpanKind != trace.SpanKindServer || s.Status.Code != codes.Error || s.Parent.IsValid() {
		t.Errorf("got %q %v %v %v", s.Name, s.SpanKind, s.Status, s.Parent)
	}
	if s.SpanContext.SpanID() != inside.SpanID() || rec.Header().Get("X-Trace-Id") != s.SpanContext.TraceID().String() {
		t.Errorf("span %v, inside %v, answer %q", s.SpanContext, inside, rec.Header().Get("X-Trace-Id"))
	}
	if !child.Parent.Equal(s.SpanContext) {
		t.Errorf("the handler's span has the parent %v", child.Parent)
	}
	for _, want := range []attribute.KeyValue{
		attribute.String("http.request.method", "GET"), attribute.String("http.route", "/users/{id}"),
		attribute.Int("http.response.status_code", 502), attribute.String("url.path", "/users/7"),
	} {
		if !slices.Contains(s.Attributes, want) {
			t.Errorf("attributes %v lack %v", s.Attributes, want)
		}
	}
	if len(s.Events) != 1 || !strings.Contains(fmt.Sprint(s.Events), "secret cause") {
		t.Errorf("events %v", s.Events)
	}
}

func TestSDKSpanOfTheCallersTrace(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, tt := range []struct {
		name      string
		header    string // traceparent
		trust     bool
		continued bool
		sampled   bool
		linked    bool
	}{
		{"no caller", "", true, false, true, false},
		{"trusted", "00-" + id + "-" + span + "-01", true, true, true, false},
		{"trusted, not sampled", "00-" + id + "-" + span + "-00", true, true, false, false},
		{"untrusted", "00-" + id + "-" + span + "-01", false, false, true, true},
		{"untrusted, not sampled", "00-" + id + "-" + span + "-00", false, false, true, true},
		{"malformed", "00-" + id, true, false, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tracer, exporter := newTracer(t)
			backend := &answers{status: 200}
			h := gateway.Observe(&gateway.ObserveOptions{
				Tracer: tracer, TrustTrace: func(*http.Request) bool { return tt.trust },
			})(gateway.Proxy(backend.over(gateway.UpstreamOptions{}), nil))
			r := httptest.NewRequest("GET", "/", nil)
			if tt.header != "" {
				r.Header.Set("Traceparent", tt.header)
			}
			r.Header.Set("Tracestate", "vendor=1")
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)

			flags := map[bool]string{true: "-01", false: "-00"}[tt.sampled]
			got, sent := rec.Header().Get("X-Trace-Id"), backend.seen.Get("Traceparent")
			if (got == id) != tt.continued || !strings.HasPrefix(sent, "00-"+got+"-") || !strings.HasSuffix(sent, flags) {
				t.Errorf("trace id %q, the backend got %q", got, sent)
			}
			if state := backend.seen.Get("Tracestate"); (state == "vendor=1") != tt.continued {
				t.Errorf("the backend got tracestate %q", state)
			}
			spans := exporter.GetSpans()
			if !tt.sampled {
				if len(spans) != 0 {
					t.Errorf("spans %+v", spans)
				}
				return
			}
			if len(spans) != 2 { // the attempt's, and then the server's
				t.Fatalf("%d spans", len(spans))
			}
			s, attempt := spans[1], spans[0]
			if sent != "00-"+s.SpanContext.TraceID().String()+"-"+attempt.SpanContext.SpanID().String()+flags || !attempt.Parent.Equal(s.SpanContext) {
				t.Errorf("span %v of an attempt below %v, the backend got %q", attempt.SpanContext, attempt.Parent, sent)
			}
			if s.Parent.IsValid() != tt.continued || tt.continued && (s.Parent.SpanID().String() != span || !s.Parent.IsRemote()) {
				t.Errorf("parent %v", s.Parent)
			}
			if (len(s.Links) == 1) != tt.linked || tt.linked && s.Links[0].SpanContext.SpanID().String() != span {
				t.Errorf("links %v", s.Links)
			}
		})
	}
}

func TestSDKMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer meter.Shutdown(t.Context())
	backend := &answers{status: 503}
	u := backend.over(gateway.UpstreamOptions{Meter: meter, Circuit: gateway.NewCircuit("c", &gateway.CircuitOptions{Meter: meter, Failures: 2})})
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Meter: meter}))
	rt.Handle("PUT /things/{id}", gateway.Proxy(u, nil))
	for range 3 { // the circuit refuses the third
		rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/things/1", nil))
	}
	var rm metricdata.ResourceMetrics
	observe := gateway.Observe(&gateway.ObserveOptions{Meter: meter})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if err := reader.Collect(t.Context(), &rm); err != nil {
			t.Error(err)
		}
	}))
	observe.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("PUT", "/", nil))
	got := make(map[string]int)
	for _, sm := range rm.ScopeMetrics {
		if sm.Scope.Name != "github.com/seed-96248d0c/gateway" {
			t.Errorf("scope %q", sm.Scope.Name)
		}
		for _, m := range sm.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = int(p.Count)
					if m.Unit != "s" || len(p.Bounds) != 14 || p.Bounds[0] != 0.005 || p.Bounds[13] != 10 {
						t.Errorf("%s in %q with bounds %v", m.Name, m.Unit, p.Bounds)
					}
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = int(p.Value)
				}
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = int(p.Value)
				}
			}
		}
	}
	const server = "http.server.request.duration error.type=503,gateway.outcome=%s,gateway.route=PUT /things/{id},http.request.method=PUT,http.response.status_code=503," +
		"http.route=/things/{id},network.protocol.version=1.1,url.scheme=http"
	for name, want := range map[string]int{
		fmt.Sprintf(server, "upstream_error"): 2,
		fmt.Sprintf(server, "rejected"):       1,
		"http.client.request.duration error.type=503,gateway.outcome=upstream_error,gateway.upstream.name=u,http.request.method=PUT," +
			"http.response.status_code=503,server.address=t.example,server.port=443": 2,
		"gateway.circuit.changes gateway.circuit.name=c,gateway.circuit.state=open": 1,
		"gateway.circuit.refusals gateway.circuit.name=c":                           1,
		"gateway.circuit.state gateway.circuit.name=c":                              int(gateway.CircuitOpen),
		"http.server.active_requests http.request.method=PUT,url.scheme=http":       1, // the one that collects
	} {
		if got[name] != want {
			t.Errorf("%s: %d, want %d", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("more than expected: %v", got)
	}
}

// BenchmarkSDKMetrics is a proxied request that the SDK measures, without a network.
func BenchmarkSDKMetrics(b *testing.B) {
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
	defer meter.Shutdown(b.Context())
	u := (&answers{status: 200}).over(gateway.UpstreamOptions{Meter: meter})
	h := gateway.Observe(&gateway.ObserveOptions{Meter: meter})(gateway.Proxy(u, nil))
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}

// A client that makes up paths, methods and hosts makes no series and no span names.
func TestSDKCardinality(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer meter.Shutdown(t.Context())
	u := (&answers{status: 200}).over(gateway.UpstreamOptions{Meter: meter})
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Meter: meter}))
	rt.Handle("/things/{id}", gateway.Proxy(u, nil))
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 100_000 {
		r := httptest.NewRequest("GET", fmt.Sprintf("/things/%x", random.Uint64()), nil)
		if n%2 == 0 {
			r.URL.Path = fmt.Sprintf("/%x/%x", random.Uint64(), n)
		}
		if n%3 == 0 {
			r.Method = fmt.Sprintf("M%X", random.Uint64())
		}
		r.Host = fmt.Sprintf("h%x.example", random.Uint64())
		r.Header.Set("User-Agent", r.Host)
		rt.ServeHTTP(httptest.NewRecorder(), r)
	}
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	series := make(map[string]int)
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			if data, ok := m.Data.(metricdata.Histogram[float64]); ok {
				series[m.Name] = len(data.DataPoints)
			}
		}
	}
	// To the route: GET and _OTHER. To none: the same. Of the upstream: the same two methods.
	if len(series) != 2 || series["http.server.request.duration"] != 4 || series["http.client.request.duration"] != 2 {
		t.Errorf("series %v", series)
	}
}

// An attempt has a client span as the conventions describe it, and the events of circuits and limiters are on
// the spans that they concern.
func TestSDKClientSpans(t *testing.T) {
	tracer, exporter := newTracer(t)
	circuit := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2})
	backend := &answers{status: 503}
	u := backend.over(gateway.UpstreamOptions{Circuit: circuit})
	h := gateway.Chain(
		gateway.Observe(&gateway.ObserveOptions{Tracer: tracer}),
		gateway.RateLimit(gateway.NewTokenBucket(0.001, 3, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
	)(gateway.Proxy(u, nil))
	for range 4 { // two fail, the circuit refuses one, the limiter one
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("BREW", "/pots/1?token=secret", nil))
	}
	backend.status = 404
	gateway.Observe(&gateway.ObserveOptions{Tracer: tracer})(gateway.Proxy(backend.over(gateway.UpstreamOptions{}), nil)).
		ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))

	var got []string
	for _, s := range exporter.GetSpans() {
		line := fmt.Sprint(s.SpanKind, " ", s.Name, " ", s.Status.Code)
		for _, e := range s.Events {
			if e.Name != "exception" {
				line += " " + e.Name + " " + fmt.Sprint(e.Attributes[0].Value.AsString())
			}
		}
		got = append(got, line)
		if text := fmt.Sprint(s.Attributes); strings.Contains(text, "secret") {
			t.Errorf("attributes %s", text)
		}
	}
	want := []string{
		"client HTTP Error", "server HTTP Error",
		"client HTTP Error gateway.circuit.changed c", "server HTTP Error",
		"server HTTP Error gateway.circuit.refused c",
		"server HTTP Unset gateway.limit.refused address",
		"client GET Error", "server GET Unset",
	}
	if !slices.Equal(got, want) {
		t.Errorf("spans %q, want %q", got, want)
	}
	attempt := exporter.GetSpans()[0]
	for _, want := range []attribute.KeyValue{
		attribute.String("http.request.method", "_OTHER"), attribute.String("http.request.method_original", "BREW"),
		attribute.String("server.address", "t.example"), attribute.Int("server.port", 443), attribute.String("url.full", "https://t.example/pots/1"),
		attribute.Int("http.response.status_code", 503), attribute.String("error.type", "503"),
		attribute.String("gateway.upstream.name", "u"), attribute.String("gateway.outcome", "upstream_error"),
	} {
		if !slices.Contains(attempt.Attributes, want) {
			t.Errorf("attributes %v lack %v", attempt.Attributes, want)
		}
	}
}

// A sampled request leaves an exemplar, by which a dashboard finds its trace.
func TestSDKExemplars(t *testing.T) {
	tracer, exporter := newTracer(t)
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer meter.Shutdown(t.Context())
	u := (&answers{status: 200}).over(gateway.UpstreamOptions{Meter: meter})
	h := gateway.Observe(&gateway.ObserveOptions{Tracer: tracer, Meter: meter})(gateway.Proxy(u, nil))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	var rm metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &rm); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			if data, ok := m.Data.(metricdata.Histogram[float64]); ok {
				for _, e := range data.DataPoints[0].Exemplars {
					got[m.Name] = fmt.Sprintf("%x", e.SpanID)
				}
			}
		}
	}
	spans := exporter.GetSpans()
	if got["http.client.request.duration"] != spans[0].SpanContext.SpanID().String() || got["http.server.request.duration"] != spans[1].SpanContext.SpanID().String() {
		t.Errorf("exemplars %v", got)
	}
}
