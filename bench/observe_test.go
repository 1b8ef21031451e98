package bench

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

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
// metrics by the SDK, with one span in a hundred recorded, and with every span recorded, too. Nothing is exported.
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
		{"metrics-and-1-percent", func() (metric.MeterProvider, trace.TracerProvider) {
			return sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())),
				sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.TraceIDRatioBased(0.01)))
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

// BenchmarkConsole is one reading of the figures of a thousand routes, all of them busy, with its event: what a
// Console does once a second for all its watchers together. A hundredth of a core is 10 ms of that second.
func BenchmarkConsole(b *testing.B) {
	stats := new(gateway.Stats)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Stats: stats, Meter: nometric.NewMeterProvider(), Tracer: notrace.NewTracerProvider()}))
	var requests []*http.Request
	for n := range 1000 {
		rt.Handle(fmt.Sprintf("GET /r%d/{id}", n), nothing)
		requests = append(requests, httptest.NewRequest("GET", fmt.Sprintf("/r%d/7", n), nil))
	}
	// Ten seconds of traffic, so that every slot of the window is in use.
	stop := make(chan bool)
	done := make(chan bool)
	go func() {
		defer close(done)
		for {
			for _, r := range requests {
				rt.ServeHTTP(httptest.NewRecorder(), r)
			}
			select {
			case <-stop:
				return
			case <-time.After(400 * time.Millisecond):
			}
		}
	}()
	<-time.After(10 * time.Second) // fills the figures of the last ten seconds
	close(stop)
	<-done
	b.Run("reading", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			// A watcher that comes alone gets a reading of its own, with the list of routes.
			ctx, cancel := context.WithCancel(b.Context())
			gateway.Console(gateway.ConsoleOptions{Router: &rt, Stats: stats}).
				ServeHTTP(&leaver{header: make(http.Header), leave: cancel}, httptest.NewRequestWithContext(ctx, "GET", "/events", nil))
		}
	})
	b.Run("stats", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			stats.Routes()
		}
	})
}

// leaver is a watcher that leaves after the first events.
type leaver struct {
	header http.Header
	leave  func()
}

func (l *leaver) Header() http.Header         { return l.header }
func (l *leaver) Write(p []byte) (int, error) { return len(p), nil }
func (l *leaver) WriteHeader(int)             {}
func (l *leaver) Flush()                      { l.leave() }
