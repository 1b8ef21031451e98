package gateway

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// FuzzBearer: what comes out is one of three answers, and a token that comes out stood behind the scheme.
func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"", "Bearer a.b.c", "bearer  a", "Bearer", "Bearer\ta", "BearerX a", "Basic dTpw", "Bearer a, b", "Bearer \x00"} {
		f.Add(seed, false)
	}
	f.Add("Bearer a", true)
	j := NewJWT(StaticKey([]byte("a secret of exactly 32 bytes ...")), JWTOptions{Issuer: "i", Audience: "a", Algorithms: []string{"HS256"}, CacheSize: -1})
	f.Fuzz(func(t *testing.T, value string, twice bool) {
		h := http.Header{"Authorization": {value}}
		if twice {
			h["Authorization"] = []string{value, value}
		}
		token, err := bearer(h)
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

// FuzzKeySet: every key that comes out of a set can be used for the algorithm that it serves, and no symmetric
// one does.
func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","alg":"ES256"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","use":"sig","key_ops":["verify"]},{"kty":"oct","k":"AAAA"}]}`))
	f.Add([]byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		set, err := parseKeySet(body)
		if err != nil {
			return
		}
		if len(set.keys) == 0 {
			t.Error("an empty set")
		}
		for _, p := range set.keys {
			served := 0
			for alg, a := range algorithms {
				if !p.serves(alg) {
					continue
				}
				served++
				if a.kind == secretKind {
					t.Errorf("a secret for %s", alg)
				}
				if found := set.find(p.kid, alg); found == nil && p.kid != "" {
					t.Errorf("key %q for %s is not found", p.kid, alg)
				}
				if a.verify("input", []byte("signature"), p.key) == nil {
					t.Error("a signature holds")
				}
			}
			if served == 0 {
				t.Errorf("key %q serves nothing", p.kid)
			}
		}
	})
}
