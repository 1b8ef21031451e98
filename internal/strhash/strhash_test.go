package strhash

import (
	"hash/fnv"
	"testing"
)

// The sum is hash/fnv's, however the string is cut.
func TestAdd(t *testing.T) {
	for _, s := range []string{"", "a", "alice\x00http://10.0.0.1:80", "é\xff"} {
		f := fnv.New64a()
		_, _ = f.Write([]byte(s))
		for cut := range len(s) + 1 {
			if got := New().Add(s[:cut]).Add(s[cut:]); uint64(got) != f.Sum64() {
				t.Errorf("%q cut at %d: %x, want %x", s, cut, got, f.Sum64())
			}
		}
	}
}

// These values decide which branch or target a key takes. They must never change.
func TestStable(t *testing.T) {
	for _, tt := range []struct {
		s                string
		murmur, splitMix uint64
	}{
		{"", 0xefd01f60ba992926, 0xf52a15e9a9b5e89b},
		{"alice", 0x3507d047a67c08f4, 0xc5d1556d66774a5c},
		{"user-4711", 0x93be5b5bf114701c, 0xd5ae9cf0816577f5},
	} {
		h := New().Add(tt.s)
		if h.Murmur3() != tt.murmur || h.SplitMix() != tt.splitMix {
			t.Errorf("{%q, %#x, %#x},", tt.s, h.Murmur3(), h.SplitMix())
		}
	}
}

func BenchmarkHash(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		New().Add("user-4711").Murmur3()
	}
}
