package gateway

import (
	"context"
	"errors"
	"math"
	"net/http"
	"time"
)

// Usage is what a request has used, for RateLimitOptions.Settle.
type Usage struct {
	Outcome Outcome       // outcome of the handler inside RateLimit
	Status  int           // status of the answer; 499 when the client left first
	Bytes   int64         // bytes of the answer's body, or of an upgraded connection, that were sent to the client
	Took    time.Duration // time from the admission to the end
	Units   int64         // units reported by AddUnits and UnitsFrom, inside RateLimit
}

// AddUnits adds n to the Usage.Units that every RateLimit around the handler passes to Settle. Units are, for
// example, the tokens of an answer. A handler calls AddUnits with the context of its request before it
// returns, once or several times. Units of a part of an Aggregate count for the whole request. AddUnits does
// nothing if n is below 1 or ctx is not that of a request. It is safe for concurrent use.
//
//	gateway.AddUnits(r.Context(), int64(answer.Usage.TotalTokens))
func AddUnits(ctx context.Context, n int64) {
	if n < 1 {
		return
	}
	for ex := exchangeFrom(ctx); ex != nil; {
		ex.mu.Lock()
		if ex.units > math.MaxInt64-n {
			ex.units = math.MaxInt64
		} else {
			ex.units += n
		}
		outer := ex.outer
		ex.mu.Unlock()
		ex = outer
	}
}

// settler is a Limiter that RateLimitOptions.Settle can be used with.
type settler interface {
	Limiter
	Returner
	Debtor
}

var errNoSettler = errors.New("gateway: RateLimit: Settle needs a Limiter that is a Returner and a Debtor")

// settlement settles the cost of one request when the inner handler has ended.
type settlement struct {
	h *rateLimit
	charge
	ex    *exchange
	w     *responseWriter
	r     *http.Request
	start time.Time

	noted bool  // an outcome was noted before, because the request is in the Fallback of a Breaker
	units int64 // units that were reported before
}

func (s *settlement) begin(ex *exchange, w *responseWriter, r *http.Request) {
	s.ex, s.w, s.r, s.start = ex, w, r, time.Now()
	ex.mu.Lock()
	s.noted, s.units = ex.noted, ex.units
	ex.mu.Unlock()
}

// end is deferred around the handler. It is the only place that settles, so each request is settled once.
func (s *settlement) end() {
	panicked := recover()
	if panicked != nil {
		defer panic(panicked) // raised again after the settlement, even if Settle panics
	}
	used := s.used(panicked)
	actual := max(0, s.h.opts.Settle(s.r, used))
	if s.h.opts.Refund && !s.noted && isRefused(used.Outcome) {
		actual = 0
	}
	ctx := context.WithoutCancel(s.r.Context()) // the client may have left
	limiter := s.limiter.(settler)
	var err error
	switch {
	case actual < s.cost:
		err = limiter.Return(ctx, s.key, s.cost-actual, s.Decision)
	case actual > s.cost:
		err = limiter.Owe(ctx, s.key, actual-s.cost)
	}
	if err != nil {
		s.ex.remark("ratelimit "+s.h.opts.Name+": not settled", err)
	}
}

// used returns the Usage of the request.
func (s *settlement) used(panicked any) Usage {
	u := Usage{Took: time.Since(s.start)}
	u.Outcome, u.Status = s.ex.handlerOutcome(s.w, s.r.Context(), panicked, s.noted)
	s.w.ex.mu.Lock()
	u.Bytes = s.w.written
	s.w.ex.mu.Unlock()
	s.ex.mu.Lock()
	defer s.ex.mu.Unlock()
	u.Units = s.ex.units - s.units
	if t := s.ex.tunnel; t != nil {
		u.Bytes += t.sent
	}
	return u
}

// handlerOutcome returns the outcome and the status of a handler that was called with w and ctx. panicked is
// what recover returned. before is true if an outcome had been noted before the handler was called.
func (ex *exchange) handlerOutcome(w *responseWriter, ctx context.Context, panicked any, before bool) (Outcome, int) {
	left := ctx.Err()
	w.ex.mu.Lock()
	res := w.result(left, panicked)
	w.ex.mu.Unlock()
	o := res.outcome()
	ex.mu.Lock()
	if ex.noted && !before {
		o = ex.outcome
	}
	ex.mu.Unlock()
	if o == OutcomeClientCanceled {
		return o, statusClientClosed
	}
	return o, res.status
}
