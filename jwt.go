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

// JWTOptions say which tokens are believed. Issuer, Audience and Algorithms are required.
type JWTOptions struct {
	Issuer, Audience string                     // required: the token's iss, and one of its aud
	Algorithms       []string                   // required: of RS, PS, ES and HS with 256, 384 or 512, and EdDSA; "none" panics
	Type             string                     // required "typ", such as "at+jwt" (RFC 9068); "" accepts any
	Leeway           time.Duration              // for exp, nbf and iat; 0 means none
	Token            func(*http.Request) string // nil: the Authorization bearer; see CookieToken, HeaderToken
	CacheSize        int                        // verified tokens remembered until they expire; 0 means 10,000, negative none
	MaxBytes         int                        // of a token, checked before any work; 0 means 16 KiB
	Revoked          func(*Identity) bool       // asked on every request, cache hits too; nil: none
}

// JWT authenticates bearer tokens (RFC 7519, under RFC 8725's rules). It is safe for concurrent use.
//
// A token is refused unless all of this holds. Its size is within MaxBytes. It is three parts of base64url
// without padding or bits to spare. Header and claims are JSON objects that can be read in one way only: no
// member stands twice. The algorithm is one of Algorithms, and the key is of the kind that the algorithm asks
// for: RSA of 2048 bits at least, the curve of ES256, ES384 or ES512, Ed25519, or a secret as long as the hash.
// There is no crit. The signature holds. The issuer is Issuer, aud is or holds Audience, exp is there and
// ahead, nbf and iat are not ahead where they are there, and all three are numbers.
//
// Scopes are those of the claim "scope", a string of them with spaces between or a list; without it those
// of "scp". The header's jwk, jku, x5c and x5u are never looked at.
//
// A token that was verified is remembered until it expires, until its key is no longer what the KeySource
// returns, or until Revoked says so, and is not verified again; requests with one token at the same time
// verify it once. Of CacheSize tokens the least used go first, and sooner when they are longer than 2 KiB on
// average. One costs about 1.2 KiB and twice its length: 24 MB for 10,000 tokens of 700 bytes.
type JWT struct {
	keys      KeySource
	methods   map[string]*jose.Algorithm // the allowed ones, by name
	typ       string                     // "" accepts any
	token     func(*http.Request) string
	maxBytes  int
	issuer    string
	validator *jwt.Validator
	revoked   func(*Identity) bool
	leeway    time.Duration
	cache     *flightcache.Cache[verified] // nil: none
}

// verified is a token that was found good.
type verified struct {
	id *Identity

	// The key that verified it, and how the KeySource was asked for that key.
	key      any
	kid, alg string
}

const (
	defaultTokenCache = 10_000
	meanTokenBytes    = 2 << 10 // an entry that is longer takes the place of several
)

// newTokenCache returns a cache of at most size tokens, with meanTokenBytes for each on average. A size of 0 means
// the default, and a negative one no cache: nil.
func newTokenCache[V any](size int, load func(context.Context, string) (*flightcache.Entry[V], error)) *flightcache.Cache[V] {
	if size < 0 {
		return nil
	}
	if size == 0 {
		size = defaultTokenCache
	}
	return flightcache.New(size, size*meanTokenBytes, load)
}

// NewJWT returns a JWT that verifies with keys. It panics without keys, Issuer, Audience and Algorithms, on
// an algorithm that it does not know, "none" first of all, on a negative Leeway or MaxBytes, and when keys are
// static and none of them serves any of Algorithms.
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
		panic("gateway: NewJWT: no key is of the kind that Algorithms ask for")
	}
	if j.maxBytes == 0 {
		j.maxBytes = 16 << 10
	}
	j.cache = newTokenCache(opts.CacheSize, j.verify)
	return j
}

// check panics on options that cannot be meant.
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

// Authenticate verifies the token that r carries.
func (j *JWT) Authenticate(r *http.Request) (*Identity, error) {
	token, err := j.tokenOf(r)
	if err != nil {
		return nil, err
	}
	return j.Verify(r.Context(), token)
}

// tokenOf finds the token that r carries, which is not empty.
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

// Verify says whom a token speaks of. The error wraps ErrUnauthenticated when the token is bad; it is an
// *Error with status 503 when the keys are out of reach, and ctx's own when that ended first.
func (j *JWT) Verify(ctx context.Context, token string) (*Identity, error) {
	if len(token) > j.maxBytes {
		return nil, badCredentials("token too long")
	}
	var e *flightcache.Entry[verified]
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

// recheck asks the KeySource whether the key that verified a cached token is still valid. A token whose key has
// been replaced is verified again.
func (j *JWT) recheck(ctx context.Context, token string, e *flightcache.Entry[verified]) (*flightcache.Entry[verified], error) {
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

// verify does the work, the cheap parts first: what has no good signature costs no more than its header.
func (j *JWT) verify(ctx context.Context, token string) (*flightcache.Entry[verified], error) {
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
		return nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	id := c.identity()
	return &flightcache.Entry[verified]{
		Value: verified{id: id, key: key, kid: kid, alg: alg},
		Until: id.Expiry.Add(j.leeway),
	}, nil
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

// claims are a token's, as the validator asks for them. What is there but of a wrong type is an error.
type claims map[string]any

var errClaimType = errors.New("claim of a wrong type")

func (c claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.date("exp") }
func (c claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.date("iat") }
func (c claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.date("nbf") }
func (c claims) GetIssuer() (string, error)                   { return c.text("iss") }
func (c claims) GetSubject() (string, error)                  { return c.text("sub") }

// GetAudience reads a string or a list of them (RFC 7519 section 4.1.3).
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

func (c claims) text(name string) (string, error) {
	v, there := c[name]
	s, ok := v.(string)
	if there && !ok {
		return "", errClaimType
	}
	return s, nil
}

// date reads a NumericDate (RFC 7519 section 2) between the years 1970 and 9999.
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

// Validate is asked by the validator after its own questions.
func (c claims) Validate() error {
	_, err := c.text("sub")
	return err
}

// identity is what valid claims say.
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

// scopesOf reads a string of scopes (RFC 8693 section 4.2) or a list of them, which some issuers send.
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

// Issuers picks by the token's own "iss", which nobody has verified yet, the JWT that then verifies it or not: each
// issuer has its own keys, audience, algorithms and way to carry a token. A token of any other issuer is
// refused. Together with KeyBySubject and the Identity's Issuer, equal subjects of two issuers stay two. It
// panics without any, and on a JWT that is nil or stands under another name than its own JWTOptions.Issuer.
func Issuers(byIssuer map[string]*JWT) Authenticator {
	if len(byIssuer) == 0 {
		panic("gateway: Issuers: no issuers")
	}
	m := &issuers{byIssuer: maps.Clone(byIssuer)}
	for _, issuer := range slices.Sorted(maps.Keys(byIssuer)) {
		j := byIssuer[issuer]
		if j == nil || j.issuer != issuer {
			panic("gateway: Issuers: the JWT under " + strconv.Quote(issuer) + " is not that issuer's")
		}
		m.list = append(m.list, j)
		m.maxBytes = max(m.maxBytes, j.maxBytes)
	}
	return m
}

type issuers struct {
	byIssuer map[string]*JWT
	list     []*JWT // by name
	maxBytes int
}

// Authenticate lets the first token that is found decide.
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
			return nil, badCredentials("unknown issuer")
		}
		if j != finder {
			// Found where one issuer's tokens are, it must be where its own issuer's are, too.
			if own, err := j.tokenOf(r); err != nil || own != token {
				return nil, badCredentials("not where this issuer's tokens are")
			}
		}
		return j.Verify(r.Context(), token)
	}
	return nil, ErrNoCredentials
}

// issuerOf reads iss from a token that may be anything; "" when it has none.
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

// bearer finds the token in Authorization (RFC 6750 section 2.1). Another scheme there is none of its kind;
// two fields, or a scheme without one token after it, are bad.
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
		return "", ErrNoCredentials // a longer name of a scheme
	}
	token := strings.TrimLeft(v, " ")
	if token == "" || len(token) == len(v) {
		return "", badCredentials("no token after Bearer")
	}
	return token, nil
}

// CookieToken finds the token in a cookie, for JWTOptions.Token. Of two cookies of one name neither is
// believed. It panics on an empty name.
//
// A cookie is sent by any page that makes the browser ask: guard what changes state with
// http.CrossOriginProtection, too.
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

// HeaderToken finds the token in a header field, which holds nothing else, for JWTOptions.Token. Of two
// fields of one name neither is believed. It panics on a name that is none.
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

// ambiguous is what no verifier takes for a token.
const ambiguous = ","

// fieldName returns the canonical form of a field name, and panics on what is none.
func fieldName(who, name string) string {
	if !httpfield.IsToken(name) {
		panic("gateway: " + who + ": malformed field name")
	}
	return http.CanonicalHeaderKey(name)
}
