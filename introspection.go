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

// IntrospectionOptions configures the requests to an introspection endpoint, and how long its answers are
// cached. The zero value is ready for use.
type IntrospectionOptions struct {
	ClientID, ClientSecret string        // the gateway's own credentials, sent by the Basic scheme; "" sends none
	Audience               string        // a value that the token's aud must have; "" accepts any
	Client                 *http.Client  // nil means one with a timeout of 5s
	CacheFor               time.Duration // how long an active token is cached, but not beyond its exp; 0 means 30s, negative turns caching off
	CacheSize              int           // number of tokens that are cached; 0 means 10,000
}

// NewIntrospection returns an Authenticator that sends opaque bearer tokens to an introspection endpoint (RFC
// 7662). A token that is not active is refused with 401. When the endpoint cannot be reached or its answer
// cannot be read, the request is answered with 503. exp, nbf and aud are checked if the answer has them.
//
// Active tokens are cached for CacheFor, so a revoked token is accepted for up to that time. Inactive tokens
// are not cached: put a RateLimit by address outside, so that a flood of them does not reach the endpoint.
// Concurrent requests with the same token share one request to the endpoint.
//
// A token may have up to 16 KiB, and an answer up to 64 KiB. The cache needs at most CacheSize times 2 KiB: a
// token whose length and answer exceed 2 KiB together takes the place of several.
//
// NewIntrospection returns an error for an endpoint that is not https, unless its host is on loopback, and
// for a negative CacheSize.
func NewIntrospection(endpoint string, opts IntrospectionOptions) (Authenticator, error) {
	u, err := fetch.ParseURL(endpoint)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewIntrospection: %w", err)
	}
	if opts.CacheSize < 0 {
		return nil, errors.New("gateway: NewIntrospection: negative CacheSize")
	}
	if opts.CacheFor == 0 {
		opts.CacheFor = 30 * time.Second
	}
	in := &introspection{client: fetch.NewClient(opts.Client, maxIntrospection), endpoint: u.String(), opts: opts}
	if opts.CacheFor > 0 {
		in.cache = newTokenCache(opts.CacheSize, in.ask)
	}
	return in, nil
}

type introspection struct {
	client   *fetch.Client
	endpoint string
	opts     IntrospectionOptions
	cache    *flightcache.Cache[*Identity] // nil: none
}

const (
	maxOpaqueToken   = 16 << 10
	maxIntrospection = 64 << 10 // length of an answer, which its Identity keeps in memory
)

// Authenticate finds the bearer token, and asks the endpoint about it unless it is in the cache.
func (in *introspection) Authenticate(r *http.Request) (*Identity, error) {
	token, err := bearer(r.Header)
	if err != nil {
		return nil, err
	}
	if len(token) > maxOpaqueToken || !httpfield.IsToken68(token) {
		return nil, badCredentials("malformed token")
	}
	var e *flightcache.Entry[*Identity]
	if in.cache != nil {
		e, _, err = in.cache.Load(r.Context(), token)
	} else {
		e, err = in.ask(r.Context(), token)
	}
	if err != nil {
		return nil, err
	}
	return e.Value, nil
}

// ask asks the endpoint about a token, and returns an entry for the cache when the token is active.
func (in *introspection) ask(ctx context.Context, token string) (*flightcache.Entry[*Identity], error) {
	now := time.Now()
	req, err := in.request(ctx, token)
	if err != nil {
		return nil, err
	}
	body, _, err := in.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, undecidedBy("introspection", err)
	}
	answer, err := rawjson.DecodeObject(body, len(body))
	if err != nil {
		return nil, undecidedBy("introspection", err)
	}
	id, err := in.judge(answer, now)
	if err != nil {
		return nil, err
	}
	until := now.Add(in.opts.CacheFor)
	if !id.Expiry.IsZero() && id.Expiry.Before(until) {
		until = id.Expiry
	}
	return &flightcache.Entry[*Identity]{Value: id, Size: len(body), Until: until}, nil
}

// request returns the request to the endpoint (RFC 7662 section 2.1).
func (in *introspection) request(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.endpoint, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if in.opts.ClientID != "" {
		// Basic takes both form-encoded (RFC 6749 section 2.3.1).
		req.SetBasicAuth(url.QueryEscape(in.opts.ClientID), url.QueryEscape(in.opts.ClientSecret))
	}
	return req, nil
}

// judge returns the Identity in an endpoint's answer (RFC 7662 section 2.2). The error wraps
// ErrUnauthenticated when the token is not valid here and now. It is a 503 when the answer cannot be
// understood.
func (in *introspection) judge(answer map[string]any, now time.Time) (*Identity, error) {
	active, ok := answer["active"].(bool)
	switch {
	case !ok:
		return nil, undecidedBy("introspection", errors.New("an answer without active"))
	case !active:
		return nil, badCredentials("the token is not active")
	}
	c := claims(answer)
	exp, err := c.date("exp")
	nbf, nbfErr := c.date("nbf")
	aud, audErr := c.GetAudience()
	if _, there := answer["aud"]; !there {
		audErr = nil
	}
	if err := errors.Join(err, nbfErr, audErr); err != nil {
		return nil, undecidedBy("introspection", err)
	}
	switch {
	case exp != nil && !now.Before(exp.Time):
		return nil, badCredentials("the token has expired")
	case nbf != nil && now.Before(nbf.Time):
		return nil, badCredentials("the token is not valid yet")
	case in.opts.Audience != "" && !slices.Contains(aud, in.opts.Audience):
		return nil, badCredentials(fmt.Sprintf("the token is for the audience %q, not for %q", aud, in.opts.Audience))
	}
	return c.identity(), nil
}
