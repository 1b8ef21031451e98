package bench

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	nometric "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	notrace "go.opentelemetry.io/otel/trace/noop"

	"github.com/seed-96248d0c/gateway"
)

// BenchmarkObserve is the server side's metrics and span around a route that does nothing: with neither collected, with
// metrics by the SDK, and with every span recorded, too. Nothing is exported.
func BenchmarkObserve(b *testing.B) {
	mux := http.NewServeMux()
	mux.Handle("GET /users/{id}", nothing)
	var rt gateway.Router
	rt.Handle("GET /users/{id}", nothing)
	for _, sdk := range []struct {
		name  string
		build func() (metric.MeterProvider, trace.TracerProvider)
	}{
		{"off", func() (metric.MeterProvider, trace.TracerProvider) {
			return nometric.NewMeterProvider(), notrace.NewTracerProvider()
		}},
		{"metrics", func() (metric.MeterProvider, trace.TracerProvider) {
			return sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())), notrace.NewTracerProvider()
		}},
		{"metrics-and-spans", func() (metric.MeterProvider, trace.TracerProvider) {
			return sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())),
				sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()))
		}},
	} {
		meter, tracer := sdk.build()
		for _, peer := range []struct {
			name string
			h    http.Handler
		}{
			{"gateway", gateway.Observe(&gateway.ObserveOptions{Meter: meter, Tracer: tracer})(&rt)},
			{"otelhttp", otelhttp.NewHandler(mux, "server", otelhttp.WithMeterProvider(meter), otelhttp.WithTracerProvider(tracer))},
		} {
			b.Run(sdk.name+"/"+peer.name, func(b *testing.B) { serve(b, peer.h, httptest.NewRequest("GET", "/users/7", nil)) })
		}
	}
	b.Run("none/Router", func(b *testing.B) { serve(b, &rt, httptest.NewRequest("GET", "/users/7", nil)) })
	b.Run("none/ServeMux", func(b *testing.B) { serve(b, mux, httptest.NewRequest("GET", "/users/7", nil)) })
}
