package rolling

import (
	"math/rand/v2"
	"testing"
	"time"
)

type pair struct{ a, b int }

func (p pair) Plus(q pair) pair  { return pair{p.a + q.a, p.b + q.b} }
func (p pair) Minus(q pair) pair { return pair{p.a - q.a, p.b - q.b} }

func TestWindow(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	// step rolls to a time after the start, then adds or takes back, then looks at the total.
	type step struct {
		at   time.Duration
		add  pair
		back int // the number of an earlier step, from 1, whose addition is taken back
		want pair
	}
	for _, tt := range []struct {
		name   string
		length time.Duration
		steps  []step
	}{
		{"adds up", 20 * s, []step{{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 19 * s, add: pair{2, 1}, want: pair{3, 1}}}},
		{"forgets what is as old as the window", 20 * s, []step{
			{at: 0, add: pair{1, 1}, want: pair{1, 1}}, {at: 20*s - 1, want: pair{1, 1}}, {at: 20 * s}}},
		{"forgets a slot's length early at most", 20 * s, []step{
			{at: 1*s - 1, add: pair{1, 0}, want: pair{1, 0}}, {at: 20*s - 1, want: pair{1, 0}}, {at: 20 * s}}},
		{"slot by slot", 20 * s, []step{
			{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 1 * s, add: pair{2, 0}, want: pair{3, 0}},
			{at: 2 * s, add: pair{4, 0}, want: pair{7, 0}},
			{at: 20 * s, want: pair{6, 0}}, {at: 21 * s, want: pair{4, 0}}, {at: 22 * s}}},
		{"after a long silence", 20 * s, []step{
			{at: 3 * s, add: pair{1, 2}, want: pair{1, 2}}, {at: 1000 * s}, {at: 1001 * s, add: pair{0, 1}, want: pair{0, 1}}}},
		{"a slot is used again", 20 * s, []step{
			{at: 5 * s, add: pair{1, 1}, want: pair{1, 1}}, {at: 25 * s, add: pair{2, 2}, want: pair{2, 2}}, {at: 44 * s, want: pair{2, 2}}, {at: 45 * s}}},
		{"time goes back", 20 * s, []step{
			{at: 10 * s, add: pair{1, 0}, want: pair{1, 0}}, {at: 3 * s, add: pair{1, 0}, want: pair{2, 0}}, // counted in slot 10
			{at: -100 * s, want: pair{2, 0}}, {at: 29 * s, want: pair{2, 0}}, {at: 30 * s}}},
		{"take back", 20 * s, []step{
			{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 5 * s, add: pair{1, 1}, want: pair{2, 1}},
			{at: 6 * s, back: 1, want: pair{1, 1}}, {at: 20 * s, want: pair{1, 1}}, {at: 25 * s}}},
		{"take back what is forgotten", 20 * s, []step{
			{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 20 * s, add: pair{7, 0}, want: pair{7, 0}}, {at: 20 * s, back: 1, want: pair{7, 0}}}},
		{"take back at the last moment", 20 * s, []step{
			{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 19 * s, add: pair{7, 0}, want: pair{8, 0}}, {at: 19 * s, back: 1, want: pair{7, 0}}, {at: 20 * s, want: pair{7, 0}}}},
		{"a length that is no multiple of Slots", 1 * s, []step{{at: 49 * ms, add: pair{1, 0}, want: pair{1, 0}}, {at: 999 * ms, want: pair{1, 0}}, {at: 1 * s}}},
		{"after an age of short slots", 1, []step{{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 1<<63 - 1}}},
		{"too short", 1, []step{{at: 0, add: pair{1, 0}, want: pair{1, 0}}, {at: 19, want: pair{1, 0}}, {at: 20}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1_000_000, 0)
			w := New[pair](start, tt.length)
			slots := make([]int64, len(tt.steps))
			for i, st := range tt.steps {
				w.Roll(start.Add(st.at))
				if st.back > 0 {
					w.TakeBack(slots[st.back-1], tt.steps[st.back-1].add)
				} else {
					slots[i] = w.Add(st.add)
				}
				if got := w.Total(); got != st.want {
					t.Fatalf("step %d: total is %v, want %v", i+1, got, st.want)
				}
			}
		})
	}
}

// The total is the sum of what was added in the last Slots slots and was not taken back.
func TestWindowAgainstSum(t *testing.T) {
	type event struct {
		slot int64
		c    pair
	}
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		start := time.Unix(0, 0)
		now := start
		w := New[pair](start, Slots*time.Second)
		var events []event
		for i := range 300 {
			if now = now.Add(time.Duration(rnd.IntN(2500)) * time.Millisecond); rnd.IntN(50) == 0 {
				now = now.Add(15 * time.Second)
			}
			w.Roll(now)
			slot := int64(now.Sub(start) / time.Second)
			if len(events) > 0 && rnd.IntN(4) == 0 {
				j := rnd.IntN(len(events))
				w.TakeBack(events[j].slot, events[j].c)
				events = append(events[:j], events[j+1:]...)
			} else {
				c := pair{rnd.IntN(5), rnd.IntN(5)}
				if got := w.Add(c); got != slot {
					t.Fatalf("seed %d, %d: slot %d, want %d", seed, i, got, slot)
				}
				events = append(events, event{slot, c})
			}
			var want pair
			for _, e := range events {
				if e.slot > slot-Slots {
					want = want.Plus(e.c)
				}
			}
			if got := w.Total(); got != want {
				t.Fatalf("seed %d, %d: total is %v, want %v", seed, i, got, want)
			}
		}
	}
}

func TestWindowAllocatesNothing(t *testing.T) {
	now := time.Unix(0, 0)
	w := New[pair](now, time.Second)
	if n := testing.AllocsPerRun(100, func() {
		now = now.Add(30 * time.Millisecond)
		w.Roll(now)
		w.TakeBack(w.Add(pair{1, 1}), pair{1, 0})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkWindow(b *testing.B) {
	now := time.Unix(0, 0)
	w := New[pair](now, time.Second)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		w.Roll(now)
		w.Add(pair{1, 0})
	}
}
