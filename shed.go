package gateway

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/concurrency"
	"github.com/seed-96248d0c/gateway/internal/waitqueue"
)

// ShedOptions configures the limit and the queue of Shed. The zero value selects the defaults.
type ShedOptions struct {
	// Min and Max are the bounds of the number of requests that are served at the same time. 0 means 4 for
	// Min and 1000 for Max.
	Min, Max int

	// Queue is the longest time that a request waits in the queue. 0 means 50ms; negative means that no
	// request waits.
	Queue time.Duration

	// Priority returns the priority of a request. Waiting requests with the highest priority are served
	// first. When the queue is full, the request with the lowest priority is refused. Priority must be safe
	// for concurrent use. Nil means that all requests have the same priority and are served in the order of
	// their arrival.
	Priority func(*http.Request) int
}

// Shed limits the number of requests that a handler serves at the same time. It adapts the limit to what the
// handler can serve. A request above the limit waits in a short queue. If it waits too long, or the queue is
// full, it is answered with 503 and Retry-After. So under overload some requests are refused and the others
// are served in time. Without a limit, all requests wait until their clients give up.
//
// The limit follows from the ratio of two latencies: the current one, and the one without a queue in the
// backend (see Netflix's concurrency-limits and Envoy's adaptive concurrency). The latency is the time to the
// header of a successful answer, so a client that reads slowly has no effect. Refusals and quick failures
// have no effect either. About once in 30 round trips, the limit is cut to about half for a moment, to
// measure the latency without a queue again.
//
// Each handler that the Middleware wraps has its own limit. Use it for handlers whose requests cost about the
// same, such as the Proxy of one Upstream, and put it inside Auth and RateLimit. An upgraded connection
// counts until the protocol is switched.
//
// The queue has room for as many requests as the limit. A waiting request needs about 300 bytes, in addition
// to the memory of net/http for it. Shed panics when Min or Max is negative, and when Min is greater than
// Max.
func Shed(opts *ShedOptions) Middleware {
	var o ShedOptions
	if opts != nil {
		o = *opts
	}
	o.withDefaults()
	return func(next http.Handler) http.Handler {
		return &shed{opts: o, next: next, limit: concurrency.New(o.Min, o.Max)}
	}
}

func (o *ShedOptions) withDefaults() {
	if o.Min < 0 || o.Max < 0 {
		panic("gateway: Shed: Min and Max must not be negative")
	}
	if o.Max == 0 {
		o.Max = max(1000, o.Min)
	}
	if o.Min == 0 {
		o.Min = min(4, o.Max)
	}
	if o.Min > o.Max {
		panic("gateway: Shed: Min is greater than Max")
	}
	if o.Queue == 0 {
		o.Queue = 50 * time.Millisecond
	}
}

// shed is the handler that Shed makes.
type shed struct {
	opts ShedOptions
	next http.Handler

	mu      sync.Mutex
	limit   *concurrency.Limit
	running int
	waiting waitqueue.Queue[shedWaiter]
}

var errShed = fmt.Errorf("%w: too many requests at once", ErrOverloaded)

// shedRefusal is the answer to a request that Shed refuses.
var shedRefusal = &Error{
	Status: http.StatusServiceUnavailable,
	Type:   "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
	Title:  "Request cannot be satisfied due to temporary server capacity constraints",
	Err:    &limited{errShed, time.Second},
}

func (s *shed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	priority := 0
	if s.opts.Priority != nil {
		priority = s.opts.Priority(r)
	}
	epoch, ok := s.admit(r.Context(), priority)
	if !ok {
		if leftEarly(r.Context()) {
			WriteError(rw, r, context.Canceled)
			return
		}
		refuse(rw, r, shedRefusal)
		return
	}
	served := shedSlot{shed: s, ex: ex, w: rw, ctx: r.Context(), epoch: epoch, start: time.Now()}
	served.begin()
	defer served.end()
	s.next.ServeHTTP(rw, r)
}

// admit waits until the request may be served. It returns false if that takes too long, if the queue is full,
// or if the client leaves.
func (s *shed) admit(ctx context.Context, priority int) (epoch uint32, ok bool) {
	s.mu.Lock()
	if s.running < s.limit.Limit() {
		defer s.mu.Unlock()
		s.running++
		return s.limit.Started(s.running), true
	}
	if s.opts.Queue < 0 {
		s.mu.Unlock()
		return 0, false
	}
	if s.waiting.Len() >= s.limit.Limit() {
		last := s.waiting.Last()
		if last == nil || last.Priority >= priority {
			s.mu.Unlock()
			return 0, false
		}
		s.waiting.Remove(last)
		close(last.Value.done)
	}
	me := &waitqueue.Waiter[shedWaiter]{Priority: priority, Value: shedWaiter{done: make(chan struct{})}}
	s.waiting.Add(me)
	s.mu.Unlock()

	timeout := time.NewTimer(s.opts.Queue)
	defer timeout.Stop()
	select {
	case <-me.Value.done:
	case <-timeout.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if me.Waits() {
		s.waiting.Remove(me)
	}
	return me.Value.epoch, me.Value.admitted
}

// release is called when a request has ended. It admits as many waiting requests as the limit permits. The
// caller holds s.mu.
func (s *shed) release() {
	s.running--
	for s.running < s.limit.Limit() {
		first := s.waiting.First()
		if first == nil {
			return
		}
		s.waiting.Remove(first)
		s.running++
		first.Value.admitted, first.Value.epoch = true, s.limit.Started(s.running)
		close(first.Value.done)
	}
}

// shedSlot is a request that is being served.
type shedSlot struct {
	*shed
	ex    *exchange
	w     *responseWriter
	ctx   context.Context
	epoch uint32
	start time.Time

	noted    bool      // an outcome was noted before, because the request is in the Fallback of a Breaker
	outside  startHook // the writer's hook before this one; nil for none
	measured bool      // the latency was reported to the limit
	released bool      // the request no longer counts
}

func (s *shedSlot) begin() {
	s.ex.mu.Lock()
	s.noted = s.ex.noted
	s.ex.mu.Unlock()
	s.w.ex.mu.Lock()
	s.outside, s.w.starts = s.w.starts, s
	s.w.ex.mu.Unlock()
}

// starting implements startHook.
func (s *shedSlot) starting(status int) {
	if status < 400 && (s.noted || !s.ex.rejected()) {
		s.mu.Lock()
		s.measured = true
		s.limit.Ended(s.epoch, time.Since(s.start))
		if status == http.StatusSwitchingProtocols && !s.released {
			s.released = true
			s.release()
		}
		s.mu.Unlock()
	}
	if s.outside != nil {
		s.outside.starting(status)
	}
}

// end is deferred around the handler.
func (s *shedSlot) end() {
	panicked := recover()
	if panicked != nil {
		defer panic(panicked)
	}
	s.w.ex.mu.Lock()
	s.w.starts = s.outside
	s.w.ex.mu.Unlock()
	took := time.Since(s.start)
	outcome, status := s.ex.handlerOutcome(s.w, s.ctx, panicked, s.noted)

	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.measured {
		switch outcome {
		case OutcomeRejected, OutcomeUnavailable, OutcomeInternal:
		case OutcomeOK:
			if status < 400 {
				s.limit.Ended(s.epoch, took)
			}
		default: // a timeout, a failure, a client that left
			if s.limit.Slower(took) {
				s.limit.Ended(s.epoch, took)
			}
		}
	}
	if !s.released {
		s.release()
	}
}

// shedWaiter is a waiting request. shed.mu guards its fields.
type shedWaiter struct {
	done     chan struct{} // closed when the request no longer waits
	admitted bool
	epoch    uint32
}
