package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// jwksOver returns a JWKS whose requests go to answer, without a socket, for use in a bubble.
func jwksOver(t *testing.T, o gateway.JWKSOptions, answer func(*http.Request) (*http.Response, error)) *gateway.JWKS {
	t.Helper()
	o.Client = &http.Client{Transport: roundTrip(answer), Timeout: 5 * time.Second}
	k, err := gateway.NewJWKS("https://id.example/keys", &o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestNewJWKSURL(t *testing.T) {
	for rawURL, ok := range map[string]bool{
		"https://id.example/keys":     true,
		"http://127.0.0.1:8080/keys":  true,
		"http://[::1]/keys":           true,
		"http://localhost:1/keys":     true,
		"http://id.example/keys":      false,
		"http://127.0.0.1.evil.test/": false,
		"http://localhost.evil.test/": false,
		"http://10.0.0.1/keys":        false,
		"file:///etc/passwd":          false,
		"/keys":                       false,
		"":                            false,
		"https:///keys":               false,
		"https://id.example:x/keys":   false,
	} {
		if _, err := gateway.NewJWKS(rawURL, nil); (err == nil) != ok {
			t.Errorf("%q: error %v", rawURL, err)
		}
	}
	for name, o := range map[string]gateway.JWKSOptions{
		"MaxAge": {MaxAge: -1}, "MinInterval": {MinInterval: -1}, "MaxBytes": {MaxBytes: -1},
	} {
		if _, err := gateway.NewJWKS("https://id.example/keys", &o); err == nil {
			t.Errorf("negative %s is taken", name)
		}
	}
}

// TestJWKSSkipsUnusableKeys: a key that was skipped is one that the set does not contain. Package jose tests
// which keys are skipped.
func TestJWKSSkipsUnusableKeys(t *testing.T) {
	set := keySet(jwk("private", edPublic(), map[string]any{"d": "AQ"}), jwk("secret", testSecret, nil), jwk("good", edPublic(), nil))
	k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) { return answeredText(r, 200, set, nil), nil })
	for _, tt := range []struct {
		kid, alg string
		ok       bool
	}{{"private", "EdDSA", false}, {"secret", "HS256", false}, {"good", "EdDSA", true}} {
		key, err := k.Key(t.Context(), tt.kid, tt.alg)
		if (err == nil) != tt.ok || (key != nil) != tt.ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
			t.Errorf("%s: key %v, error %v", tt.kid, key, err)
		}
	}
}

func TestJWKSWithoutKid(t *testing.T) {
	one := keySet(jwk("a", edPublic(), nil), jwk("b", &testRSA().PublicKey, nil))
	two := keySet(jwk("a", &testRSA().PublicKey, nil), jwk("b", &testRSA().PublicKey, nil))
	same := keySet(jwk("a", &testEC().PublicKey, nil), jwk("a", &testRSA().PublicKey, nil))
	for name, tt := range map[string]struct {
		set, kid, alg string
		ok            bool
	}{
		"the only one of its kind": {one, "", "RS256", true},
		"one of two":               {two, "", "RS256", false},
		"a kid for two kinds":      {same, "a", "RS256", true},
	} {
		k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, tt.set, nil), nil
		})
		if _, err := k.Key(t.Context(), tt.kid, tt.alg); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJWKSAge checks when a set is fetched again. Its key is in the set all the time, so no request waits.
func TestJWKSAge(t *testing.T) {
	for name, tt := range map[string]struct {
		maxAge       time.Duration
		cacheControl string
		want         time.Duration // before which nothing is asked
	}{
		"nothing said":    {0, "", 15 * time.Minute * 3 / 4},
		"max-age":         {0, "public, max-age=600", 450 * time.Second},
		"quoted":          {0, `max-age="600"`, 450 * time.Second},
		"at most an hour": {0, "max-age=86400", 45 * time.Minute},
		"no-store":        {0, "no-store", 10 * time.Second},
		"zero":            {0, "max-age=0", 10 * time.Second},
		"nonsense":        {0, "max-age=soon", 15 * time.Minute * 3 / 4},
		"own":             {time.Minute, "max-age=600", 45 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fetches := 0
				k := jwksOver(t, gateway.JWKSOptions{MaxAge: tt.maxAge}, func(r *http.Request) (*http.Response, error) {
					fetches++
					return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), http.Header{"Cache-Control": {tt.cacheControl}}), nil
				})
				ask := func() {
					if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				ask()
				time.Sleep(tt.want)
				ask()
				if fetches != 1 {
					t.Errorf("%d fetches within %v", fetches, tt.want)
				}
				time.Sleep(time.Nanosecond)
				ask()
				if fetches != 2 {
					t.Errorf("%d fetches after %v", fetches, tt.want)
				}
			})
		})
	}
}

func TestJWKSRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, second, _ := ed25519.GenerateKey(rand.Reader)
		old, next := jwk("old", edPublic(), nil), jwk("new", second.Public(), nil)
		set := keySet(old)
		k := jwksOver(t, gateway.JWKSOptions{MaxAge: time.Minute}, func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, set, nil), nil
		})
		j := gateway.NewJWT(k, gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}})
		oldToken := sign("EdDSA", testEd(), map[string]any{"kid": "old"}, claimSet(nil))
		newToken := sign("EdDSA", second, map[string]any{"kid": "new"}, claimSet(nil))
		check := func(what, token string, ok bool) {
			t.Helper()
			_, err := j.Verify(t.Context(), token)
			if (err == nil) != ok || err != nil && !errors.Is(err, gateway.ErrUnauthenticated) {
				t.Errorf("%s: %v", what, err)
			}
			synctest.Wait()
		}
		check("the first key", oldToken, true)
		time.Sleep(11 * time.Second)
		set = keySet(old, next)
		check("a key that was published since", newToken, true)
		check("the key beside it", oldToken, true)
		set = keySet(next)
		time.Sleep(time.Minute)
		check("the new key, whose request begins the refresh", newToken, true)
		check("a key that was withdrawn", oldToken, false)
		check("the new key", newToken, true)
	})
}

// TestJWKSUsedAtOnce: a provider publishes new keys more often than its set is fetched, and uses each at
// once.
func TestJWKSUsedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var version, fetches atomic.Int64
		start := time.Now()
		k := jwksOver(t, gateway.JWKSOptions{MinInterval: 500 * time.Millisecond}, func(r *http.Request) (*http.Response, error) {
			fetches.Add(1)
			body := keySet(jwk(fmt.Sprint("k", version.Load()), edPublic(), nil))
			time.Sleep(100 * time.Millisecond) // the key that is published meanwhile is not in the answer
			return answeredText(r, 200, body, nil), nil
		})
		for range 20 {
			if _, err := k.Key(t.Context(), fmt.Sprint("k", version.Load()), "EdDSA"); err != nil {
				t.Errorf("key %d, after %v: %v", version.Load(), time.Since(start), err)
			}
			go func() { _, _ = k.Key(t.Context(), "unknown", "EdDSA") }() // begins a refresh when one may
			time.Sleep(170 * time.Millisecond)
			version.Add(1)
		}
		time.Sleep(5 * time.Second)
		if most := int64(time.Since(start)/(500*time.Millisecond)) + 1; fetches.Load() > most {
			t.Errorf("%d fetches, at most %d", fetches.Load(), most)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _ = k.Key(t.Context(), "unknown", "EdDSA")
		if _, err := k.Key(ctx, "unknown", "EdDSA"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestJWKSFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fetches atomic.Int64
		k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) {
			fetches.Add(1)
			time.Sleep(time.Second)
			return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
		})
		if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil {
			t.Fatal(err)
		}
		flood := func() {
			var wg sync.WaitGroup
			for i := range 1000 {
				wg.Go(func() {
					if _, err := k.Key(t.Context(), fmt.Sprint("unknown", i), "EdDSA"); !errors.Is(err, gateway.ErrUnauthenticated) {
						t.Errorf("unknown kid: %v", err)
					}
				})
			}
			start := time.Now()
			if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil || time.Since(start) != 0 {
				t.Errorf("a known kid waited %v, error %v", time.Since(start), err)
			}
			wg.Wait()
		}
		for range 5 {
			flood()
		}
		if n := fetches.Load(); n != 1 {
			t.Errorf("%d fetches before MinInterval is over", n)
		}
		time.Sleep(10 * time.Second)
		for range 5 {
			flood()
		}
		if n := fetches.Load(); n != 2 {
			t.Errorf("%d fetches, want one for each MinInterval", n)
		}
	})
}

// TestJWKSFailures: the provider fails in each way, before the first good set and after it.
func TestJWKSFailures(t *testing.T) {
	for name, fail := range map[string]func(r *http.Request) (*http.Response, error){
		"down":       func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
		"status 500": func(r *http.Request) (*http.Response, error) { return answeredText(r, 500, keySet(), nil), nil },
		"status 204": func(r *http.Request) (*http.Response, error) { return answeredText(r, 204, "", nil), nil },
		"garbage":    func(r *http.Request) (*http.Response, error) { return answeredText(r, 200, "<html>", nil), nil },
		"no keys":    func(r *http.Request) (*http.Response, error) { return answeredText(r, 200, `{"keys":[]}`, nil), nil },
		"no set":     func(r *http.Request) (*http.Response, error) { return answeredText(r, 200, `[]`, nil), nil },
		"unusable keys": func(r *http.Request) (*http.Response, error) {
			return answeredText(r, 200, keySet(jwk("k", testSecret, nil)), nil), nil
		},
		"100 MB": func(r *http.Request) (*http.Response, error) {
			resp := answeredText(r, 200, "", nil)
			// Only its size is wrong: whitespace may follow JSON.
			body := keySet(jwk("k", edPublic(), nil)) + strings.Repeat(" ", 1<<20)
			resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), io.LimitReader(endless{t}, 100<<20)))
			return resp, nil
		},
		"hung": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		},
		"hung in its body": func(r *http.Request) (*http.Response, error) {
			resp := answeredText(r, 200, "", nil)
			resp.Body = io.NopCloser(hung{r.Context()})
			return resp, nil
		},
		"cut off": func(r *http.Request) (*http.Response, error) {
			resp := answeredText(r, 200, "", nil)
			resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"keys"`), broken{}))
			return resp, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				good := false
				k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) {
					if good {
						return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
					}
					return fail(r)
				})
				start := time.Now()
				_, err := k.Key(t.Context(), "k", "EdDSA")
				var e *gateway.Error
				if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.Header.Get("Retry-After") == "" {
					t.Fatalf("without a set: %v", err)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("waited %v", took)
				}
				good = true
				if _, err := k.Key(t.Context(), "k", "EdDSA"); err == nil {
					t.Error("asked again before MinInterval is over")
				}
				time.Sleep(10 * time.Second)
				if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil {
					t.Fatalf("provider is back: %v", err)
				}
				good = false
				for i := range 5 {
					time.Sleep(time.Hour)
					start = time.Now()
					// The first request after so long waits for a refresh, at most for the client's timeout.
					if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil || time.Since(start) != 0 && (i > 0 || time.Since(start) > 5*time.Second) {
						t.Errorf("the last good set: %v after %v", err, time.Since(start))
					}
				}
				time.Sleep(10 * time.Second)
				for range 2 { // the first waits for a refresh, the second may not begin one
					if _, err := k.Key(t.Context(), "new", "EdDSA"); !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.Header.Get("Retry-After") == "" {
						t.Errorf("a kid that may be new: %v", err)
					}
				}
				good = true
				time.Sleep(10 * time.Second)
				if _, err := k.Key(t.Context(), "new", "EdDSA"); !errors.Is(err, gateway.ErrUnauthenticated) {
					t.Errorf("a kid that is not there: %v", err)
				}
				time.Sleep(10 * time.Second) // the last refresh is over before the bubble is
			})
		})
	}
}

// endless is a body that must not be read.
type endless struct{ t *testing.T }

func (e endless) Read(p []byte) (int, error) {
	e.t.Error("read on beyond MaxBytes")
	return 0, io.ErrUnexpectedEOF
}

type hung struct{ ctx context.Context }

func (h hung) Read([]byte) (int, error) {
	<-h.ctx.Done()
	return 0, h.ctx.Err()
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestJWKSWaitEndsWithContext: a caller stops waiting when its context ends. The refresh that it started goes
// on for the others.
func TestJWKSWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) {
			select {
			case <-time.After(3 * time.Second):
				return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Key(ctx, "k", "EdDSA"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		start := time.Now()
		if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
	})
}

// TestJWKSOverHTTP has real listeners. Redirects within the provider are followed, those to another host are
// not.
func TestJWKSOverHTTP(t *testing.T) {
	set := keySet(jwk("k", edPublic(), nil))
	serve := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) }
	other := httptest.NewServer(http.HandlerFunc(serve))
	defer other.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", serve)
	mux.Handle("/within", http.RedirectHandler("/keys", http.StatusFound))
	mux.Handle("/away", http.RedirectHandler(other.URL, http.StatusFound))
	mux.Handle("/circle", http.RedirectHandler("/circle", http.StatusFound))
	provider := httptest.NewServer(mux)
	defer provider.Close()
	for path, ok := range map[string]bool{"/keys": true, "/within": true, "/away": false, "/circle": false, "/nothing": false} {
		k := must(gateway.NewJWKS(provider.URL+path, nil))
		_, err := k.Key(t.Context(), "k", "EdDSA")
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestJWKSRedirectFromTLS: a provider with https at its host name redirects. A redirect to https is followed,
// one to plain http at the same host name is not: whoever is on the way could answer there with keys of their
// own.
func TestJWKSRedirectFromTLS(t *testing.T) {
	set := keySet(jwk("k", edPublic(), nil))
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was asked for over plain http", r.URL)
		io.WriteString(w, set)
	}))
	defer plain.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, set) })
	mux.Handle("/to-https", http.RedirectHandler("https://example.com/keys", http.StatusFound))
	mux.Handle("/to-http", http.RedirectHandler("http://example.com/keys", http.StatusFound))
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()

	// example.com is a name in the test server's certificate. Both of its ports are on loopback here.
	listeners := map[string]net.Addr{
		"example.com:443": secure.Listener.Addr(),
		"example.com:80":  plain.Listener.Addr(),
	}
	client := secure.Client()
	transport := client.Transport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		to := listeners[addr]
		if to == nil {
			return nil, fmt.Errorf("dial %s", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, to.String())
	}
	client.Transport = transport

	for path, ok := range map[string]bool{"/keys": true, "/to-https": true, "/to-http": false} {
		k := must(gateway.NewJWKS("https://example.com"+path, &gateway.JWKSOptions{Client: client}))
		key, err := k.Key(t.Context(), "k", "EdDSA")
		if (err == nil) != ok {
			t.Errorf("%s: key %v, error %v", path, key, err)
		}
	}
}

// TestJWKSFloodOverHTTP sends a thousand unknown kids at once through a real gateway, while the provider does
// not answer. Requests with a known kid are answered meanwhile.
func TestJWKSFloodOverHTTP(t *testing.T) {
	const minInterval = 200 * time.Millisecond
	var fetches atomic.Int64
	asked, release := make(chan struct{}, 100), make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fetches.Add(1) > 1 {
			asked <- struct{}{}
			<-release
		}
		io.WriteString(w, keySet(jwk("k", edPublic(), nil)))
	}))
	defer provider.Close()
	patient := &http.Client{Timeout: time.Minute} // a busy machine needs its time for a thousand requests
	keys := must(gateway.NewJWKS(provider.URL, &gateway.JWKSOptions{MinInterval: minInterval, MaxAge: time.Hour, Client: patient}))
	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}})
	front := httptest.NewServer(gateway.Auth(tokens, nil)(silent))
	defer front.Close()
	transport := &http.Transport{MaxIdleConnsPerHost: 1000}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ask := func(kid string, claims map[string]any) int {
		r := must(http.NewRequest("GET", front.URL, nil))
		r.Header.Set("Authorization", "Bearer "+sign("EdDSA", testEd(), map[string]any{"kid": kid}, claimSet(claims)))
		resp, err := client.Do(r)
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	start := time.Now()
	if status := ask("k", nil); status != 200 {
		t.Fatalf("status %d", status)
	}
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if status := ask(fmt.Sprint("unknown-", i), nil); status != 401 {
				t.Errorf("unknown kid: status %d", status)
			}
		})
	}
	<-asked
	for i := range 10 {
		if status := ask("k", map[string]any{"sub": fmt.Sprint("user-", i)}); status != 200 {
			t.Errorf("known kid, seen never before: status %d", status)
		}
	}
	close(release)
	wg.Wait()
	if n, most := fetches.Load(), int64(time.Since(start)/minInterval)+1; n > most {
		t.Errorf("%d fetches, at most %d", n, most)
	}
}

// TestJWKSHostileOverHTTP: whatever the provider sends instead of a key set, the client gets 503.
func TestJWKSHostileOverHTTP(t *testing.T) {
	good := keySet(jwk("k", edPublic(), nil))
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Error("the redirect was followed")
		io.WriteString(w, good)
	}))
	defer elsewhere.Close()
	for name, serve := range map[string]http.HandlerFunc{
		"500":     func(w http.ResponseWriter, r *http.Request) { http.Error(w, good, 500) },
		"206":     func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(206); io.WriteString(w, good) },
		"garbage": func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{0, 0xff, '{', 1}) },
		"100 MB": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, good)
			blanks := bytes.Repeat([]byte(" "), 1<<20)
			for range 100 {
				if _, err := w.Write(blanks); err != nil {
					return
				}
			}
			t.Error("100 MB were read")
		},
		"8 MB, compressed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			io.WriteString(z, good)
			blanks := bytes.Repeat([]byte(" "), 1<<20)
			for range 8 {
				z.Write(blanks)
			}
			z.Close()
		},
		"nothing, slowly":  func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"header, and then": func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); <-r.Context().Done() },
		"cut off": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, good)
		},
		"to another host":   http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect).ServeHTTP,
		"to another scheme": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://"+r.Host, http.StatusFound) },
		"to a file":         http.RedirectHandler("file:///etc/passwd", http.StatusFound).ServeHTTP,
		"a connection cut":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			provider := httptest.NewServer(serve)
			defer provider.Close()
			k := must(gateway.NewJWKS(provider.URL, &gateway.JWKSOptions{Client: &http.Client{Timeout: 300 * time.Millisecond}}))
			tokens := gateway.NewJWT(k, gateway.JWTOptions{Issuer: testIssuer, Audience: testAudience, Algorithms: []string{"EdDSA"}})
			resp, body := askServer(t, gateway.Auth(tokens, nil)(silent), http.Header{
				"Authorization": {"Bearer " + sign("EdDSA", testEd(), map[string]any{"kid": "k"}, claimSet(nil))},
			})
			if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || strings.Contains(body, "127.0.0.1") {
				t.Errorf("status %d, Retry-After %q, %s", resp.StatusCode, resp.Header.Get("Retry-After"), body)
			}
		})
	}
}

// TestJWKSReportsRefreshes: failed refreshes are in the log and in the metric, while the last good set is in
// use.
func TestJWKSReportsRefreshes(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	otel.SetMeterProvider(tel)
	defer otel.SetMeterProvider(noop.NewMeterProvider())
	log := captureDefaultLog(t)
	synctest.Test(t, func(t *testing.T) {
		down := false
		k := jwksOver(t, gateway.JWKSOptions{}, func(r *http.Request) (*http.Response, error) {
			if down {
				return nil, errors.New("connection refused")
			}
			return answeredText(r, 200, keySet(jwk("k", edPublic(), nil)), nil), nil
		})
		for range 3 {
			if _, err := k.Key(t.Context(), "k", "EdDSA"); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			down = true
			time.Sleep(time.Hour)
		}
	})
	for _, want := range []string{"level=WARN", `"gateway: key set not refreshed"`, "serving_last_good=true", "connection refused", "url=https://id.example/keys"} {
		if n := strings.Count(log.String(), want); n != 2 {
			t.Errorf("%d times in the log: %s", n, want)
		}
	}
	counts := make(map[string]float64)
	for _, s := range tel.Series("gateway.jwks.refreshes") {
		outcome, _ := s.Attributes.Value("outcome")
		counts[outcome.AsString()] = s.Sum
	}
	if counts["ok"] != 1 || counts["error"] != 2 || len(counts) != 2 {
		t.Errorf("counted: %v", counts)
	}
}

// A panic in a key set's transport is a failed refresh: no request waits for ever, and the process lives.
func TestJWKSTransportPanics(t *testing.T) { synctest.Test(t, testJWKSTransportPanics) }

func testJWKSTransportPanics(t *testing.T) {
	defer time.Sleep(10 * time.Second) // until net/http's timer of the request is over
	logged := captureDefaultLog(t)
	keys, err := gateway.NewJWKS("https://id.example/keys", &gateway.JWKSOptions{
		Client: &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { panic("transport") })},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var e *gateway.Error
		if _, err := keys.Key(t.Context(), "k", "RS256"); !errors.As(err, &e) || e.Status != 503 {
			t.Errorf("%v", err)
		}
	}
	if n := strings.Count(logged.String(), "panic: transport"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged)
	}
}
