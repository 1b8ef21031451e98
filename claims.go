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

// claims are the claims of a token, or the members of an introspection endpoint's answer. A claim that is
// null counts as absent. A claim of the wrong type is an error. claims implements jwt.Claims, for the
// validator of golang-jwt.
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

// text returns a claim that is a string. It returns "" if the claim is absent.
func (c claims) text(name string) (string, error) {
	v := claimAt(c, name)
	s, ok := v.(string)
	if v != nil && !ok {
		return "", errClaimType
	}
	return s, nil
}

// date returns a claim that is a NumericDate (RFC 7519 section 2) in the years 1970 to 9999. It returns nil
// if the claim is absent.
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

// Validate checks that sub is a string, which the validator does not check. The validator calls it last.
func (c claims) Validate() error {
	_, err := c.text("sub")
	return err
}

// identity returns the Identity of valid claims. subject names claims: the first that is not empty is the
// Subject. A nil subject means sub.
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

// scopesOf reads scopes from a string, separated by spaces (RFC 8693 section 4.2), or from a list, which some
// issuers send. It skips invalid scopes.
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

// tokenUse is the kind of a token, by its use.
type tokenUse int

const (
	useUnknown tokenUse = iota
	useAccess           // an access token: for an API
	useID               // an ID token: for the client that the user logged in to (OpenID Connect Core 1.0 section 2)
	useOther            // another token that is not for an API: a refresh token, a logout token, a DPoP proof
)

// use distinguishes an access token from other tokens that an issuer may sign with the same key for the same
// audience. A kind that the issuer declares has precedence over claims that are typical of a kind.
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
		return useID // only an ID token has a hash of the access token or code that was issued with it
	case declared == useUnknown && c["nonce"] != nil:
		return useID // an ID token repeats the nonce of the client's authentication request
	}
	if events, _ := c["events"].(map[string]any); events["http://schemas.openid.net/event/backchannel-logout"] != nil {
		return useOther
	}
	return declared
}

// declaredUse returns the kind of token that the issuer declares: Keycloak in the claim typ, Cognito and
// Hydra in token_use or token_type.
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

// claimAt returns the value of the claim name, or nil if there is none. name is the name of a claim, or a
// path of names joined by dots, such as "realm_access.roles". A name may contain dots, as in
// "https://acme.example/roles". So in each object, the longest prefix of the path that is a member's name is
// used.
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

// claimOf returns a claim of id, by its name or path, or nil if it is absent. sub, iss, aud and scope come
// from the fields of id.
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

// claimText formats a claim as a field value. A string is not changed, a number is written as in the token, a
// boolean is "true" or "false", and a list is its elements joined by commas. claimText returns false if the
// claim is absent or empty, is an object, is a list that contains an object or a list, or is not a valid
// field value.
func claimText(id *Identity, claim string) (string, bool) {
	if claim == "sub" { // the most frequent one; claimOf would allocate
		return id.Subject, httpfield.IsValue(id.Subject)
	}
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

// scalarText returns the text of a claim that is neither a list nor an object. The text of null is "".
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

// appendElement appends an element of a list, after a comma unless it is the first. It percent-encodes (RFC
// 3986 section 2.1) commas, percent signs and everything that is not visible ASCII, so that a reader can
// restore elements that contain spaces or commas. For example, ["a,b", "c"] becomes "a%2Cb,c". An empty
// element is left out.
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

// isAbsent reports whether a claim is missing or empty: nil, "", an empty list, or a list of empty elements.
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
