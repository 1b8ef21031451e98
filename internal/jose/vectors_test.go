package jose

import (
	"encoding/json"
	"os"
	"testing"
)

// TestVectors verifies signatures that others made: the examples of RFC 7515 appendix A, RFC 7520 section 4
// and RFC 8037 appendix A.4, in testdata/jws.json. Some of them are of the JSON serialization, where the
// signature is over a protected header of its own, or over none.
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
			if _, ok := v.Key["k"]; ok {
				key = octets(v.Key, "k") // symmetric keys are never read from a set
			} else {
				p, ok := parseKey(v.Key)
				if !ok {
					t.Fatal("the key is refused")
				}
				key = p.key
			}
			input := v.Header + "." + v.Payload
			if v.Alg == "" {
				if _, _, _, ok := Split(input + "." + v.Signature); ok {
					t.Error("Split accepts a token without a signature")
				}
				return
			}
			signature, err := DecodeSegment(v.Signature)
			if err != nil {
				t.Fatal(err)
			}
			a := Lookup(v.Alg)
			if !a.Verify(input, signature, key) {
				t.Error("not verified")
			}
			if a.Verify(input+"A", signature, key) {
				t.Error("the signature is accepted for another input")
			}
			signature[len(signature)/2] ^= 1
			if a.Verify(input, signature, key) {
				t.Error("a changed signature is accepted")
			}
			for alg, other := range algorithms {
				if alg != v.Alg && other.Verify(input, signature, key) {
					t.Errorf("%s accepts it, too", alg)
				}
			}
		})
	}
}
