package gateway

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// RequireOptions has Require, RequireScopes and RequireClaim as methods, with options. The methods of the
// zero value do the same as the functions with these names.
//
//	gateway.RequireOptions{ReportOnly: true}.RequireScopes("pay")
type RequireOptions struct {
	ReportOnly bool // log and count the requests that would be refused, and refuse none; see AuthOptions.ReportOnly. The counter's attribute is policy="require"
}

// Require calls the next handler when allow returns true for the Identity. Otherwise it answers 403. Without
// an Identity it answers 401: put Require inside Auth. name is the requirement's name in the log. allow is
// never called with a nil Identity. It must be safe for concurrent use. Require panics when name is empty or
// allow is nil.
func Require(name string, allow func(id *Identity, r *http.Request) bool) Middleware {
	return RequireOptions{}.Require(name, allow)
}

// Require is the function Require, with options.
func (o RequireOptions) Require(name string, allow func(id *Identity, r *http.Request) bool) Middleware {
	if name == "" {
		panic("gateway: Require: empty name")
	}
	if allow == nil {
		panic("gateway: Require: nil function")
	}
	return o.middleware(&requirement{allow: allow, what: name})
}

// RequireScopes calls the next handler when the Identity has all of scopes. Otherwise it answers 403 with the
// challenge error="insufficient_scope" and all of scopes (RFC 6750 section 3.1), or 401 without an Identity.
// RequireScopes panics without scopes, and on one that is not a scope-token (RFC 6749 section 3.3).
func RequireScopes(scopes ...string) Middleware { return RequireOptions{}.RequireScopes(scopes...) }

// RequireScopes is the function RequireScopes, with options.
func (o RequireOptions) RequireScopes(scopes ...string) Middleware {
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
	return o.middleware(&requirement{
		allow: func(id *Identity, _ *http.Request) bool {
			for _, s := range scopes {
				if !slices.Contains(id.Scopes, s) {
					return false
				}
			}
			return true
		},
		what:   "needs the scopes " + list,
		scopes: list,
	})
}

// RequireClaim calls the next handler when the claim is one of anyOf, or is a list that contains one of
// them. Otherwise it answers 403, or 401 without an Identity. Only strings are compared: a claim that is a
// number never matches. RequireClaim panics when name is empty or anyOf has no values.
//
// "sub", "iss", "aud" and "scope" are read from the Identity's own fields, all other names from its Claims.
// name may be a path into objects, with dots between the names: "realm_access.roles". A claim whose own name
// contains dots, such as "https://acme.example/roles", has precedence.
func RequireClaim(name string, anyOf ...string) Middleware {
	return RequireOptions{}.RequireClaim(name, anyOf...)
}

// RequireClaim is the function RequireClaim, with options.
func (o RequireOptions) RequireClaim(name string, anyOf ...string) Middleware {
	if name == "" {
		panic("gateway: RequireClaim: empty name")
	}
	if len(anyOf) == 0 {
		panic("gateway: RequireClaim: no values")
	}
	anyOf = slices.Clone(anyOf)
	return o.middleware(&requirement{
		allow: func(id *Identity, _ *http.Request) bool { return claimHasAny(claimOf(id, name), anyOf) },
		what:  "claim " + name,
	})
}

// claimHasAny reports whether a claim is one of anyOf, or a list that contains one of them.
func claimHasAny(claim any, anyOf []string) bool {
	switch v := claim.(type) {
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
}

// requirement is the condition of one Require.
type requirement struct {
	allow  func(*Identity, *http.Request) bool
	what   string // for the log
	scopes string // for the challenge; "" sends none
}

// middleware refuses requests that do not meet the requirement, or reports them.
func (o RequireOptions) middleware(req *requirement) Middleware {
	var report *reporter
	if o.ReportOnly {
		report = newReporter("require")
	}
	outsideAuth := new(challenges)
	forbidden := req.forbidden(outsideAuth)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			id, ok := IdentityFrom(r.Context())
			if ok && req.allow(id, r) {
				next.ServeHTTP(rw, r)
				return
			}
			var err error = forbidden
			switch c := ex.challenged(); {
			case !ok && c == nil:
				err = ErrNoCredentials
			case !ok:
				err = c.refusal(ErrNoCredentials)
			case c != nil && req.scopes != "":
				err = req.forbidden(c)
			}
			if report != nil {
				report.add(ex, r, err)
				next.ServeHTTP(rw, r)
				return
			}
			refuse(rw, r, err)
		})
	}
}

// forbidden returns the 403 for a caller who does not meet the requirement.
func (req *requirement) forbidden(c *challenges) *Error {
	e := &Error{Status: http.StatusForbidden, Err: fmt.Errorf("%w: %s", ErrForbidden, req.what)}
	if req.scopes != "" {
		e.Header = http.Header{fieldChallenge: {c.text("Bearer", "error", "insufficient_scope", "scope", req.scopes)}}
	}
	return e
}

// challenged returns the challenges of the innermost Auth outside, or nil if there is none.
func (ex *exchange) challenged() *challenges {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.challenges
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
