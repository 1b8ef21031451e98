package keytable

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// A shard holds what a map would, whatever is added and removed, also when many tags are equal modulo its size.
func TestShardEqualsMap(t *testing.T) {
	for _, tagBits := range []int{1, 3, 8, 32} {
		r := rand.New(rand.NewPCG(uint64(tagBits), 1))
		tags := make(map[string]uint32)
		tagOf := func(name string) uint32 { return tags[name] }
		var s shard[int]
		want := make(map[string]int)
		for i := range 40_000 {
			grow := i/5000%2 == 0
			name := strconv.Itoa(r.IntN(600))
			if _, ok := tags[name]; !ok {
				tags[name] = r.Uint32() << (32 - tagBits) >> (r.IntN(2) * (32 - tagBits))
			}
			e := find(&s, tagOf(name), name)
			held, ok := want[name]
			if (e != nil) != ok || ok && (e.key != name || e.state != held) {
				t.Fatalf("step %d: %s is %v, want %d, %t", i, name, e, held, ok)
			}
			switch {
			case ok && (!grow || r.IntN(4) == 0):
				number := -1
				for j := range s.n {
					if s.at(j) == e {
						number = j
					}
				}
				s.remove(number, tagOf)
				delete(want, name)
			case !ok && (grow || r.IntN(4) == 0):
				s.add(tagOf(name), name).state = i
				want[name] = i
			}
			if s.n != len(want) || s.n > 0 && (4*s.n > 3*len(s.slots) || len(s.slots) > 64*s.n+minSlots) || len(s.chunks)*chunkLen > s.n+2*chunkLen {
				t.Fatalf("step %d: %d keys, want %d; %d slots, %d chunks", i, s.n, len(want), len(s.slots), len(s.chunks))
			}
		}
		for name, held := range want {
			if e := find(&s, tagOf(name), []byte(name)); e == nil || e.state != held {
				t.Fatalf("%s is lost", name)
			}
		}
		for s.n > 0 {
			s.remove(s.n/2, tagOf)
		}
		if s.slots != nil || s.chunks != nil {
			t.Error("an empty shard keeps memory")
		}
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
