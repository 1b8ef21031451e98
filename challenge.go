package gateway

import (
	"errors"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// badCredentials is an error that wraps ErrUnauthenticated. Its text is the reason, for the log. The text
// must not contain anything that the caller sent.
type badCredentials string

func (e badCredentials) Error() string { return ErrUnauthenticated.Error() + ": " + string(e) }
func (e badCredentials) Unwrap() error { return ErrUnauthenticated }

// errNotJWS is the error of a JWT for a token that is not a signed JWT. FirstOf then calls the next
// Authenticator. If there is none, the credentials are bad.
var errNotJWS error = notJWS{}

type notJWS struct{}

func (notJWS) Error() string   { return ErrUnauthenticated.Error() + ": the token is not a JWT" }
func (notJWS) Unwrap() []error { return []error{ErrUnauthenticated, ErrNoCredentials} }

// isNoCredentials reports whether err means that the request has no credentials at all. It returns false if
// the request has credentials that no Authenticator knows.
func isNoCredentials(err error) bool {
	return errors.Is(err, ErrNoCredentials) && !errors.Is(err, ErrUnauthenticated)
}

// credentialError wraps ErrUnauthenticated. It has the parameters of the challenge for the client.
type credentialError struct {
	err         error  // for the log; wraps ErrUnauthenticated
	code        string // of the challenge (RFC 6750 section 3.1, RFC 9449 section 12.2)
	description string // of the challenge; "" sends none. Visible ASCII without quotes and backslashes
	dpop        bool   // the challenge is of the scheme DPoP
	nonce       string // DPoP-Nonce; "" sends none
}

func (e *credentialError) Error() string { return e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// The values of the parameter error in a challenge.
const (
	codeInvalidToken = "invalid_token"
	codeInvalidProof = "invalid_dpop_proof"
	codeUseNonce     = "use_dpop_nonce"
)

// errExpired returns the error for a token that is valid except that it has expired. Its challenge tells the
// client so.
func errExpired(reason error) error {
	return &credentialError{err: reason, code: codeInvalidToken, description: "The access token expired"}
}

// dpopAccepter is implemented by an Authenticator that accepts DPoP-bound tokens, or contains one that does.
type dpopAccepter interface {
	acceptsDPoP() (dpop, bearer bool)
}

// acceptsDPoP reports for which schemes to send a challenge: DPoP, Bearer or both. It is Bearer for an
// Authenticator that is not a dpopAccepter.
func acceptsDPoP(a Authenticator) (dpop, bearer bool) {
	if d, ok := a.(dpopAccepter); ok {
		return d.acceptsDPoP()
	}
	return false, true
}

// challenges makes the values of WWW-Authenticate that one Auth sends (RFC 6750 section 3, RFC 9449 section
// 7.1, RFC 9728 section 5.1).
type challenges struct {
	realm, metadata string      // parameters; "" for none
	none            http.Header // for a request without credentials
	invalid         http.Header // for bad credentials, without a description of what is wrong
}

func newChallenges(who string, o *AuthOptions, a Authenticator) *challenges {
	for name, value := range map[string]string{"Realm": o.Realm, "ResourceMetadata": o.ResourceMetadata} {
		if value != "" && !httpfield.IsPrintable(value) {
			panic("gateway: " + who + ": " + name + " must be visible ASCII")
		}
	}
	c := &challenges{realm: o.Realm, metadata: o.ResourceMetadata}
	dpop, bearer := acceptsDPoP(a)
	var none []string
	if bearer || !dpop {
		none = append(none, c.text("Bearer"))
	}
	if dpop {
		none = append(none, c.text("DPoP", "algs", dpopAlgorithms))
	}
	invalid := c.text("Bearer", "error", codeInvalidToken)
	if dpop && !bearer {
		invalid = c.text("DPoP", "error", codeInvalidToken, "algs", dpopAlgorithms)
	}
	c.none, c.invalid = http.Header{fieldChallenge: none}, http.Header{fieldChallenge: {invalid}}
	return c
}

const fieldChallenge = "Www-Authenticate"

// text returns one challenge. params alternates names and values. A parameter whose value is "" is left out.
func (c *challenges) text(scheme string, params ...string) string {
	all := append(append([]string{"realm", c.realm}, params...), "resource_metadata", c.metadata)
	var b strings.Builder
	b.WriteString(scheme)
	for i := 0; i < len(all); i += 2 {
		if all[i+1] == "" {
			continue
		}
		if b.Len() > len(scheme) {
			b.WriteByte(',')
		}
		b.WriteString(" " + all[i] + "=" + httpfield.String(all[i+1]))
	}
	return b.String()
}

// refusal adds the challenge to an error that is answered with 401. An *Error with another status or with its
// own challenge is returned unchanged.
func (c *challenges) refusal(err error) error {
	var e *Error
	var detailed *credentialError
	switch {
	case errors.As(err, &e) && (e.status() != http.StatusUnauthorized || e.Header.Get("WWW-Authenticate") != ""):
		return err
	case errors.As(err, &detailed):
		return &Error{Status: http.StatusUnauthorized, Header: c.header(detailed), Err: err}
	case isNoCredentials(err):
		return &Error{Status: http.StatusUnauthorized, Header: c.none, Err: err}
	case errors.Is(err, ErrUnauthenticated), e != nil:
		return &Error{Status: http.StatusUnauthorized, Header: c.invalid, Err: err}
	}
	return err
}

func (c *challenges) header(e *credentialError) http.Header {
	params := []string{"error", e.code, "error_description", e.description}
	h := make(http.Header)
	if e.dpop {
		h[fieldChallenge] = []string{c.text("DPoP", append(params, "algs", dpopAlgorithms)...)}
	} else {
		h[fieldChallenge] = []string{c.text("Bearer", params...)}
	}
	if e.nonce != "" {
		h["Dpop-Nonce"] = []string{e.nonce}
	}
	return h
}
