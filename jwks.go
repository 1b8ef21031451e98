package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math"
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
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// KeySource returns the keys that verify tokens. kid and alg are from the token's header; alg is one of
// JWTOptions.Algorithms. The signature is not verified yet, so an attacker can choose kid.
//
// Key is called for every request, even if its token is in the cache, so that a token is refused as soon as
// its key is withdrawn. So a Key that has the key must be fast. It must be safe for concurrent use.
//
// A key is an *rsa.PublicKey, an *ecdsa.PublicKey, an ed25519.PublicKey or a []byte for a secret. It must not
// be modified once it has been returned. An error that wraps ErrUnauthenticated means that there is no such
// key. An *Error is answered with its own status. Any other error means that the key is not available now,
// and is answered with 503.
type KeySource interface {
	Key(ctx context.Context, kid, alg string) (any, error)
}

// errNoKey does not contain the kid, which an attacker can choose: it would let him write to the log.
const errNoKey = badCredentials("no such key")

// candidateSource is a KeySource in which a kid can have several keys. Without an error, the list has at
// least one key. It must not be modified.
type candidateSource interface {
	candidates(ctx context.Context, kid, alg string) ([]any, error)
}

// foundKeys holds the keys that may have signed a token: one, or a list.
type foundKeys struct {
	one  any
	list []any // nil if there is only one
}

// has reports whether f contains key.
func (f foundKeys) has(key any) bool {
	if f.list == nil {
		return jose.SameKey(f.one, key)
	}
	for _, k := range f.list {
		if jose.SameKey(k, key) {
			return true
		}
	}
	return false
}

// keysFrom gets the keys for kid and alg from keys. An error that is not a refusal becomes a 503.
func keysFrom(ctx context.Context, keys KeySource, kid, alg string) (found foundKeys, err error) {
	if c, ok := keys.(candidateSource); ok {
		found.list, err = c.candidates(ctx, kid, alg)
	} else {
		found.one, err = keys.Key(ctx, kid, alg)
	}
	if err != nil {
		return foundKeys{}, lookupError(ctx, err)
	}
	return found, nil
}

// staticKeys is a KeySource whose keys never change.
type staticKeys struct {
	one   any            // for every kid; nil if byKid is used
	byKid map[string]any // used if one is nil
}

// StaticKey returns a KeySource with one key, for every kid and for tokens without one. It panics on a key
// that no algorithm accepts: one of a type that KeySource does not list, an RSA key under 2048 or over 8192
// bits, a curve other than P-256, P-384 and P-521, or a secret under 32 bytes.
func StaticKey(key any) KeySource {
	return &staticKeys{one: staticKey("StaticKey", key)}
}

// StaticKeys returns a KeySource that selects keys by kid. A token without a kid is refused. StaticKeys
// panics without keys, and on a key on which StaticKey panics.
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

// staticKey returns key, or a copy if the caller could modify it. It panics on a key that no algorithm
// accepts. who is the name of the constructor, for the message.
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

// Key returns the key for kid, if alg accepts it.
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

// serve reports whether a key fits any of methods.
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

// ParseJWKS returns a KeySource with the keys of a key set (RFC 7517 section 5), for keys that come from a
// file or are part of the program. It selects keys as a JWKS does and skips those that a JWKS skips. The
// error says that the set cannot be read, or that it has no usable key.
func ParseJWKS(set []byte) (KeySource, error) {
	keys, err := jose.ParseKeySet(set)
	if err != nil {
		return nil, fmt.Errorf("gateway: ParseJWKS: %w", err)
	}
	return parsedKeys{keys}, nil
}

// parsedKeys is a key set that never changes.
type parsedKeys struct{ set *jose.KeySet }

func (p parsedKeys) Key(ctx context.Context, kid, alg string) (any, error) {
	return firstKey(p.candidates(ctx, kid, alg))
}

func (p parsedKeys) candidates(_ context.Context, kid, alg string) ([]any, error) {
	if list := p.set.Find(kid, alg); len(list) > 0 {
		return list, nil
	}
	return nil, errNoKey
}

// serve reports whether a key fits any of methods.
func (p parsedKeys) serve(methods map[string]*jose.Algorithm) bool {
	for alg := range methods {
		if p.set.Serves(alg) {
			return true
		}
	}
	return false
}

func firstKey(list []any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// JWKSOptions configures how a JWKS fetches its key set. A negative value is an error of NewJWKS.
type JWKSOptions struct {
	Client      *http.Client  // nil means one with a timeout of 5s
	MaxAge      time.Duration // age up to which a set is used without a refresh; 0 means that of Cache-Control, at most 1h, or 15m without one
	MinInterval time.Duration // least time between the starts of two refreshes; 0 means 10s
	MaxBytes    int64         // limit of the response's body; 0 means 1 MiB
	AllowHTTP   bool          // accept plain http beyond loopback, for a provider inside the same trusted network
}

// JWKS is a KeySource that fetches its keys from a URL (RFC 7517). It is safe for concurrent use.
//
// The set is fetched when a key is first needed. It is fetched again when three quarters of MaxAge are over,
// and when a token has a kid that the set does not contain. Refreshes start at least MinInterval apart,
// however many requests need one. While a refresh fails, or returns a set that is empty or unreadable, the
// last good set stays in use.
//
// A request whose key is in the set does not wait, with one exception. After a long time without requests,
// the set may be older than twice its MaxAge. The first requests then wait for the refresh, so that a key
// that was withdrawn meanwhile is not accepted. If that refresh fails, they use the last good set, and no
// request waits in this way again until a refresh has succeeded. A refresh runs on its own goroutine, which a
// request starts. It ends after Client's timeout, or after 5s if Client has none.
//
// A request with an unknown kid waits for a refresh that starts after the request arrived, so that a key can
// be used as soon as it is published. If MinInterval does not permit that refresh within a second, the
// request is refused at once. After a failed refresh, an unknown kid may be new, so the request is answered
// with 503 and Retry-After instead of 401.
//
// A JWKS skips keys that cannot be used: symmetric keys, keys published with their private part, keys for
// other uses than signatures (use, key_ops), keys of an unknown type, curve or algorithm, and malformed and
// weak keys. A malformed key does not affect the others, even if it has a member that occurs twice, deep
// nesting or a lone surrogate. A member that is null is absent. A key with alg is used only for that
// algorithm.
//
// If several keys have the same kid, each of them that fits the algorithm is tried, up to four. A token
// without a kid, or whose kid is not in the set, is verified with the keys that have no kid, provided that no
// key with a kid fits its algorithm. If such a key exists, a token without a kid is verified only if exactly
// one key of the set fits its algorithm.
//
// Redirects to another host or scheme are not followed. A refresh that fails is logged as a warning to
// slog.Default. The counter gateway.jwks.refreshes in the global MeterProvider counts all refreshes, by
// outcome "ok" or "error".
//
// A JWKS keeps one set in memory, and a second one while a refresh parses it.
type JWKS struct {
	client      *fetch.Client
	maxAge      time.Duration
	minInterval time.Duration

	// url is the URL of the set. If it is nil, a refresh calls locate to find it. Only refreshes use these
	// two fields, and only one refresh runs at a time.
	url    *url.URL
	locate func(context.Context) (*url.URL, error)

	set atomic.Pointer[fetchedKeys] // the last good set; nil before the first

	mu sync.Mutex // guards keyRefresh
	keyRefresh

	refreshes  metric.Int64Counter
	good, fail metric.MeasurementOption
}

// keyRefresh is the state of the refreshes of a JWKS.
type keyRefresh struct {
	running chan struct{} // closed at the end of the running refresh; nil if none runs
	last    time.Time     // start of the last refresh
	err     error         // of the last refresh that ended; nil if it succeeded
}

// fetchedKeys is a key set that was fetched.
type fetchedKeys struct {
	keys    *jose.KeySet
	refresh time.Time // after this time, a request for one of the keys starts a refresh
	stale   time.Time // after this time, it also waits for that refresh
}

// NewJWKS returns the key set at rawURL. The first call of Key fetches it. NewJWKS returns an error for a
// negative option, and for a URL that is not https, unless its host is on loopback or AllowHTTP is set.
func NewJWKS(rawURL string, opts *JWKSOptions) (*JWKS, error) {
	var o JWKSOptions
	if opts != nil {
		o = *opts
	}
	u, err := fetch.ParseURL(rawURL, o.AllowHTTP)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewJWKS: %w", err)
	}
	k, err := newJWKS(o)
	if err != nil {
		return nil, fmt.Errorf("gateway: NewJWKS: %w", err)
	}
	k.url = u
	return k, nil
}

// newJWKS returns a JWKS that has no URL yet.
func newJWKS(o JWKSOptions) (*JWKS, error) {
	if o.MaxAge < 0 || o.MinInterval < 0 || o.MaxBytes < 0 {
		return nil, errors.New("negative option")
	}
	if o.MinInterval == 0 {
		o.MinInterval = 10 * time.Second
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 20
	}
	k := &JWKS{
		client:      fetch.NewClient(o.Client, o.MaxBytes),
		maxAge:      o.MaxAge,
		minInterval: o.MinInterval,
		good:        metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "ok"))),
		fail:        metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "error"))),
	}
	k.refreshes = telemetry.Counter(otel.GetMeterProvider().Meter(scope), "gateway.jwks.refreshes",
		"Attempts to fetch a key set, by outcome.", "{refresh}")
	return k, nil
}

// maxKeyWait is how long a request with an unknown kid waits until MinInterval permits a refresh.
const maxKeyWait = time.Second

// Key returns the key for kid and alg, the first one if kid has several. The error wraps ErrUnauthenticated
// when there is no such key. It is an *Error with status 503 when the last good set does not contain the key
// and the last refresh failed. It is ctx.Err() when ctx ends first.
func (k *JWKS) Key(ctx context.Context, kid, alg string) (any, error) {
	return firstKey(k.candidates(ctx, kid, alg))
}

// candidates returns the keys that may have signed a token with this kid and alg. The errors are those of
// Key.
func (k *JWKS) candidates(ctx context.Context, kid, alg string) ([]any, error) {
	now := time.Now()
	set := k.set.Load()
	if set != nil && now.After(set.stale) {
		if err := k.awaitRefresh(ctx, now); err != nil {
			return nil, err
		}
		set = k.set.Load()
	}
	if set != nil {
		if list := set.keys.Find(kid, alg); list != nil {
			if now.After(set.refresh) {
				k.refresh(ctx, now)
			}
			return list, nil
		}
	}
	return k.awaitKey(ctx, kid, alg, now)
}

// awaitRefresh waits for a refresh, unless the last one failed: the next is then likely to fail as well. The
// error is ctx.Err() if ctx ends first.
func (k *JWKS) awaitRefresh(ctx context.Context, now time.Time) error {
	k.mu.Lock()
	failed := k.err != nil
	k.mu.Unlock()
	if failed {
		return nil
	}
	running, _, _ := k.refresh(ctx, now)
	if running == nil {
		return nil
	}
	select {
	case <-running:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitKey waits for a refresh that began after the request arrived, so that it contains every key that was
// published before the request.
//
// A refresh that began before the request may have read the set just before the key was published. So a
// request that finds such a refresh running waits for its end and then, if the key is still missing, for the
// next one.
func (k *JWKS) awaitKey(ctx context.Context, kid, alg string, arrived time.Time) ([]any, error) {
	for now := arrived; ; now = time.Now() {
		running, began, wait := k.refresh(ctx, now)
		stale := began.Before(arrived)
		if running == nil && stale && wait <= maxKeyWait {
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
		missing := k.missing() // read before the set, because the next refresh may replace both in between
		if set := k.set.Load(); set != nil {
			if list := set.keys.Find(kid, alg); list != nil {
				return list, nil
			}
		}
		if running == nil || !stale {
			return nil, missing
		}
	}
}

// missing returns the error for a key that is not in the set: a 401, or a 503 if the last refresh failed.
func (k *JWKS) missing() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		return errNoKey
	}
	return &Error{
		Status: http.StatusServiceUnavailable,
		Header: http.Header{"Retry-After": {seconds(k.minInterval - time.Since(k.last))}},
		Err:    fmt.Errorf("gateway: key set not available: %w", k.err),
	}
}

// refresh starts a refresh, unless one is running or MinInterval does not permit it. running is closed when
// the running refresh ends, and nil if none runs. began is the start of the last refresh. If none runs, wait
// is the time until MinInterval permits the next one.
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
	// Other requests may wait for this refresh, so it must not end with the request that started it.
	go k.runRefresh(context.WithoutCancel(ctx), now, done)
	return done, now, 0
}

// runRefresh fetches the set, stores a good one, and closes done.
func (k *JWKS) runRefresh(ctx context.Context, now time.Time, done chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, k.client.Timeout())
	defer cancel()
	set, err := k.fetchSafely(ctx, now)
	if err == nil {
		k.set.Store(set)
		k.refreshes.Add(ctx, 1, k.good)
	} else {
		k.refreshes.Add(ctx, 1, k.fail)
		slog.Default().LogAttrs(ctx, slog.LevelWarn, "gateway: key set not refreshed",
			slog.String("url", k.location()),
			slog.Bool("serving_last_good", k.set.Load() != nil),
			slog.String("error", err.Error()))
	}
	k.mu.Lock()
	k.running, k.err = nil, err
	k.mu.Unlock()
	close(done)
}

// fetchSafely calls fetch, and returns a panic as an error. On this goroutine, a panic would end the process.
func (k *JWKS) fetchSafely(ctx context.Context, now time.Time) (set *fetchedKeys, err error) {
	defer func() {
		if p := recover(); p != nil {
			set, err = nil, &panicError{p} // runRefresh logs it
		}
	}()
	return k.fetch(ctx, now)
}

// location returns the URL for the log.
func (k *JWKS) location() string {
	if k.url == nil {
		return "not discovered yet"
	}
	return k.url.Redacted()
}

// fetch reads the set, and sets the time of the next refresh: after three quarters of its maximum age.
func (k *JWKS) fetch(ctx context.Context, now time.Time) (*fetchedKeys, error) {
	if k.url == nil {
		u, err := k.locate(ctx)
		if err != nil {
			return nil, err
		}
		k.url = u
	}
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
	return &fetchedKeys{
		keys:    keys,
		refresh: now.Add(max(age/4*3, k.minInterval)),
		stale:   now.Add(2 * max(min(age, math.MaxInt64/2), min(k.minInterval, math.MaxInt64/2))),
	}, nil
}

// cacheAge returns how long the response may be used (RFC 9111 section 5.2.2). It is at most an hour, and 15
// minutes if Cache-Control has no max-age.
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
