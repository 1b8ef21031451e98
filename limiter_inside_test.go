package gateway

import (
	"testing"
	"time"
)

// Goroutines read the clock before they get the lock, and clocks are set back. Neither creates units.
func TestLimiterTimeGoesBack(t *testing.T) {
	now := time.Unix(1_000_000_020, 0) // without a monotonic reading; at the start of a minute
	for name, l := range map[string]*MemoryLimiter{
		"token bucket": NewTokenBucket(1, 60, nil),
		"leaky bucket": NewLeakyBucket(1, 59, nil),
		"fixed window": NewFixedWindow(60, time.Minute, nil),
		"overflow":     NewTokenBucket(1, 60, &LimiterOptions{MaxKeys: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "overflow" {
				l.keys.take(now, "the one", 60)
			}
			passed := 0
			for i := range 200 {
				for _, back := range []time.Duration{0, time.Duration(i%50+1) * time.Minute} {
					d := l.keys.take(now.Add(-back), "k", 1)
					if d.OK {
						passed++
					} else if d.RetryAfter <= 0 || d.RetryAfter > time.Minute {
						t.Fatalf("%d: %+v", i, d)
					}
				}
			}
			if passed != 60 {
				t.Errorf("%d passed, want 60", passed)
			}
			if d := l.keys.take(now.Add(time.Minute), "k", 60); !d.OK {
				t.Fatalf("a minute later: %+v", d)
			}
		})
	}
}

// The wall clock can be set back while the monotonic clock goes on.
func TestFixedWindowDoesNotBeginAgain(t *testing.T) {
	now := time.Unix(1_000_000_020, 0)
	w := &fixedWindow{limit: 60, length: time.Minute}
	var s windowCount
	w.Begin(&s, now)
	w.take(&s, now, 60)
	if d := w.take(&s, now.Add(-time.Second), 1); d.OK || d.RetryAfter != 61*time.Second {
		t.Errorf("%+v", d)
	}
}

// A sweep while the clock is set back does not forget a key too early.
func TestSweepTimeGoesBack(t *testing.T) {
	now := time.Unix(1_000_000_020, 0)
	for name, l := range map[string]*MemoryLimiter{
		"token bucket": NewTokenBucket(1, 60, nil),
		"fixed window": NewFixedWindow(60, time.Minute, nil),
	} {
		t.Run(name, func(t *testing.T) {
			l.keys.take(now, "k", 60)
			for i := range 100 {
				l.keys.take(now.Add(-time.Duration(i)*time.Second), "other", 1)
			}
			if d := l.keys.take(now, "k", 1); d.OK {
				t.Error("forgotten")
			}
		})
	}
}
