package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// exchange is the record of a request. The first middleware of this package that a request passes creates it
// and puts it in the request's context. The others find it there and write to it. So the outermost middleware
// sees the decisions of all inner handlers.
//
// The record is itself a context, so that one allocation holds the record, the context value and the writer
// wrapper. It is never pooled: a context can outlive its request, and a reused record would hold another
// user's identity.
type exchange struct {
	context.Context // the context that the request arrived with

	// whole is the record of the whole request if this record is a variant of it (see WithIdentity), and nil
	// otherwise. Outcomes and remarks are written to both.
	whole *exchange

	w responseWriter // the wrapper that was allocated with the record

	// mu guards everything below. It is needed because a foreign middleware may run its inner handler on
	// another goroutine.
	mu sync.Mutex

	own
	inherited
	enclosing
	nested
}

// The record's fields are grouped by which other records inherit them: see child, part and variant.

// own belongs to this record only. No other record inherits it.
type own struct {
	incoming
	forwarded
	ended
}

// inherited holds the fields that every record made from this one inherits.
type inherited struct {
	origin
	tracing
}

// enclosing is set by the outer middleware and the Router. Only a variant inherits it.
type enclosing struct {
	observing
	matched
	answering
}

// nested connects a part or a variant with the record that it was made from.
type nested struct {
	admitted *admission // the circuits that let the request through; a part and a variant inherit it
	spending
}

// incoming is the request that the record belongs to.
type incoming struct {
	req      *http.Request   // this package's copy of the request
	place    credentialPlace // where the credentials were found, for Auth
	detached bool            // a foreign middleware may run its inner handler on another goroutine, which uses req

	// The values of header fields, stored here to save an allocation each. They are set once and then not
	// changed, because http.Header maps refer to them.
	user  [1]string // X-User-ID of the request, set by the first Auth
	trace [1]string // the trace id in the answer
}

// origin describes who sent the request.
type origin struct {
	hops
	identity *Identity
	authorized
}

// tracing is the trace that the request belongs to.
type tracing struct {
	traceHeader string // the field that carries the trace id
	traceparent string // of the span that is the parent of upstream requests; "" without one
	traceState  string // tracestate of a trusted caller, unchanged
}

// observing is set by Observe. A part does not inherit it: it is a request of its own, which an Observe
// around the part's handler may measure.
type observing struct {
	observed bool // an outer Observe records this exchange
	logged   bool // that Observe writes an access log
}

// matched is the outermost Router's decision.
type matched struct {
	route    string       // the route's name
	pattern  string       // the route's pattern
	rawRest  bool         // the path may have empty segments and backslashes, by Route.RawRest of the innermost Router
	unrouted http.Handler // answers a request that no route matches, after the middleware of Use
}

// answering is set by outer middleware that replaces error answers.
type answering struct {
	onError  func(http.ResponseWriter, *http.Request, *Error) // the innermost HandleErrors
	answered *Error                                           // the error that onError or a fallback is answering
}

// forwarded is where the request was sent last. An Upstream writes it, on its caller's goroutine.
type forwarded struct {
	upstream string   // its name
	target   *url.URL // nil when no target was asked
	attempts int      // number of attempts at targets of the upstream
}

// sent records where the request was sent.
func (ex *exchange) sent(f forwarded) {
	if ex == nil {
		return
	}
	ex.mu.Lock()
	ex.forwarded = f
	ex.mu.Unlock()
}

// ended is how the exchange ended.
type ended struct {
	noted   bool     // outcome and err are set; later notes are ignored
	outcome Outcome  // how the exchange ended
	err     error    // why; for the log and the span
	remarks []string // problems that did not change the answer; for the log
	tunnel  *tunnel  // nil unless Proxy has taken over the connection
	excused bool     // a gRPC status DEADLINE_EXCEEDED does not count as a failure: the client's messages came late
}

// spending is the units that inner handlers have reported by AddUnits.
type spending struct {
	units int64     // of this record and of all parts and variants of it
	outer *exchange // the record that this one is a part or a variant of; nil for none
}

// tunnel counts the bytes that passed over a connection that Proxy took over. It is set when both directions
// have ended.
type tunnel struct {
	sent, received int64 // bytes to the client and from it
}

type exchangeKey struct{}

// Value returns the record itself for exchangeKey, and otherwise what the request's context holds.
func (ex *exchange) Value(key any) any {
	if _, ok := key.(exchangeKey); ok {
		return ex
	}
	return ex.Context.Value(key)
}

// exchangeFrom returns the record in ctx, or nil if there is no outer middleware of this package.
func exchangeFrom(ctx context.Context) *exchange {
	ex, _ := ctx.Value(exchangeKey{}).(*exchange)
	return ex
}

// arrival is a record and its request, in one allocation.
type arrival struct {
	exchange
	request http.Request
}

// enter returns the request's record, a writer that reports to the record, and a request whose context holds
// the record. It creates the record if there is none.
//
// If enter has created the record, the request that it returns is a copy of r. The caller may modify the copy
// and its context until it passes them on. The request that a middleware was given is never modified, since
// other code may hold it.
func enter(w http.ResponseWriter, r *http.Request) (*exchange, *responseWriter, *http.Request) {
	ctx := r.Context()
	ex := exchangeFrom(ctx)
	if ex == nil {
		a := new(arrival)
		ex = &a.exchange
		ex.Context, ex.w = ctx, responseWriter{ResponseWriter: w, ex: ex}
		a.request = *r.WithContext(ex)
		ex.req = &a.request
		return ex, &ex.w, ex.req
	}
	if rw, ok := w.(*responseWriter); ok && (rw.ex == ex || rw.ex == ex.whole) {
		return ex, rw, r
	}
	if !ex.isWrappedBy(w) {
		for e := ex; e != nil; e = e.whole {
			e.mu.Lock()
			e.detached = true
			e.mu.Unlock()
		}
	}
	return ex, &responseWriter{ResponseWriter: w, ex: ex}, r
}

// isWrappedBy reports whether unwrapping w leads to the record's own wrapper. If it does not, as inside
// http.TimeoutHandler, the handler that has w may still run after the request has been answered.
func (ex *exchange) isWrappedBy(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case *responseWriter:
			if v.ex == ex || v.ex == ex.whole {
				return true
			}
			w = v.ResponseWriter
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return false
		}
	}
}

// child returns a record for work that is independent of the request, such as a shadow request. It starts
// with the sender and the trace of ex. Later changes of it do not reach ex. It has no writer yet. If ex is
// nil, the record is empty.
func (ex *exchange) child(ctx context.Context) *exchange {
	c := &exchange{Context: ctx}
	if ex != nil {
		ex.mu.Lock()
		defer ex.mu.Unlock()
		c.inherited = ex.inherited
	}
	return c
}

// part is like child, for work that the answer waits for. The circuits that let ex through count the outcome
// of the whole answer, so the part does not ask them again.
func (ex *exchange) part(ctx context.Context) *exchange {
	c := new(exchange)
	ex.initPart(c, ctx)
	return c
}

// initPart makes the new record c a part of ex.
func (ex *exchange) initPart(c *exchange, ctx context.Context) {
	c.Context = ctx
	if ex == nil {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	c.inherited = ex.inherited
	c.admitted, c.outer = ex.admitted, ex
}

// variant returns another record of the same request, for inner handlers to which something must look
// different, such as the identity. It starts as a copy of ex and uses the same writer. Its outcomes are also
// written to the record of the whole request.
func (ex *exchange) variant(ctx context.Context) *exchange {
	v := ex.part(ctx)
	if ex == nil {
		return v
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	v.whole = ex
	if ex.whole != nil {
		v.whole = ex.whole
	}
	v.enclosing = ex.enclosing
	return v
}

// admission is a circuit that let the request through. The circuit is not asked again, because it would count
// one request twice, and a half-open circuit would refuse its own probe.
type admission struct {
	circuit *Circuit
	outer   *admission // of the next Breaker outside; nil for none
}

// admits reports whether c has already let the request through.
func (ex *exchange) admits(c *Circuit) bool {
	if ex == nil {
		return false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	for a := ex.admitted; a != nil; a = a.outer {
		if a.circuit == c {
			return true
		}
	}
	return false
}

// derived records that r, a copy of the request, is now passed on instead. So the record sees what inner
// handlers set on the request, such as its pattern.
func (ex *exchange) derived(r *http.Request) {
	if ex == nil {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.req = r
}

// note records the outcome of the exchange and its cause. Only the first call counts: the code that refused
// the request or failed calls note first, and knows the cause better than the code that writes the answer.
func (ex *exchange) note(o Outcome, err error) {
	if ex != nil {
		o, err = blameServer(ex.Context, o, err)
	}
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if !ex.noted {
			ex.noted, ex.outcome, ex.err = true, o, err
		}
		ex.mu.Unlock()
	}
}

// maxRemarks is how many remarks of one request are kept.
const maxRemarks = 16

// remark adds a problem to the log line's remarks. The client does not see it.
func (ex *exchange) remark(what string, err error) {
	text := what + ": " + bounded(causeText(err))
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if len(ex.remarks) < maxRemarks {
			ex.remarks = append(ex.remarks, text)
		}
		ex.mu.Unlock()
	}
}

// tunneled records how many bytes were sent to the client and received from it after the protocol was
// switched.
func (ex *exchange) tunneled(sent, received int64) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		ex.tunnel = &tunnel{sent: sent, received: received}
		ex.mu.Unlock()
	}
}

// excuse records that the deadline of a gRPC call passed because the client's own messages came late.
func (ex *exchange) excuse() {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		ex.excused = true
		ex.mu.Unlock()
	}
}

// rejected reports whether the gateway is known to have refused the request.
func (ex *exchange) rejected() bool {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.noted && isRefused(ex.outcome)
}

// end returns the outcome of the exchange, its status and its cause. The outermost middleware calls it with
// its own writer. panicked is what recover returned.
func (ex *exchange) end(w *responseWriter, panicked any) (Outcome, int, error) {
	left := ex.Context.Err()
	ex.mu.Lock()
	defer ex.mu.Unlock()
	e := w.result(left, panicked)
	if !ex.noted {
		o := e.outcome()
		if e.err == nil {
			e.err = e.grpc.status.Err()
		}
		o, err := blameServer(ex.Context, o, e.err)
		ex.noted, ex.outcome, ex.err = true, o, err
	}
	if ex.outcome == OutcomeClientCanceled {
		e.status = statusClientClosed
	}
	return ex.outcome, e.status, ex.err
}

// result returns the result of a handler, from what the writer has recorded. left is the error of the
// handler's context, and panicked is what recover returned. The caller holds ex.mu.
func (w *responseWriter) result(left error, panicked any) result {
	e := result{status: w.status, began: w.status != 0}
	switch {
	case panicked == nil:
		e.grpc = w.grpc()
		if e.status == 0 {
			e.status = http.StatusOK // net/http sends 200 if a handler writes nothing
		}
		// If the answer is complete, it does not matter that the client has left.
		if left != nil && !w.complete() {
			e.err = left
		}
	case e.status == 0:
		e.status = http.StatusInternalServerError
		fallthrough
	default:
		if err, ok := panicked.(error); ok && err == http.ErrAbortHandler {
			e.err, e.gone = err, left == context.Canceled
		} else {
			e.err, e.panicked = fmt.Errorf("panic: %v", panicked), true
		}
	}
	return e
}

// grpc returns the status of a gRPC call, from the trailers that have been set so far. The caller holds
// ex.mu.
func (w *responseWriter) grpc() (call grpcCall) {
	h := w.Header()
	if !grpcmeta.Is(h) {
		return call
	}
	if call.status = grpcmeta.StatusIn(h, ""); call.status == 0 {
		call.status = grpcmeta.StatusIn(h, http.TrailerPrefix)
	}
	if call.status != 0 {
		call.excused = w.ex.excused || w.ex.req != nil && grpcmeta.HasTimeout(w.ex.req.Header)
	}
	return call
}

// responseWriter is the one wrapper around a ResponseWriter. It records the final status, the bytes written
// and whether a write failed.
type responseWriter struct {
	http.ResponseWriter
	ex *exchange

	// Guarded by ex.mu.
	status   int   // final status; 0 until there is one
	written  int64 // bytes of the body
	failed   bool  // a write failed
	hijacked bool
	begun    atomic.Bool // status is set; start reads it without ex.mu
	switched time.Time   // when the connection was hijacked
	starts   startHook   // called with the final status before it is sent; nil for none

	filter bodyFilter // changes what the handler writes; nil for none; used by the handler's goroutine only
}

// bodyFilter changes a response between the handler and the client. The writer records the final status
// before it calls the filter. The filter sends its output with headerTo, writeTo and flushTo.
type bodyFilter interface {
	header(status int) // the handler has set the final status
	write(p []byte) (int, error)
	flush() error
}

// startHook is called once, with the final status of a response, before it is sent. Code that replaces a hook
// calls the previous one.
type startHook interface{ starting(status int) }

// start records the final status, unless there is one already.
func (w *responseWriter) start(code int) {
	if w.begun.Load() {
		return
	}
	w.ex.mu.Lock()
	var hook startHook
	if w.status == 0 {
		w.status, hook = code, w.starts
		w.begun.Store(true)
	}
	w.ex.mu.Unlock()
	if hook != nil {
		hook.starting(code)
	}
}

func (w *responseWriter) wrote(n int64, err error) {
	w.ex.mu.Lock()
	w.written += n
	if err != nil {
		w.failed = true
	}
	w.ex.mu.Unlock()
}

// started reports whether the final status was sent or the connection hijacked.
func (w *responseWriter) started() bool {
	w.ex.mu.Lock()
	defer w.ex.mu.Unlock()
	return w.status != 0 || w.hijacked
}

// complete reports whether the whole answer was written before the handler returned. It returns false for a
// body without a Content-Length, because net/http sends the end of such a body after the handler has
// returned. The caller holds ex.mu.
func (w *responseWriter) complete() bool {
	if w.status == 0 || w.failed {
		return false
	}
	if w.hijacked || !httpfield.BodyAllowed(w.status) {
		return true
	}
	declared := w.Header()["Content-Length"]
	return len(declared) == 1 && declared[0] == strconv.FormatInt(w.written, 10)
}

// WriteHeader records the final status. It passes on informational statuses without recording them, except
// 101, which is final.
func (w *responseWriter) WriteHeader(code int) {
	if code < 200 && code != http.StatusSwitchingProtocols {
		w.ResponseWriter.WriteHeader(code)
		return
	}
	w.start(code)
	w.headerTo(w.filter, code)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.start(http.StatusOK)
	return w.writeTo(w.filter, p)
}

// headerTo sends the final status through f, or to the client if f is nil. A filter calls it with the next
// filter outside.
func (w *responseWriter) headerTo(f bodyFilter, code int) {
	if f != nil {
		f.header(code)
		return
	}
	w.ResponseWriter.WriteHeader(code)
}

// writeTo is like headerTo, for a piece of the body.
func (w *responseWriter) writeTo(f bodyFilter, p []byte) (int, error) {
	if f != nil {
		return f.write(p)
	}
	n, err := w.ResponseWriter.Write(p)
	w.wrote(int64(n), err)
	return n, err
}

// flushTo is like headerTo, and sends buffered data.
func (w *responseWriter) flushTo(f bodyFilter) error {
	if f != nil {
		return f.flush()
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// restart discards a response whose header a filter has held back, so that another can be written.
func (w *responseWriter) restart() {
	w.ex.mu.Lock()
	w.status = 0
	w.begun.Store(false)
	w.ex.mu.Unlock()
}

// ReadFrom permits net/http to copy from a file or a connection inside the kernel, for example by sendfile.
func (w *responseWriter) ReadFrom(src io.Reader) (int64, error) {
	w.start(http.StatusOK)
	if w.filter != nil {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	rf, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		n, err := io.Copy(struct{ io.Writer }{w.ResponseWriter}, src)
		w.wrote(n, err)
		return n, err
	}
	n, err := rf.ReadFrom(src)
	w.wrote(n, err)
	return n, err
}

// Flush sends buffered data, if the wrapped writer can.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush with an error. http.ResponseController calls it.
func (w *responseWriter) FlushError() error {
	if !w.started() && !flushes(w.ResponseWriter) {
		return http.ErrNotSupported // nothing is sent, so the response has not begun
	}
	w.start(http.StatusOK)
	return w.flushTo(w.filter)
}

// flushes reports whether http.ResponseController can flush w.
func flushes(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case *responseWriter:
			w = v.ResponseWriter
		case interface{ FlushError() error }, http.Flusher:
			return true
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			return false
		}
	}
}

// Hijack takes over the connection and records 101 as the final status. The connection is closed when the
// client's credentials have expired (see AuthOptions.UpgradeGrace).
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.start(http.StatusSwitchingProtocols)
		now := time.Now()
		w.ex.mu.Lock()
		w.hijacked, w.switched = true, now
		until := w.ex.until
		w.ex.mu.Unlock()
		if !until.IsZero() {
			conn = newEndingConn(conn, until)
		}
	}
	return conn, rw, err
}

// Unwrap returns the wrapped writer. http.ResponseController calls it.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
