package gateway

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
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
//   - an error that wraps both ErrNoCredentials and ErrUnauthenticated when r has credentials, but of a kind
//     that the Authenticator does not know: FirstOf then calls the next Authenticator, and if none knows them,
//     they are bad,
//   - an error that wraps ErrUnauthenticated alone when the credentials are bad,
//   - an *Error with a status of its own when the Authenticator cannot decide, such as 503 while the key set
//     or the introspection endpoint cannot be reached.
//
// A nil Identity without an error is treated as bad credentials. An Authenticator must be safe for
// concurrent use.
type Authenticator interface {
	Authenticate(r *http.Request) (*Identity, error)
}

// AuthenticatorFunc is an adapter for using a function as an Authenticator.
type AuthenticatorFunc func(r *http.Request) (*Identity, error)

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(r *http.Request) (*Identity, error) { return f(r) }

// AuthOptions configures Auth. With the zero value every request that is not authenticated is refused.
type AuthOptions struct {
	Optional         bool          // requests without credentials pass as anonymous; bad credentials are still refused
	Realm            string        // realm parameter of the challenge; "" omits it. Auth panics unless it is visible ASCII
	ResourceMetadata string        // URL of the protected resource metadata, for the challenge (RFC 9728 section 5.1); see ProtectedResource; "" omits it
	Origins          []string      // origins, besides the request's own host, whose pages may open WebSockets and send cookies; nil checks only requests with credentials in a cookie
	UpgradeGrace     time.Duration // how long an upgraded connection may outlive its credentials; 0 means 1m, negative no limit
	ReportOnly       bool          // log and count the requests that would be refused, and refuse none
}

// Auth calls the next handler when a authenticates the request. Otherwise it answers 401 with
// WWW-Authenticate (RFC 6750 section 3). The challenge has error="invalid_token" if the request had
// credentials that were bad, and an error_description if it helps the client and reveals nothing: that the
// token has expired, or what is wrong with a DPoP proof. When a cannot decide, the answer has the status of
// its *Error.
//
// A page of another site can make a browser send requests with the user's cookies. It can also open a
// WebSocket with them: the handshake is a GET, which http.CrossOriginProtection lets pass. So Auth checks
// requests whose credentials came in a cookie. Such a request gets 403 if its Origin is neither the host
// that it was sent to nor one of Origins. If it has no Origin, it gets 403 if Sec-Fetch-Site says that it
// is from another site and the method is not GET, HEAD or OPTIONS. Clients that are not browsers send
// neither field, so their requests pass. Whether a token came in a cookie is known only for a JWT. With an
// Authenticator from outside this package, Auth checks the handshake of a WebSocket if it has a Cookie and
// no Authorization.
//
// If Origins is not nil, even if it is empty, Auth also checks every request with a Cookie and the handshake
// of every WebSocket, with any credentials or none. An origin is written as "https://app.example:8443". "*"
// stands for all origins.
//
// When an upgraded connection, such as a WebSocket, has outlived the Identity's Expiry by UpgradeGrace, it
// is closed. Proxy sends both ends of a WebSocket a close frame first. A handler that takes the connection
// over by Hijack finds it closed.
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
// Auth found. It is reported in the remarks of Observe's log line or, if there is no access log, as a warning
// of slog.Default. The counter gateway.report_only of the global MeterProvider counts it, with the attribute
// policy="auth".
//
// Auth panics when a is nil, and on a malformed origin.
func Auth(a Authenticator, opts *AuthOptions) Middleware {
	if a == nil {
		panic("gateway: Auth: nil Authenticator")
	}
	var o AuthOptions
	if opts != nil {
		o = *opts
	}
	p := &authPolicy{
		a:          a,
		optional:   o.Optional,
		challenges: newChallenges("Auth", &o, a),
		origins:    newOriginRules("Auth", o.Origins),
		grace:      cmp.Or(o.UpgradeGrace, time.Minute),
	}
	owned := newOwnedFields("Auth", nil)
	var report *reporter
	if o.ReportOnly {
		report = newReporter("auth")
		p.grace = -1
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			id, err := p.decide(ex, r)
			switch {
			case err == nil:
			case report != nil:
				report.add(ex, r, err)
				id = nil
			case leftEarly(r.Context()):
				WriteError(rw, r, err) // the client left, which is not a refusal
				return
			default:
				refuseUndecided(rw, r, p.challenges.refusal(err))
				return
			}
			next.ServeHTTP(rw, owned.authenticated(ex, r, ex.authenticated(p, id)))
		})
	}
}

// authPolicy holds the settings of one Auth.
type authPolicy struct {
	a          Authenticator
	optional   bool
	challenges *challenges
	origins    originRules
	grace      time.Duration // negative: no limit
}

// decide returns the caller of r, or nil for an anonymous caller that may pass. An error is the reason to
// refuse the request.
func (p *authPolicy) decide(ex *exchange, r *http.Request) (*Identity, error) {
	browser := p.origins.concern(r)
	if browser {
		ex.forgetPlace()
	}
	id, err := identify(p.a, r)
	if err != nil && (!p.optional || !isNoCredentials(err)) {
		return nil, err
	}
	if browser {
		if err := p.origins.check(ex, r, id != nil); err != nil {
			return nil, err
		}
	}
	return id, nil
}

// authorized describes how the request was authenticated. Every record made from this one inherits it.
type authorized struct {
	challenges *challenges // of the innermost Auth, for the Requires inside it; nil without an Auth
	until      time.Time   // when an upgraded connection is closed; zero for never
}

// authenticated records p's decision. It returns the Identity for the inner handlers: id or, if id is nil,
// the one that an outer Auth stored. If Auths are nested, the Identity that expires first ends an upgraded
// connection.
func (ex *exchange) authenticated(p *authPolicy, id *Identity) *Identity {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.challenges = p.challenges
	if id == nil {
		return ex.identity
	}
	ex.identity = id
	if !id.Expiry.IsZero() && p.grace >= 0 {
		if until := id.Expiry.Add(p.grace); ex.until.IsZero() || until.Before(ex.until) {
			ex.until = until
		}
	}
	return id
}

// identify calls a. It returns an error for a result that Authenticator does not allow.
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

// authenticated returns the request for the handlers inside Auth. Its X-User-ID is the subject of id, which
// may be nil. It lacks the client's fields and trailers that could be taken for X-User-ID. r itself is not
// changed, since the Authenticator and the outer handlers may hold it.
func (f *ownedFields) authenticated(ex *exchange, r *http.Request, id *Identity) *http.Request {
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

// userValue returns the value of X-User-ID for an http.Header. The first call stores it in the record, which
// saves an allocation. Later calls allocate, since a header may still refer to the first value.
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

// reporter logs and counts the requests that a policy with ReportOnly would have refused.
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
// ErrNoCredentials. It returns that result, even if it is an error: bad credentials of one kind are not tried
// as another kind. If every one returns ErrNoCredentials, so does FirstOf. FirstOf panics without
// Authenticators, and on a nil one.
//
// JSON Web Tokens and opaque tokens can share the field Authorization: FirstOf(jwt, introspection). A JWT
// returns ErrNoCredentials for a token that does not have the form of a signed one: three parts, with a JSON
// object in the first. An Introspection accepts every bearer token, so put it last.
func FirstOf(as ...Authenticator) Authenticator {
	if len(as) == 0 || slices.Contains(as, nil) {
		panic("gateway: FirstOf: no Authenticators, or a nil one")
	}
	return firstOf(slices.Clone(as))
}

type firstOf []Authenticator

// Authenticate returns the first result that is not ErrNoCredentials. If there is none, but some
// Authenticator found credentials that it does not know, Authenticate returns that error.
func (as firstOf) Authenticate(r *http.Request) (*Identity, error) {
	last := ErrNoCredentials
	for _, a := range as {
		id, err := a.Authenticate(r)
		if !errors.Is(err, ErrNoCredentials) {
			return id, err
		}
		if !isNoCredentials(err) {
			last = err
		}
	}
	return nil, last
}

func (as firstOf) acceptsDPoP() (dpop, bearer bool) {
	for _, a := range as {
		d, b := acceptsDPoP(a)
		dpop, bearer = dpop || d, bearer || b
	}
	return dpop, bearer
}

// maxAPIKey is the longest API key that is hashed, in bytes.
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
		notePlace(r, "")
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
		notePlace(r, "")
		id, err := identify(r.TLS)
		return lookupResult(r, id, err)
	})
}

// lookupResult converts the results of a user's function to those of an Authenticator. The function is called
// only for a request with credentials, so ErrNoCredentials means that they are unknown. An error that is
// neither a refusal nor an *Error means that the function could not decide.
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
