package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/subtle"

	"github.com/golang-jwt/jwt/v5"
)

// An Algorithm verifies signatures, and only with keys of the kind that belongs to its name. Without this
// rule, an attacker could use an RSA public key, which everybody has, as the secret of an HMAC (RFC 8725
// section 3.1).
//
// Keys are an *rsa.PublicKey, an *ecdsa.PublicKey, an ed25519.PublicKey, or a []byte for a secret.
type Algorithm struct {
	signing   jwt.SigningMethod
	kind      keyKind
	curve     elliptic.Curve // of an ecKind
	minSecret int            // bytes of the hash, which a secret must have at least (RFC 7518 section 3.2)
}

type keyKind int

const (
	rsaKind keyKind = iota
	ecKind
	edKind
	secretKind
)

var algorithms = map[string]*Algorithm{
	"RS256": {signing: jwt.SigningMethodRS256, kind: rsaKind},
	"RS384": {signing: jwt.SigningMethodRS384, kind: rsaKind},
	"RS512": {signing: jwt.SigningMethodRS512, kind: rsaKind},
	"PS256": {signing: pss(jwt.SigningMethodPS256), kind: rsaKind},
	"PS384": {signing: pss(jwt.SigningMethodPS384), kind: rsaKind},
	"PS512": {signing: pss(jwt.SigningMethodPS512), kind: rsaKind},
	"ES256": {signing: jwt.SigningMethodES256, kind: ecKind, curve: elliptic.P256()},
	"ES384": {signing: jwt.SigningMethodES384, kind: ecKind, curve: elliptic.P384()},
	"ES512": {signing: jwt.SigningMethodES512, kind: ecKind, curve: elliptic.P521()},
	"EdDSA": {signing: jwt.SigningMethodEdDSA, kind: edKind},
	"HS256": {signing: jwt.SigningMethodHS256, kind: secretKind, minSecret: 32},
	"HS384": {signing: jwt.SigningMethodHS384, kind: secretKind, minSecret: 48},
	"HS512": {signing: jwt.SigningMethodHS512, kind: secretKind, minSecret: 64},
}

// pss returns a copy of m that accepts only a salt of the length of the hash, as RFC 7518 section 3.5
// requires. m itself accepts a salt of any length, including 0.
func pss(m *jwt.SigningMethodRSAPSS) jwt.SigningMethod {
	return &jwt.SigningMethodRSAPSS{
		SigningMethodRSA: m.SigningMethodRSA,
		Options:          &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash},
	}
}

// Lookup returns the algorithm with that name, or nil. The name "none" is unknown.
func Lookup(name string) *Algorithm { return algorithms[name] }

// IsAsymmetric reports whether the algorithm's keys are public ones.
func (a *Algorithm) IsAsymmetric() bool { return a.kind != secretKind }

// The bounds of an RSA key. A signature by a longer key is slow to verify.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// Accepts reports whether key is of the algorithm's kind and strong enough.
func (a *Algorithm) Accepts(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if a.kind != rsaKind || k == nil || k.N == nil {
			return false
		}
		bits := k.N.BitLen()
		return minRSABits <= bits && bits <= maxRSABits && k.E > 2 && k.E&1 == 1
	case *ecdsa.PublicKey:
		return a.kind == ecKind && k != nil && k.Curve == a.curve
	case ed25519.PublicKey:
		return a.kind == edKind && len(k) == ed25519.PublicKeySize
	case []byte:
		return a.kind == secretKind && len(k) >= a.minSecret
	}
	return false
}

// Verify reports whether signature is one of input by key. It is false for a key that the algorithm does not
// accept.
func (a *Algorithm) Verify(input string, signature []byte, key any) bool {
	return a.Accepts(key) && a.signing.Verify(input, signature, key) == nil
}

// IsUsable reports whether an algorithm accepts key.
func IsUsable(key any) bool {
	for _, a := range algorithms {
		if a.Accepts(key) {
			return true
		}
	}
	return false
}

// SameKey reports whether two keys are equal. The operator == panics for interfaces that hold slices.
func SameKey(a, b any) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a != nil && b != nil && (a == b || a.Equal(b))
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && a != nil && b != nil && (a == b || a.Equal(b))
	case ed25519.PublicKey:
		b, ok := b.(ed25519.PublicKey)
		return ok && a.Equal(b)
	case []byte:
		b, ok := b.([]byte)
		return ok && subtle.ConstantTimeCompare(a, b) == 1
	}
	return false
}
