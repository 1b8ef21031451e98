package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// HealthOptions configures health checks by probes and by traffic. A target gets no requests while its probes
// fail, and for a time after requests to it have failed (passive ejection). When every target is out, all of
// them get requests: some may work.
//
// Traffic ejects a target after Unhealthy consecutive failures. A failure is a result that shows that the
// target cannot serve: no connection, a protocol error, a timeout, a response that was cut off, or the status
// 502, 503 or 504. Any other 5xx, such as 500, is about one request: it counts neither as a failure nor as a
// success.
//
// At most the share MaxEjected of the pool is ejected at the same time. Beyond that, a target with worse
// failures is ejected in place of one with milder failures. From worst to mildest: no connection; no complete
// response; the status 502, 503 or 504. For example, in a pool of two, A is ejected because one URL answers
// 503. Then B stops. B is ejected instead, and A gets requests again.
//
// An attempt that is canceled because a hedge answered first (RetryOptions.HedgeAfter) is not a failure, with
// one exception. A target that hangs would never time out, since every attempt is canceled before. So if a
// target has sent no response for UpstreamOptions.Timeout, and more than ten attempts in a row were canceled
// in this way, each further one is a failure.
//
// A retry prefers a target that the request has not been sent to, even one that is out.
type HealthOptions struct {
	Path      string        // path of CheckHealth's probe, a GET that passes with 2xx or 3xx; "" means no probes
	Interval  time.Duration // pause between the probes of a target; 0 means 5s
	Timeout   time.Duration // limit of the time for one probe; 0 means 1s
	Healthy   int           // number of consecutive passed probes that brings a target back, even from ejection; 0 means 2
	Unhealthy int           // number of consecutive failures, of probes or of traffic, that takes a target out; 0 means 3, negative never

	// EjectFor is how long a passive ejection lasts. 0 means 10s. The time doubles with each ejection without
	// a success in between, up to 64 times EjectFor: with 10s, a target that fails again after each return is
	// out for 10s, 20s, 40s and so on, at most for 640s.
	EjectFor time.Duration

	// MaxEjected is the share of the pool that may be passively ejected at the same time. It is at most 1. 0
	// means 0.5, negative means that no target is ejected.
	MaxEjected float64
}

// check returns an error for an invalid value.
func (o HealthOptions) check() error {
	switch {
	case o.Interval < 0, o.Timeout < 0, o.Healthy < 0, o.EjectFor < 0:
		return errors.New("negative Interval, Timeout, Healthy or EjectFor")
	case o.MaxEjected > 1 || o.MaxEjected != o.MaxEjected:
		return errors.New("MaxEjected is above 1")
	}
	return nil
}

func (o HealthOptions) withDefaults() HealthOptions {
	if o.Interval == 0 {
		o.Interval = 5 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Healthy == 0 {
		o.Healthy = 2
	}
	if o.Unhealthy == 0 {
		o.Unhealthy = 3
	}
	if o.EjectFor == 0 {
		o.EjectFor = 10 * time.Second
	}
	if o.MaxEjected == 0 {
		o.MaxEjected = 0.5
	}
	return o
}

// TargetStatus is the state of one target.
type TargetStatus struct {
	Target  Target
	Healthy bool
	Pending int    // requests in flight
	Reason  string // why the target is out of the pool, for people; "" while it is healthy
}

// maxDoubling limits an ejection to 64 times EjectFor.
const maxDoubling = 6

// member is a target in a pool, with its state. The pool's mu guards the Weight, which replace sets. The URL
// never changes.
type member struct {
	Target
	pending   atomic.Int64
	failures  atomic.Int32 // consecutive failures of traffic
	mildest   atomic.Int32 // the mildest severity among these failures
	successes atomic.Int64
	ejections atomic.Int32 // ejections since the last success
	overtaken atomic.Int32 // attempts that were canceled because a hedge answered first, since the last answer

	// Guarded by pool.mu.
	silent         time.Time // when the first attempt that overtaken counts ended
	passed, failed int       // consecutive probes that passed or failed
	sick           string    // why its probes fail; "" if they do not take it out of the pool
	ejected        ejection
}

// ejection is a member's last passive ejection.
type ejection struct {
	until    time.Time
	severity severity
	reason   string
}

// out reports whether m gets no requests at this time.
func (m *member) out(now time.Time) bool { return m.sick != "" || now.Before(m.ejected.until) }

// reason returns why m is out, or "" if it is not.
func (m *member) reason(now time.Time) string {
	switch ejected := now.Before(m.ejected.until); {
	case ejected && m.sick != "":
		return m.sick + "; " + m.ejected.reason
	case ejected:
		return m.ejected.reason
	}
	return m.sick
}

// pool holds the targets of an Upstream and decides which of them get requests.
type pool struct {
	health  HealthOptions
	current atomic.Pointer[choice]

	mu      sync.Mutex
	members []*member // replaced as a whole, never modified
}

// choice holds the members from which a balancer chooses. It is replaced as a whole, never modified.
type choice struct {
	members []*member
	targets []Target  // the targets of members, at the same indices
	all     bool      // no member of the pool is out
	until   time.Time // when the first ejection ends, after which there is another choice; zero for none
}

// replace makes targets the members of the pool. A target whose URL was in the pool before keeps its state.
func (p *pool) replace(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stay := make(map[string]*member)
	for _, m := range p.members {
		stay[m.URL.String()] = m
	}
	p.members = make([]*member, len(targets))
	for i, t := range targets {
		key := t.URL.String()
		m := stay[key]
		if m == nil {
			own := *t.URL
			m = &member{Target: Target{URL: &own}}
		}
		delete(stay, key) // a second target with this URL gets a separate state
		m.Weight = max(1, t.Weight)
		p.members[i] = m
	}
	p.choose()
}

// targets returns the targets of the pool's members.
func (p *pool) targets() []Target {
	p.mu.Lock()
	defer p.mu.Unlock()
	targets := make([]Target, len(p.members))
	for i, m := range p.members {
		targets[i] = m.Target
	}
	return targets
}

// choice returns the members that are not out, or all members if every one is out.
func (p *pool) choice() *choice {
	c := p.current.Load()
	if c.until.IsZero() || time.Now().Before(c.until) {
		return c
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.choose()
}

// choose computes the current choice. The caller holds mu.
func (p *pool) choose() *choice {
	now := time.Now()
	c := &choice{}
	for _, m := range p.members {
		if !m.out(now) {
			c.add(m, m.Target)
			continue
		}
		if m.sick == "" && (c.until.IsZero() || m.ejected.until.Before(c.until)) {
			c.until = m.ejected.until
		}
	}
	c.all = len(c.members) == len(p.members)
	if len(c.members) == 0 {
		for _, m := range p.members {
			c.add(m, m.Target)
		}
	}
	p.current.Store(c)
	return c
}

// add adds a member to a new choice, with its target.
func (c *choice) add(m *member, t Target) {
	c.members, c.targets = append(c.members, m), append(c.targets, t)
}

// untried returns the members from which a retry chooses: those of c that were not tried. If there are none,
// it returns untried members that are ejected; if there are none, untried members whose probes fail; and if
// every member was tried, c itself.
func (p *pool) untried(c *choice, tried []*member) *choice {
	rest := &choice{}
	for i, m := range c.members {
		if !slices.Contains(tried, m) {
			rest.add(m, c.targets[i])
		}
	}
	if len(rest.members) == 0 {
		rest = p.untriedOut(tried)
	}
	if len(rest.members) == 0 {
		return c
	}
	return rest
}

// untriedOut returns the members that were not tried and are only ejected. If there are none, it returns
// those whose probes fail.
func (p *pool) untriedOut(tried []*member) *choice {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ejected, sick choice
	for _, m := range p.members {
		switch {
		case slices.Contains(tried, m):
		case m.sick != "":
			sick.add(m, m.Target)
		default:
			ejected.add(m, m.Target)
		}
	}
	if len(ejected.members) > 0 {
		return &ejected
	}
	return &sick
}

// recordTraffic updates m with the result of an attempt. A result that is neither a success nor a failure of
// the target, such as a client that left or a 500, changes nothing.
//
// It returns what correctTraffic needs to take a success back.
func (p *pool) recordTraffic(m *member, res result) (s success) {
	if p.health.Unhealthy < 0 {
		return s
	}
	if res.status != 0 && m.overtaken.Load() != 0 {
		m.overtaken.Store(0)
	}
	switch {
	case res.severity() != severityNone:
		p.countFailure(m, res)
	case res.outcome() == OutcomeOK:
		s.number = m.successes.Add(1)
		if s.consecutive = m.failures.Load(); s.consecutive != 0 {
			m.failures.Store(0)
		}
		if m.ejections.Load() != 0 {
			m.ejections.Store(0)
		}
	}
	return s
}

// success is a success that recordTraffic counted.
type success struct {
	number      int64 // the n-th success of the target has the number n
	consecutive int32 // consecutive failures before it
}

// correctTraffic updates m with the result of an attempt that recordTraffic counted as a success when the
// response header arrived. If that was the last success, consecutive failures are counted as if it had not
// happened, so that a target which cuts off every response is ejected. For example, after two failures, a
// success that is cut off counts as the third failure.
func (p *pool) correctTraffic(m *member, res result, s success) {
	if p.health.Unhealthy < 0 || res.severity() == severityNone {
		return
	}
	if s.consecutive != 0 && m.successes.Load() == s.number {
		m.failures.Add(s.consecutive)
	}
	p.countFailure(m, res)
}

// minOvertaken is the number of attempts in a row that were canceled because a hedge answered first, after
// which the next one may count as a failure.
const minOvertaken = 10

// recordOvertaken updates m after an attempt that was canceled because a hedge answered first. It counts a
// failure if m has sent no response for the timeout of an attempt: without hedging, the attempts would have
// timed out. If timeout is not positive, there is no timeout, and nothing is counted.
func (p *pool) recordOvertaken(m *member, timeout time.Duration) {
	if p.health.Unhealthy < 0 || timeout <= 0 {
		return
	}
	now := time.Now()
	p.mu.Lock()
	row := m.overtaken.Add(1)
	if row == 1 {
		m.silent = now
	}
	failed := row > minOvertaken && now.Sub(m.silent) >= timeout
	p.mu.Unlock()
	if failed {
		p.countFailure(m, result{err: ErrTimeout})
	}
}

func (p *pool) countFailure(m *member, res result) {
	severity := res.severity()
	failures := m.failures.Add(1)
	if failures == 1 || int32(severity) < m.mildest.Load() {
		m.mildest.Store(int32(severity))
	}
	if int(failures) >= p.health.Unhealthy {
		p.eject(m, res)
	}
}

// eject ejects m after too many consecutive failures. last is the last one. eject does nothing if m is
// already ejected. If the share MaxEjected of the pool is ejected, m is ejected in place of a member with
// milder failures, which gets requests again. If there is no such member, eject does nothing.
func (p *pool) eject(m *member, last result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(m.ejected.until) {
		return
	}
	ejected := 1
	var mildest *member
	for _, other := range p.members {
		if now.Before(other.ejected.until) {
			ejected++
			if mildest == nil || other.ejected.severity < mildest.ejected.severity {
				mildest = other
			}
		}
	}
	// The mildest failure decides. A client may be able to provoke 503s. If one failed dial among them
	// decided, m could stay ejected in place of a target that is really down.
	severity := severity(m.mildest.Load())
	if float64(ejected) > p.health.MaxEjected*float64(len(p.members)) {
		if mildest == nil || mildest.ejected.severity >= severity {
			return
		}
		mildest.ejected = ejection{}
		mildest.failures.Store(0)
	}
	m.passed = 0 // probes that passed before the ejection do not end it
	doublings := min(m.ejections.Add(1)-1, maxDoubling)
	m.ejected = ejection{
		until:    now.Add(min(p.health.EjectFor, math.MaxInt64>>doublings) << doublings),
		severity: severity,
		reason:   fmt.Sprintf("ejected: %d failures in a row, the last: %s", m.failures.Swap(0), last.describe()),
	}
	p.choose()
}

// recordProbe updates m with the result of a probe. err is nil if the probe passed.
func (p *pool) recordProbe(m *member, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		m.passed, m.failed = m.passed+1, 0
		if m.passed < p.health.Healthy || !m.out(time.Now()) {
			return
		}
		m.sick, m.ejected = "", ejection{}
		m.failures.Store(0)
	} else {
		m.passed, m.failed = 0, m.failed+1
		if p.health.Unhealthy < 0 || m.failed < p.health.Unhealthy || m.sick != "" {
			return
		}
		m.sick = "probe: " + err.Error()
	}
	p.choose()
}

// CheckHealth probes every target until ctx ends, and then returns ctx.Err(). It blocks, so call it on its
// own goroutine. NewUpstream does not start one. At most 16 probes run at the same time, on goroutines that
// end before CheckHealth returns. Without HealthOptions.Path, CheckHealth returns an error at once.
//
// The first round starts at once. The pauses between rounds vary by a tenth, so that many gateways do not
// probe at the same moment.
func (u *Upstream) CheckHealth(ctx context.Context) error {
	if u.probe == nil {
		return errors.New("gateway: Upstream.CheckHealth: no HealthOptions.Path")
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		u.pool.mu.Lock()
		members := u.pool.members
		u.pool.mu.Unlock()
		var round sync.WaitGroup
		slots := make(chan struct{}, 16)
		for _, m := range members {
			slots <- struct{}{}
			round.Go(func() {
				defer func() { <-slots }()
				err := u.probeSafely(ctx, m)
				if ctx.Err() == nil {
					u.pool.recordProbe(m, err)
				}
			})
		}
		round.Wait()
		interval := min(u.opts.Health.Interval, math.MaxInt64/2) // leaves room for the variation
		pause.Reset(interval - interval/20 + rand.N(interval/10+1))
	}
}

// probeSafely calls probeTarget, and returns a panic of the transport as an error. On this goroutine, a panic
// would end the process.
func (u *Upstream) probeSafely(ctx context.Context, m *member) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = logPanic("a probe panicked", p, slog.String("upstream", u.name))
		}
	}()
	return u.probeTarget(ctx, m)
}

// probeTarget sends one probe to m. It returns nil if the probe passed.
func (u *Upstream) probeTarget(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, u.opts.Health.Timeout)
	defer cancel()
	link := *u.probe
	setTarget(&link, m.URL)
	host := ""
	if link.Scheme == schemeUnix {
		host = unixHost
	}
	r := (&http.Request{Method: http.MethodGet, URL: &link, Host: host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"gateway-health"}}}).WithContext(ctx)
	res, err := u.opts.Transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that the connection can be reused
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// Status returns a snapshot of the state of each target, in the order of the targets. Use it in health
// endpoints and status pages.
func (u *Upstream) Status() []TargetStatus {
	p := &u.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	all := make([]TargetStatus, len(p.members))
	for i, m := range p.members {
		link := *m.URL
		all[i] = TargetStatus{
			Target:  Target{URL: &link, Weight: m.Weight},
			Healthy: !m.out(now),
			Pending: int(m.pending.Load()),
			Reason:  m.reason(now),
		}
	}
	return all
}

// parseProbe parses HealthOptions.Path, which may have a query.
func parseProbe(path string) (*url.URL, error) {
	u, err := url.Parse(path)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "" || u.Host != "" || u.Opaque != "" || len(u.Path) == 0 || u.Path[0] != '/' {
		return nil, fmt.Errorf("%q is not a path", path)
	}
	return u, nil
}
