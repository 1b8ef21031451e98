package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"
)

// Thumbprint returns the SHA-256 thumbprint of a public key (RFC 7638 section 3, RFC 8037 section 2). ok is
// false for keys that are not public ones of an algorithm of this package.
func Thumbprint(key any) (sum [sha256.Size]byte, ok bool) {
	// The members that a key needs, in lexicographic order and without white space.
	var text string
	switch k := key.(type) {
	case *rsa.PublicKey:
		text = `{"e":"` + encodeSegment(big.NewInt(int64(k.E)).Bytes()) + `","kty":"RSA","n":"` + encodeSegment(k.N.Bytes()) + `"}`
	case *ecdsa.PublicKey:
		point, err := k.Bytes() // 4, X, Y (SEC 1 section 2.3.3)
		if err != nil {
			return sum, false
		}
		size := (len(point) - 1) / 2
		text = `{"crv":"` + k.Curve.Params().Name + `","kty":"EC","x":"` + encodeSegment(point[1:1+size]) +
			`","y":"` + encodeSegment(point[1+size:]) + `"}`
	case ed25519.PublicKey:
		text = `{"crv":"Ed25519","kty":"OKP","x":"` + encodeSegment(k) + `"}`
	default:
		return sum, false
	}
	return sha256.Sum256([]byte(text)), true
}

func encodeSegment(b []byte) string { return segments.EncodeToString(b) }
