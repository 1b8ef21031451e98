package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// AggregateOptions limits an aggregate and configures its requests and its answer. Aggregate panics on a
// negative number.
type AggregateOptions struct {
	Timeout       time.Duration     // limit of the time for all parts together; 0 means 5s
	MaxBytes      int64             // limit of one part's body, after decompression; 0 means 1 MiB
	MaxTotalBytes int64             // limit of all parts' bodies together; 0 means 16 MiB
	MaxInFlight   int               // number of parts requested at the same time, for one incoming request; 0 means all
	Headers       []string          // client's fields that the parts get besides the gateway's own; nil means Accept-Language, and Authorization for Upstreams and HandlerTransports only
	Identity      map[string]string // as in ProxyOptions, for every part's request
	Merge         bool              // put the members of a part that is an object into the answer itself, not under Name; see Aggregate
	ServerTiming  bool              // report each part's time in the field Server-Timing
}

// Aggregate returns a handler that requests several parts at the same time and joins their JSON into one
// object. A part whose Path uses a field of another part is requested as soon as that part has answered. The
// members are in the order of parts. Each part's value is copied byte for byte, without the white space
// around it: the order of members, large numbers and escapes stay as they were sent.
//
// When every part succeeds, the answer is 200. When only optional parts fail, the answer is 200 with
// Cache-Control: no-store and a member "errors", an array of {name, status, outcome}. The status is the one
// that the answer would have if the part were required. The outcome is the String of the part's Outcome. It
// is "ok" for a part that answered with 401, 403, 404, 410 or 429.
//
// When a required part fails, the answer is a problem. The part's 401 (with WWW-Authenticate), 403, 404, 410
// or 429 (with Retry-After) becomes the answer's status. Any other failure becomes 502, 503 or 504, depending
// on its outcome. The other parts are canceled, which counts against no target and no circuit. There is one
// exception: after a refusal by a half-open circuit, the parts in flight are not canceled and the answer
// waits for them, because one of them may be the circuit's probe. When the client leaves, all parts are
// canceled.
//
// With Merge, the members of a part that is an object become members of the answer. A value that is not an
// object stays under the part's Name. When two parts have a member of the same name, that of the earlier part
// is used. When one part has two members of the same name, both are copied. A part's own member "errors" is
// dropped. A part with more than 10,000 members fails, because their names are kept while the answer is
// written, at about 100 bytes each.
//
// Each part's request has the fields that Proxy sets (X-Forwarded-*, trace, identity), the client's fields
// that Headers lists, and Accept: application/json. Three kinds of the client's fields are never passed on,
// even when Headers lists them: those that the gateway itself sets, in any spelling; hop-by-hop fields; and
// Accept-Encoding, Range, If-*, Expect, Host and Content-*, which describe the client's request and not the
// part's.
//
// Cache-Control of the answer is at least as strict as that of every part. It has the shortest lifetime of
// the parts, or 0 if some parts state a lifetime and others do not. It is private for a caller with an
// Identity or Authorization, unless every part permits shared caches. It is absent when no part has
// Cache-Control, Expires or Pragma. Vary has all names in the parts' Vary. It is "*" when a part varies by
// a field that the gateway itself sets, since caches do not see that field. A Cache-Control or Vary that a
// middleware outside has set counts like a part's. No other field of the parts' answers is passed to the
// client: no Set-Cookie, no ETag.
//
// By default the client's Authorization goes only to parts whose From is an *Upstream or a
// HandlerTransport. Any other RoundTripper may lead to a third party, even one that wraps an *Upstream.
// When Headers names Authorization, every part gets it. A Part.Request that copies all fields of the
// incoming request copies Authorization, too.
//
// When the span of the request is recorded, each part has a client span, whose id is in the part's
// traceparent. It has the attribute gateway.part, the part's Name.
//
// The parts' bodies are in memory until the answer has been written: at most MaxTotalBytes and about a
// quarter more for each incoming request. The output of each Part.Shape takes additional memory, at most
// MaxBytes. Each part in flight has a goroutine, which ends before the handler returns. A panic in Request
// or in a RoundTripper is raised again in the handler's goroutine, with its original stack in the message;
// HandlerTransport turns a panic into an error.
//
// Aggregate panics on parts or options that can never work: no parts; a Name that is empty, "errors" or used
// twice; a nil From; an invalid Path, Pick, Default or field name; a negative Timeout; a Path that uses a
// field of an unknown part; and parts that need each other's fields in a cycle. It copies parts. The handler
// is safe for concurrent use if every From is.
func Aggregate(parts []Part, opts *AggregateOptions) http.Handler {
	a := &aggregate{}
	if opts != nil {
		a.opts = *opts
	}
	a.setOptions()
	if len(parts) == 0 {
		panic("gateway: Aggregate: no parts")
	}
	index := make(map[string]int, len(parts))
	for i, p := range parts {
		if _, twice := index[p.Name]; twice {
			panic(fmt.Sprintf("gateway: Aggregate: two parts named %q", p.Name))
		}
		index[p.Name] = i
	}
	a.parts = make([]part, len(parts))
	for i, p := range parts {
		if err := a.parts[i].set(p, index); err != nil {
			panic(fmt.Sprintf("gateway: Aggregate: part %q: %v", p.Name, err))
		}
	}
	for i := range a.parts {
		for _, j := range a.parts[i].needs {
			a.parts[j].neededBy = append(a.parts[j].neededBy, i)
		}
	}
	a.refuseCycles()
	return a
}

// aggregate is the handler.
type aggregate struct {
	parts   []part
	opts    AggregateOptions
	headers []string // canonical names, without those that are never passed
	private bool     // only parts from an Upstream or a HandlerTransport get the client's Authorization
	own     *ownedFields
}

func (a *aggregate) setOptions() {
	o := &a.opts
	if o.Timeout < 0 || o.MaxBytes < 0 || o.MaxTotalBytes < 0 || o.MaxInFlight < 0 {
		panic("gateway: Aggregate: negative option")
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 20
	}
	if o.MaxTotalBytes == 0 {
		o.MaxTotalBytes = 16 << 20
	}
	if o.Headers == nil {
		o.Headers = []string{"Accept-Language", "Authorization"}
		a.private = true
	}
	a.own = newOwnedFields("Aggregate", o.Identity)
	for _, name := range o.Headers {
		if !httpfield.IsToken(name) {
			panic(fmt.Sprintf("gateway: Aggregate: %q is not a field name", name))
		}
		if name = http.CanonicalHeaderKey(name); !a.own.has(name, ownedHere{}) && !neverPassed(name) {
			a.headers = append(a.headers, name)
		}
	}
}

// neverPassed reports whether a field is about the client's own request, so that it would be wrong on a
// part's request.
func neverPassed(name string) bool {
	switch name {
	case "Accept-Encoding", "Expect", "Host", "Range":
		return true
	}
	return httpfield.IsHopByHop(name) || strings.HasPrefix(name, "If-") || strings.HasPrefix(name, "Content-")
}

// refuseCycles panics if parts need each other's fields in a cycle, so that none of them can be requested
// first.
func (a *aggregate) refuseCycles() {
	asked := make([]bool, len(a.parts))
	for range a.parts {
		for i, p := range a.parts {
			asked[i] = asked[i] || !slices.ContainsFunc(p.needs, func(j int) bool { return !asked[j] })
		}
	}
	var stuck []string
	for i, ok := range asked {
		if !ok {
			stuck = append(stuck, strconv.Quote(a.parts[i].Name))
		}
	}
	if stuck != nil {
		panic("gateway: Aggregate: a cycle of parts that each need a field of another: " + strings.Join(stuck, ", "))
	}
}

// fanout is the state of an aggregate for one incoming request. Each part's goroutine writes to its own
// element of answers. Other goroutines read that element only after the part's number has been received from
// finished.
type fanout struct {
	*aggregate
	ex        *exchange
	in        *http.Request
	ctx       context.Context
	ownedHere ownedHere
	partFields
	tracer   trace.Tracer // starts the parts' spans; nil if the request's span is not recorded
	total    atomic.Int64 // bytes of the parts' bodies so far
	finished chan int     // the numbers of parts that have finished
	answers  []partAnswer
	stopped  bool // a required part has failed: no further part is requested
}

// partFields are the header fields of the parts' requests.
type partFields struct {
	header       http.Header // every part's; some lack Authorization, see restrictAuth
	passed       bool        // gate would accept header
	restrictAuth bool        // only parts from an Upstream or a HandlerTransport get Authorization of header
}

// partAnswer is the result of one part.
type partAnswer struct {
	value    rawjson.Value // the value of the part's member in the answer
	source   rawjson.Value // the value before Shape; the Path of another part takes fields from it
	status   int           // of the response; 0 for none
	caching  httpfield.Caching
	vary     []string
	failure  *partFailure
	took     time.Duration
	panicked any

	// Only the handler's goroutine uses these.
	asked    bool // the part's goroutine was started
	known    bool // the part's number has been received from finished
	waitsFor int  // number of parts that must finish first
}

func (a *aggregate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	ctx, cancel := withLimit(r.Context(), a.opts.Timeout)
	defer cancel()
	f := &fanout{
		aggregate: a,
		ex:        ex,
		in:        r,
		ctx:       ctx,
		finished:  make(chan int, len(a.parts)),
		answers:   make([]partAnswer, len(a.parts)),
	}
	if err := f.setHeader(); err != nil {
		refuse(rw, r, err)
		return
	}
	failure := f.run(cancel)
	if a.opts.ServerTiming {
		f.reportTimes(rw.Header())
	}
	switch {
	case failure == nil && !f.cutShort():
		f.stitch(rw)
	case leftEarly(r.Context()):
		WriteError(rw, r, fmt.Errorf("gateway: Aggregate: %w", context.Canceled))
	default:
		ex.note(failure.outcome, failure.err)
		WriteError(rw, r, failure.err)
	}
}

// setHeader collects the fields that every part's request has.
func (f *fanout) setHeader() error {
	f.ownedHere = f.ex.ownedHere()
	f.header = make(http.Header, len(f.headers)+6)
	f.header["Accept"] = []string{"application/json"}
	for _, name := range f.headers {
		if values := f.in.Header[name]; len(values) > 0 && !f.owns(name) {
			f.header[name] = values
		}
	}
	f.restrictAuth = f.private && !f.owns("Authorization") // if owned, Authorization is not the client's
	f.setTracer()
	if err := f.own.write(&fieldWriter{in: f.in, header: f.header, values: make([]string, 0, 9+len(f.own.identity))}); err != nil {
		return err
	}
	f.passed = true
	for name, values := range f.header {
		f.passed = f.passed && !isMalformed(name, values) && !isFraming(name)
	}
	return nil
}

// setTracer gives the parts spans if the request's span is recorded and belongs to the trace that the parts'
// requests continue (see tracing.parent).
func (f *fanout) setTracer() {
	span := trace.SpanFromContext(f.in.Context())
	if !span.IsRecording() {
		return
	}
	f.ex.mu.Lock()
	own := f.ex.traceID()
	f.ex.mu.Unlock()
	if own == "" || own == span.SpanContext().TraceID().String() {
		f.tracer = span.TracerProvider().Tracer(scope)
	}
}

// owns reports whether the gateway itself sets the field name on the parts' requests.
func (f *fanout) owns(name string) bool {
	return f.own.has(name, f.ownedHere)
}

// run requests every part as soon as the parts that it needs have finished. If a required part fails, run
// requests no further part. It returns when no part is in flight, with the failure of the required part that
// failed first.
func (f *fanout) run(cancel context.CancelFunc) (failure *partFailure) {
	for i := range f.parts {
		f.answers[i].waitsFor = len(f.parts[i].needs)
	}
	for running := f.start(0); running > 0; running = f.start(running) {
		i := <-f.finished
		running--
		p, answer := &f.parts[i], &f.answers[i]
		answer.known = true
		for _, j := range p.neededBy {
			f.answers[j].waitsFor--
		}
		if answer.failure != nil && p.Optional {
			f.ex.remark("part "+p.Name+" "+answer.failure.outcome.String(), answer.failure.err)
		}
		if answer.panicked == nil && (answer.failure == nil || p.Optional) {
			continue
		}
		if failure == nil {
			failure = answer.failure
		}
		f.stopped = true
		if answer.panicked != nil || !isProbesInFlight(answer.failure.err) {
			cancel()
		}
	}
	for i := range f.answers {
		if v := f.answers[i].panicked; v != nil {
			panic(v)
		}
	}
	return failure
}

// isProbesInFlight reports whether a half-open circuit refused a part because all its probes are in flight.
// One probe may be another part of the same aggregate. If every such refusal canceled that probe, the circuit
// could never close.
func isProbesInFlight(err error) bool {
	var no *refusal
	return errors.As(err, &no) && no.until.IsZero()
}

// start starts the parts that can be requested now, in their order. It returns the number of parts in flight.
// If the client has left or a required part has failed, it starts none.
func (f *fanout) start(running int) int {
	if f.stopped || leftEarly(f.ctx) {
		return running
	}
	for i := range f.parts {
		if f.opts.MaxInFlight > 0 && running == f.opts.MaxInFlight {
			break
		}
		if answer := &f.answers[i]; !answer.asked && answer.waitsFor == 0 {
			answer.asked = true
			running++
			go f.runPart(i)
		}
	}
	return running
}

// cutShort reports whether the client left before all parts had succeeded.
func (f *fanout) cutShort() bool {
	if !leftEarly(f.in.Context()) {
		return false
	}
	return slices.ContainsFunc(f.answers, func(a partAnswer) bool { return !a.known || a.failure != nil })
}

// runPart requests part i, stores its answer and reports that the part has finished.
func (f *fanout) runPart(i int) {
	p, answer := &f.parts[i], &f.answers[i]
	var span trace.Span
	returned := false
	defer func() {
		if !returned {
			if span != nil {
				span.SetStatus(codes.Error, "")
				span.End()
			}
			switch v := recover(); v {
			case nil:
				answer.panicked = "gateway: Aggregate: runtime.Goexit in a part"
			case http.ErrAbortHandler:
				answer.panicked = v
			default:
				answer.panicked = fmt.Sprintf("%v [part %q]\n\n%s", v, p.Name, debug.Stack())
			}
		}
		f.finished <- i
	}()

	ctx := f.ctx
	if p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = withLimit(ctx, p.Timeout)
		defer cancel()
	}
	var began time.Time
	if f.opts.ServerTiming {
		began = time.Now()
	}
	ctx, span = f.startSpan(ctx, p)
	answer.failure = p.ask(ctx, f, answer)
	if f.opts.ServerTiming {
		answer.took = time.Since(began)
	}
	if answer.failure != nil {
		answer.value, answer.source = p.fallback, p.fallback
	}
	answer.endSpan(span)
	returned = true
}

// startSpan starts the client span of a part. It returns nil if there is none.
func (f *fanout) startSpan(ctx context.Context, p *part) (context.Context, trace.Span) {
	if f.tracer == nil {
		return ctx, nil
	}
	return f.tracer.Start(ctx, http.MethodGet, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("gateway.part", p.Name)))
}

// endSpan describes the part's answer on its client span, and ends the span.
func (a *partAnswer) endSpan(span trace.Span) {
	if span == nil {
		return
	}
	if a.status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", a.status))
	}
	if a.failure != nil {
		kind := a.failure.outcome.String()
		if a.status >= 400 {
			kind = strconv.Itoa(a.status)
		}
		span.SetAttributes(attribute.String("error.type", kind), attribute.String("gateway.outcome", a.failure.outcome.String()))
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// reportTimes writes the time of each part that has finished (W3C Server Timing).
func (f *fanout) reportTimes(h http.Header) {
	var b []byte
	for i := range f.answers {
		answer := &f.answers[i]
		if !answer.known {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, f.parts[i].metric...)
		b = append(b, ";dur="...)
		b = httpfield.AppendDecimal(b, float64(answer.took)/float64(time.Millisecond))
	}
	if len(b) > 0 {
		h.Add("Server-Timing", string(b))
	}
}
