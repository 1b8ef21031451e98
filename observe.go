package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// scope names this library to OpenTelemetry.
const scope = "github.com/seed-96248d0c/gateway"

// ObserveOptions say to whom Observe tells what it sees.
type ObserveOptions struct {
	Logger      *slog.Logger             // nil: no access log
	Tracer      trace.TracerProvider     // nil: otel.GetTracerProvider()
	Meter       metric.MeterProvider     // nil: otel.GetMeterProvider()
	TraceHeader string                   // "" means X-Trace-ID; set on the upstream request and on the answer
	TrustTrace  func(*http.Request) bool // whose traceparent (first) or trace header to continue; nil: nobody's, linked instead
	Quiet       func(*http.Request) bool // no log line, such as for probes; nil: all
}

// Observe measures by the RED method, starts the server span, gives the request its trace id, and writes
// one access-log line. Outermost, it sees every refusal. Inside another Observe it does nothing.
//
// The measure is the histogram http.server.request.duration of OpenTelemetry's semantic conventions for
// HTTP, in seconds, whose count is the rate; with http.request.method, http.route (the matched pattern's
// path, never the raw one), http.response.status_code, url.scheme, network.protocol.version,
// gateway.outcome, and error.type where OutcomeTimeout, OutcomeUpstreamError, OutcomeAborted or OutcomeInternal is
// it, or where the gateway itself refused with a 5xx. Who failed is told by gateway.outcome. A method that no RFC
// knows is _OTHER.
//
// The span takes its name from method and pattern; of a method that no RFC knows, "HTTP" stands for it. Where
// error.type is set its status is an error. Where no tracing SDK is installed, ids are made here and passed on as
// sampled, so that services behind the gateway may trace.
//
// The log line has the message "request" and the attributes method, path (without the query), route (its name),
// status (499 when the client left first), outcome, took, bytes (of the body), client, trace_id; and where there
// are such, subject, cause (why it ended so) and remarks (what went wrong and the answer does not show). Its level
// is Error for the four outcomes above, Warn for any other 5xx and where there are remarks, and else Info. What a
// client can make long is cut at 512 bytes.
//
// It panics when TraceHeader is no field name.
func Observe(opts *ObserveOptions) Middleware {
	o := &observer{}
	if opts != nil {
		o.opts = *opts
	}
	if o.opts.Tracer == nil {
		o.opts.Tracer = otel.GetTracerProvider()
	}
	if o.opts.Meter == nil {
		o.opts.Meter = otel.GetMeterProvider()
	}
	if o.opts.TraceHeader == "" {
		o.opts.TraceHeader = "X-Trace-ID"
	}
	if !httpfield.IsToken(o.opts.TraceHeader) {
		panic("gateway: Observe: TraceHeader is no field name")
	}
	o.opts.TraceHeader = http.CanonicalHeaderKey(o.opts.TraceHeader)
	o.tracer = o.opts.Tracer.Tracer(scope)
	o.duration = telemetry.DurationHistogram(o.opts.Meter.Meter(scope), "http.server.request.duration", "Duration of HTTP server requests.")
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o.serve(next, w, r)
		})
	}
}

// TraceID returns the request's trace id: 32 hex digits; "" outside Observe.
func TraceID(ctx context.Context) string {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return ""
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.traceID
}

type observer struct {
	opts     ObserveOptions
	tracer   trace.Tracer
	duration metric.Float64Histogram
	labels   telemetry.LabelCache[label]
}

func (o *observer) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ex, rw, r := enter(w, r)
	ex.mu.Lock()
	again := ex.observed
	ex.observed, ex.logged = true, o.opts.Logger != nil
	ex.mu.Unlock()
	if again {
		next.ServeHTTP(rw, r)
		return
	}

	r, span := o.trace(ex, r)
	defer func() {
		panicked := recover()
		o.finish(ex, rw, r, span, start, panicked)
		if panicked != nil {
			panic(panicked) // from here, so that its stack is still there
		}
	}()
	rw.Header()[o.opts.TraceHeader] = []string{ex.traceID}
	next.ServeHTTP(rw, r)
}

// trace starts the server span and gives the record its ids.
func (o *observer) trace(ex *exchange, r *http.Request) (*http.Request, trace.Span) {
	// The span's context goes under the record, unless a foreign middleware has derived its own from it.
	under := r.Context() == context.Context(ex)
	ctx := r.Context()
	if under {
		ctx = ex.Context
	}
	came, state := telemetry.Extract(r.Header, o.opts.TraceHeader)
	trusted := came.IsValid() && o.opts.TrustTrace != nil && o.opts.TrustTrace(r)
	opts := telemetry.ServerSpan(r.Method)
	switch {
	case trusted:
		if ts, err := trace.ParseTraceState(state); err == nil {
			came = came.WithTraceState(ts)
		} else {
			state = ""
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, came)
	case came.IsValid() && came.IsRemote():
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: came}))
		fallthrough
	default:
		state = ""
	}
	ctx, span := o.tracer.Start(ctx, telemetry.SpanMethod(r.Method), opts...)

	sc := span.SpanContext()
	if sc.IsValid() {
		if under {
			ex.Context = ctx
		} else {
			r = r.WithContext(ctx)
		}
		if ts := sc.TraceState(); ts.Len() > 0 {
			state = ts.String()
		}
	} else {
		sc = telemetry.NewSpanContext()
	}
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("url.path", exportable(r.URL.Path)),
			attribute.String("url.scheme", scheme(r)),
			attribute.String("network.protocol.version", protocolVersion(r)),
		)
		if client := clientText(r); client != "" {
			span.SetAttributes(attribute.String("client.address", client))
		}
		if telemetry.Method(r.Method) != r.Method {
			span.SetAttributes(attribute.String("http.request.method_original", exportable(r.Method)))
		}
	}
	id := sc.TraceID().String()
	ex.mu.Lock()
	ex.span, ex.traceState = sc, state
	ex.traceID, ex.traceHeader = id, o.opts.TraceHeader
	ex.mu.Unlock()
	return r, span
}

// finish tells how the exchange ended: to the histogram, the span and the log.
func (o *observer) finish(ex *exchange, rw *responseWriter, r *http.Request, span trace.Span, start time.Time, panicked any) {
	took := time.Since(start)
	outcome, status, err := ex.end(rw, panicked)
	pattern := RoutePattern(r.Context())
	if pattern == "" {
		pattern = r.Pattern // of a foreign mux, when r is a copy that the record does not know
	}
	route := pattern[max(0, strings.IndexByte(pattern, '/')):] // neither method nor host

	ctx := r.Context()
	if o.duration.Enabled(ctx) {
		o.duration.Record(ctx, took.Seconds(), o.labels.Options(label{
			method: telemetry.Method(r.Method), route: route, scheme: scheme(r), version: protocolVersion(r),
			status: status, outcome: outcome,
		})...)
	}
	if span.IsRecording() {
		if route != "" {
			span.SetName(telemetry.SpanMethod(r.Method) + " " + route)
			span.SetAttributes(attribute.String("http.route", route))
		}
		span.SetAttributes(
			attribute.Int("http.response.status_code", status),
			attribute.String("gateway.outcome", outcome.String()),
		)
		if kind := errorType(outcome, status); kind != "" {
			span.SetStatus(codes.Error, outcome.String())
			span.SetAttributes(attribute.String("error.type", kind))
			if err != nil {
				if text := err.Error(); !utf8.ValidString(text) {
					err = errors.New(exportable(text))
				}
				span.RecordError(err)
			}
		}
	}
	span.End()
	o.log(ex, rw, r, pattern, status, outcome, err, took)
}

func (o *observer) log(ex *exchange, rw *responseWriter, r *http.Request, pattern string, status int, outcome Outcome, err error, took time.Duration) {
	l := o.opts.Logger
	ex.mu.Lock()
	remarks := ex.remarks
	ex.mu.Unlock()
	level := slog.LevelInfo
	switch {
	case isFailure(outcome):
		level = slog.LevelError
	case status >= 500, len(remarks) > 0:
		level = slog.LevelWarn
	}
	if l == nil || !l.Enabled(r.Context(), level) || o.opts.Quiet != nil && o.opts.Quiet(r) {
		return
	}
	ex.mu.Lock()
	traceID, route, identity, written := ex.traceID, ex.route, ex.identity, rw.written
	ex.mu.Unlock()
	if route == "" {
		route = pattern
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("method", bounded(r.Method)),
		slog.String("path", bounded(r.URL.Path)),
		slog.String("route", route),
		slog.Int("status", status),
		slog.String("outcome", outcome.String()),
		slog.Duration("took", took),
		slog.Int64("bytes", written),
		slog.String("client", clientText(r)),
		slog.String("trace_id", traceID),
	)
	if identity != nil {
		attrs = append(attrs, slog.String("subject", bounded(identity.Subject)))
	}
	if err != nil {
		attrs = append(attrs, slog.String("cause", bounded(causeText(err))))
	}
	if len(remarks) > 0 {
		attrs = append(attrs, slog.String("remarks", strings.ToValidUTF8(strings.Join(remarks, "; "), "\uFFFD")))
	}
	l.LogAttrs(r.Context(), level, "request", attrs...)
}

// bounded cuts what a client may make as long as it likes.
func bounded(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// exportable is bounded for an exporter: with one string that is not UTF-8, protocol buffers, and so OTLP, lose
// all spans that are sent together.
func exportable(s string) string { return strings.ToValidUTF8(bounded(s), "\uFFFD") }

// clientText is the client's address; "" when it has none.
func clientText(r *http.Request) string {
	if a := ClientAddr(r); a.IsValid() {
		return a.String()
	}
	return ""
}

// label is what the histogram tells apart.
type label struct {
	method, route, scheme, version string
	status                         int
	outcome                        Outcome
}

func (l label) AttributeSet() attribute.Set {
	attrs := make([]attribute.KeyValue, 0, 7)
	attrs = append(attrs,
		attribute.String("http.request.method", l.method),
		attribute.String("url.scheme", l.scheme),
		attribute.String("network.protocol.version", l.version),
		attribute.Int("http.response.status_code", l.status),
		attribute.String("gateway.outcome", l.outcome.String()),
	)
	if l.route != "" {
		attrs = append(attrs, attribute.String("http.route", l.route))
	}
	if kind := errorType(l.outcome, l.status); kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	return attribute.NewSet(attrs...)
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

func protocolVersion(r *http.Request) string {
	switch {
	case r.ProtoMajor == 1 && r.ProtoMinor == 1:
		return "1.1"
	case r.ProtoMajor == 2:
		return "2"
	case r.ProtoMajor == 3:
		return "3"
	}
	return "1.0"
}
