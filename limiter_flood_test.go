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
			rate := func(during func()) float64 {
				n, start := asked.Load(), time.Now()
				during()
				return float64(asked.Load()-n) / time.Since(start).Seconds()
			}
			// Alone, while another core is as busy as it is in the flood.
			alone := rate(func() {
				for i, start := 0, time.Now(); time.Since(start) < 300*time.Millisecond; i++ {
					_ = strconv.Itoa(i)
				}
			})
			flooded := rate(func() {
				for i := range *floodKeys {
					take(strconv.Itoa(1_000_000_000_000_000+i), 1)
					if i%1000 == 0 {
						if take("exhausted", 1) {
							t.Fatalf("the exhausted key passes after %d keys", i)
						}
						if n := l.Len(); n > maxKeys {
							t.Fatalf("%d keys are held", n)
						}
					}
				}
			})
			stop.Store(true)
			<-ended
			bytes := float64(heapInUse()-before) / float64(maxKeys)
			runtime.KeepAlive(l)
			t.Logf("%d keys, %d held: %.0f bytes a key; %.2f million honest takes a second, %.2f in the flood",
				*floodKeys, l.Len(), bytes, alone/1e6, flooded/1e6)
			if n := l.Len(); n < maxKeys {
				t.Errorf("%d keys are held, of %d", n, maxKeys)
			}
			if bytes > 100 { // with the key
				t.Errorf("%.0f bytes a key", bytes)
			}
			if *floodKeys >= 10_000_000 && flooded < alone/2 {
				t.Errorf("the honest are served at %.0f %% of their rate", 100*flooded/alone)
			}
		})
	}
}
