package gateway_test

import (
	"context"
	"crypto/sha256"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

const (
	msec    = time.Millisecond
	longest = time.Duration(math.MaxInt64)
)

// takeStep is one call of Take, after a pause.
type takeStep struct {
	after time.Duration
	n     int
	want  gateway.Decision // Ref is not compared
}

func (s takeStep) run(t *testing.T, i int, l *gateway.MemoryLimiter) gateway.Decision {
	t.Helper()
	time.Sleep(s.after)
	got, err := l.Take(t.Context(), "k", s.n)
	if err != nil {
		t.Fatalf("step %d: %v", i, err)
	}
	cmp := got
	cmp.Ref = 0
	if cmp != s.want {
		t.Errorf("step %d:\n got %+v\nwant %+v", i, cmp, s.want)
	}
	return got
}

func TestLimiters(t *testing.T) {
	// A bubble begins at midnight UTC, where a window of any whole number of seconds in a day begins too.
	type D = gateway.Decision
	for _, tt := range []struct {
		name  string
		make  func() *gateway.MemoryLimiter
		steps []takeStep
	}{
		{"token bucket", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(10, 3, nil) }, []takeStep{
			{0, 1, D{OK: true, Limit: 3, Remaining: 2, Window: time.Second, ResetAfter: 100 * msec}},
			{0, 2, D{OK: true, Limit: 3, Remaining: 0, Window: time.Second, ResetAfter: 300 * msec}},
			{0, 1, D{Limit: 3, Window: time.Second, RetryAfter: 100 * msec, ResetAfter: 300 * msec}},
			{99 * msec, 1, D{Limit: 3, Window: time.Second, RetryAfter: 1 * msec, ResetAfter: 201 * msec}},
			{1 * msec, 2, D{Limit: 3, Remaining: 1, Window: time.Second, RetryAfter: 100 * msec, ResetAfter: 200 * msec}},
			{0, 1, D{OK: true, Limit: 3, Remaining: 0, Window: time.Second, ResetAfter: 300 * msec}},
			{time.Hour, 3, D{OK: true, Limit: 3, Remaining: 0, Window: time.Second, ResetAfter: 300 * msec}},
		}},
		{"token bucket, a cost that never passes", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(10, 3, nil) }, []takeStep{
			{0, 4, D{Limit: 3, Remaining: 3, Window: time.Second}},
			{0, math.MaxInt, D{Limit: 3, Remaining: 3, Window: time.Second}},
			{0, 3, D{OK: true, Limit: 3, Remaining: 0, Window: time.Second, ResetAfter: 300 * msec}},
		}},
		{"token bucket, a cost below 1 counts as 1", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(10, 3, nil) }, []takeStep{
			{0, 0, D{OK: true, Limit: 3, Remaining: 2, Window: time.Second, ResetAfter: 100 * msec}},
			{0, math.MinInt, D{OK: true, Limit: 3, Remaining: 1, Window: time.Second, ResetAfter: 200 * msec}},
		}},
		{"token bucket, less than a nanosecond early", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(3, 3, nil) }, []takeStep{
			{0, 3, D{OK: true, Limit: 3, Window: time.Second, ResetAfter: time.Second}},
			{333333333, 2, D{Limit: 3, Remaining: 1, Window: time.Second, ResetAfter: 666666667, RetryAfter: 333333334}},
			{0, 1, D{OK: true, Limit: 3, Window: time.Second, ResetAfter: time.Second + 1}},
		}},
		{"token bucket, window rounded up", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(2, 5, nil) }, []takeStep{
			{0, 1, D{OK: true, Limit: 5, Remaining: 4, Window: 3 * time.Second, ResetAfter: 500 * msec}},
		}},
		{"token bucket, less than once in an age", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(1e-300, 1, nil) }, []takeStep{
			{0, 1, D{OK: true, Limit: 1, Window: 9223372036 * time.Second, ResetAfter: longest}},
			{1000 * time.Hour, 1, D{Limit: 1, Window: 9223372036 * time.Second, RetryAfter: longest, ResetAfter: longest}},
		}},
		{"token bucket, full for an age", func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(1e-300, 1, nil) }, []takeStep{
			{0, 2, D{Limit: 1, Remaining: 1, Window: 9223372036 * time.Second}},
		}},
		{"token bucket, as large as can be", func() *gateway.MemoryLimiter {
			return gateway.NewTokenBucket(math.Inf(1), math.MaxInt, nil)
		}, []takeStep{
			{0, 1, D{OK: true, Limit: math.MaxInt, Remaining: math.MaxInt, Window: 9223372036 * time.Second}},
			{0, math.MaxInt, D{OK: true, Limit: math.MaxInt, Remaining: 0, Window: 9223372036 * time.Second, ResetAfter: longest}},
		}},
		{"leaky bucket", func() *gateway.MemoryLimiter { return gateway.NewLeakyBucket(10, 2, nil) }, []takeStep{
			{0, 1, D{OK: true, Limit: 3, Remaining: 2, Window: time.Second, ResetAfter: 100 * msec}},
			{0, 1, D{OK: true, Limit: 3, Remaining: 1, Window: time.Second, ResetAfter: 200 * msec, Wait: 100 * msec}},
			{0, 1, D{OK: true, Limit: 3, Remaining: 0, Window: time.Second, ResetAfter: 300 * msec, Wait: 200 * msec}},
			{0, 1, D{Limit: 3, Window: time.Second, ResetAfter: 300 * msec, RetryAfter: 100 * msec}},
			{50 * msec, 1, D{Limit: 3, Window: time.Second, ResetAfter: 250 * msec, RetryAfter: 50 * msec}},
			{50 * msec, 1, D{OK: true, Limit: 3, Window: time.Second, ResetAfter: 300 * msec, Wait: 200 * msec}},
			{250 * msec, 1, D{OK: true, Limit: 3, Remaining: 1, Window: time.Second, ResetAfter: 150 * msec, Wait: 50 * msec}},
			{time.Second, 3, D{OK: true, Limit: 3, Window: time.Second, ResetAfter: 300 * msec}},
			{200 * msec, 2, D{OK: true, Limit: 3, Window: time.Second, ResetAfter: 300 * msec, Wait: 100 * msec}},
			{0, 4, D{Limit: 3, Window: time.Second, ResetAfter: 300 * msec}},
		}},
		{"leaky bucket without a queue", func() *gateway.MemoryLimiter { return gateway.NewLeakyBucket(4, 0, nil) }, []takeStep{
			{0, 1, D{OK: true, Limit: 1, Window: time.Second, ResetAfter: 250 * msec}},
			{0, 1, D{Limit: 1, Window: time.Second, ResetAfter: 250 * msec, RetryAfter: 250 * msec}},
			{250 * msec, 1, D{OK: true, Limit: 1, Window: time.Second, ResetAfter: 250 * msec}},
		}},
		{"leaky bucket, the longest queue", func() *gateway.MemoryLimiter { return gateway.NewLeakyBucket(1, math.MaxInt, nil) }, []takeStep{
			{0, math.MaxInt, D{OK: true, Limit: math.MaxInt, Window: 9223372036 * time.Second, ResetAfter: longest}},
			{time.Second, 1, D{OK: true, Limit: math.MaxInt, Window: 9223372036 * time.Second, ResetAfter: longest, Wait: longest}},
		}},
		{"fixed window", func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(3, time.Minute, nil) }, []takeStep{
			{0, 2, D{OK: true, Limit: 3, Remaining: 1, Window: time.Minute, ResetAfter: time.Minute}},
			{10 * time.Second, 2, D{Limit: 3, Remaining: 1, Window: time.Minute, ResetAfter: 50 * time.Second, RetryAfter: 50 * time.Second}},
			{10 * time.Second, 1, D{OK: true, Limit: 3, Window: time.Minute, ResetAfter: 40 * time.Second}},
			{40*time.Second - 1, 1, D{Limit: 3, Window: time.Minute, ResetAfter: 1, RetryAfter: 1}},
			{1, 3, D{OK: true, Limit: 3, Window: time.Minute, ResetAfter: time.Minute}},
			{0, 4, D{Limit: 3, Window: time.Minute, ResetAfter: time.Minute}},
			{0, math.MaxInt, D{Limit: 3, Window: time.Minute, ResetAfter: time.Minute}},
		}},
		{"fixed window, a cost that never passes", func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(3, time.Minute, nil) }, []takeStep{
			{0, 4, D{Limit: 3, Remaining: 3, Window: time.Minute}},
		}},
		{"sliding window", func() *gateway.MemoryLimiter { return gateway.NewSlidingWindow(10, 10*time.Second, nil) }, []takeStep{
			{0, 8, D{OK: true, Limit: 10, Remaining: 2, Window: 10 * time.Second, ResetAfter: 20 * time.Second}},
			{9 * time.Second, 3, D{Limit: 10, Remaining: 2, Window: 10 * time.Second, ResetAfter: 11 * time.Second, RetryAfter: 2250 * msec}},
			{2 * time.Second, 3, D{Limit: 10, Remaining: 2, Window: 10 * time.Second, ResetAfter: 9 * time.Second, RetryAfter: 250 * msec}},
			{250 * msec, 3, D{OK: true, Limit: 10, Remaining: 0, Window: 10 * time.Second, ResetAfter: 18750 * msec}},
			{0, 1, D{Limit: 10, Window: 10 * time.Second, ResetAfter: 18750 * msec, RetryAfter: 1250 * msec}},
			{0, 10, D{Limit: 10, Window: 10 * time.Second, ResetAfter: 18750 * msec, RetryAfter: 18750 * msec}},
			{0, 11, D{Limit: 10, Window: 10 * time.Second, ResetAfter: 18750 * msec}},
			{18750*msec - 1, 10, D{Limit: 10, Remaining: 9, Window: 10 * time.Second, ResetAfter: 1, RetryAfter: 1}},
			{1, 10, D{OK: true, Limit: 10, Window: 10 * time.Second, ResetAfter: 20 * time.Second}},
		}},
		{"sliding window, the longest", func() *gateway.MemoryLimiter { return gateway.NewSlidingWindow(math.MaxInt, longest, nil) }, []takeStep{
			{0, math.MaxInt, D{OK: true, Limit: math.MaxInt, Window: longest, ResetAfter: longest}},
			{0, math.MaxInt, D{Limit: math.MaxInt, Window: longest, ResetAfter: longest, RetryAfter: longest}},
		}},
		{"fixed window, the longest", func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(math.MaxInt, longest, nil) }, []takeStep{
			{0, math.MaxInt, D{OK: true, Limit: math.MaxInt, Window: longest, ResetAfter: longest - 946684800*time.Second}},
			{0, math.MaxInt, D{Limit: math.MaxInt, Window: longest, ResetAfter: longest - 946684800*time.Second, RetryAfter: longest - 946684800*time.Second}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := tt.make()
				for i, s := range tt.steps {
					s.run(t, i, l)
				}
			})
		})
	}
}

// playLimiter carries out script, word by word:
//
//	a=k:6            take 6 units of key k, which is granted; the decision is named a
//	a!k:6            the same, and it is refused
//	give:a:4         return 4 units of decision a to its key
//	give:a:4:other   return them to another key
//	left:k:8         key k has 8 units left
//	waits:a:70ms     decision a has this Wait
//	wait:2s          time passes
func playLimiter(t *testing.T, l *gateway.MemoryLimiter, script string) {
	t.Helper()
	type taken struct {
		key string
		d   gateway.Decision
	}
	named := make(map[string]taken)
	units := func(s string) int {
		if s == "max" {
			return math.MaxInt
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	take := func(key string, n int) gateway.Decision {
		d, err := l.Take(t.Context(), key, n)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for _, word := range strings.Fields(script) {
		arg := strings.Split(word, ":")
		switch at := strings.IndexAny(arg[0], "=!"); {
		case at > 0:
			key := arg[0][at+1:]
			d := take(key, units(arg[1]))
			if want := arg[0][at] == '='; d.OK != want {
				t.Fatalf("%s: at %q: OK %t, want %t", script, word, d.OK, want)
			}
			named[arg[0][:at]] = taken{key, d}
		case arg[0] == "give":
			a := named[arg[1]]
			key := a.key
			if len(arg) > 3 {
				key = arg[3]
			}
			if err := l.Return(t.Context(), key, units(arg[2]), a.d); err != nil {
				t.Fatal(err)
			}
		case arg[0] == "left":
			// A refusal takes nothing and has Remaining.
			if got := take(arg[1], math.MaxInt).Remaining; got != units(arg[2]) {
				t.Errorf("%s: at %q: %d left", script, word, got)
			}
		case arg[0] == "waits":
			if got := named[arg[1]].d.Wait.String(); got != arg[2] {
				t.Errorf("%s: at %q: waits %s", script, word, got)
			}
		case arg[0] == "wait":
			d, err := time.ParseDuration(arg[1])
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
		default:
			t.Fatalf("%s: what is %q?", script, word)
		}
	}
}

func TestLimiterReturn(t *testing.T) {
	const (
		refused  = "a=k:2 b!k:2 give:b:2 left:k:1"
		overflow = "a=first:4 b=a:4 give:b:3 left:b:4 left:first:1"
	)
	one := &gateway.LimiterOptions{MaxKeys: 1}
	for _, tt := range []struct {
		name   string
		l      *gateway.MemoryLimiter
		script string
	}{
		{"token bucket", gateway.NewTokenBucket(1, 10, nil), "a=k:6 give:a:4 left:k:8"},
		{"token bucket: never more than a new key has", gateway.NewTokenBucket(1, 10, nil),
			"a=k:6 give:a:4 give:a:max left:k:10 b=k:10 left:k:0 wait:5s give:b:10 left:k:10 c=k:10 left:k:0"},
		{"token bucket: refused", gateway.NewTokenBucket(1, 3, nil), refused},
		{"leaky bucket: refused", gateway.NewLeakyBucket(1, 2, nil), refused},
		{"fixed window: refused", gateway.NewFixedWindow(3, time.Hour, nil), refused},
		{"a key that is not held", gateway.NewTokenBucket(1, 3, nil), "a=k:2 give:a:2:other left:k:1 left:other:3"},
		{"leaky bucket: the last slot", gateway.NewLeakyBucket(10, 5, nil),
			"first=k:1 second=k:1 third=k:2 waits:second:100ms waits:third:200ms" +
				" give:second:1 left:k:2" + // it is not the last, and so not given back
				" wait:30ms give:third:2 again=k:2 waits:again:170ms give:again:2" +
				" give:second:1 again=k:1 waits:again:70ms"}, // now it is the last
		{"leaky bucket: a slot long past", gateway.NewLeakyBucket(10, 5, nil), "old=k:3 wait:1s a=k:3 give:old:3 left:k:3"},
		{"fixed window: within it", gateway.NewFixedWindow(5, time.Minute, nil), "a=k:4 give:a:3 left:k:4 give:a:max left:k:5"},
		{"sliding window: within it", gateway.NewSlidingWindow(5, time.Minute, nil), "a=k:4 give:a:3 left:k:4 give:a:max left:k:5"},
		{"sliding window: in the next", gateway.NewSlidingWindow(60, time.Minute, nil), "a=k:40 wait:75s left:k:30 give:a:20 left:k:45 b=k:45"},
		{"sliding window: too late", gateway.NewSlidingWindow(60, time.Minute, nil), "a=k:40 wait:2m b=k:2 give:a:40 left:k:58"},
		{"sliding window: of the overflow", gateway.NewSlidingWindow(5, time.Hour, one), overflow},
		{"sliding window: too late, while the window before has a count", gateway.NewSlidingWindow(60, time.Minute, nil),
			"a=k:40 wait:1m b=k:10 wait:1m give:a:40 left:k:50 give:b:4 left:k:54"},
		{"fixed window: in a later one", gateway.NewFixedWindow(5, time.Minute, nil), "a=k:4 wait:1m b=k:2 give:a:4 left:k:3"},
		{"token bucket: of the overflow", gateway.NewTokenBucket(0.001, 5, one), overflow},
		{"leaky bucket: of the overflow", gateway.NewLeakyBucket(0.001, 4, one), overflow},
		{"fixed window: of the overflow", gateway.NewFixedWindow(5, time.Hour, one), overflow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playLimiter(t, tt.l, tt.script) })
		})
	}
}

// The last slot goes back at any moment, also when slots are no whole numbers of nanoseconds.
func TestLeakyBucketReturnAtAnyTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		l := gateway.NewLeakyBucket(7, 9, nil)
		for i := range 1000 {
			if d, _ := l.Take(t.Context(), "k", 1+r.IntN(5)); !d.OK {
				time.Sleep(d.RetryAfter)
			}
			time.Sleep(time.Duration(r.Int64N(int64(300 * msec))))
			d, _ := l.Take(t.Context(), "k", 1)
			time.Sleep(time.Duration(r.Int64N(int64(50 * msec))))
			before, _ := l.Take(t.Context(), "k", math.MaxInt)
			_ = l.Return(t.Context(), "k", 1, d)
			if after, _ := l.Take(t.Context(), "k", math.MaxInt); d.OK && after.ResetAfter >= before.ResetAfter {
				t.Fatalf("%d: not given back: %+v, then %+v", i, before, after)
			}
		}
	})
}

// However many requests come at once, exactly the burst passes.
func TestLimiterConcurrency(t *testing.T) {
	const n = 200
	for name, l := range map[string]*gateway.MemoryLimiter{
		"token bucket":   gateway.NewTokenBucket(1e-9, n, nil),
		"leaky bucket":   gateway.NewLeakyBucket(1e-9, n-1, nil),
		"fixed window":   gateway.NewFixedWindow(n, longest, nil),
		"sliding window": gateway.NewSlidingWindow(n, longest, nil),
		"overflow":       gateway.NewTokenBucket(1e-9, n, &gateway.LimiterOptions{MaxKeys: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "overflow" {
				_, _ = l.Take(t.Context(), "the one", 1)
			}
			var passed atomic.Int64
			var wg sync.WaitGroup
			start := make(chan struct{})
			for range 4 * n {
				wg.Go(func() {
					<-start
					if d, _ := l.Take(t.Context(), "k", 1); d.OK {
						passed.Add(1)
					}
				})
			}
			close(start)
			wg.Wait()
			if passed.Load() != n {
				t.Errorf("%d passed, want %d", passed.Load(), n)
			}
		})
	}
}

// Takes, returns and sweeps of many keys at once keep the count of keys.
func TestLimiterManyKeysConcurrently(t *testing.T) {
	const maxKeys = 50
	l := gateway.NewTokenBucket(1e6, 3, &gateway.LimiterOptions{MaxKeys: maxKeys})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				key := strconv.Itoa((i*7 + g*13) % 200)
				d, _ := l.Take(context.Background(), key, 1+i%3)
				if i%5 == 0 {
					_ = l.Return(context.Background(), key, 1+i%3, d)
				}
				if n := l.Len(); n > maxKeys {
					t.Errorf("%d keys held", n)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := l.Len(); n > maxKeys {
		t.Errorf("%d keys held, want at most %d", n, maxKeys)
	}
}

func TestLimiterFlood(t *testing.T) {
	const maxKeys = 200
	opts := &gateway.LimiterOptions{MaxKeys: maxKeys}
	for name, make := range map[string]func() *gateway.MemoryLimiter{
		"token bucket":   func() *gateway.MemoryLimiter { return gateway.NewTokenBucket(0.01, 5, opts) },
		"leaky bucket":   func() *gateway.MemoryLimiter { return gateway.NewLeakyBucket(0.01, 4, opts) },
		"fixed window":   func() *gateway.MemoryLimiter { return gateway.NewFixedWindow(5, time.Hour, opts) },
		"sliding window": func() *gateway.MemoryLimiter { return gateway.NewSlidingWindow(5, time.Hour, opts) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := make()
				take := func(key string) bool {
					d, _ := l.Take(t.Context(), key, 1)
					return d.OK
				}
				for take("attacker") {
				}
				passed := 0
				for i := range 10 * maxKeys {
					if take("flood " + strconv.Itoa(i)) {
						passed++
					}
					if n := l.Len(); n > maxKeys {
						t.Fatalf("%d keys held, want at most %d", n, maxKeys)
					}
					if i%100 == 0 {
						time.Sleep(2 * msec) // let it sweep
					}
				}
				if take("attacker") {
					t.Error("the flood reset a throttled key")
				}
				if want := maxKeys - 1 + 5; passed != want { // every key with a place, and one overflow allowance
					t.Errorf("%d of the flood passed, want %d", passed, want)
				}

				// All keys come to rest, and are forgotten to make room for new ones.
				time.Sleep(2 * time.Hour)
				for i := range maxKeys / 2 {
					if !take("later " + strconv.Itoa(i)) {
						t.Fatal("a new key has no allowance of its own after the flood")
					}
				}
				for range 100 {
					take("later 0")
					time.Sleep(2 * msec)
				}
				if n := l.Len(); n != maxKeys/2 {
					t.Errorf("%d keys held, want the %d that are busy", n, maxKeys/2)
				}
			})
		})
	}
}

func TestLimiterKeys(t *testing.T) {
	l := gateway.NewFixedWindow(1, longest, nil)
	digest := sha256.Sum256([]byte(strings.Repeat("x", 600)))
	sum := string(digest[:])
	keys := []string{"", "a", "a\x00", sum, sum + strings.Repeat("\x00", 32), sum + strings.Repeat("\x00", 33)} // no key is another's hash
	for n := 60; n < 70; n++ {
		keys = append(keys, strings.Repeat("x", n))
	}
	keys = append(keys, strings.Repeat("x", 600), strings.Repeat("x", 100_000), strings.Repeat("x", 99_999)+"y")
	for _, want := range []bool{true, false} {
		for _, k := range keys {
			if d, _ := l.Take(t.Context(), k, 1); d.OK != want {
				t.Errorf("key %.40q of %d bytes: OK %t, want %t", k, len(k), d.OK, want)
			}
		}
	}
	if l.Len() != len(keys) {
		t.Errorf("%d keys held, want %d", l.Len(), len(keys))
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	for _, m := range memoryLimiters {
		for _, key := range []string{"alice", strings.Repeat("x", 500)} {
			l := m.make(nil)
			// The key is never at rest, so that no sweep forgets it.
			_, _ = l.Take(t.Context(), key, 1e8)
			if n := testing.AllocsPerRun(100, func() { _, _ = l.Take(context.Background(), key, 1) }); n != 0 {
				t.Errorf("%s, key of %d bytes: %v allocations", m.name, len(key), n)
			}
		}
	}
}

func TestLimiterPanics(t *testing.T) {
	for name, f := range map[string]func(){
		"gateway: NewTokenBucket: burst must be at least 1":     func() { gateway.NewTokenBucket(1, 0, nil) },
		"gateway: NewTokenBucket: perSecond must be positive":   func() { gateway.NewTokenBucket(math.NaN(), 1, nil) },
		"gateway: NewLeakyBucket: perSecond must be positive":   func() { gateway.NewLeakyBucket(0, 1, nil) },
		"gateway: NewLeakyBucket: queue must not be negative":   func() { gateway.NewLeakyBucket(1, -1, nil) },
		"gateway: NewSlidingWindow: limit must be at least 1":   func() { gateway.NewSlidingWindow(0, 1, nil) },
		"gateway: NewSlidingWindow: window must be positive":    func() { gateway.NewSlidingWindow(1, -1, nil) },
		"gateway: NewFixedWindow: limit must be at least 1":     func() { gateway.NewFixedWindow(0, 1, nil) },
		"gateway: NewFixedWindow: window must be positive":      func() { gateway.NewFixedWindow(1, 0, nil) },
		"gateway: NewFixedWindow: MaxKeys must not be negative": func() { gateway.NewFixedWindow(1, 1, &gateway.LimiterOptions{MaxKeys: -1}) },
		"gateway: RateLimit: nil Limiter":                       func() { gateway.RateLimit(nil, gateway.KeyByIP, nil) },
		"gateway: RateLimit: nil KeyFunc":                       func() { gateway.RateLimit(gateway.NewTokenBucket(1, 1, nil), nil, nil) },
		"gateway: RateLimit: Name must be printable ASCII":      func() { limitWith(&gateway.RateLimitOptions{Name: "na\u00efve"}) },
		"gateway: RateLimit: unknown Headers":                   func() { limitWith(&gateway.RateLimitOptions{Headers: 3}) },
		"gateway: KeyByHeader: empty name":                      func() { gateway.KeyByHeader("") },
		"gateway: Keys: no keys":                                func() { gateway.Keys() },
		"gateway: Keys: nil KeyFunc":                            func() { gateway.Keys(gateway.KeyByIP, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			if got := panicOf(f); got != name {
				t.Errorf("panicked with %q", got)
			}
		})
	}
}

func limitWith(opts *gateway.RateLimitOptions) {
	gateway.RateLimit(gateway.NewTokenBucket(1, 1, nil), gateway.KeyByIP, opts)
}

// limiterModel is a limiter of one key in whole numbers: a bucket's level in billionths of a unit, or a
// window's count.
type limiterModel struct {
	rate, burst int64 // a bucket's, units a second
	window      time.Duration
	level       int64
	at          time.Time
}

func (m *limiterModel) advance(now time.Time) {
	if m.window > 0 {
		if now.UnixNano()/int64(m.window) != m.at.UnixNano()/int64(m.window) {
			m.level = m.burst * 1e9
		}
	} else {
		m.level = min(m.burst*1e9, m.level+int64(now.Sub(m.at))*m.rate)
	}
	m.at = now
}

// FuzzLimiter compares each algorithm with the model: which requests pass, what remains, how long a leaky
// bucket waits, and that a refused cost passes at RetryAfter and not before.
func FuzzLimiter(f *testing.F) {
	f.Add(byte(0), uint16(10), uint16(3), []byte{1, 0, 1, 0, 1, 0, 1, 50, 2, 9, 1, 255, 3, 0})
	f.Add(byte(1), uint16(7), uint16(5), []byte{1, 0, 1, 0, 2, 0, 3, 1, 1, 2, 1, 3, 1, 200, 6, 0})
	f.Add(byte(2), uint16(3), uint16(4), []byte{1, 0, 5, 0, 2, 0, 3, 1, 1, 2, 1, 3, 1, 200, 4, 0})
	f.Add(byte(0), uint16(1000), uint16(999), []byte{200, 0, 255, 0, 255, 1, 255, 0, 255, 1, 40, 3})
	f.Fuzz(func(t *testing.T, kind byte, perSecond, burst uint16, ops []byte) {
		if perSecond == 0 || burst == 0 || len(ops) > 200 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			m := &limiterModel{rate: int64(perSecond), burst: int64(burst), level: int64(burst) * 1e9, at: time.Now()}
			var l *gateway.MemoryLimiter
			switch kind % 3 {
			case 0:
				l = gateway.NewTokenBucket(float64(perSecond), int(burst), nil)
			case 1:
				l = gateway.NewLeakyBucket(float64(perSecond), int(burst)-1, nil)
			case 2:
				m.window = time.Duration(perSecond) * msec
				l = gateway.NewFixedWindow(int(burst), m.window, nil)
			}
			for len(ops) >= 2 {
				n, pause := int64(ops[0]), time.Duration(ops[1])*time.Duration(ops[1])*time.Duration(ops[1])*1001
				ops = ops[2:]
				time.Sleep(pause)
				checkTake(t, l, m, kind%3 == 1, n)
			}
		})
	})
}

// checkTake takes n units from both and compares. Where the difference is less than two nanoseconds' worth,
// floating point may decide differently.
func checkTake(t *testing.T, l *gateway.MemoryLimiter, m *limiterModel, leaky bool, n int64) {
	t.Helper()
	d, err := l.Take(context.Background(), "k", int(n))
	if err != nil {
		t.Fatal(err)
	}
	n = max(n, 1)
	m.advance(time.Now())
	before := m.level
	close := before-n*1e9 < 2*m.rate && n*1e9-before < 2*m.rate
	ok := n*1e9 <= before
	if d.OK != ok && (m.window > 0 || !close) {
		t.Fatalf("take %d of %d: OK %t\n%+v", n, before, d.OK, d)
	}
	if d.OK {
		m.level = max(0, m.level-n*1e9)
	}
	if r := int64(d.Remaining); r != m.level/1e9 && r != (m.level+2*m.rate)/1e9 {
		t.Fatalf("%d remain, want %d billionths\n%+v", d.Remaining, m.level, d)
	}
	if d.Limit != int(m.burst) {
		t.Fatalf("limit %d", d.Limit)
	}
	wait := time.Duration(0)
	if leaky && d.OK {
		wait = time.Duration((m.burst*1e9 - before) / m.rate)
	}
	if diff := d.Wait - wait; diff < -2 || diff > 2 {
		t.Fatalf("waits %v, want %v", d.Wait, wait)
	}
	if (d.RetryAfter > 0) != (!d.OK && n <= m.burst) {
		t.Fatalf("take %d: %+v", n, d)
	}
	if margin := 3 * time.Nanosecond; d.RetryAfter > margin {
		time.Sleep(d.RetryAfter - margin)
		if early, _ := l.Take(context.Background(), "k", int(n)); early.OK {
			t.Fatalf("take %d passes before RetryAfter %v", n, d.RetryAfter)
		}
		time.Sleep(margin)
		if late, _ := l.Take(context.Background(), "k", int(n)); !late.OK {
			t.Fatalf("take %d does not pass after RetryAfter %v: %+v", n, d.RetryAfter, late)
		}
		m.advance(time.Now())
		m.level = max(0, m.level-n*1e9)
	}
}
