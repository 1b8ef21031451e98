package bench

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-chi/httprate"
	"github.com/sethvargo/go-limiter"
	"github.com/sethvargo/go-limiter/httplimit"
	"github.com/sethvargo/go-limiter/memorystore"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
	"golang.org/x/time/rate"

	"github.com/seed-96248d0c/gateway"
)

// plenty is a limit that no benchmark reaches.
const plenty = 1_000_000_000

func mustBe[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// goLimiter and gcra are the peers' stores, each in memory.
func goLimiter(tb testing.TB) limiter.Store {
	s := mustBe(memorystore.New(&memorystore.Config{Tokens: plenty, Interval: time.Hour}))
	tb.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func gcra() *throttled.GCRARateLimiterCtx {
	return mustBe(throttled.NewGCRARateLimiterCtx(mustBe(memstore.NewCtx(1<<20)), throttled.RateQuota{
		MaxRate: throttled.PerSec(plenty / 10), MaxBurst: plenty,
	}))
}

// BenchmarkLimitTake is one decision, without HTTP. rate-in-a-map is what many write by hand: it never forgets a key.
func BenchmarkLimitTake(b *testing.B) {
	ctx := context.Background()
	takers := []struct {
		name string
		make func(b *testing.B) func(key string) bool
	}{
		{"gateway", func(*testing.B) func(string) bool {
			l := gateway.NewTokenBucket(plenty, plenty, nil)
			return func(key string) bool {
				d, err := l.Take(ctx, key, 1)
				return err == nil && d.OK
			}
		}},
		{"rate-in-a-map", func(*testing.B) func(string) bool {
			var limits sync.Map
			return func(key string) bool {
				l, ok := limits.Load(key)
				if !ok {
					l, _ = limits.LoadOrStore(key, rate.NewLimiter(plenty, plenty))
				}
				return l.(*rate.Limiter).Allow()
			}
		}},
		{"go-limiter", func(b *testing.B) func(string) bool {
			s := goLimiter(b)
			return func(key string) bool {
				_, _, _, ok, err := s.Take(ctx, key)
				return err == nil && ok
			}
		}},
		{"throttled", func(*testing.B) func(string) bool {
			l := gcra()
			return func(key string) bool {
				limited, _, err := l.RateLimitCtx(ctx, key, 1)
				return err == nil && !limited
			}
		}},
	}
	keys := make([]string, 100_000)
	for i := range keys {
		keys[i] = "https://id.example/" + strconv.Itoa(i)
	}
	for _, peer := range takers {
		b.Run("one-key/"+peer.name, func(b *testing.B) {
			take := peer.make(b)
			b.ReportAllocs()
			for b.Loop() {
				if !take("alice") {
					b.Fatal("refused")
				}
			}
		})
	}
	for _, peer := range takers {
		b.Run("100k-keys-parallel/"+peer.name, func(b *testing.B) {
			take := peer.make(b)
			for _, k := range keys {
				take(k)
			}
			var start atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := int(start.Add(7919 * 13)); pb.Next(); i += 7919 {
					take(keys[i%len(keys)])
				}
			})
		})
	}
}

// BenchmarkLimit is a limit by the client's address around a handler that does nothing, each with the fields that it
// writes by default. "in-a-chain" is this library where another of its middlewares stands outside, as in a gateway.
func BenchmarkLimit(b *testing.B) {
	ours := gateway.RateLimit(gateway.NewTokenBucket(plenty, plenty, nil), gateway.KeyByIP, nil)(nothing)
	byAddr := func(r *http.Request) (string, error) { return httplimit.IPKeyFunc()(r) }
	for _, peer := range []struct {
		name string
		h    http.Handler
	}{
		{"gateway", ours},
		{"httprate", httprate.LimitBy(plenty, time.Minute, byAddr)(nothing)},
		{"go-limiter", mustBe(httplimit.NewMiddleware(goLimiter(b), httplimit.IPKeyFunc())).Handle(nothing)},
		{"throttled", (&throttled.HTTPRateLimiterCtx{RateLimiter: gcra(), VaryBy: &throttled.VaryBy{RemoteAddr: true}}).RateLimit(nothing)},
	} {
		b.Run(peer.name, func(b *testing.B) { serve(b, peer.h, httptest.NewRequest("GET", "/", nil)) })
	}
	b.Run("gateway-in-a-chain", func(b *testing.B) { serveInChain(b, ours, httptest.NewRequest("GET", "/", nil)) })
}

// sink is a ResponseWriter that keeps nothing but the fields.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}

// serve measures a handler.
func serve(b *testing.B, h http.Handler, r *http.Request) {
	w := &sink{make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

// serveInChain measures a handler with a request that another middleware of this library has prepared.
func serveInChain(b *testing.B, h http.Handler, r *http.Request) {
	requests := []*http.Request{r}
	w := record(requests)
	b.ReportAllocs()
	for b.Loop() {
		clear(w.Header())
		h.ServeHTTP(w, requests[0])
	}
}
