package gatewayredis

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// BenchmarkTake shows what a decision costs here, with a round trip of its own, one shared by many, a lease, and without
// Redis.
func BenchmarkTake(b *testing.B) {
	s := redistest.Start(b)
	build := func(lease int) *Limiter {
		return NewTokenBucket(s.Client(), 1e9, 1<<40, &Options{
			Timeout: 5 * time.Second, Lease: lease, Logger: slog.New(slog.DiscardHandler),
		})
	}
	ctx := context.Background()
	one := func(l *Limiter) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Take(ctx, "alice", 1); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	many := func(l *Limiter) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := l.Take(ctx, "alice", 1); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	plain := build(0)
	b.Run("one", one(plain))
	b.Run("many", many(plain))
	b.Run("one, lease 1000", one(build(1000)))
	b.Run("many, lease 1000", many(build(1000)))
	s.Kill()
	if _, err := plain.Take(ctx, "alice", 1); err != nil {
		b.Fatal(err)
	}
	b.Run("without Redis", one(plain))
}

// TestDecisionsHereAllocateNothing: with a lease, and without Redis.
func TestDecisionsHereAllocateNothing(t *testing.T) {
	s := redistest.Start(t)
	ctx := context.Background()
	opts := &Options{Timeout: 500 * time.Millisecond, Lease: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
	leased := NewTokenBucket(s.Client(), 1e9, 1<<40, opts)
	opts.Lease = 0
	away := NewTokenBucket(s.Client(), 1e9, 1<<40, opts)
	take := func(l *Limiter) func() {
		return func() {
			if d, err := l.Take(ctx, "alice", 1); err != nil || !d.OK {
				t.Fatalf("%+v, %v", d, err)
			}
		}
	}
	take(leased)()
	if n := testing.AllocsPerRun(500, take(leased)); n > 0 {
		t.Errorf("%v allocations with a lease", n)
	}
	take(away)()
	s.Kill()
	take(away)()
	if n := testing.AllocsPerRun(500, take(away)); n > 0 {
		t.Errorf("%v allocations without Redis", n)
	}
}
