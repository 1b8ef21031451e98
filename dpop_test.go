package gateway_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// proofKey is the key of a client that sends DPoP proofs, and jkt its thumbprint.
var proofKey = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })

// jktOf returns the thumbprint of a P-256 key (RFC 7638 section 3).
func jktOf(key *ecdsa.PublicKey) string {
	m := jwk("", key, nil)
	text := fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, m["x"], m["y"])
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// boundToken returns a token that is bound to proofKey.
func boundToken(changes map[string]any) string {
	c := map[string]any{"cnf": map[string]any{"jkt": jktOf(&proofKey().PublicKey)}}
	maps.Copy(c, changes)
	return edToken(c)
}

// athOf returns the hash of a token for a proof.
func athOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// proofParts returns header and claims of a good proof for GET http://example.com/notes with token.
func proofParts(token string) (header, claims map[string]any) {
	public := jwk("", &proofKey().PublicKey, nil)
	delete(public, "kid")
	return map[string]any{"typ": "dpop+jwt", "jwk": public}, map[string]any{
		"jti": rand.Text(), "htm": "GET", "htu": "http://example.com/notes", "iat": time.Now().Unix(), "ath": athOf(token),
	}
}

// proofFor returns a proof for token with changes. A nil value removes a member.
func proofFor(token string, header, claims map[string]any) string {
	h, c := proofParts(token)
	for to, changes := range map[*map[string]any]map[string]any{&h: header, &c: claims} {
		for name, v := range changes {
			if (*to)[name] = v; v == nil {
				delete(*to, name)
			}
		}
	}
	return sign("ES256", proofKey(), h, c)
}

// proven returns a request with token under the scheme DPoP, and proofs.
func proven(token string, proofs ...string) *http.Request {
	r := httptest.NewRequest("GET", "http://example.com/notes?page=2", nil)
	r.RequestURI = "/notes?page=2"
	r.Header.Set("Authorization", "DPoP "+token)
	if len(proofs) > 0 {
		r.Header["Dpop"] = proofs
	}
	return r
}

func dpopJWT(o gateway.DPoPOptions) *gateway.JWT {
	return edJWT(func(j *gateway.JWTOptions) { j.DPoP = &o })
}

// TestDPoPVectors verifies the proof of RFC 9449 section 7.1, at its time. Its token is opaque, and bound to the key of
// section 6.1.
func TestDPoPVectors(t *testing.T) {
	const (
		token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
		proof = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19" +
			".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9" +
			".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
		thumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Unix(1562262618, 0)))
		in := introspect(gateway.IntrospectionOptions{DPoP: &gateway.DPoPOptions{}}, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, `{"active":true,"sub":"u","cnf":{"jkt":"`+thumbprint+`"}}`, nil), nil
		})
		r := httptest.NewRequest("GET", "https://resource.example.org/protectedresource", nil)
		r.Header.Set("Authorization", "DPoP "+token)
		r.Header.Set("DPoP", proof)
		for i, ok := range []bool{true, false} {
			if id, err := in.Authenticate(r); (err == nil) != ok || ok && id.Subject != "u" {
				t.Errorf("request %d: %v, %v", i, id, err)
			}
		}
		time.Sleep(time.Minute + time.Nanosecond)
		if _, err := in.Authenticate(r); !errors.Is(err, gateway.ErrUnauthenticated) || !strings.Contains(err.Error(), "too old") {
			t.Errorf("%v", err)
		}
	})
}

func TestDPoPAccepted(t *testing.T) {
	token := boundToken(nil)
	j := dpopJWT(gateway.DPoPOptions{})
	for name, r := range map[string]*http.Request{
		"plain":               proven(token, proofFor(token, nil, nil)),
		"typ in full":         proven(token, proofFor(token, map[string]any{"typ": "application/dpop+jwt"}, nil)),
		"query in htu":        proven(token, proofFor(token, nil, map[string]any{"htu": "http://example.com/notes?a=b"})),
		"fragment in htu":     proven(token, proofFor(token, nil, map[string]any{"htu": "http://example.com/notes#a"})),
		"capitals in host":    proven(token, proofFor(token, nil, map[string]any{"htu": "HTTP://EXAMPLE.com/notes"})),
		"default port":        proven(token, proofFor(token, nil, map[string]any{"htu": "http://example.com:80/notes"})),
		"escapes":             proven(token, proofFor(token, nil, map[string]any{"htu": "http://example.com/%6eotes"})),
		"iat a fraction":      proven(token, proofFor(token, nil, map[string]any{"iat": float64(time.Now().UnixMilli()) / 1000})),
		"a little ahead":      proven(token, proofFor(token, nil, map[string]any{"iat": time.Now().Unix() + 20})),
		"a little old":        proven(token, proofFor(token, nil, map[string]any{"iat": time.Now().Unix() - 50})),
		"a nonce not asked":   proven(token, proofFor(token, nil, map[string]any{"nonce": "n"})),
		"d null":              proven(token, proofFor(token, map[string]any{"jwk": jwk("k", &proofKey().PublicKey, map[string]any{"d": nil})}, nil)),
		"an unbound token":    withBearer(edToken(nil)),
		"a kid in the header": proven(token, proofFor(token, map[string]any{"kid": "any"}, nil)),
	} {
		if id, err := j.Authenticate(r); err != nil || id.Subject != "user-1" {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
	lower := proven(token, proofFor(token, nil, nil))
	lower.Header.Set("Authorization", "dpop  "+token)
	if _, err := j.Authenticate(lower); err != nil {
		t.Errorf("scheme in small letters: %v", err)
	}
}

// TestDPoPKeys: a proof may be signed with any asymmetric algorithm.
func TestDPoPKeys(t *testing.T) {
	for alg, key := range map[string]any{"ES256": proofKey(), "RS256": testRSA(), "PS256": testRSA(), "EdDSA": testEd()} {
		var public map[string]any
		var canonical string
		switch k := key.(type) {
		case *ecdsa.PrivateKey:
			public = jwk("", &k.PublicKey, nil)
			canonical = fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, public["x"], public["y"])
		case *rsa.PrivateKey:
			public = jwk("", &k.PublicKey, nil)
			canonical = fmt.Sprintf(`{"e":"%s","kty":"RSA","n":"%s"}`, public["e"], public["n"])
		case ed25519.PrivateKey:
			public = jwk("", k.Public(), nil)
			canonical = fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":"%s"}`, public["x"])
		}
		delete(public, "kid")
		sum := sha256.Sum256([]byte(canonical))
		token := edToken(map[string]any{"cnf": map[string]any{"jkt": segment(sum[:])}})
		_, claims := proofParts(token)
		proof := sign(alg, key, map[string]any{"typ": "dpop+jwt", "jwk": public}, claims)
		if _, err := dpopJWT(gateway.DPoPOptions{}).Authenticate(proven(token, proof)); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// hostileProofs are requests whose token is good, and whose proof is not, or the other way round.
func hostileProofs() map[string]*http.Request {
	type object = map[string]any
	token := boundToken(nil)
	good := proofFor(token, nil, nil)
	h, c := proofParts(token)
	payload := must(json.Marshal(c))
	evil := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	evilJWK := jwk("", &evil.PublicKey, nil)
	public := h["jwk"].(object)
	withJWK := func(members object) object {
		m := maps.Clone(public)
		maps.Copy(m, members)
		return object{"jwk": m}
	}
	headed := func(header object) string {
		return segment(must(json.Marshal(header))) + "." + segment(payload) + "."
	}
	now := time.Now().Unix()
	claim := func(changes object) *http.Request { return proven(token, proofFor(token, nil, changes)) }
	head := func(changes object) *http.Request { return proven(token, proofFor(token, changes, nil)) }
	m := map[string]*http.Request{
		"no proof":                        proven(token),
		"an empty proof":                  proven(token, ""),
		"two fields":                      proven(token, good, proofFor(token, nil, nil)),
		"two proofs in one field":         proven(token, good+","+good),
		"the token as its own proof":      proven(token, token),
		"alg none":                        proven(token, headed(object{"typ": "dpop+jwt", "alg": "none", "jwk": public})),
		"alg none with a signature":       proven(token, headed(object{"typ": "dpop+jwt", "alg": "none", "jwk": public})+good[strings.LastIndex(good, ".")+1:]),
		"HS256 with the public key":       proven(token, sign("HS256", must(json.Marshal(public)), object{"typ": "dpop+jwt", "jwk": public}, c)),
		"HS256 with an oct key":           proven(token, sign("HS256", testSecret, object{"typ": "dpop+jwt", "jwk": jwk("", testSecret, nil)}, c)),
		"jwk with d":                      head(withJWK(object{"d": segment(must(proofKey().Bytes()))})),
		"jwk with an empty d":             head(withJWK(object{"d": ""})),
		"jwk with k":                      head(withJWK(object{"k": "AAAA"})),
		"jwk missing":                     head(object{"jwk": nil}),
		"jwk a string":                    head(object{"jwk": "key"}),
		"jwk twice":                       proven(token, signRaw("ES256", proofKey(), []byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+string(must(json.Marshal(public)))+`,"jwk":`+string(must(json.Marshal(evilJWK)))+`}`), payload)),
		"jwk of another, its signature":   proven(token, sign("ES256", evil, object{"typ": "dpop+jwt", "jwk": evilJWK}, c)),
		"jwk of the token, another's":     proven(token, sign("ES256", evil, object{"typ": "dpop+jwt", "jwk": public}, c)),
		"typ missing":                     head(object{"typ": nil}),
		"typ JWT":                         head(object{"typ": "JWT"}),
		"crit":                            head(object{"crit": []string{"x"}, "x": 1}),
		"htm missing":                     claim(object{"htm": nil}),
		"htm of another method":           claim(object{"htm": "POST"}),
		"htm in small letters":            claim(object{"htm": "get"}),
		"htm a list":                      claim(object{"htm": []string{"GET"}}),
		"htu missing":                     claim(object{"htu": nil}),
		"htu of another host":             claim(object{"htu": "http://evil.example/notes"}),
		"htu of another path":             claim(object{"htu": "http://example.com/other"}),
		"htu with a slash":                claim(object{"htu": "http://example.com/notes/"}),
		"htu of another scheme":           claim(object{"htu": "https://example.com/notes"}),
		"htu of another port":             claim(object{"htu": "http://example.com:8080/notes"}),
		"htu without a host":              claim(object{"htu": "/notes"}),
		"htu with a user":                 claim(object{"htu": "http://u@example.com/notes"}),
		"htu with dots":                   claim(object{"htu": "http://example.com/a/../notes"}),
		"htu a number":                    claim(object{"htu": 1}),
		"iat missing":                     claim(object{"iat": nil}),
		"iat a string":                    claim(object{"iat": fmt.Sprint(now)}),
		"iat old":                         claim(object{"iat": now - 62}),
		"iat of long ago":                 claim(object{"iat": 0}),
		"iat in the future":               claim(object{"iat": now + 40}),
		"iat huge":                        claim(object{"iat": json.Number("1e300")}),
		"jti missing":                     claim(object{"jti": nil}),
		"jti empty":                       claim(object{"jti": ""}),
		"jti a number":                    claim(object{"jti": 1}),
		"jti huge":                        claim(object{"jti": strings.Repeat("j", 1000)}),
		"ath missing":                     claim(object{"ath": nil}),
		"ath of another token":            claim(object{"ath": athOf("other")}),
		"ath padded":                      claim(object{"ath": athOf(token) + "="}),
		"claims twice":                    proven(token, signRaw("ES256", proofKey(), must(json.Marshal(object{"alg": "ES256", "typ": "dpop+jwt", "jwk": public})), []byte(strings.Replace(string(payload), `"htm":"GET"`, `"htm":"POST","htm":"GET"`, 1)))),
		"claims a list":                   proven(token, signRaw("ES256", proofKey(), must(json.Marshal(object{"alg": "ES256", "typ": "dpop+jwt", "jwk": public})), []byte(`[]`))),
		"a changed signature":             proven(token, good[:len(good)-6]+"AAAAAA"),
		"a huge proof":                    proven(token, proofFor(token, nil, object{"pad": strings.Repeat("p", 8<<10)})),
		"many claims":                     proven(token, proofFor(token, nil, object{"pad": make([]int, 100)})),
		"garbage":                         proven(token, "\x00\x01"),
		"an unbound token under DPoP":     proven(edToken(nil), proofFor(edToken(nil), nil, nil)),
		"a token bound to another key":    proven(edToken(object{"cnf": object{"jkt": jktOf(&evil.PublicKey)}}), good),
		"a certificate-bound one, DPoP":   proven(edToken(object{"cnf": object{"x5t#S256": athOf("x")}}), good),
		"cnf of both kinds, one proven":   proven(boundToken(object{"cnf": object{"jkt": jktOf(&proofKey().PublicKey), "x5t#S256": athOf("x")}}), good),
		"cnf with an unknown member":      proven(boundToken(object{"cnf": object{"jkt": jktOf(&proofKey().PublicKey), "kid": "k"}}), good),
		"expired, with a good proof":      proven(boundToken(object{"exp": 1}), good),
		"a bad token, with a good proof":  proven(token[:len(token)-4]+"AAAA", good),
		"a bound token as a bearer":       withBearer(token),
		"a bound bearer, with a proof":    proven(token, proofFor(token, nil, nil)),
		"Bearer and DPoP in two fields":   proven(token, good),
		"the scheme without a token":      proven("", good),
		"the scheme with two tokens":      proven(token+" "+token, good),
		"the scheme with a tab":           proven(token, good),
		"proof under the scheme's name":   proven(good, good),
		"another request with this proof": proven(token, good),
	}
	m["a bound bearer, with a proof"].Header.Set("Authorization", "Bearer "+token)
	m["Bearer and DPoP in two fields"].Header.Add("Authorization", "Bearer "+edToken(nil))
	m["the scheme with a tab"].Header.Set("Authorization", "DPoP\t"+token)
	m["another request with this proof"].Method = "DELETE"
	return m
}

// TestHostileProofs: each of them is refused with 401, and with a challenge that has no more than a fixed text.
func TestHostileProofs(t *testing.T) {
	list := hostileProofs()
	if len(list) < 60 {
		t.Fatalf("%d proofs", len(list))
	}
	for _, o := range []gateway.DPoPOptions{{}, {Required: true}} {
		j := dpopJWT(o)
		h := gateway.Auth(j, &gateway.AuthOptions{Optional: true})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			t.Error("let in")
		}))
		for name, r := range list {
			w := recorded(h, r)
			challenge := w.Header().Get("WWW-Authenticate")
			if w.Code != 401 || !strings.Contains(challenge, "error=") || len(w.Header().Values("WWW-Authenticate")) != 1 {
				t.Errorf("%s: status %d, challenge %s", name, w.Code, challenge)
			}
			if strings.Contains(challenge, "evil") || strings.ContainsAny(challenge, "\r\n\x00") || w.Header().Get("DPoP-Nonce") != "" {
				t.Errorf("%s: %v", name, w.Header())
			}
		}
		// None of them was remembered: the good proof among them still works.
		token := boundToken(nil)
		if _, err := j.Authenticate(proven(token, proofFor(token, nil, nil))); err != nil {
			t.Error(err)
		}
	}
	if _, err := dpopJWT(gateway.DPoPOptions{Required: true}).Authenticate(withBearer(edToken(nil))); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("a plain bearer where DPoP is required: %v", err)
	}
}

// TestDPoPNotConfigured: without DPoP, a bound token is refused under every scheme, and the scheme is not of JWT's kind.
func TestDPoPNotConfigured(t *testing.T) {
	token := boundToken(nil)
	for name, tt := range map[string]struct {
		r    *http.Request
		want error
	}{
		"Bearer": {withBearer(token), gateway.ErrUnauthenticated},
		"DPoP":   {proven(token, proofFor(token, nil, nil)), gateway.ErrNoCredentials},
	} {
		if _, err := edJWT(nil).Authenticate(tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	header := http.Header{"X-Token": {token}, "Dpop": {proofFor(token, nil, nil)}}
	placed := edJWT(func(o *gateway.JWTOptions) { o.Token = gateway.HeaderToken("X-Token") })
	r := proven(token)
	r.Header = header
	if _, err := placed.Authenticate(r); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("in a field of its own: %v", err)
	}
	both := edJWT(func(o *gateway.JWTOptions) {
		o.Token, o.DPoP = gateway.HeaderToken("X-Token"), &gateway.DPoPOptions{}
	})
	if _, err := both.Authenticate(r); err != nil {
		t.Errorf("in a field of its own, with DPoP: %v", err)
	}
	for _, j := range []*gateway.JWT{edJWT(nil), dpopJWT(gateway.DPoPOptions{})} {
		if _, err := j.Verify(t.Context(), token); !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("Verify: %v", err)
		}
	}
	if _, err := dpopJWT(gateway.DPoPOptions{Required: true}).Verify(t.Context(), edToken(nil)); !errors.Is(err, gateway.ErrUnauthenticated) {
		t.Errorf("Verify where DPoP is required: %v", err)
	}
}

// TestDPoPReplay: a proof works once, whatever is changed around it, and as long as it would be accepted.
func TestDPoPReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := boundToken(nil)
		j := dpopJWT(gateway.DPoPOptions{})
		ahead := proofFor(token, nil, map[string]any{"iat": time.Now().Unix() + 29})
		if _, err := j.Authenticate(proven(token, ahead)); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			time.Sleep(time.Second)
			if _, err := j.Authenticate(proven(token, ahead)); !errors.Is(err, gateway.ErrUnauthenticated) {
				t.Fatalf("used twice: %v", err)
			}
		}
		// The signature of ES256 is malleable: another one of the same proof is the same proof.
		proof := proofFor(token, nil, nil)
		head, sig := proof[:strings.LastIndex(proof, ".")], must(base64.RawURLEncoding.DecodeString(proof[strings.LastIndex(proof, ".")+1:]))
		if _, err := j.Authenticate(proven(token, proof)); err != nil {
			t.Fatal(err)
		}
		n := elliptic.P256().Params().N
		s := new(big.Int).Sub(n, new(big.Int).SetBytes(sig[32:]))
		if _, err := j.Authenticate(proven(token, head+"."+segment(append(sig[:32:32], s.FillBytes(make([]byte, 32))...)))); !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("with the other signature: %v", err)
		}
	})
}

// TestDPoPReplayAtOnce: of many requests with one proof at the same time, one passes.
func TestDPoPReplayAtOnce(t *testing.T) {
	token := boundToken(nil)
	j := dpopJWT(gateway.DPoPOptions{})
	proof := proofFor(token, nil, nil)
	passed := make(chan bool, 50)
	var wg sync.WaitGroup
	for range cap(passed) {
		wg.Go(func() {
			_, err := j.Authenticate(proven(token, proof))
			passed <- err == nil
		})
	}
	wg.Wait()
	close(passed)
	n := 0
	for ok := range passed {
		if ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d passed", n)
	}
}

// TestDPoPMemory: when MaxSeen proofs are remembered, new ones get 503 and no old one is forgotten. In time there is room
// again.
func TestDPoPMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := boundToken(nil)
		j := dpopJWT(gateway.DPoPOptions{MaxSeen: 10})
		first := proofFor(token, nil, nil)
		send := func(proof string) error {
			_, err := j.Authenticate(proven(token, proof))
			return err
		}
		if err := send(first); err != nil {
			t.Fatal(err)
		}
		for range 9 {
			if err := send(proofFor(token, nil, nil)); err != nil {
				t.Fatal(err)
			}
		}
		var e *gateway.Error
		if err := send(proofFor(token, nil, nil)); !errors.As(err, &e) || e.Status != 503 {
			t.Errorf("one too many: %v", err)
		}
		if err := send(first); !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("used twice: %v", err)
		}
		time.Sleep(91 * time.Second)
		for range 10 {
			if err := send(proofFor(token, nil, nil)); err != nil {
				t.Errorf("after 91s: %v", err)
			}
		}
	})
}

// TestDPoPNonce follows a client: it gets a nonce with a 401, uses it for five minutes, and gets the next one.
func TestDPoPNonce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := boundToken(nil)
		secret := []byte("a secret of two gateways, 32 bytes")
		j, second := dpopJWT(gateway.DPoPOptions{Nonce: true, NonceKey: secret}), dpopJWT(gateway.DPoPOptions{Nonce: true, NonceKey: secret})
		alone := dpopJWT(gateway.DPoPOptions{Nonce: true})
		ask := func(j *gateway.JWT, nonce any) *httptest.ResponseRecorder {
			return recorded(gateway.Auth(j, nil)(caller), proven(token, proofFor(token, nil, map[string]any{"nonce": nonce})))
		}
		w := ask(j, nil)
		nonce := w.Header().Get("DPoP-Nonce")
		if w.Code != 401 || nonce == "" || !strings.Contains(w.Header().Get("WWW-Authenticate"), `DPoP error="use_dpop_nonce"`) {
			t.Fatalf("%d, %v", w.Code, w.Header())
		}
		for name, tt := range map[string]struct {
			j     *gateway.JWT
			nonce any
			want  int
		}{
			"its own": {j, nonce, 200}, "of the other gateway": {second, nonce, 200}, "of a gateway with another key": {alone, nonce, 401},
			"none": {j, nil, 401}, "empty": {j, "", 401}, "a number": {j, 1, 401}, "of another time": {j, "B" + nonce[1:], 401}, "with another code": {j, nonce[:20] + "AAAAAAAAAAAA", 401}, "longer": {j, nonce + "AAAA", 401},
		} {
			if w := ask(tt.j, tt.nonce); w.Code != tt.want || (w.Header().Get("DPoP-Nonce") != "") != (tt.want == 401) {
				t.Errorf("%s: %d, %v", name, w.Code, w.Header())
			}
		}
		time.Sleep(5 * time.Minute)
		if w := ask(j, nonce); w.Code != 200 {
			t.Errorf("after five minutes: %d", w.Code)
		}
		time.Sleep(time.Second)
		if w := ask(j, nonce); w.Code != 401 {
			t.Errorf("later: %d", w.Code)
		} else if w := ask(j, w.Header().Get("DPoP-Nonce")); w.Code != 200 {
			t.Errorf("the next one: %d", w.Code)
		}
	})
}

// TestDPoPURL: htu is held against the URL as the client knows it.
func TestDPoPURL(t *testing.T) {
	token := boundToken(nil)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	forwarded := gateway.TrustProxies("X-Forwarded-For", loopback)
	standard := gateway.TrustProxies("Forwarded", loopback)
	foreign := gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("10.0.0.0/8"))
	none := gateway.Chain()
	type fields = map[string]string
	public := fields{"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example"}
	for name, tt := range map[string]struct {
		mw     gateway.Middleware
		uri    string // request target
		fields fields
		htu    string
		ok     bool
	}{
		"direct":                         {none, "/notes", nil, "http://example.com/notes", true},
		"another case of an escape":      {none, "/a%2fb", nil, "http://example.com/a%2Fb", true},
		"a slash is not its escape":      {none, "/a%2fb", nil, "http://example.com/a/b", false},
		"a path that a handler changed":  {gateway.Chain(func(h http.Handler) http.Handler { return http.StripPrefix("/api", h) }), "/api/notes", nil, "http://example.com/api/notes", true},
		"root":                           {none, "/", nil, "http://example.com", true},
		"absolute form":                  {none, "http://example.com/notes?a=b", nil, "http://example.com/notes", true},
		"a fragment in the target":       {none, "/notes#x", nil, "http://example.com/notes", false},
		"a client's fields":              {none, "/notes", public, "https://api.example/notes", false},
		"a client's fields, not trusted": {foreign, "/notes", public, "https://api.example/notes", false},
		"its own URL, not trusted":       {foreign, "/notes", public, "http://example.com/notes", true},
		"behind a proxy":                 {forwarded, "/notes", public, "https://api.example/notes", true},
		"behind a proxy, the inner URL":  {forwarded, "/notes", public, "http://example.com/notes", false},
		"proto alone":                    {forwarded, "/notes", fields{"X-Forwarded-Proto": "https"}, "https://example.com/notes", true},
		"two hosts":                      {forwarded, "/notes", fields{"X-Forwarded-Host": "evil.example, api.example"}, "http://evil.example/notes", false},
		"Forwarded":                      {standard, "/notes", fields{"Forwarded": `for=1.2.3.4;proto=https;host=api.example`}, "https://api.example/notes", true},
		"Forwarded, the other fields":    {standard, "/notes", public, "https://api.example/notes", false},
	} {
		h := tt.mw(gateway.Auth(dpopJWT(gateway.DPoPOptions{}), nil)(caller))
		r := proven(token, proofFor(token, nil, map[string]any{"htu": tt.htu}))
		r.RequestURI = tt.uri
		r.URL = must(r.URL.Parse(tt.uri))
		r.RemoteAddr = "127.0.0.1:1234"
		for name, value := range tt.fields {
			r.Header.Set(name, value)
		}
		if w := recorded(h, r); (w.Code == 200) != tt.ok {
			t.Errorf("%s: %d %s", name, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
	secure := proven(token, proofFor(token, nil, map[string]any{"htu": "https://example.com:443/notes"}))
	secure.TLS = new(tls.ConnectionState)
	if _, err := dpopJWT(gateway.DPoPOptions{}).Authenticate(secure); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	own := dpopJWT(gateway.DPoPOptions{URL: func(r *http.Request) string { return "https://public.example/v1" + r.URL.Path }})
	if _, err := own.Authenticate(proven(token, proofFor(token, nil, map[string]any{"htu": "https://public.example/v1/notes"}))); err != nil {
		t.Errorf("own URL: %v", err)
	}
}

// TestDPoPChallenge: who sends nothing learns that DPoP is accepted, or that nothing else is.
func TestDPoPChallenge(t *testing.T) {
	const dpop = `DPoP realm="api", algs="ES256 ES384 ES512 EdDSA PS256 PS384 PS512 RS256 RS384 RS512"`
	for name, tt := range map[string]struct {
		a    gateway.Authenticator
		want string
	}{
		"bearer":           {edJWT(nil), `Bearer realm="api"`},
		"both":             {dpopJWT(gateway.DPoPOptions{}), `Bearer realm="api"|` + dpop},
		"required":         {dpopJWT(gateway.DPoPOptions{Required: true}), dpop},
		"first of":         {gateway.FirstOf(fixedAuthenticator(nil, gateway.ErrNoCredentials), dpopJWT(gateway.DPoPOptions{Required: true})), `Bearer realm="api"|` + dpop},
		"first of, one":    {gateway.FirstOf(dpopJWT(gateway.DPoPOptions{Required: true})), dpop},
		"issuers":          {gateway.Issuers(map[string]*gateway.JWT{testIssuer: dpopJWT(gateway.DPoPOptions{Required: true})}), dpop},
		"not of this kind": {fixedAuthenticator(nil, gateway.ErrNoCredentials), `Bearer realm="api"`},
	} {
		w := recorded(gateway.Auth(tt.a, &gateway.AuthOptions{Realm: "api"})(caller), nil)
		if got := strings.Join(w.Header().Values("WWW-Authenticate"), "|"); w.Code != 401 || got != tt.want {
			t.Errorf("%s: %d, %s", name, w.Code, got)
		}
	}
	expired := boundToken(map[string]any{"exp": 1})
	w := recorded(gateway.Auth(dpopJWT(gateway.DPoPOptions{}), nil)(caller), proven(expired, proofFor(expired, nil, nil)))
	if got := w.Header().Get("WWW-Authenticate"); !strings.HasPrefix(got, `DPoP error="invalid_token", error_description="The access token expired", algs=`) {
		t.Errorf("expired: %s", got)
	}
}
