package gatewaytest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// LimiterTest configures TestLimiter. New is required.
type LimiterTest struct {
	// New returns a new limiter. Each of its keys has limit units, and has all of them again after at most
	// one window. The rate of a bucket is limit/window. TestLimiter uses windows of an hour or more, so
	// that no units come back during a test.
	New func(t *testing.T, limit int, window time.Duration) gateway.Limiter

	// Sleep advances the limiter's clock, with a precision of a millisecond. In a synctest bubble, use
	// time.Sleep. If it is nil, the tests in which time passes are skipped.
	Sleep func(time.Duration)

	// Margin is the allowed error of RetryAfter and ResetAfter. 0 means 1ms.
	Margin time.Duration
}

// TestLimiter tests that an implementation of gateway.Limiter does what RateLimit needs. If it is also a
// gateway.Returner or a gateway.Debtor, TestLimiter tests that as well. The limiters of package gateway pass:
//
//	synctest.Test(t, func(t *testing.T) {
//		gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
//			New: func(t *testing.T, limit int, window time.Duration) gateway.Limiter {
//				return gateway.NewFixedWindow(limit, window, nil)
//			},
//			Sleep: time.Sleep,
//		})
//	})
//
// It reports failures by t.Errorf. It starts no subtests, so that it can run in a synctest bubble.
func TestLimiter(t *testing.T, lt LimiterTest) {
	t.Helper()
	if lt.Margin == 0 {
		lt.Margin = time.Millisecond
	}
	tests := []func(*limiterTest){
		(*limiterTest).spends, (*limiterTest).refuses, (*limiterTest).keysAreDistinct, (*limiterTest).isExactAtOnce,
		(*limiterTest).canceled,
	}
	l := lt.New(t, 1, 1000*time.Hour)
	if _, ok := l.(gateway.Returner); ok {
		tests = append(tests, (*limiterTest).returns)
	}
	if _, ok := l.(gateway.Debtor); ok {
		tests = append(tests, (*limiterTest).owes)
	}
	if lt.Sleep != nil {
		tests = append(tests, (*limiterTest).comesBack)
	}
	for _, test := range tests {
		test(&limiterTest{T: t, LimiterTest: lt, limit: 10, window: 1000 * time.Hour})
	}
}

// limiterTest is one test.
type limiterTest struct {
	*testing.T
	LimiterTest
	limit  int
	window time.Duration
	l      gateway.Limiter
}

func (t *limiterTest) begin() {
	t.Helper()
	t.l = t.New(t.T, t.limit, t.window)
}

// take takes n units of key and checks the rules that every decision must follow.
func (t *limiterTest) take(key string, n int) gateway.Decision {
	t.Helper()
	d, err := t.l.Take(context.Background(), key, n)
	if err != nil {
		t.Fatalf("Take(%q, %d): %v", key, n, err)
	}
	switch {
	case d.Limit != t.limit:
		t.Errorf("Take(%q, %d): Limit is %d, want %d", key, n, d.Limit, t.limit)
	case d.Remaining < 0 || d.Remaining > d.Limit:
		t.Errorf("Take(%q, %d): %d of %d remain", key, n, d.Remaining, d.Limit)
	case d.Window <= 0:
		t.Errorf("Take(%q, %d): Window is %v", key, n, d.Window)
	case d.OK && d.RetryAfter != 0, !d.OK && d.Wait != 0:
		t.Errorf("Take(%q, %d): OK %t, Wait %v, RetryAfter %v", key, n, d.OK, d.Wait, d.RetryAfter)
	case !d.OK && (d.RetryAfter > 0) != (n <= d.Limit):
		t.Errorf("Take(%q, %d) of %d: RetryAfter is %v", key, n, d.Limit, d.RetryAfter)
	case d.Remaining < d.Limit && d.ResetAfter <= 0:
		t.Errorf("Take(%q, %d): ResetAfter is %v, while %d of %d remain", key, n, d.ResetAfter, d.Remaining, d.Limit)
	}
	return d
}

// want is like take. It also compares OK and Remaining with the expected values.
func (t *limiterTest) want(what, key string, n int, ok bool, remaining int) gateway.Decision {
	t.Helper()
	d := t.take(key, n)
	if d.OK != ok || d.Remaining != remaining {
		t.Errorf("%s: Take(%q, %d): OK %t and %d remain, want %t and %d", what, key, n, d.OK, d.Remaining, ok, remaining)
	}
	return d
}

func (t *limiterTest) spends() {
	t.begin()
	for i := range t.limit {
		t.want("one by one", "one", 1, true, t.limit-1-i)
	}
	t.want("more than there is", "one", 1, false, 0)
	t.want("at once", "all", t.limit, true, 0)
	t.want("after all", "all", 1, false, 0)
}

func (t *limiterTest) refuses() {
	t.begin()
	t.want("more than the limit", "k", t.limit+1, false, t.limit)
	t.want("a part", "k", 3, true, t.limit-3)
	for range 5 {
		t.want("a refusal takes nothing", "k", t.limit-2, false, t.limit-3)
	}
	t.want("the rest", "k", t.limit-3, true, 0)
}

func (t *limiterTest) keysAreDistinct() {
	t.begin()
	long := strings.Repeat("x", 100)
	keys := []string{"", "a", "A", "a\x00", "a b", "a:b", "{a}", "ä", "\xff", "2:ab1:c", "2:a1:bc", long, long + "y", strings.Repeat("x", 10_000)}
	for _, key := range keys {
		t.want("its first", key, t.limit, true, 0)
	}
	for _, key := range keys {
		t.want("its second", key, 1, false, 0)
	}
}

// isExactAtOnce takes units from many goroutines at the same time: exactly the limit must pass.
func (t *limiterTest) isExactAtOnce() {
	t.limit = 50
	t.begin()
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				if d, err := t.l.Take(context.Background(), "k", 1); err != nil {
					t.Errorf("Take: %v", err)
				} else if d.OK {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != int64(t.limit) {
		t.Errorf("%d units pass of 200 at once, want %d", passed.Load(), t.limit)
	}
}

// canceled takes units with a context that has ended. The limiter may return a decision or an error. After an
// error, nothing may have been taken.
func (t *limiterTest) canceled() {
	t.begin()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	want := t.limit - 1
	if d, err := t.l.Take(ctx, "k", 1); err == nil && d.OK {
		want--
	}
	t.want("after a canceled context", "k", 1, true, want)
}

func (t *limiterTest) returns() {
	t.begin()
	give := func(key string, n int, d gateway.Decision) {
		t.Helper()
		if err := t.l.(gateway.Returner).Return(context.Background(), key, n, d); err != nil {
			t.Errorf("Return(%q, %d): %v", key, n, err)
		}
	}
	d := t.want("before a return", "k", 6, true, t.limit-6)
	give("k", 6, d)
	d = t.want("after a return", "k", 4, true, t.limit-4)
	give("k", 3, d)
	t.want("after the return of a part", "k", t.limit, false, t.limit-1)

	d = t.want("all", "full", t.limit, true, 0)
	give("full", t.limit, d)
	give("full", t.limit, d)
	t.want("a key has never more than a new one", "full", t.limit, true, 0)
	refused := t.want("after all", "full", 1, false, 0)
	give("full", 1, refused)
	t.want("a refusal has nothing to return", "full", 1, false, 0)
	give("nobody", 1, d)
	t.want("another key has what it had", "nobody", t.limit, true, 0)
}

func (t *limiterTest) owes() {
	t.begin()
	owe := func(key string, n int) {
		t.Helper()
		if err := t.l.(gateway.Debtor).Owe(context.Background(), key, n); err != nil {
			t.Errorf("Owe(%q, %d): %v", key, n, err)
		}
	}
	owe("new", 4)
	t.want("after a debt", "new", 1, true, t.limit-5)
	t.want("before a debt", "k", 1, true, t.limit-1)
	before := t.take("other", t.limit+1)
	owe("k", 3*t.limit)
	d := t.want("in debt", "k", 1, false, 0)
	if all := t.want("in debt", "k", t.limit, false, 0); all.RetryAfter < d.RetryAfter || d.ResetAfter < all.RetryAfter-t.Margin {
		t.Errorf("in debt: RetryAfter is %v for one unit and %v for all; ResetAfter is %v", d.RetryAfter, all.RetryAfter, d.ResetAfter)
	}
	if after := t.take("other", t.limit+1); after.Remaining != before.Remaining {
		t.Errorf("the debt of one key is another's: %d remain, %d before", after.Remaining, before.Remaining)
	}
	if t.Sleep == nil {
		return
	}
	t.window = time.Minute
	t.begin()
	t.take("k", 1)
	owe("k", 2*t.limit)
	t.retries("k", 1)
}

// retries takes n units, which must be refused, then again shortly before RetryAfter and at RetryAfter.
func (t *limiterTest) retries(key string, n int) {
	t.Helper()
	d := t.take(key, n)
	if d.OK || d.RetryAfter <= t.Margin {
		t.Errorf("Take(%q, %d): OK %t, RetryAfter %v", key, n, d.OK, d.RetryAfter)
		return
	}
	t.Sleep(d.RetryAfter - t.Margin)
	if early := t.take(key, n); early.OK {
		t.Errorf("Take(%q, %d) passes %v before RetryAfter %v", key, n, t.Margin, d.RetryAfter)
	}
	t.Sleep(t.Margin)
	if late := t.take(key, n); !late.OK {
		t.Errorf("Take(%q, %d) does not pass after RetryAfter %v: %s", key, n, d.RetryAfter, fmt.Sprintf("%+v", late))
	}
}

func (t *limiterTest) comesBack() {
	t.window = time.Minute
	t.begin()
	for _, n := range []int{1, t.limit / 2, t.limit} {
		for t.take("k", 1).OK { // until the allowance is spent
		}
		t.retries("k", n)
	}
	d := t.take("k", 1)
	t.Sleep(d.ResetAfter)
	t.want("after ResetAfter", "k", t.limit, true, 0)
}
