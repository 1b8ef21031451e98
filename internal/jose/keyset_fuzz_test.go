package jose

import "testing"

// FuzzKeySet: every key that ParseKeySet returns can be used with an algorithm, and none of them is a secret.
func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","alg":"ES256"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB","use":"sig","key_ops":["verify"]},{"kty":"oct","k":"AAAA"}]}`))
	f.Add([]byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		set, err := ParseKeySet(body)
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
				if found := set.Find(p.kid, alg); found == nil && p.kid != "" {
					t.Errorf("key %q for %s is not found", p.kid, alg)
				}
				if a.Verify("input", []byte("signature"), p.key) {
					t.Error("a signature holds")
				}
			}
			if served == 0 {
				t.Errorf("key %q serves nothing", p.kid)
			}
		}
	})
}
