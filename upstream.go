package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
	"github.com/seed-96248d0c/gateway/internal/retrybudget"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// Target is one server of an Upstream.
type Target struct {
	URL    *url.URL // with the scheme http, https or h2c, its path is put before that of the request; with unix, its path is the socket's
	Weight int      // share of the requests relative to other targets, at most 1,000,000; 0 means 1
}

// maxWeight keeps sums of weights from overflowing.
const maxWeight = 1_000_000

// ParseTargets returns one target for each URL, such as "http://10.0.0.1:8080". It returns an error for a URL
// that has no host, has a scheme other than http, https, h2c and unix, or has a user, a query or a fragment.
//
// "unix:///run/app.sock" is a server that speaks HTTP/1.1 on the Unix socket /run/app.sock. Such a URL has no
// host. The Host that is sent is localhost unless ProxyOptions.PreserveHost keeps the client's. In metrics,
// server.address is the socket's path.
func ParseTargets(rawURLs ...string) ([]Target, error) {
	targets := make([]Target, 0, len(rawURLs))
	for _, raw := range rawURLs {
		u, err := parseTarget(raw)
		if err != nil {
			return nil, fmt.Errorf("gateway: ParseTargets: %w", err)
		}
		targets = append(targets, Target{URL: u})
	}
	return targets, nil
}

// parseTarget parses the URL of a target.
func parseTarget(raw string) (*url.URL, error) {
	if !strings.Contains(raw, "://") {
		return nil, fmt.Errorf("target %q has no scheme, such as http://", raw)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	return u, checkTarget(u)
}

// MustTargets is like ParseTargets but panics on an error. Use it for URLs that are constants of the program.
func MustTargets(rawURLs ...string) []Target {
	targets, err := ParseTargets(rawURLs...)
	if err != nil {
		panic(err.Error())
	}
	return targets
}

// checkTarget returns an error for a URL that cannot be a target's.
func checkTarget(u *url.URL) error {
	switch {
	case u == nil:
		return errors.New("target without a URL")
	case u.Scheme == schemeUnix:
		return checkSocket(u)
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "h2c":
		return fmt.Errorf("target %q: scheme must be http, https, h2c or unix", u.Redacted())
	case u.Hostname() == "" || u.Opaque != "":
		return fmt.Errorf("target %q: no host", u.Redacted())
	case u.Port() != "" && !validPort(u.Port()):
		return fmt.Errorf("target %q: port must be between 1 and 65535", u.Redacted())
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("target %q: must not have a user, a query or a fragment", u.Redacted())
	}
	return nil
}

// schemeUnix is the scheme of a target on a Unix socket. A transport gets the socket's path as the URL's
// Host.
const (
	schemeUnix = "unix"
	unixHost   = "localhost" // the Host that is sent to such a target, as by nginx
)

// maxSocketPath is the longest path of a socket that Linux accepts, in bytes. Other systems accept less.
const maxSocketPath = 107

// checkSocket returns an error for a URL with the scheme unix that is not the URL of a socket.
func checkSocket(u *url.URL) error {
	switch {
	case u.Host != "" || u.Opaque != "" || u.User != nil || u.Path == "" || u.Path[0] != '/':
		return fmt.Errorf("target %q: must have the form unix:///path/of/socket", u.Redacted())
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("target %q: must not have a query or a fragment", u.Redacted())
	case strings.HasSuffix(u.Path, "/") || strings.ContainsFunc(u.Path, unicode.IsControl):
		return fmt.Errorf("target %q: not the path of a socket", u.Redacted())
	case len(u.Path) > maxSocketPath:
		return fmt.Errorf("target %q: the path of a socket may have at most %d bytes", u.Redacted(), maxSocketPath)
	}
	return nil
}

// checkTargets returns an error unless targets can be those of an Upstream.
func checkTargets(targets []Target) error {
	for _, t := range targets {
		if err := checkTarget(t.URL); err != nil {
			return err
		}
		if t.Weight < 0 || t.Weight > maxWeight {
			return errors.New("weight must be between 0 and 1,000,000")
		}
	}
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// UpstreamOptions configures how an Upstream chooses a target, how long it waits for it, and when it retries.
// The zero value selects the defaults.
type UpstreamOptions struct {
	Balancer  Balancer             // nil means LeastPending()
	Transport http.RoundTripper    // nil means NewTransport(nil), which all such Upstreams share; another transport must support the schemes h2c and unix if targets have them
	Timeout   time.Duration        // limit of each attempt up to the response header; does not run while the gateway waits for the client's body, and begins anew with each part of it that is sent on; 0 means 30s, negative none
	Idle      time.Duration        // longest pause of the target within a response body, or silence of an upgraded connection; 0 means no limit
	Circuit   *Circuit             // nil means no circuit
	Meter     metric.MeterProvider // nil means otel.GetMeterProvider()
	Retry     RetryOptions         // the zero value means no retries
	Health    HealthOptions        // the zero value means passive ejection, and no probes
}

// Upstream is an http.RoundTripper that balances requests over its targets. It is safe for concurrent use.
//
// An error of RoundTrip wraps one of these, for errors.Is: ErrNoTarget, ErrCircuitOpen, ErrTimeout,
// ErrBodyTooLarge, context.Canceled, and ErrBadGateway for everything else. An *Error of the request's body,
// such as the 400 for a malformed body, is returned unchanged. A request that no transport would send, such
// as one with a malformed method or field, is refused with an *Error of status 400. A request whose fields
// exceed the limit that an HTTP/2 target has announced is refused with 431. Neither refusal counts against
// the target.
//
// When a target pauses for longer than UpstreamOptions.Idle within a response body, a read of the body
// returns an error. The outcome is OutcomeAborted, which counts against the target. An upgraded connection on
// which neither side has sent anything for that time is closed, which counts as a normal end. Time in which
// the caller does not read is not counted.
//
// The histogram http.client.request.duration, of OpenTelemetry's semantic conventions, measures each attempt
// up to the response headers. Its attributes are http.request.method, http.response.status_code,
// gateway.upstream.name, gateway.outcome, error.type, and the target as server.address and server.port.
//
// If the span in the request's context is recorded, each attempt has a client span below it, and sends the
// traceparent of that span. If a request was sent more than once, the span in its context and those of the
// later attempts have the attribute http.request.resend_count.
//
// An Upstream needs about 350 bytes for each target. For each request in flight, it also buffers the body, up
// to RetryOptions.MaxBodyBytes, until the response header arrives. A hedge needs a second copy of the body.
type Upstream struct {
	name     string
	opts     UpstreamOptions
	direct   *transport // opts.Transport, if NewTransport made it; otherwise nil
	probe    *url.URL   // path and query of the health check; nil for none
	budget   *retrybudget.Budget
	duration metric.Float64Histogram
	labels   telemetry.LabelCache[clientLabels]
	pool     pool
}

// NewUpstream returns an Upstream of targets. The name appears in logs and metrics. Without targets, every
// request fails with ErrNoTarget.
//
// NewUpstream panics on a target whose URL ParseTargets would not accept, on a Weight out of bounds, and on
// an invalid option, such as a negative number of attempts.
func NewUpstream(name string, targets []Target, opts *UpstreamOptions) *Upstream {
	u := &Upstream{name: name}
	if opts != nil {
		u.opts = *opts
	}
	if u.opts.Retry.Attempts < 0 {
		panic("gateway: NewUpstream: Retry.Attempts must not be negative")
	}
	switch after := u.opts.Retry.HedgeAfter; {
	case after < 0:
		panic("gateway: NewUpstream: Retry.HedgeAfter must not be negative")
	case after > 0 && u.opts.Retry.Attempts < 2:
		panic("gateway: NewUpstream: Retry.HedgeAfter needs Retry.Attempts of at least 2, because a hedge is an attempt")
	}
	if err := u.opts.Health.check(); err != nil {
		panic("gateway: NewUpstream: Health: " + err.Error())
	}
	u.opts = u.opts.withDefaults()
	u.direct, _ = u.opts.Transport.(*transport)
	if path := u.opts.Health.Path; path != "" {
		var err error
		if u.probe, err = parseProbe(path); err != nil {
			panic("gateway: NewUpstream: Health.Path: " + err.Error())
		}
	}
	u.budget = retrybudget.New(u.opts.Retry.Budget)
	u.duration = telemetry.DurationHistogram(u.opts.Meter.Meter(scope), "http.client.request.duration",
		"Duration of HTTP client requests.")
	u.pool.health = u.opts.Health
	u.set("NewUpstream", targets)
	return u
}

func (o UpstreamOptions) withDefaults() UpstreamOptions {
	if o.Balancer == nil {
		o.Balancer = LeastPending()
	}
	if o.Transport == nil {
		o.Transport = defaultTransport()
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Meter == nil {
		o.Meter = otel.GetMeterProvider()
	}
	o.Retry = o.Retry.withDefaults()
	o.Health = o.Health.withDefaults()
	return o
}

// Name returns the name given to NewUpstream.
func (u *Upstream) Name() string { return u.name }

// SetTargets replaces the targets, for example when service discovery reports a change; see also Follow.
// Requests in flight are not interrupted. A target whose URL is already in the pool keeps its
// connections, its health and its count of requests in flight. SetTargets panics on targets on which
// NewUpstream panics, and then changes nothing.
func (u *Upstream) SetTargets(targets []Target) { u.set("SetTargets", targets) }

// set replaces the targets. caller is the name of the exported function, for the message of a panic.
func (u *Upstream) set(caller string, targets []Target) {
	if err := checkTargets(targets); err != nil {
		panic("gateway: " + caller + ": " + err.Error())
	}
	u.pool.replace(targets)
}

// RoundTrip sends r to one of the targets, and to others if RetryOptions allow it. It uses the path and the
// query of r.URL and ignores its scheme and host. An empty r.Host means the target's host. The caller must
// read the response's Body to its end or close it: until then, the request counts as in flight.
//
// A request without a traceparent gets one that continues the span in its context, if there is one.
func (u *Upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	passed, err := gate(r)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	return u.roundTrip(passed, directCall{})
}

// roundTrip is RoundTrip for a request that gate has returned, with the hooks in call.
func (u *Upstream) roundTrip(r *http.Request, call directCall) (*http.Response, error) {
	if call.linesOf() == nil { // lines have it already
		r = continueTrace(r)
	}
	body := newReplay(r, u.opts.Retry.MaxBodyBytes)
	defer body.settle()
	if u.opts.Retry.Attempts > 1 {
		u.budget.Earn()
	}
	var tried []*member
	for n := 1; ; n++ {
		a, other := u.ask(r, body, tried, n, call)
		res, m, err := a.res, a.member, a.err
		if other != nil {
			tried = append(tried, other)
			n++
		}
		status := 0
		if res != nil {
			status = answeredStatus(r, res)
		}
		if m == nil || !u.mayRetry(r, body, n, status, err) {
			u.noteAttempts(r.Context(), m, tried)
			if n > 1 {
				trace.SpanFromContext(r.Context()).SetAttributes(attribute.Int("http.request.resend_count", n-1))
			}
			if res != nil {
				if answered, ok := res.Body.(*attempt); ok && answered.excused {
					exchangeFrom(r.Context()).excuse()
				}
			}
			return res, err
		}
		tried = append(tried, m)
		if res != nil {
			readRest(res)
		}
		if !u.opts.Retry.pause(r.Context(), n) {
			u.noteAttempts(r.Context(), nil, tried)
			return nil, attemptError(r, r.Context().Err())
		}
	}
}

// answeredStatus returns the status by which a response is judged when its header has arrived.
func answeredStatus(r *http.Request, res *http.Response) int {
	answer := result{status: res.StatusCode}
	if grpcmeta.Is(res.Header) {
		answer.grpc = grpcCall{grpcmeta.StatusIn(res.Header, ""), grpcmeta.HasTimeout(r.Header)}
	}
	return answer.answered()
}

// noteAttempts records the targets of the attempts, for the log: tried, and then last unless it is nil.
func (u *Upstream) noteAttempts(ctx context.Context, last *member, tried []*member) {
	f := forwarded{upstream: u.name, attempts: len(tried)}
	switch {
	case last != nil:
		f.target = last.URL
		f.attempts++
	case len(tried) > 0:
		f.target = tried[len(tried)-1].URL
	}
	exchangeFrom(ctx).sent(f)
}

// readRest reads the rest of a response that is not used, and closes its body. It reads at most 4 KiB, for at
// most 100 ms: if that is the whole rest, the connection can be reused.
func readRest(res *http.Response) {
	late := time.AfterFunc(100*time.Millisecond, func() { res.Body.Close() })
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
	late.Stop()
	res.Body.Close()
}

// setTarget sets the scheme and host of u, which has a path and a query, to those of target. It puts the
// target's path before that of u, with one slash between them. Both keep their escaping. For a Unix socket,
// the socket's path becomes the host.
func setTarget(u, target *url.URL) {
	if target.Scheme == schemeUnix {
		u.Scheme, u.Host = schemeUnix, target.Path
		return
	}
	u.Scheme, u.Host = target.Scheme, target.Host
	if target.Path == "" || target.Path == "/" {
		return
	}
	// A slash that is escaped is no separator. So the escaped forms decide, and the others follow.
	base, rest := target.EscapedPath(), u.EscapedPath()
	path, below := target.Path, u.Path
	if strings.HasSuffix(base, "/") {
		base, path = base[:len(base)-1], path[:len(path)-1]
	}
	if strings.HasPrefix(rest, "/") {
		rest, below = rest[1:], below[1:]
	}
	u.Path, u.RawPath = path+"/"+below, base+"/"+rest
}
