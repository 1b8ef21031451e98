package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/fetch"
	"github.com/seed-96248d0c/gateway/internal/flightcache"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// IntrospectionOptions configures the requests to an introspection endpoint, which tokens are accepted, and
// how long the answers are cached. The zero value is ready for use.
type IntrospectionOptions struct {
	ClientID, ClientSecret string        // the gateway's own credentials, sent with the scheme Basic; "" sends none
	Audience               string        // a value that the token's aud must have; "" accepts any
	Issuer                 string        // required value of the token's iss; "" accepts any
	Subject                []string      // members of the answer: the first that is not empty is the Subject; nil means sub
	DPoP                   *DPoPOptions  // proofs of possession (RFC 9449); nil means that tokens that need one are refused
	Client                 *http.Client  // nil means one with a timeout of 5s; if Transport is nil, one that keeps MaxInFlight connections is used
	AllowHTTP              bool          // accept plain http beyond loopback, for a provider inside the same trusted network
	MaxInFlight            int           // number of requests to the endpoint at the same time; others wait, until their context ends; 0 means 64
	CacheFor               time.Duration // how long an answer is cached, but not beyond the token's exp; 0 means 30s, negative turns caching off
	CacheSize              int           // number of tokens that are cached; 0 means 10,000
	CacheBytes             int64         // memory that the cached tokens may take, with the decoded answers; 0 means 32 MiB
}

// Introspection authenticates opaque bearer tokens by asking an introspection endpoint (RFC 7662) about
// them. It is safe for concurrent use.
//
// A token that is not active is refused with 401. exp and nbf are checked if the answer has them. aud must
// match Audience and iss must match Issuer, if these are set. A member that is null is absent. A refresh
// token or an ID token, recognized by token_use or Keycloak's typ, is refused even if it is active. cnf is
// checked as JWT describes. If the endpoint cannot be reached, or its answer cannot be read, the request is
// answered with 503.
//
// Answers are cached for CacheFor, so a revoked token is accepted for up to that time. Refusals are cached
// for at most 10s, in a separate cache with a quarter of CacheSize and CacheBytes, so that a flood of bad
// tokens evicts no good one. But each new token costs a request to the endpoint, so put a RateLimit by
// address outside. Concurrent requests with the same token share one request to the endpoint.
//
// A token may have up to 16 KiB, and an answer up to 64 KiB and 4,096 values. A cache holds fewer tokens than
// its size if they need more memory than its bytes. An active token of 40 bytes takes about 1 KB. One that
// takes more than a 256th of CacheBytes, 128 KiB by default, is not cached.
type Introspection struct {
	client   *fetch.Client
	endpoint string
	opts     IntrospectionOptions
	proofs   *proofs       // nil if DPoP is not configured
	asking   chan struct{} // holds an element for each request in flight
	active   *flightcache.Cache[introspected]
	refused  *flightcache.Cache[introspected]
}

// introspected is an answer of the endpoint: an active token, or the reason to refuse one.
type introspected struct {
	id    *Identity
	bound *binding // nil if the token is not bound to a key
	size  int      // memory that id needs, in bytes
	until time.Time
	err   error
}

type introspectedEntry = flightcache.Entry[introspected]

const (
	maxOpaqueToken         = 16 << 10
	maxIntrospection       = 64 << 10 // length of an answer
	maxIntrospectionValues = 4096
	maxRefusedFor          = 10 * time.Second
)

// NewIntrospection returns an Introspection that asks the endpoint. It returns an error for an endpoint that
// is not https, unless its host is on loopback or AllowHTTP is set, for a negative number, and for an empty
// string in Subject. It panics on a negative option of DPoP.
func NewIntrospection(endpoint string, opts IntrospectionOptions) (*Introspection, error) {
	u, err := fetch.ParseURL(endpoint, opts.AllowHTTP)
	switch {
	case err != nil:
		return nil, fmt.Errorf("gateway: NewIntrospection: %w", err)
	case opts.CacheSize < 0 || opts.CacheBytes < 0 || opts.MaxInFlight < 0:
		return nil, errors.New("gateway: NewIntrospection: negative option")
	case slices.Contains(opts.Subject, ""):
		return nil, errors.New("gateway: NewIntrospection: an empty string in Subject")
	}
	if opts.CacheFor == 0 {
		opts.CacheFor = 30 * time.Second
	}
	if opts.CacheSize == 0 {
		opts.CacheSize = defaultTokenCache
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = defaultCacheBytes
	}
	if opts.MaxInFlight == 0 {
		opts.MaxInFlight = 64
	}
	opts.Subject = slices.Clone(opts.Subject)
	in := &Introspection{
		client:   fetch.NewClient(connected(opts.Client, opts.MaxInFlight), maxIntrospection),
		endpoint: u.String(),
		opts:     opts,
		proofs:   newProofs("NewIntrospection", opts.DPoP, defaultLeeway),
	}
	if opts.MaxInFlight < maxAsking {
		in.asking = make(chan struct{}, opts.MaxInFlight)
	}
	in.active = newTokenCache(opts.CacheSize, opts.CacheBytes, in.load)
	in.refused = newTokenCache(max(1, opts.CacheSize/4), max(1, opts.CacheBytes/4), in.loadRefusal)
	return in, nil
}

// maxAsking is the value of MaxInFlight from which there is no limit.
const maxAsking = 1 << 20

// connected returns a copy of c. If c has no Transport, the copy gets one that keeps as many idle connections
// as there may be requests in flight. http.DefaultTransport keeps only two, so most requests would need a new
// connection and a TLS handshake.
func connected(c *http.Client, inFlight int) *http.Client {
	var own http.Client
	if c != nil {
		own = *c
	}
	if own.Transport != nil {
		return &own
	}
	usual, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return &own // the program has replaced http.DefaultTransport, so use that
	}
	t := usual.Clone()
	t.MaxIdleConnsPerHost = min(inFlight, 1024)
	t.MaxIdleConns = 0
	own.Transport = t
	return &own
}

// Authenticate finds the bearer token, and asks the endpoint about it unless the answer is in the cache. It
// returns ErrNoCredentials if there is no bearer token.
func (in *Introspection) Authenticate(r *http.Request) (*Identity, error) {
	c, err := authorization(r.Header, in.proofs != nil)
	if err != nil {
		return nil, err
	}
	if len(c.token) > maxOpaqueToken || !httpfield.IsToken68(c.token) {
		return nil, underScheme(c, badCredentials("malformed token"))
	}
	e, _, err := in.active.Load(r.Context(), c.token)
	if err != nil {
		return nil, underScheme(c, err)
	}
	if err := e.Value.bound.prove(r, c, in.proofs); err != nil {
		return nil, err
	}
	return e.Value.id, nil
}

func (in *Introspection) acceptsDPoP() (dpop, bearer bool) {
	return in.proofs != nil, in.proofs == nil || !in.proofs.required
}

// load is the load function of the cache of active tokens. It asks the endpoint through the cache of
// refusals.
func (in *Introspection) load(ctx context.Context, token string) (*introspectedEntry, error) {
	e, _, err := in.refused.Load(ctx, token)
	if err != nil {
		return nil, err
	}
	v := e.Value
	if v.err != nil {
		return nil, v.err
	}
	return &introspectedEntry{Value: v, Size: v.size, Until: v.until}, nil
}

// loadRefusal is the load function of the cache of refusals. It asks the endpoint. An active token is
// returned but not kept in this cache.
func (in *Introspection) loadRefusal(ctx context.Context, token string) (*introspectedEntry, error) {
	v, err := in.ask(ctx, token)
	if err != nil {
		return nil, err
	}
	e := &introspectedEntry{Value: v}
	if v.err != nil {
		e.Size, e.Until = cachedBytes, v.until
	}
	return e, nil
}

// ask asks the endpoint about a token.
func (in *Introspection) ask(ctx context.Context, token string) (v introspected, err error) {
	if in.asking != nil {
		select {
		case in.asking <- struct{}{}:
			defer func() { <-in.asking }()
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
	now := time.Now()
	req, err := in.request(ctx, token)
	if err != nil {
		return v, err
	}
	body, _, err := in.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return v, ctx.Err()
		}
		return v, undecidedBy("introspection", err)
	}
	answer, size, err := rawjson.DecodeSized(body, maxIntrospectionValues)
	if err != nil {
		return v, undecidedBy("introspection", err)
	}
	v.id, v.bound, err = in.judge(claims(answer), now)
	if errors.Is(err, ErrUnauthenticated) {
		return introspected{err: err, until: now.Add(min(in.opts.CacheFor, maxRefusedFor))}, nil
	}
	if err != nil {
		return v, err
	}
	v.size, v.until = sizeOf(v.id, size), now.Add(in.opts.CacheFor)
	if !v.id.Expiry.IsZero() && v.id.Expiry.Before(v.until) {
		v.until = v.id.Expiry
	}
	return v, nil
}

// request returns the request to the endpoint (RFC 7662 section 2.1).
func (in *Introspection) request(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.endpoint, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if in.opts.ClientID != "" {
		// In OAuth, both values are form-encoded before the Basic scheme (RFC 6749 section 2.3.1).
		req.SetBasicAuth(url.QueryEscape(in.opts.ClientID), url.QueryEscape(in.opts.ClientSecret))
	}
	return req, nil
}

// judge returns the Identity in an endpoint's answer (RFC 7662 section 2.2), and the key to which the token
// is bound. The error wraps ErrUnauthenticated if the token is not valid here and now. It is a 503 if the
// answer cannot be understood.
func (in *Introspection) judge(c claims, now time.Time) (*Identity, *binding, error) {
	active, ok := c["active"].(bool)
	switch {
	case !ok:
		return nil, nil, undecidedBy("introspection", errors.New("an answer without active"))
	case !active:
		return nil, nil, badCredentials("the token is not active")
	}
	exp, expErr := c.date("exp")
	nbf, nbfErr := c.date("nbf")
	aud, audErr := c.GetAudience()
	iss, issErr := c.text("iss")
	if err := errors.Join(expErr, nbfErr, audErr, issErr, c.Validate()); err != nil {
		return nil, nil, undecidedBy("introspection", err)
	}
	switch use := c.declaredUse(); {
	case exp != nil && !now.Before(exp.Time):
		return nil, nil, errExpired(badCredentials("the token has expired"))
	case nbf != nil && now.Before(nbf.Time):
		return nil, nil, badCredentials("the token is not valid yet")
	case in.opts.Audience != "" && !slices.Contains(aud, in.opts.Audience):
		return nil, nil, badCredentials(fmt.Sprintf("the token is for the audience %q, not for %q", aud, in.opts.Audience))
	case in.opts.Issuer != "" && iss != in.opts.Issuer:
		return nil, nil, badCredentials(fmt.Sprintf("the token is from the issuer %q, not from %q", iss, in.opts.Issuer))
	case use == useOther || use == useID:
		return nil, nil, badCredentials("not an access token")
	}
	bound, err := c.binding()
	if err != nil {
		return nil, nil, badCredentials(err.Error())
	}
	id, err := c.identity(in.opts.Subject)
	if err != nil {
		return nil, nil, undecidedBy("introspection", err)
	}
	return id, bound, nil
}
