package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/seed-96248d0c/gateway/internal/h1"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// attempt is one attempt to send a request to one target. When a response arrives, the attempt becomes its
// body. It ends when the body has been read or closed.
type attempt struct {
	io.ReadCloser // the response's body

	upstream *Upstream
	caller
	destination
	clock   attemptClock
	idle    *idleTimer
	circuit ticket
	span    attemptSpan
	progress
}

// caller is the request that an attempt serves.
type caller struct {
	method string
	client context.Context // canceled when the client leaves
	start  time.Time
	body   *replay       // nil without one
	within time.Duration // the deadline that the client itself chose, from start; 0 for none
}

// destination is the target that the balancer picked.
type destination struct {
	member *member      // nil before the pick
	out    http.Request // what is sent; its URL is url
	url    url.URL
	done   func(Outcome) // the balancer's; may be nil
}

// progress is how far an attempt has come.
type progress struct {
	status   int // of the response; 0 before there is one
	grpc     grpcStatus
	trailer  *http.Header // of a response of gRPC whose status has not arrived; otherwise nil
	standing success
	cut      result // of a response that was cut off, when that counted against the target; else zero
	answered bool   // there is a response
	excused  bool   // the status of gRPC is the client's doing, as it kept the target waiting for messages
	ended    atomic.Bool
}

// attempt sends r once, if possible to a target that is not in tried. It returns the target, or nil if none
// was picked. l is nil unless another attempt may run at the same time.
func (u *Upstream) attempt(r *http.Request, body *replay, tried []*member, l *lane, call directCall) (*http.Response, *member, error) {
	choice := u.pool.choice()
	if len(choice.members) == 0 {
		return nil, nil, fmt.Errorf("%w: upstream %s", ErrNoTarget, u.name)
	}
	a := &attempt{upstream: u, caller: caller{method: r.Method, client: r.Context(), start: time.Now(), body: body, within: grpcTimeout(r.Header)}}
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

	a.url = *r.URL
	setTarget(&a.url, a.member.URL)
	limit := u.opts.Timeout
	pending := body.pending() // a body that is here is like none
	if pending == nil && limit > 0 && u.direct != nil && u.direct.speaksHTTP1(&a.url, len(r.Header["Upgrade"]) > 0) {
		call.by, limit = a.start.Add(limit), 0 // costs less than a timer and a context
	}
	ctx := a.clock.start(a.client, limit, pending, l != nil)
	if pending != nil {
		a.circuit.watch(&a.clock)
	}
	l.enter(a.member, a.clock.cancel)
	if a.out = *r; ctx != a.client {
		a.out = *r.WithContext(ctx)
	}
	out := &a.out
	out.URL = &a.url
	if out.Host == "" && a.url.Scheme == schemeUnix {
		out.Host = unixHost
	}
	a.startSpan(len(tried))
	res, err := u.send(out, body, &a.clock, call)
	if err != nil {
		u.direct.failed(a.url.Host, err)
	}
	if expired := a.clock.stop(); expired && err == nil {
		// The headers arrived just as the time ran out. The body is canceled already.
		res.Body.Close()
		res, err = nil, ErrTimeout
	}
	if err == nil {
		if err = checkResponse(out, res); err != nil {
			res.Body.Close()
		}
	}
	if err != nil {
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

// limitedContext is a context with a limit of time that this package has set. Its Value returns that limit,
// which attempts compare with the time that they had.
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

// withLimit is context.WithTimeout for a handler or for a part of its work.
func withLimit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(&limitedContext{ctx, d}, d)
}

// pastOwnDeadline reports whether the deadline that the client itself chose has passed. The target had the
// same one, and began to count it later.
func (a *attempt) pastOwnDeadline() bool { return a.within > 0 && time.Since(a.start) >= a.within }

// grpcTimeout returns the deadline of a gRPC call ("PROTOCOL-HTTP2", field grpc-timeout), from its beginning.
// It returns 0 for none.
func grpcTimeout(h http.Header) time.Duration {
	values := h["Grpc-Timeout"]
	if len(values) == 0 || len(h["Content-Type"]) == 0 || !strings.HasPrefix(h["Content-Type"][0], "application/grpc") {
		return 0
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	last := len(values[0]) - 1
	if last < 1 || last > 8 || !isDigits(values[0][:last]) {
		return 0
	}
	n, _ := strconv.ParseInt(values[0][:last], 10, 64)
	unit := units[values[0][last]]
	if unit == 0 {
		return 0
	}
	if n > int64(math.MaxInt64/unit) {
		return math.MaxInt64
	}
	return max(1, time.Duration(n)*unit) // 0 is a deadline that has passed
}

// attemptClock cancels an attempt whose target is too slow. It stops during a read of the request's body,
// because the attempt then waits for the client. It starts again when the target has accepted the part of the
// body that had arrived, so that a long body does not add up to a timeout. For example, with a limit of 2s, a
// target that accepts a part of the body every second may take a minute for the whole body; then it has 2s
// for the response header.
type attemptClock struct {
	limit  time.Duration
	cancel context.CancelCauseFunc // nil when the attempt has no context of its own
	wake   heldBody                // nil unless the body may keep its reader waiting

	mu      sync.Mutex
	timer   *time.Timer // nil without a limit
	turn    turn
	idle    bool // the timer fired during a read and does not run
	expired bool
	stopped bool
}

// start returns the context for the attempt. It is canceled with ErrTimeout when the target has made the
// attempt wait for d, if d is positive and stop is not called before. It is a context of its own if d is
// positive or own is set. body is nil if the client has nothing to send.
func (c *attemptClock) start(ctx context.Context, d time.Duration, body *replay, own bool) context.Context {
	c.turn = newTurn()
	c.turn.complete = body == nil
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

// fire is called by the timer. Reads do not reset the timer, so it may come early.
func (c *attemptClock) fire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch rest := c.limit - time.Since(c.turn.since); {
	case c.stopped:
	case c.turn.reading:
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

// begin begins a read of the request's body, and reports whether there is time for it. None begins once the
// attempt has timed out: a transport may wait for its end.
func (c *attemptClock) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expired {
		return false
	}
	c.turn.begin()
	return true
}

// end ends a read of the request's body.
func (c *attemptClock) end(complete bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn.end(complete)
	if c.idle && !c.stopped {
		c.idle = false
		c.timer.Reset(c.limit)
	}
}

// stop stops the clock and reports whether the time had run out. The attempt's context stays as it is.
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

// clientIsLate reports whether a request whose time ran out was clientIsLate because of its client.
func (c *attemptClock) clientIsLate() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn.clientIsLate()
}

// clientTime returns how long the attempt has waited for the client's body.
func (c *attemptClock) clientTime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn.clientTime()
}

// keptWaiting reports whether a target that fails may do so because its client has kept it waiting.
func (c *attemptClock) keptWaiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn.keptWaiting()
}

// stalled reports whether a target that breaks off may do so because of a client that does not send its body.
func (c *attemptClock) stalled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn.stalled()
}

// send makes the round trip of one attempt. A transport of NewTransport gets call directly when it speaks
// HTTP/1.1. When a connection from its pool turns out to be dead, it sends the request again by itself. Any
// other transport gets the hooks of call in a context. net/http.Transport sends a request again only if it
// has no body and a safe method. For the other idempotent requests send does so, if their body can be
// replayed.
func (u *Upstream) send(out *http.Request, body *replay, clock *attemptClock, call directCall) (*http.Response, error) {
	if t := u.direct; t != nil && t.speaksHTTP1(out.URL, len(out.Header["Upgrade"]) > 0) {
		if body != nil {
			if err := body.attach(out, clock); err != nil {
				return nil, err
			}
			if body.trailer != nil {
				// The connection that has ended may still read the trailers of the earlier view.
				var again func() (io.ReadCloser, error)
				again = func() (io.ReadCloser, error) {
					err := body.attach(out, clock)
					out.GetBody = again
					return out.Body, err
				}
				out.GetBody = again
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

// pooledConn observes whether a request was sent on a connection from the pool. A nil pooledConn observed
// nothing.
type pooledConn struct{ reused, answered atomic.Bool }

func (c *pooledConn) got(info httptrace.GotConnInfo) {
	c.reused.Store(info.Reused)
	c.answered.Store(false)
}

func (c *pooledConn) answer() { c.answered.Store(true) }

// wasDead reports whether a failed round trip failed on a pooled connection before any byte of a response
// arrived.
func (c *pooledConn) wasDead() bool { return c != nil && c.reused.Load() && !c.answered.Load() }

// answer makes the attempt the body of res, so that the attempt ends with it.
func (a *attempt) answer(res *http.Response, body *replay) {
	a.answered = true
	a.status = res.StatusCode
	if isGRPC(res.Header) {
		if a.grpc = grpcStatusIn(res.Header, ""); len(res.Header["Grpc-Status"]) == 0 {
			a.trailer = &res.Trailer
		}
	}
	a.report(a.whole())
	a.ReadCloser = res.Body
	if conn, ok := res.Body.(io.ReadWriteCloser); ok {
		a.idle = newIdleTimer(a.upstream.opts.Idle, a.Close, nil) // silence in a connection is a normal end
		res.Body = &attemptConn{attempt: a, conn: conn}           // the protocol was switched
	} else {
		if idle := a.upstream.opts.Idle; idle > 0 { // else the method value would be an allocation for nothing
			a.idle = newIdleTimer(idle, res.Body.Close, body)
		}
		res.Body = a
	}
}

// Read ends the attempt when the body ends or fails.
func (a *attempt) Read(p []byte) (int, error) {
	a.idle.begin()
	n, err := a.ReadCloser.Read(p)
	a.idle.end()
	if err != nil && err != io.EOF {
		if cause := a.idle.cause(); cause != nil {
			err = cause // and not that of the close which interrupted the read
		}
	}
	return n, a.bodyEnd(err)
}

// Splice copies the rest of the body to w by the kernel's means, as h1.Body does, and ends the attempt. It
// does nothing and returns false where that is not possible, and with Idle, which measures each read.
func (a *attempt) Splice(w io.ReaderFrom) (n int64, done bool, err error) {
	body, ok := a.ReadCloser.(h1.Body)
	if !ok || a.idle != nil {
		return 0, false, nil
	}
	n, done, err = body.Splice(w)
	var writing *h1.WriteError
	switch {
	case !done, errors.As(err, &writing): // an error of w does not end the attempt; Close does
		return n, done, err
	case err == nil:
		err = io.EOF
	}
	if err = a.bodyEnd(err); err == io.EOF {
		err = nil
	}
	return n, true, err
}

// bodyEnd ends the attempt if err, of a read of the body, is not nil. It returns the error for the reader.
func (a *attempt) bodyEnd(err error) error {
	switch {
	case err == nil:
	case err == io.EOF:
		if a.trailer != nil {
			a.grpc = grpcStatusIn(*a.trailer, "")
		}
		if res := a.whole(); a.end(res) && a.trailer != nil && res.outcome() != OutcomeOK {
			a.correct(res)
		}
		if a.excused {
			exchangeFrom(a.client).excuse() // the body is read by the caller
		}
	default:
		stalled := a.clock.stalled()
		a.upstream.direct.failed(a.url.Host, err)
		err = a.bodyError(err)
		res := result{err: err, began: true, gone: leftEarly(a.client)}
		// Only an abort replaces the success that was counted for the header. A timeout does not: a stream
		// that exceeds the caller's own deadline is not a failure of the target, which answered in time. Nor
		// is an abort while the client has not sent its whole body.
		if a.end(res) && res.outcome() == OutcomeAborted && !stalled {
			a.correct(res)
			a.cut = res
		}
		err = fmt.Errorf("target %s: %w", a.member.URL.Redacted(), err)
	}
	return err
}

// Buffered returns how many bytes of the body Read returns without waiting, and -1 when that is not known.
func (a *attempt) Buffered() int {
	if b, ok := a.ReadCloser.(interface{ Buffered() int }); ok {
		return b.Buffered()
	}
	return -1
}

// whole returns the result of an attempt that has a response.
func (a *attempt) whole() result {
	if a.grpc == grpcDeadlineExceeded && a.clock.keptWaiting() {
		a.excused = true // also later, when the body of the request has been closed
	}
	return result{status: a.status, grpc: grpcCall{a.grpc, a.excused || a.within > 0}}
}

// correct records that a response which began well ended as res.
func (a *attempt) correct(res result) {
	a.circuit.correct(res.outcome(), res.forCircuit())
	a.upstream.pool.correctTraffic(a.member, res, a.standing)
}

// Close ends the attempt. Closing before the end of the body is the caller's choice and no failure. The
// attempt ends before the body is closed, because a Read under way, as on a switched connection, fails when
// the body is closed.
func (a *attempt) Close() error {
	res := a.whole()
	res.gone = leftEarly(a.client)
	a.end(res)
	return a.ReadCloser.Close()
}

// report records the outcome up to the response headers: with the circuit, the target's health and the
// histogram.
func (a *attempt) report(res result) {
	o := res.outcome()
	a.circuit.done(o, res.forCircuit())
	a.span.circuitMoved(&a.circuit)
	a.standing = a.upstream.pool.recordTraffic(a.member, res)
	if u := a.upstream; u.duration.Enabled(a.client) {
		u.duration.Record(a.span.context(a.client), time.Since(a.start).Seconds(), u.labels.Options(clientLabels{
			method:   telemetry.Method(cmp.Or(a.method, http.MethodGet)),
			upstream: u.name, target: a.member.URL, status: a.status, outcome: o,
		})...)
	}
}

// end releases what the attempt holds. Only the first call has an effect; end reports whether this was the
// first.
func (a *attempt) end(res result) bool {
	if !a.ended.CompareAndSwap(false, true) {
		return false
	}
	a.clock.release()
	if a.member == nil { // a panic before a target was picked
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

// Read returns an error other than io.EOF after silence, since both directions end then.
func (c *attemptConn) Read(p []byte) (int, error) {
	n, err := c.attempt.Read(p)
	if err == io.EOF {
		if cause := c.idle.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (c *attemptConn) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	if n > 0 {
		c.idle.sent()
	}
	return n, err
}

// clientLabels are the values by which http.client.request.duration is split.
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
