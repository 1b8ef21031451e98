package gateway_test

import (
	"context"
	"flag"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

var floodKeys = flag.Int("flood", 100_000, "distinct keys in TestFloodOfKeys; from 10,000,000 on, throughput is held to its bound")

// A flood of distinct keys stays under the bound of keys and of bytes, an exhausted key stays exhausted throughout it,
// and the honest go on.
func TestFloodOfKeys(t *testing.T) {
	settle(t)
	maxKeys := *floodKeys / 10
	for _, m := range []struct {
		name string
		make func(*gateway.LimiterOptions) *gateway.MemoryLimiter
	}{
		{"token bucket", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter { return gateway.NewTokenBucket(1e-3, 1000, o) }},
		{"sliding window", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter {
			return gateway.NewSlidingWindow(1000, 1000*time.Hour, o)
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			before := heapInUse()
			l := m.make(&gateway.LimiterOptions{MaxKeys: maxKeys})
			take := func(key string, n int) bool {
				d, err := l.Take(context.Background(), key, n)
				return d.OK && err == nil
			}
			take("exhausted", 1000)
			honest := make([]string, 100)
			for i := range honest {
				honest[i] = "honest " + strconv.Itoa(i)
				take(honest[i], 1)
			}
			// The honest ask all the time, also when they are refused in the end.
			var stop atomic.Bool
			var asked atomic.Int64
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for i := 0; !stop.Load(); i++ {
					take(honest[i%len(honest)], 1)
					asked.Add(1)
				}
			}()
			// served is how many takes of the honest were served in how much time, alone and in the flood. The two take turns,
			// so that other work on the machine slows down both. When the honest are alone, the other core is busy as well.
			type served struct {
				takes int64
				time  time.Duration
			}
			during := func(s *served, f func()) {
				n, start := asked.Load(), time.Now()
				f()
				s.takes, s.time = s.takes+asked.Load()-n, s.time+time.Since(start)
			}
			var alone, flooded served
			for i := 0; i < *floodKeys; i += 1000 {
				during(&flooded, func() {
					for j := range 1000 {
						take(strconv.Itoa(1_000_000_000_000_000+i+j), 1)
					}
				})
				if take("exhausted", 1) {
					t.Fatalf("the exhausted key passes after %d keys", i)
				}
				if n := l.Len(); n > maxKeys {
					t.Fatalf("%d keys are held", n)
				}
				during(&alone, func() {
					for start := time.Now(); alone.time+time.Since(start) < flooded.time; {
						_ = strconv.Itoa(i)
					}
				})
			}
			stop.Store(true)
			<-ended
			bytes := float64(heapInUse()-before) / float64(maxKeys)
			runtime.KeepAlive(l)
			rate := func(s served) float64 { return float64(s.takes) / s.time.Seconds() }
			t.Logf("%d keys, %d held: %.0f bytes a key; %.2f million honest takes a second, %.2f in the flood",
				*floodKeys, l.Len(), bytes, rate(alone)/1e6, rate(flooded)/1e6)
			if n := l.Len(); n < maxKeys {
				t.Errorf("%d keys are held, of %d", n, maxKeys)
			}
			if bytes > 128 { // with the key; about 95 in a large table, and at most 256 are promised
				t.Errorf("%.0f bytes a key", bytes)
			}
			if *floodKeys >= 10_000_000 && rate(flooded) < rate(alone)/2 {
				t.Errorf("the honest are served at %.0f %% of their rate", 100*rate(flooded)/rate(alone))
			}
		})
	}
}
