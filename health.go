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

// HealthOptions say when a target is left out. A target is out while its probes fail, or for a time after
// its traffic failed. When all are out, all are tried: a gateway that refuses everything because its checks
// do would be worse than the targets are.
type HealthOptions struct {
	Path       string        // active probe, which CheckHealth makes: GET, and 2xx or 3xx passes; "" means none
	Interval   time.Duration // 0 means 5s
	Timeout    time.Duration // 0 means 1s
	Healthy    int           // passes in a row that bring a target back, from ejection too; 0 means 2
	Unhealthy  int           // failures in a row, probes or traffic, that eject it; 0 means 3, negative never
	EjectFor   time.Duration // passive ejection, doubled each time in a row, up to 64 times; 0 means 10s
	MaxEjected float64       // share of the pool that passive ejection may take; 0 means 0.5, negative none
}

// check refuses what has no meaning; where a field does not say what a negative value means, it has none.
func (o HealthOptions) check() error {
	switch {
	case o.Interval < 0, o.Timeout < 0, o.Healthy < 0, o.EjectFor < 0:
		return errors.New("negative: Interval, Timeout, Healthy and EjectFor must not be")
	case o.MaxEjected > 1 || o.MaxEjected != o.MaxEjected:
		return errors.New("more than the pool: MaxEjected is a share of it, at most 1")
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

// TargetStatus is how one target is.
type TargetStatus struct {
	Target  Target
	Healthy bool
	Pending int    // requests in flight
	Reason  string // why it is out; "" while healthy
}

// maxDoubling bounds how long a target that keeps failing is ejected: 64 times EjectFor.
const maxDoubling = 6

// member is a target in a pool, and how it does.
type member struct {
	Target
	pending   atomic.Int64
	failures  atomic.Int32 // of traffic, in a row
	ejections atomic.Int32 // in a row

	// Guarded by pool.mu.
	passed, failed int       // probes in a row
	sick           bool      // by probes
	ejectedUntil   time.Time // by traffic
	reason         string
}

// out reports whether m is left out at now.
func (m *member) out(now time.Time) bool { return m.sick || now.Before(m.ejectedUntil) }

// pool is the targets of an Upstream.
type pool struct {
	health HealthOptions
	in     atomic.Pointer[choice]

	mu      sync.Mutex
	members []*member
}

// choice is what a balancer may choose from. It is replaced, never changed.
type choice struct {
	members []*member
	targets []Target  // the same
	until   time.Time // when the first of the others may come back; zero: none will by itself
}

// replace makes targets the pool. One that stays, by its URL, keeps its state.
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
		delete(stay, key) // of two alike, each is its own
		m.Weight = max(1, t.Weight)
		p.members[i] = m
	}
	p.choose()
}

// choice returns the members that are in, or all when none is.
func (p *pool) choice() *choice {
	c := p.in.Load()
	if c.until.IsZero() || time.Now().Before(c.until) {
		return c
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.choose()
}

// choose finds anew who is in. The caller holds mu.
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
	p.in.Store(c)
	return c
}

// without returns c less the members that were tried, or c when nobody else is left.
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

// saw judges m by how traffic to it did. What is nobody's failure says nothing.
func (p *pool) saw(m *member, o Outcome) {
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
	m.passed = 0 // what it passed before tells nothing of now
	doublings := min(m.ejections.Add(1)-1, maxDoubling)
	m.ejectedUntil = now.Add(min(p.health.EjectFor, math.MaxInt64>>doublings) << doublings)
	m.reason = fmt.Sprintf("ejected: %d failures in a row, the last: %s", m.failures.Swap(0), o)
	p.choose()
}

// probed judges m by a probe; err is nil for one that passed.
func (p *pool) probed(m *member, err error) {
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

// CheckHealth probes every target until ctx ends, whose error it returns. The package starts no goroutine by
// itself: run it with go. At most 16 probes run at once, on goroutines that end with it. Without
// HealthOptions.Path it returns an error at once.
//
// The first round is made at once, and the pauses between rounds vary by a tenth, so that many gateways do
// not probe together.
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
		members := u.pool.members // is replaced, never changed
		u.pool.mu.Unlock()
		var round sync.WaitGroup
		places := make(chan struct{}, 16)
		for _, m := range members {
			places <- struct{}{}
			round.Go(func() {
				defer func() { <-places }()
				err := u.ask(ctx, m)
				if ctx.Err() == nil {
					u.pool.probed(m, err)
				}
			})
		}
		round.Wait()
		pause.Reset(time.Duration(float64(u.opts.Health.Interval) * (0.95 + 0.1*rand.Float64())))
	}
}

// ask probes m once.
func (u *Upstream) ask(ctx context.Context, m *member) error {
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
	_, _ = io.CopyN(io.Discard, res.Body, 4<<10) // so that the connection can be used again
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// Status is a snapshot for probes and pages, in the order of the targets.
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

// parseProbe reads HealthOptions.Path.
func parseProbe(path string) (*url.URL, error) {
	u, err := url.Parse(path)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "" || u.Host != "" || u.Opaque != "" || len(u.Path) == 0 || u.Path[0] != '/' {
		return nil, fmt.Errorf("%q is no path", path)
	}
	return u, nil
}
