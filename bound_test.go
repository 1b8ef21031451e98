package gateway_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// x5t returns the thumbprint of a certificate (RFC 8705 section 3.1).
func x5t(cert *tls.Certificate) string {
	sum := sha256.Sum256(cert.Certificate[0])
	return segment(sum[:])
}

func certToken(cert *tls.Certificate) string {
	return edToken(map[string]any{"cnf": map[string]any{"x5t#S256": x5t(cert)}})
}

// TestCertificateVector has the certificate and the thumbprint of RFC 8705 appendix A.
func TestCertificateVector(t *testing.T) {
	const certificate = "MIIBBjCBrAIBAjAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDARtdGxzMB4XDTE4MTAxODEyMzcwOVoXDTIyMDUwMjEyMzcwOVowDzENMAsGA1UEAwwEbXRsczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNcnyxwqV6hY8QnhxxzFQ03C7HKW9OylMbnQZjjJ_Au08_coZwxS7LfA4vOLS9WuneIXhbGGWvsDSb0tH6IxLm8wCgYIKoZIzj0EAwIDSQAwRgIhAP0RC1E-vwJD_D1AGHGzuri-hlV_PpQEKTWUVeORWz83AiEA5x2eXZOVbUlJSGQgjwD5vaUaKlLR50Q2DmFfQj1L-SY"
	token := edToken(map[string]any{"cnf": map[string]any{"x5t#S256": "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0"}})
	r := withBearer(token)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Raw: must(base64.RawURLEncoding.DecodeString(certificate))}}}
	if _, err := edJWT(nil).Authenticate(r); err != nil {
		t.Error(err)
	}
}

// TestCertificateBound has real TLS connections: a token that is bound to a certificate is accepted from a client that
// proves to have it, whoever issued it, and from nobody else.
func TestCertificateBound(t *testing.T) {
	ca := certificate(t, "ca", time.Now().Add(time.Hour), nil)
	mine := certificate(t, "machine-1", time.Now().Add(time.Hour), &ca)
	self := certificate(t, "machine-1", time.Now().Add(time.Hour), nil)
	field := ":" + base64.StdEncoding.EncodeToString(mine.Certificate[0]) + ":"
	for name, tt := range map[string]struct {
		bound  *tls.Certificate
		sent   *tls.Certificate
		header http.Header
		status int
	}{
		"mine":                           {&mine, &mine, nil, 200},
		"self-signed":                    {&self, &self, nil, 200},
		"another's":                      {&mine, &self, nil, 401},
		"none":                           {&mine, nil, nil, 401},
		"none, but a field":              {&mine, nil, http.Header{"Client-Cert": {field}}, 401},
		"another's, and a field":         {&mine, &self, http.Header{"Client-Cert": {field}}, 401},
		"mine, and another's in a field": {&mine, &mine, http.Header{"Client-Cert": {":AAAA:"}}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(gateway.Auth(edJWT(nil), nil)(caller))
			s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
			s.StartTLS()
			defer s.Close()
			if tt.sent != nil {
				s.Client().Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return tt.sent, nil
				}
			}
			r := newRequest(t, "GET", s.URL, nil)
			r.Header = tt.header.Clone()
			if r.Header == nil {
				r.Header = make(http.Header)
			}
			r.Header.Set("Authorization", "Bearer "+certToken(tt.bound))
			for range 2 { // the second time from the cache
				res, err := s.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				body := string(must(io.ReadAll(res.Body)))
				res.Body.Close()
				if res.StatusCode != tt.status {
					t.Errorf("status %d, %s", res.StatusCode, body)
				}
			}
		})
	}
}

// TestCertificateFromProxy: Client-Cert (RFC 9440) counts from a trusted proxy alone, and then instead of the certificate
// of the connection, which is the proxy's.
func TestCertificateFromProxy(t *testing.T) {
	ca := certificate(t, "ca", time.Now().Add(time.Hour), nil)
	mine := certificate(t, "machine-1", time.Now().Add(time.Hour), &ca)
	proxys := certificate(t, "proxy", time.Now().Add(time.Hour), nil)
	encoded := base64.StdEncoding.EncodeToString(mine.Certificate[0])
	for name, tt := range map[string]struct {
		peer   string
		bound  *tls.Certificate
		fields http.Header
		status int
	}{
		"trusted":               {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {":" + encoded + ":"}}, 200},
		"not trusted":           {"192.0.2.1:1", &mine, http.Header{"Client-Cert": {":" + encoded + ":"}}, 401},
		"no address":            {"", &mine, http.Header{"Client-Cert": {":" + encoded + ":"}}, 401},
		"missing":               {"10.0.0.1:1", &mine, nil, 401},
		"the proxy's own":       {"10.0.0.1:1", &proxys, nil, 401},
		"twice":                 {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {":" + encoded + ":", ":" + encoded + ":"}}, 401},
		"no colons":             {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {encoded}}, 401},
		"a list":                {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {":" + encoded + ":, :AAAA:"}}, 401},
		"empty":                 {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {"::"}}, 401},
		"one colon":             {"10.0.0.1:1", &mine, http.Header{"Client-Cert": {":"}}, 401},
		"an alias":              {"10.0.0.1:1", &mine, http.Header{"Client_cert": {":" + encoded + ":"}}, 401},
		"the chain":             {"10.0.0.1:1", &mine, http.Header{"Client-Cert-Chain": {":" + encoded + ":"}}, 401},
		"a field of other name": {"10.0.0.1:1", &mine, http.Header{"X-Client-Cert": {":" + encoded + ":"}}, 401},
	} {
		h := gateway.Chain(gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("10.0.0.0/8")), gateway.Auth(edJWT(nil), nil))(caller)
		r := withBearer(certToken(tt.bound))
		for field, values := range tt.fields {
			r.Header[field] = values
		}
		r.RemoteAddr = tt.peer
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{proxys.Leaf}}
		if w := recorded(h, r); w.Code != tt.status {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
}

// TestConfirmation: what is not understood in cnf is refused, in tokens and in the answers of an introspection endpoint.
func TestConfirmation(t *testing.T) {
	ca := certificate(t, "ca", time.Now().Add(time.Hour), nil)
	mine := certificate(t, "machine-1", time.Now().Add(time.Hour), &ca)
	good := x5t(&mine)
	type object = map[string]any
	for name, tt := range map[string]struct {
		cnf any
		ok  bool
	}{
		"none":            {nil, true},
		"certificate":     {object{"x5t#S256": good}, true},
		"empty":           {object{}, false},
		"a string":        {good, false},
		"a list":          {[]string{good}, false},
		"a number":        {1, false},
		"false":           {false, false},
		"jwk":             {object{"jwk": jwk("k", edPublic(), nil)}, false},
		"jku":             {object{"jku": "https://evil.example"}, false},
		"kid":             {object{"kid": "k"}, false},
		"osc":             {object{"osc": 1}, false},
		"and more":        {object{"x5t#S256": good, "kid": "k"}, false},
		"and null":        {object{"x5t#S256": good, "jkt": nil}, false},
		"value null":      {object{"x5t#S256": nil}, false},
		"value empty":     {object{"x5t#S256": ""}, false},
		"value short":     {object{"x5t#S256": good[:42]}, false},
		"value padded":    {object{"x5t#S256": good + "="}, false},
		"value a list":    {object{"x5t#S256": []string{good}}, false},
		"SHA-1":           {object{"x5t": "AAAAAAAAAAAAAAAAAAAAAAAAAAA"}, false},
		"other case":      {object{"X5T#s256": good}, false},
		"both, one alone": {object{"x5t#S256": good, "jkt": good}, false},
	} {
		token := edToken(object{"cnf": tt.cnf})
		r := withBearer(token)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{mine.Leaf}}
		if _, err := edJWT(nil).Authenticate(r); (err == nil) != tt.ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := edJWT(nil).Verify(t.Context(), token); (err == nil) != (tt.cnf == nil) {
			t.Errorf("%s: Verify: %v", name, err)
		}
		in := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, string(mustJSON(object{"active": true, "sub": "u", "cnf": tt.cnf})), nil), nil
		})
		if _, err := in.Authenticate(r); (err == nil) != tt.ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%s, introspected: %v", name, err)
		}
	}
	null := signRaw("EdDSA", testEd(), []byte(`{"alg":"EdDSA"}`), mustJSON(claimSetWithNull("cnf")))
	if _, err := edJWT(nil).Verify(t.Context(), null); err != nil {
		t.Errorf("null: %v", err)
	}
}

// TestBoundToBoth: a token with both kinds of cnf needs both proofs.
func TestBoundToBoth(t *testing.T) {
	self := certificate(t, "machine-1", time.Now().Add(time.Hour), nil)
	token := boundToken(map[string]any{"cnf": map[string]any{"jkt": jktOf(&proofKey().PublicKey), "x5t#S256": x5t(&self)}})
	j := dpopJWT(gateway.DPoPOptions{})
	r := proven(token, proofFor(token, nil, map[string]any{"htu": "https://example.com/notes"}))
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{self.Leaf}}
	if _, err := j.Authenticate(r); err != nil {
		t.Error(err)
	}
	delete(r.Header, "Dpop")
	if _, err := j.Authenticate(r); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("certificate alone: %v", err)
	}
}
