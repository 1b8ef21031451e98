// Package gatewaytest provides test helpers for programs that use package gateway: telemetry in memory, a
// check for leaked goroutines, and a conformance test for limiters.
package gatewaytest

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// Telemetry records spans and measurements in memory, so that a test can read them. It is both a
// trace.TracerProvider and a metric.MeterProvider:
//
//	tel := new(gatewaytest.Telemetry)
//	h := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})(handler)
//
// It needs no SDK. It records only what package gateway uses: spans with their attributes, links, events
// and errors, and the instruments Float64Histogram, Int64Counter and Int64Gauge. Other instruments do
// nothing. Like the SDK's default sampler, it samples spans without a parent and spans whose parent is
// sampled. Spans that are not sampled are not recorded.
//
// The zero value is ready for use. A Telemetry is safe for concurrent use and must not be copied. It keeps
// everything that it records.
type Telemetry struct {
	providers

	mu     sync.Mutex
	spans  []Span
	series []*Series
	index  map[seriesKey]*Series
}

// providers keeps the embedded names out of Telemetry's documentation.
type providers struct {
	tracenoop.TracerProvider
	metricnoop.MeterProvider
}

// Span is a span that has ended.
type Span struct {
	Name       string
	Kind       trace.SpanKind
	Context    trace.SpanContext
	Parent     trace.SpanContext // invalid for a root span
	Links      []trace.Link
	Attributes attribute.Set
	Status     codes.Code
	Errors     []error // in the order of RecordError
	Events     []Event // in the order of AddEvent
}

// Event is an event of a span.
type Event struct {
	Name       string
	Attributes attribute.Set
}

// Series is the sum of the measurements of one instrument with the same attributes.
type Series struct {
	Name, Unit string
	Scope      string // name of the meter
	Attributes attribute.Set
	Bounds     []float64 // of a histogram's buckets; nil for a counter
	Count      int       // number of measurements
	Sum        float64   // of their values
	Last       float64   // value of the last one, which is what a gauge shows
}

type seriesKey struct {
	name       string
	attributes attribute.Distinct
}

// Spans returns the spans that have ended, in the order in which they ended.
func (t *Telemetry) Spans() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Span(nil), t.spans...)
}

// Series returns the series of the instrument with this name, in the order of their first measurement.
func (t *Telemetry) Series(instrument string) []Series {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Series
	for _, s := range t.series {
		if s.Name == instrument {
			all = append(all, *s)
		}
	}
	return all
}

// Tracer implements trace.TracerProvider.
func (t *Telemetry) Tracer(string, ...trace.TracerOption) trace.Tracer { return tracer{to: t} }

// Meter implements metric.MeterProvider.
func (t *Telemetry) Meter(name string, _ ...metric.MeterOption) metric.Meter {
	return meter{to: t, scope: name}
}

// record adds a measurement to the series of like's instrument with these attributes. It creates the series
// as a copy of like if there is none.
func (t *Telemetry) record(like *Series, value float64, attributes attribute.Set) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := seriesKey{like.Name, attributes.Equivalent()}
	s := t.index[key]
	if s == nil {
		own := *like
		own.Attributes = attributes
		s = &own
		if t.index == nil {
			t.index = make(map[seriesKey]*Series)
		}
		t.index[key] = s
		t.series = append(t.series, s)
	}
	s.Count++
	s.Sum += value
	s.Last = value
}

type tracer struct {
	tracenoop.Tracer
	to *Telemetry
}

func (t tracer) Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	c := trace.NewSpanStartConfig(opts...)
	var parent trace.SpanContext
	if !c.NewRoot() {
		parent = trace.SpanContextFromContext(ctx)
	}
	sc := telemetry.NewSpanContext()
	if parent.IsValid() {
		sc = sc.WithTraceID(parent.TraceID()).WithTraceFlags(parent.TraceFlags()).WithTraceState(parent.TraceState())
	}
	s := &span{to: t.to, attributes: c.Attributes(), recording: sc.IsSampled()}
	s.span = Span{Name: name, Kind: c.SpanKind(), Context: sc, Parent: parent, Links: c.Links()}
	return trace.ContextWithSpan(ctx, s), s
}

// span is a span until it ends.
type span struct {
	tracenoop.Span
	to *Telemetry

	mu         sync.Mutex
	span       Span
	attributes []attribute.KeyValue
	recording  bool
}

// update calls change with the lock held, unless s has ended or is not sampled.
func (s *span) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recording {
		change()
	}
}

func (s *span) SpanContext() trace.SpanContext { return s.span.Context }

func (s *span) TracerProvider() trace.TracerProvider { return s.to }

func (s *span) IsRecording() (yes bool) {
	s.update(func() { yes = true })
	return yes
}

func (s *span) SetName(name string) { s.update(func() { s.span.Name = name }) }

func (s *span) SetStatus(code codes.Code, _ string) { s.update(func() { s.span.Status = code }) }

func (s *span) SetAttributes(attrs ...attribute.KeyValue) {
	s.update(func() { s.attributes = append(s.attributes, attrs...) })
}

func (s *span) AddLink(link trace.Link) {
	s.update(func() { s.span.Links = append(s.span.Links, link) })
}

func (s *span) RecordError(err error, _ ...trace.EventOption) {
	s.update(func() { s.span.Errors = append(s.span.Errors, err) })
}

func (s *span) AddEvent(name string, opts ...trace.EventOption) {
	c := trace.NewEventConfig(opts...)
	s.update(func() {
		s.span.Events = append(s.span.Events, Event{name, attribute.NewSet(c.Attributes()...)})
	})
}

func (s *span) End(...trace.SpanEndOption) {
	s.update(func() {
		s.recording = false
		s.span.Attributes = attribute.NewSet(s.attributes...)
		s.to.mu.Lock()
		defer s.to.mu.Unlock()
		s.to.spans = append(s.to.spans, s.span)
	})
}

type meter struct {
	metricnoop.Meter
	to    *Telemetry
	scope string
}

func (m meter) Float64Histogram(name string, opts ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	c := metric.NewFloat64HistogramConfig(opts...)
	return &histogram{to: m.to, like: Series{Name: name, Unit: c.Unit(), Scope: m.scope, Bounds: c.ExplicitBucketBoundaries()}}, nil
}

func (m meter) Int64Counter(name string, opts ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	c := metric.NewInt64CounterConfig(opts...)
	return &counter{to: m.to, like: Series{Name: name, Unit: c.Unit(), Scope: m.scope}}, nil
}

func (m meter) Int64Gauge(name string, opts ...metric.Int64GaugeOption) (metric.Int64Gauge, error) {
	c := metric.NewInt64GaugeConfig(opts...)
	return &gauge{to: m.to, like: Series{Name: name, Unit: c.Unit(), Scope: m.scope}}, nil
}

type gauge struct {
	metricnoop.Int64Gauge
	to   *Telemetry
	like Series
}

func (g *gauge) Enabled(context.Context) bool { return true }

func (g *gauge) Record(_ context.Context, n int64, opts ...metric.RecordOption) {
	g.to.record(&g.like, float64(n), metric.NewRecordConfig(opts).Attributes())
}

type histogram struct {
	metricnoop.Float64Histogram
	to   *Telemetry
	like Series
}

func (h *histogram) Enabled(context.Context) bool { return true }

func (h *histogram) Record(_ context.Context, value float64, opts ...metric.RecordOption) {
	h.to.record(&h.like, value, metric.NewRecordConfig(opts).Attributes())
}

type counter struct {
	metricnoop.Int64Counter
	to   *Telemetry
	like Series
}

func (c *counter) Enabled(context.Context) bool { return true }

func (c *counter) Add(_ context.Context, n int64, opts ...metric.AddOption) {
	c.to.record(&c.like, float64(n), metric.NewAddConfig(opts).Attributes())
}
