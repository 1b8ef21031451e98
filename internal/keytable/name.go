package keytable

import (
	"crypto/sha256"
	"encoding/hex"
)

// longestPlain is the length up to which a key is held as it is. A longer one is held as its SHA-256. That name
// has one byte more than the longest plain key, so that nobody can choose a key that is equal to the hash of
// another.
const longestPlain = 64

// digest returns the name of a long key, in buf.
func digest(buf *[longestPlain + 1]byte, key string) []byte {
	var text [512]byte // keys up to this size are hashed without an allocation
	sum := sha256.Sum256(append(text[:0], key...))
	copy(buf[:], sum[:])
	return buf[:]
}

// shownName returns a name for people to read.
func shownName(name string) string {
	if len(name) <= longestPlain {
		return name
	}
	return "sha256:" + hex.EncodeToString([]byte(name[:sha256.Size]))
}
