package gateway_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// countingKeys counts its calls. It returns one key, or an error, which a test may replace.
type countingKeys struct {
	asked atomic.Int64
	key   atomic.Value // keyBox
}

type keyBox struct {
	key any
	err error
}

func (k *countingKeys) Key(context.Context, string, string) (any, error) {
	k.asked.Add(1)
	b := k.key.Load().(keyBox)
	return b.key, b.err
}

func newCountingKeys(key any) *countingKeys {
	k := new(countingKeys)
	k.key.Store(keyBox{key, nil})
	return k
}

// TestCacheHit: for a cached token, Verify returns the same pointer as before. So the token was not verified
// again.
func TestCacheHit(t *testing.T) {
	keys := newCountingKeys(testEd().Public())
	for size, want := range map[int]bool{0: true, 1: true, 100: true, -1: false} {
		j := newJWT(keys, func(o *gateway.JWTOptions) { o.CacheSize = size })
		token := edToken(nil)
		first := must(j.Verify(t.Context(), token))
		asked := keys.asked.Load()
		second := must(j.Verify(t.Context(), token))
		if (first == second) != want {
			t.Errorf("CacheSize %d: same Identity %v", size, first == second)
		}
		if keys.asked.Load() != asked+1 {
			t.Errorf("CacheSize %d: the key source was not asked", size)
		}
	}
}

func TestCacheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for option, leeway := range map[time.Duration]time.Duration{-1: 0, 5 * time.Second: 5 * time.Second, 0: 30 * time.Second} {
			j := edJWT(func(o *gateway.JWTOptions) { o.Leeway = option })
			token := edToken(map[string]any{"exp": time.Now().Add(10 * time.Second).Unix()})
			first := must(j.Verify(t.Context(), token))
			time.Sleep(10*time.Second + leeway - time.Nanosecond)
			if id, err := j.Verify(t.Context(), token); err != nil || id != first {
				t.Errorf("leeway %v, before its end: verified again %v, error %v", leeway, id != first, err)
			}
			time.Sleep(time.Nanosecond)
			if _, err := j.Verify(t.Context(), token); !errors.Is(err, gateway.ErrUnauthenticated) {
				t.Errorf("leeway %v, at its end: %v", leeway, err)
			}
		}
	})
}

// TestCacheKeyWithdrawn: a change of the key takes effect at once, for cached tokens too.
func TestCacheKeyWithdrawn(t *testing.T) {
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	keys := newCountingKeys(testEd().Public())
	j := newJWT(keys, nil)
	token := edToken(nil)
	away := &gateway.Error{Status: 503}
	for _, step := range []struct {
		name string
		now  keyBox
		want error
	}{
		{"there", keyBox{testEd().Public(), nil}, nil},
		{"cannot decide", keyBox{nil, away}, away},
		{"there again", keyBox{testEd().Public(), nil}, nil},
		{"withdrawn", keyBox{nil, gateway.ErrUnauthenticated}, gateway.ErrUnauthenticated},
		{"published again", keyBox{testEd().Public(), nil}, nil},
		{"another under its name", keyBox{other.Public(), nil}, gateway.ErrUnauthenticated},
		{"of another kind", keyBox{&testRSA().PublicKey, nil}, gateway.ErrUnauthenticated},
		{"the old one again", keyBox{testEd().Public(), nil}, nil},
	} {
		keys.key.Store(step.now)
		for range 2 {
			if _, err := j.Verify(t.Context(), token); !errors.Is(err, step.want) {
				t.Errorf("%s: %v", step.name, err)
			}
		}
	}
}

// TestCacheSameKeyAnew: a refreshed key set has equal keys at other addresses. The tokens stay cached.
func TestCacheSameKeyAnew(t *testing.T) {
	for alg, key := range map[string][2]any{
		"RS256": {testRSA(), func() any { k := testRSA().PublicKey; return &k }},
		"ES256": {testEC(), func() any { k := testEC().PublicKey; return &k }},
		"EdDSA": {testEd(), func() any { return append(ed25519.PublicKey(nil), edPublic()...) }},
		"HS256": {testSecret, func() any { return append([]byte(nil), testSecret...) }},
	} {
		j := newJWT(keyFunc(func(context.Context, string, string) (any, error) {
			return key[1].(func() any)(), nil
		}), func(o *gateway.JWTOptions) { o.Algorithms = []string{alg} })
		token := sign(alg, key[0], nil, claimSet(nil))
		first := must(j.Verify(t.Context(), token))
		if second := must(j.Verify(t.Context(), token)); first != second {
			t.Errorf("%s: verified again", alg)
		}
	}
}

func TestRevoked(t *testing.T) {
	var revoked atomic.Bool
	asked := 0
	j := edJWT(func(o *gateway.JWTOptions) {
		o.Revoked = func(id *gateway.Identity) bool {
			asked++
			return revoked.Load() && id.Claims["jti"] == "1"
		}
	})
	one, two := edToken(map[string]any{"jti": "1"}), edToken(map[string]any{"jti": "2"})
	check := func(token string, want error) {
		t.Helper()
		if _, err := j.Verify(t.Context(), token); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	check(one, nil)
	check(one, nil)
	check(two, nil)
	revoked.Store(true)
	check(one, gateway.ErrUnauthenticated)
	check(two, nil)
	revoked.Store(false)
	check(one, nil)
	if asked != 6 {
		t.Errorf("asked %d times for 6 requests", asked)
	}
}

// TestCacheOneVerification: a thousand requests at once with one new token ask for its key once, and get the
// same Identity.
func TestCacheOneVerification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		j := newJWT(keyFunc(func(ctx context.Context, _, _ string) (any, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			return testEd().Public(), ctx.Err()
		}), nil)
		token := edToken(nil)
		ids := make([]*gateway.Identity, 1000)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() { ids[i], _ = j.Verify(t.Context(), token) })
		}
		wg.Wait()
		for _, id := range ids {
			if id == nil || id != ids[0] {
				t.Fatal("not one verification")
			}
		}
		if asked.Load() != 1 {
			t.Errorf("asked %d times", asked.Load())
		}

		// A bad token is verified once for all requests at the same time, and is not remembered.
		asked.Store(0)
		bad := edToken(map[string]any{"aud": "other"})
		for range 100 {
			wg.Go(func() {
				if _, err := j.Verify(t.Context(), bad); !errors.Is(err, gateway.ErrUnauthenticated) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		_, _ = j.Verify(t.Context(), bad)
		if asked.Load() != 2 {
			t.Errorf("bad token: asked %d times", asked.Load())
		}
	})
}

// TestCacheLeaderLeaves: the client whose request verifies for the others leaves. The others do not fail.
func TestCacheLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJWT(keyFunc(func(ctx context.Context, _, _ string) (any, error) {
			select {
			case <-time.After(time.Second):
				return testEd().Public(), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}), nil)
		token := edToken(nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := j.Verify(ctx, token); !errors.Is(err, context.Canceled) {
				t.Errorf("leader: %v", err)
			}
		})
		synctest.Wait()
		short, stop := context.WithTimeout(t.Context(), time.Millisecond)
		defer stop()
		for range 10 {
			wg.Go(func() {
				if _, err := j.Verify(t.Context(), token); err != nil {
					t.Errorf("follower: %v", err)
				}
			})
		}
		wg.Go(func() {
			if _, err := j.Verify(short, token); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient follower: %v", err)
			}
		})
		synctest.Wait()
		time.Sleep(2 * time.Millisecond)
		cancel()
		wg.Wait()
	})
}

// TestCacheBound: more tokens than fit into the cache are all accepted, and the cache keeps to its bound.
func TestCacheBound(t *testing.T) {
	for name, tt := range map[string]struct{ size, tokens, pad int }{
		"many":  {64, 500, 0},
		"large": {64, 100, 8 << 10},
		"one":   {1, 20, 0},
	} {
		t.Run(name, func(t *testing.T) {
			j := edJWT(func(o *gateway.JWTOptions) { o.CacheSize, o.CacheBytes = tt.size, int64(tt.size)*4096 })
			first := make([]*gateway.Identity, tt.tokens)
			tokens := make([]string, tt.tokens)
			for i := range tokens {
				tokens[i] = edToken(map[string]any{"sub": fmt.Sprint("user-", i), "pad": strings.Repeat("p", tt.pad)})
				first[i] = must(j.Verify(t.Context(), tokens[i]))
			}
			kept := 0
			for i := len(tokens) - 1; i >= 0; i-- {
				id := must(j.Verify(t.Context(), tokens[i]))
				if id.Subject != fmt.Sprint("user-", i) {
					t.Fatalf("token %d is taken for %s", i, id.Subject)
				}
				if id == first[i] {
					kept++
				}
			}
			limit := tt.size
			if tt.pad > 0 {
				limit = tt.size * 4096 / (2 * tt.pad) // the token and its claims
			}
			if kept == 0 || kept > limit {
				t.Errorf("%d tokens are kept, at most %d", kept, limit)
			}
		})
	}
}

// TestCacheKeepsTokensAlone: a cached token that was a part of a long field does not keep the field in
// memory.
func TestCacheKeepsTokensAlone(t *testing.T) {
	settle(t)
	const tokens, long = 32, 1 << 20
	for name, tt := range map[string]struct{ field, before string }{
		"blanks before the token": {"Authorization", "Bearer" + strings.Repeat(" ", long)},
		"cookies before it":       {"Cookie", "a=" + strings.Repeat("a", long) + "; session="},
	} {
		j := edJWT(func(o *gateway.JWTOptions) {
			if tt.field == "Cookie" {
				o.Token = gateway.CookieToken("session")
			}
		})
		before := heapInUse()
		for i := range tokens {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set(tt.field, tt.before+edToken(map[string]any{"sub": fmt.Sprint(i)}))
			must(j.Authenticate(r))
		}
		if kept := heapInUse() - before; kept > tokens*long/4 {
			t.Errorf("%s: %d bytes for %d tokens", name, kept, tokens)
		}
		runtime.KeepAlive(j)
	}
}

// TestCacheRace sends requests while keys are rotated and withdrawn, for the race detector.
func TestCacheRace(t *testing.T) {
	keys := newCountingKeys(testEd().Public())
	_, other, _ := ed25519.GenerateKey(rand.Reader)
	j := newJWT(keys, func(o *gateway.JWTOptions) { o.CacheSize = 4 })
	var tokens []string
	for i := range 16 {
		tokens = append(tokens, edToken(map[string]any{"sub": fmt.Sprint(i)}))
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 100 {
				n := (i*7 + g) % len(tokens)
				id, err := j.Verify(t.Context(), tokens[n])
				if err == nil && id.Subject != fmt.Sprint(n) {
					t.Errorf("token %d is taken for %s", n, id.Subject)
				}
				if err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 100 {
			keys.key.Store([]keyBox{{testEd().Public(), nil}, {other.Public(), nil}, {nil, gateway.ErrUnauthenticated}}[i%3])
		}
		keys.key.Store(keyBox{testEd().Public(), nil})
	})
	wg.Wait()
}

// TestAuthHitAllocations bounds the allocations of a cache hit: the copy of the header (its map and one group
// of it) and the field.
func TestAuthHitAllocations(t *testing.T) {
	r := benchRequest(edToken(nil))
	w := discardWriter{make(http.Header)}
	measure := func(h http.Handler) float64 {
		h.ServeHTTP(w, r)
		return testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) })
	}
	if n := measure(outside(gateway.Auth(edJWT(nil), nil)(silent))) - measure(outside(silent)); n > 4 {
		t.Errorf("%v allocations", n)
	}
}
