package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/fetch"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// OIDCOptions configures NewOIDC: which tokens are accepted, and how the provider's documents are fetched.
type OIDCOptions struct {
	JWT       JWTOptions  // Issuer must be ""; Algorithms is required
	Keys      JWKSOptions // for the key set; Client and AllowHTTP are used for the discovery document as well
	Discovery string      // URL of the discovery document; "" means issuer + "/.well-known/openid-configuration"
	Late      bool        // succeed even if the provider cannot be reached; requests get 503 until its document has been read
}

// NewOIDC returns a JWT for the tokens of an OpenID Connect provider. It fetches the discovery document,
// within ctx and the timeout of Keys.Client (5s by default), and uses the key set at the document's jwks_uri
// (OpenID Connect Discovery 1.0 section 4).
//
// issuer is compared with the document's issuer and the tokens' iss byte for byte: a slash at the end makes a
// difference. It is a name, so it is the same inside and outside a cluster. If the gateway reaches the
// provider by another URL than the clients do, set Discovery.
//
// NewOIDC returns an error in these cases: issuer or Discovery is empty or malformed, or is not https,
// unless its host is on loopback or Keys.AllowHTTP is set; an option of Keys is negative; the document
// cannot be fetched or parsed; the document's issuer is another one; jwks_uri is not a URL that NewJWKS
// accepts; or jwks_uri is not https although the document is, unless Keys.AllowHTTP is set.
//
// With Late, a document that cannot be fetched is not an error. It is fetched again when a request needs a
// key, at most once in Keys.MinInterval. Requests get 503 until it has been read and is valid. Each failure
// is logged.
//
// JWT.Algorithms is required. It is not read from the document, which lists every algorithm that the
// provider supports: that may be more than you want to accept.
//
// NewOIDC panics when NewJWT would, and when JWT.Issuer is set. For an empty issuer it returns an error.
func NewOIDC(ctx context.Context, issuer string, opts OIDCOptions) (*JWT, error) {
	if opts.JWT.Issuer != "" {
		panic("gateway: NewOIDC: JWT.Issuer is set, although issuer is an argument")
	}
	if issuer == "" {
		return nil, errors.New("gateway: NewOIDC: no issuer")
	}
	opts.JWT.Issuer = issuer
	opts.JWT.check("NewOIDC")
	keys, err := discoverKeys(ctx, issuer, &opts)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewOIDC: %w", err)
	}
	return NewJWT(keys, opts.JWT), nil
}

// discoverKeys returns the key set of issuer.
func discoverKeys(ctx context.Context, issuer string, opts *OIDCOptions) (*JWKS, error) {
	d, err := newDiscovery(issuer, opts)
	if err != nil {
		return nil, err
	}
	keys, err := newJWKS(opts.Keys)
	if err != nil {
		return nil, err
	}
	within, cancel := context.WithTimeout(ctx, d.client.Timeout())
	defer cancel()
	keys.url, err = d.keySet(within)
	var away *awayError
	if opts.Late && errors.As(err, &away) && ctx.Err() != context.Canceled {
		slog.Default().LogAttrs(ctx, slog.LevelWarn, "gateway: provider not discovered",
			slog.String("issuer", issuer), slog.String("error", err.Error()))
		keys.locate, err = d.keySet, nil
	}
	return keys, err
}

// discovery reads a discovery document, perhaps later.
type discovery struct {
	issuer    string
	document  *url.URL
	client    *fetch.Client
	allowHTTP bool
}

// newDiscovery checks issuer and OIDCOptions.Discovery.
func newDiscovery(issuer string, opts *OIDCOptions) (*discovery, error) {
	d := &discovery{issuer: issuer, client: fetch.NewClient(opts.Keys.Client, 1<<20), allowHTTP: opts.Keys.AllowHTTP}
	u, err := fetch.ParseURL(issuer, d.allowHTTP)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || u.User != nil {
		return nil, errors.New("the issuer has a query, a fragment or credentials")
	}
	if opts.Discovery != "" {
		d.document, err = fetch.ParseURL(opts.Discovery, d.allowHTTP)
		return d, err
	}
	const document = "/.well-known/openid-configuration"
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/")+document, strings.TrimSuffix(u.EscapedPath(), "/")+document
	d.document = u
	return d, nil
}

// awayError means that the document could not be fetched. A later attempt may succeed.
type awayError struct{ error }

func (e *awayError) Unwrap() error { return e.error }

// keySet reads the document and returns the URL of the key set.
func (d *discovery) keySet(ctx context.Context) (*url.URL, error) {
	body, _, err := d.client.Get(ctx, d.document)
	if err != nil {
		return nil, &awayError{fmt.Errorf("discovery: %w", err)}
	}
	doc, err := rawjson.DecodeObject(body, len(body))
	if err != nil {
		return nil, fmt.Errorf("discovery: %s: %w", d.document.Redacted(), err)
	}
	// The document must be this issuer's own (section 4.3).
	if doc["issuer"] != d.issuer {
		return nil, fmt.Errorf("discovery: %s has the issuer %q, not %q", d.document.Redacted(), doc["issuer"], d.issuer)
	}
	rawURL, _ := doc["jwks_uri"].(string)
	u, err := fetch.ParseURL(rawURL, d.allowHTTP)
	if err != nil {
		return nil, fmt.Errorf("discovery: jwks_uri: %w", err)
	}
	if d.document.Scheme == "https" && u.Scheme != "https" && !d.allowHTTP {
		return nil, errors.New("discovery: the key set is not at an https URL")
	}
	return u, nil
}
