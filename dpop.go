package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/jose"
	"github.com/seed-96248d0c/gateway/internal/onetime"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// DPoPOptions configures proofs of possession (RFC 9449). The client sends "Authorization: DPoP <token>"
// and, in the field DPoP, a proof: a JWT that it signs for this one request with the key that the token is
// bound to. The zero value is ready for use.
//
// A proof is accepted only if all of this holds (section 4.3):
//
//   - There is exactly one field DPoP, of at most 8 KiB. It is a JWT as JWT describes it, with the typ
//     dpop+jwt.
//   - Its alg is RS, PS or ES with 256, 384 or 512, or EdDSA. The header's jwk is a public key for that alg,
//     without private members. Its thumbprint (RFC 7638) is the token's cnf.jkt. The signature is valid for
//     that key.
//   - htm is the request's method.
//   - htu is the request's URL without query and fragment, after normalization: scheme and host are compared
//     without case, and a default port and needless percent-encodings make no difference.
//   - iat is not older than MaxAge, and not later than now by more than Leeway.
//   - ath is the hash of the token.
//   - jti was not used by this key before.
//   - nonce, if Nonce is set, is one that this gateway issued in the last five minutes.
//
// The URL is that of the request line, with the scheme and the host by which the client reached the gateway.
// These are those of the connection or, if TrustProxies trusts the peer, those that the peer reports in
// X-Forwarded-Proto and -Host, or in Forwarded. Behind a proxy that changes the path, set URL.
//
// Used proofs are remembered until they are too old, each in about 70 bytes. When MaxSeen proofs are
// remembered, requests with new ones get 503, because a forgotten proof could be used again. So set MaxSeen
// to at least the number of DPoP requests that arrive in MaxAge plus Leeway, and put a RateLimit by address
// outside Auth.
//
// Gateways do not share this memory: an attacker who has copied a proof can use it once on each gateway where
// the client has not used it. Nonces do not change that; a short MaxAge helps. A proof can be checked only
// once: a second Auth with the same JWT, inside the first, refuses the request.
type DPoPOptions struct {
	Required bool                       // refuse tokens that are not bound to a DPoP key
	MaxAge   time.Duration              // age up to which a proof is accepted; 0 means 1m
	Nonce    bool                       // require a nonce of the gateway; a client without one gets a nonce with a 401
	NonceKey []byte                     // secret of at least 32 bytes, shared by gateways that accept each other's nonces; nil means a random one
	MaxSeen  int                        // number of proofs that are remembered; 0 means 100,000
	URL      func(*http.Request) string // returns the request's URL as the client knows it; must be safe for concurrent use; nil means as described above
}

const (
	dpopAlgorithms = "ES256 ES384 ES512 EdDSA PS256 PS384 PS512 RS256 RS384 RS512"
	maxProof       = 8 << 10
	maxProofValues = 64
	maxProofID     = 512
	nonceLife      = 5 * time.Minute
)

// proofs verifies DPoP proofs. It is safe for concurrent use.
type proofs struct {
	required bool
	maxAge   time.Duration
	leeway   time.Duration
	nonceKey []byte // nil if no nonce is required
	url      func(*http.Request) string
	seen     *onetime.Memory
}

// newProofs returns nil if opts is nil. It panics on invalid options. who is the name of the constructor, for
// the message.
func newProofs(who string, opts *DPoPOptions, leeway time.Duration) *proofs {
	if opts == nil {
		return nil
	}
	o := *opts
	switch {
	case o.MaxAge < 0 || o.MaxSeen < 0:
		panic("gateway: " + who + ": negative option in DPoP")
	case o.NonceKey != nil && len(o.NonceKey) < 32:
		panic("gateway: " + who + ": DPoP.NonceKey has less than 32 bytes")
	}
	if o.MaxAge == 0 {
		o.MaxAge = time.Minute
	}
	if o.MaxSeen == 0 {
		o.MaxSeen = 100_000
	}
	p := &proofs{required: o.Required, maxAge: o.MaxAge, leeway: leeway, url: o.URL}
	if p.url == nil {
		p.url = clientURL
	}
	if o.Nonce {
		if p.nonceKey = append([]byte(nil), o.NonceKey...); len(p.nonceKey) == 0 {
			p.nonceKey = make([]byte, 32)
			_, _ = rand.Read(p.nonceKey) // never fails
		}
	}
	window := o.MaxAge
	if window < math.MaxInt64-leeway {
		window += leeway
	}
	p.seen = onetime.New(o.MaxSeen, window)
	return p
}

// dpopError returns a refusal whose challenge has the scheme DPoP. reason is for the log.
func dpopError(reason, code, description string) error {
	return &credentialError{err: badCredentials(reason), code: code, description: description, dpop: true}
}

// badProof returns a refusal of a proof. The client gets the reason, which reveals nothing: the proof is the
// client's own.
func badProof(reason string) error {
	return dpopError("DPoP proof: "+reason, codeInvalidProof, "DPoP proof: "+reason)
}

// verify checks that r has a valid proof for token, signed by the key with that thumbprint. It compares the
// thumbprint before it verifies the signature, and remembers only valid proofs.
func (p *proofs) verify(r *http.Request, token string, thumbprint [sha256.Size]byte) error {
	values := r.Header["Dpop"]
	switch {
	case len(values) == 0:
		return badProof("missing")
	case len(values) > 1:
		return badProof("two fields")
	case len(values[0]) > maxProof:
		return badProof("too long")
	}
	c, err := openProof(values[0], thumbprint)
	if err != nil {
		return err
	}
	now := time.Now()
	id, err := p.check(c, r, token, now)
	if err != nil {
		return err
	}
	fresh, full := p.seen.Add(proofID(thumbprint, id), now)
	switch {
	case full:
		return undecidedBy("DPoP", errProofsFull)
	case !fresh:
		return badProof("used before")
	}
	return nil
}

// openProof verifies the signature of a proof and returns its claims.
func openProof(proof string, thumbprint [sha256.Size]byte) (claims, error) {
	head, payload, sig, ok := jose.Split(proof)
	if !ok {
		return nil, badProof("not a JWT")
	}
	header, err := jose.ParseHeader(head)
	if err != nil {
		return nil, badProof("malformed header")
	}
	alg := jose.Lookup(header.Algorithm())
	switch {
	case !header.HasType("dpop+jwt"):
		return nil, badProof("wrong typ")
	case alg == nil || !alg.IsAsymmetric():
		return nil, badProof("alg is not supported")
	case header.Critical():
		return nil, badProof("crit is not supported")
	}
	key := header.Key()
	if key == nil || !alg.Accepts(key) {
		return nil, badProof("jwk is not a public key for alg")
	}
	if sum, ok := jose.Thumbprint(key); !ok || subtle.ConstantTimeCompare(sum[:], thumbprint[:]) != 1 {
		return nil, dpopError("DPoP proof: another key than the token is bound to", codeInvalidToken, "Invalid DPoP key binding")
	}
	signature, err := jose.DecodeSegment(sig)
	if err != nil || !alg.Verify(proof[:len(head)+1+len(payload)], signature, key) {
		return nil, badProof("wrong signature")
	}
	text, err := jose.DecodeSegment(payload)
	if err != nil {
		return nil, badProof("malformed claims")
	}
	object, err := rawjson.DecodeObject(text, maxProofValues)
	if err != nil {
		return nil, badProof("malformed claims")
	}
	return claims(object), nil
}

// check compares the claims of a proof with the request, and returns jti.
func (p *proofs) check(c claims, r *http.Request, token string, now time.Time) (id string, err error) {
	id, _ = c["jti"].(string)
	hash := sha256.Sum256([]byte(token))
	iat, err := c.date("iat")
	switch {
	case id == "" || len(id) > maxProofID:
		return "", badProof("jti is missing or malformed")
	case c["htm"] != r.Method:
		return "", badProof("htm is not the request's method")
	case !sameURL(c["htu"], p.url(r)):
		return "", badProof("htu is not the request's URL")
	case err != nil || iat == nil:
		return "", badProof("iat is missing or malformed")
	case iat.After(now.Add(p.leeway)):
		return "", badProof("iat is in the future")
	case now.Sub(iat.Time) > p.maxAge:
		return "", badProof("too old")
	case c["ath"] != base64.RawURLEncoding.EncodeToString(hash[:]):
		return "", badProof("ath is not the token's hash")
	}
	if p.nonceKey != nil {
		if nonce, _ := c["nonce"].(string); !p.knowsNonce(nonce, now) {
			return "", &credentialError{
				err: badCredentials("DPoP proof: without a nonce of this gateway, or with an old one"), dpop: true,
				code: codeUseNonce, description: "Resource server requires nonce in DPoP proof", nonce: p.newNonce(now),
			}
		}
	}
	return id, nil
}

// newNonce returns a nonce: the time and a message authentication code. So issued nonces need no memory.
func (p *proofs) newNonce(now time.Time) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), uint64(now.Unix()))
	return base64.RawURLEncoding.EncodeToString(p.signNonce(b))
}

func (p *proofs) signNonce(t []byte) []byte {
	mac := hmac.New(sha256.New, p.nonceKey)
	mac.Write([]byte("DPoP-Nonce"))
	mac.Write(t)
	return append(t, mac.Sum(nil)[:16]...)
}

// knowsNonce reports whether newNonce returned nonce within nonceLife.
func (p *proofs) knowsNonce(nonce string, now time.Time) bool {
	b, err := jose.DecodeSegment(nonce)
	if err != nil || len(b) != 24 || !hmac.Equal(p.signNonce(append([]byte(nil), b[:8]...)), b) {
		return false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(b)), 0))
	return -p.leeway-time.Second <= age && age <= nonceLife
}

// clientURL returns the URL of r as the client knows it.
func clientURL(r *http.Request) string {
	scheme, host := clientOrigin(r)
	path := r.URL.EscapedPath()
	if uri := r.RequestURI; uri != "" { // outer handlers may have changed r.URL
		path, _, _ = strings.Cut(strings.ReplaceAll(uri, "#", "%23"), "?")
		if !strings.HasPrefix(path, "/") {
			u, err := url.Parse(path)
			if err != nil {
				return ""
			}
			path = u.EscapedPath()
		}
	}
	return scheme + "://" + host + path
}

// clientOrigin returns the scheme and the host by which the client reached the gateway: those that a trusted
// proxy reports, or else those of the connection. If the proxy reports none or several, those of the
// connection are used.
func clientOrigin(r *http.Request) (scheme, host string) {
	scheme, host = "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	ex := exchangeFrom(r.Context())
	if ex == nil {
		return scheme, host
	}
	ex.mu.Lock()
	h := ex.hops
	ex.mu.Unlock()
	if !h.viaProxy {
		return scheme, host
	}
	proto, name := h.proto, h.host
	if h.field != fieldForwarded {
		proto, name = onlyValue(r.Header["X-Forwarded-Proto"]), onlyValue(r.Header["X-Forwarded-Host"])
	}
	if strings.EqualFold(proto, "http") || strings.EqualFold(proto, "https") {
		scheme = strings.ToLower(proto)
	}
	if name != "" && httpfield.IsHost(name) {
		host = name
	}
	return scheme, host
}

// onlyValue returns the value of a field that occurs exactly once, and otherwise "".
func onlyValue(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// sameURL reports whether the claim htu is the URL want, after normalization (RFC 3986 sections 6.2.2 and
// 6.2.3) and without query and fragment (RFC 9449 section 4.3).
func sameURL(htu any, want string) bool {
	text, _ := htu.(string)
	a, ok := urlpath.NormalURL(text)
	if !ok {
		return false
	}
	b, ok := urlpath.NormalURL(want)
	return ok && a == b
}

// proofID identifies a proof: jti is unique among the proofs of one key (RFC 9449 section 4.2).
func proofID(thumbprint [sha256.Size]byte, jti string) (id [16]byte) {
	sum := sha256.Sum256(append(thumbprint[:], jti...))
	copy(id[:], sum[:])
	return id
}

var errProofsFull = errors.New("MaxSeen proofs are remembered, so a new one cannot be accepted")
