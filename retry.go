package gateway

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
	"github.com/seed-96248d0c/gateway/internal/neterror"
)

// RetryOptions configures when an Upstream sends a request again. The zero value means no retries.
//
// A request is retried only while the client has received nothing of a response, and only if its method is
// idempotent (RFC 9110 section 9.2.2) or the connection failed before anything was sent. An upgrade is never
// retried, and neither is a request whose client has left. A retry prefers targets that the request has not
// been sent to, even ejected ones.
//
// One kind of request is sent again with any options: an idempotent request whose idle connection turns out
// to be closed is sent again on another connection, if its body is empty or buffered. http.Transport itself
// does this for some requests. It treats a request with the field Idempotency-Key or X-Idempotency-Key as
// idempotent as well.
type RetryOptions struct {
	Attempts int           // number of attempts, including the first; 0 or 1 means no retry
	Backoff  time.Duration // longest pause before the first retry, doubled for each further one up to 10s; the pause is random (full jitter); 0 means 25ms, negative none

	// Budget limits the retries of the Upstream to a share of its requests. 0 means 0.2, negative means 0. In
	// addition, 3 retries a second are allowed, independent of the number of requests. Unused retries are
	// saved: at most 500 of the share, and 30 of the 3 a second. A retry is not charged if the request was
	// never sent because no connection could be made.
	Budget float64

	MaxBodyBytes int64 // largest request body that is buffered, so that it can be sent again; 0 means 64 KiB, negative none
	Statuses     []int // statuses of responses after which a request is retried; nil means 502, 503 and 504, empty means none

	// HedgeAfter is the time after which the request is also sent to a second target, if the first has not
	// begun to answer. The first response that is not to be retried is used, and the other attempt is
	// canceled. The canceled attempt has OutcomeClientCanceled, which counts against no target, unless its
	// target answers nothing at all (see HealthOptions). If one of the two fails, RoundTrip waits for the
	// other, as for a retry. Informational responses of both are passed on. 0 means never. Choose about the
	// 95th percentile of the time to the response header: then one request in twenty is sent twice, and very
	// slow answers are rare (Dean and Barroso, The Tail at Scale, 2013).
	//
	// The second attempt counts as one of Attempts, which must be at least 2, and is charged to Budget as a
	// retry is. It is made only if all of this holds: the request may be sent twice, its body has been sent
	// completely, no target is out (see HealthOptions), and the circuit is closed. Retries are not hedged.
	// The second attempt runs on a goroutine that ends before RoundTrip returns, so Transport must return
	// when the context of a request ends.
	HedgeAfter time.Duration

	// GRPC declares that the gRPC methods of this upstream may be called twice. gRPC calls are POST requests,
	// which are otherwise retried only if nothing was sent. A response without messages (Trailers-Only) is
	// retried if Statuses has the HTTP status that corresponds to its gRPC status, such as 503 for
	// UNAVAILABLE; see Outcome. A response with messages is never retried.
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

// mayRetry reports whether r may be sent again after attempt n, which ended with a response of that status or
// with err. It charges the retry to the budget.
func (u *Upstream) mayRetry(r *http.Request, body *replay, n, status int, err error) bool {
	o := &u.opts.Retry
	if n >= o.Attempts || r.Context().Err() != nil || len(r.Header["Upgrade"]) > 0 || !body.resendable() {
		return false
	}
	unsent := false
	if err != nil {
		if !mayBeTargets(err) {
			return false
		}
		unsent = neterror.Unsent(err)
	} else if !slices.Contains(o.Statuses, status) {
		return false
	}
	if !unsent && !o.mayRepeat(r) {
		return false
	}
	if c := u.opts.Circuit; c != nil && c.State() == CircuitOpen {
		return false // the circuit would refuse the retry, and the client would get that refusal as the error
	}
	// A request that was never sent cost the upstream nothing, so its retry is not charged.
	return unsent || u.budget.Spend()
}

// mayRepeat reports whether r may be sent to a target twice.
func (o *RetryOptions) mayRepeat(r *http.Request) bool {
	return isIdempotent(r.Method) || o.GRPC && grpcmeta.Is(r.Header)
}

// pause waits before the retry that follows attempt n. If ctx ends first, it returns false at once.
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

// isIdempotent reports whether a request with this method may be sent twice: the methods of RFC 9110 section
// 9.2.2, and QUERY.
func isIdempotent(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "QUERY":
		return true
	}
	return false
}
