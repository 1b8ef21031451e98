package main

import (
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestOneTrace has each span as the parent of the next: the caller's, otelhttp's, Observe's, the attempt's, and
// what the backend is told.
func TestOneTrace(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	otel.SetTextMapPropagator(propagation.TraceContext{})
	told := make(chan string, 1)
	target := ask.Serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { told <- r.Header.Get("Traceparent") }))
	srv := ask.Serve(t, newHandler(target))

	const trace, caller = "0123456789abcdef0123456789abcdef", "0123456789abcdef"
	got := ask.Do(t, "GET", srv+"/items/7", "", "Traceparent", "00-"+trace+"-"+caller+"-01")
	if got.Status != http.StatusOK || got.Header.Get("X-Trace-ID") != trace {
		t.Fatalf("%s with trace id %s", got, got.Header.Get("X-Trace-ID"))
	}
	parent := caller
	for _, name := range []string{"GET /items/{id}", "GET /items/{id}", "GET"} {
		span := child(spans, parent)
		if span == nil || !strings.HasPrefix(span.Name(), name) || span.SpanContext().TraceID().String() != trace {
			t.Fatalf("below %s is %v; want %s", parent, span, name)
		}
		parent = span.SpanContext().SpanID().String()
	}
	if got, want := <-told, "00-"+trace+"-"+parent+"-01"; got != want {
		t.Errorf("the backend is told %s; want %s", got, want)
	}

	spans.Reset()
	public := ask.Serve(t, newHandler(target, otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return true })))
	if got := ask.Do(t, "GET", public+"/items/7", "", "Traceparent", "00-"+trace+"-"+caller+"-01"); got.Header.Get("X-Trace-ID") == trace {
		t.Error("a public endpoint continues the caller's trace")
	}
	<-told
}

// child returns the span with the parent, also one that has not ended.
func child(spans *tracetest.SpanRecorder, parent string) sdktrace.ReadOnlySpan {
	for _, span := range spans.Started() {
		if span.Parent().SpanID().String() == parent {
			return span
		}
	}
	return nil
}
