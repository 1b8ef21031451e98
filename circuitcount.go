package gateway

import (
	"log/slog"
	"slices"
	"time"

	"github.com/seed-96248d0c/gateway/internal/rolling"
	"github.com/seed-96248d0c/gateway/internal/streak"
)

// period is the time between two changes of a circuit's state. Its counts end with it. When Trip prolongs an
// opening, a new period begins as well.
type period struct {
	state   CircuitState
	until   time.Time // open: the earliest half-open
	refusal *refusal  // the error for requests that do not pass; nil when closed

	// The fields below are guarded by the circuit's mu.

	// closed:
	failures streak.Streak
	window   rolling.Window[callCounts]

	probes []*probe    // half-open: those in flight, oldest first
	report func(error) // half-open: of some probe; gobreaker accepts more than one report from each
}

// isDue reports whether p is an opening whose time is over.
func (p *period) isDue() bool {
	return p.state == CircuitOpen && !time.Now().Before(p.until)
}

// probe is a call that a half-open circuit has let through.
type probe struct {
	report func(error)
	start  time.Time
	client clientWait // nil if there is no body to wait for
	freed  bool       // it no longer counts as in flight
}

// clientWait measures how long a call waits for the rest of its client's body. That time is not the
// upstream's.
type clientWait interface {
	clientTime() time.Duration
	stalled() bool
}

// freeHung stops counting as in flight the probes that began longest ago or earlier.
func (p *period) freeHung(now time.Time, longest time.Duration) {
	for len(p.probes) > 0 && now.Sub(p.probes[0].start) >= longest {
		p.probes[0].report(errProbeNeutral)
		p.probes[0].freed = true
		p.probes = p.probes[1:]
	}
}

// freeStalled stops counting as in flight a probe that waits for its client, if there is one. Otherwise one
// client that stalls would keep everybody else out. It reports whether there was one.
func (p *period) freeStalled() bool {
	for i, pr := range p.probes {
		if pr.client != nil && pr.client.stalled() {
			pr.report(errProbeNeutral)
			pr.freed = true
			p.probes = slices.Delete(p.probes, i, i+1)
			return true
		}
	}
	return false
}

// probeEnded reports the result of a probe to gobreaker, which may then change the state.
func (p *period) probeEnded(pr *probe, v verdict) {
	if i := slices.Index(p.probes, pr); i >= 0 {
		p.probes = slices.Delete(p.probes, i, i+1)
	}
	switch v {
	case verdictSuccess:
		pr.report(nil)
	case verdictFailure:
		pr.report(errProbeFailed)
	default:
		if !pr.freed {
			pr.report(errProbeNeutral)
		}
	}
}

// callCounts is what one slot of the window holds.
type callCounts struct{ requests, failures int }

func (n callCounts) Plus(m callCounts) callCounts {
	return callCounts{n.requests + m.requests, n.failures + m.failures}
}

func (n callCounts) Minus(m callCounts) callCounts {
	return callCounts{n.requests - m.requests, n.failures - m.failures}
}

// countedSuccess is what a closed period must know of a success in order to take it back.
type countedSuccess struct {
	streak.Success
	slot int64 // of the window
}

// ticket is the permission for one call. The done of a zero ticket does nothing.
type ticket struct {
	circuit *Circuit
	period  *period
	start   time.Time  // zero if the circuit does not need it
	probe   *probe     // nil in a closed period
	client  clientWait // nil if the circuit does not need it, or there is no body to wait for

	// The fields below are guarded by the circuit's mu.

	stage   stage
	success countedSuccess // in a closed period, once stage is stageBegun
}

// stage is how far a call has come.
type stage uint8

const (
	stagePending stage = iota // no result was counted
	stageBegun                // a success was counted, which can still be taken back
	stageOver                 // further results are ignored
)

// verdict is how a circuit judges the outcome of a call.
type verdict uint8

const (
	verdictNeutral verdict = iota
	verdictSuccess
	verdictFailure
)

// verdict judges an outcome. It asks IsFailure, whose panic must not keep a probe's place or a request
// pending.
func (c *Circuit) verdict(o Outcome, status int) (v verdict) {
	if isNeutral(o) {
		return verdictNeutral
	}
	defer func() {
		if p := recover(); p != nil {
			_ = logPanic("a circuit's IsFailure panicked", p, slog.String("circuit", c.name))
			v = verdictNeutral
		}
	}()
	if c.o.IsFailure(o, status) {
		return verdictFailure
	}
	return verdictSuccess
}

// watch makes the circuit leave out the time in which the call waits for its client.
func (t *ticket) watch(client clientWait) {
	if !t.needsClient() {
		return
	}
	t.client = client
	if t.probe != nil {
		t.circuit.mu.Lock()
		t.probe.client = client
		t.circuit.mu.Unlock()
	}
}

// needsClient reports whether it matters to the circuit how long the call waits for its client.
func (t *ticket) needsClient() bool {
	return t.circuit != nil && (t.probe != nil || t.circuit.o.SlowCall > 0)
}

// upstreamTime returns how long the upstream had the call.
func (t *ticket) upstreamTime(now time.Time) time.Duration {
	d := now.Sub(t.start)
	if t.client != nil {
		d -= t.client.clientTime()
	}
	return d
}

// done is the function that Allow returns.
func (t *ticket) done(o Outcome, status int) { t.report(o, status, o == OutcomeAborted) }

// correct takes back a success that was reported at the response headers, and counts a failure instead, if
// the outcome is one. The outcome need not be OutcomeAborted, as it must in done: the status of a gRPC call
// comes last.
func (t *ticket) correct(o Outcome, status int) { t.report(o, status, true) }

// report counts a result. late permits to take back the success that was reported before.
func (t *ticket) report(o Outcome, status int, late bool) {
	c := t.circuit
	if c == nil {
		return
	}
	v := c.verdict(o, status)
	var now time.Time
	if c.o.SlowCall > 0 || c.o.Ratio > 0 {
		now = time.Now()
	}
	c.mu.Lock()
	before := c.period.Load()
	if before == t.period {
		c.count(t, v, late, now)
	}
	changed := c.period.Load() != before
	c.mu.Unlock()
	if changed {
		c.news.deliver(&c.metrics)
	}
}
