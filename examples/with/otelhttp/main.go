// Otelhttp combines the gateway with otelhttp, the instrumentation of net/http by OpenTelemetry, where it is
// around everything already. Its span is the parent of Observe's, and it decides on the caller's trace. A
// transport of otelhttp is not needed: an Upstream has a client span for each attempt, which the backend's span
// gets as its parent.
package main

import (
	"context"
	"log"
	"net/http"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(target string, opts ...otelhttp.Option) http.Handler {
	backend := gateway.NewUpstream("backend", gateway.MustTargets(target), nil)
	var rt gateway.Router
	rt.Use(gateway.Observe(nil))
	rt.Handle("GET /items/{id}", gateway.Proxy(backend, nil))
	// WithPublicEndpointFn, in opts, makes the caller's trace a link instead of the parent, as Observe does
	// by itself.
	return otelhttp.NewHandler(&rt, "gateway", opts...)
}

func main() {
	// In earnest, with the exporter of an OpenTelemetry SDK: otel.SetTracerProvider.
	otel.SetTextMapPropagator(propagation.TraceContext{})
	h := newHandler("http://127.0.0.1:9000")
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: h}, nil))
}
