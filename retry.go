package gateway

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// RetryOptions configures when an Upstream sends a request again. The zero value retries nothing.
//
// A request is retried only while no response has started, and only if its method is idempotent (RFC 9110
// section 9.2.2) or the connection failed before anything was sent. An upgrade is never retried, and neither
// is a request whose client has left. A retry goes to a target that was not asked yet, when there is one, even if
// that target is ejected.
//
// One kind of resending does not depend on these options. An idempotent request that met a dead connection
// from the pool is sent again on another one, provided that its body, if any, was kept. net/http's transport
// does a part of this. To that transport, a request with the field Idempotency-Key or X-Idempotency-Key is
// idempotent too.
type RetryOptions struct {
	Attempts int           // in all; 0 or 1 means no retry
	Backoff  time.Duration // first pause; doubles up to 10s, with full jitter; 0 means 25ms, negative none

	// Budget is the number of retries as a share of requests. 0 means 0.2, negative means 0. A floor of 3
	// retries a second comes on top. At most 500 retries of the share and 30 of the floor are saved up.
	Budget float64

	MaxBodyBytes int64 // bodies up to this are buffered for replay; 0 means 64 KiB, negative none
	Statuses     []int // responses to retry; nil means 502, 503 and 504, empty means none

	// HedgeAfter asks a second target when the first has not begun to answer after this time. The first response wins
	// that is not to be retried. The other attempt is canceled and counts against nobody: its outcome is
	// OutcomeClientCanceled. 0 means never. Choose about the 95th percentile of the time to the response headers: then
	// one request in twenty is sent twice, and the slowest answers are hardly ever seen (Dean and Barroso, The Tail at
	// Scale, 2013).
	//
	// The second attempt is one of Attempts, which must be at least 2, and it is spent from Budget as a retry is. It is
	// not made for a request that may not be sent twice, or whose body has not been sent whole by then, nor while the
	// pool is sick: while a target is out, or the circuit is not closed. It runs on a goroutine that ends before
	// RoundTrip returns, so the transport must heed the end of a request's context.
	HedgeAfter time.Duration

	// GRPC declares that this upstream's gRPC methods may be called twice. The calls are POSTs, which are otherwise
	// retried only when nothing was sent. A response without messages (Trailers-Only) is retried by the HTTP status that
	// corresponds to its gRPC status (see Outcome): UNAVAILABLE as 503. One that has begun is not retried.
	GRPC bool
}

const maxBackoff = 10 * time.Second

func (o RetryOptions) withDefaults() RetryOptions {
	if o.Backoff == 0 {
		o.Backoff = 25 * time.Millisecond
	}
	if o.Budget == 0 {
		o.Budget = 0.2
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 64 << 10
	}
	if o.Statuses == nil {
		o.Statuses = []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	} else {
		o.Statuses = slices.Clone(o.Statuses)
	}
	return o
}

// retryBudget keeps retries from multiplying the load of an upstream that is already down. It follows the
// retry budget of Twitter's Finagle.
type retryBudget struct {
	share float64
	floor *rate.Limiter // retries earned by the passing of time

	mu     sync.Mutex
	earned float64 // retries earned by requests
}

const (
	retryFloor  = 3   // retries a second; a new budget starts with as many
	floorSaved  = 30  // most retries saved up of the floor: ten seconds' worth
	earnedSaved = 500 // most retries saved up of the requests' share
)

func newRetryBudget(share float64) *retryBudget {
	b := &retryBudget{share: share, floor: rate.NewLimiter(retryFloor, floorSaved)}
	b.floor.AllowN(time.Now(), floorSaved-retryFloor) // a limiter starts full
	return b
}

// request adds the share of one request.
func (b *retryBudget) request() {
	if b.share <= 0 {
		return
	}
	b.mu.Lock()
	b.earned = min(earnedSaved, b.earned+b.share)
	b.mu.Unlock()
}

// spend takes one retry from the budget and reports whether there was one.
func (b *retryBudget) spend() bool {
	b.mu.Lock()
	earned := b.earned >= 1
	if earned {
		b.earned--
	}
	b.mu.Unlock()
	return earned || b.floor.Allow()
}

// mayRetry reports whether r may be sent again after attempt n, which ended with a response of this status or
// with err.
func (u *Upstream) mayRetry(r *http.Request, body *replay, n, status int, err error) bool {
	o := &u.opts.Retry
	if n >= o.Attempts || r.Context().Err() != nil || len(r.Header["Upgrade"]) > 0 || !body.resendable() {
		return false
	}
	unsent := false
	if err != nil {
		switch (result{err: err}).outcome() {
		case OutcomeTimeout, OutcomeUpstreamError:
		default:
			// A target that broke off while the client was slow may also just have died.
			if !errors.Is(err, errSlowClient) || !errors.Is(err, ErrBadGateway) {
				return false
			}
		}
		unsent = neverSent(err)
	} else if !slices.Contains(o.Statuses, status) {
		return false
	}
	if !unsent && !o.mayRepeat(r) {
		return false
	}
	if c := u.opts.Circuit; c != nil && c.State() == CircuitOpen {
		return false // the retry would be refused, and that would hide how the upstream failed
	}
	// A request that was never sent cost the upstream nothing, so it costs no budget.
	return unsent || u.budget.spend()
}

// mayRepeat reports whether a target may get r twice.
func (o *RetryOptions) mayRepeat(r *http.Request) bool {
	return isIdempotent(r.Method) || o.GRPC && isGRPC(r.Header)
}

// pause waits before the retry that follows attempt n. It returns early, with false, when ctx ends.
func (o *RetryOptions) pause(ctx context.Context, n int) bool {
	if o.Backoff < 0 {
		return ctx.Err() == nil
	}
	longest := o.Backoff
	for ; n > 1 && longest < maxBackoff; n-- {
		longest *= 2
	}
	t := time.NewTimer(rand.N(min(longest, maxBackoff) + 1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// neverSent reports whether err occurred before a byte of the request was sent.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// isIdempotent reports whether a request with this method may be sent twice: the methods of RFC 9110 section
// 9.2.2, and QUERY.
func isIdempotent(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "QUERY":
		return true
	}
	return false
}
