package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// Identity is the authenticated caller of a request. An Authenticator returns it. Treat it as read-only:
// requests share a cached Identity.
//
// Where several issuers are trusted, a Subject is unique only together with its Issuer.
type Identity struct {
	Subject, Issuer  string
	Audience, Scopes []string
	Expiry           time.Time      // when the credentials expire; the zero Time means never
	Claims           map[string]any // all claims, with numbers as json.Number; nil if the credentials have no claims
}

// Authenticator authenticates the caller of a request. Authenticate returns its Identity, or one of these
// errors:
//
//   - ErrNoCredentials when r has no credentials of the kind that the Authenticator checks,
//   - an error that wraps ErrUnauthenticated when the credentials are bad,
//   - an *Error with a status of its own when the Authenticator cannot decide, such as 503 while the key set
//     or the introspection endpoint cannot be reached.
//
// A nil Identity without an error is treated as bad credentials. An Authenticator must be safe for concurrent
// use.
type Authenticator interface {
	Authenticate(r *http.Request) (*Identity, error)
}

// AuthenticatorFunc is an adapter for using a function as an Authenticator.
type AuthenticatorFunc func(r *http.Request) (*Identity, error)

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(r *http.Request) (*Identity, error) { return f(r) }

// AuthOptions configures Auth. With the zero value every request that is not authenticated is refused.
type AuthOptions struct {
	Optional   bool   // requests without credentials pass as anonymous; bad credentials are still refused
	Realm      string // realm parameter of the challenge; "" omits it. Auth panics unless it is visible ASCII
	ReportOnly bool   // log and count what would be refused, and refuse nothing
}

// Auth calls the next handler when a authenticates the request. Otherwise it answers 401 with
// WWW-Authenticate (RFC 6750 section 3). The challenge has error="invalid_token" if the request had
// credentials that were bad. When a cannot decide, the answer has the status of its *Error.
//
// Handlers inside Auth get the caller from IdentityFrom, or the subject from the request's field X-User-ID.
// Some servers treat X_User_Id or x.user.id as the same field. So Auth first removes every field whose name
// has the same letters and digits as X-User-ID, from anonymous requests too. It removes these and the other
// fields that Proxy writes from the request's trailers, whether they were announced or not. Handlers outside
// Auth see the request unchanged. Which fields a backend gets is set by ProxyOptions.Identity.
//
// A subject that is empty or not a valid field value is refused with 401, because readers of the field would
// see another subject. A valid value has no control characters, such as CR, LF and NUL, and no whitespace at
// either end.
//
// With ReportOnly, a request that would be refused passes as anonymous, or with the Identity that an outer
// Auth found. It is reported in the remarks of Observe's log line, or, without an access log, as a warning to
// slog.Default. The counter gateway.report_only in the global MeterProvider counts it, with the attribute
// policy="auth".
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
	owned := newOwnedFields("Auth", nil)
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
			case leftEarly(r.Context()):
				WriteError(rw, r, err) // not a refusal
				return
			default:
				refuseUndecided(rw, r, c.refusal(err))
				return
			}
			next.ServeHTTP(rw, owned.authenticated(ex, r, id))
		})
	}
}

// identify calls a and checks that its result is one that the interface allows.
func identify(a Authenticator, r *http.Request) (*Identity, error) {
	id, err := a.Authenticate(r)
	switch {
	case err != nil:
		return nil, err
	case id == nil:
		return nil, badCredentials("the Authenticator returned neither an identity nor an error")
	case !httpfield.IsValue(id.Subject):
		return nil, badCredentials("the subject is empty or not a valid field value")
	}
	return id, nil
}

// authenticated stores id in the record, and returns the request for the handlers inside Auth: with the
// subject in X-User-ID, and without the client's fields and trailers that could be taken for it. When id is
// nil, the Identity that an outer Auth stored stays. r itself is not changed, since the Authenticator and the
// handlers outside may hold it.
func (f *ownedFields) authenticated(ex *exchange, r *http.Request, id *Identity) *http.Request {
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
	trailers := mayHaveTrailers(r)
	if id == nil && !forged && !trailers {
		return r
	}
	r = r.WithContext(r.Context())
	ex.derived(r)
	if trailers {
		f.guardTrailers(r, ex.ownedHere())
	}
	r.Header = maps.Clone(r.Header)
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if forged {
		for name := range r.Header {
			if httpfield.SameName(name, userField) {
				delete(r.Header, name)
			}
		}
	}
	if id != nil && httpfield.IsValue(id.Subject) {
		r.Header[userField] = ex.userValue(id.Subject)
	}
	return r
}

// userValue returns the value of X-User-ID in a header. A value that was given out stays as it is, since
// others may hold it.
func (ex *exchange) userValue(subject string) []string {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.user[0] != "" {
		return []string{subject}
	}
	ex.user[0] = subject
	return ex.user[:]
}

// userField is X-User-ID in canonical form, the key in an http.Header.
const userField = "X-User-Id"

// badCredentials is an error that wraps ErrUnauthenticated. Its text is the reason, for the log, and must not
// contain anything that the caller sent.
type badCredentials string

func (e badCredentials) Error() string { return ErrUnauthenticated.Error() + ": " + string(e) }
func (e badCredentials) Unwrap() error { return ErrUnauthenticated }

// challenges holds the values of WWW-Authenticate that one Auth sends: without credentials, and with bad
// ones.
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

// refusal adds the challenge to an error that is answered with 401. An *Error that has another status, or a
// challenge of its own, is returned unchanged.
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

// reporter logs and counts what a policy with ReportOnly would have refused.
type reporter struct {
	policy  string
	refused metric.Int64Counter
	attrs   metric.MeasurementOption
}

func newReporter(policy string) *reporter {
	refused := telemetry.Counter(otel.GetMeterProvider().Meter(scope), "gateway.report_only",
		"Requests that a policy with ReportOnly would have refused.", "{request}")
	return &reporter{policy, refused, metric.WithAttributeSet(attribute.NewSet(attribute.String("policy", policy)))}
}

// add counts a request that would have been refused with err, and logs it.
func (p *reporter) add(ex *exchange, r *http.Request, err error) {
	ex.mu.Lock()
	traceID, route, logged := ex.traceID(), ex.route, ex.logged
	ex.mu.Unlock()
	ctx := r.Context()
	p.refused.Add(ctx, 1, p.attrs)
	ex.remark(p.policy+" would refuse", err)
	if logged {
		return // the remark is in the access log
	}
	slog.Default().LogAttrs(ctx, slog.LevelWarn, "gateway: would refuse",
		slog.String("policy", p.policy),
		slog.Int("status", finish(err).Status),
		slog.String("error", bounded(err.Error())),
		slog.String("route", route),
		slog.String("trace_id", traceID))
}

// FirstOf returns an Authenticator that calls each of as in turn, until one returns something other than
// ErrNoCredentials. That result stands, even if it is an error: bad credentials of one kind are not tried as
// another kind. If every one returns ErrNoCredentials, so does FirstOf. FirstOf panics without
// Authenticators, and on a nil one.
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

// maxAPIKey bounds the bytes that are hashed for a request.
const maxAPIKey = 4 << 10

// APIKeys returns an Authenticator for API keys. A key is the whole value of the field header. lookup gets
// the SHA-256 of the key and not the key itself: store hashes, so that a stolen table reveals no keys. The
// time of a lookup in a map or a database reveals no key, because a client cannot choose the hash of its
// guess. To compare with a single hash, use subtle.ConstantTimeCompare.
//
// For an unknown key, lookup returns a nil Identity or an error that wraps ErrUnauthenticated. An *Error is
// answered with its own status. Any other error means that lookup could not decide, and is answered with 503.
// lookup must be safe for concurrent use.
//
// A request in which the field occurs twice, or with a key over 4 KiB, is refused. Keys must have at least
// 128 random bits: a SHA-256 does not protect a guessable key, such as a password. APIKeys panics on a
// malformed field name and when lookup is nil.
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
		return lookupResult(r, id, err)
	})
}

// ClientCert returns an Authenticator for verified TLS client certificates. The server's TLSConfig must
// verify them: set ClientAuth to tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert, and ClientCAs
// to the issuers to trust.
//
// identify is called only for connections with a verified certificate, which is cs.VerifiedChains[0][0]. Its
// results mean the same as those of the lookup function of APIKeys. It must be safe for concurrent use.
//
// A certificate that was not verified, or that has expired since the handshake, is refused. A connection
// without a certificate, or without TLS, has no credentials. So behind a load balancer that terminates TLS,
// ClientCert never finds any. ClientCert panics when identify is nil.
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
		return lookupResult(r, id, err)
	})
}

// lookupResult turns the results of a user's function into those of an Authenticator. The function was
// called, so there were credentials; an error that is neither a refusal nor an *Error means that it could not
// decide.
func lookupResult(r *http.Request, id *Identity, err error) (*Identity, error) {
	switch {
	case err == nil && id != nil:
		return id, nil
	case err == nil, errors.Is(err, ErrNoCredentials):
		return nil, badCredentials("unknown credentials")
	}
	return nil, lookupError(r.Context(), err)
}

// IdentityFrom returns the Identity that Auth or WithIdentity stored, and whether there is one.
func IdentityFrom(ctx context.Context) (*Identity, bool) {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return nil, false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.identity, ex.identity != nil
}

// WithIdentity returns a context in which IdentityFrom returns id. Use it in a handler that authenticates the
// caller by other means than Auth. Only handlers that get the new context see id; the access log's subject
// stays the one that Auth found. A nil id makes the request anonymous to these handlers.
func WithIdentity(ctx context.Context, id *Identity) context.Context {
	v := exchangeFrom(ctx).variant(ctx)
	v.identity = id
	return v
}

// claimOf returns a claim of id. The claims that Identity has fields for come from there. It is nil for an
// absent claim.
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

// claimText formats a claim as a field value: a string as it is, a number as it was written in the token,
// true or false, a list of strings joined by spaces. It returns false when the claim is absent, empty, an
// object, or not a valid field value. It also returns false for a list with an element that is empty or
// contains a space: joined, ["a b"] would equal ["a", "b"].
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
