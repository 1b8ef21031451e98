package hexdigit

import (
	"encoding/hex"
	"strings"
	"testing"
)

// Every byte, and every pair of bytes, is read as encoding/hex reads it.
func TestDigits(t *testing.T) {
	for a := range 256 {
		v, ok := Value(byte(a))
		want, err := hex.DecodeString("0" + string([]byte{byte(a)}))
		if ok != (err == nil) || ok && v != want[0] {
			t.Errorf("Value(%#x) = %d, %v; encoding/hex has %v, %v", a, v, ok, want, err)
		}
		for b := range 256 {
			s := string([]byte{byte(a), byte(b)})
			v, ok := Pair(s + "tail")
			want, err := hex.DecodeString(s)
			if ok != (err == nil) || ok && v != want[0] {
				t.Errorf("Pair(%q) = %d, %v; encoding/hex has %v, %v", s, v, ok, want, err)
			}
			if got, want := IsLower(s), err == nil && s == strings.ToLower(s); got != want {
				t.Errorf("IsLower(%q) = %v", s, got)
			}
		}
	}
	for _, s := range []string{"", "1"} {
		if _, ok := Pair(s); ok {
			t.Errorf("Pair(%q) is accepted", s)
		}
	}
	for v := range 16 {
		if got, ok := Value(Upper[v]); !ok || int(got) != v {
			t.Errorf("Upper[%d] = %q", v, Upper[v])
		}
	}
	if !IsLower("") {
		t.Error("an empty text has a byte that is not a digit")
	}
}
