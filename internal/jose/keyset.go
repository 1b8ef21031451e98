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
	keys  []publicKey
	byKid map[string][]publicKey
}

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

// ParseKeySet reads a JWK Set (RFC 7517 section 5). A key that cannot be used is skipped: a symmetric key,
// one with a private half, one for other uses than signatures, one of an unknown type, curve or algorithm, a
// malformed one, a weak one. A set without a usable key is an error.
func ParseKeySet(text []byte) (*KeySet, error) {
	top, err := rawjson.DecodeObject(text, len(text))
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	list, ok := top["keys"].([]any)
	if !ok {
		return nil, errors.New("key set without keys")
	}
	set := &KeySet{byKid: make(map[string][]publicKey)}
	for _, e := range list {
		jwk, _ := e.(map[string]any)
		if p, ok := parseKey(jwk); ok {
			set.keys = append(set.keys, p)
			set.byKid[p.kid] = append(set.byKid[p.kid], p)
		}
	}
	if len(set.keys) == 0 {
		return nil, fmt.Errorf("key set without a usable key among %d", len(list))
	}
	return set, nil
}

// Find returns the key that kid names for the algorithm alg, nil when there is none. When kid is "", it
// returns the only key of the set that serves alg, nil when several do.
func (s *KeySet) Find(kid, alg string) any {
	if kid != "" {
		for _, p := range s.byKid[kid] {
			if p.serves(alg) {
				return p.key
			}
		}
		return nil
	}
	var found any
	for _, p := range s.keys {
		if p.serves(alg) {
			if found != nil {
				return nil
			}
			found = p.key
		}
	}
	return found
}

// parseKey reads a public JSON Web Key (RFC 7517 section 4). ok is false when the key cannot be used.
func parseKey(jwk map[string]any) (p publicKey, ok bool) {
	if _, private := jwk["d"]; private {
		return p, false // everybody who can read the set could sign with it
	}
	if use, there := jwk["use"]; there && use != "sig" {
		return p, false
	}
	if ops, there := jwk["key_ops"]; there {
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
	if alg, there := jwk["alg"]; there {
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

// octets decodes a member in base64url, nil when it is not that.
func octets(jwk map[string]any, name string) []byte {
	b, err := DecodeSegment(member(jwk, name))
	if err != nil {
		return nil
	}
	return b
}
