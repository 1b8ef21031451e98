package gatewayredis

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

var hostileKeys = []string{
	"{", "}", "{}", "}{", "{{", "}}", "a}b", "{a}b", "a{b}c", "a}:probe", ":probe", "gateways", "#{x}", "\x00", "\x00\x00", "\r\n", "a\r\nGET b\r\n",
	"$3\r\nfoo\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", `'..redis.call("FLUSHALL")..'`, "]] redis.call('FLUSHALL') --[[", `"`, `\`, "%s%n", "\xff\xfe", "*", "?", "[a-z]",
	strings.Repeat("{", 64), strings.Repeat("}", 65), strings.Repeat("\x00", 1000), strings.Repeat("k", 1<<20), "take", "nil", "-1", "1e999", "NaN", "ключ", "  ",
}

// TestHostileKeys: each has an allowance of its own, in one server and in a Cluster, and none does anything else.
func TestHostileKeys(t *testing.T) {
	t.Parallel()
	single := redistest.Start(t).Client()
	for _, client := range []redis.UniversalClient{single, redistest.StartCluster(t).Client()} {
		opts := patient()
		for _, lease := range []int{0, 2} {
			opts.Lease, opts.Prefix = lease, freshPrefix()
			l := NewFixedWindow(client, 3, 24*time.Hour, opts)
			for round := range 3 {
				for _, key := range hostileKeys {
					d, err := l.Take(t.Context(), key, 1)
					if err != nil || !splitsToRedis(d) || !d.OK || d.Remaining != 2-round {
						t.Fatalf("round %d, key %.40q: %+v, %v", round, key, d, err)
					}
				}
			}
		}
	}
}

func FuzzKey(f *testing.F) {
	for i := range len(hostileKeys) - 1 {
		f.Add(hostileKeys[i], hostileKeys[i+1])
	}
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	l := NewFixedWindow(client, 3, time.Hour, nil)
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := l.key(a), l.key(b)
		if (a == b) != (x == y) || x == y+":probe" || x == l.roster.key {
			t.Errorf("%q and %q are named %q and %q", a, b, x, y)
		}
		if len(x) > len(l.prefix)+maxKeyLen+2 {
			t.Errorf("%q is named %q", a, x)
		}
	})
}

func doubles(f ...float64) string {
	var b []byte
	for _, f := range f {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f))
	}
	return string(b)
}

// TestForeignStates: whatever is found at a key, the next decisions are decisions.
func TestForeignStates(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	inf, nan := math.Inf(1), math.NaN()
	now := float64(time.Now().UnixMicro())
	states := []any{"", "x", strings.Repeat("x", 16), strings.Repeat("x", 24), strings.Repeat("\x00", 16), strings.Repeat("\x00", 24), strings.Repeat("\xff", 16), []any{"list"}}
	numbers := []float64{0, -1, 0.5, 1e300, -inf, nan, now, now + 1e15}
	for _, a := range numbers {
		for _, b := range numbers {
			states = append(states, doubles(a, b), doubles(now, a, b))
		}
	}
	for _, kind := range kinds {
		l := kind.redis(client, 3, time.Minute, patient())
		for _, state := range states {
			name := l.key("k")
			client.Del(t.Context(), name)
			if list, ok := state.([]any); ok {
				client.LPush(t.Context(), name, list...)
			} else {
				client.Set(t.Context(), name, state, 0)
			}
			passed := 0
			for range 8 {
				d, err := l.Take(t.Context(), "k", 1)
				if err != nil || !splitsToRedis(d) || d.Remaining < 0 || d.Remaining > 3 || d.RetryAfter < 0 || d.ResetAfter < 0 || d.Wait < 0 {
					t.Fatalf("%s, state %q: %+v, %v", kind.name, state, d, err)
				}
				if d.OK {
					passed++
				}
			}
			if passed > 6 {
				t.Errorf("%s, state %q: %d pass", kind.name, state, passed)
			}
			if err := l.Owe(t.Context(), "k", 1); err != nil {
				t.Errorf("%s, state %q: %v", kind.name, state, err)
			}
		}
	}
}

// TestScriptsAndKeysAreFlushed: the scripts are sent again, and a limit is a limit before and after.
func TestScriptsAndKeysAreFlushed(t *testing.T) {
	s := redistest.Start(t)
	client := s.Client()
	l := NewTokenBucket(client, 0.001, 100, patient())
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				d, err := l.Take(context.Background(), "k", 1)
				if err != nil || !splitsToRedis(d) {
					t.Errorf("%+v, %v", d, err)
				}
				if d.OK {
					passed.Add(1)
				}
			}
		})
	}
	for range 20 {
		s.Do("script", "flush")
	}
	wg.Wait()
	if passed.Load() != 100 {
		t.Errorf("%d pass, want 100", passed.Load())
	}
	s.Do("flushall")
	s.Do("script", "flush")
	for i := range 101 {
		if d := mustTake(t, l); d.OK != (i < 100) || !splitsToRedis(d) {
			t.Fatalf("decision %d after all is gone: %+v", i, d)
		}
	}
}

// TestClockOfRedisGoesBack: it makes no units, and does not stop time for long.
func TestClockOfRedisGoesBack(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	const limit, window = 10, time.Minute
	for _, kind := range kinds {
		for _, back := range []time.Duration{time.Millisecond, time.Second, 1500 * time.Millisecond, 59 * time.Second, time.Hour, 20 * 365 * 24 * time.Hour} {
			clock := newFakeClock(t, client, time.Date(2026, 1, 1, 0, 0, 30, 0, time.UTC))
			l := clock.rule(kind.redis(client, limit, window, patient()))
			for range limit {
				if d := mustTake(t, l); !d.OK {
					t.Fatalf("%s: %+v", kind.name, d)
				}
			}
			clock.advance(-back)
			if d := mustTake(t, l); d.OK || d.RetryAfter <= 0 || d.RetryAfter > 2*window+2*time.Second {
				t.Errorf("%s, %v back: %+v", kind.name, back, d)
			}
			passed := 0
			const seconds = 300
			for range seconds / 15 {
				clock.advance(15 * time.Second)
				for mustTake(t, l).OK {
					passed++
				}
			}
			if least, most := 25, limit*(seconds/60+1); passed < least || passed > most {
				t.Errorf("%s, %v back: %d pass in five minutes, want %d to %d", kind.name, back, passed, least, most)
			}
		}
	}
}

// TestLargeNumbers: nothing overflows.
func TestLargeNumbers(t *testing.T) {
	client := redistest.Start(t).Client()
	for _, kind := range kinds {
		for _, lease := range []int{0, math.MaxInt} {
			if kind.name == "leaky bucket" && lease > 0 {
				continue // leased slots lapse, so that nearly all cannot be had
			}
			opts := patient()
			opts.Lease = lease
			l := kind.redis(client, maxLimit, 24*time.Hour, opts)
			take := func(n int, ok bool) {
				t.Helper()
				d, err := l.Take(t.Context(), "k", n)
				if err != nil || d.OK != ok || !splitsToRedis(d) || d.Limit != maxLimit || d.Remaining < 0 || d.RetryAfter < 0 || d.ResetAfter < 0 || d.Wait < 0 {
					t.Errorf("%s, lease %d: Take(%d): %+v, %v", kind.name, lease, n, d, err)
				}
				if n > maxLimit && d.RetryAfter != 0 {
					t.Errorf("%s, lease %d: Take(%d): RetryAfter %v", kind.name, lease, n, d.RetryAfter)
				}
			}
			take(maxLimit+1, false)
			take(math.MaxInt, false)
			take(math.MinInt, true)
			take(maxLimit-1, true)
			for range 3 {
				if err := l.Owe(t.Context(), "k", math.MaxInt); err != nil {
					t.Error(err)
				}
				take(1, false)
				take(maxLimit, false)
			}
		}
	}
	long := NewFixedWindow(client, 1, maxWindow, nil)
	if d := mustTake(t, long); !d.OK || d.ResetAfter <= 0 {
		t.Errorf("the longest window: %+v", d)
	}
	slow := NewTokenBucket(client, 1e-300, 1, nil)
	if d := mustTake(t, slow); !d.OK || d.ResetAfter != math.MaxInt64 {
		t.Errorf("the slowest bucket: %+v", d)
	}
	if d := mustTake(t, slow); d.OK || d.RetryAfter != math.MaxInt64 {
		t.Errorf("the slowest bucket: %+v", d)
	}
	fast := NewTokenBucket(client, math.Inf(1), maxLimit, nil)
	if d := mustTake(t, fast); !d.OK {
		t.Errorf("the fastest bucket: %+v", d)
	}
}

// TestCallersThatLeave: what they took is given back, and Redis does not count as away for it.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	opts := patient()
	opts.Logger = slog.New(slog.DiscardHandler)
	l := NewTokenBucket(s.Client(), 0.001, 100, opts)
	mustTake(t, l)
	s.Pause()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i+1)*time.Millisecond)
			defer cancel()
			if d, err := l.Take(ctx, "k", 1); err != context.DeadlineExceeded {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
	wg.Wait()
	s.Resume()
	until(t, "the units", patience, func() bool {
		d, err := l.Take(t.Context(), "k", 1000)
		return err == nil && d.Remaining == 99
	})
	if isAway(l) {
		t.Error("Redis is away")
	}
	if d := fmt.Sprint(l.link.orphans); d != "0" {
		t.Errorf("%s workers hang", d)
	}
}
