package gateway

import (
	"context"
	"math"
	"time"

	"golang.org/x/time/rate"

	"github.com/seed-96248d0c/gateway/internal/keytable"
)

// LimiterOptions bounds a limiter's memory.
//
// A limiter forgets a key at rest: its state equals that of a new key, so nothing is lost. When MaxKeys keys
// are busy, new keys share one overflow allowance, which is as large as that of one key. So a flood of keys
// neither grows memory nor resets the state of another key. A key longer than 64 bytes is held as its
// SHA-256.
//
// A busy key costs about 160 bytes in a bucket and 95 in a window, at most 175 and 110, plus the key itself
// (BenchmarkMemory measures it). With keys of 16 bytes, a million buckets take 176 MB. A limiter without keys
// takes 40 KiB.
type LimiterOptions struct {
	MaxKeys int // 0 means 1<<20; negative panics
}

const defaultMaxKeys = 1 << 20

// MemoryLimiter is a Limiter and a Returner in the memory of this process. Make it with NewTokenBucket,
// NewLeakyBucket or NewFixedWindow; the zero value is not usable. It is safe for concurrent use. Its keys are
// spread over 256 locks.
//
// It starts no goroutine. Instead, once in a millisecond, a Take looks at 64 keys in turn and forgets those
// at rest. A Take that finds no room for a new key does so too; so when a tenth of the keys are at rest, a
// new key almost always finds room. A clock that is set back creates no units.
type MemoryLimiter struct {
	keys keyLimiter
}

// keyLimiter is a stateLimiter with the states of any algorithm.
type keyLimiter interface {
	take(now time.Time, key string, n int) Decision
	give(now time.Time, key string, n int, ref int64)
	size() int
}

// NewTokenBucket returns a limiter that allows bursts: burst units at once, and perSecond units in the long
// run. Decision.Window is the time in which an empty bucket fills.
//
// It panics when perSecond is not a positive number or burst is less than 1. More than 1e9 units a second
// count as 1e9, the resolution of the clock.
func NewTokenBucket(perSecond float64, burst int, opts *LimiterOptions) *MemoryLimiter {
	if burst < 1 {
		panic("gateway: NewTokenBucket: burst must be at least 1")
	}
	return newMemoryLimiter("NewTokenBucket", newRateBucket("NewTokenBucket", perSecond, burst, false), opts)
}

// NewLeakyBucket returns a limiter that lets one unit pass every 1/perSecond: one at once, queue more after a
// Decision.Wait, and no others. A cost of n takes n slots and waits for the first of them. Decision.Limit is
// queue+1.
//
// It panics when perSecond is not a positive number or queue is negative. More than 1e9 units a second count
// as 1e9.
func NewLeakyBucket(perSecond float64, queue int, opts *LimiterOptions) *MemoryLimiter {
	if queue < 0 {
		panic("gateway: NewLeakyBucket: queue must not be negative")
	}
	burst := min(queue, math.MaxInt-1) + 1
	return newMemoryLimiter("NewLeakyBucket", newRateBucket("NewLeakyBucket", perSecond, burst, true), opts)
}

// NewFixedWindow returns a limiter that lets limit units pass in each window. Windows are aligned to the Unix
// epoch: a window of 24 hours begins at midnight UTC. Around the border of two windows, twice the limit can
// pass in a short time.
//
// It panics when limit is less than 1 or window is not positive.
func NewFixedWindow(limit int, window time.Duration, opts *LimiterOptions) *MemoryLimiter {
	if limit < 1 {
		panic("gateway: NewFixedWindow: limit must be at least 1")
	}
	if window <= 0 {
		panic("gateway: NewFixedWindow: window must be positive")
	}
	return newMemoryLimiter("NewFixedWindow", &fixedWindow{limit: limit, length: window}, opts)
}

// Take spends n units of key's allowance. An n below 1 counts as 1. An n above the limit can never pass: it
// is refused with RetryAfter 0. A refusal takes nothing. Take never blocks, does not use its context, and its
// error is always nil.
func (l *MemoryLimiter) Take(_ context.Context, key string, n int) (Decision, error) {
	return l.keys.take(time.Now(), key, max(n, 1)), nil
}

// Return gives back n units that d granted to key, as Returner describes. An n below 1 counts as 1. A key
// never has more units than a new key. The error is always nil.
func (l *MemoryLimiter) Return(_ context.Context, key string, n int, d Decision) error {
	if d.OK {
		l.keys.give(time.Now(), key, max(n, 1), d.Ref)
	}
	return nil
}

// Len returns how many keys are held, including keys at rest that have not been looked at yet. It is never
// more than MaxKeys.
func (l *MemoryLimiter) Len() int { return l.keys.size() }

// limitAlgorithm is the arithmetic on the state S of one key. Its methods are called with the state's lock
// held, and with a time that never goes back for this state.
type limitAlgorithm[S any] interface {
	keytable.States[S]
	take(s *S, now time.Time, n int) Decision
	give(s *S, now time.Time, n int, ref int64)
}

// stateLimiter applies an algorithm to the states of a table.
type stateLimiter[S any] struct {
	algorithm limitAlgorithm[S]
	table     *keytable.Table[S]
}

func newMemoryLimiter[S any](caller string, a limitAlgorithm[S], opts *LimiterOptions) *MemoryLimiter {
	maxKeys := defaultMaxKeys
	if opts != nil {
		if opts.MaxKeys < 0 {
			panic("gateway: " + caller + ": MaxKeys must not be negative")
		}
		if opts.MaxKeys > 0 {
			maxKeys = opts.MaxKeys
		}
	}
	return &MemoryLimiter{&stateLimiter[S]{algorithm: a, table: keytable.New(maxKeys, keytable.States[S](a))}}
}

func (l *stateLimiter[S]) size() int { return l.table.Len() }

// take marks a decision of the overflow by a negative Ref, so that give knows where the units came from.
func (l *stateLimiter[S]) take(now time.Time, key string, n int) Decision {
	s := l.table.Lock(key, now)
	defer s.Unlock()
	d := l.algorithm.take(s.State, s.Now, n)
	if s.Overflow {
		d.Ref = ^d.Ref
	}
	return d
}

func (l *stateLimiter[S]) give(now time.Time, key string, n int, ref int64) {
	var s keytable.Locked[S]
	if ref < 0 {
		ref = ^ref
		s = l.table.LockOverflow(now)
	} else {
		s = l.table.LockHeld(key, now)
	}
	if s.State == nil {
		return // the key is not held, so it is at rest and has its whole allowance
	}
	defer s.Unlock()
	l.algorithm.give(s.State, s.Now, n, ref)
}

// rateBucket is the token bucket and, if queued is true, the leaky bucket. A leaky bucket is a token bucket
// in which a unit waits until those that were taken before it have come back. For example, at 10 a second,
// the first unit passes at once, the second waits 100 ms and the third 200 ms.
type rateBucket struct {
	rate   float64
	burst  int
	window time.Duration
	queued bool
}

func newRateBucket(caller string, perSecond float64, burst int, queued bool) *rateBucket {
	if !(perSecond > 0) {
		panic("gateway: " + caller + ": perSecond must be positive")
	}
	b := &rateBucket{rate: min(perSecond, 1e9), burst: burst, queued: queued}
	// The subtraction keeps a quotient such as 10.000000000000002 from being rounded up to 11.
	const most = math.MaxInt64 / int64(time.Second)
	if s := math.Ceil(float64(burst)/b.rate - 1e-9); s < float64(most) {
		b.window = time.Duration(max(s, 1)) * time.Second
	} else {
		b.window = time.Duration(most) * time.Second
	}
	return b
}

// Begin fills the bucket: a zero rate.Limiter is empty.
func (b *rateBucket) Begin(s *rate.Limiter, now time.Time) {
	s.SetBurstAt(now, b.burst)
	s.SetLimitAt(now, rate.Limit(b.rate))
	s.AllowN(now, -b.burst)
}

func (b *rateBucket) take(s *rate.Limiter, now time.Time, n int) Decision {
	d := Decision{OK: s.AllowN(now, n), Limit: b.burst, Window: b.window}
	tokens := s.TokensAt(now)
	spent := float64(b.burst) - tokens
	d.Remaining = b.units(tokens)
	d.ResetAfter = b.timeFor(spent)
	switch {
	case d.OK && b.queued:
		d.Wait = b.timeFor(spent - float64(n))
		d.Ref = queueEnd(now, d.ResetAfter)
	case !d.OK && n <= b.burst:
		d.RetryAfter = b.timeFor(float64(n) - tokens)
	}
	return d
}

// give gives back the slot of a leaky bucket only while that is the last in the queue. Those that came later
// have been granted a Wait that begins after this slot, and keep it.
func (b *rateBucket) give(s *rate.Limiter, now time.Time, n int, ref int64) {
	if b.queued {
		end := queueEnd(now, b.timeFor(float64(b.burst)-s.TokensAt(now)))
		if halfSlot := 0.5e9 / b.rate; math.Abs(float64(end-ref)) > halfSlot {
			return
		}
	}
	s.AllowN(now, -min(n, b.burst)) // the next call cuts the tokens at the burst
}

func (b *rateBucket) AtRest(s *rate.Limiter, now time.Time) bool {
	return s.TokensAt(now) >= float64(b.burst)
}

// units returns how many units could be taken at once. Like rate.Limiter, it ignores a lack of less than a
// nanosecond's worth.
func (b *rateBucket) units(tokens float64) int {
	tokens += b.rate * 0.999e-9
	switch {
	case tokens < 1:
		return 0
	case tokens >= float64(b.burst):
		return b.burst
	}
	return int(tokens)
}

// timeFor returns the time in which so many tokens come, in whole nanoseconds. It rounds up, unless the
// excess is only a rounding error of the quotient.
func (b *rateBucket) timeFor(tokens float64) time.Duration {
	switch ns := tokens / b.rate * 1e9; {
	case ns < 1:
		return 0
	case ns >= math.MaxInt64:
		return math.MaxInt64
	default:
		return time.Duration(math.Ceil(ns - 0.001))
	}
}

// queueEnd returns the Unix time, in nanoseconds, at which a queue that lasts for after is empty.
func queueEnd(now time.Time, after time.Duration) int64 {
	at := max(now.UnixNano(), 0)
	if int64(after) > math.MaxInt64-at {
		return math.MaxInt64
	}
	return at + int64(after)
}

// fixedWindow is the fixed window, aligned to the Unix epoch.
type fixedWindow struct {
	limit  int
	length time.Duration
}

// windowCount counts the units that one key has taken in a window.
type windowCount struct {
	start int64 // of the window, Unix time in nanoseconds
	used  int
}

// startAt returns the start of the window that now is in.
func (w *fixedWindow) startAt(now time.Time) int64 {
	at := now.UnixNano()
	into := at % int64(w.length)
	if into < 0 {
		into += int64(w.length)
	}
	return at - into
}

func (w *fixedWindow) Begin(s *windowCount, now time.Time) { s.start = w.startAt(now) }

func (w *fixedWindow) take(s *windowCount, now time.Time, n int) Decision {
	// When the clock is set back, the present window goes on.
	if start := w.startAt(now); start > s.start {
		s.start, s.used = start, 0
	}
	d := Decision{OK: n <= w.limit-s.used, Limit: w.limit, Window: w.length, Ref: s.start}
	if d.OK {
		s.used += n
	}
	d.Remaining = w.limit - s.used
	left := time.Duration(s.start-now.UnixNano()) + w.length
	if !d.OK && n <= w.limit {
		d.RetryAfter = left
	}
	if s.used > 0 {
		d.ResetAfter = left
	}
	return d
}

func (w *fixedWindow) give(s *windowCount, _ time.Time, n int, ref int64) {
	if s.start == ref {
		s.used = max(0, s.used-n)
	}
}

func (w *fixedWindow) AtRest(s *windowCount, now time.Time) bool {
	return s.used == 0 || w.startAt(now) > s.start
}
