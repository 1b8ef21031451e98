package bodywait_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway/internal/bodywait"
)

const ms = time.Millisecond

// TestClock: the steps alternate between the target's time and the client's, beginning with the target's. The
// last one is under way.
func TestClock(t *testing.T) {
	for _, tt := range []struct {
		name                       string
		steps                      []time.Duration
		complete                   bool // the last read that ended was the last of the body
		clientTime                 time.Duration
		late, stalled, keptWaiting bool
	}{
		{"the client sends", []time.Duration{10 * ms, 20 * ms}, false, 20 * ms, true, false, false},
		{"the client stalls", []time.Duration{10 * ms, 25 * ms}, false, 25 * ms, true, true, false},
		{"the client stalls for most of the time", []time.Duration{99 * ms, 100 * ms}, false, 100 * ms, true, true, true},
		{"the client stalls for less than half", []time.Duration{101 * ms, 100 * ms}, false, 100 * ms, true, true, false},
		{"the client takes a second", []time.Duration{10 * ms, 500 * ms, 10 * ms, 480 * ms}, false, 980 * ms, true, true, true},
		{"the target has part of the body, for a moment", []time.Duration{10 * ms, 500 * ms, 10 * ms}, false, 500 * ms, true, false, false},
		{"the target has part of the body, for half of the time", []time.Duration{0, 50 * ms, 51 * ms}, false, 50 * ms, false, false, false},
		{"the target has part of the body, for a second", []time.Duration{0, 9 * time.Second, time.Second}, false, 9 * time.Second, false, false, false},
		{"a slow body, of which the target has just got a part", []time.Duration{0, 9 * time.Second, 10 * ms}, false, 9 * time.Second, true, true, true},
		{"the target has the whole body", []time.Duration{10 * ms, 900 * ms, 10 * ms}, true, 900 * ms, false, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := bodywait.Start(false)
				for i, d := range tt.steps {
					switch {
					case i%2 == 1:
						c.BeginRead()
					case i > 0:
						c.EndRead(tt.complete && i == len(tt.steps)-1)
					}
					if c.Reading() != (i%2 == 1) || time.Since(c.Since()) != 0 {
						t.Errorf("step %d: reading %v, since %v", i, c.Reading(), time.Since(c.Since()))
					}
					time.Sleep(d)
				}
				if c.Complete() != tt.complete || c.ClientTime() != tt.clientTime {
					t.Errorf("complete %v; the client's time is %v, want %v", c.Complete(), c.ClientTime(), tt.clientTime)
				}
				if c.ClientIsLate() != tt.late || c.Stalled() != tt.stalled || c.KeptWaiting() != tt.keptWaiting {
					t.Errorf("late %v, stalled %v, kept waiting %v", c.ClientIsLate(), c.Stalled(), c.KeptWaiting())
				}
			})
		})
	}
}

// TestNothingToWaitFor: a request without a body never waits for its client.
func TestNothingToWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bodywait.Start(true)
		c.BeginRead()
		time.Sleep(time.Hour)
		if c.Reading() || c.ClientTime() != 0 || c.ClientIsLate() || c.Stalled() || c.KeptWaiting() {
			t.Errorf("%+v", c)
		}
	})
}
