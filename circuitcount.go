package gateway

import (
	"log/slog"
	"slices"
	"time"

	"github.com/seed-96248d0c/gateway/internal/rolling"
	"github.com/seed-96248d0c/gateway/internal/streak"
)

// period is the time between two changes of a circuit's state. Each period counts anew. When Trip prolongs an
// opening, a new period begins as well.
type period struct {
	state   CircuitState
	until   time.Time // of an open period: when the circuit may turn half-open
	refusal *refusal  // the error for requests that do not pass; nil in a closed period

	// The fields below are guarded by the circuit's mu.

	// Of a closed period.
	failures streak.Streak
	window   rolling.Window[callCounts]

	// Of a half-open period.
	probes []*probe    // those in flight, oldest first
	report func(error) // reports the result of some probe; gobreaker accepts several reports for each
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

// clientWait measures how long a call waits for its client to send the body. That time does not count as the
// upstream's.
type clientWait interface {
	clientTime() time.Duration
	stalled() bool
}

// freeHung makes room for new probes: probes that have run for longest or more no longer count as in flight.
func (p *period) freeHung(now time.Time, longest time.Duration) {
	for len(p.probes) > 0 && now.Sub(p.probes[0].start) >= longest {
		p.probes[0].report(errProbeNeutral)
		p.probes[0].freed = true
		p.probes = p.probes[1:]
	}
}

// freeStalled makes room for a new probe if a probe waits for a client that has stopped sending its body:
// that probe no longer counts as in flight. Otherwise one such client would keep the circuit half-open. It
// reports whether it found such a probe.
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

// callCounts is the content of one slot of the window.
type callCounts struct{ requests, failures int }

func (n callCounts) Plus(m callCounts) callCounts {
	return callCounts{n.requests + m.requests, n.failures + m.failures}
}

func (n callCounts) Minus(m callCounts) callCounts {
	return callCounts{n.requests - m.requests, n.failures - m.failures}
}

// countedSuccess holds what a closed period needs to take a success back.
type countedSuccess struct {
	streak.Success
	slot int64 // of the window
}

// ticket is the permission for one call. The done of a zero ticket does nothing.
type ticket struct {
	circuit *Circuit
	period  *period
	start   time.Time  // when the call began; zero if the circuit does not measure time
	probe   *probe     // nil in a closed period
	client  clientWait // nil if the circuit does not measure time, or if the request has no body

	// The fields below are guarded by the circuit's mu.

	stage   stage
	success countedSuccess // in a closed period, once stage is stageBegun
}

// stage determines which results of a call are still counted.
type stage uint8

const (
	stagePending stage = iota // no result was counted yet
	stageBegun                // a success was counted; a failure can still take it back
	stageOver                 // further results are ignored
)

// verdict is a circuit's judgment of the outcome of a call.
type verdict uint8

const (
	verdictNeutral verdict = iota
	verdictSuccess
	verdictFailure
)

// verdict judges an outcome. It recovers a panic of IsFailure, after which the ticket must still be reported:
// otherwise a probe would stay in flight.
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

// watch makes the circuit subtract the time in which the call waits for its client, as client measures it.
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

// needsClient reports whether the circuit needs to know how long the call waits for its client.
func (t *ticket) needsClient() bool {
	return t.circuit != nil && (t.probe != nil || t.circuit.o.SlowCall > 0)
}

// upstreamTime returns how long the call has taken, without the time in which it waited for its client.
func (t *ticket) upstreamTime(now time.Time) time.Duration {
	d := now.Sub(t.start)
	if t.client != nil {
		d -= t.client.clientTime()
	}
	return d
}

// done is the function that Allow returns.
func (t *ticket) done(o Outcome, status int) { t.report(o, status, o == OutcomeAborted) }

// correct reports the result at the end of a response. If o is a failure, it replaces the success that was
// reported for the response header. Unlike in done, any failure does that, not only OutcomeAborted: the
// status of a gRPC call arrives at the end.
func (t *ticket) correct(o Outcome, status int) { t.report(o, status, true) }

// report counts a result. If late is true, a failure replaces the success that was reported before.
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
