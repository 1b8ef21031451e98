package gatewaytest_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestTelemetrySpans(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	tracer := tel.Tracer("test")
	ctx, root := tracer.Start(t.Context(), "root", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attribute.Int("a", 1)))
	_, child := tracer.Start(ctx, "child", trace.WithLinks(trace.Link{SpanContext: root.SpanContext()}))
	_, other := tracer.Start(ctx, "other", trace.WithNewRoot())
	errWrong := errors.New("wrong")
	child.SetName("renamed")
	child.SetAttributes(attribute.Int("a", 1), attribute.Int("a", 2))
	child.SetStatus(codes.Error, "wrong")
	child.RecordError(errWrong)
	if len(tel.Spans()) != 0 || !child.IsRecording() {
		t.Errorf("before the end: %v", tel.Spans())
	}
	for _, s := range []trace.Span{child, other, root, child} {
		s.End()
	}
	child.SetName("too late")
	spans := tel.Spans()
	if len(spans) != 3 || child.IsRecording() {
		t.Fatalf("%d spans", len(spans))
	}
	got := spans[0]
	if a, _ := got.Attributes.Value("a"); got.Name != "renamed" || got.Status != codes.Error || len(got.Links) != 1 ||
		len(got.Errors) != 1 || got.Errors[0] != errWrong || a.AsInt64() != 2 {
		t.Errorf("child: %+v", got)
	}
	if !got.Parent.Equal(root.SpanContext()) || got.Context.TraceID() != root.SpanContext().TraceID() {
		t.Errorf("child %v of %v", got.Context, got.Parent)
	}
	if spans[1].Parent.IsValid() || spans[1].Context.TraceID() == got.Context.TraceID() {
		t.Errorf("a new root: %+v", spans[1])
	}
	if a, _ := spans[2].Attributes.Value("a"); spans[2].Kind != trace.SpanKindServer || spans[2].Parent.IsValid() || a.AsInt64() != 1 {
		t.Errorf("root: %+v", spans[2])
	}
}

func TestTelemetryFollowsTheParentsSampling(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	state, err := trace.ParseTraceState("vendor=1")
	if err != nil {
		t.Fatal(err)
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceState: state, Remote: true})
	_, span := tel.Tracer("test").Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), "span")
	span.End()
	sc := span.SpanContext()
	if sc.IsSampled() || sc.TraceID() != parent.TraceID() || sc.SpanID() == parent.SpanID() || sc.TraceState().String() != "vendor=1" {
		t.Errorf("context %v", sc)
	}
	if span.IsRecording() || len(tel.Spans()) != 0 {
		t.Errorf("recorded %v", tel.Spans())
	}
}

func TestTelemetrySeries(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	h, _ := tel.Meter("scope").Float64Histogram("h", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(1, 2))
	c, _ := tel.Meter("scope").Int64Counter("c", metric.WithUnit("{request}"))
	with := func(v string) metric.MeasurementOption { return metric.WithAttributes(attribute.String("k", v)) }
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if ctx := context.Background(); h.Enabled(ctx) && c.Enabled(ctx) {
				h.Record(ctx, 0.5, with("a"))
				c.Add(ctx, 3, with("a"))
			}
		})
	}
	wg.Wait()
	c.Add(t.Context(), 1, with("b"))
	if got := tel.Series("h"); len(got) != 1 || got[0].Count != 4 || got[0].Sum != 2 || got[0].Unit != "s" ||
		got[0].Scope != "scope" || len(got[0].Bounds) != 2 {
		t.Errorf("histogram: %+v", got)
	}
	got := tel.Series("c")
	if len(got) != 2 || got[0].Sum != 12 || got[1].Sum != 1 || got[1].Unit != "{request}" || got[1].Bounds != nil {
		t.Errorf("counter: %+v", got)
	}
	if k, _ := got[1].Attributes.Value("k"); k.AsString() != "b" {
		t.Errorf("counter: %+v", got)
	}
	if got := tel.Series("absent"); got != nil {
		t.Errorf("absent: %+v", got)
	}
}
