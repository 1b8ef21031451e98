package gateway

import (
	"context"
	"crypto/sha256"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// LimiterOptions bound a limiter's memory. A key at rest is forgotten without loss: its state is that of
// a new one. When MaxKeys are busy, new keys share one overflow allowance, as large as that of one key, so
// a flood of keys neither grows memory nor resets anyone. Keys longer than 64 bytes are held as their
// SHA-256.
//
// A busy key costs about 160 bytes in a bucket and 95 in a window, at most 175 and 110, besides the key itself
// (BenchmarkMemory measures it): with keys of 16 bytes, a million buckets take 176 MB. A limiter without keys
// takes 40 KiB.
type LimiterOptions struct {
	MaxKeys int // 0 means 1<<20; negative panics
}

// MemoryLimiter is a Limiter and a Returner in this process, made by NewTokenBucket, NewLeakyBucket or
// NewFixedWindow; the zero value is not usable. It is safe for concurrent use, and its keys are spread over
// 256 locks.
//
// It starts no goroutine: a Take looks, once in a millisecond, at 64 keys in turn and forgets those at rest.
// One that finds no room for a new key does so too, so that where a tenth of the keys are at rest, a new one
// almost always finds room. A clock that is set back mints nothing.
type MemoryLimiter struct {
	keys keyTable
}

// keyTable is a table with the states of any algorithm.
type keyTable interface {
	take(now time.Time, key string, n int) Decision
	give(now time.Time, key string, n int, ref int64)
	size() int
}

// NewTokenBucket lets bursts pass: burst at once, perSecond in the long run. Window is the time in which an
// empty bucket fills.
//
// It panics when perSecond is not a positive number or burst is less than 1. More than 1e9 a second count
// as 1e9, the clock's own measure.
func NewTokenBucket(perSecond float64, burst int, opts *LimiterOptions) *MemoryLimiter {
	if burst < 1 {
		panic("gateway: NewTokenBucket: burst must be at least 1")
	}
	return &MemoryLimiter{newTable("NewTokenBucket", newRateBucket("NewTokenBucket", perSecond, burst, false), opts)}
}

// NewLeakyBucket lets one pass every 1/perSecond: one at once, queue more with a Wait, the rest refused.
// A cost of n takes n slots; it waits for the first of them. Limit is queue+1.
//
// It panics when perSecond is not a positive number or queue is negative. More than 1e9 a second count as
// 1e9.
func NewLeakyBucket(perSecond float64, queue int, opts *LimiterOptions) *MemoryLimiter {
	if queue < 0 {
		panic("gateway: NewLeakyBucket: queue must not be negative")
	}
	return &MemoryLimiter{newTable("NewLeakyBucket", newRateBucket("NewLeakyBucket", perSecond, min(queue, math.MaxInt-1)+1, true), opts)}
}

// NewFixedWindow lets limit pass in each window, aligned to the Unix epoch: a window of 24 hours begins at
// midnight UTC. Around the border of two windows twice the limit can pass at once.
//
// It panics when limit is less than 1 or window is not positive.
func NewFixedWindow(limit int, window time.Duration, opts *LimiterOptions) *MemoryLimiter {
	if limit < 1 {
		panic("gateway: NewFixedWindow: limit must be at least 1")
	}
	if window <= 0 {
		panic("gateway: NewFixedWindow: window must be positive")
	}
	return &MemoryLimiter{newTable("NewFixedWindow", &fixedWindow{limit: limit, length: window}, opts)}
}

// Take spends n units of key's allowance. An n below 1 counts as 1. One above the limit can never pass: it
// is refused with RetryAfter 0. Take never blocks, needs no ctx, and its error is always nil. A refusal
// takes nothing.
func (l *MemoryLimiter) Take(_ context.Context, key string, n int) (Decision, error) {
	return l.keys.take(time.Now(), key, max(n, 1)), nil
}

// Return gives n units back that d granted to key, as Returner says. An n below 1 counts as 1. No key
// ever has more than a new one. Its error is always nil.
func (l *MemoryLimiter) Return(_ context.Context, key string, n int, d Decision) error {
	if d.OK {
		l.keys.give(time.Now(), key, max(n, 1), d.Ref)
	}
	return nil
}

// Len returns how many keys are held, those at rest that were not looked at yet among them. It is never
// more than MaxKeys.
func (l *MemoryLimiter) Len() int { return l.keys.size() }

const (
	defaultMaxKeys = 1 << 20
	shardCount     = 256
	longestKey     = 64
	sweepEvery     = time.Millisecond
	sweepKeys      = 64 // looked at once in sweepEvery, and when there is no room
)

// limitAlgorithm is the arithmetic on the state S of one key. Its methods are called with the state's lock
// held and with a time that never goes back.
type limitAlgorithm[S any] interface {
	begin(s *S, now time.Time) // makes a zero S the state of a new key
	take(s *S, now time.Time, n int) Decision
	give(s *S, now time.Time, n int, ref int64)
	rested(s *S, now time.Time) bool // whether s is as a new key's
}

// table holds the state of every key that is not at rest.
type table[S any] struct {
	algorithm limitAlgorithm[S]
	seed      maphash.Seed
	maxKeys   int64
	shards    [shardCount]shard[S]

	overflow struct {
		mu    sync.Mutex
		clock forwardClock
		begun bool
		state S
	}

	held  atomic.Int64  // keys
	swept atomic.Int64  // Unix time of the last sweep, in nanoseconds
	next  atomic.Uint32 // the shard before the one to be swept next
}

// shard is the part of a table under one lock.
type shard[S any] struct {
	mu      sync.Mutex
	clock   forwardClock
	keys    map[string]*keyState[S]
	entries []*keyState[S] // the same, for the sweep
	pos     int            // where in entries the sweep goes on
	_       [64]byte       // no two shards' locks in one cache line
}

type keyState[S any] struct {
	key   string
	state S
}

// forwardClock turns times that were read before a lock was taken into times that never go back.
type forwardClock struct{ last time.Time }

func (c *forwardClock) advance(now time.Time) time.Time {
	if now.Before(c.last) {
		return c.last
	}
	c.last = now
	return now
}

func newTable[S any](caller string, a limitAlgorithm[S], opts *LimiterOptions) *table[S] {
	maxKeys := defaultMaxKeys
	if opts != nil {
		if opts.MaxKeys < 0 {
			panic("gateway: " + caller + ": MaxKeys must not be negative")
		}
		if opts.MaxKeys > 0 {
			maxKeys = opts.MaxKeys
		}
	}
	return &table[S]{algorithm: a, seed: maphash.MakeSeed(), maxKeys: int64(maxKeys)}
}

// size leaves out those who count themselves and are about to find no room.
func (t *table[S]) size() int { return int(min(t.held.Load(), t.maxKeys)) }

func (t *table[S]) take(now time.Time, key string, n int) Decision {
	k := keyName{plain: key}
	s := t.shardOf(&k)
	d, ok := t.takeFrom(s, &k, now, n)
	if ok {
		t.sweepInTime(now)
		return d
	}
	t.sweep(now)
	if d, ok = t.takeFrom(s, &k, now, n); ok {
		return d
	}
	return t.takeOverflow(now, n)
}

// takeFrom reports false, and takes nothing, when k is new and there is no room for it.
func (t *table[S]) takeFrom(s *shard[S], k *keyName, now time.Time, n int) (Decision, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock.advance(now)
	e := s.find(k)
	if e == nil {
		if t.held.Add(1) > t.maxKeys {
			t.held.Add(-1)
			return Decision{}, false
		}
		e = s.add(k)
		t.algorithm.begin(&e.state, now)
	}
	return t.algorithm.take(&e.state, now, n), true
}

// takeOverflow marks its decisions by a negative Ref, so that they are given back where they were taken
// from.
func (t *table[S]) takeOverflow(now time.Time, n int) Decision {
	o := &t.overflow
	o.mu.Lock()
	defer o.mu.Unlock()
	now = o.clock.advance(now)
	if !o.begun {
		t.algorithm.begin(&o.state, now)
		o.begun = true
	}
	d := t.algorithm.take(&o.state, now, n)
	d.Ref = ^d.Ref
	return d
}

func (t *table[S]) give(now time.Time, key string, n int, ref int64) {
	if ref < 0 {
		o := &t.overflow
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.begun {
			t.algorithm.give(&o.state, o.clock.advance(now), n, ^ref)
		}
		return
	}
	k := keyName{plain: key}
	s := t.shardOf(&k)
	s.mu.Lock()
	defer s.mu.Unlock()
	// A key that is not held is at rest: it has everything already.
	if e := s.find(&k); e != nil {
		t.algorithm.give(&e.state, s.clock.advance(now), n, ref)
	}
}

// sweepInTime sweeps if nobody did lately. A clock that was set back counts as long ago.
func (t *table[S]) sweepInTime(now time.Time) {
	at, last := now.UnixNano(), t.swept.Load()
	if since := at - last; since < 0 || since >= int64(sweepEvery) {
		if t.swept.CompareAndSwap(last, at) {
			t.sweep(now)
		}
	}
}

// sweep looks at sweepKeys keys, where the last sweep ended, and forgets those at rest. It waits for no lock
// and is called with none held.
func (t *table[S]) sweep(now time.Time) {
	keys := sweepKeys
	for i := 0; i < shardCount && keys > 0; i++ {
		s := &t.shards[t.next.Add(1)%shardCount]
		if !s.mu.TryLock() {
			continue
		}
		if len(s.entries) > 0 {
			at := s.clock.advance(now)
			for j := min(keys, len(s.entries)); j > 0; j-- {
				keys--
				if s.pos >= len(s.entries) {
					s.pos = 0
				}
				if t.algorithm.rested(&s.entries[s.pos].state, at) {
					s.remove(s.pos)
					t.held.Add(-1)
				} else {
					s.pos++
				}
			}
		}
		s.mu.Unlock()
	}
}

func (t *table[S]) shardOf(k *keyName) *shard[S] {
	return &t.shards[k.hash(t.seed)%shardCount]
}

func (s *shard[S]) find(k *keyName) *keyState[S] {
	if k.hashed {
		return s.keys[string(k.sum[:])]
	}
	return s.keys[k.plain]
}

func (s *shard[S]) add(k *keyName) *keyState[S] {
	e := &keyState[S]{key: k.own()}
	if s.keys == nil {
		s.keys = make(map[string]*keyState[S])
	}
	s.keys[e.key] = e
	s.entries = append(s.entries, e)
	return e
}

func (s *shard[S]) remove(i int) {
	last := len(s.entries) - 1
	delete(s.keys, s.entries[i].key)
	s.entries[i] = s.entries[last]
	s.entries[last] = nil
	s.entries = s.entries[:last]
	if last == 0 {
		s.keys, s.entries = nil, nil // a map never shrinks by itself
	}
}

// keyName is a key as a table knows it. A hashed one is longer than any that is held as it is, so
// that nobody can choose a key that is another's hash.
type keyName struct {
	plain  string
	hashed bool
	sum    [longestKey + 1]byte
}

func (k *keyName) hash(seed maphash.Seed) uint64 {
	if len(k.plain) <= longestKey {
		return maphash.String(seed, k.plain)
	}
	k.digest()
	return maphash.Bytes(seed, k.sum[:])
}

func (k *keyName) digest() {
	var buf [512]byte // keys up to this size are hashed without an allocation
	sum := sha256.Sum256(append(buf[:0], k.plain...))
	copy(k.sum[:], sum[:])
	k.hashed = true
}

// own returns what the table keeps: nothing of the request that the key was cut from.
func (k *keyName) own() string {
	if k.hashed {
		return string(k.sum[:])
	}
	return strings.Clone(k.plain)
}

// rateBucket is the token bucket and, with queued set, the leaky bucket: a token bucket in which a unit
// waits until those that were taken before it have come back.
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
	// The subtraction is for quotients such as 10.000000000000002.
	const most = math.MaxInt64 / int64(time.Second)
	if s := math.Ceil(float64(burst)/b.rate - 1e-9); s < float64(most) {
		b.window = time.Duration(max(s, 1)) * time.Second
	} else {
		b.window = time.Duration(most) * time.Second
	}
	return b
}

// begin fills the limiter: a zero one starts empty.
func (b *rateBucket) begin(s *rate.Limiter, now time.Time) {
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

// give gives a leaky bucket's slot back only while the queue ends with it, for who came later has been
// told to wait until it is over.
func (b *rateBucket) give(s *rate.Limiter, now time.Time, n int, ref int64) {
	if b.queued {
		end := queueEnd(now, b.timeFor(float64(b.burst)-s.TokensAt(now)))
		if halfSlot := 0.5e9 / b.rate; math.Abs(float64(end-ref)) > halfSlot {
			return
		}
	}
	s.AllowN(now, -min(n, b.burst)) // the next look at it cuts the tokens at the burst
}

func (b *rateBucket) rested(s *rate.Limiter, now time.Time) bool {
	return s.TokensAt(now) >= float64(b.burst)
}

// units is how many could be taken at once. rate.Limiter lets pass what lacks less than a nanosecond.
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

// timeFor is how long that many tokens take to come, in whole nanoseconds. It rounds up, but not for the
// last digits of a quotient.
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

// queueEnd is the Unix time, in nanoseconds, at which a queue that takes so long is over.
func queueEnd(now time.Time, after time.Duration) int64 {
	at := max(now.UnixNano(), 0)
	if int64(after) > math.MaxInt64-at {
		return math.MaxInt64
	}
	return at + int64(after)
}

// fixedWindow counts in windows that are aligned to the Unix epoch.
type fixedWindow struct {
	limit  int
	length time.Duration
}

// windowCount is what one key took.
type windowCount struct {
	start int64 // of the window, Unix time in nanoseconds
	used  int
}

func (w *fixedWindow) startAt(now time.Time) int64 {
	at := now.UnixNano()
	into := at % int64(w.length)
	if into < 0 {
		into += int64(w.length)
	}
	return at - into
}

func (w *fixedWindow) begin(s *windowCount, now time.Time) { s.start = w.startAt(now) }

func (w *fixedWindow) take(s *windowCount, now time.Time, n int) Decision {
	// A window does not begin again when the clock is set back.
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

func (w *fixedWindow) rested(s *windowCount, now time.Time) bool {
	return s.used == 0 || w.startAt(now) > s.start
}
