package bench

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/adaptivelimiter"

	"github.com/seed-96248d0c/gateway"
)

// backend serves some requests at once, each for about as long, and the others in a queue without end.
type backend struct {
	mu      sync.Mutex
	free    int
	queue   []chan struct{}
	service time.Duration
	r       *rand.Rand
}

func (b *backend) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	b.queue = append(b.queue, make(chan struct{}))
	turn := b.queue[len(b.queue)-1]
	b.next()
	b.mu.Unlock()
	<-turn
	b.mu.Lock()
	d := time.Duration(float64(b.service) * (0.5 + b.r.Float64()))
	b.mu.Unlock()
	time.Sleep(d)
	b.mu.Lock()
	b.free++
	b.next()
	b.mu.Unlock()
	_, _ = io.WriteString(w, "hello")
}

func (b *backend) next() {
	for b.free > 0 && len(b.queue) > 0 {
		b.free--
		close(b.queue[0])
		b.queue = b.queue[1:]
	}
}

func (b *backend) change(free int, slower time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += free
	b.service *= slower
	b.next()
}

// failsafe puts failsafe-go's limiter around a handler, as its documents show it, with the queue's time that Shed has.
func failsafe(l adaptivelimiter.AdaptiveLimiter[any]) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			permit, err := l.AcquirePermitWithMaxWait(r.Context(), 50*time.Millisecond)
			if err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
			permit.Record()
		})
	}
}

// TestShedBesideFailsafe is the simulation of the library's own test, in which a backend's capacity halves under the load
// that it could carry before, with Shed, with failsafe-go's adaptive limiter as it is by default and with a limit of 1 to
// 1000, and with nothing. It logs what share of the new capacity is served within a second.
func TestShedBesideFailsafe(t *testing.T) {
	const shift, length, perSecond, newCapacity = 20 * time.Second, 80 * time.Second, 190, 100
	for _, fall := range []struct {
		name   string
		free   int
		slower time.Duration
	}{{"half of the workers", -10, 1}, {"half of the speed", 0, 2}} {
		for _, c := range []struct {
			name string
			mw   func() gateway.Middleware
			min  float64
		}{
			{"Shed", func() gateway.Middleware { return gateway.Shed(nil) }, 0.9},
			{"failsafe-go, defaults", func() gateway.Middleware { return failsafe(adaptivelimiter.NewWithDefaults[any]()) }, 0},
			{"failsafe-go, limits 4 to 1000", func() gateway.Middleware {
				return failsafe(adaptivelimiter.NewBuilder[any]().WithLimits(4, 1000, 20).Build())
			}, 0},
			{"nothing", func() gateway.Middleware { return gateway.Chain() }, 0},
		} {
			synctest.Test(t, func(t *testing.T) {
				b := &backend{free: 20, service: 100 * time.Millisecond, r: rand.New(rand.NewPCG(3, 4))}
				h := c.mw()(b)
				time.AfterFunc(shift, func() { b.change(fall.free, fall.slower) })
				r := rand.New(rand.NewPCG(1, 2))
				var mu sync.Mutex
				var wg sync.WaitGroup
				before, after := 0, 0
				begin := time.Now()
				for time.Since(begin) < length {
					time.Sleep(time.Duration(r.ExpFloat64() / perSecond * 1e9))
					late := time.Since(begin) >= shift
					wg.Go(func() {
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						defer time.AfterFunc(time.Second, cancel).Stop()
						start, w := time.Now(), httptest.NewRecorder()
						h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
						if w.Code == http.StatusOK && time.Since(start) <= time.Second {
							mu.Lock()
							defer mu.Unlock()
							if late {
								after++
							} else {
								before++
							}
						}
					})
				}
				wg.Wait()
				share := float64(after) / (newCapacity * (length - shift).Seconds())
				t.Logf("%s, %s: %.1f %% of the load is served before, %.1f %% of the new capacity after",
					fall.name, c.name, 100*float64(before)/(perSecond*shift.Seconds()), 100*share)
				if share < c.min {
					t.Errorf("%s: %.1f %%", c.name, 100*share)
				}
			})
		}
	}
}
