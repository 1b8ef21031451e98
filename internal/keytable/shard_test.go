package keytable

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// A shard holds what a map would, whatever is added and removed, also when many marks are equal or have their homes
// at the end of the table.
func TestShardEqualsMap(t *testing.T) {
	for _, hashBits := range []int{0, 1, 3, 8, 24} {
		r := rand.New(rand.NewPCG(uint64(hashBits), 1))
		hashes := make(map[string]uint64)
		markOf := func(name string) mark { return newMark(hashes[name], len(name)) }
		var s shard[int]
		want := make(map[string]int)
		for i := range 40_000 {
			grow := i/5000%2 == 0
			number := r.IntN(600)
			name := strconv.Itoa(number) + strings.Repeat("x", number%48)
			if _, ok := hashes[name]; !ok { // their homes are at the beginning, all over the table, or at its end
				low := uint64(r.Uint32() & 0xffffff >> (24 - hashBits))
				hashes[name] = []uint64{low, r.Uint64(), 0xffffff - low}[r.IntN(3)]
			}
			e := find(&s, markOf(name), name)
			held, ok := want[name]
			if (e != nil) != ok || ok && (e.name(markOf(name)) != name || e.state != held) {
				t.Fatalf("step %d: %s is %v, want %d, %t", i, name, e, held, ok)
			}
			switch {
			case ok && (!grow || r.IntN(4) == 0):
				place := -1
				for j := range s.entries {
					if &s.entries[j] == e {
						place = j
					}
				}
				s.remove(place)
				delete(want, name)
			case !ok && (grow || r.IntN(4) == 0):
				s.add(markOf(name), name).state = i
				want[name] = i
			}
			if s.n != len(want) || 8*s.n > 7*len(s.marks) || len(s.marks) > 3*s.n+2*minPlaces ||
				len(s.marks) != len(s.entries) || s.pos < 0 || s.pos > len(s.marks) {
				t.Fatalf("step %d: %d keys, want %d; %d and %d places, %d", i, s.n, len(want), len(s.marks), len(s.entries), s.pos)
			}
			if s.n > 0 {
				s.pos = r.IntN(len(s.marks))
			}
		}
		for name, held := range want {
			if e := find(&s, markOf(name), []byte(name)); e == nil || e.state != held {
				t.Fatalf("%s is lost", name)
			}
		}
		for j, m := range s.marks { // what is removed is not kept
			if e := &s.entries[j]; m == 0 && (e.long != "" || e.state != 0 || e.short != [shortName]byte{}) {
				t.Fatalf("a free place has %+v", e)
			}
		}
		for s.n > 0 {
			for j, m := range s.marks {
				if m != 0 {
					s.remove(j)
					break
				}
			}
		}
		if s.marks != nil || s.entries != nil {
			t.Error("an empty shard keeps memory")
		}
	}
}

// What a lock protects is fast under contention only if no other line moves with it.
func TestLocksHaveTheirOwnCacheLines(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the layout is that of 64 bits")
	}
	table := New[lease](1, leases{})
	for i := range table.shards {
		s := &table.shards[i]
		if at := uintptr(unsafe.Pointer(&s.mu)) % cacheLine; at != 0 {
			t.Fatalf("the lock of shard %d begins at byte %d of a cache line", i, at)
		}
		if d := unsafe.Offsetof(s.marks) - unsafe.Offsetof(s.mu); d != cacheLine {
			t.Fatalf("the marks are %d bytes after the lock, want %d", d, cacheLine)
		}
	}
	if at := unsafe.Offsetof(table.overflow) % cacheLine; at != 0 {
		t.Errorf("the overflow begins at byte %d of a cache line", at)
	}
}

func TestEach(t *testing.T) {
	table := New(1000, leases{})
	long := strings.Repeat("x", 65)
	for _, key := range []string{"a", "b", long} {
		use(table, key, start, start+hour)
	}
	got := make(map[string]int)
	table.Each(start+1, func(key string, l *lease, now int64) {
		got[key] += l.uses
		if now < start {
			t.Errorf("now is %d", now)
		}
	})
	if len(got) != 3 || got["a"] != 1 || got["b"] != 1 {
		t.Errorf("%v", got)
	}
	for key := range got {
		if len(key) > 1 && (!strings.HasPrefix(key, "sha256:") || len(key) != len("sha256:")+64) {
			t.Errorf("a long key is shown as %q", key)
		}
	}
	if s := fmt.Sprint(got); strings.Contains(s, "xxx") {
		t.Error(s)
	}
}
