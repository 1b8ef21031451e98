// Observability is a gateway whose metrics Prometheus scrapes, and whose metrics and traces go to a collector by
// OTLP as well if OTEL_EXPORTER_OTLP_ENDPOINT is set. A dashboard for Grafana (dashboard.json) and alert rules
// for Prometheus (alerts.yml) for rate, errors and duration are beside it.
//
//	go run ./examples/observability
//	curl -s localhost:9465/metrics
//	OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 go run ./examples/observability -sample 1
//
// Its access log has OpenTelemetry's names for the keys; see rename.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/seed-96248d0c/gateway"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8081", "where the gateway listens")
	ops := flag.String("ops", "127.0.0.1:9465", "where its metrics are served")
	backend := flag.String("backend", "", "URL of the backend; \"\" means one in this process")
	sample := flag.Float64("sample", 0.01, "share of the traces that are recorded")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, *addr, *ops, *backend, *sample); err != nil {
		fmt.Fprintln(os.Stderr, "observability:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, ops, backend string, sample float64) error {
	t, err := newTelemetry(ctx, sample)
	if err != nil {
		return err
	}
	// What is left is sent before the program ends, and its own context has ended by then.
	defer func() { _ = t.shutdown(context.Background()) }()
	if backend == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		go func() { _ = http.Serve(l, http.HandlerFunc(ownBackend)) }()
		backend = "http://" + l.Addr().String()
	}
	log := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: rename}))
	h, err := newGateway(t, log, backend)
	if err != nil {
		return err
	}
	metrics := &http.Server{Addr: ops, Handler: t.page, ReadHeaderTimeout: 5 * time.Second}
	defer metrics.Close()
	go func() {
		if err := metrics.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "observability:", err)
		}
	}()
	fmt.Fprintf(os.Stderr, "The gateway listens on http://%s, its metrics are at http://%s/metrics.\n", addr, ops)
	return gateway.Serve(ctx, &http.Server{Addr: addr, Handler: h}, nil)
}

// newGateway is a gateway whose every part reports to t.
func newGateway(t *telemetry, log *slog.Logger, backend string) (http.Handler, error) {
	targets, err := gateway.ParseTargets(backend)
	if err != nil {
		return nil, err
	}
	upstream := gateway.NewUpstream("backend", targets, &gateway.UpstreamOptions{
		Meter: t.meter, Timeout: 2 * time.Second,
		Circuit: gateway.NewCircuit("backend", &gateway.CircuitOptions{Meter: t.meter, OpenFor: 5 * time.Second}),
	})
	rt := new(gateway.Router)
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: log, Tracer: t.tracer, Meter: t.meter}),
		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, nil),
	)
	rt.Handle("GET /users/{id}", gateway.Proxy(upstream, nil))
	rt.Handle("POST /checkout", gateway.Proxy(upstream, nil))
	return rt, nil
}

// ownBackend fails when it is told to, by the query's parameter fail.
func ownBackend(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("fail") {
		http.Error(w, "failing", http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "ok")
}

// telemetry is what the gateway reports to.
type telemetry struct {
	meter  *sdkmetric.MeterProvider
	tracer *sdktrace.TracerProvider
	page   http.Handler // /metrics
}

// newTelemetry wires the exporters. Exemplars lead from a bucket of a histogram to a trace that was recorded.
func newTelemetry(ctx context.Context, sample float64) (*telemetry, error) {
	registry := prometheus.NewRegistry()
	scraped, err := otelprom.New(otelprom.WithRegisterer(registry))
	if err != nil {
		return nil, err
	}
	metrics := []sdkmetric.Option{sdkmetric.WithReader(scraped)}
	traces := []sdktrace.TracerProviderOption{sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(sample)))}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" { // the exporters read it, and the other variables of OTLP
		pushed, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, err
		}
		spans, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, err
		}
		metrics = append(metrics, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(pushed)))
		traces = append(traces, sdktrace.WithBatcher(spans))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return &telemetry{
		meter: sdkmetric.NewMeterProvider(metrics...), tracer: sdktrace.NewTracerProvider(traces...), page: mux,
	}, nil
}

// shutdown sends what has not been sent yet.
func (t *telemetry) shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return errors.Join(t.tracer.Shutdown(ctx), t.meter.Shutdown(ctx))
}

// otelNames are OpenTelemetry's names of the access log's keys, as docs/telemetry.md has them.
var otelNames = map[string]string{
	"method": "http.request.method", "host": "server.address", "path": "url.path", "route": "gateway.route",
	"status": "http.response.status_code", "outcome": "gateway.outcome", "duration": "http.server.request.duration",
	"bytes": "http.response.body.size", "bytes_in": "network.io.receive", "client": "client.address",
	"subject": "user.id", "upstream": "gateway.upstream.name", "target": "gateway.target", "attempts": "gateway.attempts",
	"error": "exception.message", "remarks": "gateway.remarks",
}

// rename is a slog.HandlerOptions.ReplaceAttr that gives the keys of the access log OpenTelemetry's names. A
// duration is in seconds.
func rename(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	if name, ok := otelNames[a.Key]; ok {
		a.Key = name
	}
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}
