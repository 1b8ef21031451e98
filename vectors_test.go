package gateway

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
)

// TestVectors checks signatures that others made: the examples of RFC 7515 appendix A, RFC 7520 section 4 and
// RFC 8037 appendix A.4, in testdata/jws.json. Their payloads are no claims, and those of the JSON
// serialisation have a protected header of their own or none, so they go to the check of the signature.
func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/jws.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Source, Alg, Header, Payload, Signature string
		Key                                     map[string]any
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		t.Run(v.Source, func(t *testing.T) {
			var key any
			if k, ok := v.Key["k"].(string); ok {
				key = octets(k) // symmetric keys are never read from a set
			} else {
				p, ok := parseKey(v.Key)
				if !ok {
					t.Fatal("the key is refused")
				}
				key = p.key
			}
			input := v.Header + "." + v.Payload
			if v.Alg == "" {
				j := NewJWT(StaticKey(key), JWTOptions{Issuer: "joe", Audience: "a", Algorithms: []string{"RS256"}})
				if _, err := j.Verify(t.Context(), input+"."); !errors.Is(err, ErrUnauthenticated) {
					t.Errorf("error %v", err)
				}
				return
			}
			signature, err := segments.DecodeString(v.Signature)
			if err != nil {
				t.Fatal(err)
			}
			if err := algorithms[v.Alg].verify(input, signature, key); err != nil {
				t.Error(err)
			}
			if algorithms[v.Alg].verify(input+"A", signature, key) == nil {
				t.Error("the signature holds over another input")
			}
			signature[len(signature)/2] ^= 1
			if algorithms[v.Alg].verify(input, signature, key) == nil {
				t.Error("another signature holds")
			}
			for alg, a := range algorithms {
				if alg != v.Alg && a.verify(input, signature, key) == nil {
					t.Errorf("%s takes it, too", alg)
				}
			}
		})
	}
}
