package keytable

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// lease is a state that is busy until a time.
type lease struct {
	began, until int64
	uses         int
}

type leases struct{}

func (leases) Begin(l *lease, now int64)       { l.began = now }
func (leases) AtRest(l *lease, now int64) bool { return now >= l.until }

const (
	start  = int64(1_000_000_000_000_000_000)
	minute = int64(time.Minute)
	hour   = int64(time.Hour)
)

// use makes key busy until a time, and reports how often its state was used before, and whether that is the
// overflow.
func use(t *Table[lease], key string, now, until int64) (before int, overflow bool) {
	l := t.Lock(key, now)
	defer l.Unlock()
	l.State.uses++
	l.State.until = until
	return l.State.uses - 1, l.Overflow
}

func TestBound(t *testing.T) {
	const maxKeys = sweepKeys // so that a sweep sees them all, whatever their shards
	for _, tt := range []struct {
		name     string
		leases   int64 // of the first keys
		later    int64 // when as many other keys come
		overflow int   // how many of them find no room
	}{
		{"all busy", hour, minute, sweepKeys},
		{"all at rest", minute, hour, 0},
		{"at rest just now", minute, minute, 0},
		{"busy just yet", minute, minute - 1, sweepKeys},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New(maxKeys, leases{})
			for i := range maxKeys {
				if _, over := use(table, "first "+strconv.Itoa(i), start, start+tt.leases); over {
					t.Fatalf("no room for key %d", i)
				}
			}
			now, overflow := start+tt.later, 0
			for i := range maxKeys {
				before, over := use(table, "later "+strconv.Itoa(i), now, now+hour)
				if over {
					if before != overflow {
						t.Errorf("the overflow was used %d times before, want %d", before, overflow)
					}
					overflow++
				} else if before != 0 {
					t.Error("a new key's state is not new")
				}
				if n := table.Len(); n > maxKeys {
					t.Fatalf("%d keys held", n)
				}
			}
			if overflow != tt.overflow {
				t.Errorf("%d without room, want %d", overflow, tt.overflow)
			}
			want := 1
			if tt.leases <= tt.later {
				want = 0 // forgotten, and so new again
			}
			if before, _ := use(table, "first 7", now, now); before != want {
				t.Errorf("an old key's state was used %d times before, want %d", before, want)
			}
		})
	}
}

func TestLockHeldAndLockOverflow(t *testing.T) {
	table := New(1, leases{})
	held := func(l Locked[lease]) int {
		if l.State == nil {
			return -1
		}
		defer l.Unlock()
		return l.State.uses
	}
	if held(table.LockHeld("a", start)) != -1 || held(table.LockOverflow(start)) != -1 || table.Len() != 0 {
		t.Error("an empty table has states")
	}
	use(table, "a", start, start+hour)
	if n := held(table.LockHeld("a", start)); n != 1 {
		t.Errorf("a was used %d times", n)
	}
	for range 3 {
		use(table, "b", start, start+hour)
	}
	if n := held(table.LockHeld("b", start)); n != -1 {
		t.Errorf("b, for which there is no room, was used %d times", n)
	}
	if n := held(table.LockOverflow(start)); n != 3 {
		t.Errorf("the overflow was used %d times", n)
	}
}

// The keys at rest are swept by the use of others, 64 in a millisecond.
func TestSweep(t *testing.T) {
	table := New(10_000, leases{})
	for i := range 1000 {
		use(table, strconv.Itoa(i), start, start)
		if i%100 == 0 && table.Len() > 1000 {
			t.Fatal("too many")
		}
	}
	now := start
	use(table, "busy", now, now+hour)
	for range 100 {
		before := table.Len()
		now += sweepEvery
		use(table, "busy", now, now+hour)
		if n := before - table.Len(); n > sweepKeys {
			t.Fatalf("%d keys forgotten at once", n)
		}
		before = table.Len()
		use(table, "busy", now, now+hour)
		if table.Len() != before {
			t.Fatal("two sweeps in a millisecond")
		}
	}
	if n := table.Len(); n != 1 {
		t.Errorf("%d keys held, want the one that is busy", n)
	}
	// The clock is set back, and the sweep goes on.
	use(table, "at rest", start, start)
	for i := range 20 {
		use(table, "busy", start-int64(i)*int64(time.Second), start+hour)
	}
	if n := table.Len(); n != 1 {
		t.Errorf("%d keys held after the clock was set back", n)
	}
}

func TestTimeNeverGoesBack(t *testing.T) {
	table := New(1, leases{})
	for _, key := range []string{"a", "overflow"} {
		last := start
		for _, after := range []int64{0, -hour, int64(time.Second), 0, minute, -1} {
			now := start + after
			last = max(last, now)
			l := table.Lock(key, now)
			l.State.until = start + hour
			got := l.Now
			l.Unlock()
			if got != last {
				t.Errorf("%s: Now is %v, want %v", key, got, last)
			}
		}
	}
}

func TestKeysAreDistinct(t *testing.T) {
	digest := sha256.Sum256([]byte(strings.Repeat("x", 600)))
	sum := string(digest[:])
	// No key that is held as it is equals the hash of another.
	keys := []string{"", "a", "a\x00", sum, sum + strings.Repeat("\x00", 32), sum + strings.Repeat("\x00", 33)}
	for n := 60; n < 70; n++ {
		keys = append(keys, strings.Repeat("x", n))
	}
	keys = append(keys, strings.Repeat("x", 600), strings.Repeat("x", 100_000), strings.Repeat("x", 99_999)+"y")
	table := New(1000, leases{})
	for round := range 2 {
		for _, k := range keys {
			if before, over := use(table, k, start, start+hour); before != round || over {
				t.Errorf("key %.40q of %d bytes was used %d times before, want %d", k, len(k), before, round)
			}
		}
	}
	if table.Len() != len(keys) {
		t.Errorf("%d keys held, want %d", table.Len(), len(keys))
	}
}

// The table must not keep the request in memory that a key was a part of.
func TestTableOwnsItsKeys(t *testing.T) {
	table := New(1000, leases{})
	key := strings.Repeat("alice ", 1000)[:longestPlain]
	use(table, key, start, start+hour)
	held := 0
	for i := range table.shards {
		for _, e := range table.shards[i].entries {
			if e.long == key {
				held++
				if unsafe.StringData(e.long) == unsafe.StringData(key) {
					t.Error("the caller's string is held")
				}
			}
		}
	}
	if held != 1 {
		t.Errorf("held %d times", held)
	}
}

// Uses and sweeps of many keys at once lose no use and keep the count of keys.
func TestConcurrently(t *testing.T) {
	const maxKeys, rounds = 50, 500
	table := New(maxKeys, leases{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range rounds {
				now := start + int64(i)*sweepEvery
				use(table, "busy", now, start+hour)
				key := strconv.Itoa((i*7 + g*13) % 200)
				use(table, key, now, now+sweepEvery)
				if l := table.LockHeld(key, now); l.State != nil {
					l.Unlock()
				}
				if n := table.Len(); n > maxKeys {
					t.Errorf("%d keys held", n)
					return
				}
			}
		})
	}
	wg.Wait()
	if before, _ := use(table, "busy", start, start); before != 8*rounds {
		t.Errorf("the busy key was used %d times, want %d", before, 8*rounds)
	}
	held := 0
	for i := range table.shards {
		held += table.shards[i].n
	}
	if int64(held) != table.held.Load() {
		t.Errorf("%d keys in the shards, %d counted", held, table.held.Load())
	}
}

func TestHeldKeysAllocateNothing(t *testing.T) {
	for _, n := range []int{5, 500} {
		table, key := New(1000, leases{}), strings.Repeat("x", n)
		use(table, key, start, start+hour)
		if n := testing.AllocsPerRun(100, func() { use(table, key, start, start+hour) }); n != 0 {
			t.Errorf("key of %d bytes: %v allocations", len(key), n)
		}
	}
}

func BenchmarkLock(b *testing.B) {
	table := New(1<<20, leases{})
	for _, n := range []int{16, 500} {
		b.Run(fmt.Sprintf("key of %d bytes", n), func(b *testing.B) {
			key, until := strings.Repeat("x", n), start+hour
			b.ReportAllocs()
			for b.Loop() {
				l := table.Lock(key, start)
				l.State.until = until
				l.Unlock()
			}
		})
	}
}
