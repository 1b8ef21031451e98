package gateway_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

type object = map[string]any

func TestJWTAudiences(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*gateway.JWTOptions)
		aud    any
		ok     bool
	}{
		"one":                      {func(o *gateway.JWTOptions) { o.Audience = "a" }, "a", true},
		"any of these":             {func(o *gateway.JWTOptions) { o.Audiences = []string{"a", "b"} }, "b", true},
		"any of these, in a list":  {func(o *gateway.JWTOptions) { o.Audiences = []string{"a", "b"} }, []string{"x", "a"}, true},
		"none of these":            {func(o *gateway.JWTOptions) { o.Audiences = []string{"a", "b"} }, []string{"x", "c"}, false},
		"both as one":              {func(o *gateway.JWTOptions) { o.Audiences = []string{"a", "b"} }, "a b", false},
		"missing":                  {func(o *gateway.JWTOptions) { o.Audiences = []string{"a"} }, nil, false},
		"NoAudience":               {func(o *gateway.JWTOptions) { o.NoAudience = true }, nil, true},
		"NoAudience, empty list":   {func(o *gateway.JWTOptions) { o.NoAudience = true }, []string{}, true},
		"NoAudience, but has one":  {func(o *gateway.JWTOptions) { o.NoAudience = true }, "a", false},
		"NoAudience, a number":     {func(o *gateway.JWTOptions) { o.NoAudience = true }, 1, false},
		"NoAudience, empty string": {func(o *gateway.JWTOptions) { o.NoAudience = true }, "", false},
	} {
		j := edJWT(func(o *gateway.JWTOptions) { o.Audience = ""; tt.change(o) })
		if _, err := j.Verify(t.Context(), edToken(object{"aud": tt.aud})); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJWTSubject(t *testing.T) {
	for name, tt := range map[string]struct {
		claims  []string
		changes object
		want    string
		refused bool
	}{
		"sub":                    {nil, nil, "user-1", false},
		"the first":              {[]string{"email", "sub"}, object{"email": "a@b"}, "a@b", false},
		"the second":             {[]string{"sub", "client_id"}, object{"sub": nil, "client_id": "machine"}, "machine", false},
		"the first if it is set": {[]string{"sub", "client_id"}, object{"client_id": "machine"}, "user-1", false},
		"an empty one":           {[]string{"email", "sub"}, object{"email": ""}, "user-1", false},
		"null":                   {[]string{"email", "sub"}, nil, "user-1", false},
		"a path":                 {[]string{"user.name"}, object{"user": object{"name": "n"}}, "n", false},
		"none of them":           {[]string{"email"}, nil, "", false},
		"a number":               {[]string{"uid", "sub"}, object{"uid": 7}, "", true},
		"a list":                 {[]string{"uid"}, object{"uid": []string{"a"}}, "", true},
	} {
		j := edJWT(func(o *gateway.JWTOptions) { o.Subject = tt.claims })
		id, err := j.Verify(t.Context(), edToken(tt.changes))
		if (err != nil) != tt.refused || err == nil && id.Subject != tt.want {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
	// Without a subject there is nobody.
	w := recorded(gateway.Auth(edJWT(func(o *gateway.JWTOptions) { o.Subject = []string{"email"} }), nil)(caller), withBearer(edToken(nil)))
	if w.Code != 401 {
		t.Errorf("status %d", w.Code)
	}
}

// TestJWTUse: ID tokens are refused unless IDTokens is set, and what is neither an access token nor an ID token always is.
func TestJWTUse(t *testing.T) {
	for name, tt := range map[string]struct {
		typ     string
		changes object
		access  bool // accepted by default
		id      bool // accepted with IDTokens
	}{
		"plain":                           {"JWT", nil, true, true},
		"nonce":                           {"JWT", object{"nonce": "n"}, false, true},
		"at_hash":                         {"JWT", object{"at_hash": "h"}, false, true},
		"c_hash":                          {"JWT", object{"c_hash": "h"}, false, true},
		"Keycloak's ID token":             {"JWT", object{"typ": "ID"}, false, true},
		"Cognito's ID token":              {"JWT", object{"token_use": "id"}, false, true},
		"Cognito's access token":          {"JWT", object{"token_use": "access"}, true, true},
		"Keycloak's old access token":     {"JWT", object{"typ": "Bearer", "nonce": "n"}, true, true},
		"RFC 9068 with a nonce":           {"at+jwt", object{"nonce": "n"}, true, true},
		"RFC 9068 with a hash":            {"at+jwt", object{"at_hash": "h"}, false, true},
		"called Bearer, with a hash":      {"JWT", object{"typ": "Bearer", "at_hash": "h"}, false, true},
		"Keycloak's refresh token":        {"JWT", object{"typ": "Refresh"}, false, false},
		"Keycloak's offline token":        {"JWT", object{"typ": "Offline"}, false, false},
		"a refresh token with a hash":     {"JWT", object{"token_use": "refresh", "at_hash": "h"}, false, false},
		"token_use refresh":               {"JWT", object{"token_use": "refresh"}, false, false},
		"refresh, though it is an at+jwt": {"at+jwt", object{"token_use": "refresh_token"}, false, false},
		"a logout token":                  {"logout+jwt", nil, false, false},
		"a logout token by its event":     {"JWT", object{"events": object{"http://schemas.openid.net/event/backchannel-logout": object{}}}, false, false},
		"a security event":                {"secevent+jwt", nil, false, false},
		"a DPoP proof":                    {"dpop+jwt", nil, false, false},
	} {
		token := sign("EdDSA", testEd(), object{"typ": tt.typ}, claimSet(tt.changes))
		for idTokens, want := range map[bool]bool{false: tt.access, true: tt.id} {
			_, err := edJWT(func(o *gateway.JWTOptions) { o.IDTokens = idTokens }).Verify(t.Context(), token)
			if (err == nil) != want || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
				t.Errorf("%s, IDTokens %v: %v", name, idTokens, err)
			}
		}
	}
}

// TestJWTNull: a claim that is null is absent.
func TestJWTNull(t *testing.T) {
	signed := func(c object) string {
		return signRaw("EdDSA", testEd(), []byte(`{"alg":"EdDSA","kid":null}`), mustJSON(c))
	}
	id, err := edJWT(nil).Verify(t.Context(), signed(claimSetWithNull("nbf", "iat", "scope", "scp", "nonce", "at_hash", "cnf", "typ", "token_use", "events", "sub")))
	if err != nil || id.Subject != "" || id.Scopes != nil {
		t.Errorf("%+v, %v", id, err)
	}
	for _, needed := range []string{"exp", "iss", "aud"} {
		if _, err := edJWT(nil).Verify(t.Context(), signed(claimSetWithNull(needed))); !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%s: %v", needed, err)
		}
	}
	if _, err := edJWT(func(o *gateway.JWTOptions) { o.Audience, o.NoAudience = "", true }).Verify(t.Context(), signed(claimSetWithNull("aud"))); err != nil {
		t.Errorf("NoAudience: %v", err)
	}
}

// TestJWTPSSSalt: a token with a signature whose salt is not as long as the hash is refused.
func TestJWTPSSSalt(t *testing.T) {
	j := gateway.NewJWT(gateway.StaticKey(&testRSA().PublicKey), gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"PS256"}})
	input := segment([]byte(`{"alg":"PS256"}`)) + "." + segment(mustJSON(claimSet(nil)))
	digest := sha256.Sum256([]byte(input))
	for salt, ok := range map[int]bool{32: true, 20: false, rsa.PSSSaltLengthAuto: false} {
		sig := must(rsa.SignPSS(rand.Reader, testRSA(), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: salt}))
		if _, err := j.Verify(t.Context(), input+"."+segment(sig)); (err == nil) != ok {
			t.Errorf("salt %d: %v", salt, err)
		}
	}
}

// TestJWTManyValues: the number of values in a token's claims is bounded.
func TestJWTManyValues(t *testing.T) {
	groups := func(n int) string { return edToken(object{"g": make([]struct{}, n)}) }
	if _, err := edJWT(nil).Verify(t.Context(), groups(2030)); err != nil {
		t.Error(err)
	}
	if _, err := edJWT(nil).Verify(t.Context(), groups(2050)); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("%v", err)
	}
	large := edJWT(func(o *gateway.JWTOptions) { o.MaxBytes = 64 << 10 })
	if _, err := large.Verify(t.Context(), groups(8000)); err != nil {
		t.Errorf("MaxBytes of 64 KiB: %v", err)
	}
}

// keycloakClaims returns claims of the shape and size of Keycloak's access tokens.
func keycloakClaims(i int) object {
	return object{
		"auth_time": time.Now().Unix(), "jti": fmt.Sprintf("onrtac:0c1b4b2e-6d7e-4d5e-9d9d-%012d", i), "typ": "Bearer", "azp": "web-app",
		"sub": fmt.Sprintf("f:0c1b4b2e-6d7e-4d5e-9d9d-1c1b4b2e6d7e:%06d", i), "sid": "0c1b4b2e-6d7e-4d5e-9d9d-1c1b4b2e6d7e", "acr": "1",
		"aud": []string{testAudience, "account"}, "allowed-origins": []string{"https://app.example"},
		"realm_access": object{"roles": []string{"offline_access", "uma_authorization", "default-roles-realm"}},
		"resource_access": object{
			"web-app": object{"roles": []string{"reader", "writer"}},
			"account": object{"roles": []string{"manage-account", "manage-account-links", "view-profile"}},
		},
		"scope": "openid profile email", "email_verified": true, "name": "Ada Lovelace", "preferred_username": fmt.Sprint("ada", i),
		"given_name": "Ada", "family_name": "Lovelace", "email": fmt.Sprintf("ada%d@example.org", i),
	}
}

// smallClaims returns claims of which n are so small that they take ten times their text: empty objects.
func smallClaims(n int) func(i int) object {
	return func(i int) object { return object{"sub": fmt.Sprintf("user-%06d", i), "g": make([]struct{}, n)} }
}

// TestCacheMemory holds the memory of a JWT's cache, with the default bounds and many tokens of three shapes, to the
// documented figures within a fifth: what one token takes, and CacheBytes.
func TestCacheMemory(t *testing.T) {
	settle(t)
	for name, tt := range map[string]struct {
		claims func(i int) object
		tokens int
		want   int64 // bytes
	}{
		"plain":             {func(i int) object { return object{"sub": fmt.Sprintf("user-%06d", i)} }, 15_000, 10_000 * 1200},
		"few from Keycloak": {keycloakClaims, 2000, 2000 * 5800},
		"Keycloak":          {keycloakClaims, 8000, 32 << 20},
		"many small claims": {smallClaims(150), 5000, 32 << 20},
		"very many":         {smallClaims(1800), 800, 32 << 20},
	} {
		j := gateway.NewJWT(gateway.StaticKey(testSecret), gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"HS256"}})
		before := heapInUse()
		length := 0
		for i := range tt.tokens {
			token := sign("HS256", testSecret, object{"typ": "JWT", "kid": "k"}, claimSet(tt.claims(i)))
			length = len(token)
			must(j.Verify(t.Context(), token))
		}
		got := heapInUse() - before
		runtime.KeepAlive(j)
		if got > tt.want*6/5 || got < tt.want*4/5 && name != "very many" { // of those, one fits into each shard, or none
			t.Errorf("%s: %d tokens of %d bytes take %d bytes, documented are %d", name, tt.tokens, length, got, tt.want)
		} else {
			t.Logf("%s: %d tokens of %d bytes take %d bytes, documented are %d", name, tt.tokens, length, got, tt.want)
		}
	}
}

// TestIntrospectionMemory does the same for the answers of an introspection endpoint.
func TestIntrospectionMemory(t *testing.T) {
	settle(t)
	for name, tt := range map[string]struct {
		answer string
		tokens int
		want   int64
	}{
		"plain":             {`"scope":"read pay","client_id":"web","username":"ada","exp":99999999999`, 15_000, 10_000 * 1000},
		"many small claims": {`"g":[` + strings.Repeat("{},", 150) + `{}]`, 5000, 32 << 20},
		"a long one":        {`"g":"` + strings.Repeat("g", 6000) + `"`, 8000, 32 << 20},
	} {
		in := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, `{"active":true,"sub":"u",`+tt.answer+`}`, nil), nil
		})
		before := heapInUse()
		for i := range tt.tokens {
			must(in.Authenticate(withBearer(fmt.Sprintf("an-opaque-token-of-forty-characters-%06d", i))))
		}
		got := heapInUse() - before
		runtime.KeepAlive(in)
		if got > tt.want*6/5 || got < tt.want*4/5 {
			t.Errorf("%s: %d bytes are kept, documented are %d", name, got, tt.want)
		} else {
			t.Logf("%s: %d bytes are kept, documented are %d", name, got, tt.want)
		}
	}
}

// TestFirstOfJWTAndOpaque: JSON Web Tokens and opaque tokens on one field.
func TestFirstOfJWTAndOpaque(t *testing.T) {
	var asked []string
	in := introspect(gateway.IntrospectionOptions{}, func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.PostFormValue("token"))
		return answeredText(r, 200, fmt.Sprintf(`{"active":%v,"sub":"opaque"}`, strings.HasPrefix(asked[len(asked)-1], "good")), nil), nil
	})
	token := edToken(nil)
	jwe := "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.OKOawDo.48V1_ALb6US04U3b.5eym8TW_c8SuK0lt.XFBoMYUZodetZdvT"
	issuers := gateway.Issuers(map[string]*gateway.JWT{testIssuer: edJWT(nil)})
	for _, first := range []gateway.Authenticator{edJWT(nil), issuers} {
		a := gateway.FirstOf(first, in)
		for name, tt := range map[string]struct {
			token string
			want  string // subject; "" for a refusal
			asks  bool
		}{
			"a JWT":                      {token, "user-1", false},
			"an opaque token":            {"good-token", "opaque", true},
			"an opaque one with dots":    {"good.token.x", "opaque", true},
			"an opaque one, not active":  {"bad-token", "", true},
			"an encrypted token":         {jwe, "", true},
			"an expired JWT":             {edToken(object{"exp": 1}), "", false},
			"a JWT of another issuer":    {edToken(object{"iss": "https://evil.example"}), "", false},
			"a JWT with a bad signature": {token[:len(token)-6] + "AAAAAA", "", false},
			"a JWT with alg none":        {segment([]byte(`{"alg":"none"}`)) + "." + segment(mustJSON(claimSet(nil))) + ".AA", "", false},
		} {
			asked = nil
			id, err := a.Authenticate(withBearer(tt.token))
			if (err == nil) != (tt.want != "") || err == nil && id.Subject != tt.want {
				t.Errorf("%T, %s: %v, %v, asked %q", first, name, id, err, asked)
			}
			if err != nil && (!errors.Is(err, gateway.ErrUnauthenticated) || errors.Is(err, gateway.ErrNoCredentials)) {
				t.Errorf("%s: %v", name, err)
			}
			if !tt.asks && len(asked) > 0 {
				t.Errorf("%s: the endpoint was asked about %q", name, asked)
			}
		}
	}

	// Without a second, what no JWT is remains bad credentials, also where they are optional.
	for _, a := range []gateway.Authenticator{edJWT(nil), gateway.FirstOf(edJWT(nil)), gateway.FirstOf(edJWT(nil), fixedAuthenticator(nil, gateway.ErrNoCredentials)), issuers} {
		_, err := a.Authenticate(withBearer("opaque"))
		if !errors.Is(err, gateway.ErrNoCredentials) || !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%T: %v", a, err)
		}
		w := recorded(gateway.Auth(a, &gateway.AuthOptions{Optional: true})(caller), withBearer("opaque"))
		if w.Code != 401 || w.Header().Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
			t.Errorf("%T: %d %s", a, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
	two := withBearer("")
	two.Header = http.Header{"Cookie": {"s=" + token + "; s=" + token}}
	cookie := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.CookieToken("s") })
	if _, err := gateway.FirstOf(cookie, fixedAuthenticator(&gateway.Identity{Subject: "u"}, nil)).Authenticate(two); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("two cookies: %v", err)
	}
}

// TestIdentityLargestNumbers: the largest number works as "no limit" in the options that are limits.
func TestIdentityLargestNumbers(t *testing.T) {
	const most, forever = math.MaxInt64, time.Duration(math.MaxInt64)
	proof := gateway.DPoPOptions{MaxAge: forever, MaxSeen: most}
	j := edJWT(func(o *gateway.JWTOptions) {
		o.Leeway, o.CacheSize, o.CacheBytes, o.MaxBytes, o.DPoP = forever, most, most, most, &proof
	})
	in := introspect(gateway.IntrospectionOptions{MaxInFlight: most, CacheFor: forever, CacheSize: most, CacheBytes: most, DPoP: &proof},
		func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, fmt.Sprintf(`{"active":true,"sub":"u","cnf":{"jkt":"%s"}}`, jktOf(&proofKey().PublicKey)), nil), nil
		})
	token := boundToken(nil)
	for name, a := range map[string]gateway.Authenticator{"JWT": j, "Introspection": in} {
		h := gateway.Auth(a, &gateway.AuthOptions{UpgradeGrace: forever})(caller)
		r := proven(token, proofFor(token, nil, nil))
		for _, want := range []int{200, 401} { // the second time, the proof is used
			if w := recorded(h, r); w.Code != want {
				t.Errorf("%s: %d %s", name, w.Code, w.Header().Get("WWW-Authenticate"))
			}
		}
		if w := recorded(h, proven(token, proofFor(token, nil, map[string]any{"iat": 1}))); w.Code != 200 {
			t.Errorf("%s, an old proof: %d %s", name, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
	if _, err := gateway.NewJWKS("https://id.example", &gateway.JWKSOptions{MaxAge: forever, MinInterval: forever}); err != nil {
		t.Error(err)
	}
}
