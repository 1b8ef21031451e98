package telemetry

import (
	"errors"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
)

func TestMethod(t *testing.T) {
	for i, method := range Methods {
		if MethodNumber(method) != i || Method(method) != method || SpanMethod(method) != method {
			t.Errorf("%s is %s and %s", method, Method(method), SpanMethod(method))
		}
	}
	for _, method := range []string{"", "get", "BREW", OtherMethod} {
		if Method(method) != OtherMethod || SpanMethod(method) != "HTTP" {
			t.Errorf("%s is %s and %s", method, Method(method), SpanMethod(method))
		}
	}
}

func TestServerSpan(t *testing.T) {
	for method, want := range map[string]string{"GET": "GET", "QUERY": "QUERY", "BREW": OtherMethod} {
		opts := ServerSpan(method)
		c := trace.NewSpanStartConfig(opts...)
		if attrs := c.Attributes(); c.SpanKind() != trace.SpanKindServer || len(attrs) != 1 || attrs[0].Value.AsString() != want {
			t.Errorf("%s: %v, %v", method, c.SpanKind(), attrs)
		}
		if len(opts) != cap(opts) {
			t.Errorf("%s: append would write into the shared slice", method)
		}
	}
}

// brokenMeter makes no instrument.
type brokenMeter struct{ noop.Meter }

var errBroken = errors.New("no instrument")

func (brokenMeter) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return nil, errBroken
}

func (brokenMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errBroken
}

// An instrument that cannot be made is reported, and its caller need not know.
func TestInstrumentsOfABrokenMeter(t *testing.T) {
	var handled []error
	before := otel.GetErrorHandler()
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { handled = append(handled, err) }))
	defer otel.SetErrorHandler(before)
	Counter(brokenMeter{}, "c", "", "{request}").Add(t.Context(), 1)
	DurationHistogram(brokenMeter{}, "h", "").Record(t.Context(), 1)
	if len(handled) != 2 || !errors.Is(handled[0], errBroken) || !errors.Is(handled[1], errBroken) {
		t.Errorf("handled %v", handled)
	}
}
