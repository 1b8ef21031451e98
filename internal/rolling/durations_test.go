package rolling_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/internal/rolling"
)

func TestDurationsForget(t *testing.T) {
	start := time.Now()
	w := rolling.NewDurations(start, 10*time.Second)
	w.Add(start, time.Second, false)
	w.Add(start.Add(9*time.Second), time.Millisecond, true)
	for _, tt := range []struct {
		at            time.Duration
		count, failed int64
		over          time.Duration
	}{
		{9 * time.Second, 2, 1, 9500 * time.Millisecond},
		{9*time.Second + 499*time.Millisecond, 2, 1, 9999 * time.Millisecond},
		{10 * time.Second, 1, 1, 9500 * time.Millisecond},
		{18*time.Second + 999*time.Millisecond, 1, 1, 9999 * time.Millisecond},
		{19 * time.Second, 0, 0, 9500 * time.Millisecond},
		{time.Hour, 0, 0, 9500 * time.Millisecond},
	} {
		s := w.Summary(start.Add(tt.at))
		if s.Count != tt.count || s.Failed != tt.failed || s.Over != tt.over {
			t.Errorf("after %v: %d, %d failed, over %v; want %d, %d, %v", tt.at, s.Count, s.Failed, s.Over, tt.count, tt.failed, tt.over)
		}
	}
	// The slot of the first second is used again, and what was in it is gone. A writer that is late for it counts now.
	w.Add(start.Add(20*time.Second), time.Second, false)
	w.Add(start.Add(10*time.Second), time.Second, false)
	if s := w.Summary(start.Add(20 * time.Second)); s.Count != 2 {
		t.Errorf("%d counted", s.Count)
	}
	// A clock that was before the start: nothing panics.
	w.Add(start.Add(-time.Hour), -time.Second, false)
	w.Summary(start.Add(-time.Hour))
}

func TestDurationsQuantile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	for _, spread := range []float64{0, 1, 3, 6} {
		w := rolling.NewDurations(start, 10*time.Second)
		var all []time.Duration
		for range 5000 {
			d := time.Duration(math.Exp(spread*(rnd.Float64()*2-1)) * float64(20*time.Millisecond))
			all = append(all, d)
			w.Add(start, d, false)
		}
		slices.Sort(all)
		s := w.Summary(start)
		for _, q := range []float64{0, 0.001, 0.5, 0.95, 0.99, 1} {
			want := all[max(0, int(math.Ceil(q*float64(len(all))))-1)]
			if got := s.Quantile(q); math.Abs(float64(got-want)) > float64(want)/16 {
				t.Errorf("spread %v, quantile %v: %v, want %v", spread, q, got, want)
			}
		}
	}
	for _, d := range []time.Duration{0, 1, time.Microsecond, 36 * time.Minute} {
		w := rolling.NewDurations(start, time.Second)
		w.Add(start, d, false)
		if got := w.Summary(start).Quantile(0.5); math.Abs(float64(got-d)) > max(64, float64(d)/16) {
			t.Errorf("%v is %v", d, got)
		}
	}
	if got := rolling.NewDurations(start, time.Second).Summary(start).Quantile(0.99); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// No addition is lost or counted twice while slots change.
func TestDurationsConcurrently(t *testing.T) {
	start := time.Now()
	w := rolling.NewDurations(start, time.Hour)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 20_000 {
				w.Add(start.Add(time.Duration(i)*50*time.Minute/20_000), time.Duration(i), (i+g)%2 == 0)
			}
		})
	}
	wg.Wait()
	if s := w.Summary(start.Add(50 * time.Minute)); s.Count != 80_000 || s.Failed != 40_000 {
		t.Errorf("%d, %d failed", s.Count, s.Failed)
	}
}

func BenchmarkDurationsAdd(b *testing.B) {
	w := rolling.NewDurations(time.Now(), 10*time.Second)
	now := time.Now()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w.Add(now, 3*time.Millisecond, false)
		}
	})
}
