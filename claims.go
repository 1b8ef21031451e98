package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/jose"
)

// claims are what a token or the answer of an introspection endpoint says. A claim that is null is absent.
// claims implements jwt.Claims for the validator. A claim that is present but has the wrong type is an
// error.
type claims map[string]any

var errClaimType = errors.New("claim of a wrong type")

func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }
func (c claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.date("iat") }
func (c claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.date("nbf") }
func (c claims) GetIssuer() (string, error)                   { return c.text("iss") }
func (c claims) GetSubject() (string, error)                  { return c.text("sub") }

// GetAudience reads aud, which is a string or a list of strings (RFC 7519 section 4.1.3). It is nil when aud
// is absent.
func (c claims) GetAudience() (jwt.ClaimStrings, error) {
	switch v := c["aud"].(type) {
	case nil:
		return nil, nil
	case string:
		return jwt.ClaimStrings{v}, nil
	case []any:
		list := make(jwt.ClaimStrings, len(v))
		for i, e := range v {
			var ok bool
			if list[i], ok = e.(string); !ok {
				return nil, errClaimType
			}
		}
		return list, nil
	}
	return nil, errClaimType
}

// text returns a claim that is a string, "" when it is absent.
func (c claims) text(name string) (string, error) {
	v := claimAt(c, name)
	s, ok := v.(string)
	if v != nil && !ok {
		return "", errClaimType
	}
	return s, nil
}

// date returns a claim that is a NumericDate (RFC 7519 section 2) in the years 1970 to 9999, nil when it is
// absent.
func (c claims) date(name string) (*jwt.NumericDate, error) {
	v := c[name]
	if v == nil {
		return nil, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return nil, errClaimType
	}
	const year10000 = 253402300800
	f, err := n.Float64()
	if err != nil || f < 0 || f >= year10000 {
		return nil, errClaimType
	}
	sec, frac := math.Modf(f)
	return &jwt.NumericDate{Time: time.Unix(int64(sec), int64(frac*1e9))}, nil
}

// Validate checks what the validator does not check itself. The validator calls it last.
func (c claims) Validate() error {
	_, err := c.text("sub")
	return err
}

// identity returns the Identity that valid claims describe. The Subject comes from the first claim of
// subject that is not empty; nil means sub.
func (c claims) identity(subject []string) (*Identity, error) {
	id := &Identity{Claims: c}
	if subject == nil {
		id.Subject, _ = c.text("sub")
	}
	for _, name := range subject {
		s, err := c.text(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, name)
		}
		if id.Subject = s; s != "" {
			break
		}
	}
	id.Issuer, _ = c.text("iss")
	aud, _ := c.GetAudience()
	id.Audience = []string(aud)
	if exp, _ := c.date("exp"); exp != nil {
		id.Expiry = exp.Time
	}
	if id.Scopes = scopesOf(c["scope"]); id.Scopes == nil {
		id.Scopes = scopesOf(c["scp"])
	}
	return id, nil
}

// scopesOf reads scopes from a string with spaces between them (RFC 8693 section 4.2), or from a list, which
// some issuers send. It skips what is not a scope.
func scopesOf(v any) []string {
	var list []string
	switch v := v.(type) {
	case string:
		for s := range strings.SplitSeq(v, " ") {
			if isScope(s) {
				list = append(list, s)
			}
		}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && isScope(s) {
				list = append(list, s)
			}
		}
	}
	return list
}

// tokenUse is what a token is for, as far as it can be told.
type tokenUse int

const (
	useUnknown tokenUse = iota
	useAccess           // for an API
	useID               // for the client that the user logged in to (OpenID Connect Core 1.0 section 2)
	useOther            // for the provider itself, or for nobody: a refresh token, a logout token, a proof
)

// use tells an access token from the other tokens that an issuer signs with the same key for the same
// audience. What the issuer calls a token counts before what it looks like.
func (c claims) use(header jose.Header) tokenUse {
	for _, typ := range []string{"logout+jwt", "secevent+jwt", "dpop+jwt", "token-introspection+jwt"} {
		if header.HasType(typ) {
			return useOther
		}
	}
	declared := c.declaredUse()
	if declared == useUnknown && header.HasType("at+jwt") {
		declared = useAccess
	}
	switch {
	case declared == useOther, declared == useID:
		return declared
	case c["at_hash"] != nil, c["c_hash"] != nil:
		return useID // they are hashes of what is issued together with an ID token
	case declared == useUnknown && c["nonce"] != nil:
		return useID // it repeats the one of the client's authentication request
	}
	if events, _ := c["events"].(map[string]any); events["http://schemas.openid.net/event/backchannel-logout"] != nil {
		return useOther
	}
	return declared
}

// declaredUse is what the issuer calls a token: in Keycloak's claim typ, or in token_use of Cognito and
// Hydra.
func (c claims) declaredUse() tokenUse {
	declared := useUnknown
	for _, name := range []string{"typ", "token_use", "token_type"} {
		switch word, _ := c[name].(string); word {
		case "Refresh", "Offline", "Logout", "refresh", "refresh_token":
			return useOther
		case "ID", "id", "id_token":
			return useID
		case "Bearer", "DPoP", "access", "access_token":
			declared = useAccess
		}
	}
	return declared
}

// claimAt returns the value that name leads to, nil for none. name is the name of a claim or a path of names
// with dots between them, such as "realm_access.roles". Names may have dots themselves, as in
// "https://acme.example/roles": at each object, the longest beginning of the path that is the name of a
// member counts.
func claimAt(object map[string]any, name string) any {
	if v, ok := object[name]; ok {
		return v
	}
	for end := strings.LastIndexByte(name, '.'); end > 0; end = strings.LastIndexByte(name[:end], '.') {
		if v, ok := object[name[:end]]; ok {
			inner, _ := v.(map[string]any)
			return claimAt(inner, name[end+1:])
		}
	}
	return nil
}

// claimOf returns a claim of id, by its name or path. The claims that Identity has fields for come from
// there. It is nil for an absent claim.
func claimOf(id *Identity, claim string) any {
	switch claim {
	case "sub":
		return id.Subject
	case "iss":
		return id.Issuer
	case "aud":
		return id.Audience
	case "scope":
		return id.Scopes
	}
	return claimAt(id.Claims, claim)
}

// claimText formats a claim as a field value: a string as it is, a number as it was written in the token,
// true or false, and a list as its elements with commas between them. It returns false when the claim is
// absent, empty, an object, a list with an object or a list in it, or not a valid field value.
func claimText(id *Identity, claim string) (string, bool) {
	var text string
	switch v := claimOf(id, claim).(type) {
	case []string:
		var b []byte
		for _, s := range v {
			b = appendElement(b, s)
		}
		text = string(b)
	case []any:
		var b []byte
		for _, e := range v {
			s, ok := scalarText(e)
			if !ok {
				return "", false
			}
			b = appendElement(b, s)
		}
		text = string(b)
	default:
		text, _ = scalarText(v)
	}
	return text, httpfield.IsValue(text)
}

// scalarText returns the text of a claim that is neither a list nor an object. That of null is "".
func scalarText(v any) (text string, ok bool) {
	switch v := v.(type) {
	case nil:
		return "", true
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// appendElement appends an element of a list, after a comma unless it is the first, and percent-encoded (RFC
// 3986 section 2.1) where it is not visible ASCII, and where it is a comma or a percent sign. So elements
// with blanks and commas in them stay what they are. An empty element is left out.
func appendElement(b []byte, s string) []byte {
	if s == "" {
		return b
	}
	if len(b) > 0 {
		b = append(b, ',')
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == ',' || c == '%' {
			const digits = "0123456789ABCDEF"
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// isAbsent reports whether a claim is missing, or has no value: "", an empty list, or a list of nothing but
// empty ones.
func isAbsent(claim any) bool {
	switch v := claim.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []string:
		return !slices.ContainsFunc(v, func(s string) bool { return s != "" })
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return e != nil && e != "" })
	}
	return false
}
