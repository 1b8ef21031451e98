package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// Target is one server of an Upstream. Its URL may have a path, which goes before the request's.
type Target struct {
	URL    *url.URL // scheme http, https or h2c
	Weight int      // 0 means 1; at most 1,000,000
}

// maxWeight keeps sums of weights from overflowing.
const maxWeight = 1_000_000

// ParseTargets makes a target of each URL, such as "http://10.0.0.1:8080". It refuses a URL without host,
// of another scheme than http, https and h2c, or with user, query or fragment.
func ParseTargets(rawURLs ...string) ([]Target, error) {
	targets := make([]Target, 0, len(rawURLs))
	for _, raw := range rawURLs {
		if !strings.Contains(raw, "://") {
			return nil, fmt.Errorf("gateway: ParseTargets: target %q has no scheme, such as http://", raw)
		}
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
	case u.Port() != "" && !validPort(u.Port()):
		return fmt.Errorf("target %q: no such port", u.Redacted())
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("target %q: user, query and fragment have no place in a target", u.Redacted())
	}
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// UpstreamOptions say how an Upstream chooses, waits and tries again.
type UpstreamOptions struct {
	Balancer  Balancer             // nil: LeastPending
	Transport http.RoundTripper    // nil: NewTransport(nil), shared by the process
	Timeout   time.Duration        // to response headers, each try; 0 means 30s, negative none
	Circuit   *Circuit             // nil: none
	Meter     metric.MeterProvider // nil: otel.GetMeterProvider()
	Retry     RetryOptions
	Health    HealthOptions
}

// Upstream is a RoundTripper over its targets. It is safe for concurrent use.
//
// The errors of RoundTrip can be told apart with errors.Is: ErrNoTarget, ErrCircuitOpen, ErrTimeout,
// ErrBodyTooLarge, context.Canceled, and ErrBadGateway for all else.
//
// Each try is measured by the histogram http.client.request.duration of OpenTelemetry's semantic conventions,
// to the response headers, with http.request.method, gateway.upstream.name and the target as server.address and
// server.port. When
// a request was sent again, the span that its context carries gets http.request.resend_count.
//
// It keeps about 300 bytes a target, and of each request's body what RetryOptions.MaxBodyBytes says, until the
// response headers are here.
type Upstream struct {
	name     string
	opts     UpstreamOptions
	probe    *url.URL // path and query of the health check; nil for none
	budget   *retryBudget
	duration metric.Float64Histogram
	labels   telemetry.LabelCache[tryLabel]
	pool     pool
}

// NewUpstream returns an Upstream of targets. Its name is for logs and metrics. It panics when a target's
// URL is not one that ParseTargets takes, or its Weight is out of bounds, or when an option makes no
// sense. Without targets every request gets ErrNoTarget.
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
	if u.opts.Meter == nil {
		u.opts.Meter = otel.GetMeterProvider()
	}
	if u.opts.Retry.Attempts < 0 {
		panic("gateway: NewUpstream: Retry.Attempts must not be negative")
	}
	if err := u.opts.Health.check(); err != nil {
		panic("gateway: NewUpstream: Health: " + err.Error())
	}
	u.opts.Retry = u.opts.Retry.withDefaults()
	u.opts.Health = u.opts.Health.withDefaults()
	if path := u.opts.Health.Path; path != "" {
		var err error
		if u.probe, err = parseProbe(path); err != nil {
			panic("gateway: NewUpstream: Health.Path: " + err.Error())
		}
	}
	u.budget = newRetryBudget(u.opts.Retry.Budget)
	u.duration = telemetry.DurationHistogram(u.opts.Meter.Meter(scope), "http.client.request.duration", "Duration of HTTP client requests.")
	u.pool.health = u.opts.Health
	u.set("NewUpstream", targets)
	return u
}

// Name returns the name given to NewUpstream.
func (u *Upstream) Name() string { return u.name }

// SetTargets replaces the pool; requests in flight finish. It is the hook for service discovery. A target
// that stays, by its URL, keeps its connections, its health and its count of pending requests. It panics as
// NewUpstream does, and changes nothing then.
func (u *Upstream) SetTargets(targets []Target) { u.set("SetTargets", targets) }

func (u *Upstream) set(caller string, targets []Target) {
	for _, t := range targets {
		if err := checkTarget(t.URL); err != nil {
			panic("gateway: " + caller + ": " + err.Error())
		}
		if t.Weight < 0 || t.Weight > maxWeight {
			panic("gateway: " + caller + ": weight must be between 0 and 1,000,000")
		}
	}
	u.pool.replace(targets)
}

// RoundTrip sends r to one of the targets: r's URL needs only path and query; an empty r.Host becomes the
// target's. Whoever gets a response must close its Body: until then the request counts as pending.
func (u *Upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	body := newReplay(r, u.opts.Retry.MaxBodyBytes)
	defer body.settle()
	if u.opts.Retry.Attempts > 1 {
		u.budget.request()
	}
	var tried []*member
	for n := 1; ; n++ {
		res, m, err := u.try(r, body, tried)
		status := 0
		if res != nil {
			status = res.StatusCode
		}
		if m == nil || !u.mayRetry(r, body, n, status, err) {
			if n > 1 {
				trace.SpanFromContext(r.Context()).SetAttributes(attribute.Int("http.request.resend_count", n-1))
			}
			return res, err
		}
		tried = append(tried, m)
		if res != nil {
			readRest(res)
		}
		if !u.opts.Retry.pause(r.Context(), n) {
			return nil, attemptError(r, r.Context().Err())
		}
	}
}

// try makes one attempt. The member is nil when none was asked.
func (u *Upstream) try(r *http.Request, body *replay, tried []*member) (*http.Response, *member, error) {
	choice := u.pool.choice()
	if len(choice.members) == 0 {
		return nil, nil, fmt.Errorf("%w: upstream %s", ErrNoTarget, u.name)
	}
	t := &attempt{upstream: u, method: r.Method, client: r.Context(), start: time.Now()}
	if c := u.opts.Circuit; c != nil && !exchangeFrom(r.Context()).admits(c) {
		var err error
		if t.circuit, err = c.allow(); err != nil {
			return nil, nil, err
		}
	}
	// A panic in a balancer or a transport leaves nothing pending.
	defer func() {
		if !t.answered {
			t.end(OutcomeInternal)
		}
	}()

	if len(tried) > 0 {
		choice = choice.without(tried)
	}
	i, done := u.opts.Balancer.Pick(r, choice.targets)
	t.picked = done
	t.member = choice.members[i]
	t.member.pending.Add(1)

	ctx := t.client
	if d := u.opts.Timeout; d > 0 {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		t.cancel = cancel
		t.timer = time.AfterFunc(d, func() { cancel(ErrTimeout) })
	}
	out := r.WithContext(ctx)
	t.link = *r.URL
	out.URL = &t.link
	aim(out.URL, t.member.URL)
	res, err := u.send(out, body)
	if t.timer != nil && !t.timer.Stop() && err == nil && context.Cause(ctx) == ErrTimeout {
		// The time ran out just as the headers came: the body is cancelled already.
		res.Body.Close()
		res, err = nil, ErrTimeout
	}
	if err != nil {
		err = attemptError(out, err)
		t.end(result{err: err, gone: leftEarly(t.client)}.outcome())
		return nil, t.member, err
	}
	t.answer(res)
	return res, t.member, nil
}

// send makes the round trip of one attempt. net/http's transport makes it again by itself when a connection
// from the pool turns out dead, if the method is safe and there is no body; for the other idempotent requests
// that is done here.
func (u *Upstream) send(out *http.Request, body *replay) (*http.Response, error) {
	var pooled *pooledConn
	if body != nil && isIdempotent(out.Method) || out.Method == http.MethodPut || out.Method == http.MethodDelete {
		pooled = new(pooledConn)
		out = out.WithContext(httptrace.WithClientTrace(out.Context(),
			&httptrace.ClientTrace{GotConn: pooled.got, GotFirstResponseByte: pooled.answer}))
	}
	for n := 1; ; n++ {
		if body != nil {
			if err := body.attach(out); err != nil {
				return nil, err
			}
		}
		res, err := u.opts.Transport.RoundTrip(out)
		if err == nil || n == maxDeadConns || !pooled.wasDead() || !body.resendable() || out.Context().Err() != nil {
			return res, err
		}
	}
}

// maxDeadConns is how many pooled connections may turn out dead before a request fails.
const maxDeadConns = 5

// pooledConn watches whether a request met a connection from the pool that was dead. A nil one saw nothing.
type pooledConn struct{ reused, answered atomic.Bool }

func (c *pooledConn) got(info httptrace.GotConnInfo) {
	c.reused.Store(info.Reused)
	c.answered.Store(false)
}

func (c *pooledConn) answer() { c.answered.Store(true) }

// wasDead is asked after a failure.
func (c *pooledConn) wasDead() bool { return c != nil && c.reused.Load() && !c.answered.Load() }

// attempt is one try at one target.
type attempt struct {
	io.ReadCloser // the response's body

	upstream *Upstream
	member   *member
	method   string
	link     url.URL         // that was asked
	client   context.Context // ends when the one who asked leaves
	start    time.Time
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
	t.tell(result{status: t.status}.outcome())
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
		t.end(result{status: t.status}.outcome())
	default:
		o := result{err: err, began: true, gone: leftEarly(t.client)}.outcome()
		// A stream that outlasts the caller's own time says nothing of the target, which has answered in time.
		if t.end(o) && o == OutcomeAborted {
			t.circuit.done(o, t.status)
			t.upstream.pool.saw(t.member, o)
		}
	}
	return n, err
}

// Close before the end is the caller's choice and nobody's failure. It is said first: a Read that is under way,
// as on a switched connection, fails when the body is closed.
func (t *attempt) Close() error {
	t.end(result{status: t.status, gone: leftEarly(t.client)}.outcome())
	return t.ReadCloser.Close()
}

// tell says how it went up to the response headers, or that there were none.
func (t *attempt) tell(o Outcome) {
	t.circuit.done(o, t.status)
	t.upstream.pool.saw(t.member, o)
	if u := t.upstream; u.duration.Enabled(t.client) {
		u.duration.Record(t.client, time.Since(t.start).Seconds(), u.labels.Options(tryLabel{
			method: telemetry.Method(cmp.Or(t.method, http.MethodGet)), upstream: u.name, target: t.member.URL, status: t.status, outcome: o,
		})...)
	}
}

// end gives back what the attempt held, once, and reports whether this was the time.
func (t *attempt) end(o Outcome) bool {
	if !t.ended.CompareAndSwap(false, true) {
		return false
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.cancel != nil {
		t.cancel(nil)
	}
	if t.member == nil { // it did not come as far as a target
		t.circuit.done(o, 0)
		return true
	}
	if !t.answered {
		t.tell(o)
	}
	t.member.pending.Add(-1)
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

// tryLabel is what http.client.request.duration tells apart.
type tryLabel struct {
	method   string
	upstream string
	target   *url.URL
	status   int // 0 without a response
	outcome  Outcome
}

func (l tryLabel) AttributeSet() attribute.Set {
	attrs := make([]attribute.KeyValue, 0, 7)
	attrs = append(attrs,
		attribute.String("http.request.method", l.method),
		attribute.String("gateway.upstream.name", l.upstream),
		attribute.String("gateway.outcome", l.outcome.String()),
		attribute.String("server.address", l.target.Hostname()),
	)
	port, err := strconv.Atoi(l.target.Port())
	if err != nil {
		port = 80
		if l.target.Scheme == "https" {
			port = 443
		}
	}
	attrs = append(attrs, attribute.Int("server.port", port))
	if l.status != 0 {
		attrs = append(attrs, attribute.Int("http.response.status_code", l.status))
	}
	if kind := errorType(l.outcome, l.status); kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	return attribute.NewSet(attrs...)
}

// readRest reads the rest of a short answer that is not wanted, so that its connection can be used again. It
// does not wait for one that is slow.
func readRest(res *http.Response) {
	late := time.AfterFunc(100*time.Millisecond, func() { res.Body.Close() })
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	late.Stop()
	res.Body.Close()
}

// aim makes u, a path and a query, a URL of target: the target's path goes before u's, with one slash between
// them, and both keep their escaping.
func aim(u, target *url.URL) {
	u.Scheme, u.Host = target.Scheme, target.Host
	if target.Path == "" || target.Path == "/" {
		return
	}
	base, rest := target.EscapedPath(), u.EscapedPath()
	u.Path = joinSlash(target.Path, u.Path)
	u.RawPath = joinSlash(base, rest)
}

func joinSlash(base, rest string) string {
	return strings.TrimSuffix(base, "/") + "/" + strings.TrimPrefix(rest, "/")
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}
