package gateway

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/bodywait"
)

// BreakerOptions configures what Breaker does while its circuit is open.
type BreakerOptions struct {
	// Fallback answers the requests that the circuit refuses. Nil means an answer of 503. In Fallback,
	// ErrorFrom returns the refusal. The outcome of the exchange is OutcomeRejected, even if Fallback answers
	// 200.
	Fallback http.Handler
}

// Breaker guards a handler with a circuit. While c is open, and while it is half-open with all its probes in
// flight, Breaker does not call the handler: it answers 503 with Retry-After at once.
//
// Breaker reports the handler's result to the circuit when the final status is sent, so that a long stream
// does not hold a probe's place. If the response is then cut off, it reports that as well. A 5xx is a
// failure, except for 501 and 505. Four results are neutral: a refusal by the gateway itself (401, 429), a
// request about which the gateway could not decide (503 while the key set cannot be fetched), a client that
// leaves, and a panic, which is passed on.
//
// When the time of a request is over (Timeout, Part.Timeout), its failure is neutral in three cases: more
// than half of the time had passed when the request reached Breaker; the client spent more than half of the
// rest on sending its body; or the client was still sending it. For example, with Timeout(2s), a request that
// reaches Breaker after 1.2s and then times out is neutral.
//
// The status of a gRPC call arrives in the trailers, after Breaker has reported the header. It corrects that
// report; see Outcome.
//
// A handler that cannot read or parse the request's body must answer 4xx. If it answers 500, any client can
// make it fail, and so open the circuit.
//
// Several Breakers may share one circuit. When a Breaker is inside another with the same circuit, or an
// Upstream inside has the same circuit, only the outermost Breaker calls Allow and reports the result.
// Breaker panics when c is nil.
func Breaker(c *Circuit, opts *BreakerOptions) Middleware {
	if c == nil {
		panic("gateway: Breaker: nil circuit")
	}
	var fallback http.Handler
	if opts != nil {
		fallback = opts.Fallback
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			if ex.admits(c) {
				next.ServeHTTP(rw, r)
				return
			}
			t, err := c.allow()
			if err != nil {
				spanEvent(r.Context(), "gateway.circuit.refused", "gateway.circuit.name", c.name)
				if fallback == nil {
					refuse(rw, r, err)
				} else {
					ex.answerInstead(fallback, rw, r, err)
				}
				return
			}
			g := &guard{ticket: t, w: rw}
			r = g.watch(ex, r)
			defer g.end()
			next.ServeHTTP(rw, r)
		})
	}
}

// guard reports the result of the handler inside a Breaker to the circuit.
type guard struct {
	ticket  ticket
	ctx     context.Context
	w       *responseWriter
	record  *exchange  // inner handlers note their failures in it
	ex      *exchange  // of the request that Breaker got
	admits  admission  // stored in ex while the handler runs
	outside startHook  // the writer's hook before this guard; nil for none
	began   time.Time  // when the handler was called; zero unless the request's time is limited
	body    *timedBody // nil unless the client's time for sending its body matters
}

// watch registers the guard with the record and the writer, and returns the request for the handler.
func (g *guard) watch(ex *exchange, r *http.Request) *http.Request {
	ex.mu.Lock()
	g.ex, g.admits = ex, admission{circuit: g.ticket.circuit, outer: ex.admitted}
	ex.admitted = &g.admits
	ex.mu.Unlock()
	g.record = ex
	if ex.whole != nil {
		g.record = ex.whole
	}
	g.record.mu.Lock()
	noted := g.record.noted
	g.record.mu.Unlock()
	if noted {
		// This Breaker is in the Fallback of another one, whose refusal was noted for the exchange. The
		// outcome of the Fallback is noted in a separate record.
		g.record = ex.variant(r.Context())
		r = r.WithContext(g.record)
	}
	_, limited := r.Context().Deadline()
	if limited {
		g.began = time.Now()
	}
	if hasContent(r) && (limited || g.ticket.needsClient()) {
		g.body = &timedBody{ReadCloser: r.Body, wait: bodywait.Start(false)}
		r = r.WithContext(r.Context())
		r.Body = g.body
		ex.derived(r)
		g.ticket.watch(g.body)
	}
	g.ctx = r.Context()

	g.w.ex.mu.Lock()
	g.outside, g.w.starts = g.w.starts, g
	g.w.ex.mu.Unlock()
	return r
}

// starting implements startHook.
func (g *guard) starting(status int) {
	g.w.ex.mu.Lock()
	call := g.w.grpc()
	g.w.ex.mu.Unlock()
	g.report(result{status: status, err: g.ctx.Err(), grpc: call})
	if g.outside != nil {
		g.outside.starting(status)
	}
}

// end is deferred around the handler.
func (g *guard) end() {
	panicked := recover()
	left := g.ctx.Err()
	g.ex.mu.Lock()
	g.ex.admitted = g.admits.outer
	g.ex.mu.Unlock()
	g.w.ex.mu.Lock()
	g.w.starts = g.outside
	res := g.w.result(left, panicked)
	g.w.ex.mu.Unlock()
	g.report(res)
	if panicked != nil {
		panic(panicked)
	}
}

// report reports to the circuit the outcome that an inner handler noted or, if none did, that of res.
func (g *guard) report(res result) {
	g.record.mu.Lock()
	noted, o := g.record.noted, g.record.outcome
	g.record.mu.Unlock()
	if !noted {
		o = res.outcome()
	}
	o = g.judge(o)
	if res.grpc.status != 0 {
		g.ticket.correct(o, res.forCircuit())
	} else {
		g.ticket.done(o, res.status)
	}
}

// timedBody measures how long reads of a request's body wait for the client.
type timedBody struct {
	io.ReadCloser
	mu   sync.Mutex
	wait bodywait.Clock
}

func (b *timedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.wait.BeginRead()
	b.mu.Unlock()
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	b.wait.EndRead(err == io.EOF)
	b.mu.Unlock()
	return n, err
}

func (b *timedBody) clientTime() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.ClientTime()
}

// tookTime reports whether the client used most of the request's time, which began at began and is over, or
// was still sending its body at the end. It returns false for a nil timedBody.
func (b *timedBody) tookTime(began time.Time) bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.ClientIsLate() || b.wait.ClientTime() > time.Since(began)/2
}

func (b *timedBody) stalled() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.Stalled()
}
