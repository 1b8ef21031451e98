package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// Costs, returns and debts that are negative, or beyond the largest number together, in limiters as small and as large as
// can be: no key ever has more than its limit, and no answer is outside its range.
func TestHostileCosts(t *testing.T) {
	numbers := []int{math.MinInt, -1, 0, 1, 2, 1 << 31, 1 << 53, 1<<53 + 1, math.MaxInt - 1, math.MaxInt}
	for _, limit := range []int{1, 3, 1 << 53, math.MaxInt} {
		for name, l := range map[string]*gateway.MemoryLimiter{
			"token bucket":         gateway.NewTokenBucket(1e-9, limit, nil),
			"token bucket, fast":   gateway.NewTokenBucket(math.MaxFloat64, limit, nil),
			"leaky bucket":         gateway.NewLeakyBucket(1e-9, limit-1, nil),
			"fixed window":         gateway.NewFixedWindow(limit, longest, nil),
			"fixed window, short":  gateway.NewFixedWindow(limit, 1, nil),
			"sliding window":       gateway.NewSlidingWindow(limit, longest, nil),
			"sliding window short": gateway.NewSlidingWindow(limit, 1, nil),
		} {
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(uint64(limit), 1))
				var last gateway.Decision
				for i := range 2000 {
					key, n := strconv.Itoa(r.IntN(3)), numbers[r.IntN(len(numbers))]
					switch r.IntN(6) {
					case 0:
						_ = l.Owe(t.Context(), key, n)
					case 1, 2:
						_ = l.Return(t.Context(), key, n, last)
					case 3:
						time.Sleep(time.Duration(r.Int64N(1 << r.IntN(50))))
					default:
						last, _ = l.Take(t.Context(), key, n)
						d := last
						if d.Limit != limit || d.Remaining < 0 || d.Remaining > limit || d.Wait < 0 || d.RetryAfter < 0 || d.ResetAfter < 0 ||
							d.Window <= 0 || d.OK && max(n, 1) > limit || d.OK && d.RetryAfter != 0 || !d.OK && d.Wait != 0 ||
							!d.OK && n <= limit && d.RetryAfter == 0 {
							t.Fatalf("%s of %d, step %d: Take of %d: %+v", name, limit, i, n, d)
						}
					}
				}
			})
		}
	}
}

// RetryAfter is exact to the nanosecond or, after years, to the 15 digits of a float.
func TestRetryAfterAtAnyRate(t *testing.T) {
	for seed := range uint64(400) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			perSecond, burst := math.Exp(r.Float64()*40-20), 1+r.IntN(1<<(1+r.IntN(40)))
			l := gateway.NewTokenBucket(perSecond, burst, nil)
			if r.IntN(2) == 0 {
				l = gateway.NewLeakyBucket(perSecond, burst-1, nil)
			}
			_, _ = l.Take(t.Context(), "k", burst)
			time.Sleep(time.Duration(r.Int64N(1 << r.IntN(50))))
			n := 1 + r.IntN(burst)
			d, _ := l.Take(t.Context(), "k", n)
			if d.OK || d.RetryAfter > 100*365*24*time.Hour {
				return
			}
			margin := max(msec, time.Duration(1.1e9/perSecond/1e6), d.RetryAfter/1e12)
			if d.RetryAfter > margin {
				time.Sleep(d.RetryAfter - margin)
				if d, _ := l.Take(t.Context(), "k", n); d.OK {
					t.Errorf("%d of %d at %v a second pass %v before RetryAfter", n, burst, perSecond, margin)
				}
				time.Sleep(margin)
			} else {
				time.Sleep(d.RetryAfter)
			}
			if late, _ := l.Take(t.Context(), "k", n); !late.OK {
				t.Errorf("%d of %d at %v a second do not pass after RetryAfter %v: %+v", n, burst, perSecond, d.RetryAfter, late)
			}
		})
	}
}

// A client that leaves at any moment is charged exactly once: what was taken is settled or given back, and nothing else is.
func TestHostileCancel(t *testing.T) {
	for at := time.Duration(0); at <= 600*msec; at += 25 * msec {
		for _, queued := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				l := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true, Limit: 100}}}
				if queued {
					l.d.Wait = 100 * msec
				}
				var used []gateway.Usage
				h := settled(l, &used)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					for i := range 4 {
						if i == 1 {
							_, _ = io.WriteString(w, "hello")
						}
						select {
						case <-r.Context().Done():
							panic(http.ErrAbortHandler)
						case <-time.After(100 * msec):
						}
						gateway.AddUnits(r.Context(), 1)
					}
				}))
				ctx, cancel := context.WithCancel(t.Context())
				defer time.AfterFunc(at, cancel).Stop()
				_ = panicOf(func() { recorded(h, httptest.NewRequestWithContext(ctx, "GET", "/", nil)) })
				units, settledOnce := 0, 1
				if inside := at - l.d.Wait; inside > 0 {
					units = min(int(inside/(100*msec)), 4)
				}
				if queued && at < l.d.Wait {
					settledOnce = 0 // it never was inside
				}
				returned := 0
				for _, call := range strings.Split(l.asked(), ", ") {
					if n, ok := strings.CutPrefix(call, "return k "); ok {
						k, _ := strconv.Atoi(n)
						returned += k
					} else if call != "take k 10" {
						t.Errorf("left after %v: %s", at, call)
					}
				}
				// At the moment at which a unit is reported, either may come first.
				close := at%(100*msec) == 0
				if len(used) != settledOnce && !close || len(used) > 1 {
					t.Errorf("left after %v: settled %d times", at, len(used))
				}
				if spent := 10 - returned; spent != units && !(close && (spent == units-1 || spent == units+1)) {
					t.Errorf("left after %v: charged %d, want %d; %s", at, spent, units, l.asked())
				}
			})
		}
	}
}

// repeated yields part again and again, size bytes in all, between two texts.
func repeated(before, part, after string, size int) io.Reader {
	again := io.LimitReader(&repeater{part: part}, int64(size))
	return io.MultiReader(strings.NewReader(before), again, strings.NewReader(after))
}

type repeater struct {
	part string
	at   int
}

func (r *repeater) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.part[r.at]
		if r.at++; r.at == len(r.part) {
			r.at = 0
		}
	}
	return len(p), nil
}

func gzipped(r io.Reader) io.Reader {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	_, _ = io.Copy(w, r)
	_ = w.Close()
	return &b
}

// An upstream that sends bodies without end, or small ones that inflate to large ones, does not cost memory.
func TestHostileUnits(t *testing.T) {
	settle(t)
	const size = 4 << 20
	zeros := strings.Repeat("0", 4096)
	for _, tt := range []struct {
		name, contentType, coding string
		body                      io.Reader
		want                      int64
	}{
		{"a long string", "application/json", "", repeated(`{"a":"`, zeros, `","n":7}`, size), 7},
		{"a long string, zipped", "application/json", "gzip", gzipped(repeated(`{"a":"`, zeros, `","n":7}`, size)), 7},
		{"a long name", "application/json", "", repeated(`{"`, zeros, `":1,"n":7}`, size), 7},
		{"a long number", "application/json", "", repeated(`{"n":1`, zeros, `}`, size), 0},
		{"many members", "application/json", "", repeated(`{`, `"a":1,`, `"n":7}`, size/6*6), 7},
		{"without an end", "application/json", "", repeated(`{"n":7,"a":[`, "1,", "", size), 7},
		{"deep", "application/json", "", repeated(`{"n":7,"a":`, "[", "", size), 0},
		{"deep, zipped", "application/json", "gzip", gzipped(repeated(`{"n":7,"a":`, `{"a":`, "", size)), 0},
		{"a bomb in events", "text/event-stream", "gzip", gzipped(repeated("data: {\"n\":7}\n\ndata: ", zeros, "\n\n", size)), 7},
		{"a line without an end", "text/event-stream", "", repeated("data: {\"n\":7}\n\n", zeros, "", size), 7},
		{"a field name without an end", "text/event-stream", "", repeated("data: {\"n\":7}\n\nd", "at", "", size), 7},
		{"an event without an end", "text/event-stream", "", repeated("data: {\"n\":7}\n\ndata: [\n", "data: 1,\n", "", size/9*9), 7},
		{"empty events", "text/event-stream", "", repeated("data: {\"n\":7}\n\n", "data:\n\n", "", size/7*7), 7},
		{"many zipped parts", "application/json", "gzip", io.MultiReader(gzipped(strings.NewReader(`{"n":7}`)), repeated("", "\x1f\x8b\x08\x00", "", 1<<20)), 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true}}}
			var used []gateway.Usage
			backend := roundTrip(func(r *http.Request) (*http.Response, error) {
				res := answered(r, 200, io.NopCloser(tt.body))
				res.Header = http.Header{"Content-Type": {tt.contentType}}
				if tt.coding != "" {
					res.Header.Set("Content-Encoding", tt.coding)
				}
				return res, nil
			})
			w := &discarder{header: make(http.Header)}
			h := settled(l, &used)(gateway.Proxy(backend, &gateway.ProxyOptions{ModifyResponse: gateway.UnitsFrom("/n")}))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			runtime.ReadMemStats(&after)
			if len(used) != 1 || used[0].Units != tt.want {
				t.Errorf("%+v, want %d units", used, tt.want)
			}
			if all := after.TotalAlloc - before.TotalAlloc; all > 1<<20 {
				t.Errorf("%d bytes were allocated for %d of the body", all, w.n)
			}
		})
	}
}

// discarder is a ResponseWriter that counts what it is given.
type discarder struct {
	header http.Header
	n      int64
}

func (d *discarder) Header() http.Header         { return d.header }
func (d *discarder) WriteHeader(int)             {}
func (d *discarder) Write(p []byte) (int, error) { d.n += int64(len(p)); return len(p), nil }

// Clients that hang up in the queue, at the moment of their turn and inside, with priorities of their own choice, cost no
// place: at the end all places are free, and the queue is empty.
func TestHostileShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places = 5
		inside, most := 0, 0
		var mu sync.Mutex
		change := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			inside += n
			most = max(most, inside)
		}
		var wg sync.WaitGroup
		h := gateway.Shed(&gateway.ShedOptions{Min: places, Max: places, Queue: 20 * msec, Priority: byPriority})(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				change(1)
				defer change(-1)
				time.Sleep(10 * msec)
				if r.Header.Get("Priority") == "13" {
					panic(http.ErrAbortHandler)
				}
			}))
		r := rand.New(rand.NewPCG(1, 1))
		for range 20_000 {
			time.Sleep(time.Duration(r.IntN(3)) * msec / 2)
			priority := r.IntN(100) - 50
			ctx, cancel := context.WithCancel(t.Context())
			if r.IntN(2) == 0 {
				time.AfterFunc(time.Duration(r.IntN(50))*msec/2, cancel)
			}
			wg.Go(func() {
				defer cancel()
				q := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
				q.Header.Set("Priority", strconv.Itoa(priority))
				_ = panicOf(func() { recorded(h, q) })
			})
		}
		wg.Wait()
		if most != places || inside != 0 {
			t.Errorf("%d were served at once, %d are still", most, inside)
		}
		for range places { // all are free, and at the next request the queue is empty
			wg.Go(func() {
				start := time.Now()
				if w := recorded(h, nil); w.Code != 200 || time.Since(start) != 10*msec {
					t.Errorf("%d after %v", w.Code, time.Since(start))
				}
			})
		}
		wg.Wait()
	})
}

// While higher priorities take all places, a request of a lower one is refused after the queue's time and does not wait
// for ever. When they leave room, it is served.
func TestHostileShedStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := gateway.Shed(&gateway.ShedOptions{Min: 2, Max: 2, Queue: 50 * msec, Priority: byPriority})(
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(10 * msec) }))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 { // two are served and one waits, and no two end at the same moment
			time.Sleep(3 * msec)
			wg.Go(func() {
				for ctx.Err() == nil {
					q := httptest.NewRequest("GET", "/", nil)
					q.Header.Set("Priority", "9")
					recorded(h, q)
				}
			})
		}
		time.Sleep(100 * msec)
		start := time.Now()
		if w := recorded(h, nil); w.Code != 503 || time.Since(start) != 50*msec {
			t.Errorf("%d after %v", w.Code, time.Since(start))
		}
		stop()
		wg.Wait()
		if w := recorded(h, nil); w.Code != 200 {
			t.Errorf("%d when there is room", w.Code)
		}
	})
}

// sfList is a List of RFC 9651 whose items are Strings with parameters that are Integers, as the draft has them for
// RateLimit-Policy and RateLimit.
var sfList = func() *regexp.Regexp {
	const (
		str  = `"(?:[ !#-\[\]-~]|\\"|\\\\)*"`
		item = str + `(?:; *[a-z*][a-z0-9_\-.*]*=-?[0-9]{1,15})*`
	)
	return regexp.MustCompile(`^` + item + `(?:[ \t]*,[ \t]*` + item + `)*$`)
}()

// Any name that the option allows gives fields that RFC 9651 allows, and distinct names, in whatever order.
func TestHostileNames(t *testing.T) {
	if sfList.MatchString(`"a"b";q=1`) || sfList.MatchString(`"a";q=1,`) || sfList.MatchString(`"a";q=1234567890123456`) {
		t.Fatal("the grammar of the test is too weak")
	}
	var printable []byte
	for c := byte(' '); c <= '~'; c++ {
		printable = append(printable, c)
	}
	names := []string{"", "default", `"`, `\`, `\"`, `","`, `a", "b";q=1`, `b`, ` `, `;`, "a-2", "a", "a", "a-2", `a\`, string(printable), strings.Repeat("x", 5000)}
	for _, l := range []gateway.Limiter{
		&scriptLimiter{d: gateway.Decision{OK: true, Limit: math.MaxInt, Remaining: math.MaxInt, Window: longest, ResetAfter: longest}},
		&scriptLimiter{d: gateway.Decision{OK: true, Limit: -5, Remaining: -5, Window: -5, ResetAfter: -5}},
		gateway.NewTokenBucket(0.1, 1000, nil), gateway.NewSlidingWindow(1000, msec, nil),
	} {
		var chain []gateway.Middleware
		for _, name := range names {
			chain = append(chain, gateway.RateLimit(l, byName("k"), &gateway.RateLimitOptions{Name: name}))
		}
		w := recorded(gateway.Chain(chain...)(text("hello")), nil)
		for _, field := range []string{"RateLimit-Policy", "RateLimit"} {
			values := w.Header().Values(field)
			if len(values) != 1 || !sfList.MatchString(values[0]) {
				t.Errorf("%s: %.2000q", field, values)
				continue
			}
			seen := make(map[string]bool)
			for _, name := range regexp.MustCompile(`"(?:[ !#-\[\]-~]|\\"|\\\\)*"`).FindAllString(values[0], -1) {
				if seen[name] {
					t.Errorf("%s has %.100s twice", field, name)
				}
				seen[name] = true
			}
			if len(seen) != len(names) {
				t.Errorf("%s has %d names, want %d", field, len(seen), len(names))
			}
			for _, d := range regexp.MustCompile(`;[a-z]=-`).FindAllString(values[0], -1) {
				t.Errorf("%s has a negative %s", field, d)
			}
		}
	}
}
