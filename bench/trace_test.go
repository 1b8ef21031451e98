package bench

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed-96248d0c/gateway"
)

// TestTraceOfOtelhttp holds that the gateway continues the trace of otelhttp outside it, with and without Observe, and
// that a client's traceparent does not take its place.
func TestTraceOfOtelhttp(t *testing.T) {
	var got http.Header
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header }))
	defer backend.Close()
	proxy := gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil)
	for _, observed := range []bool{false, true} {
		exporter := tracetest.NewInMemoryExporter()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
		h := proxy
		if observed {
			h = gateway.Observe(&gateway.ObserveOptions{Tracer: tracer})(h)
		}
		h = otelhttp.NewHandler(h, "server", otelhttp.WithTracerProvider(tracer))
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		h.ServeHTTP(httptest.NewRecorder(), r)
		spans := exporter.GetSpans() // the innermost ended first
		parent := spans[0].SpanContext
		if want := "00-" + parent.TraceID().String() + "-" + parent.SpanID().String() + "-01"; got.Get("Traceparent") != want {
			t.Errorf("observed %v: the backend got %q, want %q", observed, got.Get("Traceparent"), want)
		}
		// The attempt's span is innermost, and between it and otelhttp's is Observe's.
		want := 2
		if observed {
			want = 3
		}
		if len(spans) != want {
			t.Fatalf("observed %v: %d spans", observed, len(spans))
		}
		for i, inner := range spans[:want-1] {
			if inner.Parent.SpanID() != spans[i+1].SpanContext.SpanID() || len(inner.Links) != 0 {
				t.Errorf("observed %v: span %d of %d: %+v", observed, i, want, inner)
			}
		}
	}
}
