package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// Identity is what an Authenticator learned. Treat it as read-only: a cached one is shared by requests.
//
// A Subject is somebody only together with its Issuer where several issuers are trusted.
type Identity struct {
	Subject, Issuer  string
	Audience, Scopes []string
	Expiry           time.Time      // zero: none
	Claims           map[string]any // everything, numbers as json.Number; nil where there are no claims
}

// Authenticator says who sent r. It returns ErrNoCredentials when r has none of its kind, an error that
// wraps ErrUnauthenticated when they are bad, and an *Error with its own status when it cannot tell (503:
// the key set or the introspection endpoint is away). A nil Identity without an error is refused. It must
// be safe for concurrent use.
type Authenticator interface {
	Authenticate(r *http.Request) (*Identity, error)
}

// AuthenticatorFunc is a function as an Authenticator.
type AuthenticatorFunc func(r *http.Request) (*Identity, error)

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(r *http.Request) (*Identity, error) { return f(r) }

// AuthOptions say what Auth does with those whom it cannot place. The zero value refuses them.
type AuthOptions struct {
	Optional   bool   // no credentials pass as anonymous; bad ones are still refused
	Realm      string // told in the challenge; "" tells none. What is no visible ASCII panics
	ReportOnly bool   // log and count what would be refused, refuse nothing
}

// Auth refuses requests that a cannot place: 401 with WWW-Authenticate (RFC 6750 section 3), which says
// error="invalid_token" when there were credentials and they were bad. What is inside finds the caller by
// IdentityFrom and in the field X-User-ID (the subject). Every field whose name has the letters and digits of
// X-User-ID, which some servers take for the same, is removed first, from anonymous requests too. Proxy has
// its own ProxyOptions.Identity.
//
// A subject that is empty or no field value (with CR, LF, NUL or another control character, blanks at
// either end) is refused with 401: it would be another subject to those who read it there.
//
// With ReportOnly, what would be refused goes on as anonymous, or as whom an Auth further out found. It is
// told in Observe's log line, or by a warning in slog.Default where there is none, and counted by gateway.report_only, with policy="auth", in the global
// MeterProvider.
//
// Auth panics when a is nil.
func Auth(a Authenticator, opts *AuthOptions) Middleware {
	if a == nil {
		panic("gateway: Auth: nil Authenticator")
	}
	var o AuthOptions
	if opts != nil {
		o = *opts
	}
	c := newChallenges("Auth", o.Realm)
	var report *reporter
	if o.ReportOnly {
		report = newReporter("auth")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			id, err := identify(a, r)
			switch {
			case err == nil:
			case o.Optional && errors.Is(err, ErrNoCredentials):
			case report != nil:
				report.add(ex, r, err)
			case r.Context().Err() != nil:
				WriteError(rw, r, err) // the client has left, or its time is up: nobody was refused
				return
			default:
				refuse(rw, r, c.refusal(err))
				return
			}
			next.ServeHTTP(rw, present(ex, r, id))
		})
	}
}

// identify asks a and holds it to its word.
func identify(a Authenticator, r *http.Request) (*Identity, error) {
	id, err := a.Authenticate(r)
	switch {
	case err != nil:
		return nil, err
	case id == nil:
		return nil, badCredentials("nobody, and no error")
	case !httpfield.IsValue(id.Subject):
		return nil, badCredentials("the subject is empty or no field value")
	}
	return id, nil
}

// present puts id into the record, and its subject where a local handler looks for it. A nil id leaves
// whom an outer Auth found.
func present(ex *exchange, r *http.Request, id *Identity) *http.Request {
	ex.mu.Lock()
	if id != nil {
		ex.identity = id
	} else {
		id = ex.identity
	}
	ex.mu.Unlock()

	forged := false
	for name := range r.Header {
		if httpfield.SameName(name, userField) {
			forged = true
			break
		}
	}
	if id == nil && !forged {
		return r
	}
	r = ex.headerOf(r)
	if forged {
		for name := range r.Header {
			if httpfield.SameName(name, userField) {
				delete(r.Header, name)
			}
		}
	}
	if id != nil && httpfield.IsValue(id.Subject) {
		r.Header[userField] = []string{id.Subject}
	}
	return r
}

// userField is X-User-ID as it stands in an http.Header.
const userField = "X-User-Id"

// badCredentials is why a caller is refused, for the log. It never holds a word of the caller's.
type badCredentials string

func (e badCredentials) Error() string { return ErrUnauthenticated.Error() + ": " + string(e) }
func (e badCredentials) Unwrap() error { return ErrUnauthenticated }

// challenges are the values of WWW-Authenticate that one Auth sends.
type challenges struct {
	none, invalid http.Header
}

func newChallenges(who, realm string) challenges {
	none, invalid := "Bearer", `Bearer error="invalid_token"`
	if realm != "" {
		if !httpfield.IsPrintable(realm) {
			panic("gateway: " + who + ": realm must be visible ASCII")
		}
		quoted := "Bearer realm=" + httpfield.String(realm)
		none, invalid = quoted, quoted+`, error="invalid_token"`
	}
	return challenges{http.Header{"Www-Authenticate": {none}}, http.Header{"Www-Authenticate": {invalid}}}
}

// refusal gives a 401 its challenge. An *Error keeps its own status and fields.
func (c challenges) refusal(err error) error {
	var e *Error
	switch {
	case errors.As(err, &e) && (e.status() != http.StatusUnauthorized || e.Header.Get("WWW-Authenticate") != ""):
		return err
	case errors.Is(err, ErrNoCredentials):
		return &Error{Status: http.StatusUnauthorized, Header: c.none, Err: err}
	case errors.Is(err, ErrUnauthenticated), e != nil:
		return &Error{Status: http.StatusUnauthorized, Header: c.invalid, Err: err}
	}
	return err
}

// reporter tells what a policy with ReportOnly would have refused.
type reporter struct {
	policy  string
	refused metric.Int64Counter
	attrs   metric.MeasurementOption
}

func newReporter(policy string) *reporter {
	refused, err := otel.GetMeterProvider().Meter(scope).Int64Counter("gateway.report_only",
		metric.WithDescription("Requests that a policy would have refused, had it not been told to report only."),
		metric.WithUnit("{request}"))
	if err != nil {
		otel.Handle(err)
	}
	return &reporter{policy, refused, metric.WithAttributeSet(attribute.NewSet(attribute.String("policy", policy)))}
}

func (p *reporter) add(ex *exchange, r *http.Request, err error) {
	ex.mu.Lock()
	traceID, route, logged := ex.traceID, ex.route, ex.logged
	ex.mu.Unlock()
	ctx := r.Context()
	p.refused.Add(ctx, 1, p.attrs)
	ex.remark(p.policy+" would refuse", err)
	if logged {
		return // the access log tells
	}
	slog.Default().LogAttrs(ctx, slog.LevelWarn, "gateway: would refuse",
		slog.String("policy", p.policy),
		slog.Int("status", finish(err).Status),
		slog.String("error", err.Error()),
		slog.String("route", route),
		slog.String("trace_id", traceID))
}

// FirstOf asks each Authenticator in turn; the first that finds its kind of credentials decides, good or bad.
// ErrNoCredentials when none does. It panics without any, and on a nil one.
func FirstOf(as ...Authenticator) Authenticator {
	if len(as) == 0 || slices.Contains(as, nil) {
		panic("gateway: FirstOf: nil Authenticator")
	}
	as = slices.Clone(as)
	return AuthenticatorFunc(func(r *http.Request) (*Identity, error) {
		for _, a := range as {
			if id, err := a.Authenticate(r); !errors.Is(err, ErrNoCredentials) {
				return id, err
			}
		}
		return nil, ErrNoCredentials
	})
}

// maxAPIKey bounds what is hashed.
const maxAPIKey = 4 << 10

// APIKeys authenticates by a key in a header field, which holds nothing else. lookup is given the key's SHA-256
// and never the key itself: keep hashes, and a lost table gives no key away. Whoever guesses keys knows no
// hash beforehand, so it does not matter in what time a map or a database finds one; to compare with a
// single hash, use subtle.ConstantTimeCompare.
//
// lookup returns a nil Identity, or an error that wraps ErrUnauthenticated, for a key that it does not know; an
// *Error as it is; any other error says that it cannot tell and answers 503. It must be safe for concurrent
// use. Two fields, and a key over 4 KiB, are refused. APIKeys panics on a malformed field name and a nil
// lookup. Keys ought to be random, of 128 bits at least: a hash hides no password.
func APIKeys(header string, lookup func(ctx context.Context, sha256 [32]byte) (*Identity, error)) Authenticator {
	name := fieldName("APIKeys", header)
	if lookup == nil {
		panic("gateway: APIKeys: nil lookup")
	}
	return AuthenticatorFunc(func(r *http.Request) (*Identity, error) {
		values := r.Header[name]
		switch {
		case len(values) == 0 || len(values) == 1 && values[0] == "":
			return nil, ErrNoCredentials
		case len(values) > 1:
			return nil, badCredentials("two API keys")
		case len(values[0]) > maxAPIKey:
			return nil, badCredentials("API key too long")
		}
		id, err := lookup(r.Context(), sha256.Sum256([]byte(values[0])))
		return found(r, id, err)
	})
}

// ClientCert authenticates by the verified TLS client certificate. The server's TLSConfig must verify:
// ClientAuth is tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert, and ClientCAs names who may
// issue. identify is asked about connections with such a certificate alone, cs.VerifiedChains[0][0]; what it
// returns is taken as APIKeys takes what lookup does. A certificate that nobody verified, or that has expired
// since the handshake, is refused. A connection without one has no credentials, nor has one without TLS, so
// behind a balancer that ends TLS this finds nobody. ClientCert panics when identify is nil.
func ClientCert(identify func(cs *tls.ConnectionState) (*Identity, error)) Authenticator {
	if identify == nil {
		panic("gateway: ClientCert: nil function")
	}
	return AuthenticatorFunc(func(r *http.Request) (*Identity, error) {
		switch {
		case r.TLS == nil || len(r.TLS.PeerCertificates) == 0:
			return nil, ErrNoCredentials
		case len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0:
			return nil, badCredentials("the certificate is not verified")
		case time.Now().After(r.TLS.VerifiedChains[0][0].NotAfter):
			return nil, badCredentials("the certificate has expired")
		}
		id, err := identify(r.TLS)
		return found(r, id, err)
	})
}

// found gives what a caller's function says of r the meaning that an Authenticator's answer has.
func found(r *http.Request, id *Identity, err error) (*Identity, error) {
	var e *Error
	switch {
	case err == nil && id != nil:
		return id, nil
	case err == nil, errors.Is(err, ErrNoCredentials):
		return nil, badCredentials("unknown credentials") // there were some
	case errors.Is(err, ErrUnauthenticated), errors.As(err, &e), r.Context().Err() != nil:
		return nil, err
	}
	return nil, &Error{Status: http.StatusServiceUnavailable, Err: err}
}

// IdentityFrom returns who sent the request, as Auth or WithIdentity found it.
func IdentityFrom(ctx context.Context) (*Identity, bool) {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return nil, false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.identity, ex.identity != nil
}

// WithIdentity is for handlers that know the caller by other means: a child of ctx's record, which
// leaves the request's own as it is. A nil id makes the request anonymous to what is inside.
func WithIdentity(ctx context.Context, id *Identity) context.Context {
	v := exchangeFrom(ctx).variant(ctx)
	v.identity = id
	return v
}

// claimOf returns a claim, from the Identity's own field where it has one; nil when it has none.
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
	return id.Claims[claim]
}

// claimText writes a claim as a field value: a string as it is, a number as the token has it, true or
// false, a list of strings joined by spaces. It returns false for a claim that is absent, empty, an object,
// or no field value, and for a list in which an element could be taken for two.
func claimText(id *Identity, claim string) (string, bool) {
	var text string
	switch v := claimOf(id, claim).(type) {
	case string:
		text = v
	case json.Number:
		text = v.String()
	case bool:
		text = strconv.FormatBool(v)
	case []string:
		for _, s := range v {
			if s == "" || strings.Contains(s, " ") {
				return "", false
			}
		}
		text = strings.Join(v, " ")
	case []any:
		list := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok || s == "" || strings.Contains(s, " ") {
				return "", false
			}
			list[i] = s
		}
		text = strings.Join(list, " ")
	}
	return text, httpfield.IsValue(text)
}
