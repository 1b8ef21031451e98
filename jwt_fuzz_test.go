package gateway

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// FuzzAuthorization: authorization returns a token, ErrNoCredentials or ErrUnauthenticated, and a token is what follows the
// scheme.
func FuzzAuthorization(f *testing.F) {
	for _, seed := range []string{"", "Bearer a.b.c", "bearer  a", "Bearer", "Bearer\ta", "BearerX a", "Basic dTpw", "Bearer a, b", "Bearer \x00", "DPoP a.b.c", "DPoP", "DPoPX a"} {
		f.Add(seed, false)
	}
	f.Add("Bearer a", true)
	j := NewJWT(StaticKey([]byte("a secret of exactly 32 bytes ...")), JWTOptions{Issuer: "i", Audience: "a", Algorithms: []string{"HS256"}, CacheSize: -1})
	f.Fuzz(func(t *testing.T, value string, twice bool) {
		h := http.Header{"Authorization": {value}}
		if twice {
			h["Authorization"] = []string{value, value}
		}
		if c, err := authorization(h, true); err == nil && c.dpop != strings.EqualFold(value[:5], "dpop ") {
			t.Errorf("%q: scheme DPoP %v", value, c.dpop)
		}
		c, err := authorization(h, false)
		token := c.token
		switch {
		case errors.Is(err, ErrNoCredentials), errors.Is(err, ErrUnauthenticated):
			if token != "" {
				t.Errorf("%q: token and error", value)
			}
			if isBearer := len(value) > 6 && strings.EqualFold(value[:7], "bearer "); isBearer && !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%q passes as no credentials", value)
			}
		case err != nil:
			t.Errorf("%q: %v", value, err)
		case twice, token == "", !strings.HasSuffix(value, " "+token), !strings.EqualFold(value[:7], "bearer "):
			t.Errorf("%q: token %q", value, token)
		default:
			if _, err := j.Verify(t.Context(), token); !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("%q is verified, or: %v", value, err)
			}
		}
	})
}
