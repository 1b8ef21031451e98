package gateway_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// circuitModel is a second, simpler implementation of the contract: it keeps every event of a closed period.
type circuitModel struct {
	o     gateway.CircuitOptions
	state gateway.CircuitState
	until time.Time

	began  time.Time // of the closed period
	events []*circuitEvent

	calls     map[*circuitCall]bool // of the half-open period, that hold a place
	successes int
	period    int
}

type circuitEvent struct {
	success bool
	stands  bool // a success that was not taken back
	failed  bool // in the window
	slot    int64
}

type circuitCall struct {
	done   func(gateway.Outcome, int)
	period int
	probe  bool
	start  time.Time
	stage  int // 0: no result; 1: a success; 2: over
	event  *circuitEvent
}

func (m *circuitModel) to(s gateway.CircuitState, d time.Duration) {
	m.state, m.until = s, time.Now().Add(d)
	m.period++
	m.began, m.events = time.Now(), nil
	m.calls, m.successes = make(map[*circuitCall]bool), 0
}

func (m *circuitModel) now() gateway.CircuitState {
	if m.state == gateway.CircuitOpen && !time.Now().Before(m.until) {
		m.to(gateway.CircuitHalfOpen, 0)
	}
	return m.state
}

func (m *circuitModel) allow(call *circuitCall) bool {
	switch m.now() {
	case gateway.CircuitOpen:
		return false
	case gateway.CircuitHalfOpen:
		for other := range m.calls {
			if time.Since(other.start) >= m.o.OpenFor {
				delete(m.calls, other)
			}
		}
		// A probe that succeeds after its place was freed takes none.
		if len(m.calls)+m.placed() >= m.o.Probes {
			return false
		}
		m.calls[call] = true
		call.probe = true
	}
	call.period, call.start = m.period, time.Now()
	return true
}

// placed counts the successes of probes that still had their place: gobreaker does not give these places
// back.
func (m *circuitModel) placed() int {
	n := 0
	for _, e := range m.events {
		if e.success {
			n++
		}
	}
	return n
}

func (m *circuitModel) done(call *circuitCall, o gateway.Outcome) {
	neutral := o == gateway.OutcomeClientCanceled || o == gateway.OutcomeRejected || o == gateway.OutcomeInternal || o == gateway.OutcomeUnavailable
	failed := o == gateway.OutcomeTimeout || o == gateway.OutcomeUpstreamError || o == gateway.OutcomeAborted
	cut := false
	switch {
	case call.stage == 0 && (neutral || failed):
		call.stage = 2
	case call.stage == 0:
		if call.stage = 1; m.o.SlowCall > 0 && time.Since(call.start) > m.o.SlowCall {
			failed, call.stage = true, 2
		}
	case call.stage == 1 && o == gateway.OutcomeAborted:
		call.stage, cut = 2, true
	default:
		return
	}
	if call.period != m.period {
		return
	}
	if call.probe {
		placed := m.calls[call]
		delete(m.calls, call)
		switch {
		case neutral:
		case failed:
			m.to(gateway.CircuitOpen, m.o.OpenFor)
		default:
			m.events = append(m.events, &circuitEvent{success: placed})
			if m.successes++; m.successes == m.o.Probes {
				m.to(gateway.CircuitClosed, 0)
			}
		}
		return
	}
	if neutral {
		return
	}
	slot := int64(time.Since(m.began) / (m.o.Window / 20))
	event := &circuitEvent{success: !failed, stands: !failed, failed: failed, slot: slot}
	switch {
	case !failed:
		call.event = event
	case cut:
		call.event.stands = false
		call.event.slot = -1000 // its request is counted as the failure that it was
	}
	m.events = append(m.events, event)
	row := 0
	for _, e := range slices.Backward(m.events) {
		if e.stands {
			break
		}
		if !e.success {
			row++
		}
	}
	if m.o.Failures > 0 && row >= m.o.Failures {
		m.to(gateway.CircuitOpen, m.o.OpenFor)
		return
	}
	requests, failures := 0, 0
	for _, e := range m.events {
		if e.slot > slot-20 {
			requests++
			if e.failed {
				failures++
			}
		}
	}
	if m.o.Ratio > 0 && requests >= m.o.MinRequests && float64(failures)/float64(requests) >= m.o.Ratio {
		m.to(gateway.CircuitOpen, m.o.OpenFor)
	}
}

func (m *circuitModel) trip(d time.Duration) {
	if d <= 0 {
		return
	}
	if m.state != gateway.CircuitOpen {
		m.to(gateway.CircuitOpen, d)
	} else if until := time.Now().Add(d); until.After(m.until) {
		m.until = until
	}
}

var circuitSequences = flag.Int("circuit-sequences", 800, "how many sequences TestCircuitAgainstModel plays")

// All 100,000 sequences take about two minutes: go test -run CircuitAgainstModel -circuit-sequences 100000 .
func TestCircuitAgainstModel(t *testing.T) {
	runs := *circuitSequences
	if testing.Short() {
		runs = min(runs, 200)
	}
	seen := make(map[gateway.CircuitState]int)
	for seed := range uint64(runs) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			o := gateway.CircuitOptions{
				Failures:    []int{-1, 1, 3, 5, 8}[rnd.IntN(5)],
				Ratio:       []float64{0, 0, 0.3, 0.5, 1}[rnd.IntN(5)],
				MinRequests: 1 + rnd.IntN(12),
				Window:      time.Duration(2+rnd.IntN(10)) * time.Second,
				SlowCall:    time.Duration(rnd.IntN(3)) * time.Second,
				OpenFor:     time.Duration(1+rnd.IntN(5)) * time.Second,
				Probes:      1 + rnd.IntN(4),
			}
			c := gateway.NewCircuit("c", &o)
			m := &circuitModel{o: o}
			m.to(gateway.CircuitClosed, 0)
			var calls []*circuitCall
			var log []string
			bad := rnd.Float64() * 0.7 // the share of calls that may fail
			for range 150 {
				switch n := rnd.IntN(100); {
				case n < 35:
					call := &circuitCall{}
					done, err := c.Allow()
					log = append(log, fmt.Sprintf("allow %d: %v", len(calls), err))
					if want := m.allow(call); want != (err == nil) {
						t.Fatalf("seed %d, %+v\n%s\nmodel lets through: %v", seed, o, strings.Join(log, "\n"), want)
					}
					if err == nil {
						call.done = done
						calls = append(calls, call)
					}
				case n < 80 && len(calls) > 0:
					i := rnd.IntN(len(calls))
					if rnd.IntN(2) == 0 {
						i = len(calls) - 1 // the newest, which is hardly over
					}
					call, outcome := calls[i], gateway.Outcome(rnd.IntN(7))
					if call.stage == 1 && rnd.IntN(2) == 0 {
						outcome = gateway.OutcomeAborted
					} else if rnd.Float64() > bad {
						outcome = gateway.OutcomeOK
					}
					log = append(log, fmt.Sprintf("done %d: %v", i, outcome))
					call.done(outcome, 200)
					m.done(call, outcome)
				case n < 97:
					d := time.Duration(rnd.IntN(1500)) * time.Millisecond
					log = append(log, "wait "+d.String())
					time.Sleep(d)
				default:
					d := time.Duration(rnd.IntN(4000)-500) * time.Millisecond
					log = append(log, "trip "+d.String())
					c.Trip(d)
					m.trip(d)
				}
				if rnd.IntN(3) > 0 {
					got, want := c.State(), m.now()
					log = append(log, "state "+got.String())
					if seen[got]++; got != want {
						t.Fatalf("seed %d, %+v\n%s\nmodel says %v", seed, o, strings.Join(log, "\n"), want)
					}
				}
			}
		})
	}
	for s := gateway.CircuitClosed; s <= gateway.CircuitOpen; s++ {
		if seen[s] < 100 {
			t.Errorf("the runs were %v only %d times", s, seen[s])
		}
	}
}
