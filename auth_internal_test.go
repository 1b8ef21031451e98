package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestAuthOutcome: a refusal is the gateway's own, and an Authenticator that cannot decide is unavailable. A client that
// leaves during authentication is nobody's failure.
func TestAuthOutcome(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		left bool
		want Outcome
	}{
		"bad":                      {ErrUnauthenticated, false, OutcomeRejected},
		"cannot tell":              {&Error{Status: 503}, false, OutcomeUnavailable},
		"fails by itself":          {errors.New("database"), false, OutcomeUnavailable},
		"too slow to tell":         {context.DeadlineExceeded, false, OutcomeUnavailable},
		"the client left":          {context.Canceled, true, OutcomeClientCanceled},
		"left, and nobody can say": {&Error{Status: 503, Err: errors.New("away")}, true, OutcomeClientCanceled},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		h := Auth(AuthenticatorFunc(func(*http.Request) (*Identity, error) {
			if tt.left {
				cancel()
			}
			return nil, tt.err
		}), nil)(http.NotFoundHandler())
		ex, w, r := enter(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		h.ServeHTTP(w, r)
		if !ex.noted || ex.outcome != tt.want {
			t.Errorf("%s: %v", name, ex.outcome)
		}
		cancel()
	}
}

func TestClaimText(t *testing.T) {
	id := &Identity{
		Subject: "u", Audience: []string{"a", "b"}, Scopes: []string{"read", "pay"},
		Claims: map[string]any{
			"sub": "other", "email": "a@b", "n": json.Number("12345678901234567890"), "yes": true, "no": false, "null": nil,
			"roles": []any{"x", "y"}, "forged": []any{"x,admin"}, "mixed": []any{"x", 1}, "none": []any{},
			"realm_access":               map[string]any{"roles": []any{"Domain Users", "b"}, "deep": map[string]any{"x.y": "z"}},
			"https://acme.example/roles": []any{"r"}, "a.b": map[string]any{"c": "longest"}, "a": map[string]any{"b": map[string]any{"c": "shortest"}, "d": "d"},
			"crlf": "a\r\nb", "blank": " a", "empty": "", "object": map[string]any{"a": "b"},
		},
	}
	for claim, want := range map[string]string{
		"sub": "u", "iss": "", "aud": "a,b", "scope": "read,pay",
		"realm_access.roles": "Domain%20Users,b", "realm_access.deep.x.y": "z", "realm_access.deep.x": "", "realm_access": "", "realm_access.roles.0": "",
		"https://acme.example/roles": "r", "a.b.c": "longest", "a.d": "d", "a.": "", ".a": "", "email.x": "", "nothing.at.all": "",
		"email": "a@b", "n": "12345678901234567890",
		"yes": "true", "no": "false", "null": "", "roles": "x,y", "forged": "x%2Cadmin", "mixed": "", "none": "",
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
