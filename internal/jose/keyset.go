package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// A KeySet holds the public keys of a JWK Set. It does not change.
type KeySet struct {
	keys []publicKey

	// The keys for an algorithm: by kid, those without a kid, and all. A kid that the set uses more than once
	// has several keys.
	byKid    map[slot][]any
	nameless map[string][]any
	all      map[string][]any
}

// slot is the key of an index: a kid and an algorithm.
type slot struct{ kid, alg string }

// publicKey is a key with the one algorithm that it may be used with; "" means every algorithm that accepts
// it.
type publicKey struct {
	key any
	kid string
	alg string
}

func (p publicKey) serves(alg string) bool {
	if p.alg != "" && p.alg != alg {
		return false
	}
	a := algorithms[alg]
	return a != nil && a.Accepts(p.key)
}

// maxCandidates is how many keys Find returns at most: each costs a verification of a signature, which may
// be forged.
const maxCandidates = 4

// ParseKeySet reads a JWK Set (RFC 7517 section 5). A key that cannot be used is skipped, whatever is wrong
// with it: a symmetric key, one with a private half, one for other uses than signatures, one of an unknown
// type, curve or algorithm, a malformed one, a weak one, one whose JSON DecodeObject refuses. A member that
// is null is absent. A set without a usable key is an error.
func ParseKeySet(text []byte) (*KeySet, error) {
	list, err := rawjson.Elements(text, "keys")
	switch {
	case err != nil:
		return nil, fmt.Errorf("key set: %w", err)
	case list == nil:
		return nil, errors.New("key set without keys")
	}
	set := &KeySet{byKid: make(map[slot][]any), nameless: make(map[string][]any), all: make(map[string][]any)}
	for _, e := range list {
		jwk, err := rawjson.DecodeObject(e, len(e))
		if err != nil {
			continue
		}
		if p, ok := parseKey(jwk); ok {
			set.add(p)
		}
	}
	if len(set.keys) == 0 {
		return nil, fmt.Errorf("key set without a usable key among %d", len(list))
	}
	return set, nil
}

func (s *KeySet) add(p publicKey) {
	s.keys = append(s.keys, p)
	for alg := range algorithms {
		if !p.serves(alg) {
			continue
		}
		s.all[alg] = append(s.all[alg], p.key)
		if p.kid == "" {
			s.nameless[alg] = append(s.nameless[alg], p.key)
		} else {
			at := slot{p.kid, alg}
			s.byKid[at] = append(s.byKid[at], p.key)
		}
	}
}

// Find returns the keys that may have signed a token whose header has kid and alg, in the order of the set,
// and nil when there are none. It returns at most four. The caller does not modify the list.
//
// A kid of the set selects its key, or several keys if the set uses it more than once. For "" or an unknown
// kid:
//
//   - If no key for alg has a kid, all of them are returned.
//   - Otherwise "" selects the only key for alg. If there are several keys, Find returns nil.
//   - Otherwise an unknown kid selects nothing.
func (s *KeySet) Find(kid, alg string) []any {
	var found []any
	if kid != "" {
		found = s.byKid[slot{kid, alg}]
	}
	if found == nil {
		all, nameless := s.all[alg], s.nameless[alg]
		switch {
		case len(nameless) == len(all):
			found = nameless
		case kid == "" && len(all) == 1:
			found = all
		}
	}
	return found[:min(len(found), maxCandidates)]
}

// Serves reports whether any key of the set serves alg.
func (s *KeySet) Serves(alg string) bool { return len(s.all[alg]) > 0 }

// isPrivate reports whether jwk has a secret or a private half: everybody who can read it could sign with it.
func isPrivate(jwk map[string]any) bool {
	for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if jwk[name] != nil {
			return true
		}
	}
	return false
}

// parseKey reads a public JSON Web Key (RFC 7517 section 4). ok is false when the key cannot be used.
func parseKey(jwk map[string]any) (p publicKey, ok bool) {
	if isPrivate(jwk) {
		return p, false
	}
	if use := jwk["use"]; use != nil && use != "sig" {
		return p, false
	}
	if ops := jwk["key_ops"]; ops != nil {
		list, _ := ops.([]any)
		if !slices.Contains(list, any("verify")) {
			return p, false
		}
	}
	if p.kid = member(jwk, "kid"); p.kid == "" && jwk["kid"] != nil {
		return p, false
	}
	if p.key = parseMaterial(jwk); p.key == nil {
		return p, false
	}
	if alg := jwk["alg"]; alg != nil {
		p.alg, _ = alg.(string)
		if p.alg == "Ed25519" {
			p.alg = "EdDSA" // the older name of the same algorithm (RFC 9864)
		}
		return p, p.serves(p.alg)
	}
	return p, IsUsable(p.key)
}

// parseMaterial reads the key itself (RFC 7518 section 6, RFC 8037 section 2). It returns nil for a key that
// is malformed, symmetric, or of an unknown type or curve. It does not check the key's strength.
func parseMaterial(jwk map[string]any) any {
	switch member(jwk, "kty") {
	case "RSA":
		n, e := octets(jwk, "n"), octets(jwk, "e")
		if len(e) == 0 || len(e) > 4 || len(n) > maxRSABits/8+1 {
			return nil
		}
		exponent := new(big.Int).SetBytes(e).Int64()
		if exponent > 1<<31-1 {
			return nil
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent)}
	case "EC":
		key, err := parsePoint(member(jwk, "crv"), octets(jwk, "x"), octets(jwk, "y"))
		if err != nil {
			return nil
		}
		return key
	case "OKP":
		if member(jwk, "crv") == "Ed25519" {
			return ed25519.PublicKey(octets(jwk, "x"))
		}
	}
	return nil
}

// parsePoint reads a point on one of the three curves. Both coordinates must have their full length, and the
// point must be on the curve.
func parsePoint(crv string, x, y []byte) (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch crv {
	case "P-256":
		curve = elliptic.P256()
	case "P-384":
		curve = elliptic.P384()
	case "P-521":
		curve = elliptic.P521()
	default:
		return nil, errors.New("unknown curve")
	}
	if size := (curve.Params().BitSize + 7) / 8; len(x) != size || len(y) != size {
		return nil, errors.New("coordinate of a wrong length")
	}
	return ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
}

// member returns a member that is a string, "" when it is absent or something else.
func member(jwk map[string]any, name string) string {
	s, _ := jwk[name].(string)
	return s
}

// octets decodes a member in base64url. It returns nil if the member is malformed.
func octets(jwk map[string]any, name string) []byte {
	b, err := DecodeSegment(member(jwk, name))
	if err != nil {
		return nil
	}
	return b
}
