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

func TestAuthAnswers(t *testing.T) {
	tokens := edJWT(nil)
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	var nobody gateway.Authenticator = fixedAuthenticator(nil, gateway.ErrNoCredentials)
	for name, tt := range map[string]struct {
		a         gateway.Authenticator
		opts      *gateway.AuthOptions
		header    http.Header
		status    int
		challenge string
		body      string // of a 200
	}{
		"good":                    {tokens, nil, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"good and optional":       {tokens, &gateway.AuthOptions{Optional: true}, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"none":                    {tokens, nil, nil, 401, "Bearer", ""},
		"none, realm":             {tokens, &gateway.AuthOptions{Realm: `a "b" \c`}, nil, 401, `Bearer realm="a \"b\" \\c"`, ""},
		"none and optional":       {tokens, &gateway.AuthOptions{Optional: true}, nil, 200, "", "|"},
		"bad":                     {tokens, nil, bearer("x"), 401, `Bearer error="invalid_token"`, ""},
		"bad, realm":              {tokens, &gateway.AuthOptions{Realm: "api"}, bearer("x"), 401, `Bearer realm="api", error="invalid_token"`, ""},
		"bad and optional":        {tokens, &gateway.AuthOptions{Optional: true}, bearer("x"), 401, `Bearer error="invalid_token"`, ""},
		"expired":                 {tokens, nil, bearer(edToken(map[string]any{"exp": 1})), 401, `Bearer error="invalid_token", error_description="The access token expired"`, ""},
		"expired, another's":      {tokens, nil, bearer(edToken(map[string]any{"exp": 1, "aud": "other"})), 401, `Bearer error="invalid_token"`, ""},
		"metadata":                {tokens, &gateway.AuthOptions{ResourceMetadata: "https://api.example/.well-known/oauth-protected-resource"}, nil, 401, `Bearer resource_metadata="https://api.example/.well-known/oauth-protected-resource"`, ""},
		"metadata, bad":           {tokens, &gateway.AuthOptions{Realm: "api", ResourceMetadata: "https://api.example/m"}, bearer("x"), 401, `Bearer realm="api", error="invalid_token", resource_metadata="https://api.example/m"`, ""},
		"nil without an error":    {fixedAuthenticator(nil, nil), nil, nil, 401, `Bearer error="invalid_token"`, ""},
		"nil, optional":           {fixedAuthenticator(nil, nil), &gateway.AuthOptions{Optional: true}, nil, 401, `Bearer error="invalid_token"`, ""},
		"cannot decide":           {fixedAuthenticator(nil, &gateway.Error{Status: 503}), nil, nil, 503, "", ""},
		"cannot decide, optional": {fixedAuthenticator(nil, &gateway.Error{Status: 503}), &gateway.AuthOptions{Optional: true}, nil, 503, "", ""},
		"an error of its own":     {fixedAuthenticator(nil, errors.New("db password is hunter2")), nil, nil, 500, "", ""},
		"a 401 of its own": {fixedAuthenticator(nil, &gateway.Error{Status: 401, Header: http.Header{"Www-Authenticate": {"Negotiate"}}}),
			nil, nil, 401, "Negotiate", ""},
		"a 401 without challenge": {fixedAuthenticator(nil, &gateway.Error{Status: 401}), nil, nil, 401, `Bearer error="invalid_token"`, ""},
		"report only, good":       {tokens, &gateway.AuthOptions{ReportOnly: true}, bearer(edToken(nil)), 200, "", "user-1|X-User-Id=user-1"},
		"report only, bad":        {tokens, &gateway.AuthOptions{ReportOnly: true}, bearer("x"), 200, "", "|"},
		"report only, none":       {nobody, &gateway.AuthOptions{ReportOnly: true}, nil, 200, "", "|"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := askServer(t, gateway.Auth(tt.a, tt.opts)(caller), tt.header)
			if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != tt.challenge {
				t.Errorf("status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
			}
			if tt.status == 200 && body != tt.body {
				t.Errorf("body %q, want %q", body, tt.body)
			}
			if tt.status != 200 && (resp.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(body, "hunter2") || strings.Contains(body, "detail")) {
				t.Errorf("%s %q", resp.Header.Get("Content-Type"), body)
			}
		})
	}
}

func TestAuthSubject(t *testing.T) {
	for subject, ok := range map[string]bool{
		"user-1": true, "a b": true, "Jürgen": true, "auth0|5f7c8ec7": true, "日本": true,
		"": false, " a": false, "a ": false, "a\tb": false, "a\r\nX-Admin: 1": false, "a\nb": false, "a\x00": false,
		"a\x7f": false, "a\u0085b": false, "a\u00a0": false, "\u2003a": false, "a\xff": false,
	} {
		h := gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: subject}, nil), &gateway.AuthOptions{Optional: true})(caller)
		resp, _ := askServer(t, h, nil)
		if (resp.StatusCode == 200) != ok || !ok && resp.StatusCode != 401 {
			t.Errorf("subject %q: status %d", subject, resp.StatusCode)
		}
	}
}

func TestAuthRemovesForgedFields(t *testing.T) {
	forged := http.Header{
		"X-User-Id": {"admin"}, "X_user_id": {"admin"}, "x.user.id": {"admin"}, "xuserid": {"admin"},
		"X-USER_ID": {"admin"}, "X-User-Ids": {"kept"},
	}
	optional := &gateway.AuthOptions{Optional: true}
	for name, tt := range map[string]struct {
		a    gateway.Authenticator
		opts *gateway.AuthOptions
		want string
	}{
		"anonymous":     {fixedAuthenticator(nil, gateway.ErrNoCredentials), optional, "|X-User-Ids=kept"},
		"report only":   {fixedAuthenticator(nil, gateway.ErrUnauthenticated), &gateway.AuthOptions{ReportOnly: true}, "|X-User-Ids=kept"},
		"authenticated": {fixedAuthenticator(&gateway.Identity{Subject: "u"}, nil), nil, "u|X-User-Id=u"},
	} {
		t.Run(name, func(t *testing.T) {
			header := forged.Clone()
			if name == "authenticated" {
				delete(header, "X-User-Ids") // the order of two would be chance
			}
			outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				before := len(r.Header)
				gateway.Auth(tt.a, tt.opts)(caller).ServeHTTP(w, r)
				if len(r.Header) != before {
					t.Error("the header of what stands outside was changed")
				}
			})
			if _, body := askServer(t, outer, header); body != tt.want {
				t.Errorf("%q, want %q", body, tt.want)
			}
		})
	}
}

func TestAuthInsideAuth(t *testing.T) {
	outer := gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: "outer"}, nil), nil)
	anonymous := gateway.Auth(fixedAuthenticator(nil, gateway.ErrNoCredentials), &gateway.AuthOptions{Optional: true})
	inner := gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: "inner"}, nil), nil)
	for name, tt := range map[string]struct {
		mw   gateway.Middleware
		want string
	}{
		"the inner counts":               {gateway.Chain(outer, inner), "inner|X-User-Id=inner"},
		"unless it finds no credentials": {gateway.Chain(outer, anonymous), "outer|X-User-Id=outer"},
	} {
		if _, body := askServer(t, tt.mw(caller), nil); body != tt.want {
			t.Errorf("%s: %q", name, body)
		}
	}
}

func TestAuthReportOnlyLogs(t *testing.T) {
	log := captureDefaultLog(t)
	h := gateway.Auth(edJWT(nil), &gateway.AuthOptions{ReportOnly: true})(caller)
	r := httptest.NewRequest("GET", "/", nil)
	token := edToken(map[string]any{"iss": "https://evil.example", "name": "mallory"})
	r.Header.Set("Authorization", "Bearer "+token)
	h.ServeHTTP(httptest.NewRecorder(), r)
	line := log.String()
	for _, want := range []string{`"gateway: would refuse"`, "policy=auth", "status=401", "https://evil.example", "https://id.example"} {
		if !strings.Contains(line, want) {
			t.Errorf("the log lacks %s: %s", want, line)
		}
	}
	for _, secret := range []string{"mallory", token, strings.Split(token, ".")[1]} {
		if strings.Contains(line, secret) {
			t.Errorf("the log has %q of the token: %s", secret, line)
		}
	}
}

func TestAuthClientLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a := gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
		cancel()
		return nil, ctx.Err()
	})
	w := recorded(gateway.Auth(a, nil)(caller), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	if w.Code != 400 {
		t.Errorf("status %d", w.Code)
	}
}

func TestAuthPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"nil authenticator": func() { gateway.Auth(nil, nil) },
		"control in realm":  func() { gateway.Auth(edJWT(nil), &gateway.AuthOptions{Realm: "a\r\nb"}) },
		"realm, not ASCII":  func() { gateway.Auth(edJWT(nil), &gateway.AuthOptions{Realm: "ä"}) },
		"nameless cookie":   func() { gateway.CookieToken("") },
		"nameless header":   func() { gateway.HeaderToken("") },
		"header with colon": func() { gateway.HeaderToken("a:") },
	} {
		if v := panicOf(f); !strings.HasPrefix(v, "gateway: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}

func TestWithIdentity(t *testing.T) {
	ctx := gateway.WithIdentity(context.Background(), &gateway.Identity{Subject: "u"})
	if id, ok := gateway.IdentityFrom(ctx); !ok || id.Subject != "u" {
		t.Error("not found")
	}
	if _, ok := gateway.IdentityFrom(gateway.WithIdentity(ctx, nil)); ok {
		t.Error("nil is not anonymous")
	}
	if _, ok := gateway.IdentityFrom(context.Background()); ok {
		t.Error("found without a record")
	}
}

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
		"cannot decide": {[]string{"down"}, 503}, "own status": {[]string{"limited"}, 429}, "expired": {[]string{"expired"}, 401},
		"not its kind": {[]string{"none"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			// With Optional the status shows whether credentials were found.
			h := gateway.Auth(a, &gateway.AuthOptions{Optional: true})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, ok := gateway.IdentityFrom(r.Context()); !ok {
					w.WriteHeader(204)
				}
			}))
			resp, body := askServer(t, h, http.Header{"X-Api-Key": tt.values})
			if resp.StatusCode != tt.status || strings.Contains(body, "refused") {
				t.Errorf("status %d, %s", resp.StatusCode, body)
			}
		})
	}
}

func TestFirstOf(t *testing.T) {
	id := &gateway.Identity{Subject: "u"}
	none := fixedAuthenticator(nil, gateway.ErrNoCredentials)
	good := fixedAuthenticator(id, nil)
	bad := fixedAuthenticator(nil, gateway.ErrUnauthenticated)
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
		if v := panicOf(f); !strings.HasPrefix(v, "gateway: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
}

// certificate issues a certificate for name, signed by parent or, when that is nil, by itself.
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
