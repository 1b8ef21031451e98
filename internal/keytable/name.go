package keytable

import (
	"crypto/sha256"
	"hash/maphash"
	"strings"
)

// longestPlain is the length up to which a key is held as it is. A longer one is held as its SHA-256.
const longestPlain = 64

// name is a key in the form in which a table holds it. The hashed form has one byte more than the longest
// plain key, so that nobody can choose a key that is equal to the hash of another.
type name struct {
	plain  string
	hashed bool
	sum    [longestPlain + 1]byte
}

// hash returns the hash that chooses the shard. For a long key, it sets sum first.
func (n *name) hash(seed maphash.Seed) uint64 {
	if len(n.plain) <= longestPlain {
		return maphash.String(seed, n.plain)
	}
	n.digest()
	return maphash.Bytes(seed, n.sum[:])
}

func (n *name) digest() {
	var buf [512]byte // keys up to this size are hashed without an allocation
	sum := sha256.Sum256(append(buf[:0], n.plain...))
	copy(n.sum[:], sum[:])
	n.hashed = true
}

// own returns a string for the table to keep. It is a copy, so that it does not keep the request in memory
// that the key was a part of.
func (n *name) own() string {
	if n.hashed {
		return string(n.sum[:])
	}
	return strings.Clone(n.plain)
}
