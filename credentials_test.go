package gateway_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestAPIKeys(t *testing.T) {
	keys := map[[32]byte]*gateway.Identity{sha256.Sum256([]byte("key-1")): {Subject: "machine-1"}}
	a := gateway.APIKeys("x-api-key", func(_ context.Context, hash [32]byte) (*gateway.Identity, error) {
		switch hash {
		case sha256.Sum256([]byte("down")):
			return nil, errors.New("connection refused")
		case sha256.Sum256([]byte("limited")):
			return nil, &gateway.Error{Status: 429}
		case sha256.Sum256([]byte("none")):
			return nil, gateway.ErrNoCredentials
		case sha256.Sum256([]byte("expired")):
			return nil, gateway.ErrUnauthenticated
		}
		return keys[hash], nil
	})
	for name, tt := range map[string]struct {
		values []string
		status int
	}{
		"good": {[]string{"key-1"}, 200}, "unknown": {[]string{"key-2"}, 401}, "none": {nil, 204}, "empty": {[]string{""}, 204},
		"two": {[]string{"key-1", "key-1"}, 401}, "long": {[]string{strings.Repeat("k", 4<<10+1)}, 401},
		"cannot tell": {[]string{"down"}, 503}, "own status": {[]string{"limited"}, 429}, "expired": {[]string{"expired"}, 401},
		"not its kind": {[]string{"none"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			// Optional shows whether credentials were found.
			h := gateway.Auth(a, &gateway.AuthOptions{Optional: true})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, ok := gateway.IdentityFrom(r.Context()); !ok {
					w.WriteHeader(204)
				}
			}))
			resp, body := asks(t, h, http.Header{"X-Api-Key": tt.values})
			if resp.StatusCode != tt.status || strings.Contains(body, "refused") {
				t.Errorf("status %d, %s", resp.StatusCode, body)
			}
		})
	}
}

func TestFirstOf(t *testing.T) {
	id := &gateway.Identity{Subject: "u"}
	none := fixed(nil, gateway.ErrNoCredentials)
	good := fixed(id, nil)
	bad := fixed(nil, gateway.ErrUnauthenticated)
	for name, tt := range map[string]struct {
		a    gateway.Authenticator
		want error
	}{
		"the second":          {gateway.FirstOf(none, good), nil},
		"none":                {gateway.FirstOf(none, none), gateway.ErrNoCredentials},
		"bad ones decide too": {gateway.FirstOf(none, bad, good), gateway.ErrUnauthenticated},
		"the first":           {gateway.FirstOf(good, bad), nil},
		"nested":              {gateway.FirstOf(gateway.FirstOf(none), good), nil},
	} {
		got, err := tt.a.Authenticate(httptest.NewRequest("GET", "/", nil))
		if !errors.Is(err, tt.want) || err == nil && got != id {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestIssuers(t *testing.T) {
	one := edJWT(nil)
	two := gateway.NewJWT(gateway.StaticKey(&testEC().PublicKey), gateway.JWTOptions{
		Issuer: "https://two.example", Audience: "two", Algorithms: []string{"ES256"},
	})
	cookie := gateway.NewJWT(gateway.StaticKey(&testEC().PublicKey), gateway.JWTOptions{
		Issuer: "https://cookie.example", Audience: "c", Algorithms: []string{"ES256"}, Token: gateway.CookieToken("s"),
	})
	a := gateway.Issuers(map[string]*gateway.JWT{testIssuer: one, "https://two.example": two, "https://cookie.example": cookie})
	ofTwo := claimSet(map[string]any{"iss": "https://two.example", "aud": "two"})
	ofCookie := sign("ES256", testEC(), nil, claimSet(map[string]any{"iss": "https://cookie.example", "aud": "c"}))
	for name, tt := range map[string]struct {
		field, value string
		want         error
		issuer       string
	}{
		"one":                         {"Authorization", "Bearer " + edToken(nil), nil, testIssuer},
		"two":                         {"Authorization", "Bearer " + sign("ES256", testEC(), nil, ofTwo), nil, "https://two.example"},
		"cookie":                      {"Cookie", "s=" + ofCookie, nil, "https://cookie.example"},
		"nothing":                     {"Accept", "*/*", gateway.ErrNoCredentials, ""},
		"another scheme":              {"Authorization", "Basic dTpw", gateway.ErrNoCredentials, ""},
		"two's word, one's key":       {"Authorization", "Bearer " + sign("EdDSA", testEd(), nil, ofTwo), gateway.ErrUnauthenticated, ""},
		"one's word, two's key":       {"Authorization", "Bearer " + sign("ES256", testEC(), nil, claimSet(nil)), gateway.ErrUnauthenticated, ""},
		"two, for one's audience":     {"Authorization", "Bearer " + sign("ES256", testEC(), nil, claimSet(map[string]any{"iss": "https://two.example"})), gateway.ErrUnauthenticated, ""},
		"unknown":                     {"Authorization", "Bearer " + edToken(map[string]any{"iss": "https://evil.example"}), gateway.ErrUnauthenticated, ""},
		"no issuer":                   {"Authorization", "Bearer " + edToken(map[string]any{"iss": nil}), gateway.ErrUnauthenticated, ""},
		"issuer a number":             {"Authorization", "Bearer " + edToken(map[string]any{"iss": 1}), gateway.ErrUnauthenticated, ""},
		"no token":                    {"Authorization", "Bearer x", gateway.ErrUnauthenticated, ""},
		"too long":                    {"Authorization", "Bearer " + edToken(map[string]any{"a": strings.Repeat("a", 1<<20)}), gateway.ErrUnauthenticated, ""},
		"the cookie's, as a bearer":   {"Authorization", "Bearer " + ofCookie, gateway.ErrUnauthenticated, ""},
		"a bearer's, in the cookie":   {"Cookie", "s=" + edToken(nil), gateway.ErrUnauthenticated, ""},
		"issuer twice, one then evil": {"Authorization", "Bearer " + signRaw("EdDSA", testEd(), []byte(`{"alg":"EdDSA"}`), []byte(`{"iss":"`+testIssuer+`","iss":"https://evil.example"}`)), gateway.ErrUnauthenticated, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set(tt.field, tt.value)
			id, err := a.Authenticate(r)
			if !errors.Is(err, tt.want) || err == nil && id.Issuer != tt.issuer {
				t.Errorf("identity %+v, error %v", id, err)
			}
		})
	}
}

func TestCredentialPanics(t *testing.T) {
	lookup := func(context.Context, [32]byte) (*gateway.Identity, error) { return nil, nil }
	for name, f := range map[string]func(){
		"no authenticators":    func() { gateway.FirstOf() },
		"nil authenticator":    func() { gateway.FirstOf(edJWT(nil), nil) },
		"no issuers":           func() { gateway.Issuers(nil) },
		"nil JWT":              func() { gateway.Issuers(map[string]*gateway.JWT{testIssuer: nil}) },
		"JWT of another":       func() { gateway.Issuers(map[string]*gateway.JWT{"https://two.example": edJWT(nil)}) },
		"nil lookup":           func() { gateway.APIKeys("X-API-Key", nil) },
		"nameless field":       func() { gateway.APIKeys("", lookup) },
		"field with a blank":   func() { gateway.APIKeys("X API", lookup) },
		"nil function of cert": func() { gateway.ClientCert(nil) },
	} {
		if v, _ := panics(f).(string); !strings.HasPrefix(v, "gateway: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}

// certificate issues one for name, by parent or by itself.
func certificate(t *testing.T, name string, notAfter time.Time, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: parent == nil,
	}
	issuer, key := template, any(testEC())
	if parent != nil {
		issuer, key = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &testEC().PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: testEC(), Leaf: must(x509.ParseCertificate(der))}
}

func TestClientCert(t *testing.T) {
	ca := certificate(t, "ca", time.Now().Add(time.Hour), nil)
	known := certificate(t, "machine-1", time.Now().Add(time.Hour), &ca)
	unknown := certificate(t, "machine-2", time.Now().Add(time.Hour), &ca)
	self := certificate(t, "machine-1", time.Now().Add(time.Hour), nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	a := gateway.ClientCert(func(cs *tls.ConnectionState) (*gateway.Identity, error) {
		if name := cs.VerifiedChains[0][0].Subject.CommonName; name == "machine-1" {
			return &gateway.Identity{Subject: name}, nil
		}
		return nil, nil
	})
	for name, tt := range map[string]struct {
		auth   tls.ClientAuthType
		cert   *tls.Certificate
		status int
		body   string
	}{
		"good":         {tls.VerifyClientCertIfGiven, &known, 200, "machine-1|X-User-Id=machine-1"},
		"unknown":      {tls.VerifyClientCertIfGiven, &unknown, 401, ""},
		"none":         {tls.VerifyClientCertIfGiven, nil, 200, "|"},
		"not verified": {tls.RequestClientCert, &known, 401, ""},
		"self-signed":  {tls.RequireAnyClientCert, &self, 401, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(gateway.Auth(a, &gateway.AuthOptions{Optional: true})(caller))
			s.TLS = &tls.Config{ClientAuth: tt.auth, ClientCAs: pool}
			s.StartTLS()
			defer s.Close()
			transport := s.Client().Transport.(*http.Transport)
			if tt.cert != nil {
				transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
			}
			resp, err := s.Client().Get(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body := string(must(io.ReadAll(resp.Body)))
			if resp.StatusCode != tt.status || tt.status == 200 && body != tt.body {
				t.Errorf("status %d, %s", resp.StatusCode, body)
			}
		})
	}

	r := httptest.NewRequest("GET", "/", nil)
	if _, err := a.Authenticate(r); !errors.Is(err, gateway.ErrNoCredentials) {
		t.Errorf("without TLS: %v", err)
	}
	old := certificate(t, "machine-1", time.Now().Add(-time.Minute), &ca)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{old.Leaf}, VerifiedChains: [][]*x509.Certificate{{old.Leaf, ca.Leaf}}}
	if _, err := a.Authenticate(r); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("expired since the handshake: %v", err)
	}
}
