package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/seed-96248d0c/gateway/internal/bodywait"
	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
	"github.com/seed-96248d0c/gateway/internal/h1"
	"github.com/seed-96248d0c/gateway/internal/idletimer"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// attempt is one attempt to send a request to one target. When a response arrives, the attempt becomes the
// response's body. The attempt ends when the body has been read to its end, fails, or is closed.
type attempt struct {
	io.ReadCloser // the response's body

	upstream *Upstream
	caller
	destination
	clock   attemptClock
	idle    *idletimer.Timer
	circuit ticket
	span    attemptSpan
	progress
}

// caller is the request that an attempt serves.
type caller struct {
	client context.Context // canceled when the client leaves
	start  time.Time
	body   *replay       // nil if the request has no body
	within time.Duration // the deadline that the client itself chose, counted from start; 0 for none
}

// destination is the target that the balancer picked.
type destination struct {
	member *member       // nil before the pick
	out    *http.Request // the outgoing request; its URL points to url
	url    url.URL
	done   func(Outcome) // returned by the balancer's Pick; may be nil
}

// ownedAttempt is an attempt and its copy of the request, in one allocation.
type ownedAttempt struct {
	attempt
	request http.Request
}

// newAttempt returns an attempt to send r, and the URL of r, to which the caller adds the target. The attempt
// sends a copy of r, with one exception: a request that is sent as lines belongs to the forwarding, and no
// other code keeps it, so it is sent without a copy.
func newAttempt(r *http.Request, call directCall) (*attempt, *url.URL) {
	if f := call.linesOf(); f != nil {
		return &attempt{destination: destination{out: r}}, &f.url
	}
	a := &ownedAttempt{request: *r}
	a.out = &a.request
	return &a.attempt, r.URL
}

// progress is the state of an attempt after the request was sent.
type progress struct {
	status   int // of the response; 0 before there is one
	grpc     grpcmeta.Status
	trailer  *http.Header // the trailers of a gRPC response, if its status is to arrive there; otherwise nil
	standing success      // the success that was recorded when the response's header arrived
	cut      result       // the result of a response that was cut off, if that counted against the target
	answered bool         // a response has arrived
	excused  bool         // the gRPC status does not count against the target: the client's messages came late
	ended    atomic.Bool
}

// attempt sends r once, if possible to a target that is not in tried. It returns the target that it picked,
// or nil if it picked none. l is nil unless another attempt may run at the same time.
func (u *Upstream) attempt(r *http.Request, body *replay, tried []*member, l *lane, call directCall) (*http.Response, *member, error) {
	choice := u.pool.choice()
	if len(choice.members) == 0 {
		return nil, nil, fmt.Errorf("%w: upstream %s", ErrNoTarget, u.name)
	}
	a, base := newAttempt(r, call)
	a.upstream = u
	a.caller = caller{client: r.Context(), start: time.Now(), body: body, within: grpcmeta.Timeout(r.Header)}
	if c := u.opts.Circuit; c != nil && !exchangeFrom(r.Context()).admits(c) {
		var err error
		if a.circuit, err = c.allow(); err != nil {
			spanEvent(r.Context(), "gateway.circuit.refused", "gateway.circuit.name", c.name)
			return nil, nil, err
		}
	}
	// A panic in a balancer or a transport must not leave the attempt pending.
	defer func() {
		if !a.answered {
			a.end(result{panicked: true})
		}
	}()

	if len(tried) > 0 {
		choice = u.pool.untried(choice, tried)
	}
	i, done := u.opts.Balancer.Pick(r, choice.targets)
	a.done = done
	a.member = choice.members[i]
	a.member.pending.Add(1)

	a.url = *base
	setTarget(&a.url, a.member.URL)
	limit := u.opts.Timeout
	pending := body.pending() // nil if the client has nothing more to send
	if pending == nil && limit > 0 && u.direct != nil && u.direct.speaksHTTP1(&a.url, len(r.Header["Upgrade"]) > 0) {
		call.by, limit = a.start.Add(limit), 0 // a deadline costs less than a timer and a context
	}
	ctx := a.clock.start(a.client, a.start, limit, pending, l != nil)
	if pending != nil {
		a.circuit.watch(&a.clock)
	}
	l.enter(a.member, a.clock.cancel)
	if ctx != a.client {
		a.out = a.out.WithContext(ctx)
	}
	out := a.out
	out.URL = &a.url
	if out != r && out.Host == "" && a.url.Scheme == schemeUnix { // internal/h1 does the same
		out.Host = unixHost
	}
	a.startSpan(len(tried))
	res, err := u.send(out, body, &a.clock, call)
	if err != nil {
		u.direct.failed(a.url.Host, err)
	}
	if expired := a.clock.stop(); expired && err == nil {
		// The header arrived just as the time ran out. The body's context is already canceled.
		res.Body.Close()
		res, err = nil, ErrTimeout
	}
	if err == nil {
		if err = checkResponse(out, res); err != nil {
			res.Body.Close()
		}
	}
	if err != nil {
		out.Header = call.header(out) // the error may depend on its size
		err = a.roundTripError(out, err)
		a.end(result{err: err, gone: leftEarly(a.client) || l.hasLost() || a.hadTooLittleTime()})
		return nil, a.member, err
	}
	if err := a.failedByClient(res); err != nil {
		res.Body.Close()
		a.end(result{err: err, gone: leftEarly(a.client) || l.hasLost()})
		return nil, a.member, err
	}
	a.answer(res, body)
	return res, a.member, nil
}

// limitedContext is a context with a time limit that this package has set. Its Value returns the limit for
// limitKey. An attempt compares the limit with the time that it had (see endedBeforeHalf).
type limitedContext struct {
	context.Context
	limit time.Duration
}

type limitKey struct{}

func (l *limitedContext) Value(key any) any {
	if _, ok := key.(limitKey); ok {
		return l.limit
	}
	return l.Context.Value(key)
}

// withLimit is context.WithTimeout, and stores d in the context (see limitedContext).
func withLimit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(&limitedContext{ctx, d}, d)
}

// pastOwnDeadline reports whether the deadline that the client itself chose has passed. The target has the
// same deadline, but its clock started later.
func (a *attempt) pastOwnDeadline() bool { return a.within > 0 && time.Since(a.start) >= a.within }

// attemptClock cancels an attempt whose target is too slow. The clock stops during a read of the request's
// body, because the attempt then waits for the client. After each read, the target has the whole limit again,
// so that a long body does not add up to a timeout. For example, with a limit of 2s, a target that accepts a
// part of the body every second may take a minute for the whole body; then it has 2s for the response header.
type attemptClock struct {
	limit  time.Duration
	cancel context.CancelCauseFunc // nil when the attempt has no context of its own
	wake   heldBody                // nil unless a read of the body may wait for 100 Continue

	mu      sync.Mutex
	timer   *time.Timer    // nil without a limit
	wait    bodywait.Clock // who is to act: the client or the target
	idle    bool           // the timer fired during a read, and has not been set again
	expired bool
	stopped bool
}

// start starts the clock and returns the context for the attempt. If d is positive, the context is canceled
// with ErrTimeout when the attempt has waited for the target for d, unless stop is called before. If d is not
// positive and own is false, the context is ctx itself. body is nil if the client has nothing more to send.
func (c *attemptClock) start(ctx context.Context, now time.Time, d time.Duration, body *replay, own bool) context.Context {
	c.wait = bodywait.StartAt(now, body == nil)
	if body != nil {
		c.wake, _ = body.source.(heldBody)
	}
	if d <= 0 && !own {
		return ctx
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel = cancel
	if d > 0 {
		c.limit = d
		c.timer = time.AfterFunc(d, c.fire)
	}
	return ctx
}

// fire is called by the timer. A read does not reset the timer, so the timer may fire before the limit has
// passed.
func (c *attemptClock) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch rest := c.limit - time.Since(c.wait.Since()); {
	case c.stopped:
	case c.wait.Reading():
		c.idle = true
	case rest > 0:
		c.timer.Reset(rest)
	default:
		c.expired = true
		c.cancel(ErrTimeout)
		if c.wake != nil {
			c.wake.wakeReader()
		}
	}
}

// hasExpired reports whether the attempt has timed out.
func (c *attemptClock) hasExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expired
}

// begin begins a read of the request's body. It returns false if the attempt has timed out. The caller must
// not read then, because a transport may wait until the read returns.
func (c *attemptClock) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expired {
		return false
	}
	c.wait.BeginRead()
	return true
}

// end ends a read of the request's body.
func (c *attemptClock) end(complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wait.EndRead(complete)
	if c.idle && !c.stopped {
		c.idle = false
		c.timer.Reset(c.limit)
	}
}

// stop stops the clock and reports whether the attempt has timed out. It does not cancel the attempt's
// context.
func (c *attemptClock) stop() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
	return c.expired
}

// release stops the clock and cancels the attempt's context.
func (c *attemptClock) release() {
	c.stop()
	if c.cancel != nil {
		c.cancel(nil)
	}
}

// clientIsLate reports whether a request that ran out of time did so because its client sent the body too
// slowly.
func (c *attemptClock) clientIsLate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait.ClientIsLate()
}

// clientTime returns how long the attempt has waited for the client's body.
func (c *attemptClock) clientTime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait.ClientTime()
}

// keptWaiting reports whether the client may be the reason for a failure of the target, because it has kept
// the target waiting for the body.
func (c *attemptClock) keptWaiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait.KeptWaiting()
}

// stalled reports whether the client may be the reason why the target broke the connection off, because it
// has stopped sending its body.
func (c *attemptClock) stalled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wait.Stalled()
}

// send makes the round trip of one attempt.
//
// A transport of NewTransport that speaks HTTP/1.1 to the target gets call as an argument. If a connection
// from its pool turns out to be dead, that transport itself sends the request again.
//
// Any other transport gets the hooks of call in the request's context. http.Transport sends a request again
// after a dead connection only if the request has no body and a safe method. So send sends the other
// idempotent requests again, if their body can be replayed.
func (u *Upstream) send(out *http.Request, body *replay, clock *attemptClock, call directCall) (*http.Response, error) {
	if t := u.direct; t != nil && t.speaksHTTP1(out.URL, len(out.Header["Upgrade"]) > 0) {
		if body != nil {
			if err := body.attach(out, clock); err != nil {
				return nil, err
			}
			if body.trailer != nil {
				body.attachAgain(out, clock)
			}
		}
		return t.do(out, call)
	}
	out = call.traced(out)
	var pooled *pooledConn
	if body != nil && isIdempotent(out.Method) || out.Method == http.MethodPut || out.Method == http.MethodDelete {
		pooled = new(pooledConn)
		out = out.WithContext(httptrace.WithClientTrace(out.Context(),
			&httptrace.ClientTrace{GotConn: pooled.got, GotFirstResponseByte: pooled.answer}))
	}
	for n := 1; ; n++ {
		if body != nil {
			if err := body.attach(out, clock); err != nil {
				return nil, err
			}
		}
		res, err := u.opts.Transport.RoundTrip(out)
		if err == nil || n == maxDeadConns || !pooled.wasDead() || !body.resendable() || out.Context().Err() != nil {
			return res, err
		}
	}
}

// maxDeadConns is how many dead connections from the pool a request may meet before it fails.
const maxDeadConns = 5

// pooledConn records whether a request was sent on a connection from the pool, and whether a response began.
// Nil means that neither is recorded.
type pooledConn struct{ reused, answered atomic.Bool }

func (c *pooledConn) got(info httptrace.GotConnInfo) {
	c.reused.Store(info.Reused)
	c.answered.Store(false)
}

func (c *pooledConn) answer() { c.answered.Store(true) }

// wasDead reports whether a failed round trip failed on a pooled connection before any byte of a response
// arrived.
func (c *pooledConn) wasDead() bool { return c != nil && c.reused.Load() && !c.answered.Load() }

// answer makes the attempt the body of res, so that the attempt ends when the body ends.
func (a *attempt) answer(res *http.Response, body *replay) {
	a.answered = true
	a.status = res.StatusCode
	a.span.answered(res)
	if grpcmeta.Is(res.Header) {
		if a.grpc = grpcmeta.StatusIn(res.Header, ""); len(res.Header["Grpc-Status"]) == 0 {
			a.trailer = &res.Trailer
		}
	}
	a.report(a.whole())
	a.ReadCloser = res.Body
	if conn, ok := res.Body.(io.ReadWriteCloser); ok {
		// The protocol was switched. After silence, the connection ends normally.
		a.idle = idletimer.New(a.upstream.opts.Idle, a.Close, nil)
		res.Body = &attemptConn{attempt: a, conn: conn}
	} else {
		if idle := a.upstream.opts.Idle; idle > 0 { // the method value below allocates
			a.idle = idletimer.New(idle, res.Body.Close, body.awaitsClient)
		}
		res.Body = a
	}
}

// Read ends the attempt when the body ends or fails.
func (a *attempt) Read(p []byte) (int, error) {
	a.idle.BeginRead()
	n, err := a.ReadCloser.Read(p)
	a.idle.EndRead()
	if err != nil && err != io.EOF {
		if cause := idleCause(a.idle); cause != nil {
			err = cause // the timer closed the body, which made the read fail
		}
	}
	return n, a.bodyEnd(err)
}

// Splice copies the rest of the body to w inside the kernel, as h1.Body does, and ends the attempt. It does
// nothing and returns false if that is not possible, and with UpstreamOptions.Idle, which measures each read.
func (a *attempt) Splice(w io.ReaderFrom) (n int64, done bool, err error) {
	body, ok := a.ReadCloser.(h1.Body)
	if !ok || a.idle != nil {
		return 0, false, nil
	}
	n, done, err = body.Splice(w)
	var writing *h1.WriteError
	switch {
	case !done, errors.As(err, &writing): // a failed write does not end the attempt: Close will
		return n, done, err
	case err == nil:
		err = io.EOF
	}
	if err = a.bodyEnd(err); err == io.EOF {
		err = nil
	}
	return n, true, err
}

// bodyEnd ends the attempt if err, the error of a read of the body, is not nil. It returns the error for the
// reader.
func (a *attempt) bodyEnd(err error) error {
	switch {
	case err == nil:
	case err == io.EOF:
		if a.trailer != nil {
			a.grpc = grpcmeta.StatusIn(*a.trailer, "")
		}
		if res := a.whole(); a.end(res) && a.trailer != nil && res.outcome() != OutcomeOK {
			a.correct(res)
		}
		if a.excused {
			exchangeFrom(a.client).excuse() // allowed here: the caller's own goroutine reads the body
		}
	default:
		stalled := a.clock.stalled()
		a.upstream.direct.failed(a.url.Host, err)
		err = a.bodyError(err)
		res := result{err: err, began: true, gone: leftEarly(a.client)}
		// The header counted as a success. Only an abort by the target turns that into a failure. A stream
		// that exceeds the caller's deadline does not: the target answered in time. An abort does not either
		// if the target was waiting for the rest of the client's body.
		if a.end(res) && res.outcome() == OutcomeAborted && !stalled {
			a.correct(res)
			a.cut = res
		}
		err = fmt.Errorf("target %s: %w", a.member.URL.Redacted(), err)
	}
	return err
}

// Buffered returns the number of bytes that Read can return without waiting, or -1 if it is not known.
func (a *attempt) Buffered() int {
	if b, ok := a.ReadCloser.(interface{ Buffered() int }); ok {
		return b.Buffered()
	}
	return -1
}

// whole returns the result of an attempt that has a response.
func (a *attempt) whole() result {
	if a.grpc == grpcmeta.DeadlineExceeded && a.clock.keptWaiting() {
		a.excused = true // stored, because keptWaiting changes when the request's body is closed
	}
	return result{status: a.status, grpc: grpcCall{a.grpc, a.excused || a.within > 0}}
}

// correct replaces the success that was recorded for the response's header by res, the result at the end of
// the body.
func (a *attempt) correct(res result) {
	a.circuit.correct(res.outcome(), res.forCircuit())
	a.upstream.pool.correctTraffic(a.member, res, a.standing)
}

// Close ends the attempt. Closing the body before its end is not a failure of the target. Close ends the
// attempt first and then closes the body: a Read in progress, as on a switched connection, fails when the
// body is closed, and that error must not count.
func (a *attempt) Close() error {
	res := a.whole()
	res.gone = leftEarly(a.client)
	a.end(res)
	return a.ReadCloser.Close()
}

// report records the outcome as of the response's header: with the circuit, the target's health and the
// histogram.
func (a *attempt) report(res result) {
	o := res.outcome()
	a.circuit.done(o, res.forCircuit())
	a.span.circuitMoved(&a.circuit)
	a.standing = a.upstream.pool.recordTraffic(a.member, res)
	if u := a.upstream; u.duration.Enabled(a.client) {
		u.duration.Record(a.span.context(a.client), time.Since(a.start).Seconds(), u.labels.Options(clientLabels{
			method:   telemetry.Method(cmp.Or(a.out.Method, http.MethodGet)),
			upstream: u.name, target: a.member.URL, status: a.status, outcome: o,
		})...)
	}
}

// end ends the attempt with res and releases what it holds. Only the first call has an effect, and only that
// one returns true.
func (a *attempt) end(res result) bool {
	if !a.ended.CompareAndSwap(false, true) {
		return false
	}
	a.clock.release()
	if a.member == nil { // the balancer panicked
		a.circuit.done(res.outcome(), 0)
		return true
	}
	if !a.answered {
		a.report(res)
	}
	a.member.pending.Add(-1)
	if a.done != nil {
		a.done(res.outcome())
	}
	a.span.finish(a.status, res)
	return true
}

// attemptConn is the body of a 101 response: a connection that is read and written.
type attemptConn struct {
	*attempt
	conn io.ReadWriteCloser
}

// Read returns an error other than io.EOF if the connection was silent for too long, so that both directions
// end.
func (c *attemptConn) Read(p []byte) (int, error) {
	n, err := c.attempt.Read(p)
	if err == io.EOF {
		if cause := idleCause(c.idle); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (c *attemptConn) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	if n > 0 {
		c.idle.Sent()
	}
	return n, err
}

// clientLabels are the attributes of http.client.request.duration.
type clientLabels struct {
	method   string
	upstream string
	target   *url.URL
	status   int // 0 without a response
	outcome  Outcome
}

// AttributeSet implements telemetry.Labels.
func (l clientLabels) AttributeSet() attribute.Set {
	attrs := make([]attribute.KeyValue, 0, 7)
	attrs = append(attrs,
		attribute.String("http.request.method", l.method),
		attribute.String("gateway.upstream.name", l.upstream),
		attribute.String("gateway.outcome", l.outcome.String()),
	)
	address, port := serverAddress(l.target)
	attrs = append(attrs, attribute.String("server.address", address))
	if port > 0 {
		attrs = append(attrs, attribute.Int("server.port", port))
	}
	if l.status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", l.status))
	}
	if kind := errorType(l.outcome, l.status); kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	return attribute.NewSet(attrs...)
}
