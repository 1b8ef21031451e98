package gatewayredis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// step is one call, after a pause.
type step struct {
	after time.Duration
	op    byte // take, give or owe
	n     int
	of    int // which decision is given back
}

// randomSteps returns steps that often come to the edges of a limit. memory is a limiter in a bubble, which decides what
// the edges are; want are its decisions.
func randomSteps(rnd *rand.Rand, memory *gateway.MemoryLimiter, limit int, window time.Duration) (steps []step, want []gateway.Decision) {
	ctx := context.Background()
	last := gateway.Decision{}
	for range 400 {
		s := step{op: "ttttttgo"[rnd.IntN(8)], n: 1 + rnd.IntN(max(1, limit/2))}
		switch rnd.IntN(8) {
		case 0:
			s.n = limit
		case 1:
			s.n = limit + 1
		case 2:
			s.after = time.Duration(rnd.Int64N(int64(window)))
		case 3:
			s.after = time.Duration(rnd.Int64N(int64(window) * 3))
		case 4:
			s.after = min(last.RetryAfter, 5*window)
		case 5:
			s.after = min(last.RetryAfter, 5*window) - time.Microsecond
		case 6:
			s.after = min(last.ResetAfter, 5*window)
		}
		s.after = max(0, roundUp(s.after))
		if s.op == 'g' && len(want) > 0 {
			s.of = max(0, len(want)-1-rnd.IntN(4))
			s.n = 1 + rnd.IntN(3)
		} else if s.op == 'g' {
			s.op = 't'
		}
		if s.op == 'o' && rnd.IntN(4) == 0 {
			s.n = 3 * limit
		}
		time.Sleep(s.after)
		switch s.op {
		case 't':
			d, _ := memory.Take(ctx, "k", s.n)
			last = d
			want = append(want, d)
		case 'g':
			_ = memory.Return(ctx, "k", s.n, want[s.of])
		case 'o':
			_ = memory.Owe(ctx, "k", s.n)
		}
		steps = append(steps, s)
	}
	return steps, want
}

// TestDecisionsEqualMemory: a limiter in Redis decides as the one in memory does, also what it says besides.
func TestDecisionsEqualMemory(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	client := s.Client()
	for _, kind := range kinds {
		for i, limit := range []struct {
			limit  int
			window time.Duration
		}{
			{1, time.Second}, {3, time.Second}, {7, 10 * time.Second}, {10, time.Minute}, {1000, time.Second},
			{1 << 40, time.Hour}, {5, 3 * time.Microsecond},
		} {
			if kind.name == "leaky bucket" && float64(limit.limit)/limit.window.Seconds() > 500_000 {
				continue // half a slot is shorter than a microsecond, to which Return knows the end of the queue
			}
			t.Run(fmt.Sprintf("%s %d in %v", kind.name, limit.limit, limit.window), func(t *testing.T) {
				seed := rand.Uint64()
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				var steps []step
				var want []gateway.Decision
				var start time.Time
				synctest.Test(t, func(*testing.T) {
					start = time.Now()
					steps, want = randomSteps(rnd, kind.memory(limit.limit, limit.window), limit.limit, limit.window)
				})
				clock := newFakeClock(t, client, start)
				l := clock.rule(kind.redis(client, limit.limit, limit.window, patient()))
				compareSteps(t, clock, l, steps, want)
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			})
		}
	}
}

func compareSteps(t *testing.T, clock *fakeClock, l *Limiter, steps []step, want []gateway.Decision) {
	var got []gateway.Decision
	var err error
	for i, s := range steps {
		clock.advance(s.after)
		switch s.op {
		case 't':
			var d gateway.Decision
			if d, err = l.Take(t.Context(), "k", s.n); err != nil {
				break
			}
			w := want[len(got)]
			got = append(got, d)
			w.RetryAfter, w.ResetAfter, w.Ref, d.Ref = roundUp(w.RetryAfter), roundUp(w.ResetAfter), 0, 0
			if d != w {
				t.Fatalf("step %d, %+v:\n got %+v\nwant %+v", i, s, d, w)
			}
		case 'g':
			err = l.Return(t.Context(), "k", s.n, got[s.of])
		case 'o':
			err = l.Owe(t.Context(), "k", s.n)
		}
		if err != nil {
			t.Fatalf("step %d, %+v: %v", i, s, err)
		}
	}
}
