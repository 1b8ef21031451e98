package jose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
)

// jwk returns a public key as a JSON Web Key. members adds or replaces members.
func jwk(kid string, key any, members map[string]any) map[string]any {
	m := map[string]any{"kid": kid}
	switch k := key.(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", encode(k.N.Bytes()), encode(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		size := (len(point) - 1) / 2
		m["kty"], m["crv"] = "EC", k.Curve.Params().Name
		m["x"], m["y"] = encode(point[1:1+size]), encode(point[1+size:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", encode(k)
	case []byte:
		m["kty"], m["k"] = "oct", encode(k)
	}
	for name, v := range members {
		m[name] = v
	}
	return m
}

// TestKeysOfASet: a key that cannot be used is skipped, and the good key beside it is found.
func TestKeysOfASet(t *testing.T) {
	keys := testKeys(t)
	rs, ec, ed := keys["RS256"].(*rsa.PublicKey), keys["ES256"].(*ecdsa.PublicKey), keys["EdDSA"].(ed25519.PublicKey)
	weak := &rsa.PublicKey{N: new(big.Int).Rsh(rs.N, 1024), E: rs.E}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	with := func(key any, members map[string]any) map[string]any { return jwk("k", key, members) }
	for name, tt := range map[string]struct {
		jwk any
		alg string
		ok  bool
	}{
		"RSA":                       {with(rs, nil), "RS256", true},
		"RSA for PS":                {with(rs, nil), "PS512", true},
		"RSA for an HMAC":           {with(rs, nil), "HS256", false},
		"RSA with alg":              {with(rs, map[string]any{"alg": "RS512"}), "RS512", true},
		"RSA with another alg":      {with(rs, map[string]any{"alg": "RS512"}), "RS256", false},
		"RSA with an EC alg":        {with(rs, map[string]any{"alg": "ES256"}), "RS256", false},
		"RSA for encryption":        {with(rs, map[string]any{"use": "enc"}), "RS256", false},
		"RSA with an enc alg":       {with(rs, map[string]any{"alg": "RSA-OAEP"}), "RS256", false},
		"alg of a wrong type":       {with(rs, map[string]any{"alg": 1}), "RS256", false},
		"use sig":                   {with(rs, map[string]any{"use": "sig"}), "RS256", true},
		"use of a wrong type":       {with(rs, map[string]any{"use": []string{"sig"}}), "RS256", false},
		"key_ops verify":            {with(rs, map[string]any{"key_ops": []string{"verify"}}), "RS256", true},
		"key_ops encrypt":           {with(rs, map[string]any{"key_ops": []string{"encrypt"}}), "RS256", false},
		"private half":              {with(rs, map[string]any{"d": "AQ"}), "RS256", false},
		"RSA of 1024 bits":          {with(weak, nil), "RS256", false},
		"RSA of 16384 bits":         {with(rs, map[string]any{"n": strings.Repeat("_", 2732)}), "RS256", false},
		"RSA with e = 1":            {with(rs, map[string]any{"e": "AQ"}), "RS256", false},
		"RSA with even e":           {with(rs, map[string]any{"e": "BA"}), "RS256", false},
		"RSA with huge e":           {with(rs, map[string]any{"e": "AQAAAAAB"}), "RS256", false},
		"RSA with e of 9 bytes":     {with(rs, map[string]any{"e": "AQAAAAAAAQAB"}), "RS256", false},
		"RSA with e of 32 bits":     {with(rs, map[string]any{"e": "_____w"}), "RS256", false},
		"RSA with padding":          {with(rs, map[string]any{"e": "AQAB="}), "RS256", false},
		"RSA without n":             {with(rs, map[string]any{"n": nil}), "RS256", false},
		"P-256":                     {with(ec, nil), "ES256", true},
		"P-256 for ES384":           {with(ec, nil), "ES384", false},
		"P-224":                     {with(&p224.PublicKey, nil), "ES256", false},
		"point off the curve":       {with(ec, map[string]any{"x": encode(make([]byte, 32))}), "ES256", false},
		"uneven coordinates":        {with(ec, map[string]any{"x": encode(point[1:34]), "y": encode(point[34:])}), "ES256", false},
		"short coordinate":          {with(ec, map[string]any{"x": "AQ"}), "ES256", false},
		"Ed25519":                   {with(ed, nil), "EdDSA", true},
		"Ed25519 by its newer name": {with(ed, map[string]any{"alg": "Ed25519"}), "EdDSA", true},
		"Ed448":                     {with(ed, map[string]any{"crv": "Ed448"}), "EdDSA", false},
		"X25519":                    {with(ed, map[string]any{"crv": "X25519"}), "EdDSA", false},
		"short Ed25519":             {with(ed, map[string]any{"x": "AQ"}), "EdDSA", false},
		"symmetric":                 {with(keys["HS256"], map[string]any{"alg": "HS256"}), "HS256", false},
		"unknown kty":               {with(rs, map[string]any{"kty": "AKP"}), "RS256", false},
		"kid of a wrong type":       {with(rs, map[string]any{"kid": 7}), "RS256", false},
		"no object":                 {"RSA", "RS256", false},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := json.Marshal(map[string]any{"keys": []any{tt.jwk, jwk("other", ed, nil)}})
			if err != nil {
				t.Fatal(err)
			}
			set, err := ParseKeySet(text)
			if err != nil {
				t.Fatal(err)
			}
			if key := set.Find("k", tt.alg); (key != nil) != tt.ok {
				t.Errorf("key %v", key)
			}
			if set.Find("other", "EdDSA") == nil {
				t.Error("the good key beside it is not found")
			}
		})
	}
}

func TestKeySetFind(t *testing.T) {
	const (
		ed   = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}`
		ec   = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"a"}`
		ecB  = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","kid":"b"}`
		weak = `{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"weak"}`
	)
	set, err := ParseKeySet([]byte(`{"keys":[` + strings.Join([]string{ed, ec, ecB, weak, `"no object"`}, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kid, alg string
		ok       bool
	}{
		{"a", "EdDSA", true}, {"a", "ES256", true}, {"b", "ES256", true}, {"b", "EdDSA", false}, {"a", "RS256", false},
		{"", "EdDSA", true}, {"", "ES256", false}, {"", "RS256", false}, {"weak", "RS256", false}, {"c", "ES256", false}, {"a", "none", false},
	} {
		if key := set.Find(tt.kid, tt.alg); (key != nil) != tt.ok {
			t.Errorf("kid %q for %s: %v", tt.kid, tt.alg, key)
		}
	}
	// A key whose kid is malformed is not a key without a kid.
	set, err = ParseKeySet([]byte(`{"keys":[` + strings.Replace(ed, `"kid":"a"`, `"kid":7`, 1) + `,` + ecB + `]}`))
	if err != nil || set.Find("", "EdDSA") != nil || set.Find("", "ES256") == nil {
		t.Errorf("a kid that is a number: set %v, error %v", set, err)
	}
	for name, text := range map[string]string{
		"no keys": `{}`, "keys null": `{"keys":null}`, "keys an object": `{"keys":{}}`, "empty": `{"keys":[]}`, "weak": `{"keys":[` + weak + `]}`,
		"a list": `[]`, "nothing": ``, "keys twice": `{"keys":[` + ed + `],"keys":[` + ed + `]}`, "more behind": `{"keys":[` + ed + `]}{}`,
	} {
		if set, err := ParseKeySet([]byte(text)); err == nil || set != nil {
			t.Errorf("%s: set %v, error %v", name, set, err)
		}
	}
}
