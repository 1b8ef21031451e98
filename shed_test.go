package gateway_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// worker is a backend that serves some requests at once, each for about as long, and the others in a queue without end.
type worker struct {
	mu      sync.Mutex
	free    int
	queue   []chan struct{}
	service time.Duration
	even    bool // all take equally long
	r       *rand.Rand
}

func (b *worker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	if b.free > 0 {
		b.free--
		b.mu.Unlock()
	} else {
		turn := make(chan struct{})
		b.queue = append(b.queue, turn)
		b.mu.Unlock()
		<-turn
	}
	b.mu.Lock()
	d := b.service
	if !b.even {
		d = time.Duration(float64(d) * (0.5 + b.r.Float64()))
	}
	b.mu.Unlock()
	time.Sleep(d) // a client that has left does not stop it
	b.mu.Lock()
	b.free++
	b.serveNext()
	b.mu.Unlock()
	_, _ = io.WriteString(w, "hello")
}

func (b *worker) serveNext() {
	for b.free > 0 && len(b.queue) > 0 {
		b.free--
		close(b.queue[0])
		b.queue = b.queue[1:]
	}
}

// capacity changes how many are served at once.
func (b *worker) capacity(change int) {
	b.mu.Lock()
	b.free += change
	b.serveNext()
	b.mu.Unlock()
}

func (b *worker) slower(times time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.service *= times
}

// load sends requests through h, perSecond of them with random pauses, and counts the answers within patience by
// priority, of those that are sent after warm.
func load(t *testing.T, h http.Handler, perSecond float64, patience, warm, length time.Duration, priorities []string) (good, sent map[string]int) {
	good, sent = make(map[string]int), make(map[string]int)
	r := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for time.Since(begin) < length {
		time.Sleep(time.Duration(r.ExpFloat64() / perSecond * 1e9))
		priority := priorities[r.IntN(len(priorities))]
		counts := time.Since(begin) >= warm
		if counts {
			sent[priority]++
		}
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer time.AfterFunc(patience, cancel).Stop() // a client that gives up, not a deadline of the gateway
			defer cancel()
			w := httptest.NewRecorder()
			q := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			q.Header.Set("Priority", priority)
			start := time.Now()
			h.ServeHTTP(w, q)
			if w.Code == 200 && w.Body.Len() > 0 && time.Since(start) <= patience && counts {
				mu.Lock()
				good[priority]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return good, sent
}

func byPriority(r *http.Request) int {
	n, _ := strconv.Atoi(r.Header.Get("Priority"))
	return n
}

// A backend for 20 requests at once, which take 100 ms each, loses half of its workers or half of its speed, while as
// many requests come as it could serve before. With Shed, more than 90 % of what it can still serve is served in
// time. Without a limit, nothing is, once the queue is longer than the clients' patience.
func TestShedWhenCapacityHalves(t *testing.T) {
	const perSecond, patience, newCapacity = 190, time.Second, 100
	const shift, length = 20 * time.Second, 80 * time.Second
	for _, tt := range []struct {
		name    string
		even    bool
		workers int           // that are lost
		slower  time.Duration // how many times
	}{
		{"half of the workers", false, 10, 1},
		{"half of the workers, even times", true, 10, 1},
		{"half of the speed", false, 0, 2},
		{"half of the speed, even times", true, 0, 2},
	} {
		for _, shed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, shed %t", tt.name, shed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &worker{free: 20, service: 100 * msec, even: tt.even, r: rand.New(rand.NewPCG(3, 4))}
					var h http.Handler = b
					if shed {
						h = gateway.Shed(nil)(h)
					}
					time.AfterFunc(shift, func() {
						b.capacity(-tt.workers)
						b.slower(tt.slower)
					})
					good, _ := load(t, h, perSecond, patience, shift, length, []string{"0"})
					share := float64(good["0"]) / (newCapacity * (length - shift).Seconds())
					t.Logf("goodput %.1f %% of the new capacity", 100*share)
					if shed && share < 0.9 {
						t.Errorf("with Shed, only %.1f %%", 100*share)
					}
					if !shed && share > 0.2 {
						t.Errorf("an unlimited queue serves %.1f %%: the simulation is too easy", 100*share)
					}
				})
			})
		}
	}
}

// At three times the capacity, the high priority, which is a quarter of the requests, is served almost always.
func TestShedPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &worker{free: 20, service: 100 * msec, r: rand.New(rand.NewPCG(3, 4))}
		h := gateway.Shed(&gateway.ShedOptions{Priority: byPriority})(b)
		good, sent := load(t, h, 600, time.Second, 10*time.Second, 40*time.Second, []string{"0", "0", "0", "5"})
		high, low := float64(good["5"])/float64(sent["5"]), float64(good["0"])/float64(sent["0"])
		t.Logf("served: high %.1f %%, low %.1f %%", 100*high, 100*low)
		if high < 0.97 || low > 0.4 {
			t.Errorf("high %.1f %%, low %.1f %%", 100*high, 100*low)
		}
		if served := good["5"] + good["0"]; float64(served) < 0.9*200*30 {
			t.Errorf("%d served", served)
		}
	})
}

// block is a handler that holds its requests until it is told to go on.
type block struct {
	mu    sync.Mutex
	gate  chan struct{}
	order []string
}

func (b *block) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.order = append(b.order, r.URL.Query().Get("n"))
	b.mu.Unlock()
	<-b.gate
}

// asked sends a request in the background, and returns what says how it ended.
func asked(ctx context.Context, h http.Handler, n string, priority int) func() int {
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := httptest.NewRequestWithContext(ctx, "GET", "/?n="+n, nil)
		r.Header.Set("Priority", strconv.Itoa(priority))
		h.ServeHTTP(w, r)
	}()
	synctest.Wait()
	return func() int {
		<-done
		return w.Code
	}
}

func TestShedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &block{gate: make(chan struct{})}
		h := gateway.Shed(&gateway.ShedOptions{Min: 3, Max: 3, Priority: byPriority, Queue: time.Second})(b)
		var served []func() int
		for _, n := range []string{"a", "b", "c"} {
			served = append(served, asked(t.Context(), h, n, 0))
		}
		low1 := asked(t.Context(), h, "low1", 1)
		low2 := asked(t.Context(), h, "low2", 1)
		mid := asked(t.Context(), h, "mid", 2)
		// The queue is full.
		if code := asked(t.Context(), h, "low3", 1)(); code != 503 {
			t.Errorf("low3: %d", code)
		}
		high := asked(t.Context(), h, "high", 3)
		if code := low2(); code != 503 { // the last of the lowest makes room
			t.Errorf("low2: %d", code)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := asked(ctx, h, "gone", 9)
		if code := low1(); code != 503 {
			t.Errorf("low1: %d", code)
		}
		cancel()
		if code := gone(); code == 503 || code == 200 { // it was not refused, and nobody reads what it gets
			t.Errorf("gone: %d", code)
		}
		again := asked(t.Context(), h, "again", 2)
		for range 6 {
			b.gate <- struct{}{}
			synctest.Wait()
		}
		for i, f := range append(served, high, mid, again) {
			if code := f(); code != 200 {
				t.Errorf("%d: %d", i, code)
			}
		}
		if got := strings.Join(b.order, " "); got != "a b c high mid again" {
			t.Errorf("served: %s", got)
		}

		// One that waits too long is refused, with Retry-After.
		for range 3 {
			served = append(served, asked(t.Context(), h, "x", 0))
		}
		start := time.Now()
		w := recorded(h, nil)
		if w.Code != 503 || time.Since(start) != time.Second || w.Header().Get("Retry-After") != "1" ||
			!strings.Contains(w.Body.String(), "#temporary-reduced-capacity") {
			t.Errorf("%d after %v: %v %s", w.Code, time.Since(start), w.Header(), w.Body)
		}
		close(b.gate)
		for _, f := range served {
			f()
		}
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("a place is lost: %d", w.Code)
		}
	})
}

// A place comes back however the handler ends, and nobody waits where no queue is wanted.
func TestShedReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next http.Handler
		h := gateway.Shed(&gateway.ShedOptions{Min: 1, Max: 1, Queue: -1})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) }))
		for _, does := range []string{"abort", "panic", "he abort", "401", "502", "limited", "status:404", "status:101 status:101", "status:101 abort"} {
			next = acts(does)
			_ = panicOf(func() { recorded(h, nil) })
		}
		b := &block{gate: make(chan struct{})}
		next = b
		first := asked(t.Context(), h, "a", 0)
		start := time.Now()
		if w := recorded(h, nil); w.Code != 503 || time.Since(start) != 0 {
			t.Errorf("%d after %v", w.Code, time.Since(start))
		}
		close(b.gate)
		if first() != 200 {
			t.Error("the first")
		}

		// An upgraded connection has no place.
		upgraded := make(chan struct{})
		next = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(101); <-upgraded })
		tunnel := asked(t.Context(), h, "tunnel", 0)
		next = silent
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("an upgraded connection holds a place: %d", w.Code)
		}
		close(upgraded)
		tunnel()
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("%d", w.Code)
		}
	})
}

// One Shed inside another: an upgraded connection has a place in neither, and a status that is sent after a Shed has ended
// changes nothing in it.
func TestShedNested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := &gateway.ShedOptions{Min: 1, Max: 1, Queue: -1}
		upgraded := make(chan struct{})
		var next http.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(101); <-upgraded })
		h := gateway.Chain(gateway.Shed(one), gateway.Shed(one))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) }))
		tunnel := asked(t.Context(), h, "tunnel", 0)
		next = silent
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("an upgraded connection holds a place: %d", w.Code)
		}
		close(upgraded)
		tunnel()

		b := &block{gate: make(chan struct{})}
		next = silent
		shed := gateway.Shed(one)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) }))
		late := gateway.Timeout(time.Hour)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			shed.ServeHTTP(w, r)
			w.WriteHeader(101)
		}))
		recorded(late, nil)
		recorded(late, nil)
		next = b
		first := asked(t.Context(), shed, "a", 0)
		if code := asked(t.Context(), shed, "b", 0)(); code != 503 {
			t.Errorf("two have the one place: %d", code)
		}
		close(b.gate)
		first()
	})
}

// A flood of cheap refusals does not make the limiter take honest requests for slow ones, nor do slow clients.
func TestShedIgnoresRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &worker{free: 20, service: 100 * msec, r: rand.New(rand.NewPCG(3, 4))}
		excuse := gateway.HandleErrors(func(w http.ResponseWriter, _ *http.Request, _ *gateway.Error) { w.WriteHeader(200) })(acts("401"))
		h := gateway.Shed(nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Priority") == "bad" {
				switch rand.IntN(4) {
				case 0:
					w.WriteHeader(400)
				case 1:
					gateway.WriteError(w, r, gateway.ErrForbidden)
				case 2:
					excuse.ServeHTTP(w, r)
				case 3:
					gateway.WriteError(w, r, gateway.ErrBadGateway)
				}
				return
			}
			b.ServeHTTP(w, r)
		}))
		good, sent := load(t, h, 2000, time.Second, 5*time.Second, 20*time.Second, []string{"bad", "bad", "bad", "bad", "bad", "bad", "bad", "bad", "bad", "bad", "bad", "bad", "0"})
		if share := float64(good["0"]) / float64(sent["0"]); share < 0.99 {
			t.Errorf("%.1f %% of the honest requests are served", 100*share)
		}
	})
}

// Refusals that took long, such as those after a Wait, do not make the handler look slow.
func TestShedIgnoresSlowRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next http.Handler
		h := gateway.Shed(&gateway.ShedOptions{Queue: -1})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(100 * msec)
			next.ServeHTTP(w, r)
		}))
		for _, does := range []string{"hello", "401", "away", "panic"} { // see acts
			next = acts(does)
			for range 60 {
				if does != "hello" {
					next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						time.Sleep(time.Second)
						acts(does).ServeHTTP(w, r)
					})
				}
				_ = panicOf(func() { recorded(h, nil) })
			}
		}
		next = silent
		var wg sync.WaitGroup
		for range 20 { // the limit at first
			wg.Go(func() {
				if w := recorded(h, nil); w.Code != 200 {
					t.Errorf("%d", w.Code)
				}
			})
		}
		wg.Wait()
	})
}

// A backend loses nine tenths of its workers, so that all clients leave before their answers. Their requests count as slow
// ones; if they did not, nothing would tell that the limit is too high, and no request would be served in time again.
func TestShedCountsSlowFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &worker{free: 100, service: 100 * msec, r: rand.New(rand.NewPCG(3, 4))}
		h := gateway.Shed(nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.ServeHTTP(httptest.NewRecorder(), r)
			if err := r.Context().Err(); err != nil { // as a Proxy does, and not a late success
				gateway.WriteError(w, r, err)
				return
			}
			_, _ = io.WriteString(w, "hello")
		}))
		time.AfterFunc(10*time.Second, func() { b.capacity(-90) })
		good, _ := load(t, h, 900, 300*msec, 20*time.Second, 40*time.Second, []string{"0"})
		if share := float64(good["0"]) / (100 * 20); share < 0.7 {
			t.Errorf("%.1f %% of the new capacity is served", 100*share)
		}
	})
}

func TestShedPanics(t *testing.T) {
	for want, opts := range map[string]gateway.ShedOptions{
		"gateway: Shed: Min and Max must not be negative": {Min: -1},
		"gateway: Shed: Min is greater than Max":          {Min: 5, Max: 4},
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("panic %v, want %s", got, want)
				}
			}()
			gateway.Shed(&opts)
		}()
	}
}

func BenchmarkShed(b *testing.B) {
	h := gateway.Shed(nil)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}
