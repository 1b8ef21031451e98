package gatewayredis

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// kinds are the four limiters.
var kinds = []struct {
	name   string
	redis  func(c redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter
	memory func(limit int, window time.Duration) *gateway.MemoryLimiter
}{
	{"token bucket",
		func(c redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
			return NewTokenBucket(c, float64(limit)/window.Seconds(), limit, opts)
		},
		func(limit int, window time.Duration) *gateway.MemoryLimiter {
			return gateway.NewTokenBucket(float64(limit)/window.Seconds(), limit, nil)
		}},
	{"leaky bucket",
		func(c redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
			return NewLeakyBucket(c, float64(limit)/window.Seconds(), limit-1, opts)
		},
		func(limit int, window time.Duration) *gateway.MemoryLimiter {
			return gateway.NewLeakyBucket(float64(limit)/window.Seconds(), limit-1, nil)
		}},
	{"fixed window",
		func(c redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
			return NewFixedWindow(c, limit, window, opts)
		},
		func(limit int, window time.Duration) *gateway.MemoryLimiter {
			return gateway.NewFixedWindow(limit, window, nil)
		}},
	{"sliding window",
		func(c redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
			return NewSlidingWindow(c, limit, window, opts)
		},
		func(limit int, window time.Duration) *gateway.MemoryLimiter {
			return gateway.NewSlidingWindow(limit, window, nil)
		}},
}

var prefixes atomic.Int64

// freshPrefix is a prefix that no other test has.
func freshPrefix() string { return "test" + strconv.FormatInt(prefixes.Add(1), 10) + ":" }

// patient are options with a timeout that a busy machine keeps.
func patient() *Options { return &Options{Prefix: freshPrefix(), Timeout: 20 * time.Second} }

// fakeClock is the clock of a limiter's script: a key that tests set.
type fakeClock struct {
	t      *testing.T
	client *redis.Client
	us     int64
}

const clockKey = "clock"

func newFakeClock(t *testing.T, client *redis.Client, at time.Time) *fakeClock {
	c := &fakeClock{t, client, at.UnixMicro()}
	c.advance(0)
	return c
}

func (c *fakeClock) advance(d time.Duration) {
	c.t.Helper()
	c.us += d.Microseconds()
	if err := c.client.Set(context.Background(), clockKey, c.us, 0).Err(); err != nil {
		c.t.Fatal(err)
	}
}

// rule makes l use c.
func (c *fakeClock) rule(l *Limiter) *Limiter {
	source, ok := strings.CutPrefix(l.script.source, scriptClock)
	if !ok {
		c.t.Fatal("the script does not begin with its clock")
	}
	// Keys expire by the real clock, which may be ahead of this one.
	source = strings.Replace(source, "math.max(ms, 1)", "math.max(ms, 3600000)", 1)
	l.script = makeScript("local now = tonumber(redis.call('GET', '"+clockKey+"'))\n"+source, l.script.fields)
	return l
}

func TestConformance(t *testing.T) {
	s := redistest.Start(t)
	client := s.Client()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
				New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter {
					return kind.redis(client, limit, window, patient())
				},
			})
		})
		t.Run(kind.name+", leased", func(t *testing.T) {
			gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
				New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter {
					opts := patient()
					opts.Lease = 4
					return kind.redis(client, limit, window, opts)
				},
			})
		})
		t.Run(kind.name+", as time passes", func(t *testing.T) {
			clock := newFakeClock(t, client, time.Now())
			gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
				New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter {
					return clock.rule(kind.redis(client, limit, window, patient()))
				},
				Sleep: clock.advance,
			})
		})
	}
}

// TestTokenBucketOnTheServersClock uses the real clock: what was spent comes back.
func TestTokenBucketOnTheServersClock(t *testing.T) {
	s := redistest.Start(t)
	l := NewTokenBucket(s.Client(), 1, 2, patient())
	for i := range 2 {
		if d, err := l.Take(t.Context(), "k", 1); err != nil || !d.OK {
			t.Fatalf("take %d: %+v, %v", i, d, err)
		}
	}
	d, err := l.Take(t.Context(), "k", 1)
	if err != nil || d.OK || d.RetryAfter <= 0 || d.RetryAfter > time.Second {
		t.Fatalf("%+v, %v; want a refusal with RetryAfter of at most a second", d, err)
	}
	<-time.After(d.RetryAfter)
	if d, err = l.Take(t.Context(), "k", 1); err != nil || !d.OK {
		t.Errorf("after RetryAfter: %+v, %v", d, err)
	}
}

// TestKeysInRedis: the names of keys, their expiry, and what they cost.
func TestKeysInRedis(t *testing.T) {
	s := redistest.Start(t)
	client := s.Client()
	long := strings.Repeat("k", 65)
	opts := &Options{Timeout: 5 * time.Second} // which a busy machine keeps; else the defaults
	for _, tt := range []struct {
		l          *Limiter
		key, name  string
		least      time.Duration
		most       time.Duration
		mostMemory int64
	}{
		{NewTokenBucket(client, 0.01, 10, opts), "alice", "gateway:token:0.01:10:{alice}", 50 * time.Second, 100001 * time.Millisecond, 130},
		{NewTokenBucket(client, 0.01, 10, opts), long, "gateway:token:0.01:10:#{85zcJYR1jJnPgcH0HSVy9U4XBmr__J0Yeur-X3y-ISI}", 50 * time.Second, 100001 * time.Millisecond, 180},
		{NewLeakyBucket(client, 0.01, 10, opts), "alice", "gateway:leaky:0.01:10:{alice}", 50 * time.Second, 100001 * time.Millisecond, 130},
		{NewFixedWindow(client, 2, time.Hour, opts), "alice", "gateway:fixed:2:1h0m0s:{alice}", 1, time.Hour + time.Millisecond, 130},
		{NewSlidingWindow(client, 2, time.Hour, opts), "a}b", "gateway:sliding:2:1h0m0s:{a}b}", time.Hour - time.Minute, 2*time.Hour + time.Millisecond, 140},
	} {
		if d, err := tt.l.Take(t.Context(), tt.key, 1); err != nil || !d.OK {
			t.Fatalf("%s: %+v, %v", tt.name, d, err)
		}
		if ttl, err := client.PTTL(t.Context(), tt.name).Result(); err != nil || ttl < tt.least || ttl > tt.most {
			keys, _ := client.Keys(t.Context(), "*").Result()
			t.Errorf("%s: expires in %v, %v, want %v to %v; there is %q", tt.name, ttl, err, tt.least, tt.most, keys)
		}
		bytes, err := client.MemoryUsage(t.Context(), tt.name).Result()
		t.Logf("%s: %d bytes", tt.name, bytes)
		if err != nil || bytes > tt.mostMemory {
			t.Errorf("%s: %d bytes, %v, want at most %d", tt.name, bytes, err, tt.mostMemory)
		}
	}
}

// TestParametersAreInTheKey: limiters with other parameters have other budgets; those with the same share one.
func TestParametersAreInTheKey(t *testing.T) {
	s := redistest.Start(t)
	c := s.Client()
	var all []*Limiter
	for range 2 {
		all = append(all,
			NewTokenBucket(c, 0.001, 1, nil), NewTokenBucket(c, 0.002, 1, nil), NewTokenBucket(c, 0.001, 2, nil),
			NewLeakyBucket(c, 0.001, 0, nil), NewLeakyBucket(c, 0.001, 1, nil),
			NewFixedWindow(c, 1, 24*time.Hour, nil), NewFixedWindow(c, 1, 48*time.Hour, nil), NewFixedWindow(c, 2, 48*time.Hour, nil),
			NewSlidingWindow(c, 1, 24*time.Hour, nil), NewSlidingWindow(c, 1, 48*time.Hour, nil),
			NewTokenBucket(c, 0.001, 1, &Options{Prefix: "other:"}))
	}
	for i, l := range all {
		d, err := l.Take(t.Context(), "k", 1)
		if err != nil {
			t.Fatal(err)
		}
		if second := i >= len(all)/2; d.OK == second && d.Limit == 1 || d.Remaining != 0 && second {
			t.Errorf("limiter %d (%s): %+v", i, l.prefix, d)
		}
	}
}

func TestPanics(t *testing.T) {
	c := redis.NewClient(&redis.Options{})
	defer c.Close()
	for want, f := range map[string]func(){
		"NewTokenBucket: nil client":                  func() { NewTokenBucket(nil, 1, 1, nil) },
		"NewTokenBucket: perSecond must be positive":  func() { NewTokenBucket(c, 0, 1, nil) },
		"NewTokenBucket: burst must be at least 1":    func() { NewTokenBucket(c, 1, 0, nil) },
		"NewTokenBucket: the limit must be at most":   func() { NewTokenBucket(c, 1, 1<<52+1, nil) },
		"NewLeakyBucket: queue must not be negative":  func() { NewLeakyBucket(c, 1, -1, nil) },
		"NewFixedWindow: limit must be between":       func() { NewFixedWindow(c, 0, 1, nil) },
		"NewTokenBucket: Lease must not be":           func() { NewTokenBucket(c, 1, 1, &Options{Lease: -1}) },
		"NewSlidingWindow: window must be positive":   func() { NewSlidingWindow(c, 1, time.Nanosecond, nil) },
		"NewFixedWindow: Timeout must not be negativ": func() { NewFixedWindow(c, 1, time.Second, &Options{Timeout: -1}) },
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
					t.Errorf("panic %q, want %q", got, want)
				}
			}()
			f()
		}()
	}
}
