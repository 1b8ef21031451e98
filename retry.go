package gateway

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// RetryOptions say when a request is sent again. The zero value retries nothing. Only requests without a
// started response are retried, and only idempotent ones (RFC 9110 section 9.2.2) unless the connection
// failed before anything was sent; never an upgrade, never one whose client has left. A retry goes to
// another target when there is one.
//
// Apart from that, whatever these options say, an idempotent request that met a pooled connection which turned out
// dead is sent again on another, if its body, when it has one, is kept. To net/http's transport, which does that in
// part, a request with the field Idempotency-Key or X-Idempotency-Key is idempotent too.
type RetryOptions struct {
	Attempts     int           // in all; 0 or 1 means no retry
	Backoff      time.Duration // first pause, doubled with full jitter, at most 10s; 0 means 25ms, negative none
	Budget       float64       // retries as a share of requests; 0 means 0.2, with a floor of 3 a second; negative: the floor alone; at most 500 and 30 are saved up
	MaxBodyBytes int64         // bodies up to this are buffered for replay; 0 means 64 KiB, negative none
	Statuses     []int         // nil means 502, 503, 504; empty means none
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

// retryBudget keeps retries from multiplying the load of an upstream that is down already (after Finagle's).
type retryBudget struct {
	share float64

	mu     sync.Mutex
	earned float64 // by requests
	floor  float64 // by time
	last   time.Time
}

const (
	retryFloor  = 3   // a second, and what a new budget has
	floorSaved  = 30  // the most that is saved up of the floor: ten seconds
	earnedSaved = 500 // and of requests' shares
)

func newRetryBudget(share float64) *retryBudget {
	return &retryBudget{share: share, floor: retryFloor, last: time.Now()}
}

// request pays in for a request.
func (b *retryBudget) request() {
	if b.share <= 0 {
		return
	}
	b.mu.Lock()
	b.earned = min(earnedSaved, b.earned+b.share)
	b.mu.Unlock()
}

// spend takes a retry from the budget, if there is one.
func (b *retryBudget) spend() bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if gone := now.Sub(b.last); gone > 0 {
		b.floor = min(floorSaved, b.floor+gone.Seconds()*retryFloor)
		b.last = now
	}
	switch {
	case b.earned >= 1:
		b.earned--
	case b.floor >= 1:
		b.floor--
	default:
		return false
	}
	return true
}

// mayRetry reports whether r may be sent again after an attempt that ended with status, or with err.
func (u *Upstream) mayRetry(r *http.Request, body *replay, n, status int, err error) bool {
	o := &u.opts.Retry
	if n >= o.Attempts || r.Context().Err() != nil || len(r.Header["Upgrade"]) > 0 || !body.whole() {
		return false
	}
	unsent := false
	if err != nil {
		switch (result{err: err}).outcome() {
		case OutcomeTimeout, OutcomeUpstreamError:
		default:
			return false
		}
		unsent = neverSent(err)
	} else if !slices.Contains(o.Statuses, status) {
		return false
	}
	if !unsent && !isIdempotent(r.Method) {
		return false
	}
	if c := u.opts.Circuit; c != nil && c.State() == CircuitOpen {
		return false // what is known is how the upstream failed, which its refusal would hide
	}
	// What was never sent has cost the upstream nothing.
	return unsent || u.budget.spend()
}

// pause waits before the retry that follows attempt n, and reports whether the client is still there.
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

// neverSent reports whether err struck before a byte of the request went out.
func neverSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// isIdempotent reports whether a request with this method may be made twice (RFC 9110 section 9.2.2, and
// QUERY).
func isIdempotent(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "QUERY":
		return true
	}
	return false
}

// replay keeps the beginning of a request's body while no response has come, so that it can be sent again.
// A nil replay is that of a request without body.
type replay struct {
	source  io.ReadCloser
	limit   int64
	trailer http.Header // of the request; source's last read fills it
	names   []string    // those that it had before

	reading sync.Mutex // held while source is read, which may take as long as the client likes

	mu      sync.Mutex
	kept    []byte // all that was read, unless lost
	lost    bool   // too much was read to be kept, or it is no longer needed
	err     error  // how source ended
	current *replayView
	done    bool // there will be no other view
}

// newReplay returns nil for a request without body.
func newReplay(r *http.Request, limit int64) *replay {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &replay{source: r.Body, limit: limit, lost: limit <= 0, trailer: r.Trailer}
	for name := range r.Trailer {
		b.names = append(b.names, name)
	}
	return b
}

// whole reports whether the body can be sent again.
func (b *replay) whole() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return (!b.lost || b.current == nil) && (b.err == nil || b.err == io.EOF)
}

// attach makes out's body a view from the beginning. Its trailers are a map of its own: what still sends the
// request for an attempt before may look at that one's.
func (b *replay) attach(out *http.Request) error {
	if b.trailer != nil {
		out.Trailer = make(http.Header, len(b.names))
		for _, name := range b.names {
			out.Trailer[name] = nil
		}
	}
	trailer := out.Trailer
	out.GetBody = func() (io.ReadCloser, error) { return b.view(trailer) }
	view, err := b.view(trailer)
	if err == nil {
		out.Body = view
	}
	return err
}

// view returns the body from its beginning, with the map for its trailers, and ends the view before it.
func (b *replay) view(trailer http.Header) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil {
		if b.lost || b.done {
			return nil, errors.New("gateway: the request's body is not kept")
		}
		b.current.ended = true
	}
	b.current = &replayView{of: b, trailer: trailer}
	return b.current, nil
}

// settle says that no other view is needed.
func (b *replay) settle() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.done = true
	if b.current == nil || b.current.at == len(b.kept) {
		b.lost, b.kept = true, nil
		if b.current != nil {
			b.current.at = 0 // a read that the view before it began may still bring something
		}
	}
	closed := b.current == nil || b.current.ended
	b.mu.Unlock()
	if closed {
		b.source.Close()
	}
}

// replayView is the body as one attempt reads it.
type replayView struct {
	of      *replay
	trailer http.Header // takes its values at the end
	at      int         // how much of what is kept was read
	ended   bool        // closed, or another view has begun
}

// end fills in the trailers, which have come with the end of the source. The caller holds of.mu.
func (v *replayView) end() {
	if v.ended || v.of.err != io.EOF || v.trailer == nil {
		return
	}
	for name, values := range v.of.trailer {
		if len(values) > 0 {
			v.trailer[name] = values
		}
	}
}

// again serves a read from what is kept, and reports whether there was something to say. The caller holds
// of.mu.
func (v *replayView) again(p []byte) (n int, err error, ok bool) {
	b := v.of
	switch {
	case v.ended:
		return 0, errBodyClosed, true
	case v.at < len(b.kept):
		n = copy(p, b.kept[v.at:])
		v.at += n
		return n, nil, true
	case b.err != nil:
		v.end()
		return 0, b.err, true
	}
	return 0, nil, false
}

func (v *replayView) Read(p []byte) (int, error) {
	b := v.of
	b.mu.Lock()
	n, err, ok := v.again(p)
	b.mu.Unlock()
	if ok {
		return n, err
	}
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	n, err, ok = v.again(p) // the view before this one may have read meanwhile
	b.mu.Unlock()
	if ok {
		return n, err
	}
	n, err = b.source.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	stale := b.current != v // its bytes are another's
	switch {
	case stale, !b.lost && !b.done && int64(len(b.kept)+n) <= b.limit:
		b.kept = append(b.kept, p[:n]...)
		v.at = len(b.kept)
	default:
		b.lost, b.kept = true, nil
		v.at = 0
	}
	if !stale {
		v.end()
	}
	return n, err
}

// Close closes the client's body only when no other view will need it.
func (v *replayView) Close() error {
	b := v.of
	b.mu.Lock()
	was := v.ended
	v.ended = true
	over := b.done && b.current == v && !was
	b.mu.Unlock()
	if over {
		return b.source.Close()
	}
	return nil
}
