package gateway

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// Require calls the next handler when allow returns true for the Identity. Otherwise it answers 403. Without
// an Identity it answers 401: put Require inside Auth. name is the requirement's name in the log. allow is
// never called with a nil Identity. It must be safe for concurrent use. Require panics when name is empty or
// allow is nil.
func Require(name string, allow func(id *Identity, r *http.Request) bool) Middleware {
	if name == "" {
		panic("gateway: Require: empty name")
	}
	if allow == nil {
		panic("gateway: Require: nil function")
	}
	return require(allow, &Error{
		Status: http.StatusForbidden,
		Err:    fmt.Errorf("%w: %s", ErrForbidden, name),
	})
}

// RequireScopes calls the next handler when the Identity has all of scopes. Otherwise it answers 403 with the
// challenge error="insufficient_scope" and all of scopes (RFC 6750 section 3.1), or 401 without an Identity.
// RequireScopes panics without scopes, and on one that is not a scope-token (RFC 6749 section 3.3).
func RequireScopes(scopes ...string) Middleware {
	if len(scopes) == 0 {
		panic("gateway: RequireScopes: no scopes")
	}
	for _, s := range scopes {
		if !isScope(s) {
			panic("gateway: RequireScopes: malformed scope " + strconv.Quote(s))
		}
	}
	scopes = slices.Clone(scopes)
	list := strings.Join(scopes, " ")
	return require(func(id *Identity, _ *http.Request) bool {
		for _, s := range scopes {
			if !slices.Contains(id.Scopes, s) {
				return false
			}
		}
		return true
	}, &Error{
		Status: http.StatusForbidden,
		Header: http.Header{"Www-Authenticate": {`Bearer error="insufficient_scope", scope=` + httpfield.String(list)}},
		Err:    fmt.Errorf("%w: needs the scopes %s", ErrForbidden, list),
	})
}

// RequireClaim calls the next handler when the claim is one of anyOf, or is a list that contains one of them.
// Otherwise it answers 403, or 401 without an Identity. Only strings are compared: a number never equals.
// "sub", "iss", "aud" and "scope" are read from the Identity's own fields, all other names from its Claims.
// RequireClaim panics when name is empty or anyOf has no values.
func RequireClaim(name string, anyOf ...string) Middleware {
	if name == "" {
		panic("gateway: RequireClaim: empty name")
	}
	if len(anyOf) == 0 {
		panic("gateway: RequireClaim: no values")
	}
	anyOf = slices.Clone(anyOf)
	return require(func(id *Identity, _ *http.Request) bool {
		switch v := claimOf(id, name).(type) {
		case string:
			return v != "" && slices.Contains(anyOf, v)
		case []string:
			return slices.ContainsFunc(v, func(s string) bool { return slices.Contains(anyOf, s) })
		case []any:
			return slices.ContainsFunc(v, func(e any) bool {
				s, ok := e.(string)
				return ok && slices.Contains(anyOf, s)
			})
		}
		return false
	}, &Error{
		Status: http.StatusForbidden,
		Err:    fmt.Errorf("%w: claim %s", ErrForbidden, name),
	})
}

// require answers with forbidden unless allow returns true.
func require(allow func(*Identity, *http.Request) bool, forbidden *Error) Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, rw, r := enter(w, r)
			id, ok := IdentityFrom(r.Context())
			switch {
			case !ok:
				refuse(rw, r, ErrNoCredentials)
			case !allow(id, r):
				refuse(rw, r, forbidden)
			default:
				next.ServeHTTP(rw, r)
			}
		})
	}
}

// isScope reports whether s is a scope-token: visible ASCII characters other than quote and backslash.
func isScope(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}
