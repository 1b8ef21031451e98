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

// Decision is what a Limiter decided about one request.
type Decision struct {
	OK               bool          // the request may pass, after Wait
	Limit, Remaining int           // the whole allowance of the key, and what is left of it
	Window           time.Duration // the time that Limit applies to; of a bucket, burst over rate, rounded up to seconds
	Wait             time.Duration // when OK: how long the request must wait first, in the queue of a leaky bucket
	RetryAfter       time.Duration // when not OK: the earliest time at which the same cost could pass; 0 means never
	ResetAfter       time.Duration // until the key has its whole allowance again
	Ref              int64         // for Return; only the limiter knows its meaning
}

// Limiter grants or refuses units of a key's allowance. Take takes n units of key's allowance in one atomic
// step, if that many are left; n is at least 1. A Limiter must be safe for concurrent use. Take may block on
// the network, until ctx ends. An error means that it could not decide and has taken nothing.
type Limiter interface {
	Take(ctx context.Context, key string, n int) (Decision, error)
}

// Returner is a Limiter that can take units back. It is used when a client leaves the queue of a leaky
// bucket, and when a request is refused after its units were taken. key and d are those of the Take. n is the
// number of units to return, at most that of the Take.
//
// A leaky bucket takes a slot back only while it is the last one in the queue, and a window takes a unit back
// only until the window ends. Return is not idempotent: returning the same Decision twice credits it twice.
type Returner interface {
	Return(ctx context.Context, key string, n int, d Decision) error
}

// Debtor is a Limiter that can be overdrawn. Owe takes n units even if fewer are left. Until the debt is paid
// from the key's allowance, its requests are refused or wait. Use it when a request turned out to cost more
// than was taken for it.
type Debtor interface {
	Owe(ctx context.Context, key string, n int) error
}

// KeyFunc returns the key whose allowance a request spends. It must be safe for concurrent use.
//
// If it returns an *Error, the request is answered with the status of that. If the error wraps one of this
// package's errors, such as ErrUnauthenticated, it is answered with the status of that error. Any other error
// is answered with 500.
type KeyFunc func(*http.Request) (string, error)

// KeyByIP is a KeyFunc that returns the client's address, as ClientAddr does. An IPv6 address is shortened to
// its /64 prefix, because a single household or host usually has a whole /64.
//
// All requests without an address, such as those from a Unix socket, share the key "-". If a proxy connects
// through a Unix socket, put TrustProxies outside.
func KeyByIP(r *http.Request) (string, error) {
	a, text := clientText(r)
	switch {
	case !a.IsValid():
		return "-", nil
	case a.Is4():
		return text, nil
	}
	p, err := a.Prefix(64)
	if err != nil {
		return "", err
	}
	var buf [48]byte
	return string(p.AppendTo(buf[:0])), nil
}

// KeyBySubject is a KeyFunc that returns the issuer and the subject of the caller's Identity, joined as by
// Keys, because two issuers may give the same subject to different callers. Without an Identity its error
// wraps ErrUnauthenticated, which is answered with 401: Auth must be outside.
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

var errNoSubject = fmt.Errorf("%w: KeyBySubject found no Identity; Auth must be outside", ErrUnauthenticated)

// KeyByHeader returns a KeyFunc for the value of one request field, such as Host or one that has an API key.
// If the field is absent, empty or repeated, the request is answered with 400.
//
// If nothing verifies the field, a client can send any value in it, and a new one each time. So limit by
// address as well. KeyByHeader panics when name is empty.
func KeyByHeader(name string) KeyFunc {
	if name == "" {
		panic("gateway: KeyByHeader: empty name")
	}
	name = http.CanonicalHeaderKey(name)
	missing := &Error{
		Status: http.StatusBadRequest,
		Detail: "The field " + name + " is required exactly once.",
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

// KeyByCookie returns a KeyFunc for the value of one cookie, such as a session's. If the cookie is absent,
// empty or sent more than once, the request is answered with 400.
//
// If nothing verifies the cookie, a client can send any value in it, and a new one each time. So limit by
// address as well. KeyByCookie panics when name is not a token.
func KeyByCookie(name string) KeyFunc {
	if !httpfield.IsToken(name) {
		panic("gateway: KeyByCookie: malformed name")
	}
	missing := &Error{
		Status: http.StatusBadRequest,
		Detail: "The cookie " + name + " is required exactly once.",
		Err:    errors.New("gateway: no single cookie " + name + " to limit by"),
	}
	return func(r *http.Request) (string, error) {
		if c := r.CookiesNamed(name); len(c) == 1 && c[0].Value != "" {
			return c[0].Value, nil
		}
		return "", missing
	}
}

// KeyByRoute is a KeyFunc that returns the pattern of the matched route, or "" if none is known. All callers
// of a route share this key. To limit each caller on each route, join it with another key by Keys. The error
// is always nil.
func KeyByRoute(r *http.Request) (string, error) {
	if pattern := RoutePattern(r.Context()); pattern != "" {
		return pattern, nil
	}
	return r.Pattern, nil // a foreign mux set it on a copy of the request that the record does not hold
}

// Keys returns a KeyFunc that joins the keys of several. Each key is prefixed with its length in bytes and a
// colon, so that different keys never give the same result: "ab" and "c" give "2:ab1:c". If a KeyFunc returns
// an error, so does the result. Keys panics without arguments, and when one is nil.
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

// RateLimitHeaders selects the response fields that report a client's allowance.
type RateLimitHeaders int

const (
	RateLimitIETF   RateLimitHeaders = iota // RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10)
	RateLimitLegacy                         // X-RateLimit-Limit, -Remaining, -Reset (seconds from now)
	RateLimitNone                           // Retry-After only
)

// RateLimitOptions configures the cost of a request, the limiter, and what RateLimit does with its decision.
type RateLimitOptions struct {
	// Name is the policy's name in the RateLimit fields, in printable ASCII. "" means "default". Where
	// several limits apply to one request, give each its own name. A second "default" on one response is
	// reported as "default-2".
	Name string

	// Cost returns the number of units that a request takes before it is served. Below 1, the request is
	// free: neither the limiter nor Settle is called. Nil means 1 unit.
	Cost func(*http.Request) int

	// Settle returns the number of units that the request turned out to cost. It is called once, when the
	// handler inside has ended: with an answer, because the client left, because an upstream failed, or with
	// a panic. If Cost took more, the difference is returned to the key's allowance. If Cost took less, the
	// key owes the difference (see Debtor). A result below 0 counts as 0.
	//
	// So Cost should return an estimate that is rarely exceeded, such as a request's max_tokens. Concurrent
	// requests can then exceed the limit only by the sum of the amounts by which their costs exceed their
	// estimates.
	//
	// The limiter must be a Returner and a Debtor; otherwise RateLimit panics. A request for which Limiter
	// returns another kind of limiter is answered with 500. Settle is not called for a refused request, nor
	// for one that FailOpen admitted. If Refund applies, all units are returned, and the result of Settle is
	// not used. Nil means that a request costs what Cost took.
	Settle func(*http.Request, Usage) int

	// Limiter returns the limiter for a request, for example by plan or tenant. If Limiter is nil or returns
	// nil, the limiter given to RateLimit is used.
	Limiter func(*http.Request) Limiter

	// Refund returns the units of a request that is refused inside: one with OutcomeRejected or
	// OutcomeUnavailable. The limiter must be a Returner; RateLimit panics if it is not and Limiter is nil. A
	// RateLimit in the fallback of a Breaker returns nothing, because the request was refused before it
	// reached that RateLimit. False means that refused requests spend their units.
	Refund bool

	// FailOpen admits a request when the limiter returns an error. The request is reported as with
	// ReportOnly. The attribute is then, for example, policy="ratelimit default, open". False means that
	// the request is answered with 503.
	FailOpen bool

	// MaxWait is the longest Decision.Wait for which a request is held. A request with a longer Wait, or one
	// that exceeds the deadline of its context, returns its slot and is answered with 429. 0 means 1s;
	// negative means that no request waits.
	MaxWait time.Duration

	// Headers selects the fields in the responses to admitted and refused requests. The fields of
	// RateLimitLegacy can report one limit only: if several limits apply, that is the one with the least
	// remaining.
	Headers RateLimitHeaders

	// ReportOnly takes units and sets the response fields, but refuses no request and lets none wait. A
	// request that would be refused is reported in the remarks of Observe's log line or, if there is no
	// access log, as a warning of slog.Default. The counter gateway.report_only of the global MeterProvider
	// counts it, with the attribute policy="ratelimit " followed by Name.
	ReportOnly bool
}

// RateLimit limits requests with l: each request spends units of the allowance of its key. A request that l
// refuses is answered with 429 and with Retry-After, rounded up to seconds. If its cost can never pass, there
// is no Retry-After. The problem has the type quota-exceeded, and its member violated-policies has the Name
// (section 6 of draft-ietf-httpapi-ratelimit-headers-10).
//
// Several RateLimits in a chain apply several limits to a request, such as one per user, one per route and
// one for all. When an inner one refuses a request, the outer ones have already taken their units; see
// Refund.
//
// When a client leaves while its request waits for a slot, the slot is returned, and the outcome is
// OutcomeClientCanceled. RateLimit panics when l or key is nil, and on an invalid option.
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
	proto.refusal = quotaExceeded(proto.opts.Name)
	if proto.opts.ReportOnly {
		proto.report = newReporter("ratelimit " + proto.opts.Name)
	}
	if proto.opts.FailOpen {
		proto.opened = newReporter("ratelimit " + proto.opts.Name + ", open")
	}
	if _, ok := l.(Returner); proto.opts.Refund && !ok && proto.opts.Limiter == nil {
		panic("gateway: RateLimit: Refund needs a Limiter that is a Returner")
	}
	if _, ok := l.(settler); proto.opts.Settle != nil && !ok && proto.opts.Limiter == nil {
		panic("gateway: RateLimit: Settle needs a Limiter that is a Returner and a Debtor")
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
	report  *reporter // set with ReportOnly; otherwise nil
	opened  *reporter // set with FailOpen; otherwise nil
	refusal *Error    // the refusal by the policy Name
	next    http.Handler
}

// ServeHTTP uses little of the stack while the next handler runs: take's variables are in another frame. So,
// with two limits and the rest of a gateway, the stack of the connection's goroutine does not grow beyond 8
// KiB.
func (h *rateLimit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	switch {
	case h.opts.Settle != nil || h.opts.Refund:
		h.serveSettled(ex, rw, r)
	case h.admits(ex, rw, r):
		h.next.ServeHTTP(rw, r)
	}
}

// serveSettled serves a request whose units may change after the inner handler has ended.
func (h *rateLimit) serveSettled(ex *exchange, rw *responseWriter, r *http.Request) {
	var c charge
	if !h.take(ex, rw, r, &c) {
		return
	}
	switch {
	case !c.OK: // the request is free, or passes because of FailOpen or ReportOnly
	case h.opts.Settle != nil:
		s := settlement{h: h, charge: c}
		s.begin(ex, rw, r)
		defer s.end()
	case !ex.rejected():
		defer c.refund(r.Context(), ex)
	}
	h.next.ServeHTTP(rw, r)
}

// admits calls take, for a request whose charge is not needed later. It is not inlined, so that the charge is
// not on the stack of the next handler.
//
//go:noinline
func (h *rateLimit) admits(ex *exchange, rw *responseWriter, r *http.Request) bool {
	var c charge
	return h.take(ex, rw, r, &c)
}

// take takes the request's units and reports whether the request passes. If it does not, take has answered
// it. take fills in c. c is not OK if nothing was taken.
func (h *rateLimit) take(ex *exchange, rw *responseWriter, r *http.Request, c *charge) bool {
	c.limiter, c.cost = h.limiter, 1
	if h.opts.Cost != nil {
		if c.cost = h.opts.Cost(r); c.cost < 1 {
			return true
		}
	}
	if h.opts.Limiter != nil {
		if l := h.opts.Limiter(r); l != nil {
			c.limiter = l
		}
	}

	if h.opts.Settle != nil {
		if _, ok := c.limiter.(settler); !ok {
			return h.deny(ex, rw, r, errNoSettler)
		}
	}

	var err error
	if c.key, err = h.key(r); err != nil {
		return h.deny(ex, rw, r, err)
	}
	ctx := r.Context()
	if c.Decision, err = c.limiter.Take(ctx, c.key, c.cost); err != nil {
		c.Decision = Decision{} // nothing was taken
		return h.undecided(ex, rw, r, err)
	}

	d := c.Decision // the decision that is reported
	if d.OK && d.Wait > 0 {
		spanEvent(ctx, "gateway.limit.waiting", "gateway.limit.name", h.opts.Name)
		d = h.wait(ctx, c)
		if !d.OK && ctx.Err() == context.Canceled {
			WriteError(rw, r, context.Canceled)
			return false
		}
	}
	name := h.writeFields(rw.Header(), &d)
	if d.OK {
		return true
	}
	spanEvent(ctx, "gateway.limit.refused", "gateway.limit.name", h.opts.Name)
	refusal := h.refused(name, d.RetryAfter)
	if h.report == nil {
		refuse(rw, r, refusal)
		return false
	}
	h.report.add(ex, r, refusal)
	return true
}

// quotaExceeded returns the refusal by the policy with that name, without Retry-After.
func quotaExceeded(name string) *Error {
	return &Error{
		Status:   http.StatusTooManyRequests,
		Type:     "https://iana.org/assignments/http-problem-types#quota-exceeded",
		Title:    "Request cannot be satisfied as assigned quota has been exceeded",
		Err:      fmt.Errorf("%w: policy %s", ErrRateLimited, httpfield.String(name)),
		violated: []string{name},
	}
}

// refused returns the refusal by the policy. name is its name in the response's fields. A wait of 0 means
// that the cost can never pass.
func (h *rateLimit) refused(name string, wait time.Duration) *Error {
	e := h.refusal
	if name != h.opts.Name {
		e = quotaExceeded(name)
	}
	if wait > 0 {
		waits := *e
		waits.Err = &limited{e.Err, wait}
		return &waits
	}
	return e
}

// undecided handles a request for which the limiter returned err instead of a decision. It reports whether
// the request passes.
func (h *rateLimit) undecided(ex *exchange, w http.ResponseWriter, r *http.Request, err error) bool {
	if leftEarly(r.Context()) {
		WriteError(w, r, context.Canceled)
		return false
	}
	err = undecidedBy("rate limiter", err)
	if h.opened == nil {
		return h.deny(ex, w, r, err)
	}
	h.opened.add(ex, r, err)
	return true
}

// deny refuses the request and returns false. With ReportOnly, it reports the refusal and returns true: the
// request passes.
func (h *rateLimit) deny(ex *exchange, w http.ResponseWriter, r *http.Request, err error) bool {
	if h.report == nil {
		refuseUndecided(w, r, err)
		return false
	}
	h.report.add(ex, r, err)
	return true
}

// wait waits for c.Wait and returns the decision of c. If the wait would be too long, or the request's
// context ends before, it returns the slot and returns a refusal.
func (h *rateLimit) wait(ctx context.Context, c *charge) Decision {
	longest := max(h.opts.MaxWait, 0)
	if deadline, ok := ctx.Deadline(); ok {
		longest = min(longest, max(time.Until(deadline), 0))
	}
	if c.Wait <= longest {
		if h.report != nil {
			return c.Decision
		}
		t := time.NewTimer(c.Wait)
		defer t.Stop()
		select {
		case <-t.C:
			return c.Decision
		case <-ctx.Done():
		}
	}
	if h.report == nil { // with ReportOnly, the request passes and keeps its slot
		c.giveBack(ctx)
	}
	d := c.Decision
	d.OK, d.Remaining = false, 0
	d.RetryAfter = max(c.Wait-longest, 1)
	return d
}

// charge is the cost of one request, and the limiter's decision about it.
type charge struct {
	Decision
	limiter Limiter
	key     string
	cost    int
}

// giveBack returns the units to the limiter, even if ctx is canceled because the client has left.
func (c *charge) giveBack(ctx context.Context) {
	if back, ok := c.limiter.(Returner); ok {
		_ = back.Return(context.WithoutCancel(ctx), c.key, c.cost, c.Decision)
	}
}

// refund returns the units to the limiter if an inner handler refused the request.
func (c *charge) refund(ctx context.Context, ex *exchange) {
	if ex.rejected() {
		c.giveBack(ctx)
	}
}

// limited is an error with the value for Retry-After.
type limited struct {
	error
	wait time.Duration
}

func (l *limited) Unwrap() error             { return l.error }
func (l *limited) retryAfter() time.Duration { return l.wait }

// writeFields sets the response fields that report d. It returns the name of the policy in these fields.
func (h *rateLimit) writeFields(to http.Header, d *Decision) string {
	switch h.opts.Headers {
	case RateLimitIETF:
		return h.writeIETF(to, d)
	case RateLimitLegacy:
		writeLegacy(to, d)
	}
	return h.opts.Name
}

// The fields of draft-ietf-httpapi-ratelimit-headers, in canonical form.
const policyField, limitField = "Ratelimit-Policy", "Ratelimit"

// writeIETF sets both fields, or appends a member to the lists in them. It needs two allocations.
func (h *rateLimit) writeIETF(to http.Header, d *Decision) (name string) {
	var buf [256]byte
	name, quoted := h.opts.Name, h.quoted
	policies := to[policyField]
	if len(policies) > 0 {
		name, quoted = h.distinctName(policies)
	}
	b := append(appendMembers(buf[:0], policies), quoted...)
	b = append(b, ";q="...)
	b = httpfield.AppendInteger(b, int64(d.Limit))
	if d.Window > 0 {
		b = append(b, ";w="...)
		b = httpfield.AppendInteger(b, wholeSeconds(d.Window))
	}
	end := len(b)
	b = append(appendMembers(b, to[limitField]), quoted...)
	b = append(b, ";r="...)
	b = httpfield.AppendInteger(b, int64(d.Remaining))
	b = append(b, ";t="...)
	// Retry-After and t must not contradict each other (section 6).
	reset := d.ResetAfter
	if !d.OK && d.RetryAfter > 0 {
		reset = d.RetryAfter
	}
	b = httpfield.AppendInteger(b, wholeSeconds(reset))

	both := string(b)
	values := []string{both[:end], both[end:]}
	to[policyField], to[limitField] = values[0:1:1], values[1:2:2]
	return name
}

// distinctName returns a name that no policy in the field's lists has: Name, or Name with "-2", "-3" and so
// on. quoted is the name as a structured field's String.
func (h *rateLimit) distinctName(policies []string) (name, quoted string) {
	name, quoted = h.opts.Name, h.quoted
	for n := 2; hasPolicy(policies, quoted); n++ {
		name = h.opts.Name + "-" + strconv.Itoa(n)
		quoted = httpfield.String(name)
	}
	return name, quoted
}

// hasPolicy reports whether one of the lists has a member that begins with quoted, a String with its quotes.
func hasPolicy(lists []string, quoted string) bool {
	for _, list := range lists {
		inString, begins := false, true
		for i := 0; i < len(list); i++ {
			switch c := list[i]; {
			case inString && c == '\\':
				i++
			case c == '"':
				if !inString && begins && strings.HasPrefix(list[i:], quoted) {
					return true
				}
				inString, begins = !inString, false
			case !inString && c == ',':
				begins = true
			case c != ' ' && c != '\t':
				begins = false
			}
		}
	}
	return false
}

// appendMembers appends the lists of a field, each followed by a comma, so that another member can follow.
func appendMembers(b []byte, lists []string) []byte {
	for _, list := range lists {
		b = append(append(b, list...), ", "...)
	}
	return b
}

// writeLegacy sets the three fields X-RateLimit-*. If another limit has set them, they report the limit with
// fewer units remaining. A refusal always sets them.
func writeLegacy(to http.Header, d *Decision) {
	const limit, remaining, reset = "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"
	left := max(d.Remaining, 0)
	if set := to[remaining]; d.OK && len(set) > 0 {
		if least, err := strconv.Atoi(set[0]); err == nil && least <= left {
			return
		}
	}
	to[limit] = []string{strconv.Itoa(d.Limit)}
	to[remaining] = []string{strconv.Itoa(left)}
	to[reset] = []string{strconv.FormatInt(wholeSeconds(d.ResetAfter), 10)}
}

// wholeSeconds returns d in seconds, rounded up.
func wholeSeconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}
