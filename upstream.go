package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Target is one server of an Upstream. Its URL may have a path, which goes before the request's.
type Target struct {
	URL    *url.URL // scheme http, https or h2c
	Weight int      // 0 means 1
}

// ParseTargets makes a target of each URL, such as "http://10.0.0.1:8080". It refuses a URL without host,
// of another scheme than http, https and h2c, or with user, query or fragment.
func ParseTargets(rawURLs ...string) ([]Target, error) {
	targets := make([]Target, 0, len(rawURLs))
	for _, raw := range rawURLs {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("gateway: ParseTargets: %w", err)
		}
		if err := checkTarget(u); err != nil {
			return nil, fmt.Errorf("gateway: ParseTargets: %w", err)
		}
		targets = append(targets, Target{URL: u})
	}
	return targets, nil
}

// MustTargets is ParseTargets for URLs that are part of the program; it panics instead.
func MustTargets(rawURLs ...string) []Target {
	targets, err := ParseTargets(rawURLs...)
	if err != nil {
		panic(err.Error())
	}
	return targets
}

func checkTarget(u *url.URL) error {
	switch {
	case u == nil:
		return errors.New("target without URL")
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "h2c":
		return fmt.Errorf("target %q: scheme must be http, https or h2c", u.Redacted())
	case u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("target %q: no host", u.Redacted())
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("target %q: user, query and fragment have no place in a target", u.Redacted())
	}
	return nil
}

// Balancer picks a target. Pick is called with healthy targets only, at least one, and must be safe for
// concurrent use. done is called once, when the exchange ends; it may be nil.
type Balancer interface {
	Pick(r *http.Request, targets []Target) (index int, done func(Outcome))
}

// UpstreamOptions say how an Upstream chooses and waits.
type UpstreamOptions struct {
	Balancer  Balancer          // nil: LeastPending
	Transport http.RoundTripper // nil: NewTransport(nil), shared by the process
	Timeout   time.Duration     // to response headers, each try; 0 means 30s, negative none
	Circuit   *Circuit          // nil: none
}

// Upstream is a RoundTripper over its targets. It is safe for concurrent use.
//
// The errors of RoundTrip can be told apart with errors.Is: ErrNoTarget, ErrCircuitOpen, ErrTimeout,
// ErrBodyTooLarge, context.Canceled, and ErrBadGateway for all else.
type Upstream struct {
	name    string
	opts    UpstreamOptions
	targets []Target
}

// NewUpstream returns an Upstream of targets. Its name is for logs and metrics. It panics when a target's
// URL is not one that ParseTargets takes, or its Weight is negative. Without targets every request gets
// ErrNoTarget.
func NewUpstream(name string, targets []Target, opts *UpstreamOptions) *Upstream {
	u := &Upstream{name: name}
	if opts != nil {
		u.opts = *opts
	}
	if u.opts.Balancer == nil {
		u.opts.Balancer = LeastPending()
	}
	if u.opts.Transport == nil {
		u.opts.Transport = defaultTransport()
	}
	if u.opts.Timeout == 0 {
		u.opts.Timeout = 30 * time.Second
	}
	u.targets = make([]Target, len(targets))
	for i, t := range targets {
		if err := checkTarget(t.URL); err != nil {
			panic("gateway: NewUpstream: " + err.Error())
		}
		if t.Weight < 0 {
			panic("gateway: NewUpstream: negative weight")
		}
		own := *t.URL
		u.targets[i] = Target{URL: &own, Weight: max(1, t.Weight)}
	}
	return u
}

// Name returns the name given to NewUpstream.
func (u *Upstream) Name() string { return u.name }

// RoundTrip sends r to one of the targets: r's URL needs only path and query; an empty r.Host becomes the
// target's. Whoever gets a response must close its Body: until then the request counts as pending.
func (u *Upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	out := *r
	link := *r.URL
	out.URL = &link
	return u.send(&out)
}

// send is RoundTrip for a request that it may change.
func (u *Upstream) send(r *http.Request) (*http.Response, error) {
	if len(u.targets) == 0 {
		closeBody(r)
		return nil, fmt.Errorf("%w: upstream %s", ErrNoTarget, u.name)
	}
	t := &attempt{}
	if c := u.opts.Circuit; c != nil {
		var err error
		if t.circuit, err = c.allow(); err != nil {
			closeBody(r)
			return nil, err
		}
	}
	// A panic in a balancer or a transport leaves nothing pending.
	defer func() {
		if !t.answered {
			t.end(OutcomeInternal, 0)
		}
	}()

	i, done := u.opts.Balancer.Pick(r, u.targets)
	t.picked = done
	target := u.targets[i].URL
	r.URL.Scheme, r.URL.Host = target.Scheme, target.Host
	if target.Path != "" && target.Path != "/" {
		joinPath(r.URL, target)
	}

	t.client = r.Context()
	if d := u.opts.Timeout; d > 0 {
		ctx, cancel := context.WithCancelCause(t.client)
		t.cancel = cancel
		t.timer = time.AfterFunc(d, func() { cancel(ErrTimeout) })
		r = r.WithContext(ctx)
	}
	res, err := u.opts.Transport.RoundTrip(r)
	if t.timer != nil && !t.timer.Stop() && err == nil && context.Cause(r.Context()) == ErrTimeout {
		// The time ran out just as the headers came: the body is cancelled already.
		res.Body.Close()
		res, err = nil, ErrTimeout
	}
	if err != nil {
		err = attemptError(r, err)
		t.end(ending{err: err, gone: leftEarly(t.client)}.outcome(), 0)
		return nil, err
	}
	t.answer(res)
	return res, nil
}

// attempt is one try at one target.
type attempt struct {
	io.ReadCloser // the response's body

	client   context.Context // ends when the one who asked leaves
	timer    *time.Timer
	cancel   context.CancelCauseFunc
	circuit  ticket
	picked   func(Outcome)
	status   int
	answered bool
	ended    atomic.Bool
}

// answer takes the response's body over, so that the attempt ends with it.
func (t *attempt) answer(res *http.Response) {
	t.answered = true
	t.status = res.StatusCode
	t.circuit.done(ending{status: t.status}.outcome(), t.status)
	t.ReadCloser = res.Body
	if conn, ok := res.Body.(io.ReadWriteCloser); ok {
		res.Body = &attemptConn{attempt: t, conn: conn} // switched protocols
	} else {
		res.Body = t
	}
}

// Read ends the attempt with the body, well or badly.
func (t *attempt) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		t.end(ending{status: t.status}.outcome(), t.status)
	default:
		o := ending{err: err, began: true, gone: leftEarly(t.client)}.outcome()
		if t.end(o, t.status) && o == OutcomeAborted {
			t.circuit.done(o, t.status)
		}
	}
	return n, err
}

// Close before the end is the caller's choice and nobody's failure.
func (t *attempt) Close() error {
	err := t.ReadCloser.Close()
	t.end(ending{status: t.status, gone: leftEarly(t.client)}.outcome(), t.status)
	return err
}

// end tells everybody, once, and reports whether this was the time.
func (t *attempt) end(o Outcome, status int) bool {
	if !t.ended.CompareAndSwap(false, true) {
		return false
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.cancel != nil {
		t.cancel(nil)
	}
	if !t.answered {
		t.circuit.done(o, status)
	}
	if t.picked != nil {
		t.picked(o)
	}
	return true
}

// attemptConn is the body of a 101: a connection both ways.
type attemptConn struct {
	*attempt
	conn io.ReadWriteCloser
}

func (c *attemptConn) Write(p []byte) (int, error) { return c.conn.Write(p) }

// leftEarly reports whether the one who asked has gone, rather than run out of time.
func leftEarly(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.Canceled)
}

// attemptError says in this package's words why a round trip of r failed.
func attemptError(r *http.Request, err error) error {
	var tooLarge *http.MaxBytesError
	var slow net.Error
	var own *Error
	switch ctx := r.Context(); {
	case errors.Is(err, ErrBodyTooLarge), errors.Is(err, ErrTimeout), errors.Is(err, ErrBadGateway),
		errors.Is(err, ErrNoTarget), errors.Is(err, ErrCircuitOpen), errors.As(err, &own):
		return err // said already
	case errors.As(err, &tooLarge):
		return fmt.Errorf("%w: %w", ErrBodyTooLarge, err)
	case context.Cause(ctx) == ErrTimeout, ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%w: %w", ErrTimeout, hideCanceled{err})
	case leftEarly(ctx):
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return fmt.Errorf("%w: %w", ErrBadGateway, err)
}

// hideCanceled keeps an error's text and not what it wraps: a transport whose time ran out speaks of a
// cancelled context, and nobody cancelled.
type hideCanceled struct{ err error }

func (h hideCanceled) Error() string { return h.err.Error() }

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// joinPath puts the target's path before u's, with one slash between them, and keeps both escapings.
func joinPath(u, target *url.URL) {
	base, rest := target.EscapedPath(), u.EscapedPath()
	u.Path = joinSlash(target.Path, u.Path)
	u.RawPath = joinSlash(base, rest)
}

func joinSlash(base, rest string) string {
	return strings.TrimSuffix(base, "/") + "/" + strings.TrimPrefix(rest, "/")
}

// RoundRobin picks the targets in turn, by weight, with the turns of a heavy one spread over the round
// (the smooth weighted round-robin of nginx). It keeps 100 bytes a target.
func RoundRobin() Balancer { return &roundRobin{} }

type roundRobin struct {
	mu     sync.Mutex
	credit map[*url.URL]int // what each target has saved up
}

func (b *roundRobin) Pick(_ *http.Request, targets []Target) (int, func(Outcome)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.credit == nil || len(b.credit) > 2*len(targets)+64 {
		b.credit = make(map[*url.URL]int, len(targets)) // forget targets that are gone
	}
	best, most, total := 0, 0, 0
	for i, t := range targets {
		weight := max(1, t.Weight)
		total += weight
		credit := b.credit[t.URL] + weight
		b.credit[t.URL] = credit
		if i == 0 || credit > most {
			best, most = i, credit
		}
	}
	b.credit[targets[best].URL] -= total
	return best, nil
}

// LeastPending picks two targets by chance and of these the one with fewer requests in flight for its
// weight (the power of two choices; Mitzenmacher, IEEE TPDS 12(10), 2001). It keeps 200 bytes a target.
func LeastPending() Balancer { return &leastPending{} }

type leastPending struct {
	loads sync.Map // *url.URL to *load
	known atomic.Int64
}

// load is what one target has in flight.
type load struct {
	pending atomic.Int64
	done    func(Outcome) // made once, not once a request
}

func (b *leastPending) Pick(_ *http.Request, targets []Target) (int, func(Outcome)) {
	i := byWeight(targets)
	l := b.load(targets, i)
	if n := len(targets); n > 1 {
		j := byWeight(targets)
		if j == i {
			j = (i + 1 + rand.IntN(n-1)) % n
		}
		other := b.load(targets, j)
		// Compares pending/weight without dividing. At rest the first choice stands, and it was by weight.
		if other.pending.Load()*int64(max(1, targets[i].Weight)) < l.pending.Load()*int64(max(1, targets[j].Weight)) {
			i, l = j, other
		}
	}
	l.pending.Add(1)
	return i, l.done
}

// byWeight picks a target by chance, each as often as its weight says.
func byWeight(targets []Target) int {
	total := 0
	for _, t := range targets {
		total += max(1, t.Weight)
	}
	n := rand.IntN(total)
	for i, t := range targets {
		if n -= max(1, t.Weight); n < 0 {
			return i
		}
	}
	return 0
}

func (b *leastPending) load(targets []Target, i int) *load {
	if l, ok := b.loads.Load(targets[i].URL); ok {
		return l.(*load)
	}
	if b.known.Load() > int64(2*len(targets)+64) {
		b.forget(targets)
	}
	l := &load{}
	l.done = func(Outcome) { l.pending.Add(-1) }
	if stands, ok := b.loads.LoadOrStore(targets[i].URL, l); ok {
		return stands.(*load)
	}
	b.known.Add(1)
	return l
}

// forget drops targets that are gone.
func (b *leastPending) forget(targets []Target) {
	stay := make(map[*url.URL]bool, len(targets))
	for _, t := range targets {
		stay[t.URL] = true
	}
	b.loads.Range(func(key, _ any) bool {
		if !stay[key.(*url.URL)] {
			b.loads.Delete(key)
			b.known.Add(-1)
		}
		return true
	})
}
