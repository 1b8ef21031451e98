package gatewaytest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMemoryLimiters(t *testing.T) {
	perSecond := func(limit int, window time.Duration) float64 { return float64(limit) / window.Seconds() }
	for name, build := range map[string]func(limit int, window time.Duration) gateway.Limiter{
		"token bucket": func(limit int, window time.Duration) gateway.Limiter {
			return gateway.NewTokenBucket(perSecond(limit, window), limit, nil)
		},
		"leaky bucket": func(limit int, window time.Duration) gateway.Limiter {
			return gateway.NewLeakyBucket(perSecond(limit, window), limit-1, nil)
		},
		"fixed window": func(limit int, window time.Duration) gateway.Limiter {
			return gateway.NewFixedWindow(limit, window, nil)
		},
		"sliding window": func(limit int, window time.Duration) gateway.Limiter {
			return gateway.NewSlidingWindow(limit, window, nil)
		},
		"a Limiter alone": func(limit int, window time.Duration) gateway.Limiter {
			return struct{ gateway.Limiter }{gateway.NewTokenBucket(perSecond(limit, window), limit, nil)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
					New:   func(_ *testing.T, limit int, window time.Duration) gateway.Limiter { return build(limit, window) },
					Sleep: time.Sleep,
				})
			})
		})
		t.Run(name+", on the real clock", func(t *testing.T) {
			gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
				New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter { return build(limit, window) },
			})
		})
	}
}

// faulty is a limiter that breaks one promise.
type faulty struct {
	*gateway.MemoryLimiter
	fault string
}

func (f faulty) Take(ctx context.Context, key string, n int) (gateway.Decision, error) {
	switch {
	case f.fault == "one key" || f.fault == "cuts keys" && len(key) > 50:
		key = "x"
	case f.fault == "ignores the cost":
		n = 1
	}
	d, err := f.MemoryLimiter.Take(ctx, key, n)
	switch f.fault {
	case "no Retry-After":
		d.RetryAfter = 0
	case "retries early":
		d.RetryAfter = d.RetryAfter * 9 / 10
	case "retries late":
		d.RetryAfter = d.RetryAfter * 11 / 10
	case "a refusal takes":
		if !d.OK {
			_ = f.MemoryLimiter.Owe(ctx, key, 1)
		}
	}
	return d, err
}

func (f faulty) Return(ctx context.Context, key string, n int, d gateway.Decision) error {
	if f.fault == "keeps what is returned" {
		return nil
	}
	d.OK = d.OK || f.fault == "returns of refusals"
	return f.MemoryLimiter.Return(ctx, key, n, d)
}

func (f faulty) Owe(ctx context.Context, key string, n int) error {
	if f.fault == "forgets debts" {
		return nil
	}
	if f.fault == "debts up to the limit" {
		n = min(n, 10)
	}
	return f.MemoryLimiter.Owe(ctx, key, n)
}

// TestLimiter finds each fault. A faulty limiter is tested with a testing.T of its own, so that its failure
// is not a failure of this test.
func TestLimiterFindsFaults(t *testing.T) {
	for _, fault := range []string{"one key", "cuts keys", "ignores the cost", "no Retry-After", "retries early", "retries late",
		"a refusal takes", "keeps what is returned", "returns of refusals", "forgets debts"} {
		failed := false
		synctest.Test(t, func(*testing.T) {
			trial := new(testing.T)
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() {
					_ = recover() // some methods of such a testing.T panic
					failed = trial.Failed()
				}()
				gatewaytest.TestLimiter(trial, gatewaytest.LimiterTest{
					New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter {
						return faulty{gateway.NewTokenBucket(float64(limit)/window.Seconds(), limit, nil), fault}
					},
					Sleep: time.Sleep,
				})
			}()
			<-done
		})
		if !failed {
			t.Errorf("%s: not found", fault)
		}
	}
}
