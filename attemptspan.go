package gateway

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/url"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// attemptSpan is the client span of an attempt. The zero value is an attempt without a span. An attempt has a
// span only if the span in the request's context is recorded; otherwise it costs nothing.
type attemptSpan struct {
	trace.Span // nil for none
}

// startSpan starts the attempt's span as a child of the span in the request's context, with the same
// TracerProvider. It sets traceparent to the new span, so that the target's spans are children of this
// attempt. resends is the number of attempts before this one.
func (a *attempt) startSpan(resends int) {
	parent := trace.SpanFromContext(a.client)
	if !parent.IsRecording() {
		return
	}
	out := a.out
	method := cmp.Or(out.Method, http.MethodGet)
	address, port := serverAddress(a.member.URL)
	attrs := append(make([]attribute.KeyValue, 0, 7),
		attribute.String("http.request.method", telemetry.Method(method)),
		attribute.String("server.address", address),
		attribute.String("url.full", exportable(fullURL(out.URL))),
		attribute.String("gateway.upstream.name", a.upstream.name),
	)
	if port > 0 {
		attrs = append(attrs, attribute.Int("server.port", port))
	}
	if telemetry.Method(method) != method {
		attrs = append(attrs, attribute.String("http.request.method_original", exportable(method)))
	}
	if resends > 0 {
		attrs = append(attrs, attribute.Int("http.request.resend_count", resends))
	}
	_, a.span.Span = parent.TracerProvider().Tracer(scope).Start(a.client, telemetry.SpanMethod(method),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))

	sc := a.span.SpanContext()
	if !sc.IsValid() {
		return
	}
	// A traceparent of another trace is left as it is, and one that Rewrite has removed is not set again.
	given, set := out.Header[fieldTraceparent]
	if set && (len(given) == 0 || telemetry.ParseTraceparent(given[0]).TraceID() != sc.TraceID()) {
		return
	}
	out.Header = maps.Clone(out.Header) // other attempts share the map
	if out.Header == nil {
		out.Header = make(http.Header, 1)
	}
	out.Header[fieldTraceparent] = []string{telemetry.FormatTraceparent(sc)}
}

// fullURL returns u without its query and userinfo, which may contain secrets.
func fullURL(u *url.URL) string {
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if u.Scheme == schemeUnix {
		plain.Scheme, plain.Host = "http", unixHost
	}
	return plain.String()
}

// serverAddress returns the values of server.address and server.port for a target: those of its URL, or the
// path of a Unix socket and 0.
func serverAddress(target *url.URL) (address string, port int) {
	if target.Scheme == schemeUnix {
		return target.Path, 0
	}
	port, err := strconv.Atoi(target.Port())
	if err != nil {
		port = 80
		if target.Scheme == "https" {
			port = 443
		}
	}
	return target.Hostname(), port
}

// context returns ctx with the attempt's span, so that exemplars of a metric refer to this span.
func (s attemptSpan) context(ctx context.Context) context.Context {
	if s.Span == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, s.Span)
}

// circuitMoved adds an event to the span if the circuit's state has changed since the attempt began, by the
// attempt's own result or by another's.
func (s attemptSpan) circuitMoved(t *ticket) {
	if s.Span == nil || t.circuit == nil {
		return
	}
	if now := t.circuit.period.Load(); now != t.period {
		s.AddEvent("gateway.circuit.changed", trace.WithAttributes(
			attribute.String("gateway.circuit.name", exportable(t.circuit.name)),
			attribute.String("gateway.circuit.state", now.state.String())))
	}
}

// answered notes which version of HTTP the target speaks.
func (s attemptSpan) answered(res *http.Response) {
	if s.Span != nil && res.ProtoMajor > 0 { // a RoundTripper need not set it
		s.SetAttributes(attribute.String("network.protocol.version", protocolVersion(res.ProtoMajor, res.ProtoMinor)))
	}
}

// finish ends the span with the attempt's result. In OpenTelemetry's conventions for client spans, a 4xx is
// an error as well.
func (s attemptSpan) finish(status int, res result) {
	if s.Span == nil {
		return
	}
	o := res.outcome()
	s.SetAttributes(attribute.String("gateway.outcome", o.String()))
	if status != 0 {
		s.SetAttributes(attribute.Int("http.response.status_code", status))
	}
	kind := errorType(o, status)
	if kind == "" && status >= 400 {
		kind = strconv.Itoa(status)
	}
	if kind != "" {
		s.SetAttributes(attribute.String("error.type", kind))
		s.SetStatus(codes.Error, o.String())
	}
	s.End()
}

// spanEvent adds an event with one attribute to the span in ctx, if that span is recorded.
func spanEvent(ctx context.Context, event, name, value string) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent(event, trace.WithAttributes(attribute.String(name, exportable(value))))
	}
}
