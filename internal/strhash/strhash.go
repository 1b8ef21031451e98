// Package strhash hashes strings to the same values in every process and every release. Use it where all
// gateways, also after a restart, must make the same choice: Split and HashBy.
//
// An attacker who chooses the strings can make them collide. So tables with keys of clients use hash/maphash
// with a random seed instead.
package strhash

// Hash is the state of a 64-bit FNV-1a hash. The zero value is not usable; begin with New. Its high bits are
// weak, so finish with Murmur3 or SplitMix.
type Hash uint64

// New returns the hash of the empty string.
func New() Hash { return 14695981039346656037 }

// Add returns the hash of a longer string: the one whose hash is h, followed by s.
func (h Hash) Add(s string) Hash {
	for i := range len(s) {
		h = (h ^ Hash(s[i])) * 1099511628211
	}
	return h
}

// Murmur3 returns h with its bits mixed by the finalizer of MurmurHash3.
func (h Hash) Murmur3() uint64 {
	x := uint64(h)
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// SplitMix returns h with its bits mixed by the finalizer of SplitMix64.
func (h Hash) SplitMix() uint64 {
	x := uint64(h)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
