package gateway

import (
	"cmp"
	"context"
	"iter"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway/internal/keytable"
)

// LimiterOptions limits the memory of a limiter.
//
// A key is idle when it has its whole allowance again; otherwise it is busy. A limiter drops idle keys, which
// loses nothing: an idle key has the state of a new one. When MaxKeys keys are busy, all new keys share one
// overflow allowance, which is as large as that of one key. So a flood of keys neither grows memory nor
// resets the state of another key. A key longer than 64 bytes is stored as its SHA-256.
//
// With keys of at most 24 bytes, a busy key needs less than 100 bytes in all: a million need 81 MB in a
// bucket or a fixed window, and 92 MB in a sliding window (BenchmarkMemory measures it). A longer key needs
// as many bytes more as it is long. A limiter without keys needs 41 KB.
type LimiterOptions struct {
	MaxKeys int // number of busy keys that have an allowance of their own; 0 means 1<<20, a negative value panics
}

const defaultMaxKeys = 1 << 20

// MemoryLimiter is a Limiter, a Returner and a Debtor in the memory of this process. Make it with
// NewTokenBucket, NewLeakyBucket, NewFixedWindow or NewSlidingWindow; the zero value is not usable. It is
// safe for concurrent use. Its keys are spread over 256 locks.
//
// It starts no goroutine. Instead, once in a millisecond, a call of Take checks the next 64 keys and drops
// those that are idle. So does a Take for a new key when the table is full: if a tenth of the keys are idle,
// a new key almost always gets a place. Setting the clock back creates no units.
type MemoryLimiter struct {
	keys   keyLimiter
	wall   *wallClock // the clock of a window; nil for a bucket, which counts from the start of the process
	limit  int
	window time.Duration
}

// keyLimiter is a stateLimiter of any algorithm. Times are in nanoseconds.
type keyLimiter interface {
	take(now int64, key string, n int) (t takeResult, ok bool)
	give(now int64, key string, n int, ref int64)
	owe(now int64, key string, n int)
	usage(now int64, f func(key string, spent float64))
	size() int
}

// takeResult is the part of a Decision that differs between decisions of one limiter. It is small enough for
// the compiler to return it in registers. To copy a whole Decision would take longer than the arithmetic.
type takeResult struct {
	remaining  int
	pause      time.Duration // Wait if the units are granted, RetryAfter otherwise
	resetAfter time.Duration
	ref        int64
}

// NewTokenBucket returns a limiter that allows bursts: burst units at once, and perSecond units in the long
// run. In any interval of t seconds, at most burst + perSecond*t units pass. Decision.Window is the time in
// which an empty bucket fills.
//
// It panics when perSecond is not a positive number or burst is less than 1. perSecond above 1e9 counts as
// 1e9, since the clock has a resolution of one nanosecond.
func NewTokenBucket(perSecond float64, burst int, opts *LimiterOptions) *MemoryLimiter {
	if burst < 1 {
		panic("gateway: NewTokenBucket: burst must be at least 1")
	}
	b := newRateBucket("NewTokenBucket", perSecond, burst, false)
	return newMemoryLimiter("NewTokenBucket", b, MemoryLimiter{limit: burst, window: b.window()}, opts)
}

// NewLeakyBucket returns a limiter that spaces units evenly: one passes every 1/perSecond seconds. Each unit
// has a slot in a queue, and Decision.Wait is the time until its turn. The first unit does not wait, up to
// queue more wait, and any others are refused. A cost of n takes n slots and waits for the first of them.
// Decision.Limit is queue+1.
//
// It panics when perSecond is not a positive number or queue is negative. perSecond above 1e9 counts as 1e9.
func NewLeakyBucket(perSecond float64, queue int, opts *LimiterOptions) *MemoryLimiter {
	if queue < 0 {
		panic("gateway: NewLeakyBucket: queue must not be negative")
	}
	burst := min(queue, math.MaxInt-1) + 1
	b := newRateBucket("NewLeakyBucket", perSecond, burst, true)
	return newMemoryLimiter("NewLeakyBucket", b, MemoryLimiter{limit: burst, window: b.window()}, opts)
}

// NewFixedWindow returns a limiter that lets limit units pass in each window. Windows are aligned to the Unix
// epoch: a window of 24 hours begins at midnight UTC. Around the boundary of two windows, twice the limit can
// pass in a short time. Units above the limit, which only Owe can take, are taken from the windows that
// follow.
//
// It panics when limit is less than 1 or window is not positive.
func NewFixedWindow(limit int, window time.Duration, opts *LimiterOptions) *MemoryLimiter {
	checkWindow("NewFixedWindow", limit, window)
	l := MemoryLimiter{wall: new(wallClock), limit: limit, window: window}
	return newMemoryLimiter("NewFixedWindow", &fixedWindow{limit: limit, length: window}, l, opts)
}

// NewSlidingWindow returns a limiter that lets about limit units pass in any interval as long as window. It
// keeps two counts: of the current window and of the previous one, both aligned to the Unix epoch. It
// estimates the units of the last window as the current count, plus the share of the previous count that
// still lies in the last window. For example, with a limit of 100 a minute, 15 seconds into a minute with
// 40 units so far and 80 in the minute before, the estimate is 40 + 80*45/60 = 100. The next unit is
// refused.
//
// The estimate assumes that the units of the previous window were spread evenly over it. If they were not,
// the estimate is wrong by at most limit units, in either direction. The bounds are exact: at most limit
// units in each aligned window, and at most limit + limit*t/window in any interval t, as with a token bucket
// of burst limit and rate limit/window. So up to twice the limit can pass within one window's length: limit
// at the end of an aligned window, and then limit more at the rate limit/window. Units above the limit, which
// only Owe can take, are taken from the windows that follow.
//
// It panics when limit is less than 1 or window is not positive.
func NewSlidingWindow(limit int, window time.Duration, opts *LimiterOptions) *MemoryLimiter {
	checkWindow("NewSlidingWindow", limit, window)
	l := MemoryLimiter{wall: new(wallClock), limit: limit, window: window}
	return newMemoryLimiter("NewSlidingWindow", &slidingWindow{limit: limit, length: window}, l, opts)
}

func checkWindow(caller string, limit int, window time.Duration) {
	if limit < 1 {
		panic("gateway: " + caller + ": limit must be at least 1")
	}
	if window <= 0 {
		panic("gateway: " + caller + ": window must be positive")
	}
}

// Take spends n units of key's allowance. An n below 1 counts as 1. An n above the limit can never pass: it
// is refused with RetryAfter 0. A refusal takes nothing. Take never blocks, does not use its context, and its
// error is always nil.
func (l *MemoryLimiter) Take(_ context.Context, key string, n int) (d Decision, _ error) {
	t, ok := l.keys.take(l.now(), key, max(n, 1))
	// Set field by field, because a composite literal is copied, which takes 20 ns more.
	d.OK, d.Limit, d.Window = ok, l.limit, l.window
	d.Remaining, d.ResetAfter, d.Ref = t.remaining, t.resetAfter, t.ref
	if ok {
		d.Wait = t.pause
	} else {
		d.RetryAfter = t.pause
	}
	return d, nil
}

// Return gives back n units that d granted to key, as Returner describes. An n below 1 counts as 1. A key
// never has more units than a new key. The error is always nil.
func (l *MemoryLimiter) Return(_ context.Context, key string, n int, d Decision) error {
	if d.OK {
		l.keys.give(l.now(), key, max(n, 1), d.Ref)
	}
	return nil
}

// Owe takes n more units of key's allowance, even if fewer are left, as Debtor describes. An n below 1 takes
// nothing. The error is always nil.
//
// A key in debt is busy: it is kept until the debt is paid. If MaxKeys keys are busy, the debt of a new key
// is charged to the overflow allowance.
func (l *MemoryLimiter) Owe(_ context.Context, key string, n int) error {
	if n > 0 {
		l.keys.owe(l.now(), key, n)
	}
	return nil
}

// Len returns the number of keys in memory, including idle keys that have not been dropped yet. It is never
// more than MaxKeys.
func (l *MemoryLimiter) Len() int { return l.keys.size() }

// Usage yields the n keys that have spent the largest share of their allowance, the largest first. A share of
// 1 is the whole allowance; above 1, the key is in debt. Idle keys are left out. A key that is stored as its
// SHA-256 is yielded as "sha256:" and 64 hexadecimal digits.
//
// Usage reads every key when the iteration begins, which takes about 10 ms for a million keys. It locks a
// 256th of the keys at a time. Call it for a console or a status page, not for every request.
func (l *MemoryLimiter) Usage(n int) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		if n < 1 {
			return
		}
		for _, u := range busiest(n, func(f func(string, float64)) { l.keys.usage(l.now(), f) }) {
			if !yield(u.key, u.spent) {
				return
			}
		}
	}
}

// keyUsage is the share of its allowance that a key has spent.
type keyUsage struct {
	key   string
	spent float64
}

// busiest returns the n largest usages, the largest first. all calls its argument once for each key. Of equal
// usages, the smaller key comes first.
func busiest(n int, all func(f func(key string, spent float64))) []keyUsage {
	order := func(a, b keyUsage) int {
		return cmp.Or(cmp.Compare(b.spent, a.spent), cmp.Compare(a.key, b.key))
	}
	var top []keyUsage
	least := 0.0 // the smallest share among the first n of top, once it was sorted
	all(func(key string, spent float64) {
		if spent <= 0 || len(top) >= n && spent < least {
			return
		}
		top = append(top, keyUsage{key, spent})
		if len(top)/2 >= n { // sorting only when top has 2n elements is cheaper than for each one
			slices.SortFunc(top, order)
			top = top[:n]
			least = top[n-1].spent
		}
	})
	slices.SortFunc(top, order)
	return top[:min(n, len(top))]
}

// now returns the time of the limiter's clock in nanoseconds: the Unix time for a window, and sinceStart for
// a bucket.
func (l *MemoryLimiter) now() int64 {
	if l.wall != nil {
		return l.wall.now()
	}
	return sinceStart()
}

// processStart is the time at which the process started.
var processStart = time.Now()

// sinceStart returns the nanoseconds since the start of the process, plus 1<<60 (36 years). It reads only the
// monotonic clock, at half the cost of time.Now. In a bubble of testing/synctest, whose clock begins in the
// year 2000, time.Since is negative: the 36 years keep the result positive.
func sinceStart() int64 { return int64(time.Since(processStart)) + 1<<60 }

// wallClock returns the Unix time at the cost of sinceStart. It reads time.Now once in a second, because the
// wall clock may be set, and the monotonic clock stands still while a machine is suspended.
type wallClock struct {
	setAt  atomic.Int64 // by sinceStart
	offset atomic.Int64 // Unix time minus sinceStart
}

func (c *wallClock) now() int64 {
	at := sinceStart()
	if since := at - c.setAt.Load(); since < 0 || since >= int64(time.Second) {
		c.offset.Store(time.Now().UnixNano() - at)
		c.setAt.Store(at)
	}
	return at + c.offset.Load()
}

// limitAlgorithm is the arithmetic on S, the state of one key. Its methods are called with the state's lock
// held, and with times that never go back for this state.
type limitAlgorithm[S any] interface {
	keytable.States[S]
	take(s *S, now int64, n int) (t takeResult, ok bool)
	give(s *S, now int64, n int, ref int64)
	owe(s *S, now int64, n int)
	spent(s *S, now int64) float64 // share of the allowance; above 1, the key is in debt
}

// stateLimiter applies an algorithm to the states in a table.
type stateLimiter[S any] struct {
	algorithm limitAlgorithm[S]
	table     *keytable.Table[S]
}

// newMemoryLimiter completes l with an algorithm and a table for its states.
func newMemoryLimiter[S any](caller string, a limitAlgorithm[S], l MemoryLimiter, opts *LimiterOptions) *MemoryLimiter {
	maxKeys := defaultMaxKeys
	if opts != nil {
		if opts.MaxKeys < 0 {
			panic("gateway: " + caller + ": MaxKeys must not be negative")
		}
		if opts.MaxKeys > 0 {
			maxKeys = opts.MaxKeys
		}
	}
	l.keys = &stateLimiter[S]{algorithm: a, table: keytable.New(maxKeys, keytable.States[S](a))}
	return &l
}

func (l *stateLimiter[S]) size() int { return l.table.Len() }

func (l *stateLimiter[S]) usage(now int64, f func(string, float64)) {
	l.table.Each(now, func(key string, s *S, now int64) { f(key, l.algorithm.spent(s, now)) })
}

// take makes Ref negative if the units came from the overflow allowance. give then returns them to it.
func (l *stateLimiter[S]) take(now int64, key string, n int) (t takeResult, ok bool) {
	s := l.table.Lock(key, now)
	t, ok = l.algorithm.take(s.State, s.Now, n)
	s.Unlock()
	if s.Overflow {
		t.ref = ^t.ref
	}
	return t, ok
}

func (l *stateLimiter[S]) owe(now int64, key string, n int) {
	s := l.table.Lock(key, now)
	l.algorithm.owe(s.State, s.Now, n)
	s.Unlock()
}

func (l *stateLimiter[S]) give(now int64, key string, n int, ref int64) {
	var s keytable.Locked[S]
	if ref < 0 {
		ref = ^ref
		s = l.table.LockOverflow(now)
	} else {
		s = l.table.LockHeld(key, now)
	}
	if s.State == nil {
		return // the key is not held, so it is idle and has its whole allowance
	}
	l.algorithm.give(s.State, s.Now, n, ref)
	s.Unlock()
}
