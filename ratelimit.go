package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// Decision is a limiter's answer.
type Decision struct {
	OK               bool
	Limit, Remaining int
	Window           time.Duration // that Limit refers to; a bucket's is burst over rate, rounded up to seconds
	Wait             time.Duration // OK, but only after this pause: a leaky bucket's slot
	RetryAfter       time.Duration // when !OK: the earliest time that this same cost could pass; 0: never
	ResetAfter       time.Duration // until the key is as new
	Ref              int64         // the limiter's own mark, for Return
}

// Limiter spends n units of key's allowance in one atomic step. n is at least 1. It must be safe for
// concurrent use and may block on the network, within ctx. An error means that it could not decide;
// nothing was taken then.
type Limiter interface {
	Take(ctx context.Context, key string, n int) (Decision, error)
}

// Returner is a Limiter that can take units back: from a caller who left a leaky bucket's queue, or whom a
// later limiter refused. A leaky slot goes back only while it is the last, a window's unit only within its
// window. key, n and d are those of the Take; what is given back twice is given twice.
type Returner interface {
	Return(ctx context.Context, key string, n int, d Decision) error
}

// KeyFunc names the one who pays. It must be safe for concurrent use. An *Error that it returns is
// answered with its own status, a condition such as ErrUnauthenticated with its status, anything else with
// 500.
type KeyFunc func(*http.Request) (string, error)

// KeyByIP is the client's address, as ClientAddr has it: an IPv4 address, or the /64 of an IPv6 one, as
// one household or host has at least that. All requests without an address, such as those from a Unix
// socket, share the key "-": put TrustProxies outside where a proxy talks over one.
func KeyByIP(r *http.Request) (string, error) {
	a := ClientAddr(r)
	var buf [48]byte
	switch {
	case !a.IsValid():
		return "-", nil
	case a.Is4():
		return string(a.AppendTo(buf[:0])), nil
	}
	p, err := a.Prefix(64)
	if err != nil {
		return "", err
	}
	return string(p.AppendTo(buf[:0])), nil
}

// KeyBySubject is the caller's issuer and subject, joined as by Keys: a subject is one only together with
// its issuer. Without an Identity it returns ErrUnauthenticated, which answers 401: put Auth outside.
func KeyBySubject(r *http.Request) (string, error) {
	id, ok := IdentityFrom(r.Context())
	if !ok {
		return "", errNoSubject
	}
	var b strings.Builder
	b.Grow(len(id.Issuer) + len(id.Subject) + 8)
	joinKey(&b, id.Issuer)
	joinKey(&b, id.Subject)
	return b.String(), nil
}

var errNoSubject = fmt.Errorf("%w: KeyBySubject finds nobody; Auth must stand outside", ErrUnauthenticated)

// KeyByHeader is the value of one request field, such as an API key's or Host's. Where it is absent, empty
// or there more than once, the request is answered with 400. A client can send what it likes in a field that
// no one checks, so limit by address as well. It panics when name is empty.
func KeyByHeader(name string) KeyFunc {
	if name == "" {
		panic("gateway: KeyByHeader: empty name")
	}
	name = http.CanonicalHeaderKey(name)
	missing := &Error{
		Status: http.StatusBadRequest,
		Detail: "the field " + name + " is needed, once",
		Err:    errors.New("gateway: no single field " + name + " to limit by"),
	}
	if name == "Host" {
		return func(r *http.Request) (string, error) {
			if r.Host == "" {
				return "", missing
			}
			return r.Host, nil
		}
	}
	return func(r *http.Request) (string, error) {
		if v := r.Header[name]; len(v) == 1 && v[0] != "" {
			return v[0], nil
		}
		return "", missing
	}
}

// KeyByRoute is the matched pattern; "" where none is known. One key for all callers: join it with another by
// Keys to limit each caller on each route.
func KeyByRoute(r *http.Request) (string, error) {
	if pattern := RoutePattern(r.Context()); pattern != "" {
		return pattern, nil
	}
	return r.Pattern, nil // of a foreign mux, when r is a copy that the record does not know
}

// Keys joins several keys into one, without ambiguity: each is preceded by its length in bytes and a colon.
// The first error ends it. It panics without keys or when one is nil.
func Keys(ks ...KeyFunc) KeyFunc {
	if len(ks) == 0 {
		panic("gateway: Keys: no keys")
	}
	for _, k := range ks {
		if k == nil {
			panic("gateway: Keys: nil KeyFunc")
		}
	}
	ks = append([]KeyFunc(nil), ks...)
	return func(r *http.Request) (string, error) {
		var b strings.Builder
		for _, k := range ks {
			part, err := k(r)
			if err != nil {
				return "", err
			}
			joinKey(&b, part)
		}
		return b.String(), nil
	}
}

func joinKey(b *strings.Builder, part string) {
	var n [20]byte
	b.Write(strconv.AppendInt(n[:0], int64(len(part)), 10))
	b.WriteByte(':')
	b.WriteString(part)
}

// RateLimitHeaders says which fields tell a client how much is left.
type RateLimitHeaders int

const (
	RateLimitIETF   RateLimitHeaders = iota // RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)
	RateLimitLegacy                         // X-RateLimit-Limit, -Remaining, -Reset (seconds from now)
	RateLimitNone                           // Retry-After only
)

// RateLimitOptions say how RateLimit asks its limiter and what it makes of the answer.
type RateLimitOptions struct {
	// Name is the policy's name in the RateLimit fields: printable ASCII. "" means "default". Where one
	// request meets several limits, give each its own.
	Name string

	// Cost is what a request takes. Nil means 1. Below 1 it is free: the limiter is not asked.
	Cost func(*http.Request) int

	// Limiter chooses a limiter by plan or tenant. Nil, or a nil result, means RateLimit's own.
	Limiter func(*http.Request) Limiter

	// Refund gives back what was taken when something inside refuses: its outcome is OutcomeRejected. The
	// limiter must be a Returner. In the fallback of a Breaker, whose request is refused already, nothing is
	// given back. False: refused requests pay.
	Refund bool

	// FailOpen admits when the limiter errs, which is told and counted as ReportOnly is. False answers 503.
	FailOpen bool

	// MaxWait is the longest Decision.Wait that is served, and never beyond the deadline of the request's
	// context. 0 means 1s, negative none. A longer one gives its slot back and answers 429.
	MaxWait time.Duration

	// Headers is what admitted and refused answers tell. Where several limits tell by RateLimitLegacy, which
	// has no lists, the one with the least remaining is told.
	Headers RateLimitHeaders

	// ReportOnly takes and tells, but refuses nobody and lets nobody wait. What would have been refused is
	// counted in the metric gateway.report_only and logged by slog.Default as a warning.
	ReportOnly bool
}

// RateLimit answers 429 with Retry-After (rounded up) when l refuses. A cost that can never pass gets no
// Retry-After. Who leaves while waiting for a slot gives it back and counts as OutcomeClientCanceled. It
// panics when l or key is nil, or when an option makes no sense.
func RateLimit(l Limiter, key KeyFunc, opts *RateLimitOptions) Middleware {
	if l == nil {
		panic("gateway: RateLimit: nil Limiter")
	}
	if key == nil {
		panic("gateway: RateLimit: nil KeyFunc")
	}
	proto := rateLimit{limiter: l, key: key}
	if opts != nil {
		proto.opts = *opts
	}
	proto.opts.withDefaults()
	proto.quoted = httpfield.String(proto.opts.Name)
	proto.refusal = fmt.Errorf("%w: policy %s", ErrRateLimited, proto.quoted)
	if proto.opts.ReportOnly {
		proto.report = newReporter("ratelimit " + proto.opts.Name)
	}
	if proto.opts.FailOpen {
		proto.opened = newReporter("ratelimit " + proto.opts.Name + ", open")
	}
	if _, ok := l.(Returner); proto.opts.Refund && !ok && proto.opts.Limiter == nil {
		panic("gateway: RateLimit: Refund needs a Limiter that is a Returner")
	}
	return func(next http.Handler) http.Handler {
		h := proto
		h.next = next
		return &h
	}
}

func (o *RateLimitOptions) withDefaults() {
	if o.Name == "" {
		o.Name = "default"
	}
	if !httpfield.IsPrintable(o.Name) {
		panic("gateway: RateLimit: Name must be printable ASCII")
	}
	if o.MaxWait == 0 {
		o.MaxWait = time.Second
	}
	if o.Headers < RateLimitIETF || o.Headers > RateLimitNone {
		panic("gateway: RateLimit: unknown Headers")
	}
}

// rateLimit is the handler that RateLimit makes.
type rateLimit struct {
	limiter Limiter
	key     KeyFunc
	opts    RateLimitOptions
	quoted  string    // Name as a structured field's String
	report  *reporter // nil: refuse
	opened  *reporter // of the limiter's failures; nil: refuse
	refusal error     // without a time to come back
	next    http.Handler
}

func (h *rateLimit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	c := charge{limiter: h.limiter, cost: 1}
	if h.opts.Cost != nil {
		if c.cost = h.opts.Cost(r); c.cost < 1 {
			h.next.ServeHTTP(rw, r)
			return
		}
	}
	if h.opts.Limiter != nil {
		if l := h.opts.Limiter(r); l != nil {
			c.limiter = l
		}
	}

	var err error
	if c.key, err = h.key(r); err != nil {
		h.deny(ex, rw, r, err)
		return
	}
	ctx := r.Context()
	if c.Decision, err = c.limiter.Take(ctx, c.key, c.cost); err != nil {
		switch {
		case ctx.Err() == context.Canceled:
			WriteError(rw, r, context.Canceled)
		case h.opened != nil:
			h.opened.add(ex, r, h.failed(err))
			h.next.ServeHTTP(rw, r)
		default:
			h.deny(ex, rw, r, h.failed(err))
		}
		return
	}

	if c.OK && c.Wait > 0 {
		h.wait(ctx, &c)
		if !c.OK && ctx.Err() == context.Canceled {
			WriteError(rw, r, context.Canceled)
			return
		}
	}
	h.tell(rw.Header(), &c.Decision)
	switch {
	case c.OK:
	case c.RetryAfter > 0:
		h.deny(ex, rw, r, &limited{h.refusal, c.RetryAfter})
		return
	default:
		h.deny(ex, rw, r, h.refusal)
		return
	}
	if h.opts.Refund && !ex.rejected() {
		defer c.refund(ctx, ex)
	}
	h.next.ServeHTTP(rw, r)
}

// failed is the answer when the limiter could not decide.
func (h *rateLimit) failed(err error) error {
	return &Error{Status: http.StatusServiceUnavailable, Err: fmt.Errorf("gateway: rate limiter: %w", err)}
}

// deny refuses, or tells what it would have refused and lets it pass.
func (h *rateLimit) deny(ex *exchange, w http.ResponseWriter, r *http.Request, err error) {
	if h.report == nil {
		refuse(w, r, err)
		return
	}
	h.report.add(ex, r, err)
	h.next.ServeHTTP(w, r)
}

// wait serves the pause that c was granted. When that is too long, or the client does not wait for its end,
// it gives the slot back and c is a refusal.
func (h *rateLimit) wait(ctx context.Context, c *charge) {
	longest := max(h.opts.MaxWait, 0)
	if deadline, ok := ctx.Deadline(); ok {
		longest = min(longest, max(time.Until(deadline), 0))
	}
	if c.Wait <= longest {
		if h.report != nil {
			return
		}
		t := time.NewTimer(c.Wait)
		defer t.Stop()
		select {
		case <-t.C:
			return
		case <-ctx.Done():
		}
	}
	if h.report == nil { // else it passes all the same
		c.giveBack(ctx)
	}
	c.OK, c.Remaining = false, 0
	c.RetryAfter = max(c.Wait-longest, 1)
}

// charge is what one request took.
type charge struct {
	Decision
	limiter Limiter
	key     string
	cost    int
}

// giveBack is done for clients that are gone as well.
func (c *charge) giveBack(ctx context.Context) {
	if back, ok := c.limiter.(Returner); ok {
		_ = back.Return(context.WithoutCancel(ctx), c.key, c.cost, c.Decision)
	}
}

func (c *charge) refund(ctx context.Context, ex *exchange) {
	if ex.rejected() {
		c.giveBack(ctx)
	}
}

// limited is ErrRateLimited with the time after which to ask again.
type limited struct {
	error
	wait time.Duration
}

func (l *limited) Unwrap() error             { return l.error }
func (l *limited) retryAfter() time.Duration { return l.wait }

// tell writes the fields for d.
func (h *rateLimit) tell(to http.Header, d *Decision) {
	switch h.opts.Headers {
	case RateLimitIETF:
		h.tellIETF(to, d)
	case RateLimitLegacy:
		tellLegacy(to, d)
	}
}

// tellIETF writes both fields with two allocations.
func (h *rateLimit) tellIETF(to http.Header, d *Decision) {
	var buf [192]byte
	b := append(buf[:0], h.quoted...)
	b = append(b, ";q="...)
	b = httpfield.AppendInteger(b, int64(d.Limit))
	if d.Window > 0 {
		b = append(b, ";w="...)
		b = httpfield.AppendInteger(b, wholeSeconds(d.Window))
	}
	end := len(b)
	b = append(b, h.quoted...)
	b = append(b, ";r="...)
	b = httpfield.AppendInteger(b, int64(d.Remaining))
	b = append(b, ";t="...)
	// Retry-After and t must not contradict each other (section 6).
	more := d.ResetAfter
	if !d.OK && d.RetryAfter > 0 {
		more = d.RetryAfter
	}
	b = httpfield.AppendInteger(b, wholeSeconds(more))

	both := string(b)
	values := []string{both[:end], both[end:]}
	addMember(to, "Ratelimit-Policy", values[0:1:1])
	addMember(to, "Ratelimit", values[1:2:2])
}

// addMember sets a list of one member, or lengthens the list that is there.
func addMember(to http.Header, name string, member []string) {
	if list := to[name]; len(list) > 0 {
		member[0] = strings.Join(list, ", ") + ", " + member[0]
	}
	to[name] = member
}

func tellLegacy(to http.Header, d *Decision) {
	const limit, remaining, reset = "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"
	left := max(d.Remaining, 0)
	if told := to[remaining]; d.OK && len(told) > 0 {
		if least, err := strconv.Atoi(told[0]); err == nil && least <= left {
			return
		}
	}
	to[limit] = []string{strconv.Itoa(d.Limit)}
	to[remaining] = []string{strconv.Itoa(left)}
	to[reset] = []string{strconv.FormatInt(wholeSeconds(d.ResetAfter), 10)}
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}
