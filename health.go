package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// HealthOptions configures when a target is left out of the pool. A target is out while its probes fail, and
// for a time after its traffic failed (passive ejection). When every target is out, requests go to all of
// them: a gateway that refuses everything would be worse than targets that may be sick.
type HealthOptions struct {
	Path      string        // path of CheckHealth's probe, a GET that passes with 2xx or 3xx; "" means no probes
	Interval  time.Duration // between probes; 0 means 5s
	Timeout   time.Duration // of a probe; 0 means 1s
	Healthy   int           // passed probes in a row that bring a target back, from ejection too; 0 means 2
	Unhealthy int           // failures in a row, of probes or of traffic, that take it out; 0 means 3, negative never

	// EjectFor is how long a passive ejection lasts. 0 means 10s. It doubles with each ejection in a row, up
	// to 64 times EjectFor: with 10s, a target that fails again after each return is out for 10s, 20s, 40s
	// and so on, and at most for 640s. A success ends the row.
	EjectFor time.Duration

	// MaxEjected is the share of the pool that may be passively ejected at the same time, at most 1. 0 means
	// 0.5, negative none.
	MaxEjected float64
}

// check returns an error for a value without a meaning. A negative value has one only where its field says
// so.
func (o HealthOptions) check() error {
	switch {
	case o.Interval < 0, o.Timeout < 0, o.Healthy < 0, o.EjectFor < 0:
		return errors.New("Interval, Timeout, Healthy and EjectFor must not be negative")
	case o.MaxEjected > 1 || o.MaxEjected != o.MaxEjected:
		return errors.New("MaxEjected is a share of the pool, at most 1")
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
	Reason  string // why it is out of the pool; "" while healthy
}

// maxDoubling bounds an ejection to 64 times EjectFor.
const maxDoubling = 6

// member is a target in a pool, with its state.
type member struct {
	Target
	pending   atomic.Int64
	failures  atomic.Int32 // failures of traffic in a row
	ejections atomic.Int32 // ejections in a row

	// Guarded by pool.mu.
	passed, failed int       // probes that passed or failed in a row
	sick           bool      // out because its probes failed
	ejectedUntil   time.Time // out until then because its traffic failed
	reason         string    // of the last time that it went out
}

// out reports whether m is out of the pool at this time.
func (m *member) out(now time.Time) bool { return m.sick || now.Before(m.ejectedUntil) }

// pool holds the targets of an Upstream and decides which of them get requests.
type pool struct {
	health  HealthOptions
	current atomic.Pointer[choice]

	mu      sync.Mutex
	members []*member // replaced as a whole, never changed
}

// choice is what a balancer may choose from. It is replaced as a whole, never changed.
type choice struct {
	members []*member
	targets []Target  // of members, at the same indices
	until   time.Time // when the first ejection of another member ends; zero if none is ejected
}

// replace makes targets the members of the pool. A target whose URL was there before keeps its state.
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
		delete(stay, key) // a second target with this URL gets a state of its own
		m.Weight = max(1, t.Weight)
		p.members[i] = m
	}
	p.choose()
}

// choice returns the members that are not out, or all members when every one is.
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
			c.members = append(c.members, m)
			continue
		}
		if !m.sick && (c.until.IsZero() || m.ejectedUntil.Before(c.until)) {
			c.until = m.ejectedUntil
		}
	}
	if len(c.members) == 0 {
		c.members = p.members
	}
	c.targets = make([]Target, len(c.members))
	for i, m := range c.members {
		c.targets[i] = m.Target
	}
	p.current.Store(c)
	return c
}

// without returns c without the members that were tried, or c itself when no other member is left.
func (c *choice) without(tried []*member) *choice {
	rest := &choice{}
next:
	for i, m := range c.members {
		for _, t := range tried {
			if t == m {
				continue next
			}
		}
		rest.members = append(rest.members, m)
		rest.targets = append(rest.targets, c.targets[i])
	}
	if len(rest.members) == 0 {
		return c
	}
	return rest
}

// recordTraffic updates m by the outcome of an attempt. An outcome that is neither a success nor the target's
// failure, such as a client that left, changes nothing.
func (p *pool) recordTraffic(m *member, o Outcome) {
	if p.health.Unhealthy < 0 {
		return
	}
	switch {
	case o == OutcomeOK:
		if m.failures.Load() != 0 {
			m.failures.Store(0)
		}
		if m.ejections.Load() != 0 {
			m.ejections.Store(0)
		}
	case isFailure(o) && o != OutcomeInternal:
		if int(m.failures.Add(1)) < p.health.Unhealthy {
			return
		}
		p.eject(m, o)
	}
}

// eject takes m out for a time, after a row of failures that ended with o. It does nothing when m is ejected
// already, or when too much of the pool is.
func (p *pool) eject(m *member, o Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(m.ejectedUntil) {
		return
	}
	ejected := 1
	for _, other := range p.members {
		if now.Before(other.ejectedUntil) {
			ejected++
		}
	}
	if float64(ejected) > p.health.MaxEjected*float64(len(p.members)) {
		return
	}
	m.passed = 0 // probes that passed before the ejection do not end it
	doublings := min(m.ejections.Add(1)-1, maxDoubling)
	m.ejectedUntil = now.Add(min(p.health.EjectFor, math.MaxInt64>>doublings) << doublings)
	m.reason = fmt.Sprintf("ejected: %d failures in a row, the last: %s", m.failures.Swap(0), o)
	p.choose()
}

// recordProbe updates m by the result of a probe. err is nil for a probe that passed.
func (p *pool) recordProbe(m *member, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		m.passed, m.failed = m.passed+1, 0
		if m.passed < p.health.Healthy || !m.out(time.Now()) {
			return
		}
		m.sick, m.ejectedUntil, m.reason = false, time.Time{}, ""
		m.failures.Store(0)
	} else {
		m.passed, m.failed = 0, m.failed+1
		if p.health.Unhealthy < 0 || m.failed < p.health.Unhealthy || m.sick {
			return
		}
		m.sick, m.reason = true, "probe: "+err.Error()
	}
	p.choose()
}

// CheckHealth probes every target until ctx ends, and returns ctx's error. It blocks, so start it with go:
// the package starts no goroutine that the caller did not ask for. At most 16 probes run at the same time, on
// goroutines that end before CheckHealth does. Without HealthOptions.Path it returns an error at once.
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
				err := u.probeTarget(ctx, m)
				if ctx.Err() == nil {
					u.pool.recordProbe(m, err)
				}
			})
		}
		round.Wait()
		pause.Reset(time.Duration(float64(u.opts.Health.Interval) * (0.95 + 0.1*rand.Float64())))
	}
}

// probeTarget sends one probe to m. It returns nil if the probe passed.
func (u *Upstream) probeTarget(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, u.opts.Health.Timeout)
	defer cancel()
	link := *u.probe
	aim(&link, m.URL)
	r := (&http.Request{Method: http.MethodGet, URL: &link, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
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

// Status returns the state of each target, in the order of the targets. It is a snapshot, for health
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
		}
		if !all[i].Healthy {
			all[i].Reason = m.reason
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
