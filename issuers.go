package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/seed-96248d0c/gateway/internal/jose"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// Issuers returns an Authenticator for several issuers. The token's claim iss selects the JWT that verifies
// it. iss is not verified when it is read, but the selected JWT then verifies the whole token with its own
// keys, audience and algorithms. A token of any other issuer is refused. A token is accepted only in the
// place where its own issuer's JWTOptions.Token finds it.
//
// Users of two issuers may have the same Subject. Only subject and issuer together identify a user.
// KeyBySubject uses both, and handlers of this process find both in the Identity. X-User-ID alone is
// ambiguous, so send the issuer to backends as well, with ProxyOptions.Identity and
// AggregateOptions.Identity:
//
//	Identity: map[string]string{"X-User-ID": "sub", "X-User-Issuer": "iss"}
//
// Issuers panics without issuers, on a nil JWT, and on a JWT whose JWTOptions.Issuer differs from its key in
// the map.
func Issuers(byIssuer map[string]*JWT) Authenticator {
	if len(byIssuer) == 0 {
		panic("gateway: Issuers: no issuers")
	}
	m := &issuers{byIssuer: maps.Clone(byIssuer)}
	for _, issuer := range slices.Sorted(maps.Keys(byIssuer)) {
		j := byIssuer[issuer]
		if j == nil || j.rules.issuer != issuer {
			panic("gateway: Issuers: the JWT under " + strconv.Quote(issuer) + " belongs to another issuer")
		}
		m.list = append(m.list, j)
		m.maxBytes = max(m.maxBytes, j.maxBytes)
	}
	return m
}

type issuers struct {
	byIssuer map[string]*JWT
	list     []*JWT // sorted by issuer, so that the order is always the same
	maxBytes int    // the largest maxBytes in list
}

// Authenticate looks for a token in each place where an issuer's tokens are sent. It verifies the first token
// that it finds.
func (m *issuers) Authenticate(r *http.Request) (*Identity, error) {
	for _, finder := range m.list {
		c, err := finder.find(r)
		if errors.Is(err, ErrNoCredentials) {
			continue
		}
		if err != nil {
			return nil, err
		}
		issuer, err := m.issuerOf(c.token)
		if err != nil {
			return nil, err
		}
		j := m.byIssuer[issuer]
		if j == nil {
			return nil, underScheme(c, badCredentials(fmt.Sprintf("unknown issuer %q", issuer)))
		}
		if j != finder {
			// The token was found in the place of finder's tokens. It must also be in the place of its own
			// issuer's tokens. For example, a token of an issuer whose tokens are sent in a cookie is not
			// accepted as a bearer token.
			if own, err := j.find(r); err != nil || own != c {
				return nil, badCredentials("the token is not where its issuer's tokens are sent")
			}
		}
		return j.accept(r, c)
	}
	return nil, ErrNoCredentials
}

// issuerOf returns the claim iss of a token that has not been verified. It returns "" if the token has no iss
// or is malformed, and errNotJWS if it is not a JWT.
func (m *issuers) issuerOf(token string) (string, error) {
	if len(token) > m.maxBytes {
		return "", nil
	}
	head, payload, _, ok := jose.Split(token)
	if !ok {
		return "", errNotJWS
	}
	if text, err := jose.DecodeSegment(head); err != nil || !bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte{'{'}) {
		return "", errNotJWS
	}
	text, err := jose.DecodeSegment(payload)
	if err != nil {
		return "", nil
	}
	issuer, err := rawjson.StringMember(text, "iss")
	if err != nil {
		return "", nil
	}
	return issuer, nil
}

func (m *issuers) acceptsDPoP() (dpop, bearer bool) {
	for _, j := range m.list {
		d, b := j.acceptsDPoP()
		dpop, bearer = dpop || d, bearer || b
	}
	return dpop, bearer
}
