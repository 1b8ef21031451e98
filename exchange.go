package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"

	"go.opentelemetry.io/otel/trace"
)

// exchange is the one record of a request. The first middleware of this package that a request meets
// creates it, the others find it in the context and write in it, so that what stands outermost knows
// what everything inside it decided.
//
// It is a context itself, so that one allocation holds the record, the context value and the writer
// wrapper. It is never pooled: contexts outlive requests, and a reused record would be another
// user's identity.
type exchange struct {
	context.Context // what the request came with

	// whole is the record of the whole request, when this one is a part of it that differs in
	// something (WithIdentity). What goes wrong is noted there too. Nil otherwise.
	whole *exchange

	w responseWriter // the wrapper that came with the record

	// mu guards all below: a foreign middleware may run what is inside it on another goroutine.
	mu sync.Mutex

	req       *http.Request // the copy of the request that belongs to the record
	ownHeader bool          // req.Header is a copy too
	apart     bool          // a middleware between may run what is inside it, req too, on another goroutine

	client   netip.Addr // zero until asked for or found by TrustProxies
	viaProxy bool       // the peer is a trusted proxy, so its word about the client is believed

	observed    bool              // an Observe stands outside
	logged      bool              // and writes a log
	traceID     string            // 32 hex digits
	traceHeader string            // field that carries traceID
	span        trace.SpanContext // parent of what is asked of upstreams
	traceState  string            // as it came from a trusted caller

	route     string       // name of the outermost Router's route
	pattern   string       // its pattern
	unrouted  *routeAnswer // what a Router answers itself, on its way through Use
	identity  *Identity
	onError   func(http.ResponseWriter, *http.Request, *Error)
	answering *Error // while onError or a fallback runs
	guard     *guard // of the innermost Breaker that let the request through

	remarks []string // what went wrong and was not answered with; for the log

	noted   bool    // outcome and err are set; the first word stands
	outcome Outcome // how it ended, as noted by who ended it
	err     error   // why; for the log and the span
}

type exchangeKey struct{}

// Value finds the record itself.
func (ex *exchange) Value(key any) any {
	if _, ok := key.(exchangeKey); ok {
		return ex
	}
	return ex.Context.Value(key)
}

// exchangeFrom returns ctx's record, nil when no middleware of this package stands outside.
func exchangeFrom(ctx context.Context) *exchange {
	ex, _ := ctx.Value(exchangeKey{}).(*exchange)
	return ex
}

// enter finds the request's record or begins it. The writer that it returns reports to the record,
// the request carries it.
func enter(w http.ResponseWriter, r *http.Request) (*exchange, *responseWriter, *http.Request) {
	ctx := r.Context()
	ex := exchangeFrom(ctx)
	if ex == nil {
		ex = &exchange{Context: ctx}
		ex.w = responseWriter{ResponseWriter: w, ex: ex}
		r = r.WithContext(ex)
		ex.req = r
		return ex, &ex.w, r
	}
	if rw, ok := w.(*responseWriter); ok && (rw.ex == ex || rw.ex == ex.whole) {
		return ex, rw, r
	}
	if !ex.below(w) {
		for e := ex; e != nil; e = e.whole {
			e.mu.Lock()
			e.apart = true
			e.mu.Unlock()
		}
	}
	return ex, &responseWriter{ResponseWriter: w, ex: ex}, r
}

// below reports whether the record's wrapper is found below w. Where it is not, as under http.TimeoutHandler,
// the handler that has w may be left behind.
func (ex *exchange) below(w http.ResponseWriter) bool {
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

// child returns a record for what runs beside the request: it knows what ex knew when it was made,
// and tells ex nothing. It has no writer yet. A nil ex gives a record that knows nothing.
func (ex *exchange) child(ctx context.Context) *exchange {
	c := &exchange{Context: ctx}
	if ex == nil {
		return c
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	c.client, c.viaProxy = ex.client, ex.viaProxy
	c.traceID, c.traceHeader, c.span, c.traceState = ex.traceID, ex.traceHeader, ex.span, ex.traceState
	c.identity = ex.identity
	return c
}

// part is child for what the answer waits for: what it comes to is told to ex's circuits by way of the answer.
func (ex *exchange) part(ctx context.Context) *exchange {
	c := ex.child(ctx)
	if ex != nil {
		ex.mu.Lock()
		c.guard = ex.guard
		ex.mu.Unlock()
	}
	return c
}

// variant returns a record of the same request that may differ in something, for a part of its handlers:
// it starts as ex is, writes through the same writer, and tells the whole request's record how it ended.
func (ex *exchange) variant(ctx context.Context) *exchange {
	v := ex.child(ctx)
	if ex == nil {
		return v
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	v.whole = ex
	if ex.whole != nil {
		v.whole = ex.whole
	}
	v.observed, v.logged, v.route, v.pattern, v.unrouted = ex.observed, ex.logged, ex.route, ex.pattern, ex.unrouted
	v.onError, v.answering = ex.onError, ex.answering
	v.guard = ex.guard
	return v
}

// headerOf returns r with a Header that may be changed: the first that asks copies the map, once a
// request.
func (ex *exchange) headerOf(r *http.Request) *http.Request {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if r == ex.req && ex.ownHeader {
		return r
	}
	if r != ex.req {
		r = r.WithContext(r.Context())
		ex.req = r
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	} else {
		r.Header = maps.Clone(r.Header)
	}
	ex.ownHeader = true
	return r
}

// derived says that to, a shallow copy of from, is handed on in its place, so that the record goes on
// seeing what is set on the request further in.
func (ex *exchange) derived(from, to *http.Request) {
	if ex == nil {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.ownHeader = ex.ownHeader && ex.req == from
	ex.req = to
}

// note says how the exchange ended and why. The first word stands: what refused a request or failed
// it knows better than what answers it afterwards.
func (ex *exchange) note(o Outcome, err error) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if !ex.noted {
			ex.noted, ex.outcome, ex.err = true, o, err
		}
		ex.mu.Unlock()
	}
}

// maxRemarks bounds what is kept of a request that goes wrong in many places.
const maxRemarks = 16

// remark tells the log of something that went wrong, or would have, and that the answer does not show.
func (ex *exchange) remark(what string, err error) {
	text := what + ": " + causeText(err)
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if len(ex.remarks) < maxRemarks {
			ex.remarks = append(ex.remarks, text)
		}
		ex.mu.Unlock()
	}
}

// rejected reports whether it is known already that the gateway refused.
func (ex *exchange) rejected() bool {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.noted && ex.outcome == OutcomeRejected
}

// end decides how the exchange ended and with which status, for the one who stands outermost with the
// writer w. panicked is what recover returned.
func (ex *exchange) end(w *responseWriter, panicked any) (Outcome, int, error) {
	left := ex.Context.Err()
	ex.mu.Lock()
	defer ex.mu.Unlock()
	e := w.result(left, panicked)
	if !ex.noted {
		ex.noted, ex.outcome, ex.err = true, e.outcome(), e.err
	}
	if ex.outcome == OutcomeClientCanceled {
		e.status = statusClientClosed
	}
	return ex.outcome, e.status, ex.err
}

// result returns what the writer knows of how a handler ended. left is its context's error, panicked what
// recover returned. The caller holds ex.mu.
func (w *responseWriter) result(left error, panicked any) result {
	e := result{status: w.status, began: w.status != 0}
	switch {
	case panicked == nil:
		if e.status == 0 {
			e.status = http.StatusOK // what net/http sends for a handler that is silent
		}
		// A client that left with its answer complete did not leave too early.
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

// responseWriter is the one wrapper around a ResponseWriter. It knows the final status, what was
// written and whether that failed.
type responseWriter struct {
	http.ResponseWriter
	ex *exchange

	// Guarded by ex.mu.
	status   int   // final status; 0 until there is one
	written  int64 // bytes of body
	failed   bool  // a write failed
	hijacked bool
	guard    *guard // of the innermost Breaker, which is told the final status before it goes out
}

// start notes the final status, if none stands.
func (w *responseWriter) start(code int) {
	w.ex.mu.Lock()
	var g *guard
	if w.status == 0 {
		w.status, g = code, w.guard
	}
	w.ex.mu.Unlock()
	for ; g != nil; g = g.outer {
		g.starting(code)
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

// started reports whether the final status is out, or the connection in other hands.
func (w *responseWriter) started() bool {
	w.ex.mu.Lock()
	defer w.ex.mu.Unlock()
	return w.status != 0 || w.hijacked
}

// complete reports whether the client has had all of its answer before the handler returned. An answer
// of undeclared length is not: its end is sent when the handler returns. The caller holds ex.mu.
func (w *responseWriter) complete() bool {
	if w.status == 0 || w.failed {
		return false
	}
	if w.hijacked || w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return true
	}
	declared := w.Header()["Content-Length"]
	return len(declared) == 1 && declared[0] == strconv.FormatInt(w.written, 10)
}

// WriteHeader passes 1xx on as they are; 101 is final.
func (w *responseWriter) WriteHeader(code int) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		w.start(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.start(http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	w.wrote(int64(n), err)
	return n, err
}

// ReadFrom lets the server copy from a file or a connection by its own means.
func (w *responseWriter) ReadFrom(src io.Reader) (int64, error) {
	w.start(http.StatusOK)
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

// Flush sends what is buffered, if what is below can.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush for http.ResponseController.
func (w *responseWriter) FlushError() error {
	if !w.started() && !flushes(w.ResponseWriter) {
		return http.ErrNotSupported // nothing goes out, so nothing has begun
	}
	w.start(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// flushes reports whether http.ResponseController finds a way to flush w.
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

// Hijack hands the connection over. The exchange counts as switched to another protocol.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.start(http.StatusSwitchingProtocols)
		w.ex.mu.Lock()
		w.hijacked = true
		w.ex.mu.Unlock()
	}
	return conn, rw, err
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
