package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway/internal/fetch"
	"github.com/seed-96248d0c/gateway/internal/jose"
)

// KeySource finds the key for a token header. kid is the attacker's word until the signature holds; alg is
// one of JWTOptions.Algorithms. It is asked on every request, cached tokens too, so that a withdrawn key ends
// its tokens; it must be cheap when it has the key, and safe for concurrent use.
//
// A key is an *rsa.PublicKey, an *ecdsa.PublicKey, an ed25519.PublicKey or a []byte, and is not changed once
// it has been returned. An error that wraps ErrUnauthenticated says that there is no such key; any other says
// that the source cannot tell, which answers 503 unless it is an *Error.
type KeySource interface {
	Key(ctx context.Context, kid, alg string) (any, error)
}

// errNoKey does not name the kid: it is as long, as strange and as frequent as the attacker likes.
const errNoKey = badCredentials("no such key")

// keyFrom asks a source and gives its errors a status.
func keyFrom(ctx context.Context, keys KeySource, kid, alg string) (any, error) {
	key, err := keys.Key(ctx, kid, alg)
	if err == nil {
		return key, nil
	}
	var e *Error
	if errors.Is(err, ErrUnauthenticated) || errors.As(err, &e) || ctx.Err() != nil {
		return nil, err
	}
	return nil, &Error{Status: http.StatusServiceUnavailable, Err: err}
}

// staticKeys are keys that never change.
type staticKeys struct {
	one   any // for every kid, if not nil
	byKid map[string]any
}

// StaticKey is one key for every kid, and for tokens without one. It panics on a key that no algorithm can
// use: one of another type than KeySource names, an RSA key under 2048 bits or over 8192, another curve than
// P-256, P-384 and P-521, a secret under 32 bytes.
func StaticKey(key any) KeySource {
	return &staticKeys{one: staticKey("StaticKey", key)}
}

// StaticKeys are keys by kid; a token must name its own. It panics as StaticKey does, and without keys.
func StaticKeys(keys map[string]any) KeySource {
	if len(keys) == 0 {
		panic("gateway: StaticKeys: no keys")
	}
	s := &staticKeys{byKid: make(map[string]any, len(keys))}
	for kid, key := range keys {
		s.byKid[kid] = staticKey("StaticKeys", key)
	}
	return s
}

func staticKey(who string, key any) any {
	if !jose.IsUsable(key) {
		panic(fmt.Sprintf("gateway: %s: no algorithm can use this %T", who, key))
	}
	switch k := key.(type) {
	case []byte:
		return slices.Clone(k)
	case ed25519.PublicKey:
		return slices.Clone(k)
	}
	return key
}

// Key returns the key for kid, if alg can use it.
func (s *staticKeys) Key(_ context.Context, kid, alg string) (any, error) {
	key := s.one
	if key == nil {
		key = s.byKid[kid]
	}
	if a := jose.Lookup(alg); a == nil || !a.Accepts(key) {
		return nil, errNoKey
	}
	return key, nil
}

// serve reports whether there is a key for any of methods.
func (s *staticKeys) serve(methods map[string]*jose.Algorithm) bool {
	for _, a := range methods {
		if s.one != nil && a.Accepts(s.one) {
			return true
		}
		for _, key := range s.byKid {
			if a.Accepts(key) {
				return true
			}
		}
	}
	return false
}

// JWKSOptions say how a key set is fetched and kept.
type JWKSOptions struct {
	Client      *http.Client  // nil: one with a 5s timeout
	MaxAge      time.Duration // 0 means the response's Cache-Control, at most 1h, or 15m
	MinInterval time.Duration // 0 means 10s
	MaxBytes    int64         // 0 means 1 MiB
}

// JWKS is a KeySource over a URL (RFC 7517). It fetches on first use, refreshes when three quarters of the
// set's age are over and on an unknown kid, never more often than MinInterval however many requests ask,
// serves the last good set while the URL fails or sends an empty or unreadable one, and blocks no request
// whose key it already has: a refresh runs in one goroutine, started by a request and bounded by Client's
// timeout, 5s where it has none. A request with an unknown kid waits for a refresh that begins after it came, so
// that a key may be used as soon as it is published; when MinInterval puts that off by more than a second, the
// request is refused at once. While the URL fails nobody can tell an unknown kid from a new one, and it is answered
// with 503 and Retry-After.
//
// A key that cannot be used is skipped: symmetric keys and those published with their private half always,
// others than for signatures (use, key_ops), of an unknown type, curve or algorithm, malformed or too weak. A
// key with an alg serves that algorithm alone. A token without a kid is verified only if one key alone could
// be meant.
//
// Redirects to another host or scheme are not followed. A refresh that fails is told by a warning in
// slog.Default; gateway.jwks.refreshes in the global MeterProvider counts all, by outcome "ok" or "error".
//
// It is safe for concurrent use and holds at most two sets, one of them while a refresh reads it.
type JWKS struct {
	client      *fetch.Client
	url         *url.URL
	maxAge      time.Duration
	minInterval time.Duration

	set atomic.Pointer[fetchedKeys] // the last good one

	mu      sync.Mutex
	running chan struct{} // closed when the running refresh is over; nil when none runs
	last    time.Time     // when the last refresh began
	err     error         // how it failed

	refreshes  metric.Int64Counter
	good, fail metric.MeasurementOption
}

// fetchedKeys is a set with the time from which it is to be refreshed.
type fetchedKeys struct {
	keys    *jose.KeySet
	refresh time.Time
}

// NewJWKS returns the keys at rawURL without asking for them yet. It refuses a URL that is not https, unless
// it is on loopback, and a negative option.
func NewJWKS(rawURL string, opts *JWKSOptions) (*JWKS, error) {
	u, err := fetch.ParseURL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewJWKS: %w", err)
	}
	var o JWKSOptions
	if opts != nil {
		o = *opts
	}
	if o.MaxAge < 0 || o.MinInterval < 0 || o.MaxBytes < 0 {
		return nil, errors.New("gateway: NewJWKS: negative option")
	}
	if o.MinInterval == 0 {
		o.MinInterval = 10 * time.Second
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 20
	}
	k := &JWKS{
		client:      fetch.NewClient(o.Client, o.MaxBytes),
		url:         u,
		maxAge:      o.MaxAge,
		minInterval: o.MinInterval,
		good:        metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "ok"))),
		fail:        metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "error"))),
	}
	k.refreshes, err = otel.GetMeterProvider().Meter(scope).Int64Counter("gateway.jwks.refreshes",
		metric.WithDescription("Attempts to fetch a key set, by outcome."),
		metric.WithUnit("{refresh}"))
	if err != nil {
		otel.Handle(err)
	}
	return k, nil
}

// maxKeyWait is how long a request with an unknown kid waits for MinInterval to pass.
const maxKeyWait = time.Second

// Key returns the key that kid and alg mean. The error wraps ErrUnauthenticated when there is none, is an
// *Error with status 503 when the last refresh failed and the last good set has none, and ctx's own when that
// ended first.
func (k *JWKS) Key(ctx context.Context, kid, alg string) (any, error) {
	now := time.Now()
	if set := k.set.Load(); set != nil {
		if key := set.keys.Find(kid, alg); key != nil {
			if now.After(set.refresh) {
				k.refresh(ctx, now)
			}
			return key, nil
		}
	}
	// A refresh that began before the request came may have missed a key that was published between.
	for arrived := now; ; now = time.Now() {
		running, began, wait := k.refresh(ctx, now)
		late := began.Before(arrived)
		if running == nil && late && wait <= maxKeyWait {
			soon := time.NewTimer(wait)
			select {
			case <-soon.C:
				continue
			case <-ctx.Done():
				soon.Stop()
				return nil, ctx.Err()
			}
		}
		if running != nil {
			select {
			case <-running:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		missing := k.missing() // before the set is looked at: it may be replaced in between
		if set := k.set.Load(); set != nil {
			if key := set.keys.Find(kid, alg); key != nil {
				return key, nil
			}
		}
		if running == nil || !late {
			return nil, missing
		}
	}
}

// missing is what the last refresh says of a key that is not in the set: that there is none, or nothing.
func (k *JWKS) missing() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		return errNoKey
	}
	return &Error{
		Status: http.StatusServiceUnavailable,
		Header: http.Header{"Retry-After": {seconds(k.minInterval - time.Since(k.last))}},
		Err:    fmt.Errorf("gateway: key set out of reach: %w", k.err),
	}
}

// refresh begins a refresh, if none runs and one may. It returns what is closed when the running one is
// over, nil when none runs; when the last one began; and in how long another may.
func (k *JWKS) refresh(ctx context.Context, now time.Time) (running <-chan struct{}, began time.Time, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != nil {
		return k.running, k.last, 0
	}
	if wait := k.minInterval - now.Sub(k.last); wait > 0 && !k.last.IsZero() {
		return nil, k.last, wait
	}
	k.last = now
	done := make(chan struct{})
	k.running = done
	// Others wait for this refresh too: it outlives the request that began it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.client.Timeout())
	go func() {
		defer cancel()
		set, err := k.fetch(ctx, now)
		if err == nil {
			k.set.Store(set)
			k.refreshes.Add(ctx, 1, k.good)
		} else {
			k.refreshes.Add(ctx, 1, k.fail)
			slog.Default().LogAttrs(ctx, slog.LevelWarn, "gateway: key set not refreshed",
				slog.String("url", k.url.Redacted()),
				slog.Bool("serving_last_good", k.set.Load() != nil),
				slog.String("error", err.Error()))
		}
		k.mu.Lock()
		k.running, k.err = nil, err
		k.mu.Unlock()
		close(done)
	}()
	return done, now, 0
}

func (k *JWKS) fetch(ctx context.Context, now time.Time) (*fetchedKeys, error) {
	body, header, err := k.client.Get(ctx, k.url)
	if err != nil {
		return nil, err
	}
	keys, err := jose.ParseKeySet(body)
	if err != nil {
		return nil, err
	}
	age := k.maxAge
	if age == 0 {
		age = cacheAge(header)
	}
	return &fetchedKeys{keys, now.Add(max(age*3/4, k.minInterval))}, nil
}

// cacheAge is how long the response may be used (RFC 9111 section 5.2.2), at most an hour; 15 minutes where
// it does not say.
func cacheAge(h http.Header) time.Duration {
	age := 15 * time.Minute
	for _, line := range h["Cache-Control"] {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return 0
			case "max-age":
				if n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31); err == nil {
					age = time.Duration(n) * time.Second
				}
			}
		}
	}
	return min(age, time.Hour)
}
