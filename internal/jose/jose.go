// Package jose reads signed tokens and the keys that verify them: the compact serialization of JWS (RFC
// 7515), its algorithms (RFC 7518, RFC 8037) and sets of public keys (RFC 7517).
//
// Input that two parsers could interpret differently is refused. An algorithm accepts only keys of its own
// kind and strength. The package does not decide what is trusted: the caller chooses the algorithms, issuers
// and claims that it accepts.
package jose

import (
	"encoding/base64"
	"errors"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// Split splits a token in the compact serialization at its two dots. ok is false unless the token has three
// parts in the base64url alphabet, of which the signature is not empty.
//
// The signature is over header + "." + payload.
func Split(token string) (header, payload, signature string, ok bool) {
	dots := [2]int{}
	n := 0
	for i := range len(token) {
		switch c := token[i]; {
		case c == '.':
			if n == len(dots) {
				return "", "", "", false
			}
			dots[n] = i
			n++
		case !isBase64URL[c]:
			return "", "", "", false
		}
	}
	if n != len(dots) || dots[1] == len(token)-1 {
		return "", "", "", false
	}
	return token[:dots[0]], token[dots[0]+1 : dots[1]], token[dots[1]+1:], true
}

var isBase64URL = func() (set [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		set[c] = true
	}
	return set
}()

// ErrEncoding is the error for text that is not base64url.
var ErrEncoding = errors.New("jose: malformed base64url")

// segments is base64url without padding. Strict refuses bits that encode nothing, so a value has one encoding
// only. The decoder ignores line ends, which Split refuses.
var segments = base64.RawURLEncoding.Strict()

// DecodeSegment decodes a part of a token. The error is ErrEncoding.
func DecodeSegment(s string) ([]byte, error) {
	b, err := segments.DecodeString(s)
	if err != nil {
		return nil, ErrEncoding
	}
	return b, nil
}

// Header is a decoded JOSE header (RFC 7515 section 4).
type Header map[string]any

// The bounds of a header. A chain of certificates (x5c) fits into maxHeaderValues.
const (
	maxHeaderValues = 64
	maxKeyID        = 512
)

// ParseHeader decodes the first part of a token. The error is ErrEncoding or one of package rawjson. Two
// members of one name are an error, at any depth.
func ParseHeader(segment string) (Header, error) {
	text, err := DecodeSegment(segment)
	if err != nil {
		return nil, err
	}
	return rawjson.DecodeObject(text, maxHeaderValues)
}

// Algorithm returns alg, "" when it is absent or not a string.
func (h Header) Algorithm() string {
	alg, _ := h["alg"].(string)
	return alg
}

// KeyID returns kid, "" when it is absent or null. ok is false when kid is not a string, or longer than 512
// bytes.
func (h Header) KeyID() (kid string, ok bool) {
	v := h["kid"]
	if v == nil {
		return "", true
	}
	kid, ok = v.(string)
	if !ok || len(kid) > maxKeyID {
		return "", false
	}
	return kid, true
}

// Critical reports whether the header has crit: whoever verifies the token must understand the extensions
// that crit names (RFC 7515 section 4.1.11). This package understands none.
func (h Header) Critical() bool {
	_, there := h["crit"]
	return there
}

// Key returns the public key in jwk, whose private half signed the token, as its sender claims. It returns
// nil if no algorithm accepts the key, or if jwk contains a private half.
func (h Header) Key() any {
	jwk, _ := h["jwk"].(map[string]any)
	if key := parseMaterial(jwk); !isPrivate(jwk) && IsUsable(key) {
		return key
	}
	return nil
}

// HasType reports whether typ is the media type that want names, whatever the case of letters. "application/"
// may be left out in both (RFC 7515 section 4.1.9): "at+jwt" is "application/at+jwt".
func (h Header) HasType(want string) bool {
	typ, _ := h["typ"].(string)
	return strings.EqualFold(bareType(typ), bareType(want))
}

// bareType returns typ without "application/".
func bareType(typ string) string {
	const prefix = "application/"
	if len(typ) > len(prefix) && strings.EqualFold(typ[:len(prefix)], prefix) {
		return typ[len(prefix):]
	}
	return typ
}
