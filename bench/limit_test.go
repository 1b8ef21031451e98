package bench

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
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
	ululelimiter "github.com/ulule/limiter/v3"
	ululememory "github.com/ulule/limiter/v3/drivers/store/memory"
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

// takers are one decision about a key, without HTTP. Each peer is set up as it recommends, in memory. rate-in-a-map is what
// many write by hand: it never forgets a key.
var takers = []struct {
	name string
	make func(tb testing.TB) func(key string) bool
}{
	{"gateway", func(testing.TB) func(string) bool { return taker(gateway.NewTokenBucket(1, plenty, nil)) }}, // busy, and so present, all the time
	{"gateway-leaky", func(testing.TB) func(string) bool { return taker(gateway.NewLeakyBucket(1, plenty, nil)) }},
	{"gateway-fixed", func(testing.TB) func(string) bool { return taker(gateway.NewFixedWindow(plenty, time.Hour, nil)) }},
	{"gateway-sliding", func(testing.TB) func(string) bool {
		return taker(gateway.NewSlidingWindow(plenty, time.Hour, nil))
	}},
	{"rate-in-a-map", func(testing.TB) func(string) bool {
		var limits sync.Map
		return func(key string) bool {
			l, ok := limits.Load(key)
			if !ok {
				l, _ = limits.LoadOrStore(key, rate.NewLimiter(plenty/3600, plenty))
			}
			return l.(*rate.Limiter).Allow()
		}
	}},
	{"go-limiter", func(tb testing.TB) func(string) bool {
		s := goLimiter(tb)
		return func(key string) bool {
			_, _, _, ok, err := s.Take(context.Background(), key)
			return err == nil && ok
		}
	}},
	{"throttled", func(testing.TB) func(string) bool {
		l := gcra()
		return func(key string) bool {
			limited, _, err := l.RateLimitCtx(context.Background(), key, 1)
			return err == nil && !limited
		}
	}},
	{"httprate", func(testing.TB) func(string) bool {
		l := httprate.NewRateLimiter(plenty, time.Hour, httprate.WithResponseHeaders(httprate.ResponseHeaders{})) // without fields
		w := &sink{make(http.Header)}
		r := httptest.NewRequest("GET", "/", nil)
		return func(key string) bool { return !l.OnLimit(w, r, key) }
	}},
	{"ulule", func(testing.TB) func(string) bool {
		l := ululelimiter.New(ululememory.NewStore(), ululelimiter.Rate{Limit: plenty, Period: time.Hour})
		return func(key string) bool {
			c, err := l.Get(context.Background(), key)
			return err == nil && !c.Reached
		}
	}},
}

func taker(l gateway.Limiter) func(key string) bool {
	return func(key string) bool {
		d, err := l.Take(context.Background(), key, 1)
		return err == nil && d.OK
	}
}

// BenchmarkLimitTake is one decision about a key that is present. The key that is asked for is not the string that was
// stored, as in a server: each request brings its own.
func BenchmarkLimitTake(b *testing.B) {
	for _, n := range []int{1, 10_000, 1_000_000} {
		stored, asked := make([]string, n), make([]string, n)
		for i := range stored {
			stored[i] = strconv.Itoa(1_000_000_000_000_000 + i) // 16 bytes
		}
		for i := range asked {
			asked[i] = strings.Clone(stored[i])
		}
		for _, peer := range takers {
			fill := func(b *testing.B) func(string) bool {
				take := peer.make(b)
				for _, key := range stored {
					take(key)
				}
				runtime.GC()
				b.ReportAllocs()
				b.ResetTimer()
				return take
			}
			b.Run(fmt.Sprintf("%d-keys/single/%s", n, peer.name), func(b *testing.B) {
				take := fill(b)
				for i := 0; b.Loop(); i += 7919 {
					if !take(asked[i%n]) {
						b.Fatal("refused")
					}
				}
			})
			b.Run(fmt.Sprintf("%d-keys/parallel/%s", n, peer.name), func(b *testing.B) {
				take := fill(b)
				var start atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					for i := int(start.Add(7919 * 13)); pb.Next(); i += 7919 {
						take(asked[i%n])
					}
				})
			})
		}
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
