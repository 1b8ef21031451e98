package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func segment(s string) string { return encode([]byte(s)) }

func TestSplit(t *testing.T) {
	for token, want := range map[string]string{
		"a.b.c": "a b c", "..c": "  c", "a..c": "a  c", "_-9.Z.0": "_-9 Z 0",
		"": "", "a": "", "a.b": "", "a.b.": "", "..": "", "a.b.c.d": "", "a.b.c.": "", ".a.b.c": "",
		"a.b.c=": "", "a.b.c\n": "", "a\n.b.c": "", "a.b+.c": "", "a.b/.c": "", "a.b.c\x00": "", "a.b.\u00e4": "", "a b.c.d": "",
	} {
		header, payload, signature, ok := Split(token)
		got := header + " " + payload + " " + signature
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, ok %v", token, got, ok)
		}
	}
	if n := testing.AllocsPerRun(10, func() { Split("a.b.c") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDecodeSegment(t *testing.T) {
	for s, want := range map[string]string{"": "", "YQ": "a", "YWI": "ab", "YWJj": "abc", "_-8": "\xff\xef"} {
		if b, err := DecodeSegment(s); err != nil || string(b) != want {
			t.Errorf("%q: %q, %v", s, b, err)
		}
	}
	for _, s := range []string{"Y", "YR", "YWJ", "YQ==", "YW I", "+w", "/w", "YQ.", "\u00e4"} {
		if _, err := DecodeSegment(s); err != ErrEncoding {
			t.Errorf("%q: error %v", s, err)
		}
	}
}

func TestHeader(t *testing.T) {
	long := strings.Repeat("k", maxKeyID)
	for name, tt := range map[string]struct {
		json     string
		alg, kid string
		kidOK    bool
		critical bool
		isAccess bool // typ is at+jwt
	}{
		"plain":              {`{"alg":"RS256","kid":"a","typ":"at+jwt"}`, "RS256", "a", true, false, true},
		"empty":              {`{}`, "", "", true, false, false},
		"escaped":            {`{"\u0061lg":"RS256"}`, "RS256", "", true, false, false},
		"other types":        {`{"alg":1,"kid":1,"typ":1}`, "", "", false, false, false},
		"kid null":           {`{"kid":null}`, "", "", true, false, false},
		"longest kid":        {`{"kid":"` + long + `"}`, "", long, true, false, false},
		"kid too long":       {`{"kid":"` + long + `k"}`, "", "", false, false, false},
		"names in caps":      {`{"Alg":"RS256","KID":"a","CRIT":[]}`, "", "", true, false, false},
		"crit":               {`{"crit":["exp"]}`, "", "", true, true, false},
		"crit null":          {`{"crit":null}`, "", "", true, true, false},
		"typ in caps":        {`{"typ":"AT+JWT"}`, "", "", true, false, true},
		"typ in full":        {`{"typ":"Application/at+jwt"}`, "", "", true, false, true},
		"typ, prefix alone":  {`{"typ":"application/"}`, "", "", true, false, false},
		"typ of an ID token": {`{"typ":"JWT"}`, "", "", true, false, false},
	} {
		h, err := ParseHeader(segment(tt.json))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		kid, ok := h.KeyID()
		if h.Algorithm() != tt.alg || kid != tt.kid || ok != tt.kidOK || h.Critical() != tt.critical {
			t.Errorf("%s: alg %q, kid %q, ok %v, critical %v", name, h.Algorithm(), kid, ok, h.Critical())
		}
		if h.HasType("at+jwt") != tt.isAccess || h.HasType("application/AT+JWT") != tt.isAccess {
			t.Errorf("%s: typ", name)
		}
	}
}

func TestParseHeaderErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		segment string
		want    error
	}{
		"not base64url":    {"a", ErrEncoding},
		"padding":          {"e30=", ErrEncoding},
		"empty":            {"", rawjson.ErrNotObject},
		"a list":           {segment(`["RS256"]`), rawjson.ErrNotObject},
		"alg twice":        {segment(`{"alg":"none","alg":"RS256"}`), rawjson.ErrDuplicate},
		"twice, escaped":   {segment(`{"alg":"none","\u0061lg":"RS256"}`), rawjson.ErrDuplicate},
		"too many members": {segment(`{"x5c":[` + strings.Repeat("0,", maxHeaderValues) + `0]}`), rawjson.ErrTooMany},
	} {
		if h, err := ParseHeader(tt.segment); h != nil || !errors.Is(err, tt.want) {
			t.Errorf("%s: header %v, error %v, want %v", name, h, err, tt.want)
		}
	}
}

// testKeys returns a good key for each algorithm.
func testKeys(t testing.TB) map[string]any {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) *ecdsa.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &k.PublicKey
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"RS256": &r.PublicKey, "RS384": &r.PublicKey, "RS512": &r.PublicKey,
		"PS256": &r.PublicKey, "PS384": &r.PublicKey, "PS512": &r.PublicKey,
		"ES256": curve(elliptic.P256()), "ES384": curve(elliptic.P384()), "ES512": curve(elliptic.P521()), "EdDSA": ed,
		"HS256": make([]byte, 32), "HS384": make([]byte, 48), "HS512": make([]byte, 64),
	}
}

func TestAlgorithms(t *testing.T) {
	keys := testKeys(t)
	if len(keys) != len(algorithms) {
		t.Errorf("%d algorithms, keys for %d", len(algorithms), len(keys))
	}
	for _, name := range []string{"none", "None", "", "rs256", "ES256K", "RSA-OAEP", "Ed448"} {
		if Lookup(name) != nil {
			t.Errorf("%q is an algorithm", name)
		}
	}
	// family is what the names of algorithms with interchangeable keys have in common.
	family := func(alg string) string {
		if alg[0] == 'R' || alg[0] == 'P' {
			return "RSA"
		}
		return alg
	}
	for alg, key := range keys {
		if !IsUsable(key) {
			t.Errorf("the key of %s is not usable", alg)
		}
		for other := range keys {
			want := family(alg) == family(other)
			if family(alg)[0] == 'H' && other[0] == 'H' {
				want = alg >= other // a longer secret serves a shorter hash
			}
			if Lookup(other).Accepts(key) != want {
				t.Errorf("%s accepts the key of %s: %v", other, alg, !want)
			}
			if Lookup(other).Verify("input", []byte("signature"), key) {
				t.Errorf("%s accepts a nonsensical signature", other)
			}
		}
	}
}

func TestUnusableKeys(t *testing.T) {
	keys := testKeys(t)
	good := keys["RS256"].(*rsa.PublicKey)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := func(bits uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), bits-1) }
	for name, key := range map[string]any{
		"nil": nil, "string": strings.Repeat("s", 64), "RSA by value": *good,
		"nil RSA": (*rsa.PublicKey)(nil), "empty RSA": &rsa.PublicKey{},
		"short RSA": &rsa.PublicKey{N: modulus(2047), E: 65537}, "long RSA": &rsa.PublicKey{N: modulus(8193), E: 65537},
		"RSA with e = 1": &rsa.PublicKey{N: good.N, E: 1}, "RSA with even e": &rsa.PublicKey{N: good.N, E: 4},
		"nil EC": (*ecdsa.PublicKey)(nil), "P-224": &p224.PublicKey, "private EC": p224,
		"short Ed25519": make(ed25519.PublicKey, 31), "nil Ed25519": ed25519.PublicKey(nil),
		"short secret": make([]byte, 31), "nil secret": []byte(nil),
	} {
		if IsUsable(key) {
			t.Errorf("%s is usable", name)
		}
		for alg, a := range algorithms {
			if a.Verify("input", []byte("signature"), key) {
				t.Errorf("%s verifies with %s", alg, name)
			}
		}
	}
}

func TestSameKey(t *testing.T) {
	keys, others := testKeys(t), testKeys(t)
	clone := func(key any) any {
		switch k := key.(type) {
		case *rsa.PublicKey:
			c := *k
			return &c
		case *ecdsa.PublicKey:
			c := *k
			return &c
		case ed25519.PublicKey:
			return append(ed25519.PublicKey(nil), k...)
		case []byte:
			return append([]byte(nil), k...)
		}
		return nil
	}
	for a, key := range keys {
		if !SameKey(key, key) || !SameKey(key, clone(key)) {
			t.Errorf("%s: a copy is another key", a)
		}
		if _, secret := key.([]byte); !secret && SameKey(key, others[a]) {
			t.Errorf("%s: two keys are the same", a)
		}
		for _, wrong := range []any{nil, "key", (*rsa.PublicKey)(nil), (*ecdsa.PublicKey)(nil), ed25519.PublicKey(nil), []byte(nil)} {
			if SameKey(key, wrong) || SameKey(wrong, key) && wrong != nil {
				t.Errorf("%s: the same as %T", a, wrong)
			}
		}
	}
	if SameKey([]byte("a"), []byte("b")) || SameKey(nil, nil) {
		t.Error("different or absent keys are the same")
	}
}

func BenchmarkParseHeader(b *testing.B) {
	s := segment(`{"alg":"RS256","kid":"2026-11","typ":"at+jwt"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseHeader(s); err != nil {
			b.Fatal(err)
		}
	}
}
