// Package telemetry has the OpenTelemetry functions that the gateway's server side, upstreams and circuits
// share: instruments, cached attribute sets, a bounded set of method names, and the traceparent of W3C Trace
// Context.
//
// It uses only the OpenTelemetry API and needs no SDK. Callers define their own labels, such as outcomes.
package telemetry

import (
	"net/http"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
)

// DurationHistogram returns a histogram of seconds. Its buckets are those that the semantic conventions for
// HTTP advise. An error goes to otel.Handle, and the histogram then records nothing.
func DurationHistogram(m metric.Meter, name, description string) metric.Float64Histogram {
	h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	if err != nil {
		otel.Handle(err)
		return noop.Float64Histogram{}
	}
	return h
}

// Counter returns a counter of whole numbers. The unit is in UCUM's notation, such as "{request}". An error
// goes to otel.Handle; the result is never nil.
func Counter(m metric.Meter, name, description, unit string) metric.Int64Counter {
	c, err := m.Int64Counter(name, metric.WithDescription(description), metric.WithUnit(unit))
	if err != nil {
		otel.Handle(err)
	}
	if c == nil {
		c = noop.Int64Counter{}
	}
	return c
}

// Gauge returns a gauge of whole numbers. An error goes to otel.Handle; the result is never nil.
func Gauge(m metric.Meter, name, description, unit string) metric.Int64Gauge {
	g, err := m.Int64Gauge(name, metric.WithDescription(description), metric.WithUnit(unit))
	if err != nil {
		otel.Handle(err)
	}
	if g == nil {
		g = noop.Int64Gauge{}
	}
	return g
}

// OtherMethod stands for every method that Method does not list.
const OtherMethod = "_OTHER"

// Methods are those of RFC 9110, PATCH (RFC 5789) and QUERY. It must not be changed.
var Methods = [...]string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace, "QUERY"}

// Method returns method if an RFC defines it, and else OtherMethod. It keeps labels bounded, as the semantic
// conventions require of http.request.method.
func Method(method string) string {
	if MethodNumber(method) == len(Methods) {
		return OtherMethod
	}
	return method
}

// MethodNumber returns the place of method in Methods, or len(Methods) if no RFC defines it.
func MethodNumber(method string) int {
	switch method {
	case http.MethodGet:
		return 0
	case http.MethodHead:
		return 1
	case http.MethodPost:
		return 2
	case http.MethodPut:
		return 3
	case http.MethodPatch:
		return 4
	case http.MethodDelete:
		return 5
	case http.MethodConnect:
		return 6
	case http.MethodOptions:
		return 7
	case http.MethodTrace:
		return 8
	case "QUERY":
		return 9
	}
	return len(Methods)
}

// SpanMethod returns the method for a span's name. The semantic conventions use "HTTP" there for a method
// that no RFC defines.
func SpanMethod(method string) string {
	if known := Method(method); known != OtherMethod {
		return known
	}
	return "HTTP"
}

// ServerSpan returns the options that start a server span of a request with this method. The slice is shared
// and has no spare capacity: append copies it.
func ServerSpan(method string) []trace.SpanStartOption { return serverSpans[Method(method)] }

// serverSpans holds the options of each method, so that a request does not build them.
var serverSpans = func() map[string][]trace.SpanStartOption {
	spans := make(map[string][]trace.SpanStartOption)
	for _, method := range append(Methods[:], OtherMethod) {
		spans[method] = []trace.SpanStartOption{
			trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", method)),
		}
	}
	return spans
}()
