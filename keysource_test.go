package gateway_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func newEd() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return must(key, err)
}

func withoutKid(m map[string]any) map[string]any { delete(m, "kid"); return m }

// TestOddKeySets: tokens are verified with the key that signed them, whatever else is in the set.
func TestOddKeySets(t *testing.T) {
	other := newEd()
	odd := `{"kid":"odd","kty":"OKP","crv":"Ed25519","x":"AQ","kid":"odd","deep":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `,"s":"\ud800"}`
	one, two := string(mustJSON(jwk("k", other.Public(), nil))), string(mustJSON(jwk("k", edPublic(), nil)))
	bare, bareOther := string(mustJSON(withoutKid(jwk("", edPublic(), nil)))), string(mustJSON(withoutKid(jwk("", other.Public(), nil))))
	rsaKey := string(mustJSON(jwk("r", &testRSA().PublicKey, nil)))
	for name, tt := range map[string]struct {
		set string
		kid any
		ok  bool
	}{
		"an odd key before it":                  {odd + "," + two, "k", true},
		"an odd key after it":                   {two + "," + odd, "k", true},
		"clashing kids, the first":              {two + "," + one, "k", true},
		"clashing kids, the second":             {one + "," + two, "k", true},
		"clashing kids, neither":                {one + "," + one, "k", false},
		"the fourth":                            {one + "," + one + "," + one + "," + two, "k", true},
		"the fifth is one too many":             {one + "," + one + "," + one + "," + one + "," + two, "k", false},
		"keys without a kid, an unknown kid":    {bareOther + "," + bare + "," + rsaKey, "x", true},
		"keys without a kid, none in the token": {bareOther + "," + bare, nil, true},
		"a key with a kid fits, too":            {bare + "," + one, "x", false},
		"null members":                          {strings.Replace(two, `{`, `{"alg":null,"use":null,"key_ops":null,"d":null,`, 1), "k", true},
	} {
		set := `{"keys":[` + tt.set + `]}`
		header := map[string]any{"kid": tt.kid}
		if tt.kid == nil {
			header = nil
		}
		token := sign("EdDSA", testEd(), header, claimSet(nil))
		fetched := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) { return answeredText(r, 200, set, nil), nil })
		for _, keys := range []gateway.KeySource{must(gateway.ParseJWKS([]byte(set))), fetched} {
			j := newJWT(keys, nil)
			for range 2 { // the second time from the cache
				if _, err := j.Verify(t.Context(), token); (err == nil) != tt.ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
					t.Errorf("%s, %T: %v", name, keys, err)
				}
			}
		}
	}
}

func TestParseJWKS(t *testing.T) {
	keys := must(gateway.ParseJWKS([]byte(keySet(jwk("a", edPublic(), nil), jwk("s", testSecret, nil)))))
	for kid, ok := range map[string]bool{"a": true, "": true, "b": false, "s": false} {
		if _, err := keys.Key(t.Context(), kid, "EdDSA"); (err == nil) != ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("kid %q: %v", kid, err)
		}
	}
	if _, err := keys.Key(t.Context(), "s", "HS256"); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("a symmetric key: %v", err)
	}
	for name, text := range map[string]string{"nothing": "", "no set": "[]", "empty": `{"keys":[]}`, "secrets": keySet(jwk("s", testSecret, nil)), "private": keySet(jwk("a", edPublic(), map[string]any{"d": "AQ"}))} {
		if k, err := gateway.ParseJWKS([]byte(text)); err == nil || k != nil || !strings.HasPrefix(err.Error(), "gateway: ParseJWKS: ") {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if v := panicOf(func() {
		gateway.NewJWT(keys, gateway.JWTOptions{Issuer: "i", Audience: "a", Algorithms: []string{"RS256"}})
	}); v == "" {
		t.Error("no panic where no key fits the algorithms")
	}
}

// TestJWKSIdle: a key that was withdrawn while nobody asked does not pass. The first requests wait for a refresh, and those
// after it do not.
func TestJWKSIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set atomic.Value
		set.Store(keySet(jwk("k", edPublic(), nil)))
		var fetches atomic.Int64
		hang := make(chan struct{})
		var hung atomic.Bool
		k := jwksOver(t, gateway.JWKSOptions{MaxAge: time.Minute}, func(r *http.Request) (*http.Response, error) {
			fetches.Add(1)
			if hung.Load() {
				select {
				case <-hang:
				case <-r.Context().Done():
					return nil, r.Context().Err()
				}
			}
			time.Sleep(time.Second)
			return answeredText(r, 200, set.Load().(string), nil), nil
		})
		j := newJWT(k, nil)
		token := sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(nil))
		verify := func(want error, took time.Duration) {
			t.Helper()
			start := time.Now()
			if _, err := j.Verify(t.Context(), token); !errors.Is(err, want) || time.Since(start) != took {
				t.Errorf("%v after %v, want %v after %v", err, time.Since(start), want, took)
			}
		}
		verify(nil, time.Second)
		time.Sleep(100 * time.Second) // older than MaxAge, and not than twice of it
		verify(nil, 0)
		time.Sleep(time.Minute)
		verify(nil, 0)
		synctest.Wait()

		set.Store(keySet(jwk("new", edPublic(), nil)))
		time.Sleep(3 * time.Minute)
		before := fetches.Load()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { verify(gateway.ErrUnauthenticated, time.Second) })
		}
		wg.Wait()
		if n := fetches.Load() - before; n != 1 {
			t.Errorf("%d fetches", n)
		}

		// While the provider hangs, one refresh is waited for, and then the last good set serves at once.
		set.Store(keySet(jwk("k", edPublic(), nil)))
		time.Sleep(11 * time.Second)
		verify(nil, time.Second)
		hung.Store(true)
		time.Sleep(3 * time.Minute)
		verify(nil, 5*time.Second)
		for range 10 {
			time.Sleep(20 * time.Second)
			verify(nil, 0)
		}
		hung.Store(false)
		time.Sleep(time.Minute)
	})
}

// TestJWKSIdleWaitEndsWithContext: the wait for a refresh ends with the request.
func TestJWKSIdleWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		k := jwksOver(t, gateway.JWKSOptions{MaxAge: time.Minute}, func(r *http.Request) (*http.Response, error) {
			if slow.Load() {
				time.Sleep(3 * time.Second)
			}
			return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
		})
		_, _ = k.Key(t.Context(), "k", "EdDSA")
		slow.Store(true)
		time.Sleep(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Key(ctx, "k", "EdDSA"); !errors.Is(err, ctx.Err()) || err == nil {
			t.Errorf("%v", err)
		}
		time.Sleep(10 * time.Second)
	})
}

// TestOIDCOptions has a provider inside a network: by another URL, over plain http, with a client of its own.
func TestOIDCOptions(t *testing.T) {
	const issuer = "https://id.example/realms/r"
	var asked []string
	provider := func(jwksURI string) *http.Client {
		return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.String())
			if strings.HasSuffix(r.URL.Path, "/keys") {
				return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
			}
			return answeredText(r, 200, `{"issuer":"`+issuer+`","jwks_uri":"`+jwksURI+`"}`, nil), nil
		})}
	}
	for name, tt := range map[string]struct {
		discovery, jwksURI string
		http               bool
		ok                 bool
	}{
		"the usual place":                      {"", "https://id.example/keys", false, true},
		"elsewhere":                            {"https://keycloak.internal/config", "https://keycloak.internal/keys", false, true},
		"plain http":                           {"http://keycloak:8080/config", "http://keycloak:8080/keys", false, false},
		"plain http, allowed":                  {"http://keycloak:8080/config", "http://keycloak:8080/keys", true, true},
		"plain keys":                           {"", "http://keycloak:8080/keys", false, false},
		"plain keys, allowed":                  {"", "http://keycloak:8080/keys", true, true},
		"document on loopback, keys elsewhere": {"http://127.0.0.1/config", "http://keycloak:8080/keys", false, false},
		"malformed":                            {"://", "https://id.example/keys", false, false},
		"another scheme":                       {"file:///etc/passwd", "https://id.example/keys", true, false},
		"keys of another scheme":               {"", "file:///etc/passwd", true, false},
	} {
		asked = nil
		j, err := gateway.NewOIDC(t.Context(), issuer, gateway.OIDCOptions{
			JWT:       gateway.JWTOptions{Audience: testAudience, Algorithms: []string{"EdDSA"}},
			Keys:      gateway.JWKSOptions{Client: provider(tt.jwksURI), AllowHTTP: tt.http},
			Discovery: tt.discovery,
		})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if _, err := j.Verify(t.Context(), sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(map[string]any{"iss": issuer}))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := tt.discovery
		if want == "" {
			want = issuer + "/.well-known/openid-configuration"
		}
		if fmt.Sprint(asked) != fmt.Sprint([]string{want, tt.jwksURI}) {
			t.Errorf("%s: asked for %s", name, asked)
		}
	}
	good := gateway.OIDCOptions{JWT: gateway.JWTOptions{Audience: testAudience, Algorithms: []string{"EdDSA"}}, Keys: gateway.JWKSOptions{Client: provider("https://id.example/keys")}}
	for _, late := range []bool{false, true} {
		good.Late = late
		for _, bad := range []string{"", "id.example", "://", "https://", "ftp://id.example", "http://id.example", "https://id.example?a", "https://id.example#a", "https://u:p@id.example"} {
			if _, err := gateway.NewOIDC(t.Context(), bad, good); err == nil || !strings.HasPrefix(err.Error(), "gateway: NewOIDC: ") {
				t.Errorf("issuer %q, late %v: %v", bad, late, err)
			}
		}
	}
	negative := good
	negative.Keys.MinInterval = -1
	if _, err := gateway.NewOIDC(t.Context(), issuer, negative); err == nil {
		t.Error("a negative option is taken")
	}
}

// TestOIDCLate: a provider that is away at the start is asked again on requests, which get 503 until it answers.
func TestOIDCLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state, asked := "away", 0
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			switch {
			case state == "panics":
				panic("transport")
			case state == "away":
				return nil, errors.New("connection refused")
			case state == "starting":
				return answeredText(r, 404, "", nil), nil
			case strings.HasSuffix(r.URL.Path, "/keys"):
				return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
			case state == "another":
				return answeredText(r, 200, `{"issuer":"https://evil.example","jwks_uri":"https://id.example/keys"}`, nil), nil
			}
			return answeredText(r, 200, `{"issuer":"`+testIssuer+`","jwks_uri":"https://id.example/keys"}`, nil), nil
		})}
		opts := gateway.OIDCOptions{
			JWT:  gateway.JWTOptions{Audience: testAudience, Algorithms: []string{"EdDSA"}},
			Keys: gateway.JWKSOptions{Client: client},
		}
		if _, err := gateway.NewOIDC(t.Context(), testIssuer, opts); err == nil {
			t.Error("not late: no error")
		}
		opts.Late = true
		state = "another"
		if _, err := gateway.NewOIDC(t.Context(), testIssuer, opts); err == nil {
			t.Error("the document of another issuer is taken, late")
		}
		state = "away"
		j, err := gateway.NewOIDC(t.Context(), testIssuer, opts)
		if err != nil {
			t.Fatal(err)
		}
		token := sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(nil))
		verify := func(want int) {
			t.Helper()
			if w := recorded(gateway.Auth(j, nil)(caller), withBearer(token)); w.Code != want || want == 503 && w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: %d, want %d", state, w.Code, want)
			}
		}
		for _, now := range []string{"away", "starting", "panics", "another"} {
			state, asked = now, 0
			time.Sleep(11 * time.Second)
			for range 5 {
				verify(503)
			}
			if asked != 1 {
				t.Errorf("%s: asked %d times", state, asked)
			}
		}
		state, asked = "there", 0
		time.Sleep(11 * time.Second)
		for range 3 {
			verify(200)
		}
		if asked != 2 {
			t.Errorf("asked %d times for the document and the keys", asked)
		}
	})
}

// TestNewOIDCWithoutIssuer: an empty issuer is an error, as from an environment variable that is not set.
func TestNewOIDCWithoutIssuer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") }))
	defer s.Close()
	if _, err := gateway.NewOIDC(t.Context(), "", gateway.OIDCOptions{JWT: gateway.JWTOptions{Audience: "a", Algorithms: []string{"RS256"}}}); err == nil {
		t.Error("no error")
	}
}
