package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"
)

// errHedgeLost is the error of an attempt that was canceled because another target has answered.
var errHedgeLost = errors.New("gateway: another target answered first")

// answer is what an attempt returned.
type answer struct {
	res    *http.Response
	member *member // the target that the request was sent to; nil if none was picked
	err    error
}

// ask makes attempt n of r. If it is the first, a second attempt may run at the same time, after
// RetryOptions.HedgeAfter. In this case, other is the target whose answer is not used.
func (u *Upstream) ask(r *http.Request, body *replay, tried []*member, n int, call directCall) (a answer, other *member) {
	if n > 1 || !u.hedges(r) {
		a.res, a.member, a.err = u.attempt(r, body, tried, nil, call)
		return a, nil
	}
	return (&race{upstream: u, request: r, body: body, call: call}).run()
}

// hedges reports whether r may be sent to two targets at once.
func (u *Upstream) hedges(r *http.Request) bool {
	o := &u.opts.Retry
	return o.HedgeAfter > 0 && len(r.Header["Upgrade"]) == 0 && o.mayRepeat(r) && !u.isImpaired()
}

// isImpaired reports whether the pool should not get a request twice: a target is out, the circuit is not
// closed, or the pool has only one target.
func (u *Upstream) isImpaired() bool {
	if c := u.pool.choice(); len(c.members) < 2 || !c.all {
		return true
	}
	c := u.opts.Circuit
	return c != nil && c.State() != CircuitClosed
}

// race is the first attempt to send a request and, if HedgeAfter passes before it is answered, a second one
// at the same time.
//
// The first attempt runs on the caller's goroutine, so that a request which is answered in time costs a timer
// and no goroutine. The second runs on the timer's goroutine. run returns when both have ended, so no
// goroutine outlives the round trip.
type race struct {
	upstream *Upstream
	request  *http.Request
	body     *replay
	call     directCall
	first    lane
	second   lane

	mu        sync.Mutex
	over      bool          // an attempt has won, or the second may not begin any more
	secondWon bool          // the second attempt answered first
	begun     chan struct{} // nil until HedgeAfter has passed; closed when the second attempt has ended
	answer    answer        // of the second attempt; empty if it was not made
}

// run returns the answer to use and, if there were two attempts, the target of the other one.
func (x *race) run() (won answer, other *member) {
	timer := time.AfterFunc(x.upstream.opts.Retry.HedgeAfter, x.hedge)
	panicking := true
	defer func() {
		timer.Stop()
		if panicking {
			x.finish(true)
			discard(x.answer.res)
		}
	}()
	var a answer
	a.res, a.member, a.err = x.upstream.attempt(x.request, x.body, nil, &x.first, x.call)
	panicking = false
	timer.Stop()
	x.finish(x.usable(a))
	switch {
	case x.secondWon:
		if errors.Is(a.err, context.Canceled) {
			x.upstream.pool.recordOvertaken(a.member, x.upstream.opts.Timeout)
		}
		discard(a.res)
		return x.answer, a.member
	default:
		discard(x.answer.res)
		return a, x.answer.member
	}
}

// finish ends the race after the first attempt has ended. It cancels the second attempt if the first has won,
// and waits until the second has ended.
func (x *race) finish(firstWins bool) {
	x.mu.Lock()
	begun, over := x.begun, x.over
	if firstWins || begun == nil {
		x.over = true
	}
	x.mu.Unlock()
	if begun == nil {
		return
	}
	if firstWins && !over {
		x.second.lose()
	}
	<-begun
}

// usable reports whether a ends the race: it is a response that is not to be retried.
func (x *race) usable(a answer) bool {
	return a.err == nil && !slices.Contains(x.upstream.opts.Retry.Statuses, answeredStatus(x.request, a.res))
}

// hedge is called when the first attempt has not answered in time.
func (x *race) hedge() {
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		return
	}
	x.begun = make(chan struct{})
	x.mu.Unlock()
	defer close(x.begun)

	u := x.upstream
	asked := x.first.target()
	if asked == nil || x.request.Context().Err() != nil || u.isImpaired() {
		return
	}
	body, ok := x.body.whole()
	if !ok || !u.budget.Spend() {
		return
	}
	defer body.settle()
	a := x.attemptSafely(body, asked)
	wins := x.usable(a)
	x.mu.Lock()
	x.answer = a
	if wins && !x.over {
		x.over, x.secondWon = true, true
	}
	lost := x.secondWon
	x.mu.Unlock()
	if lost {
		x.first.lose()
	}
}

// attemptSafely makes the second attempt. A panic in a balancer or a transport becomes an error: on this
// goroutine, it would end the process.
func (x *race) attemptSafely(body *replay, asked *member) (a answer) {
	a.err = ErrBadGateway // remains if the transport calls runtime.Goexit
	defer func() {
		if p := recover(); p != nil {
			a.err = logPanic("a second attempt panicked", p, slog.String("upstream", x.upstream.name))
		}
	}()
	a.res, a.member, a.err = x.upstream.attempt(x.request, body, []*member{asked}, &x.second, x.call)
	return a
}

// discard closes the body of an answer that is not used.
func discard(res *http.Response) {
	if res != nil {
		res.Body.Close()
	}
}

// lane connects one attempt with its race, which may cancel it. A nil lane means that the attempt is not part
// of a race.
type lane struct {
	mu     sync.Mutex
	member *member                 // the attempt's target; nil until it was picked
	cancel context.CancelCauseFunc // nil until the target was picked
	lost   bool
}

// enter is called when the attempt has picked its target.
func (l *lane) enter(m *member, cancel context.CancelCauseFunc) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.member, l.cancel = m, cancel
	if l.lost {
		cancel(errHedgeLost)
	}
}

// target returns the attempt's target, or nil if none was picked yet.
func (l *lane) target() *member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.member
}

// lose cancels the attempt.
func (l *lane) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	if l.cancel != nil {
		l.cancel(errHedgeLost)
	}
}

// hasLost reports whether the attempt was canceled because the other one has answered. Such an attempt counts
// against no target.
func (l *lane) hasLost() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}
