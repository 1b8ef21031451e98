package waitqueue_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/seed-96248d0c/gateway/internal/waitqueue"
)

// TestQueue compares a queue with a sorted slice, over random calls.
func TestQueue(t *testing.T) {
	type waiter = waitqueue.Waiter[int]
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var q waitqueue.Queue[int]
	var model []*waiter
	for i := range 10_000 {
		switch {
		case random.IntN(9) < 5:
			w := &waiter{Value: i, Priority: random.IntN(5) - 2}
			q.Add(w)
			model = append(model, w)
			slices.SortStableFunc(model, func(a, b *waiter) int { return cmp.Compare(b.Priority, a.Priority) })
		case len(model) > 0:
			at := random.IntN(len(model))
			q.Remove(model[at])
			if model[at].Waits() {
				t.Fatal("waits after Remove")
			}
			model = slices.Delete(model, at, at+1)
		}
		var first, last *waiter
		if len(model) > 0 {
			first, last = model[0], model[len(model)-1]
		}
		if q.Len() != len(model) || q.First() != first || q.Last() != last {
			t.Fatalf("seed %d, step %d: %d waiters, want %d; first %v, want %v; last %v, want %v",
				seed, i, q.Len(), len(model), q.First(), first, q.Last(), last)
		}
	}
	for len(model) > 0 {
		if !q.First().Waits() || q.First() != model[0] {
			t.Fatalf("seed %d: served out of order", seed)
		}
		q.Remove(q.First())
		model = model[1:]
	}
}
