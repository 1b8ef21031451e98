package jose

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"
)

// TestThumbprint has the examples of RFC 7638 section 3.1, RFC 8037 appendix A.3 and RFC 9449 section 6.1.
func TestThumbprint(t *testing.T) {
	for name, tt := range map[string]struct{ jwk, want string }{
		"RFC 7638 section 3.1": {`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`,
			"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"},
		"RFC 8037 appendix A.3": {`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"},
		"RFC 9449 section 6.1": {`{"kty":"EC","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA","crv":"P-256"}`,
			"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"},
	} {
		h, err := ParseHeader(segment(`{"jwk":` + tt.jwk + `}`))
		if err != nil {
			t.Fatal(err)
		}
		sum, ok := Thumbprint(h.Key())
		if got := encode(sum[:]); !ok || got != tt.want {
			t.Errorf("%s: %s, ok %v", name, got, ok)
		}
	}
	for _, key := range []any{nil, []byte("a secret of exactly sixty-four bytes, so that HS512 takes it too."), "key"} {
		if _, ok := Thumbprint(key); ok {
			t.Errorf("%T has a thumbprint", key)
		}
	}
}

// TestHeaderKey: the key of a header is a public one that an algorithm accepts, or none.
func TestHeaderKey(t *testing.T) {
	const ed = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`
	for name, tt := range map[string]struct {
		header string
		ok     bool
	}{
		"good":             {`{"jwk":{` + ed + `}}`, true},
		"d null":           {`{"jwk":{` + ed + `,"d":null}}`, true},
		"d":                {`{"jwk":{` + ed + `,"d":"AQ"}}`, false},
		"d empty":          {`{"jwk":{` + ed + `,"d":""}}`, false},
		"p":                {`{"jwk":{` + ed + `,"p":"AQ"}}`, false},
		"k":                {`{"jwk":{` + ed + `,"k":"AQ"}}`, false},
		"symmetric":        {`{"jwk":{"kty":"oct","k":"` + strings.Repeat("A", 86) + `"}}`, false},
		"missing":          {`{}`, false},
		"null":             {`{"jwk":null}`, false},
		"a string":         {`{"jwk":"key"}`, false},
		"a list":           {`{"jwk":[{` + ed + `}]}`, false},
		"short":            {`{"jwk":{"kty":"OKP","crv":"Ed25519","x":"AQ"}}`, false},
		"RSA of 512 bits":  {`{"jwk":{"kty":"RSA","n":"` + strings.Repeat("_", 86) + `","e":"AQAB"}}`, false},
		"point at nowhere": {`{"jwk":{"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}}`, false},
	} {
		h, err := ParseHeader(segment(tt.header))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if key := h.Key(); (key != nil) != tt.ok {
			t.Errorf("%s: key %v", name, key)
		}
	}
}

// TestPSSSalt: the salt of a PS signature is as long as the hash (RFC 7518 section 3.5).
func TestPSSSalt(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const input = "header.payload"
	digest := sha256.Sum256([]byte(input))
	for salt, ok := range map[int]bool{sha256.Size: true, rsa.PSSSaltLengthEqualsHash: true, 1: false, 20: false, 31: false, 33: false, 64: false, rsa.PSSSaltLengthAuto: false} {
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: salt})
		if err != nil {
			t.Fatal(err)
		}
		if got := Lookup("PS256").Verify(input, sig, &key.PublicKey); got != ok {
			t.Errorf("a salt of %d bytes: verified %v", salt, got)
		}
	}
	none, err := key.Sign(zeros{}, digest[:], &rsa.PSSOptions{SaltLength: sha256.Size, Hash: crypto.SHA256})
	if err != nil || !Lookup("PS256").Verify(input, none, &key.PublicKey) {
		t.Errorf("a signature by crypto.Signer: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestOddKeys: one odd key never refuses the set, and never the good key beside it.
func TestOddKeys(t *testing.T) {
	const good = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"good"}`
	const ed = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, tt := range map[string]struct {
		odd    string
		usable bool // as the key "odd"
	}{
		"nested":               {`{"kid":"odd",` + ed + `,"x5c":` + nest(30) + `}`, true},
		"nested deep":          {`{"kid":"odd",` + ed + `,"x5c":` + nest(100) + `}`, false},
		"nested without end":   {`{"kid":"odd",` + ed + `,"x5c":` + nest(50_000) + `}`, false},
		"a member twice":       {`{"kid":"odd",` + ed + `,"kid":"odd"}`, false},
		"a nested one twice":   {`{"kid":"odd",` + ed + `,"ext":{"a":1,"a":2}}`, false},
		"a lone surrogate":     {`{"kid":"odd",` + ed + `,"name":"\ud800"}`, false},
		"null members":         {`{"kid":"odd",` + ed + `,"alg":null,"use":null,"key_ops":null,"d":null,"x5t":null}`, true},
		"null":                 {`null`, false},
		"a number":             {`1`, false},
		"a list":               {`[` + good + `]`, false},
		"empty":                {`{}`, false},
		"private by its prime": {`{"kid":"odd",` + ed + `,"p":"AQ"}`, false},
	} {
		for _, set := range []string{`{"keys":[` + tt.odd + `,` + good + `]}`, `{"keys":[` + good + `,` + tt.odd + `]}`} {
			s, err := ParseKeySet([]byte(set))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if s.Find("good", "EdDSA") == nil {
				t.Errorf("%s: the good key is lost", name)
			}
			if (s.Find("odd", "EdDSA") != nil) != tt.usable {
				t.Errorf("%s: usable %v", name, !tt.usable)
			}
		}
	}
}

// TestFindCandidates: clashing kids, and keys without one.
func TestFindCandidates(t *testing.T) {
	keys := testKeys(t)
	other := testKeys(t)
	set := func(jwks ...map[string]any) *KeySet {
		text, err := json.Marshal(map[string]any{"keys": jwks})
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseKeySet(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	named := func(kid string, key any) map[string]any { return jwk(kid, key, nil) }
	nameless := func(key any) map[string]any { m := jwk("", key, nil); delete(m, "kid"); return m }
	rs, ed := keys["RS256"], keys["EdDSA"]
	rs2, ed2 := other["RS256"], other["EdDSA"]
	many := make([]map[string]any, 20)
	for i := range many {
		many[i] = named("k", rs)
	}
	for name, tt := range map[string]struct {
		set      *KeySet
		kid, alg string
		want     int
	}{
		"clashing kids":                          {set(named("k", rs), named("k", rs2), named("k", ed)), "k", "RS256", 2},
		"clashing kids, of one kind":             {set(named("k", rs), named("k", rs2), named("k", ed)), "k", "EdDSA", 1},
		"clashing kids, no kid":                  {set(named("k", rs), named("k", rs2)), "", "RS256", 0},
		"too many":                               {set(many...), "k", "RS256", maxCandidates},
		"nameless, no kid":                       {set(nameless(rs)), "", "RS256", 1},
		"nameless, an unknown kid":               {set(nameless(rs)), "x", "RS256", 1},
		"two nameless, an unknown kid":           {set(nameless(rs), nameless(rs2)), "x", "RS256", 2},
		"two nameless, no kid":                   {set(nameless(ed), nameless(ed2)), "", "EdDSA", 2},
		"nameless beside another kind":           {set(nameless(rs), named("e", ed)), "x", "RS256", 1},
		"nameless, of another kind":              {set(nameless(rs), named("e", ed)), "x", "EdDSA", 0},
		"nameless beside a named, unknown kid":   {set(nameless(rs), named("k", rs2)), "x", "RS256", 0},
		"nameless beside a named, its kid":       {set(nameless(rs), named("k", rs2)), "k", "RS256", 1},
		"nameless beside a named, without a kid": {set(nameless(rs), named("k", rs2)), "", "RS256", 0},
		"the only one, unknown kid":              {set(named("k", rs)), "x", "RS256", 0},
		"the only one, no kid":                   {set(named("k", rs)), "", "RS256", 1},
	} {
		if got := tt.set.Find(tt.kid, tt.alg); len(got) != tt.want {
			t.Errorf("%s: %d keys, want %d", name, len(got), tt.want)
		}
	}
	s := set(named("k", rs))
	if n := testing.AllocsPerRun(10, func() { s.Find("k", "RS256") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
