package gateway

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
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
	if !validToken(o.opts.TraceHeader) {
		panic("gateway: Observe: TraceHeader is no field name")
	}
	o.opts.TraceHeader = http.CanonicalHeaderKey(o.opts.TraceHeader)
	o.tracer = o.opts.Tracer.Tracer(scope)
	o.duration = durationHistogram(o.opts.Meter, "http.server.request.duration", "Duration of HTTP server requests.")
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
	labels   labelCache[label]
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
	came, state := parentOf(r, o.opts.TraceHeader)
	trusted := came.IsValid() && o.opts.TrustTrace != nil && o.opts.TrustTrace(r)
	opts := startOptions(knownMethod(r.Method))
	switch {
	case trusted:
		if ts, err := trace.ParseTraceState(state); err == nil {
			came = came.WithTraceState(ts)
		} else {
			state = ""
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, came)
	case came.IsValid() && came.IsRemote():
		opts = append(opts[:len(opts):len(opts)], trace.WithLinks(trace.Link{SpanContext: came}))
		fallthrough
	default:
		state = ""
	}
	ctx, span := o.tracer.Start(ctx, spanMethod(r.Method), opts...)

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
		sc = newSpanContext()
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
		if knownMethod(r.Method) != r.Method {
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
		o.duration.Record(ctx, took.Seconds(), o.labels.get(label{
			method: knownMethod(r.Method), route: route, scheme: scheme(r), version: protocolVersion(r),
			status: status, outcome: outcome,
		})...)
	}
	if span.IsRecording() {
		if route != "" {
			span.SetName(spanMethod(r.Method) + " " + route)
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

// durationHistogram makes a histogram of seconds with the buckets that the conventions advise.
func durationHistogram(provider metric.MeterProvider, name, description string) metric.Float64Histogram {
	h, err := provider.Meter(scope).Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
		metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	if err != nil {
		otel.Handle(err)
		return noop.Float64Histogram{}
	}
	return h
}

// labels is what a histogram tells apart, and how it is told.
type labels interface {
	comparable
	set() attribute.Set
}

// labelCache keeps the attribute set of each label that was seen, at most maxLabels, so that none is built
// on the way of a request. Readers take no lock.
type labelCache[L labels] struct {
	known atomic.Pointer[map[L][]metric.RecordOption] // is replaced, never changed

	mu     sync.Mutex
	fresh  map[L][]metric.RecordOption // what known lacks
	missed int                         // times that known lacked something
}

// maxLabels bounds the cache: at about 700 bytes each, 3 MB. When it is full it begins anew.
const maxLabels = 4096

func (c *labelCache[L]) get(l L) []metric.RecordOption {
	if known := c.known.Load(); known != nil {
		if options, ok := (*known)[l]; ok {
			return options
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var known map[L][]metric.RecordOption
	if p := c.known.Load(); p != nil {
		known = *p
	}
	options, ok := known[l]
	if !ok {
		options, ok = c.fresh[l]
	}
	if !ok {
		options = []metric.RecordOption{metric.WithAttributeSet(l.set())}
		if c.fresh == nil {
			c.fresh = make(map[L][]metric.RecordOption)
		}
		c.fresh[l] = options
	}
	// As many misses as there are labels pay for the copy.
	all := len(known) + len(c.fresh)
	if c.missed++; c.missed < all && all < maxLabels {
		return options
	}
	grown := make(map[L][]metric.RecordOption, all)
	if all <= maxLabels {
		maps.Copy(grown, known)
	}
	maps.Copy(grown, c.fresh)
	c.known.Store(&grown)
	c.fresh, c.missed = nil, 0
	return options
}

func (l label) set() attribute.Set {
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

// knownMethod keeps labels and span names bounded, as the conventions ask.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace, "QUERY":
		return method
	}
	return "_OTHER"
}

// spanMethod is the method in a span's name, as the conventions have it.
func spanMethod(method string) string {
	if known := knownMethod(method); known != "_OTHER" {
		return known
	}
	return "HTTP"
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

// startOptions are made once for each method.
var startOptions = func() func(method string) []trace.SpanStartOption {
	byMethod := make(map[string][]trace.SpanStartOption)
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace, "QUERY", "_OTHER"} {
		byMethod[method] = []trace.SpanStartOption{
			trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String("http.request.method", method)),
		}
	}
	return func(method string) []trace.SpanStartOption { return byMethod[method] }
}()

// parentOf reads who called: the traceparent, or else the trace header, which names no span.
func parentOf(r *http.Request, traceHeader string) (sc trace.SpanContext, state string) {
	if lines := r.Header["Traceparent"]; len(lines) == 1 {
		if sc := parseTraceparent(lines[0]); sc.IsValid() {
			return sc, strings.Join(r.Header["Tracestate"], ",")
		}
	}
	if lines := r.Header[traceHeader]; len(lines) == 1 && len(lines[0]) == 32 {
		if id, err := trace.TraceIDFromHex(lines[0]); err == nil {
			return trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: id, SpanID: newSpanID(), TraceFlags: trace.FlagsSampled,
			}), ""
		}
	}
	return trace.SpanContext{}, ""
}

// parseTraceparent reads a traceparent (W3C Trace Context, section 3.2); the zero SpanContext when it is
// none. A version that is not known yet is read as far as version 00 goes.
func parseTraceparent(s string) trace.SpanContext {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" ||
		s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' || !lowerHex(s[:2]) || !lowerHex(s[53:55]) {
		return trace.SpanContext{}
	}
	id, err := trace.TraceIDFromHex(s[3:35])
	if err != nil {
		return trace.SpanContext{}
	}
	span, err := trace.SpanIDFromHex(s[36:52])
	if err != nil {
		return trace.SpanContext{}
	}
	var flags [1]byte
	_, _ = hex.Decode(flags[:], []byte(s[53:55]))
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true,
	})
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// formatTraceparent writes what parseTraceparent reads.
func formatTraceparent(sc trace.SpanContext) string {
	var b [55]byte
	id, span := sc.TraceID(), sc.SpanID()
	copy(b[:], "00-")
	hex.Encode(b[3:], id[:])
	b[35] = '-'
	hex.Encode(b[36:], span[:])
	b[52] = '-'
	hex.Encode(b[53:], []byte{byte(sc.TraceFlags())})
	return string(b[:])
}

// newSpanContext makes ids where no SDK does.
func newSpanContext() trace.SpanContext {
	var id trace.TraceID
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64()|1) // never all zero
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: newSpanID(), TraceFlags: trace.FlagsSampled})
}

func newSpanID() (id trace.SpanID) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}
