package gateway_test

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// memoryLimiters are the algorithms with limits that a benchmark does not reach.
var memoryLimiters = []struct {
	name string
	make func(opts *gateway.LimiterOptions) *gateway.MemoryLimiter
}{
	{"token bucket", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter {
		return gateway.NewTokenBucket(1e6, 1e9, o)
	}},
	{"leaky bucket", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter {
		return gateway.NewLeakyBucket(1e6, 1e9, o)
	}},
	{"fixed window", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter {
		return gateway.NewFixedWindow(1e9, time.Hour, o)
	}},
	{"sliding window", func(o *gateway.LimiterOptions) *gateway.MemoryLimiter {
		return gateway.NewSlidingWindow(1e9, time.Hour, o)
	}},
}

func BenchmarkTake(b *testing.B) {
	for _, m := range memoryLimiters {
		b.Run(m.name+"/one key", func(b *testing.B) {
			l := m.make(nil)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = l.Take(context.Background(), "alice", 1)
			}
		})
	}
	keys := make([]string, 100_000)
	for i := range keys {
		keys[i] = "https://id.example/" + strconv.Itoa(i)
	}
	for _, m := range memoryLimiters {
		b.Run(m.name+"/100k keys parallel", func(b *testing.B) {
			l := m.make(nil)
			for _, k := range keys {
				_, _ = l.Take(context.Background(), k, 1)
			}
			var start atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				i := int(start.Add(7919 * 13))
				for pb.Next() {
					_, _ = l.Take(context.Background(), keys[i%len(keys)], 1)
					i += 7919
				}
			})
		})
	}
	b.Run("token bucket/long key", func(b *testing.B) {
		l := memoryLimiters[0].make(nil)
		key := string(make([]byte, 500))
		b.ReportAllocs()
		for b.Loop() {
			_, _ = l.Take(context.Background(), key, 1)
		}
	})
	b.Run("token bucket/no room", func(b *testing.B) {
		l := gateway.NewTokenBucket(1e-6, 1e9, &gateway.LimiterOptions{MaxKeys: 1000})
		for _, k := range keys[:1000] {
			_, _ = l.Take(context.Background(), k, 1)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			_, _ = l.Take(context.Background(), keys[1000+i%90_000], 1)
			i++
		}
	})
}

// BenchmarkMemory measures the bytes that a busy key of 16 bytes costs, with the key.
func BenchmarkMemory(b *testing.B) {
	for _, m := range []struct {
		name string
		make func() *gateway.MemoryLimiter
	}{
		{"bucket", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(1e-6, 10, nil) }},
		{"window", func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(10, 1000*time.Hour, nil) }},
		{"sliding window", func() *gateway.MemoryLimiter { return gateway.NewSlidingWindow(10, 1000*time.Hour, nil) }},
	} {
		for _, n := range []int{300_000, 500_000, 1_000_000} {
			b.Run(m.name+"/"+strconv.Itoa(n), func(b *testing.B) {
				for b.Loop() {
					before := heapInUse()
					l := m.make()
					for i := range n {
						_, _ = l.Take(context.Background(), strconv.Itoa(1_000_000_000_000_000+i), 1) // 16 bytes
					}
					b.ReportMetric(float64(heapInUse()-before)/float64(n), "bytes/key")
					runtime.KeepAlive(l)
				}
			})
		}
	}
}
