package onetime

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func id(n int) (id [16]byte) {
	sum := sha256.Sum256(fmt.Append(nil, n))
	copy(id[:], sum[:])
	return id
}

// TestMemory: an identifier is fresh once within the window, and its room is free after it.
func TestMemory(t *testing.T) {
	start := time.Now()
	m := New(3, time.Minute)
	for _, tt := range []struct {
		n           int
		at          time.Duration
		fresh, full bool
	}{
		{1, 0, true, false}, {1, 0, false, false}, {2, time.Second, true, false}, {3, 2 * time.Second, true, false},
		{4, 3 * time.Second, false, true}, {1, time.Minute, false, false}, {4, time.Minute, false, true},
		{4, time.Minute + 1, true, false}, {2, time.Minute + 1, false, false}, {5, time.Minute + 2, false, true},
		{1, 3 * time.Minute, true, false}, {2, 3 * time.Minute, true, false}, {3, 3 * time.Minute, true, false}, {4, 3 * time.Minute, false, true},
	} {
		if fresh, full := m.Add(id(tt.n), start.Add(tt.at)); fresh != tt.fresh || full != tt.full {
			t.Errorf("%d at %v: fresh %v, full %v", tt.n, tt.at, fresh, full)
		}
	}
}

// TestBound: a large Memory holds nearly as many as it is said to, and never more.
func TestBound(t *testing.T) {
	const most = 10_000
	now := time.Now()
	m := New(most, time.Minute)
	kept := 0
	for n := range 3 * most {
		if fresh, _ := m.Add(id(n), now); fresh {
			kept++
		}
	}
	if kept > most || kept < most*9/10 {
		t.Errorf("%d are kept of %d", kept, most)
	}
	// In a steady flow, the queue does not grow.
	m = New(100, time.Second)
	for n := range 10_000 {
		if fresh, _ := m.Add(id(n), now.Add(time.Duration(n)*20*time.Millisecond)); !fresh {
			t.Fatalf("%d", n)
		}
	}
	if s := &m.shards[0]; cap(s.queue) > 400 || len(s.known) > 100 {
		t.Errorf("a queue of %d for %d", cap(s.queue), len(s.known))
	}
}

// TestClockGoesBack: what is remembered stays so.
func TestClockGoesBack(t *testing.T) {
	now := time.Now()
	m := New(10, time.Minute)
	m.Add(id(1), now)
	m.Add(id(2), now.Add(-time.Hour))
	if fresh, _ := m.Add(id(1), now.Add(-time.Hour)); fresh {
		t.Error("forgotten")
	}
}

func TestConcurrent(t *testing.T) {
	m := New(10_000, time.Minute)
	now := time.Now()
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 500 {
				if ok, _ := m.Add(id(n), now); ok {
					fresh.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if fresh.Load() != 500 {
		t.Errorf("%d were fresh", fresh.Load())
	}
}
