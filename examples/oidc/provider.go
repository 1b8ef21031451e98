package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// provider is an OpenID provider: it publishes its configuration and its keys, and gives tokens to clients that
// name a secret (OAuth 2.0 client credentials, RFC 6749 section 4.4). What it publishes and signs with
// depends on the time alone:
//
//	published                used              withdrawn
//	    |------- ahead -------|---- rotate ----|---- keep ----|
//
// Key n is first used n times rotate after the start.
type provider struct {
	plan
	url   string // its issuer name
	start time.Time
	mu    sync.Mutex
	made  map[int]*ecdsa.PrivateKey

	keySets atomic.Int64 // answers with a key set
	missed  atomic.Int64 // questions for one that it did not answer
}

const (
	configPath   = "/.well-known/openid-configuration"
	keySetPath   = "/keys"
	tokenPath    = "/token"
	clientSecret = "swordfish" // of every client
)

// usedAt is the number of the key that signs at t.
func (p *provider) usedAt(t time.Time) int {
	return int(t.Sub(p.start) / p.rotate)
}

// publishedAt are the numbers of the first and the last key that are in the key set at t.
func (p *provider) publishedAt(t time.Time) (first, last int) {
	age := t.Sub(p.start)
	return max(0, int((age-p.keep())/p.rotate)), int((age + p.ahead) / p.rotate)
}

// withdrawn is when key n leaves the key set.
func (p *provider) withdrawn(n int) time.Time {
	return p.start.Add(time.Duration(n+1)*p.rotate + p.keep())
}

// away reports whether the provider does not answer at t.
func (p *provider) away(t time.Time) bool {
	age := t.Sub(p.start) - p.length*2/5
	return 0 <= age && age < p.down
}

// ServeHTTP answers, or while it is away closes the connection without a word.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	if p.away(now) {
		if r.URL.Path == keySetPath {
			p.missed.Add(1)
		}
		panic(http.ErrAbortHandler)
	}
	switch r.Method + " " + r.URL.Path {
	case "GET " + configPath:
		writeJSON(w, map[string]any{"issuer": p.url, "jwks_uri": p.url + keySetPath, "token_endpoint": p.url + tokenPath})
	case "GET " + keySetPath:
		p.keySets.Add(1)
		w.Header().Set("Cache-Control", fmt.Sprintf("max-age=%d", p.maxAge/time.Second))
		writeJSON(w, map[string]any{"keys": p.keySet(now)})
	case "POST " + tokenPath:
		client, secret, _ := r.BasicAuth()
		if secret != clientSecret || r.FormValue("grant_type") != "client_credentials" {
			http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
			return
		}
		token, err := p.sign(p.usedAt(now), client, now.Add(p.tokenLife))
		if err != nil {
			http.Error(w, `{"error":"server_error"}`, http.StatusInternalServerError)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": p.tokenLife.Seconds()})
	default:
		http.NotFound(w, r)
	}
}

// key makes key n when it is first asked for.
func (p *provider) key(n int) *ecdsa.PrivateKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made[n] == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err) // crypto/rand has no errors
		}
		p.made[n] = key
	}
	return p.made[n]
}

// keySet are the public keys that are published at t (RFC 7517).
func (p *provider) keySet(t time.Time) []map[string]string {
	var set []map[string]string
	for first, n := p.publishedAt(t); n >= first; n-- {
		point, err := p.key(n).PublicKey.Bytes() // 4, X, Y (SEC 1 section 2.3.3)
		if err != nil {
			panic(err) // only of a point that is not on its curve
		}
		coordinate := base64.RawURLEncoding.EncodeToString
		set = append(set, map[string]string{
			"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": keyID(n),
			"x": coordinate(point[1:33]), "y": coordinate(point[33:]),
		})
	}
	return set
}

func keyID(n int) string { return fmt.Sprint("key-", n) }

// sign issues a token for subject, signed with key n.
func (p *provider) sign(n int, subject string, expires time.Time) (string, error) {
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": p.url, "aud": audience, "sub": subject, "scope": "notes",
		"exp": float64(expires.UnixMilli()+1) / 1000, // whole seconds are too coarse here; rounded up, as it was promised
		"iat": time.Now().Unix(), "jti": rand.Text(),
	})
	t.Header["kid"] = keyID(n)
	return t.SignedString(p.key(n))
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
