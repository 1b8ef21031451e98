package gateway_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// arrival is a cost that was admitted, and when it was to pass.
type arrival struct {
	at   time.Time
	cost int
}

// definition is what an algorithm is meant to admit, written as plainly as can be. It is independent of the limiter.
type definition interface {
	// advance brings the state to now.
	advance(now time.Time)
	// admits reports whether n units pass. Where a nanosecond decides, close is true, and either is right.
	admits(n int) (ok, close bool)
	// spend takes n units, whatever is left.
	spend(n int)
	// most is what may pass in any time of this length, beside rounding.
	most(limit int, length time.Duration) float64
}

// bucketDefinition counts in billionths of a unit.
type bucketDefinition struct {
	rate, burst, level int64
	at                 time.Time
	leaky              bool
}

func (b *bucketDefinition) advance(now time.Time) {
	b.level = min(b.burst*1e9, b.level+int64(now.Sub(b.at))*b.rate)
	b.at = now
}

func (b *bucketDefinition) admits(n int) (ok, close bool) {
	lack := int64(n)*1e9 - b.level
	return int64(n) <= b.burst && lack <= 0, lack > -3*b.rate && lack < 3*b.rate
}

func (b *bucketDefinition) spend(n int) { b.level -= int64(n) * 1e9 }

func (b *bucketDefinition) most(limit int, length time.Duration) float64 {
	if b.leaky {
		limit = 1 // after the waits
	}
	return float64(limit) + float64(b.rate)*length.Seconds()
}

// windowDefinition counts by windows that are aligned to the epoch.
type windowDefinition struct {
	limit        int
	length       time.Duration
	now          time.Time
	window       int64
	before, used int
	sliding      bool
}

func (w *windowDefinition) advance(now time.Time) {
	for window := now.UnixNano() / int64(w.length); w.window < window; w.window++ {
		if w.window < window-1000 {
			w.window, w.before, w.used = window-1000, 0, 0 // no test makes so large a debt
		}
		w.before = min(w.used, w.limit)
		w.used -= w.before // what is left is a debt
	}
	w.now = now
}

func (w *windowDefinition) admits(n int) (ok, close bool) {
	estimate := int64(w.used+n) * int64(w.length)
	if w.sliding {
		left := int64(w.length) - w.now.UnixNano()%int64(w.length)
		estimate += int64(w.before) * left
	}
	return estimate <= int64(w.limit)*int64(w.length), false
}

func (w *windowDefinition) spend(n int) { w.used += n }

func (w *windowDefinition) most(limit int, length time.Duration) float64 {
	if w.sliding {
		return float64(limit) * (1 + float64(length)/float64(w.length))
	}
	return float64(limit) * float64(2+length/w.length)
}

type limiterCase struct {
	name string
	make func() (*gateway.MemoryLimiter, definition)
}

func limiterCases(r *rand.Rand) []limiterCase {
	rate, limit := int64(1+r.IntN(50)), 1+r.IntN(12)
	window := time.Duration(1+r.IntN(2000)) * msec
	bucket := func(leaky bool) *bucketDefinition {
		return &bucketDefinition{rate: rate, burst: int64(limit), level: int64(limit) * 1e9, at: time.Now(), leaky: leaky}
	}
	windows := func(sliding bool) *windowDefinition {
		return &windowDefinition{limit: limit, length: window, sliding: sliding, window: time.Now().UnixNano() / int64(window)}
	}
	of := func(what string) string { return fmt.Sprintf("%s of %d, %d/s or %v", what, limit, rate, window) }
	return []limiterCase{
		{of("token bucket"), func() (*gateway.MemoryLimiter, definition) {
			return gateway.NewTokenBucket(float64(rate), limit, nil), bucket(false)
		}},
		{of("leaky bucket"), func() (*gateway.MemoryLimiter, definition) {
			return gateway.NewLeakyBucket(float64(rate), limit-1, nil), bucket(true)
		}},
		{of("fixed window"), func() (*gateway.MemoryLimiter, definition) {
			return gateway.NewFixedWindow(limit, window, nil), windows(false)
		}},
		{of("sliding window"), func() (*gateway.MemoryLimiter, definition) {
			return gateway.NewSlidingWindow(limit, window, nil), windows(true)
		}},
	}
}

// Random arrivals: each algorithm admits exactly what its definition admits, never more than its bound in any time, and
// its answers about the future come true.
func TestLimitersKeepTheirDefinition(t *testing.T) {
	for seed := range uint64(60) {
		for _, debts := range []bool{false, true} {
			r := rand.New(rand.NewPCG(seed, 11))
			for i := range limiterCases(r) {
				synctest.Test(t, func(t *testing.T) {
					time.Sleep(time.Duration(seed) * 123456789)
					c := limiterCases(rand.New(rand.NewPCG(seed, 11)))[i]
					l, def := c.make()
					playArrivals(t, fmt.Sprintf("%s, seed %d", c.name, seed), l, def, rand.New(rand.NewPCG(seed, uint64(i))), debts)
				})
			}
		}
	}
}

func playArrivals(t *testing.T, name string, l *gateway.MemoryLimiter, def definition, r *rand.Rand, debts bool) {
	var passed []arrival
	limit := 0
	take := func(n int) gateway.Decision {
		d, err := l.Take(t.Context(), "k", n)
		if err != nil {
			t.Fatal(err)
		}
		def.advance(time.Now())
		ok, close := def.admits(n)
		if d.OK != ok && !close {
			t.Fatalf("%s: %d units: OK %t, by definition %t: %+v", name, n, d.OK, ok, d)
		}
		if d.OK {
			def.spend(n)
			passed = append(passed, arrival{time.Now().Add(d.Wait), n})
		}
		if whole, close := def.admits(d.Remaining); d.Remaining > 0 && !whole && !close {
			t.Fatalf("%s: %d remain, and would not pass: %+v", name, d.Remaining, d)
		}
		if more, close := def.admits(d.Remaining + 1); d.Remaining < d.Limit && more && !close {
			t.Fatalf("%s: %d remain, and one more would pass: %+v", name, d.Remaining, d)
		}
		limit = d.Limit
		return d
	}
	for range 150 {
		pause := time.Duration(r.ExpFloat64() * float64(60*msec))
		switch r.IntN(10) {
		case 0:
			pause = 0
		case 1:
			pause *= 20
		}
		time.Sleep(pause)
		n := 1
		if r.IntN(3) == 0 {
			n += r.IntN(max(1, limit+1))
		}
		if debts && r.IntN(8) == 0 {
			n := 1 + r.IntN(5*limit+1)
			_ = l.Owe(t.Context(), "k", n)
			def.advance(time.Now())
			def.spend(n)
		}
		d := take(n)
		if (d.RetryAfter > 0) != (!d.OK && n <= d.Limit) {
			t.Fatalf("%s: %d units: %+v", name, n, d)
		}
		if d.RetryAfter > 2*msec && r.IntN(2) == 0 {
			time.Sleep(d.RetryAfter - msec)
			if early := take(n); early.OK {
				t.Fatalf("%s: %d units pass 1ms before RetryAfter %v", name, n, d.RetryAfter)
			}
			time.Sleep(msec)
			if late := take(n); !late.OK {
				t.Fatalf("%s: %d units do not pass after RetryAfter %v: %+v", name, n, d.RetryAfter, late)
			}
			continue
		}
		if d.ResetAfter > 2*msec && r.IntN(12) == 0 {
			time.Sleep(d.ResetAfter - msec)
			if early := take(limit); early.OK {
				t.Fatalf("%s: the whole allowance passes 1ms before ResetAfter %v", name, d.ResetAfter)
			}
			time.Sleep(msec)
			if late := take(limit); !late.OK {
				t.Fatalf("%s: the whole allowance does not pass after ResetAfter %v: %+v", name, d.ResetAfter, late)
			}
		}
	}
	checkBound(t, name, passed, limit, def)
}

// checkBound looks at the time between any two arrivals.
func checkBound(t *testing.T, name string, passed []arrival, limit int, def definition) {
	for i := range passed {
		sum := 0
		for j := i; j < len(passed); j++ {
			// A cost of n takes n slots of a leaky bucket, of which the first is when it passes.
			if b, ok := def.(*bucketDefinition); ok && b.leaky {
				if j > i {
					sum += passed[j-1].cost
				}
			} else {
				sum += passed[j].cost
			}
			length := passed[j].at.Sub(passed[i].at)
			most := def.most(limit, length)
			if b, ok := def.(*bucketDefinition); ok && b.leaky {
				most--
			}
			if float64(sum) > most+1e-6 {
				t.Fatalf("%s: %d units in %v, at most %v may pass", name, sum, length, most)
			}
		}
	}
}

// The error of the sliding window's estimate reaches the bound that its document states, and evenly spread units are
// counted to within one.
func TestSlidingWindowError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := gateway.NewSlidingWindow(100, time.Minute, nil)
		ok := func(n int) bool {
			d, _ := l.Take(t.Context(), "k", n)
			return d.OK
		}
		time.Sleep(time.Minute - 1)
		if !ok(100) {
			t.Fatal("the first hundred")
		}
		passed := 0
		for range 6000 {
			time.Sleep(10 * msec)
			if ok(1) {
				passed++
			}
		}
		if passed != 99 && passed != 100 {
			t.Errorf("%d pass in the minute after, want the limit again", passed)
		}

		time.Sleep(time.Hour)
		even := 0
		for i := range 600 {
			time.Sleep(599 * msec) // 100.2 a minute
			if ok(1) {
				even++
			} else if i < 99 {
				t.Fatalf("unit %d refused: at most one too many came", i)
			}
		}
		if even < 594 { // one a window, for units are whole
			t.Errorf("%d of 600 pass, at 100.2 a minute", even)
		}
	})
}

func TestOwe(t *testing.T) {
	type D = gateway.Decision
	for _, tt := range []struct {
		name  string
		l     func() *gateway.MemoryLimiter
		after D // a cost of 1, when 2 were taken and 10 are owed, of an allowance of 4 in 4 seconds
	}{
		{"token bucket", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(1, 4, nil) },
			D{Limit: 4, Window: 4 * time.Second, RetryAfter: 9 * time.Second, ResetAfter: 12 * time.Second}},
		{"leaky bucket", func() *gateway.MemoryLimiter { return gateway.NewLeakyBucket(1, 3, nil) },
			D{Limit: 4, Window: 4 * time.Second, RetryAfter: 9 * time.Second, ResetAfter: 12 * time.Second}},
		{"fixed window", func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(4, 4*time.Second, nil) },
			D{Limit: 4, Window: 4 * time.Second, RetryAfter: 12 * time.Second, ResetAfter: 12 * time.Second}},
		// 12 units: three windows are full, and in the fourth one unit passes once a quarter of it is over.
		{"sliding window", func() *gateway.MemoryLimiter { return gateway.NewSlidingWindow(4, 4*time.Second, nil) },
			D{Limit: 4, Window: 4 * time.Second, RetryAfter: 13 * time.Second, ResetAfter: 16 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := tt.l()
				_, _ = l.Take(t.Context(), "k", 2)
				_ = l.Owe(t.Context(), "k", 10)
				_ = l.Owe(t.Context(), "k", 0)
				_ = l.Owe(t.Context(), "k", -5)
				takeStep{0, 1, tt.after}.run(t, 0, l)
				if d, _ := l.Take(t.Context(), "other", 4); !d.OK {
					t.Error("another key is in debt")
				}
				time.Sleep(tt.after.RetryAfter)
				if d, _ := l.Take(t.Context(), "k", 1); !d.OK {
					t.Errorf("the debt is worked off: %+v", d)
				}
				_ = l.Owe(t.Context(), "k", math.MaxInt)
				_ = l.Owe(t.Context(), "k", math.MaxInt)
				d, _ := l.Take(t.Context(), "k", 1)
				if d.OK || d.RetryAfter < 100*365*24*time.Hour || d.ResetAfter < d.RetryAfter || d.Remaining != 0 {
					t.Errorf("after the largest debt: %+v", d)
				}
				time.Sleep(time.Hour)
				if l.Len() == 0 {
					t.Error("a debt is forgotten")
				}
			})
		})
	}
}

func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []*gateway.MemoryLimiter{
			gateway.NewTokenBucket(0.001, 100, nil), gateway.NewLeakyBucket(0.001, 99, nil),
			gateway.NewFixedWindow(100, time.Hour, nil), gateway.NewSlidingWindow(100, time.Hour, nil),
		} {
			long := string(make([]byte, 65))
			for i := range 500 {
				_, _ = l.Take(t.Context(), fmt.Sprintf("key %d", i), 1+i%50)
			}
			_, _ = l.Take(t.Context(), "busy", 99)
			_, _ = l.Take(t.Context(), long, 98)
			_ = l.Owe(t.Context(), "owing", 150)
			var got []string
			for key, share := range l.Usage(4) {
				got = append(got, fmt.Sprintf("%.12s %.2f", key, share))
			}
			want := "[owing 1.50 busy 0.99 sha256:98ce4 0.98 key 149 0.50]"
			if fmt.Sprint(got) != want {
				t.Errorf("%v, want %s", got, want)
			}
			for range l.Usage(0) {
				t.Error("none was asked for")
			}
			n := 0
			for range l.Usage(1000) {
				if n++; n == 7 {
					break
				}
			}
			if n != 7 {
				t.Errorf("%d", n)
			}
		}
	})
}

// Everything at once, for the race detector.
func TestLimiterEverythingConcurrently(t *testing.T) {
	l := gateway.NewSlidingWindow(10, msec, &gateway.LimiterOptions{MaxKeys: 20})
	done := make(chan struct{})
	for g := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range 500 {
				key := fmt.Sprint((i + g) % 40)
				d, _ := l.Take(context.Background(), key, 2)
				_ = l.Owe(context.Background(), key, 3)
				_ = l.Return(context.Background(), key, 1, d)
				for range l.Usage(3) {
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
}
