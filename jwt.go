package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway/internal/flightcache"
	"github.com/seed-96248d0c/gateway/internal/jose"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// JWTOptions configures which tokens a JWT accepts. Issuer and Algorithms are required, and one of Audience,
// Audiences and NoAudience.
type JWTOptions struct {
	// What a token must contain.
	Issuer, Audience string   // the required value of iss, and the value that aud must be or contain
	Audiences        []string // instead of Audience: aud must be or contain any of these
	NoAudience       bool     // the issuer's tokens have no aud; one that has aud is refused, since it is for somebody else. Distinguish clients with RequireClaim
	Algorithms       []string // accepted algorithms: RS, PS, ES or HS with 256, 384 or 512, or EdDSA; required
	Type             string   // the required typ, such as "at+jwt" (RFC 9068); "" accepts any
	IDTokens         bool     // accept OpenID Connect ID tokens, which are for the client that the user logged in to and not for an API
	Subject          []string // claims: the first that is not empty is the Subject; nil means sub; add "client_id" for machine tokens without sub

	Leeway  time.Duration              // tolerance for the clocks of issuers, in exp, nbf and iat; 0 means 30s, negative none
	DPoP    *DPoPOptions               // proofs of possession (RFC 9449); nil means that tokens that need one are refused
	Token   func(*http.Request) string // returns the request's token; nil means the one in Authorization; see CookieToken, HeaderToken
	Revoked func(*Identity) bool       // reports whether a valid token is revoked, on every request; must be safe for concurrent use; nil means never

	CacheSize  int   // number of verified tokens that are cached; 0 means 10,000, negative none
	CacheBytes int64 // memory for the cached tokens and their decoded claims; 0 means 32 MiB
	MaxBytes   int   // limit of a token's length, checked first; 0 means 16 KiB
}

// JWT authenticates bearer tokens (RFC 7519) by the rules of RFC 8725. It is safe for concurrent use.
//
// A token is accepted only if all of this holds:
//
//   - It is at most MaxBytes long.
//   - It has three parts of base64url without padding, whose unused bits are zero.
//   - Header and claims are JSON objects. No object has two members of the same name, since parsers differ on
//     which one counts. The claims have at most one value for each 8 bytes of MaxBytes, 2,048 by default. A
//     claim that is null is absent.
//   - The header's alg is one of Algorithms, and the key fits it: RSA of at least 2048 bits, the curve of
//     ES256, ES384 or ES512, Ed25519, or a secret of at least the length of the hash. The salt of a PS
//     signature has the length of the hash.
//   - The header has no crit.
//   - The signature is valid.
//   - The claim iss equals Issuer, and aud is or contains Audience or one of Audiences.
//   - The claim exp is present and in the future. nbf and iat, where present, are not in the future. All
//     three are numbers.
//   - It is an access token. A refresh token or a logout token is refused, and without IDTokens also an ID
//     token. A token is an ID token if it has the claim at_hash, c_hash or nonce, Keycloak's typ "ID" or
//     token_use "id". nonce does not count if the issuer declares an access token: by the header's typ
//     "at+jwt", by typ "Bearer" or by token_use "access".
//   - It is not bound to a key by the claim cnf (RFC 7800), or the sender of the request proves possession of
//     that key. A cnf that is not known is refused.
//
// cnf with x5t#S256 is compared with the certificate that the client presented on the TLS connection (RFC
// 8705 section 3). The server's TLSConfig must request it: set ClientAuth to tls.RequestClientCert or
// stricter. If TrustProxies trusts the peer, the certificate is the one in the peer's field Client-Cert (RFC
// 9440). So that proxy must set or remove Client-Cert on every request, as RFC 9440 section 2.4 requires. If
// it lets a client's own field pass, anyone with a copy of a token and of the certificate can use the token.
// cnf with jkt needs DPoP.
//
// The Identity's Scopes come from the claim scope, or from scp if there is no scope. Each may be a string of
// scopes separated by spaces, or a list. The header's jwk, jku, x5c and x5u are never read.
//
// Verified tokens are cached. A cached token is not verified again until it expires or the KeySource returns
// other keys for it. Concurrent requests with the same token verify it once. The cache holds CacheSize
// tokens, or fewer if they and their claims take more than CacheBytes; then the least recently used are
// dropped. A token of 250 bytes takes about 1.2 KB, one of 1.1 KB from Keycloak about 5.8 KB. One that takes
// more than a 256th of CacheBytes, 128 KiB by default, is not cached.
type JWT struct {
	keys     KeySource
	token    func(*http.Request) string
	maxBytes int
	rules    tokenRules
	revoked  func(*Identity) bool
	proofs   *proofs                      // nil if DPoP is not configured
	cache    *flightcache.Cache[verified] // nil for none
}

// tokenRules are the rules for the header and the claims of a token.
type tokenRules struct {
	issuer    string
	audiences []string                   // nil means that the token must have no aud
	subject   []string                   // nil means sub
	methods   map[string]*jose.Algorithm // the accepted algorithms, by name
	typ       string                     // "" accepts any
	idTokens  bool
	leeway    time.Duration
	maxValues int // in the claims
	validator *jwt.Validator
}

// verified is a token whose signature and claims were valid.
type verified struct {
	id    *Identity
	bound *binding // nil if the token is not bound to a key

	// The key that verified the token, and the arguments of the call of KeySource that returned the key.
	key      any
	kid, alg string
}

// tokenEntry is a verified token in the cache.
type tokenEntry = flightcache.Entry[verified]

const (
	defaultTokenCache = 10_000
	defaultCacheBytes = 32 << 20
	defaultTokenBytes = 16 << 10
	defaultLeeway     = 30 * time.Second

	// cachedBytes is the memory of a cached token in addition to the token and its claims: the entry and its
	// place in the map, the Identity and the header.
	cachedBytes = 400
)

// newTokenCache returns a cache of at most size tokens and maxBytes bytes. For both, 0 means the default. If
// size is negative, it returns nil, which means no cache.
func newTokenCache[V any](size int, maxBytes int64, load func(context.Context, string) (*flightcache.Entry[V], error)) *flightcache.Cache[V] {
	if size < 0 {
		return nil
	}
	if size == 0 {
		size = defaultTokenCache
	}
	if maxBytes == 0 {
		maxBytes = defaultCacheBytes
	}
	return flightcache.New(size, int(min(maxBytes, math.MaxInt)), load)
}

// sizeOf returns the memory that id needs in a cache. claims is the memory of its claims.
func sizeOf(id *Identity, claims int) int {
	return cachedBytes + claims + 16*(len(id.Audience)+len(id.Scopes))
}

// NewJWT returns a JWT that verifies tokens with keys. It panics when keys is nil, when Issuer or Algorithms
// is missing, unless exactly one of Audience, Audiences and NoAudience is set, on an unknown algorithm, such
// as "none", on an empty string in a list, and on a negative MaxBytes, CacheBytes or option of DPoP. It also
// panics when keys come from StaticKey, StaticKeys or ParseJWKS and none of them fits any of Algorithms.
func NewJWT(keys KeySource, opts JWTOptions) *JWT {
	if keys == nil {
		panic("gateway: NewJWT: nil KeySource")
	}
	opts.check("NewJWT")
	if opts.MaxBytes == 0 {
		opts.MaxBytes = defaultTokenBytes
	}
	j := &JWT{
		keys:     keys,
		token:    opts.Token,
		maxBytes: opts.MaxBytes,
		rules:    newTokenRules(&opts),
		revoked:  opts.Revoked,
	}
	j.proofs = newProofs("NewJWT", opts.DPoP, j.rules.leeway)
	if s, ok := keys.(interface {
		serve(map[string]*jose.Algorithm) bool
	}); ok && !s.serve(j.rules.methods) {
		panic("gateway: NewJWT: no key is of the kind that Algorithms require")
	}
	j.cache = newTokenCache(opts.CacheSize, opts.CacheBytes, j.verify)
	return j
}

// newTokenRules returns the rules for opts, which the caller has checked.
func newTokenRules(opts *JWTOptions) tokenRules {
	r := tokenRules{
		issuer:    opts.Issuer,
		audiences: slices.Clone(opts.Audiences),
		subject:   slices.Clone(opts.Subject),
		methods:   make(map[string]*jose.Algorithm, len(opts.Algorithms)),
		typ:       opts.Type,
		idTokens:  opts.IDTokens,
		leeway:    max(0, cmp.Or(opts.Leeway, defaultLeeway)),
		maxValues: max(1024, opts.MaxBytes/8),
	}
	if opts.Audience != "" {
		r.audiences = []string{opts.Audience}
	}
	for _, name := range opts.Algorithms {
		r.methods[name] = jose.Lookup(name)
	}
	validation := []jwt.ParserOption{
		jwt.WithIssuer(r.issuer), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(r.leeway),
	}
	if r.audiences != nil {
		validation = append(validation, jwt.WithAudience(r.audiences...))
	}
	r.validator = jwt.NewValidator(validation...)
	return r
}

// check panics on missing and invalid options. who is the name of the constructor, for the message.
func (o *JWTOptions) check(who string) {
	audiences := 0
	for _, set := range []bool{o.Audience != "", len(o.Audiences) > 0, o.NoAudience} {
		if set {
			audiences++
		}
	}
	switch {
	case o.Issuer == "":
		panic("gateway: " + who + ": no Issuer")
	case audiences == 0:
		panic("gateway: " + who + ": no Audience")
	case audiences > 1:
		panic("gateway: " + who + ": more than one of Audience, Audiences and NoAudience")
	case len(o.Algorithms) == 0:
		panic("gateway: " + who + ": no Algorithms")
	case slices.Contains(o.Audiences, "") || slices.Contains(o.Subject, ""):
		panic("gateway: " + who + ": an empty string in Audiences or Subject")
	case o.MaxBytes < 0 || o.CacheBytes < 0:
		panic("gateway: " + who + ": negative MaxBytes or CacheBytes")
	}
	for _, name := range o.Algorithms {
		if jose.Lookup(name) == nil {
			panic("gateway: " + who + ": algorithm " + strconv.Quote(name) + " is not supported")
		}
	}
}

// Authenticate verifies the token that JWTOptions.Token finds in r. If the token is bound to a key, it also
// verifies that the sender of r has that key. It returns ErrNoCredentials if there is no token. If the token
// does not have the form of a JWT, the error wraps both ErrUnauthenticated and ErrNoCredentials: FirstOf then
// calls the next Authenticator, which may accept opaque tokens. The other errors are those of Verify.
func (j *JWT) Authenticate(r *http.Request) (*Identity, error) {
	c, err := j.find(r)
	if err != nil {
		return nil, err
	}
	return j.accept(r, c)
}

// find returns the token in r. If the error is nil, the token is not empty.
func (j *JWT) find(r *http.Request) (credential, error) {
	if j.token == nil {
		return authorization(r.Header, j.proofs != nil)
	}
	switch token := j.token(r); token {
	case "":
		return credential{}, ErrNoCredentials
	case ambiguous:
		return credential{}, badCredentials("two tokens")
	default:
		return credential{token: token, placed: true}, nil
	}
}

// accept returns the Identity for a token that was found in r.
func (j *JWT) accept(r *http.Request, c credential) (*Identity, error) {
	v, err := j.load(r.Context(), c.token)
	if err != nil {
		return nil, underScheme(c, err)
	}
	if v.bound != nil || c.dpop || j.proofs != nil {
		if err := v.bound.prove(r, c, j.proofs); err != nil {
			return nil, err
		}
	}
	if c.placed {
		notePlace(r, c.token)
	}
	return j.notRevoked(v.id)
}

func (j *JWT) notRevoked(id *Identity) (*Identity, error) {
	if j.revoked != nil && j.revoked(id) {
		return nil, badCredentials("the token is revoked")
	}
	return id, nil
}

func (j *JWT) acceptsDPoP() (dpop, bearer bool) {
	return j.proofs != nil, j.proofs == nil || !j.proofs.required
}

// Verify verifies a token and returns its Identity. The error wraps ErrUnauthenticated when the token is
// bad. It is an *Error with status 503 when the key cannot be fetched, and ctx.Err() when ctx ends first.
//
// Verify refuses a token that is bound to a key, because only the request, which Authenticate has, can prove
// possession of the key. With DPoP.Required it refuses all other tokens as well.
func (j *JWT) Verify(ctx context.Context, token string) (*Identity, error) {
	v, err := j.load(ctx, token)
	switch {
	case err != nil:
		return nil, err
	case v.bound != nil:
		return nil, badCredentials("the token is bound to a key, and without a request there is no proof of possession")
	case j.proofs != nil && j.proofs.required:
		return nil, badCredentials("the token is not bound to a DPoP key")
	}
	return j.notRevoked(v.id)
}

// load returns a valid token, from the cache or after verification. It does not check whether the sender has
// the key that the token is bound to.
func (j *JWT) load(ctx context.Context, token string) (*verified, error) {
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
	return &e.Value, nil
}

// recheck asks the KeySource whether it still has the key that verified a cached token. If it does not, the
// token is verified again.
func (j *JWT) recheck(ctx context.Context, token string, e *tokenEntry) (*tokenEntry, error) {
	v := &e.Value
	keys, err := keysFrom(ctx, j.keys, v.kid, v.alg)
	if err != nil {
		if errors.Is(err, ErrUnauthenticated) {
			j.cache.Forget(e)
		}
		return nil, err
	}
	if !keys.has(v.key) {
		j.cache.Forget(e)
		return j.verify(ctx, token)
	}
	return e, nil
}

// verify checks a token, the cheap parts first. The claims are decoded only if the signature is valid.
func (j *JWT) verify(ctx context.Context, token string) (*tokenEntry, error) {
	head, payload, sig, ok := jose.Split(token)
	if !ok {
		return nil, errNotJWS
	}
	header, err := j.rules.header(head)
	if err != nil {
		return nil, err
	}
	alg := header.Algorithm()
	kid, _ := header.KeyID()
	signature, err := jose.DecodeSegment(sig)
	if err != nil {
		return nil, badCredentials("malformed signature")
	}
	keys, err := keysFrom(ctx, j.keys, kid, alg)
	if err != nil {
		return nil, err
	}
	key, err := verifiedBy(keys, j.rules.methods[alg], token[:len(head)+1+len(payload)], signature)
	if err != nil {
		return nil, err
	}

	text, err := jose.DecodeSegment(payload)
	if err != nil {
		return nil, badCredentials("malformed claims")
	}
	object, size, err := rawjson.DecodeSized(text, j.rules.maxValues)
	if err != nil {
		return nil, fmt.Errorf("%w: claims: %w", ErrUnauthenticated, err)
	}
	id, bound, err := j.rules.identity(header, claims(object))
	if err != nil {
		return nil, err
	}
	return &tokenEntry{
		Value: verified{id: id, bound: bound, key: key, kid: kid, alg: alg},
		Size:  sizeOf(id, size),
		Until: id.Expiry.Add(j.rules.leeway),
	}, nil
}

// verifiedBy returns the first of keys for which signature is a valid signature of input.
func verifiedBy(keys foundKeys, alg *jose.Algorithm, input string, signature []byte) (any, error) {
	list := keys.list
	if list == nil {
		list = []any{keys.one}
	}
	fits := false
	for _, key := range list {
		if !alg.Accepts(key) {
			continue
		}
		fits = true
		if alg.Verify(input, signature, key) {
			return key, nil
		}
	}
	if !fits {
		return nil, badCredentials("the key is not of the kind that the algorithm requires")
	}
	return nil, badCredentials("wrong signature")
}

// header decodes and checks the JOSE header (RFC 7515 section 4).
func (t *tokenRules) header(segment string) (jose.Header, error) {
	header, err := jose.ParseHeader(segment)
	switch {
	case err == jose.ErrEncoding || errors.Is(err, rawjson.ErrNotObject):
		return nil, errNotJWS
	case err != nil:
		return nil, fmt.Errorf("%w: header: %w", ErrUnauthenticated, err)
	}
	_, ok := header.KeyID()
	switch {
	case t.methods[header.Algorithm()] == nil:
		return nil, badCredentials("the algorithm is not allowed")
	case header.Critical():
		return nil, badCredentials("the header has crit")
	case !ok:
		return nil, badCredentials("malformed kid")
	case t.typ != "" && !header.HasType(t.typ):
		return nil, badCredentials("wrong typ")
	}
	return header, nil
}

// identity checks the claims of a token with a valid signature. It returns the Identity, and the key that the
// token is bound to.
func (t *tokenRules) identity(header jose.Header, c claims) (*Identity, *binding, error) {
	if err := t.validator.Validate(c); err != nil {
		return nil, nil, t.refusal(c, err)
	}
	if t.audiences == nil {
		if aud, err := c.GetAudience(); err != nil || len(aud) > 0 {
			return nil, nil, badCredentials("the token has an audience, and NoAudience is set")
		}
	}
	switch use := c.use(header); {
	case use == useOther:
		return nil, nil, badCredentials("neither an access token nor an ID token")
	case use == useID && !t.idTokens:
		return nil, nil, badCredentials("an ID token, and IDTokens is not set")
	}
	bound, err := c.binding()
	if err != nil {
		return nil, nil, badCredentials(err.Error())
	}
	id, err := c.identity(t.subject)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return id, bound, nil
}

// refusal returns the error for claims that the validator found to be invalid. Its text has the claim's value
// and the expected one, for the log. If the token is only expired, the client is told so.
func (t *tokenRules) refusal(c claims, err error) error {
	detail := ""
	switch {
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		detail = fmt.Sprintf(": the token is from %q, expected is %q", c["iss"], t.issuer)
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		detail = fmt.Sprintf(": the token is for %q, expected is %q", c["aud"], t.audiences)
	}
	reason := fmt.Errorf("%w: %w%s", ErrUnauthenticated, err, detail)
	if all, ok := err.(interface{ Unwrap() []error }); ok && errors.Is(err, jwt.ErrTokenExpired) && onlyExpired(all.Unwrap()) {
		return errExpired(reason)
	}
	return reason
}

// onlyExpired reports whether a token is invalid only because it has expired. errs has an error for each
// invalid claim.
func onlyExpired(errs []error) bool {
	for _, err := range errs {
		if err != jwt.ErrTokenInvalidClaims && !errors.Is(err, jwt.ErrTokenExpired) {
			return false
		}
	}
	return true
}

// underScheme gives the error for a refused token a challenge with the scheme with which the token was sent.
func underScheme(c credential, err error) error {
	var detailed *credentialError
	var own *Error
	switch {
	case !c.dpop || errors.As(err, &own) || !errors.Is(err, ErrUnauthenticated):
		return err
	case errors.As(err, &detailed):
		under := *detailed
		under.dpop = true
		return &under
	}
	return &credentialError{err: err, code: codeInvalidToken, dpop: true}
}
