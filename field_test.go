package gateway

import (
	"encoding/json"
	"testing"
)

func TestSameField(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"X-User-ID", "x_user_id", true}, {"X-User-ID", "xuserid", true}, {"X-User-ID", "--x.USER~id--", true},
		{"X-User-ID", "X-User-IDs", false}, {"X-User-IDs", "X-User-ID", false}, {"X-User-ID", "X-User-1D", false},
		{"a1", "A_1", true}, {"", "", true}, {"-", "_", true}, {"", "a", false}, {"ä", "ö", true},
	} {
		if got := sameField(tt.a, tt.b); got != tt.want {
			t.Errorf("sameField(%q, %q) = %v", tt.a, tt.b, got)
		}
	}
	if n := testing.AllocsPerRun(10, func() { sameField("X-User-ID", "x_user_id") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestClaimText(t *testing.T) {
	id := &Identity{
		Subject: "u", Audience: []string{"a", "b"}, Scopes: []string{"read", "pay"},
		Claims: map[string]any{
			"sub": "other", "email": "a@b", "n": json.Number("12345678901234567890"), "yes": true, "no": false, "null": nil,
			"roles": []any{"x", "y"}, "forged": []any{"x admin"}, "mixed": []any{"x", 1}, "none": []any{},
			"crlf": "a\r\nb", "blank": " a", "empty": "", "object": map[string]any{"a": "b"},
		},
	}
	for claim, want := range map[string]string{
		"sub": "u", "iss": "", "aud": "a b", "scope": "read pay", "email": "a@b", "n": "12345678901234567890",
		"yes": "true", "no": "false", "null": "", "roles": "x y", "forged": "", "mixed": "", "none": "",
		"crlf": "", "blank": "", "empty": "", "object": "", "absent": "",
	} {
		if got, ok := claimText(id, claim); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v", claim, got, ok)
		}
	}
	if got, ok := claimText(&Identity{Subject: "u"}, "sub"); got != "u" || !ok {
		t.Errorf("without claims: %q, %v", got, ok)
	}
}
