package gateway_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestJWTIdentity(t *testing.T) {
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	token := edToken(map[string]any{
		"exp": exp.Unix(), "aud": []string{"other", testAudience},
		"tenant": "t1", "big": json.Number("12345678901234567890"),
	})
	id, err := edJWT(nil).Verify(context.Background(), token)
	if err != nil {
		t.Fatal(err)
	}
	if id.Subject != "user-1" || id.Issuer != testIssuer || !id.Expiry.Equal(exp) ||
		!slices.Equal(id.Audience, []string{"other", testAudience}) || !slices.Equal(id.Scopes, []string{"read", "pay"}) {
		t.Errorf("identity %+v", id)
	}
	if id.Claims["tenant"] != "t1" || id.Claims["big"] != json.Number("12345678901234567890") {
		t.Errorf("claims %v", id.Claims)
	}
}

func TestJWTScopes(t *testing.T) {
	for name, tt := range map[string]struct {
		claims map[string]any
		want   []string
	}{
		"string":              {map[string]any{"scope": "a b"}, []string{"a", "b"}},
		"blanks":              {map[string]any{"scope": " a  b "}, []string{"a", "b"}},
		"list":                {map[string]any{"scope": []any{"a", 1, "b"}}, []string{"a", "b"}},
		"scp":                 {map[string]any{"scope": nil, "scp": []any{"a"}}, []string{"a"}},
		"scope before scp":    {map[string]any{"scope": "a", "scp": "b"}, []string{"a"}},
		"a blank in a scope":  {map[string]any{"scope": []any{"a b"}}, nil},
		"no-break space":      {map[string]any{"scope": "a\u00a0b"}, nil},
		"an object":           {map[string]any{"scope": map[string]any{"a": 1}}, nil},
		"none":                {map[string]any{"scope": nil}, nil},
		"other case of scope": {map[string]any{"scope": nil, "Scope": "admin"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := edJWT(nil).Verify(context.Background(), edToken(tt.claims))
			if err != nil || !slices.Equal(id.Scopes, tt.want) {
				t.Errorf("scopes %q, error %v, want %q", id.Scopes, err, tt.want)
			}
		})
	}
}

func TestJWTAlgorithms(t *testing.T) {
	ec384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	ec521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	keys := map[string]any{
		"RS256": testRSA(), "RS384": testRSA(), "RS512": testRSA(),
		"PS256": testRSA(), "PS384": testRSA(), "PS512": testRSA(),
		"ES256": testEC(), "ES384": ec384, "ES512": ec521, "EdDSA": testEd(),
		"HS256": testSecret[:32], "HS384": testSecret[:48], "HS512": testSecret[:64],
	}
	public := func(key any) any {
		if s, ok := key.(crypto.Signer); ok {
			return s.Public()
		}
		return key
	}
	for alg, key := range keys {
		token := sign(alg, key, nil, claimSet(nil))
		for name, other := range keys {
			j := gateway.NewJWT(gateway.StaticKey(public(other)), gateway.JWTOptions{
				Issuer: testIssuer, Audience: testAudience, Algorithms: slices.Collect(maps.Keys(keys)),
			})
			_, err := j.Verify(context.Background(), token)
			same := alg == name
			switch {
			case same && err != nil:
				t.Errorf("%s: %v", alg, err)
			case !same && err != nil && !errors.Is(err, gateway.ErrUnauthenticated):
				t.Errorf("%s with the key of %s: %v", alg, name, err)
			case !same && err == nil && !sharesKey(alg, name):
				t.Errorf("%s verified with the key of %s", alg, name)
			}
		}
	}
}

// sharesKey reports whether both algorithms are tested with the RSA key.
func sharesKey(a, b string) bool {
	return (a[0] == 'R' || a[0] == 'P') && (b[0] == 'R' || b[0] == 'P')
}

func TestJWTAllowList(t *testing.T) {
	j := gateway.NewJWT(gateway.StaticKey(&testRSA().PublicKey), gateway.JWTOptions{
		Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"RS256"},
	})
	if _, err := j.Verify(context.Background(), sign("RS256", testRSA(), nil, claimSet(nil))); err != nil {
		t.Error(err)
	}
	if _, err := j.Verify(context.Background(), sign("PS256", testRSA(), nil, claimSet(nil))); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("PS256 where RS256 alone is allowed: %v", err)
	}
}

func TestJWTTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		strict := edJWT(func(o *gateway.JWTOptions) { o.Leeway = -1 })
		lenient := edJWT(func(o *gateway.JWTOptions) { o.Leeway = 10 * time.Second })
		for name, tt := range map[string]struct {
			claims          map[string]any
			strict, lenient bool
		}{
			"valid":             {nil, true, true},
			"expires now":       {map[string]any{"exp": now}, false, true},
			"in a second":       {map[string]any{"exp": now + 1}, true, true},
			"long expired":      {map[string]any{"exp": now - 10}, false, false},
			"fraction":          {map[string]any{"exp": float64(now) + 0.5}, true, true},
			"no exp":            {map[string]any{"exp": nil}, false, false},
			"nbf now":           {map[string]any{"nbf": now}, true, true},
			"nbf ahead":         {map[string]any{"nbf": now + 5}, false, true},
			"nbf far ahead":     {map[string]any{"nbf": now + 11}, false, false},
			"iat ahead":         {map[string]any{"iat": now + 5}, false, true},
			"iat far ahead":     {map[string]any{"iat": now + 11}, false, false},
			"without iat":       {map[string]any{"iat": nil}, true, true},
			"nbf as a string":   {map[string]any{"nbf": "0"}, false, false},
			"exp beyond 9999":   {map[string]any{"exp": 253402300800}, false, false},
			"exp no float has":  {map[string]any{"exp": json.Number("1e400")}, false, false},
			"exp in the past e": {map[string]any{"exp": json.Number("1e3")}, false, false},
		} {
			token := edToken(tt.claims)
			if _, err := strict.Verify(t.Context(), token); (err == nil) != tt.strict {
				t.Errorf("%s, strict: %v", name, err)
			}
			if _, err := lenient.Verify(t.Context(), token); (err == nil) != tt.lenient {
				t.Errorf("%s, lenient: %v", name, err)
			}
		}
	})
}

func TestJWTType(t *testing.T) {
	for name, tt := range map[string]struct {
		want, typ string
		ok        bool
	}{
		"any":              {"", "whatever", true},
		"exact":            {"at+jwt", "at+jwt", true},
		"case":             {"at+jwt", "AT+JWT", true},
		"with application": {"at+jwt", "application/at+jwt", true},
		"asked with it":    {"application/at+jwt", "at+jwt", true},
		"an ID token":      {"at+jwt", "JWT", false},
		"missing":          {"at+jwt", "", false},
		"prefix alone":     {"at+jwt", "application/", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := map[string]any{"typ": tt.typ}
			if tt.typ == "" {
				h = nil
			}
			j := edJWT(func(o *gateway.JWTOptions) { o.Type = tt.want })
			_, err := j.Verify(context.Background(), sign("EdDSA", testEd(), h, claimSet(nil)))
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestJWTSources(t *testing.T) {
	token := edToken(nil)
	bearer := edJWT(nil)
	cookie := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.CookieToken("session") })
	header := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.HeaderToken("x-access-token") })
	none, bad := gateway.ErrNoCredentials, gateway.ErrUnauthenticated
	for name, tt := range map[string]struct {
		j      *gateway.JWT
		header http.Header
		want   error
	}{
		"bearer":               {bearer, http.Header{"Authorization": {"Bearer " + token}}, nil},
		"bearer, other case":   {bearer, http.Header{"Authorization": {"bEARER " + token}}, nil},
		"bearer, two spaces":   {bearer, http.Header{"Authorization": {"Bearer  " + token}}, nil},
		"nothing":              {bearer, http.Header{}, none},
		"empty":                {bearer, http.Header{"Authorization": {""}}, none},
		"Basic":                {bearer, http.Header{"Authorization": {"Basic dTpw"}}, none},
		"longer scheme":        {bearer, http.Header{"Authorization": {"BearerX " + token}}, none},
		"two fields":           {bearer, http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, bad},
		"Bearer beside Basic":  {bearer, http.Header{"Authorization": {"Basic dTpw", "Bearer " + token}}, bad},
		"scheme alone":         {bearer, http.Header{"Authorization": {"Bearer"}}, bad},
		"scheme and blank":     {bearer, http.Header{"Authorization": {"Bearer "}}, bad},
		"tab":                  {bearer, http.Header{"Authorization": {"Bearer\t" + token}}, bad},
		"blank after":          {bearer, http.Header{"Authorization": {"Bearer " + token + " "}}, bad},
		"two tokens":           {bearer, http.Header{"Authorization": {"Bearer " + token + " " + token}}, bad},
		"comma":                {bearer, http.Header{"Authorization": {"Bearer " + token + "," + token}}, bad},
		"cookie":               {cookie, http.Header{"Cookie": {"a=b; session=" + token}}, nil},
		"no cookie":            {cookie, http.Header{"Cookie": {"a=b"}}, none},
		"two cookies":          {cookie, http.Header{"Cookie": {"session=" + token + "; session=" + token}}, bad},
		"cookie, not bearer":   {cookie, http.Header{"Authorization": {"Bearer " + token}}, none},
		"header":               {header, http.Header{"X-Access-Token": {token}}, nil},
		"no header":            {header, http.Header{}, none},
		"two headers":          {header, http.Header{"X-Access-Token": {token, token}}, bad},
		"header with a scheme": {header, http.Header{"X-Access-Token": {"Bearer " + token}}, bad},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header = tt.header
			id, err := tt.j.Authenticate(r)
			if !errors.Is(err, tt.want) || (err == nil) != (id != nil) {
				t.Errorf("identity %v, error %v, want %v", id, err, tt.want)
			}
		})
	}
}

func TestJWTMaxBytes(t *testing.T) {
	token := edToken(nil)
	j := edJWT(func(o *gateway.JWTOptions) { o.MaxBytes = len(token) })
	if _, err := j.Verify(context.Background(), token); err != nil {
		t.Error(err)
	}
	j = edJWT(func(o *gateway.JWTOptions) { o.MaxBytes = len(token) - 1 })
	if _, err := j.Verify(context.Background(), token); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("a token one byte too long: %v", err)
	}
}

// TestJWTKid: a StaticKey serves every kid, up to a bound of its length.
func TestJWTKid(t *testing.T) {
	for n, ok := range map[int]bool{0: true, 1: true, 512: true, 513: false} {
		token := sign("EdDSA", testEd(), map[string]any{"kid": strings.Repeat("k", n)}, claimSet(nil))
		if _, err := edJWT(nil).Verify(context.Background(), token); (err == nil) != ok {
			t.Errorf("a kid of %d bytes: %v", n, err)
		}
	}
}

type keyFunc func(ctx context.Context, kid, alg string) (any, error)

func (f keyFunc) Key(ctx context.Context, kid, alg string) (any, error) { return f(ctx, kid, alg) }

func TestJWTKeySourceErrors(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tt := range map[string]struct {
		ctx    context.Context
		err    error
		status int
		is     error
	}{
		"no such key":   {context.Background(), gateway.ErrUnauthenticated, 401, gateway.ErrUnauthenticated},
		"own status":    {context.Background(), &gateway.Error{Status: 502}, 502, nil},
		"cannot decide": {context.Background(), errors.New("the vault is sealed"), 503, nil},
		"caller is off": {canceled, context.Canceled, 400, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			j := gateway.NewJWT(keyFunc(func(context.Context, string, string) (any, error) { return nil, tt.err }),
				gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}})
			_, err := j.Verify(tt.ctx, edToken(nil))
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v", err)
			}
			w := httptest.NewRecorder()
			gateway.WriteError(w, httptest.NewRequest("GET", "/", nil), err)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
		})
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

func TestNewJWTPanics(t *testing.T) {
	good := gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}}
	keys := gateway.StaticKey(testEd().Public())
	for name, o := range map[string]gateway.JWTOptions{
		"no issuer":           {Audience: testAudience, Algorithms: []string{"EdDSA"}},
		"no audience":         {Issuer: testIssuer, Algorithms: []string{"EdDSA"}},
		"no algorithms":       {Issuer: testIssuer, Audience: testAudience},
		"none":                {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA", "none"}},
		"unknown":             {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"rs256"}},
		"key of another kind": {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"RS256", "HS256"}},
		"two audiences":       {Issuer: testIssuer, Audience: testAudience, Audiences: []string{"a"}, Algorithms: []string{"EdDSA"}},
		"audience and none":   {Issuer: testIssuer, Audience: testAudience, NoAudience: true, Algorithms: []string{"EdDSA"}},
		"audiences and none":  {Issuer: testIssuer, Audiences: []string{"a"}, NoAudience: true, Algorithms: []string{"EdDSA"}},
		"an empty audience":   {Issuer: testIssuer, Audiences: []string{"a", ""}, Algorithms: []string{"EdDSA"}},
		"an empty subject":    {Issuer: testIssuer, Audience: testAudience, Subject: []string{""}, Algorithms: []string{"EdDSA"}},
		"negative cache":      {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, CacheBytes: -1},
		"negative proof age":  {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, DPoP: &gateway.DPoPOptions{MaxAge: -1}},
		"negative proofs":     {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, DPoP: &gateway.DPoPOptions{MaxSeen: -1}},
		"short nonce key":     {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, DPoP: &gateway.DPoPOptions{NonceKey: make([]byte, 31)}},
		"negative bound":      {Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}, MaxBytes: -1},
	} {
		if v := panicOf(func() { gateway.NewJWT(keys, o) }); !strings.HasPrefix(v, "gateway: NewJWT: ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
	if panicOf(func() { gateway.NewJWT(nil, good) }) == "" {
		t.Error("no panic without keys")
	}
	if v := panicOf(func() { gateway.NewJWT(keys, good) }); v != "" {
		t.Error(v)
	}
}

func TestStaticKeys(t *testing.T) {
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	for name, key := range map[string]any{
		"nil": nil, "short RSA": &weak.PublicKey, "short secret": make([]byte, 31), "P-224": &p224.PublicKey,
		"private": testRSA(), "by value": testRSA().PublicKey, "short Ed25519": ed25519.PublicKey{1},
		"nil RSA": (*rsa.PublicKey)(nil), "empty RSA": &rsa.PublicKey{}, "string": string(testSecret),
	} {
		if panicOf(func() { gateway.StaticKey(key) }) == "" {
			t.Errorf("StaticKey takes %s", name)
		}
		if panicOf(func() { gateway.StaticKeys(map[string]any{"a": key}) }) == "" {
			t.Errorf("StaticKeys takes %s", name)
		}
	}
	if panicOf(func() { gateway.StaticKeys(nil) }) == "" {
		t.Error("StaticKeys takes no keys")
	}

	secret := slices.Clone(testSecret)
	keys := gateway.StaticKeys(map[string]any{"h": secret, "e": testEd().Public()})
	clear(secret)
	for _, tt := range []struct {
		kid, alg string
		ok       bool
	}{
		{"h", "HS256", true}, {"h", "HS512", true}, {"e", "EdDSA", true},
		{"e", "HS256", false}, {"h", "EdDSA", false}, {"", "EdDSA", false}, {"x", "EdDSA", false}, {"h", "none", false},
	} {
		key, err := keys.Key(context.Background(), tt.kid, tt.alg)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("key %q for %s: %v", tt.kid, tt.alg, err)
		}
		if b, ok := key.([]byte); ok && b[0] == 0 {
			t.Error("the secret is the caller's, who changed it")
		}
	}
}
