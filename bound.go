package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/seed-96248d0c/gateway/internal/jose"
)

// binding is the key that a token is bound to (RFC 7800): only a client that has the private key may use the
// token. If both fields are set, the client must prove both.
type binding struct {
	certificate *[sha256.Size]byte // SHA-256 of a TLS client certificate (RFC 8705 section 3.1); nil for none
	key         *[sha256.Size]byte // thumbprint of a key for DPoP proofs (RFC 9449 section 6.1); nil for none
}

var errConfirmation = errors.New("malformed or unknown cnf")

// binding reads the claim cnf, and returns nil if it is absent. A member that is not known is an error: it
// may require a proof that this package cannot check.
func (c claims) binding() (*binding, error) {
	v := c["cnf"]
	if v == nil {
		return nil, nil
	}
	members, ok := v.(map[string]any)
	if !ok || len(members) == 0 {
		return nil, errConfirmation
	}
	b := new(binding)
	for name, v := range members {
		text, _ := v.(string)
		sum, err := jose.DecodeSegment(text)
		if err != nil || len(sum) != sha256.Size {
			return nil, errConfirmation
		}
		switch name {
		case "x5t#S256":
			b.certificate = (*[sha256.Size]byte)(sum)
		case "jkt":
			b.key = (*[sha256.Size]byte)(sum)
		default:
			return nil, errConfirmation
		}
	}
	return b, nil
}

// prove checks that the sender of r has the key that the token is bound to. b is nil for a token that is not
// bound. proofs is nil when DPoP is not configured.
func (b *binding) prove(r *http.Request, c credential, proofs *proofs) error {
	bound := b != nil && b.key != nil
	switch {
	case c.dpop && !bound:
		return dpopError("the token is not bound to a DPoP key", codeInvalidToken, "The access token is not bound to a DPoP key")
	case !bound && proofs != nil && proofs.required:
		return dpopError("the token is not bound to a DPoP key", codeInvalidToken, "A DPoP-bound access token is required")
	case bound && proofs == nil:
		return badCredentials("the token is bound to a DPoP key, and DPoP is not configured")
	case bound && !c.dpop && !c.placed:
		return dpopError("a DPoP-bound token as a plain bearer", codeInvalidToken, "The access token is bound to a DPoP key")
	}
	if b == nil {
		return nil
	}
	if b.certificate != nil {
		sum, ok := clientCertificate(r)
		if !ok || subtle.ConstantTimeCompare(sum[:], b.certificate[:]) != 1 {
			return badCredentials("the token is bound to another client certificate")
		}
	}
	if bound {
		return proofs.verify(r, c.token, *b.key)
	}
	return nil
}

// clientCertificate returns the SHA-256 of the client's certificate in the TLS handshake. The handshake
// proves that the client has the key. The issuer of the certificate does not matter here (RFC 8705 section
// 3).
//
// A trusted proxy that terminates TLS reports the client's certificate in Client-Cert (RFC 9440 section 2.2).
// The certificate of this connection, if any, is then the proxy's own. A field that is malformed, or that
// occurs twice, counts as no certificate.
func clientCertificate(r *http.Request) (sum [sha256.Size]byte, ok bool) {
	if behindTrustedProxy(r) {
		values := r.Header["Client-Cert"]
		if len(values) != 1 {
			return sum, false
		}
		v := values[0]
		if len(v) < 2 || v[0] != ':' || v[len(v)-1] != ':' {
			return sum, false
		}
		der, err := base64.StdEncoding.Strict().DecodeString(v[1 : len(v)-1])
		if err != nil || len(der) == 0 {
			return sum, false
		}
		return sha256.Sum256(der), true
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return sum, false
	}
	return sha256.Sum256(r.TLS.PeerCertificates[0].Raw), true
}

// behindTrustedProxy reports whether TrustProxies trusts the peer that sent r.
func behindTrustedProxy(r *http.Request) bool {
	ex := exchangeFrom(r.Context())
	if ex == nil {
		return false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.viaProxy
}
