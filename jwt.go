package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/seed-96248d0c/gateway/internal/flightcache"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/jose"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// JWTOptions configures which tokens a JWT accepts. Issuer, Audience and Algorithms are required.
type JWTOptions struct {
	Issuer, Audience string                     // what the token's iss must equal, and what its aud must contain; both are required
	Algorithms       []string                   // accepted algorithms: RS, PS, ES or HS with 256, 384 or 512, or EdDSA; required
	Type             string                     // what the token's typ must be, such as "at+jwt" (RFC 9068); "" accepts any
	Leeway           time.Duration              // tolerance for the clocks of issuers, in exp, nbf and iat; 0 means none
	Token            func(*http.Request) string // returns the request's token; nil means the bearer token in Authorization; see CookieToken, HeaderToken
	CacheSize        int                        // number of verified tokens that are cached; 0 means 10,000, negative none
	MaxBytes         int                        // limit of a token's length, checked first; 0 means 16 KiB
	Revoked          func(*Identity) bool       // reports whether a valid token is revoked, on every request; must be safe for concurrent use; nil means never
}

// JWT authenticates bearer tokens (RFC 7519) by the rules of RFC 8725. It is safe for concurrent use.
//
// A token is accepted only if all of this holds:
//
//   - It is at most MaxBytes long.
//   - It has three parts of base64url without padding, whose unused bits are zero.
//   - Header and claims are JSON objects. No object has two members of the same name, since parsers differ on
//     which one counts.
//   - The header's alg is one of Algorithms, and the key fits it: RSA of at least 2048 bits, the curve of
//     ES256, ES384 or ES512, Ed25519, or a secret that is as long as the hash.
//   - The header has no crit.
//   - The signature is valid.
//   - The claim iss equals Issuer, and aud is or contains Audience.
//   - The claim exp is present and in the future. nbf and iat, where present, are not in the future. All
//     three are numbers.
//
// The Identity's Scopes come from the claim scope, or from scp where there is no scope. Both may be a string
// of scopes separated by spaces, or a list. The header's jwk, jku, x5c and x5u are never read.
//
// Verified tokens are cached. A cached token is not verified again until it expires or the KeySource returns
// another key for it. Concurrent requests with the same token verify it once. The cache holds CacheSize
// tokens, or fewer if they are longer than 2 KiB on average; then the least recently used are dropped. A
// cached token needs about 1.2 KiB plus twice its length: 24 MB for 10,000 tokens of 700 bytes.
type JWT struct {
	keys      KeySource
	methods   map[string]*jose.Algorithm // the allowed ones, by name
	typ       string                     // "" accepts any
	token     func(*http.Request) string
	maxBytes  int
	issuer    string
	audience  string
	validator *jwt.Validator
	revoked   func(*Identity) bool
	leeway    time.Duration
	cache     *flightcache.Cache[verified] // nil: none
}

// verified is a token whose signature and claims were valid.
type verified struct {
	id *Identity

	// The key that verified it, and the arguments with which the KeySource returned that key.
	key      any
	kid, alg string
}

// tokenEntry is a verified token in the cache.
type tokenEntry = flightcache.Entry[verified]

const (
	defaultTokenCache = 10_000
	meanTokenBytes    = 2 << 10 // an entry that is longer takes the place of several
)

// newTokenCache returns a cache of at most size tokens, with meanTokenBytes for each on average. A size of 0
// means the default. For a negative size it returns nil: no cache.
func newTokenCache[V any](size int, load func(context.Context, string) (*flightcache.Entry[V], error)) *flightcache.Cache[V] {
	if size < 0 {
		return nil
	}
	if size == 0 {
		size = defaultTokenCache
	}
	return flightcache.New(size, min(size, math.MaxInt/meanTokenBytes)*meanTokenBytes, load)
}

// NewJWT returns a JWT that verifies tokens with keys. It panics when keys is nil, when Issuer, Audience or
// Algorithms is missing, on an unknown algorithm, such as "none", and on a negative Leeway or MaxBytes. It
// also panics when keys come from StaticKey or StaticKeys and none of them fits any of Algorithms.
func NewJWT(keys KeySource, opts JWTOptions) *JWT {
	if keys == nil {
		panic("gateway: NewJWT: nil KeySource")
	}
	opts.check("NewJWT")
	j := &JWT{
		keys:     keys,
		methods:  make(map[string]*jose.Algorithm, len(opts.Algorithms)),
		typ:      opts.Type,
		token:    opts.Token,
		maxBytes: opts.MaxBytes,
		issuer:   opts.Issuer,
		audience: opts.Audience,
		revoked:  opts.Revoked,
		leeway:   opts.Leeway,
		validator: jwt.NewValidator(
			jwt.WithIssuer(opts.Issuer),
			jwt.WithAudience(opts.Audience),
			jwt.WithExpirationRequired(),
			jwt.WithIssuedAt(),
			jwt.WithLeeway(opts.Leeway),
		),
	}
	for _, name := range opts.Algorithms {
		j.methods[name] = jose.Lookup(name)
	}
	if s, ok := keys.(*staticKeys); ok && !s.serve(j.methods) {
		panic("gateway: NewJWT: no key is of the kind that Algorithms require")
	}
	if j.maxBytes == 0 {
		j.maxBytes = 16 << 10
	}
	j.cache = newTokenCache(opts.CacheSize, j.verify)
	return j
}

// check panics on missing and invalid options. who is the constructor, for the message.
func (o *JWTOptions) check(who string) {
	switch {
	case o.Issuer == "":
		panic("gateway: " + who + ": no Issuer")
	case o.Audience == "":
		panic("gateway: " + who + ": no Audience")
	case len(o.Algorithms) == 0:
		panic("gateway: " + who + ": no Algorithms")
	case o.Leeway < 0:
		panic("gateway: " + who + ": negative Leeway")
	case o.MaxBytes < 0:
		panic("gateway: " + who + ": negative MaxBytes")
	}
	for _, name := range o.Algorithms {
		if jose.Lookup(name) == nil {
			panic("gateway: " + who + ": algorithm " + strconv.Quote(name) + " is not supported")
		}
	}
}

// Authenticate verifies the token that JWTOptions.Token finds in r. It returns ErrNoCredentials if there is
// none, and otherwise what Verify returns.
func (j *JWT) Authenticate(r *http.Request) (*Identity, error) {
	token, err := j.tokenOf(r)
	if err != nil {
		return nil, err
	}
	return j.Verify(r.Context(), token)
}

// tokenOf returns the token that r carries. It is never empty without an error.
func (j *JWT) tokenOf(r *http.Request) (string, error) {
	if j.token == nil {
		return bearer(r.Header)
	}
	token := j.token(r)
	if token == "" {
		return "", ErrNoCredentials
	}
	return token, nil
}

// Verify verifies a token and returns its Identity. The error wraps ErrUnauthenticated when the token is bad.
// It is an *Error with status 503 when the key cannot be fetched, and ctx.Err() when ctx ends first.
func (j *JWT) Verify(ctx context.Context, token string) (*Identity, error) {
	if len(token) > j.maxBytes {
		return nil, badCredentials("token too long")
	}
	var e *tokenEntry
	var hit bool
	var err error
	if j.cache != nil {
		e, hit, err = j.cache.Load(ctx, token)
	} else {
		e, err = j.verify(ctx, token)
	}
	if hit {
		e, err = j.recheck(ctx, token, e)
	}
	if err != nil {
		return nil, err
	}
	id := e.Value.id
	if j.revoked != nil && j.revoked(id) {
		return nil, badCredentials("the token is revoked")
	}
	return id, nil
}

// recheck asks the KeySource whether the key that verified a cached token is still valid. A token whose key
// has been replaced is verified again.
func (j *JWT) recheck(ctx context.Context, token string, e *tokenEntry) (*tokenEntry, error) {
	v := &e.Value
	key, err := keyFrom(ctx, j.keys, v.kid, v.alg)
	if err != nil {
		if errors.Is(err, ErrUnauthenticated) {
			j.cache.Forget(e)
		}
		return nil, err
	}
	if !jose.SameKey(key, v.key) {
		j.cache.Forget(e)
		return j.verify(ctx, token)
	}
	return e, nil
}

// verify checks a token, the cheap parts first. A token with a bad signature costs no more than decoding its
// header and the signature's verification: its claims are not decoded.
func (j *JWT) verify(ctx context.Context, token string) (*tokenEntry, error) {
	head, payload, sig, ok := jose.Split(token)
	if !ok {
		return nil, badCredentials("malformed token")
	}
	alg, kid, err := j.readHeader(head)
	if err != nil {
		return nil, err
	}
	signature, err := jose.DecodeSegment(sig)
	if err != nil {
		return nil, badCredentials("malformed signature")
	}
	key, err := keyFrom(ctx, j.keys, kid, alg)
	if err != nil {
		return nil, err
	}
	switch m := j.methods[alg]; {
	case !m.Accepts(key):
		return nil, badCredentials("the key is not of the kind that the algorithm requires")
	case !m.Verify(token[:len(head)+1+len(payload)], signature, key):
		return nil, badCredentials("wrong signature")
	}

	text, err := jose.DecodeSegment(payload)
	if err != nil {
		return nil, badCredentials("malformed claims")
	}
	object, err := rawjson.DecodeObject(text, len(text))
	if err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrUnauthenticated, err)
	}
	c := claims(object)
	if err := j.validator.Validate(c); err != nil {
		return nil, fmt.Errorf("%w: %w%s", ErrUnauthenticated, err, j.mismatch(c, err))
	}
	id := c.identity()
	return &tokenEntry{
		Value: verified{id: id, key: key, kid: kid, alg: alg},
		Until: id.Expiry.Add(j.leeway),
	}, nil
}

// mismatch returns the values of the claim that err is about, and what was expected, for the log. It returns
// "" for other errors.
func (j *JWT) mismatch(c claims, err error) string {
	switch {
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return fmt.Sprintf(": the token is from %q, expected is %q", c["iss"], j.issuer)
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return fmt.Sprintf(": the token is for %q, expected is %q", c["aud"], j.audience)
	}
	return ""
}

// readHeader checks the JOSE header (RFC 7515 section 4) and returns the members that the verification needs.
func (j *JWT) readHeader(segment string) (alg, kid string, err error) {
	header, err := jose.ParseHeader(segment)
	switch {
	case err == jose.ErrEncoding:
		return "", "", badCredentials("malformed header")
	case err != nil:
		return "", "", fmt.Errorf("%w: header: %w", ErrUnauthenticated, err)
	}
	alg = header.Algorithm()
	kid, ok := header.KeyID()
	switch {
	case j.methods[alg] == nil:
		return "", "", badCredentials("the algorithm is not allowed")
	case header.Critical():
		return "", "", badCredentials("the header has crit")
	case !ok:
		return "", "", badCredentials("malformed kid")
	case j.typ != "" && !header.HasType(j.typ):
		return "", "", badCredentials("wrong typ")
	}
	return alg, kid, nil
}

// claims implements jwt.Claims for the validator. A claim that is present but has the wrong type is an error.
type claims map[string]any

var errClaimType = errors.New("claim of a wrong type")

func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }
func (c claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.date("iat") }
func (c claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.date("nbf") }
func (c claims) GetIssuer() (string, error)                   { return c.text("iss") }
func (c claims) GetSubject() (string, error)                  { return c.text("sub") }

// GetAudience reads aud, which is a string or a list of strings (RFC 7519 section 4.1.3).
func (c claims) GetAudience() (jwt.ClaimStrings, error) {
	switch v := c["aud"].(type) {
	case string:
		return jwt.ClaimStrings{v}, nil
	case []any:
		list := make(jwt.ClaimStrings, len(v))
		for i, e := range v {
			var ok bool
			if list[i], ok = e.(string); !ok {
				return nil, errClaimType
			}
		}
		return list, nil
	}
	return nil, errClaimType
}

// text returns a claim that is a string, "" when it is absent.
func (c claims) text(name string) (string, error) {
	v, there := c[name]
	s, ok := v.(string)
	if there && !ok {
		return "", errClaimType
	}
	return s, nil
}

// date returns a claim that is a NumericDate (RFC 7519 section 2) in the years 1970 to 9999, nil when it is
// absent.
func (c claims) date(name string) (*jwt.NumericDate, error) {
	v, there := c[name]
	if !there {
		return nil, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return nil, errClaimType
	}
	const year10000 = 253402300800
	f, err := n.Float64()
	if err != nil || f < 0 || f >= year10000 {
		return nil, errClaimType
	}
	sec, frac := math.Modf(f)
	return &jwt.NumericDate{Time: time.Unix(int64(sec), int64(frac*1e9))}, nil
}

// Validate checks what the validator does not check itself. The validator calls it last.
func (c claims) Validate() error {
	_, err := c.text("sub")
	return err
}

// identity returns the Identity that valid claims describe.
func (c claims) identity() *Identity {
	id := &Identity{Claims: c}
	id.Subject, _ = c.text("sub")
	id.Issuer, _ = c.text("iss")
	aud, _ := c.GetAudience()
	id.Audience = []string(aud)
	if exp, _ := c.date("exp"); exp != nil {
		id.Expiry = exp.Time
	}
	if id.Scopes = scopesOf(c["scope"]); id.Scopes == nil {
		id.Scopes = scopesOf(c["scp"])
	}
	return id
}

// scopesOf reads scopes from a string with spaces between them (RFC 8693 section 4.2), or from a list, which
// some issuers send. It skips what is not a scope.
func scopesOf(v any) []string {
	var list []string
	switch v := v.(type) {
	case string:
		for s := range strings.SplitSeq(v, " ") {
			if isScope(s) {
				list = append(list, s)
			}
		}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && isScope(s) {
				list = append(list, s)
			}
		}
	}
	return list
}

// Issuers returns an Authenticator for several issuers. The token's claim iss selects the JWT that verifies
// it. iss is not verified when it is read, but the selected JWT then verifies the whole token with its own
// keys, audience and algorithms. A token of any other issuer is refused. A token is accepted only in the
// place where its own issuer's JWTOptions.Token finds it.
//
// Users of two issuers may have the same Subject. Only subject and issuer together identify a user.
// KeyBySubject uses both, and handlers of this process find both in the Identity. X-User-ID alone is
// ambiguous, so send the issuer to backends as well, with ProxyOptions.Identity and
// AggregateOptions.Identity:
//
//	Identity: map[string]string{"X-User-ID": "sub", "X-User-Issuer": "iss"}
//
// Issuers panics without issuers, on a nil JWT, and on a JWT whose JWTOptions.Issuer differs from its key in
// the map.
func Issuers(byIssuer map[string]*JWT) Authenticator {
	if len(byIssuer) == 0 {
		panic("gateway: Issuers: no issuers")
	}
	m := &issuers{byIssuer: maps.Clone(byIssuer)}
	for _, issuer := range slices.Sorted(maps.Keys(byIssuer)) {
		j := byIssuer[issuer]
		if j == nil || j.issuer != issuer {
			panic("gateway: Issuers: the JWT under " + strconv.Quote(issuer) + " belongs to another issuer")
		}
		m.list = append(m.list, j)
		m.maxBytes = max(m.maxBytes, j.maxBytes)
	}
	return m
}

type issuers struct {
	byIssuer map[string]*JWT
	list     []*JWT // sorted by issuer, so that the order is always the same
	maxBytes int    // the largest of all
}

// Authenticate looks for a token in each place where an issuer has its tokens. It verifies the first one that
// it finds.
func (m *issuers) Authenticate(r *http.Request) (*Identity, error) {
	for _, finder := range m.list {
		token, err := finder.tokenOf(r)
		if errors.Is(err, ErrNoCredentials) {
			continue
		}
		if err != nil {
			return nil, err
		}
		j := m.byIssuer[m.issuerOf(token)]
		if j == nil {
			return nil, badCredentials(fmt.Sprintf("unknown issuer %q", m.issuerOf(token)))
		}
		if j != finder {
			// The token was found where finder has its tokens. Its own issuer must have them there, too: a
			// token that an issuer sends in a cookie is not accepted as a bearer token.
			if own, err := j.tokenOf(r); err != nil || own != token {
				return nil, badCredentials("the token is not where its issuer's tokens are sent")
			}
		}
		return j.Verify(r.Context(), token)
	}
	return nil, ErrNoCredentials
}

// issuerOf returns the claim iss of a token that nobody has verified, "" when it has none or is malformed.
func (m *issuers) issuerOf(token string) string {
	if len(token) > m.maxBytes {
		return ""
	}
	_, payload, _, ok := jose.Split(token)
	if !ok {
		return ""
	}
	text, err := jose.DecodeSegment(payload)
	if err != nil {
		return ""
	}
	issuer, err := rawjson.StringMember(text, "iss")
	if err != nil {
		return ""
	}
	return issuer
}

// bearer returns the token in Authorization (RFC 6750 section 2.1). A field with another scheme is not
// credentials of this kind. Two fields, or the scheme without exactly one token after it, are bad
// credentials.
func bearer(h http.Header) (string, error) {
	values := h["Authorization"]
	if len(values) == 0 {
		return "", ErrNoCredentials
	}
	if len(values) > 1 {
		return "", badCredentials("two Authorization fields")
	}
	const scheme = "Bearer"
	v := values[0]
	if len(v) < len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) {
		return "", ErrNoCredentials
	}
	v = v[len(scheme):]
	if v != "" && httpfield.IsToken(v[:1]) {
		return "", ErrNoCredentials // a scheme whose name begins with Bearer
	}
	token := strings.TrimLeft(v, " ")
	if token == "" || len(token) == len(v) {
		return "", badCredentials("no token after Bearer")
	}
	return token, nil
}

// CookieToken returns a function for JWTOptions.Token that reads the token from the cookie name. A request
// with two cookies of that name is refused. CookieToken panics on an empty name.
//
// Browsers send a cookie with every request to its host, even with requests that another site's page makes.
// So protect handlers that change state with http.CrossOriginProtection as well.
func CookieToken(name string) func(*http.Request) string {
	if name == "" {
		panic("gateway: CookieToken: empty name")
	}
	return func(r *http.Request) string {
		switch cookies := r.CookiesNamed(name); len(cookies) {
		case 0:
			return ""
		case 1:
			return cookies[0].Value
		}
		return ambiguous
	}
}

// HeaderToken returns a function for JWTOptions.Token that reads the token from a header field. The token is
// the field's whole value. A request in which the field occurs twice is refused. HeaderToken panics on a
// malformed field name.
func HeaderToken(name string) func(*http.Request) string {
	key := fieldName("HeaderToken", name)
	return func(r *http.Request) string {
		switch values := r.Header[key]; len(values) {
		case 0:
			return ""
		case 1:
			return values[0]
		}
		return ambiguous
	}
}

// ambiguous stands for two tokens. No verifier accepts it, so the request is refused.
const ambiguous = ","

// fieldName returns the canonical form of a field name, and panics on a malformed one. who is the caller, for
// the message.
func fieldName(who, name string) string {
	if !httpfield.IsToken(name) {
		panic("gateway: " + who + ": malformed field name")
	}
	return http.CanonicalHeaderKey(name)
}
