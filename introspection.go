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

// IntrospectionOptions say how an endpoint is asked, and how long its word holds.
type IntrospectionOptions struct {
	ClientID, ClientSecret string        // of this gateway at the endpoint, sent by Basic; without a ClientID none are sent
	Audience               string        // required in aud; "" asks for none
	Client                 *http.Client  // nil: one with a 5s timeout
	CacheFor               time.Duration // 0 means 30s, capped by the token's exp; negative none
	CacheSize              int           // tokens; 0 means 10,000
}

// NewIntrospection authenticates opaque bearer tokens by asking endpoint about each (RFC 7662). A token that is
// not active is refused with 401; an endpoint that is away, or whose answer cannot be read, answers 503:
// nothing is known of the token. exp, nbf and aud are held to where the answer has them.
//
// Good tokens are remembered for CacheFor, so a revoked one may live as long. Bad ones are not remembered:
// let a RateLimit by address stand outside. Requests with one token at the same time ask once. A token may
// have 16 KiB and an answer 64 KiB; for each 2 KiB of both a remembered token takes the place of one.
//
// It returns an error for an endpoint that is not https, unless it is on loopback, and for a negative
// CacheSize.
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
	maxIntrospection = 64 << 10 // an answer, which its Identity keeps
)

// Authenticate finds the bearer token and asks about it.
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

// ask puts one question to the endpoint.
func (in *introspection) ask(ctx context.Context, token string) (*flightcache.Entry[*Identity], error) {
	now := time.Now()
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.endpoint, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if in.opts.ClientID != "" {
		// Both are form-encoded first (RFC 6749 section 2.3.1).
		req.SetBasicAuth(url.QueryEscape(in.opts.ClientID), url.QueryEscape(in.opts.ClientSecret))
	}
	body, _, err := in.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, introspectionAway(err)
	}
	answer, err := rawjson.DecodeObject(body, len(body))
	if err != nil {
		return nil, introspectionAway(err)
	}
	active, ok := answer["active"].(bool)
	switch {
	case !ok:
		return nil, introspectionAway(errors.New("an answer without active"))
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
		return nil, introspectionAway(err)
	}
	switch {
	case exp != nil && !now.Before(exp.Time):
		return nil, badCredentials("the token has expired")
	case nbf != nil && now.Before(nbf.Time):
		return nil, badCredentials("the token is not valid yet")
	case in.opts.Audience != "" && !slices.Contains(aud, in.opts.Audience):
		return nil, badCredentials("the token is for another audience")
	}
	until := now.Add(in.opts.CacheFor)
	if exp != nil && exp.Before(until) {
		until = exp.Time
	}
	return &flightcache.Entry[*Identity]{Value: c.identity(), Size: len(body), Until: until}, nil
}

// introspectionAway is the answer when nothing is known of a token.
func introspectionAway(err error) error {
	return &Error{Status: http.StatusServiceUnavailable, Err: fmt.Errorf("gateway: introspection: %w", err)}
}
