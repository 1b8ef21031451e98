package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// hostileJWT has three keys and accepts an algorithm for each of them. So tokens can use the key of one
// algorithm for another.
func hostileJWT(cacheSize int) *gateway.JWT {
	return gateway.NewJWT(gateway.StaticKeys(map[string]any{
		"rsa": &testRSA().PublicKey, "ec": &testEC().PublicKey, "hs": testSecret,
	}), gateway.JWTOptions{
		Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"RS256", "ES256", "HS256"}, CacheSize: cacheSize,
		Leeway: -1,
	})
}

type hostile struct{ name, token string }

// hostileTokens are attacks that worked against some verifier, and variants of them.
var hostileTokens = sync.OnceValue(func() []hostile {
	var list []hostile
	add := func(name, token string) { list = append(list, hostile{name, token}) }
	type object = map[string]any

	good := sign("RS256", testRSA(), object{"kid": "rsa"}, claimSet(nil))
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	payload := must(json.Marshal(claimSet(nil)))
	// signed signs claims with the right key and header: only the claims are wrong.
	signed := func(changes object) string { return sign("RS256", testRSA(), object{"kid": "rsa"}, claimSet(changes)) }
	signedRaw := func(payload string) string {
		return signRaw("RS256", testRSA(), []byte(`{"alg":"RS256","kid":"rsa"}`), []byte(payload))
	}
	// headed signs good claims under header.
	headed := func(header string) string { return signRaw("RS256", testRSA(), []byte(header), payload) }

	// No algorithm, or not an algorithm.
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "rs256", "RS255", "RS256 ", "RS256\x00", "HS1", "dir", "PS256", "RS512", "EdDSA"} {
		h := segment(must(json.Marshal(object{"alg": alg, "kid": "rsa"})))
		add("alg "+alg+", no signature", h+"."+body+".")
		add("alg "+alg+", a signature", h+"."+body+"."+sig)
	}
	add("RFC 7515 appendix A.5", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.")
	add("alg missing", headed(`{"kid":"rsa"}`))
	add("alg null", headed(`{"alg":null,"kid":"rsa"}`))
	add("alg a number", headed(`{"alg":256,"kid":"rsa"}`))
	add("alg a list", headed(`{"alg":["RS256"],"kid":"rsa"}`))
	add("Alg in other case", headed(`{"Alg":"RS256","kid":"rsa"}`))
	add("alg twice", headed(`{"alg":"none","alg":"RS256","kid":"rsa"}`))
	add("alg twice, once escaped", headed(`{"alg":"RS256","\u0061lg":"none","kid":"rsa"}`))

	// The key of one algorithm for another.
	der := must(x509.MarshalPKIXPublicKey(&testRSA().PublicKey))
	for name, secret := range map[string][]byte{
		"PEM":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"DER":     der,
		"modulus": testRSA().N.Bytes(),
		"JWK":     must(json.Marshal(jwk("rsa", &testRSA().PublicKey, nil))),
	} {
		add("HS256 with the public key as "+name, sign("HS256", secret, object{"kid": "rsa"}, claimSet(nil)))
	}
	add("HS256 with an empty secret", sign("HS256", []byte{}, object{"kid": "hs"}, claimSet(nil)))
	add("HS256 with the kid for a secret", sign("HS256", []byte("hs"), object{"kid": "hs"}, claimSet(nil)))
	add("RS256 for the EC key", sign("RS256", testRSA(), object{"kid": "ec"}, claimSet(nil)))
	add("ES256 for the RSA key", sign("ES256", testEC(), object{"kid": "rsa"}, claimSet(nil)))
	add("RS256 for the secret", sign("RS256", testRSA(), object{"kid": "hs"}, claimSet(nil)))
	add("RS256 of another key", sign("RS256", must(rsa.GenerateKey(rand.Reader, 2048)), object{"kid": "rsa"}, claimSet(nil)))
	add("ES256 of another key", sign("ES256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), object{"kid": "ec"}, claimSet(nil)))
	add("ES384, another curve", sign("ES384", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), object{"kid": "ec"}, claimSet(nil)))
	pss := sign("PS256", testRSA(), object{"kid": "rsa"}, claimSet(nil))
	add("PS256 called RS256", head+pss[strings.Index(pss, "."):])

	// Signatures.
	ecHead := segment([]byte(`{"alg":"ES256","kid":"ec"}`))
	ecInput := ecHead + "." + body
	digest := sha256.Sum256([]byte(ecInput))
	add("empty signature", head+"."+body+".")
	add("signature cut off", good[:len(good)-4])
	add("signature too long", good+"AAAA")
	add("signature of another token", head+"."+segment(must(json.Marshal(claimSet(object{"sub": "admin"}))))+"."+sig)
	add("header changed", segment([]byte(`{"alg":"RS256","kid":"rsa","x":1}`))+"."+body+"."+sig)
	add("parts swapped", body+"."+head+"."+sig)
	add("RS256 with zeros", head+"."+body+"."+segment(make([]byte, 256)))
	add("ES256 with zeros", ecInput+"."+segment(make([]byte, 64)))
	add("ES256 as DER", ecInput+"."+segment(must(ecdsa.SignASN1(rand.Reader, testEC(), digest[:]))))
	add("ES256 with the order of the curve", ecInput+"."+segment(append(elliptic.P256().Params().N.Bytes(), elliptic.P256().Params().N.Bytes()...)))
	add("HS256 cut to 16 bytes", func() string {
		s := sign("HS256", testSecret, object{"kid": "hs"}, claimSet(nil))
		return s[:len(s)-22]
	}())

	// Keys that the header names, and extensions that it requires.
	evil := must(rsa.GenerateKey(rand.Reader, 2048))
	add("own jwk", sign("RS256", evil, object{"kid": "evil", "jwk": jwk("evil", &evil.PublicKey, nil)}, claimSet(nil)))
	add("own jwk for a known kid", sign("RS256", evil, object{"kid": "rsa", "jwk": jwk("rsa", &evil.PublicKey, nil)}, claimSet(nil)))
	add("jku", sign("RS256", evil, object{"kid": "evil", "jku": "https://evil.example/keys"}, claimSet(nil)))
	add("x5u", sign("RS256", evil, object{"kid": "rsa", "x5u": "https://evil.example/cert"}, claimSet(nil)))
	add("x5c", sign("RS256", evil, object{"kid": "rsa", "x5c": []string{"MIIB"}}, claimSet(nil)))
	add("crit", sign("RS256", testRSA(), object{"kid": "rsa", "crit": []string{"exp"}, "exp": 1}, claimSet(nil)))
	add("crit empty", sign("RS256", testRSA(), object{"kid": "rsa", "crit": []string{}}, claimSet(nil)))
	add("crit null", headed(`{"alg":"RS256","kid":"rsa","crit":null}`))
	add("b64 false", sign("RS256", testRSA(), object{"kid": "rsa", "crit": []string{"b64"}, "b64": false}, claimSet(nil)))

	// kid.
	for name, kid := range map[string]any{
		"unknown": "other", "huge": strings.Repeat("k", 8<<10), "a path": "../../../../dev/null", "SQL": "rsa' UNION SELECT 'a",
		"a command": "|/bin/sh", "a URL": "https://evil.example/keys", "a NUL": "rsa\x00", "empty": "", "in other case": "RSA",
		"a number": 1, "null": nil, "a list": []string{"rsa"}, "an object": object{"a": "b"}, "true": true, "a new line": "rsa\n",
	} {
		add("kid "+name, sign("RS256", testRSA(), object{"kid": kid}, claimSet(nil)))
	}
	add("kid missing", sign("RS256", testRSA(), nil, claimSet(nil)))
	add("kid twice", headed(`{"alg":"RS256","kid":"evil","kid":"rsa"}`))

	// Headers and claims that can be read in two ways, or in none.
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for name, h := range map[string]string{
		"empty": "", "a list": `["RS256"]`, "a string": `"RS256"`, "null": "null", "cut off": `{"alg":"RS256","kid":"rsa"`,
		"and more": `{"alg":"RS256","kid":"rsa"}{}`, "with a BOM": "\ufeff" + `{"alg":"RS256","kid":"rsa"}`,
		"with a comment": `{"alg":"RS256",/**/"kid":"rsa"}`, "no UTF-8": "{\"alg\":\"RS256\",\"kid\":\"rsa\",\"a\":\"\xff\"}",
		"nested deep":  `{"alg":"RS256","kid":"rsa","a":` + deep(1000) + `}`,
		"many members": `{"alg":"RS256","kid":"rsa","a":[` + strings.Repeat("0,", 4000) + `0]}`,
		"many objects": `{"alg":"RS256","kid":"rsa","a":[` + strings.Repeat("{},", 2500) + `0]}`,
	} {
		add("header "+name, headed(h))
	}
	exp := time.Now().Add(time.Hour).Unix()
	start := `{"iss":"` + testIssuer + `","sub":"u","exp":` + string(must(json.Marshal(exp)))
	for name, c := range map[string]string{
		"empty": "", "a list": `[1]`, "a string": `"a"`, "null": "null", "cut off": start, "and more": start + `,"aud":"api"} x`,
		"aud twice":                start + `,"aud":"other","aud":"api"}`,
		"aud twice, once escaped":  start + `,"aud":"other","\u0061ud":"api"}`,
		"exp twice":                start + `,"exp":99999999999,"aud":"api"}`,
		"sub twice":                start + `,"sub":"admin","aud":"api"}`,
		"sub twice inside a claim": start + `,"aud":"api","act":{"sub":"a","sub":"b"}}`,
		"no UTF-8":                 start + ",\"aud\":\"api\",\"a\":\"\xff\"}",
		"a lone surrogate":         start + `,"aud":"api","a":"\ud800"}`,
		"nested deep":              start + `,"aud":"api","a":` + deep(1000) + `}`,
		"exp NaN":                  strings.Replace(start, `"exp":`, `"exp":NaN,"x":`, 1) + `,"aud":"api"}`,
		"exp hexadecimal":          strings.Replace(start, `"exp":`, `"exp":0x7fffffff,"x":`, 1) + `,"aud":"api"}`,
		"exp with a leading zero":  strings.Replace(start, `"exp":`, `"exp":0`, 1) + `,"aud":"api"}`,
		"exp beyond a float":       strings.Replace(start, `"exp":`, `"exp":1e400,"x":`, 1) + `,"aud":"api"}`,
		"other case":               `{"ISS":"` + testIssuer + `","Aud":"api","SUB":"u","Exp":99999999999}`,
	} {
		add("claims "+name, signedRaw(c))
	}

	// Claims that the issuer signed and that are not valid here.
	now := time.Now().Unix()
	for name, changes := range map[string]object{
		"exp missing": {"exp": nil}, "exp a string": {"exp": "99999999999"}, "exp true": {"exp": true}, "exp a list": {"exp": []int64{exp}},
		"exp an object": {"exp": object{"a": 1}}, "exp past": {"exp": now - 1}, "exp past, a fraction": {"exp": float64(now) - 0.5},
		"exp negative": {"exp": -1}, "exp zero": {"exp": 0}, "exp huge": {"exp": uint64(math.MaxUint64)}, "exp of int64": {"exp": int64(math.MaxInt64)},
		"exp in milliseconds": {"exp": exp * 1000}, "nbf ahead": {"nbf": exp}, "nbf a string": {"nbf": "0"}, "nbf negative": {"nbf": -1},
		"iat ahead": {"iat": exp}, "iat a string": {"iat": "0"}, "iat huge": {"iat": 1e300},
		"iss missing": {"iss": nil}, "iss of another": {"iss": "https://evil.example"}, "iss with a slash": {"iss": testIssuer + "/"},
		"iss in other case": {"iss": strings.ToUpper(testIssuer)}, "iss a list": {"iss": []string{testIssuer}}, "iss with a NUL": {"iss": testIssuer + "\x00"},
		"iss with a blank": {"iss": testIssuer + " "}, "aud missing": {"aud": nil}, "aud of another": {"aud": "other"}, "aud empty": {"aud": ""},
		"aud an empty list": {"aud": []string{}}, "aud a list without": {"aud": []string{"a", "b"}}, "aud a number": {"aud": 1},
		"aud a list with a number": {"aud": []any{"api", 1}}, "aud an object": {"aud": object{"api": true}}, "aud in other case": {"aud": "API"},
		"aud with more": {"aud": "api-admin"}, "aud with a blank": {"aud": "api other"}, "aud a nested list": {"aud": []any{[]string{"api"}}},
		"sub missing": {"sub": nil}, "sub empty": {"sub": ""}, "sub a number": {"sub": 1}, "sub a list": {"sub": []string{"u"}},
		"sub with CR LF": {"sub": "u\r\nX-Admin: true"}, "sub with a NUL": {"sub": "u\x00"}, "sub with a blank before": {"sub": " u"},
		"sub with a blank after": {"sub": "u "}, "sub with a no-break space after": {"sub": "u\u00a0"}, "sub with DEL": {"sub": "u\x7f"},
	} {
		add(name, signed(changes))
	}

	// Encodings.
	add("padding", good+"=")
	add("padding in the header", head+"=="+good[len(head):])
	add("standard alphabet", head+"."+body+"."+base64.RawStdEncoding.EncodeToString(must(base64.RawURLEncoding.DecodeString(sig[:len(sig)-2]+"-_"))))
	add("bits to spare", spare(good))
	add("a new line", head+"\n."+body+"."+sig)
	add("CR LF at the end", good+"\r\n")
	add("a tab", head+"\t."+body+"."+sig)
	add("a NUL", good+"\x00")
	add("a NUL within", head+"\x00."+body+"."+sig)
	add("not ASCII", good+"ä")
	add("percent", head+"%2E"+body+"%2E"+sig)
	add("in quotes", `"`+good+`"`)

	// Numbers of parts.
	add("one part", head)
	add("two parts", head+"."+body)
	add("four parts", good+"."+sig)
	add("five parts", good+"."+sig+"."+sig)
	add("dots alone", "..")
	add("many dots", strings.Repeat(".", 8<<10))
	add("a dot before", "."+good)
	add("a dot after", good+".")
	add("JSON serialisation", `{"payload":"`+body+`","protected":"`+head+`","signature":"`+sig+`"}`)

	// Too many tokens, or too long.
	add("two tokens", good+" "+good)
	add("two tokens, comma", good+","+good)
	add("scheme twice", "Bearer "+good)
	add("17 KiB", signed(object{"a": strings.Repeat("a", 13<<10)}))
	add("1 MB", head+"."+strings.Repeat("A", 1<<20)+"."+sig)
	add("1 MB header", strings.Repeat("A", 1<<20)+"."+body+"."+sig)
	add("16 KiB of payload, badly signed", head+"."+strings.Repeat("A", 15<<10)+"."+sig)
	add("16 KiB of signature", head+"."+body+"."+strings.Repeat("A", 15<<10))
	return list
})

// spare sets a bit that encodes nothing: after 256 bytes, four bits of the last character are unused.
func spare(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + alphabet[last|1:last|1+1]
}

// TestHostileTokens: every hostile token gets the same refusal, which reveals nothing about the reason. Only
// who has a token that was good once learns that it has expired.
func TestHostileTokens(t *testing.T) {
	list := hostileTokens()
	if len(list) < 60 {
		t.Fatalf("%d tokens", len(list))
	}
	j := hostileJWT(0)
	h := gateway.Auth(j, &gateway.AuthOptions{Optional: true})(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("let in")
	}))
	ask := func(header http.Header) (int, string, string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = header
		w := recorded(h, r)
		return w.Code, w.Header().Get("WWW-Authenticate"), w.Body.String()
	}
	_, challenge, body := ask(http.Header{"Authorization": {"Bearer x"}})
	if challenge == "" || body == "" {
		t.Fatal("no refusal to compare with")
	}
	for _, tt := range list {
		t.Run(tt.name, func(t *testing.T) {
			header := http.Header{"Authorization": {"Bearer " + tt.token}}
			for range 2 { // the second time, too
				want := challenge
				if strings.HasPrefix(tt.name, "exp past") || tt.name == "exp zero" {
					want += `, error_description="The access token expired"`
				}
				if s, c, b := ask(header); s != 401 || c != want || b != body {
					t.Errorf("status %d, challenge %q, body %s", s, c, b)
				}
			}
			if id, err := j.Verify(context.Background(), tt.token); err == nil && !strings.HasPrefix(tt.name, "sub ") {
				t.Errorf("verified: %+v", id)
			} else if err != nil && (!errors.Is(err, gateway.ErrUnauthenticated) || len(err.Error()) > 200) {
				t.Errorf("error %.300v", err)
			}
		})
	}
	good := sign("RS256", testRSA(), map[string]any{"kid": "rsa"}, claimSet(nil))
	for name, values := range map[string][]string{
		"two fields":        {"Bearer " + good, "Bearer " + good},
		"two schemes":       {"Basic dTpw", "Bearer " + good},
		"a tab":             {"Bearer\t" + good},
		"tabs":              {"Bearer \t" + good},
		"no blank":          {"Bearer"},
		"scheme and blanks": {"Bearer   "},
		"comma after it":    {"Bearer, " + good},
		"colon":             {"Bearer: " + good},
		"equals":            {"Bearer=" + good},
		"a parameter":       {"Bearer " + good + ", realm=a"},
	} {
		if s, c, b := ask(http.Header{"Authorization": values}); s != 401 || c != challenge || b != body {
			t.Errorf("%s: status %d, challenge %q, body %s", name, s, c, b)
		}
	}

	ok := httptest.NewServer(gateway.Auth(j, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in") })))
	defer ok.Close()
	for _, tt := range []struct {
		alg, kid string
		key      any
	}{{"RS256", "rsa", testRSA()}, {"ES256", "ec", testEC()}, {"HS256", "hs", testSecret}} {
		r := must(http.NewRequest("GET", ok.URL, nil))
		r.Header.Set("Authorization", "Bearer "+sign(tt.alg, tt.key, map[string]any{"kid": tt.kid}, claimSet(nil)))
		resp := must(ok.Client().Do(r))
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("the honest %s: %d", tt.alg, resp.StatusCode)
		}
	}
}

// BenchmarkHostile measures the cost of each hostile token, beside a good token that is not in a cache.
func BenchmarkHostile(b *testing.B) {
	j := hostileJWT(-1)
	honest := sign("RS256", testRSA(), map[string]any{"kid": "rsa"}, claimSet(nil))
	for _, tt := range append([]hostile{{"honest miss", honest}}, hostileTokens()...) {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				_, _ = j.Verify(context.Background(), tt.token)
			}
		})
	}
}
