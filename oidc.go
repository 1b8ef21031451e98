package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/fetch"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// NewOIDC returns a JWT for the tokens of an OpenID Connect provider. It fetches issuer's
// /.well-known/openid-configuration, for at most 5s, and uses the key set at the document's jwks_uri (OpenID
// Connect Discovery 1.0 section 4). opts.Issuer must be "".
//
// It returns an error in these cases: issuer is not https, unless its host is on loopback; the document
// cannot be fetched or parsed; the document's issuer is not issuer; jwks_uri is not a URL that NewJWKS
// accepts; or jwks_uri is not https although issuer is.
//
// opts.Algorithms is required. It is not read from the document, which lists every algorithm that the
// provider can use: that may be more than you want to accept.
//
// NewOIDC panics where NewJWT does, and when opts.Issuer is set.
func NewOIDC(ctx context.Context, issuer string, opts JWTOptions) (*JWT, error) {
	if opts.Issuer != "" {
		panic("gateway: NewOIDC: Issuer is set twice")
	}
	opts.Issuer = issuer
	opts.check("NewOIDC")
	keys, err := discover(ctx, issuer)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewOIDC: %w", err)
	}
	return NewJWT(keys, opts), nil
}

// discover reads issuer's configuration and returns its key set.
func discover(ctx context.Context, issuer string) (*JWKS, error) {
	u, err := fetch.ParseURL(issuer)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return nil, errors.New("the issuer has a query or a fragment")
	}
	const document = "/.well-known/openid-configuration"
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/")+document, strings.TrimSuffix(u.EscapedPath(), "/")+document
	client := fetch.NewClient(nil, 1<<20)
	ctx, cancel := context.WithTimeout(ctx, client.Timeout())
	defer cancel()
	body, _, err := client.Get(ctx, u)
	if err != nil {
		return nil, err
	}
	doc, err := rawjson.DecodeObject(body, len(body))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	// The document must be this issuer's own (section 4.3).
	if doc["issuer"] != issuer {
		return nil, fmt.Errorf("the configuration is that of issuer %q, not of %q", doc["issuer"], issuer)
	}
	rawURL, _ := doc["jwks_uri"].(string)
	keys, err := NewJWKS(rawURL, nil)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" && keys.url.Scheme != "https" {
		return nil, errors.New("the key set is not at an https URL")
	}
	return keys, nil
}
