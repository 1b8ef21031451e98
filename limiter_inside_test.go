package gateway

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// Goroutines read the clock before they get the lock, and clocks are set back. Neither creates units.
func TestLimiterTimeGoesBack(t *testing.T) {
	now := time.Unix(1_000_000_020, 0) // without a monotonic reading; at the start of a minute
	for name, l := range map[string]*MemoryLimiter{
		"token bucket":   NewTokenBucket(1, 60, nil),
		"leaky bucket":   NewLeakyBucket(1, 59, nil),
		"fixed window":   NewFixedWindow(60, time.Minute, nil),
		"sliding window": NewSlidingWindow(60, time.Minute, nil),
		"overflow":       NewTokenBucket(1, 60, &LimiterOptions{MaxKeys: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "overflow" {
				l.keys.take(now.UnixNano(), "the one", 60)
			}
			passed := 0
			for i := range 200 {
				for _, back := range []time.Duration{0, time.Duration(i%50+1) * time.Minute} {
					v, ok := l.keys.take(now.Add(-back).UnixNano(), "k", 1)
					if ok {
						passed++
					} else if v.pause <= 0 || v.pause > time.Minute+time.Second {
						t.Fatalf("%d: %+v", i, v)
					}
				}
			}
			if passed != 60 {
				t.Errorf("%d passed, want 60", passed)
			}
			later := time.Minute
			if name == "sliding window" {
				later *= 2
			}
			if v, ok := l.keys.take(now.Add(later).UnixNano(), "k", 60); !ok {
				t.Fatalf("a minute later: %+v", v)
			}
		})
	}
}

// The wall clock can be set back while the monotonic clock goes on.
func TestFixedWindowDoesNotBeginAgain(t *testing.T) {
	now := time.Unix(1_000_000_020, 0)
	w := &fixedWindow{limit: 60, length: time.Minute}
	var s windowCount
	w.Begin(&s, now.UnixNano())
	w.take(&s, now.UnixNano(), 60)
	if v, ok := w.take(&s, now.Add(-time.Second).UnixNano(), 1); ok || v.pause != 61*time.Second {
		t.Errorf("%t, %+v", ok, v)
	}
}

// A sweep while the clock is set back does not forget a key too early.
func TestSweepTimeGoesBack(t *testing.T) {
	now := time.Unix(1_000_000_020, 0)
	for name, l := range map[string]*MemoryLimiter{
		"token bucket":   NewTokenBucket(1, 60, nil),
		"fixed window":   NewFixedWindow(60, time.Minute, nil),
		"sliding window": NewSlidingWindow(60, time.Minute, nil),
	} {
		t.Run(name, func(t *testing.T) {
			l.keys.take(now.UnixNano(), "k", 60)
			for i := range 100 {
				l.keys.take(now.Add(-time.Duration(i)*time.Second).UnixNano(), "other", 1)
			}
			if _, ok := l.keys.take(now.UnixNano(), "k", 1); ok {
				t.Error("forgotten")
			}
		})
	}
}

// The arithmetic of a bucket is that of golang.org/x/time/rate: it admits the same, and has the same tokens.
func TestBucketEqualsRateLimiter(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		perSecond, burst := math.Exp(r.Float64()*20-5), 1+r.IntN(1000)
		b := newRateBucket("", perSecond, burst, false)
		now := time.Unix(1_700_000_000, 0)
		want := rate.NewLimiter(rate.Limit(perSecond), burst)
		want.AllowN(now, 0)
		var s bucketState
		b.Begin(&s, now.UnixNano())
		for i := range 2000 {
			now = now.Add(time.Duration(r.ExpFloat64() * 1e9 / perSecond * float64(1+r.IntN(3))))
			n := 1 + r.IntN(burst)/(1+r.IntN(burst))
			ok := want.AllowN(now, n)
			if _, got := b.take(&s, now.UnixNano(), n); got != ok {
				t.Fatalf("seed %d, take %d of %d: OK %t, want %t, with %v tokens", seed, i, n, got, ok, want.TokensAt(now))
			}
			if got, want := b.tokens(&s, now.UnixNano()), want.TokensAt(now); math.Abs(got-want) > 1e-3+perSecond*2e-9 {
				t.Fatalf("seed %d, take %d: %v tokens, want %v", seed, i, got, want)
			}
		}
	}
}

// The wall clock of windows follows time.Now, and is set again when that is set or when the process was suspended.
func TestWallClock(t *testing.T) {
	var c wallClock
	near := func() bool {
		return max(c.now()-time.Now().UnixNano(), time.Now().UnixNano()-c.now()) < int64(time.Second)
	}
	if !near() {
		t.Error("not set at first")
	}
	c.offset.Add(int64(time.Hour))
	c.setAt.Add(-int64(time.Second))
	if !near() {
		t.Error("not set again after a second")
	}
	c.offset.Add(int64(time.Hour))
	c.setAt.Add(int64(time.Hour))
	if !near() {
		t.Error("not set again when the clock has gone back")
	}
}
