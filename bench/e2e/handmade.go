//go:build linux

package main

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"
)

// handmade is the gateway that a team writes in an afternoon from good libraries: fast, and without most of the care
// that a gateway needs. Its maps, for one, are never swept.
type handmade struct {
	parser    *jwt.Parser
	key       any
	tokens    sync.Map // token to *known
	addresses sync.Map // address to *rate.Limiter
	subjects  sync.Map // subject to *rate.Limiter
	breaker   *gobreaker.TwoStepCircuitBreaker[any]
	requests  atomic.Int64
	failures  atomic.Int64
	next      http.Handler
}

// known is a token that was verified.
type known struct {
	subject string
	scopes  []string
	expiry  time.Time
}

type handmadeClaims struct {
	Scope string `json:"scope"`
	jwt.RegisteredClaims
}

func handmadeHandler(target, dir string) (http.Handler, error) {
	key, err := tokenKey(dir)
	if err != nil {
		return nil, err
	}
	h := &handmade{
		parser: jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired()),
		key:    key,
		breaker: gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{Name: "files", ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.ConsecutiveFailures >= 5
		}}),
		next: tunedReverseProxy(target),
	}
	mux := http.NewServeMux()
	mux.Handle("GET /files/{name}", h.guard("read"))
	mux.Handle("POST /files/{name}", h.guard("write"))
	return mux, nil
}

func (h *handmade) guard(scope string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if !allow(&h.addresses, host) {
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		who, err := h.verify(raw)
		if err != nil {
			http.Error(w, "bad token", http.StatusUnauthorized)
			return
		}
		if !slices.Contains(who.scopes, scope) {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		if !allow(&h.subjects, who.subject) {
			http.Error(w, "too many requests", http.StatusTooManyRequests)
			return
		}
		done, err := h.breaker.Allow()
		if err != nil {
			http.Error(w, "unavailable", http.StatusServiceUnavailable)
			return
		}
		r.Header.Set("X-User-ID", who.subject)
		seen := &statusWriter{ResponseWriter: w, status: 200}
		h.next.ServeHTTP(seen, r)
		if seen.status >= 500 {
			h.failures.Add(1)
			done(errors.New("upstream failed"))
			return
		}
		done(nil)
	})
}

func allow(limits *sync.Map, key string) bool {
	l, ok := limits.Load(key)
	if !ok {
		l, _ = limits.LoadOrStore(key, rate.NewLimiter(never, never))
	}
	return l.(*rate.Limiter).Allow()
}

func (h *handmade) verify(raw string) (*known, error) {
	if k, ok := h.tokens.Load(raw); ok && time.Now().Before(k.(*known).expiry) {
		return k.(*known), nil
	}
	var claims handmadeClaims
	if _, err := h.parser.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) { return h.key, nil }); err != nil {
		return nil, err
	}
	k := &known{claims.Subject, strings.Fields(claims.Scope), claims.ExpiresAt.Time}
	h.tokens.Store(raw, k)
	return k, nil
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
