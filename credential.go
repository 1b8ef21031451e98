package gateway

import (
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// credential is a token in a request.
type credential struct {
	token  string
	dpop   bool // sent under the scheme DPoP
	placed bool // found by JWTOptions.Token, so there is no scheme
}

// authorization returns the token of the field Authorization with the scheme Bearer (RFC 6750 section 2.1)
// or, if dpop is true, also DPoP (RFC 9449 section 7.1). It returns ErrNoCredentials for another scheme. Two
// fields, or a scheme without exactly one token, are bad credentials.
func authorization(h http.Header, dpop bool) (credential, error) {
	values := h["Authorization"]
	if len(values) == 0 {
		return credential{}, ErrNoCredentials
	}
	if len(values) > 1 {
		return credential{}, badCredentials("two Authorization fields")
	}
	var c credential
	rest, ok := cutAuthScheme(values[0], "Bearer")
	if !ok && dpop {
		rest, ok = cutAuthScheme(values[0], "DPoP")
		c.dpop = ok
	}
	if !ok {
		return credential{}, ErrNoCredentials
	}
	c.token = strings.TrimLeft(rest, " ")
	if c.token == "" || len(c.token) == len(rest) {
		return credential{}, badCredentials("no token after the scheme")
	}
	return c, nil
}

// cutAuthScheme returns the rest of the value of Authorization after the scheme. ok is false for another
// scheme, even if its name begins with scheme.
func cutAuthScheme(value, scheme string) (rest string, ok bool) {
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", false
	}
	rest = value[len(scheme):]
	return rest, rest == "" || !httpfield.IsToken(rest[:1])
}

// CookieToken returns a function for JWTOptions.Token that reads the token from the cookie name. A request
// with two cookies of that name is refused. CookieToken panics on an empty name.
//
// Browsers send a cookie with every request to its host, even with requests that another site's page makes.
// Auth refuses such requests, including handshakes of WebSockets, by their Origin (see AuthOptions.Origins).
func CookieToken(name string) func(*http.Request) string {
	if name == "" {
		panic("gateway: CookieToken: empty name")
	}
	return func(r *http.Request) string {
		switch cookies := r.CookiesNamed(name); len(cookies) {
		case 0:
			return ""
		case 1:
			return cookies[0].Value
		}
		return ambiguous
	}
}

// HeaderToken returns a function for JWTOptions.Token that reads the token from a header field. The token is
// the field's whole value. A request in which the field occurs twice is refused. HeaderToken panics on a
// malformed field name.
func HeaderToken(name string) func(*http.Request) string {
	key := fieldName("HeaderToken", name)
	return func(r *http.Request) string {
		switch values := r.Header[key]; len(values) {
		case 0:
			return ""
		case 1:
			return values[0]
		}
		return ambiguous
	}
}

// ambiguous is returned instead of two tokens. No verifier accepts it, so the request is refused.
const ambiguous = ","

// fieldName returns the canonical form of a field name. It panics on a malformed name. who is the caller's
// name, for the message.
func fieldName(who, name string) string {
	if !httpfield.IsToken(name) {
		panic("gateway: " + who + ": malformed field name")
	}
	return http.CanonicalHeaderKey(name)
}
