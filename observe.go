package gateway

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
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

// scope is the instrumentation scope of this library's tracers and meters.
const scope = "github.com/seed-96248d0c/gateway"

// ObserveOptions configures the logger, tracer, meter and Stats that Observe reports to.
type ObserveOptions struct {
	Logger      *slog.Logger         // nil means no access log
	Tracer      trace.TracerProvider // nil means otel.GetTracerProvider()
	Meter       metric.MeterProvider // nil means otel.GetMeterProvider()
	Stats       *Stats               // nil means that no figures are kept in this process
	TraceHeader string               // field with the trace id, in the upstream request and in the answer; "" means X-Trace-ID

	// TrustTrace reports whether to continue the trace of the request's caller. The trace is read from the
	// field traceparent or, without a valid one, from TraceHeader. A traceparent that is not trusted becomes
	// a link of the span. Nil means that no caller is trusted. TrustTrace is not called when the context
	// already has a span. It must be safe for concurrent use.
	TrustTrace func(*http.Request) bool

	Quiet func(*http.Request) bool // reports whether a request gets no log line, such as a probe; nil means never
}

// Observe records metrics by the RED method (rate, errors, duration), starts the server span, sets the trace
// id, and writes one line to the access log for each request. Put it outermost, so that it records refusals
// as well. Inside another Observe it does nothing.
//
// The metric is the histogram http.server.request.duration, in seconds, of OpenTelemetry's semantic
// conventions for HTTP. Its count gives the rate. An upgraded connection, such as a WebSocket, is recorded
// when it ends, with the time up to the switch of protocols. Its log line has the duration of the whole
// session. The attributes are:
//
//   - http.request.method; _OTHER for a method that no RFC defines
//   - http.route: the path of the matched pattern, never the path of the request
//   - gateway.route: the route's name, which differs for two hosts with the same path
//   - http.response.status_code, url.scheme and network.protocol.version
//   - gateway.outcome: the Outcome
//   - error.type: set when the outcome is OutcomeTimeout, OutcomeUpstreamError, OutcomeAborted,
//     OutcomeInternal or OutcomeUnavailable, and when the gateway itself refused with a 5xx
//
// The metric http.server.active_requests is the number of requests that are being served, by
// http.request.method and url.scheme. A method has a series only after a collection has found a request with
// that method in service.
//
// The span's name is the method and the route, such as "GET /users/{id}". In it, a method that no RFC defines
// is "HTTP". The span's status is Error when error.type is set. If no tracing SDK is installed, Observe
// generates the ids and sets the sampled flag, so that services behind the gateway can trace. If the context
// already has a span, such as that of an outer otelhttp, it is the parent, and Observe does not read the
// caller's trace.
//
// The log line has the message "request". Its attributes are:
//
//   - method, host, path (without the query), route (its name), status (499 when the client left first),
//     outcome, duration, bytes (of the answer's body), client (its address) and trace_id, always
//   - bytes_in, when Proxy forwards an upgraded connection: the bytes that the client sent over it. In this
//     case, bytes is what the client received over it, and duration is that of the whole session
//   - subject, when the caller was authenticated
//   - upstream, target (that of the last attempt) and attempts, when the request went to an Upstream
//   - error: the cause of a failure or refusal; after a failed attempt it contains the target
//   - remarks: problems that did not change the status of the answer, such as a failed optional part
//
// docs/telemetry.md has the names that OpenTelemetry uses for these attributes. The line's level is Error for
// the five outcomes of error.type, Warn for any other 5xx and for a request with remarks, and Info otherwise.
// Values that a client chooses are truncated to 512 bytes.
//
// Observe panics when TraceHeader is not a field name.
func Observe(opts *ObserveOptions) Middleware {
	var opt ObserveOptions
	if opts != nil {
		opt = *opts
	}
	if opt.Tracer == nil {
		opt.Tracer = otel.GetTracerProvider()
	}
	if opt.Meter == nil {
		opt.Meter = otel.GetMeterProvider()
	}
	if opt.TraceHeader == "" {
		opt.TraceHeader = "X-Trace-ID"
	}
	if !httpfield.IsToken(opt.TraceHeader) {
		panic("gateway: Observe: TraceHeader is not a field name")
	}
	o := &observer{
		tracer: opt.Tracer.Tracer(scope),
		duration: telemetry.DurationHistogram(opt.Meter.Meter(scope), "http.server.request.duration",
			"Duration of HTTP server requests."),
		stats:       opt.Stats,
		traceHeader: http.CanonicalHeaderKey(opt.TraceHeader),
		trustTrace:  opt.TrustTrace,
		log:         accessLog{logger: opt.Logger, quiet: opt.Quiet},
	}
	o.active.report(opt.Meter.Meter(scope))
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o.serve(next, w, r)
		})
	}
}

// TraceID returns the request's trace id, 32 hex digits. It returns "" outside Observe.
func TraceID(ctx context.Context) string {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return ""
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.traceID()
}

// traceID returns the trace id, 32 hex digits, or "" outside Observe.
func (t *tracing) traceID() string { return telemetry.TraceIDOf(t.traceparent) }

// observer is one Observe.
type observer struct {
	tracer      trace.Tracer
	duration    metric.Float64Histogram
	labels      telemetry.LabelCache[serverLabels]
	active      activeRequests
	stats       *Stats // nil for none
	traceHeader string // in canonical form
	trustTrace  func(*http.Request) bool
	log         accessLog
}

func (o *observer) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	in := r
	ex, rw, r := enter(w, r)
	ex.mu.Lock()
	again := ex.observed
	if !again {
		ex.observed, ex.logged = true, o.log.logger != nil
	}
	ex.mu.Unlock()
	if again {
		next.ServeHTTP(rw, r)
		return
	}

	r, span := o.startSpan(ex, in, r)
	active := o.active.count(r)
	active.Add(1)
	defer func() {
		panicked := recover()
		active.Add(-1)
		o.finish(ex, rw, r, span, start, panicked)
		if panicked != nil {
			panic(panicked) // from the deferred function, so that the first panic's stack is still printed
		}
	}()
	ex.trace[0] = ex.traceID()
	rw.Header()[o.traceHeader] = ex.trace[:]
	next.ServeHTTP(rw, r)
}

// startSpan starts the server span and stores the trace's ids in the record. It returns the request with the
// span in its context. in is the request that Observe was given, and r is what enter returned for it.
func (o *observer) startSpan(ex *exchange, in, r *http.Request) (*http.Request, trace.Span) {
	ctx, opts := in.Context(), telemetry.ServerSpan(r.Method)
	state := ""
	// A span in the context was started for this request by an outer middleware, which has decided whether
	// to continue the caller's trace. That span is the parent.
	if !trace.SpanContextFromContext(ctx).IsValid() {
		ctx, state, opts = o.continueCaller(ctx, in, opts)
	}
	ctx, span := o.tracer.Start(ctx, telemetry.SpanMethod(r.Method), opts...)

	sc := span.SpanContext()
	switch {
	case !sc.IsValid():
		sc = telemetry.NewSpanContext()
	case r != in:
		// The record is new, so no other code holds it yet. Its Context may be replaced, and the request need
		// not be copied again.
		ex.Context = ctx
	default:
		r = r.WithContext(ctx)
		ex.derived(r)
	}
	if ts := sc.TraceState(); ts.Len() > 0 {
		state = ts.String()
	}
	if span.IsRecording() {
		describeRequest(span, r)
	}
	traceparent := telemetry.FormatTraceparent(sc)
	ex.mu.Lock()
	if outer := ex.traceparent; outer != "" && !span.SpanContext().IsValid() {
		// There is no SDK, and the request was sent by another handler of this process. Its record has the
		// trace to continue.
		traceparent = telemetry.WithSpanOf(outer, traceparent)
	}
	ex.traceparent, ex.traceState, ex.traceHeader = traceparent, state, o.traceHeader
	ex.mu.Unlock()
	return r, span
}

// continueCaller reads the caller's trace from in. If TrustTrace trusts the caller, the returned context
// continues the trace, and the returned string is its tracestate. Otherwise the returned options link to the
// trace. TrustTrace may keep the request that it is given. So it gets in, which this package does not modify.
func (o *observer) continueCaller(ctx context.Context, in *http.Request, opts []trace.SpanStartOption) (context.Context, string, []trace.SpanStartOption) {
	caller, state := telemetry.Extract(in.Header, o.traceHeader)
	switch {
	case !caller.IsValid():
	case o.trustTrace != nil && o.trustTrace(in):
		if ts, err := trace.ParseTraceState(state); err == nil {
			caller = caller.WithTraceState(ts)
		} else {
			state = ""
		}
		return trace.ContextWithRemoteSpanContext(ctx, caller), state, opts
	case caller.IsRemote():
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: caller}))
	}
	return ctx, "", opts
}

// The fields of W3C Trace Context.
const (
	fieldTraceparent = "Traceparent"
	fieldTracestate  = "Tracestate"
)

// parent returns the traceparent and tracestate for a request that is sent with the context ctx. They
// continue the current span of ctx, such as that of otelhttp, unless an outer Observe has started another
// trace. Without Observe, t is empty. An empty traceparent means that there is no span to continue.
func (t *tracing) parent(ctx context.Context) (traceparent, tracestate string) {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return t.traceparent, t.traceState
	}
	current := telemetry.FormatTraceparent(sc)
	if own := t.traceparent; own != "" &&
		(telemetry.TraceIDOf(own) != telemetry.TraceIDOf(current) || telemetry.SpanIDOf(own) == telemetry.SpanIDOf(current)) {
		return t.traceparent, t.traceState
	}
	return current, sc.TraceState().String()
}

// continueTrace adds traceparent to a copy of r, if r has none and there is a span to continue. Otherwise it
// returns r.
func continueTrace(r *http.Request) *http.Request {
	if _, ok := r.Header[fieldTraceparent]; ok {
		return r
	}
	var t tracing
	if ex := exchangeFrom(r.Context()); ex != nil {
		ex.mu.Lock()
		t = ex.tracing
		ex.mu.Unlock()
	}
	traceparent, state := t.parent(r.Context())
	if traceparent == "" {
		return r
	}
	r = r.WithContext(r.Context())
	r.Header = maps.Clone(r.Header)
	if r.Header == nil {
		r.Header = make(http.Header, 2)
	}
	r.Header[fieldTraceparent] = []string{traceparent}
	delete(r.Header, fieldTracestate)
	if state != "" {
		r.Header[fieldTracestate] = []string{state}
	}
	return r
}

// describeRequest sets the attributes that are known when the request arrives.
func describeRequest(span trace.Span, r *http.Request) {
	span.SetAttributes(
		attribute.String("url.path", exportable(r.URL.Path)),
		attribute.String("url.scheme", scheme(r)),
		attribute.String("network.protocol.version", protocolVersion(r.ProtoMajor, r.ProtoMinor)),
	)
	if _, client := clientText(r); client != "" {
		span.SetAttributes(attribute.String("client.address", client))
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		span.SetAttributes(attribute.String("network.peer.address", peer.Addr().String()), attribute.Int("network.peer.port", int(peer.Port())))
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = r.Host, ""
	}
	if host != "" {
		span.SetAttributes(attribute.String("server.address", exportable(host)))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		span.SetAttributes(attribute.Int("server.port", int(n)))
	}
	if agent := r.Header["User-Agent"]; len(agent) > 0 {
		span.SetAttributes(attribute.String("user_agent.original", exportable(agent[0])))
	}
	if telemetry.Method(r.Method) != r.Method {
		span.SetAttributes(attribute.String("http.request.method_original", exportable(r.Method)))
	}
}

// activeRequests counts the requests that are being served. A request costs two atomic additions. The meter
// reads the counts when it collects.
type activeRequests struct {
	// By method and scheme. The last method stands for all that are not in telemetry.Methods. The scheme 0 is
	// http, 1 is https.
	counts [len(telemetry.Methods) + 1][2]atomic.Int64
}

// report registers the metric http.server.active_requests.
func (a *activeRequests) report(m metric.Meter) {
	var attrs [len(a.counts)][2]metric.ObserveOption
	for i := range attrs {
		method := telemetry.OtherMethod
		if i < len(telemetry.Methods) {
			method = telemetry.Methods[i]
		}
		for secure, scheme := range []string{"http", "https"} {
			attrs[i][secure] = metric.WithAttributeSet(attribute.NewSet(
				attribute.String("http.request.method", method), attribute.String("url.scheme", scheme)))
		}
	}
	var seen [len(a.counts)][2]atomic.Bool
	gauge, err := m.Int64ObservableUpDownCounter("http.server.active_requests", metric.WithUnit("{request}"),
		metric.WithDescription("Number of active HTTP server requests."))
	if err != nil {
		otel.Handle(err)
		return
	}
	// The callback is not an option of the instrument, because the SDK would ignore that of a second Observe.
	_, err = m.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		for i := range a.counts {
			for secure := range a.counts[i] {
				// A method that was never seen gets no series.
				n := a.counts[i][secure].Load()
				if n != 0 {
					seen[i][secure].Store(true)
				}
				if seen[i][secure].Load() {
					to.ObserveInt64(gauge, n, attrs[i][secure])
				}
			}
		}
		return nil
	}, gauge)
	if err != nil {
		otel.Handle(err)
	}
}

// count returns the counter for r.
func (a *activeRequests) count(r *http.Request) *atomic.Int64 {
	secure := 0
	if r.TLS != nil {
		secure = 1
	}
	return &a.counts[telemetry.MethodNumber(r.Method)][secure]
}

// summary is what Observe reports of one exchange.
type summary struct {
	pattern   string // of the route that matched; "" if none did
	routeName string // the route's name, or its pattern if it has no name
	status    int
	outcome   Outcome
	err       error // the cause of the outcome; may be nil
	duration  time.Duration
}

// route returns the pattern's path, without method and host.
func (s *summary) route() string {
	return s.pattern[max(0, strings.IndexByte(s.pattern, '/')):]
}

// finish ends the exchange and reports it to the histogram, Stats, the span and the log. panicked is what
// recover returned.
func (o *observer) finish(ex *exchange, rw *responseWriter, r *http.Request, span trace.Span, start time.Time, panicked any) {
	s := summary{duration: time.Since(start)}
	s.outcome, s.status, s.err = ex.end(rw, panicked)
	s.pattern = RoutePattern(r.Context())
	measured := s.duration
	ex.mu.Lock()
	if s.pattern == "" && !ex.detached {
		s.pattern = r.Pattern // set by a foreign mux; the record may hold another copy of the request
	}
	s.routeName = cmp.Or(ex.route, s.pattern)
	if !rw.switched.IsZero() {
		measured = rw.switched.Sub(start)
	}
	ex.mu.Unlock()
	if ctx := r.Context(); o.duration.Enabled(ctx) {
		o.duration.Record(ctx, measured.Seconds(), o.labels.Options(serverLabels{
			method: telemetry.Method(r.Method), route: s.route(), routeName: s.routeName, scheme: scheme(r), version: protocolVersion(r.ProtoMajor, r.ProtoMinor),
			status: s.status, outcome: s.outcome,
		})...)
	}
	if o.stats != nil {
		o.stats.record(s.routeName, s.outcome, start.Add(s.duration), measured)
	}
	if span.IsRecording() {
		describeResult(span, r, &s)
	}
	span.End()
	o.log.write(ex, rw, r, &s)
}

// describeResult sets the span's name, status and the attributes that are known at the end.
func describeResult(span trace.Span, r *http.Request, s *summary) {
	if route := s.route(); route != "" {
		span.SetName(telemetry.SpanMethod(r.Method) + " " + route)
		span.SetAttributes(attribute.String("http.route", route))
	}
	if s.routeName != "" {
		span.SetAttributes(attribute.String("gateway.route", s.routeName))
	}
	span.SetAttributes(
		attribute.Int("http.response.status_code", s.status),
		attribute.String("gateway.outcome", s.outcome.String()),
	)
	kind := errorType(s.outcome, s.status)
	if kind == "" {
		return
	}
	span.SetStatus(codes.Error, s.outcome.String())
	span.SetAttributes(attribute.String("error.type", kind))
	if err := s.err; err != nil {
		if text := err.Error(); !utf8.ValidString(text) {
			err = errors.New(exportable(text))
		}
		span.RecordError(err)
	}
}

// exportable truncates s as bounded does, and replaces invalid UTF-8 by U+FFFD. OTLP uses protocol buffers,
// in which one invalid string makes the collector reject all spans of a batch.
func exportable(s string) string { return strings.ToValidUTF8(bounded(s), "\uFFFD") }

// serverLabels are the attributes of http.server.request.duration.
type serverLabels struct {
	method, route, routeName, scheme, version string
	status                                    int
	outcome                                   Outcome
}

// AttributeSet implements telemetry.Labels.
func (l serverLabels) AttributeSet() attribute.Set {
	attrs := make([]attribute.KeyValue, 0, 8)
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
	if l.routeName != "" {
		attrs = append(attrs, attribute.String("gateway.route", l.routeName))
	}
	if kind := errorType(l.outcome, l.status); kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	return attribute.NewSet(attrs...)
}

// scheme returns the value of url.scheme.
func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// protocolVersion returns the value of network.protocol.version for a version of HTTP.
func protocolVersion(major, minor int) string {
	switch {
	case major == 1 && minor == 1:
		return "1.1"
	case major == 2:
		return "2"
	case major == 3:
		return "3"
	}
	return "1.0"
}
