package gateway

import (
	"math"
	"time"
)

// rateBucket is the algorithm of the token bucket and, if queued is true, of the leaky bucket. A leaky bucket
// is a token bucket in which a unit waits until the tokens taken before it have been refilled. For example,
// at 10 a second, the first unit passes at once, the second waits 100 ms and the third 200 ms.
//
// The arithmetic is that of rate.Limiter of golang.org/x/time/rate, on plain numbers under the table's lock.
// TestBucketEqualsRateLimiter shows that both admit the same units. One rate.Limiter for each key is not
// used, because it has a lock of its own, takes five times the memory, must be called twice for a whole
// Decision, and creates units when its clock is set back.
type rateBucket struct {
	perNS  float64 // tokens refilled in a nanosecond
	nsEach float64 // nanoseconds in which one token is refilled
	burst  float64
	limit  int     // burst as an int
	slack  float64 // tokens that may be missing: the refill of a nanosecond, or the rounding error of burst
	queued bool
}

// bucketState is the state of one key's bucket.
type bucketState struct {
	tokens float64 // below 0, the key is in debt
	at     int64   // the time at which tokens was right
}

func newRateBucket(caller string, perSecond float64, burst int, queued bool) *rateBucket {
	if !(perSecond > 0) {
		panic("gateway: " + caller + ": perSecond must be positive")
	}
	perSecond = min(perSecond, 1e9)
	return &rateBucket{
		perNS: perSecond / 1e9,
		// Not infinite, because 0 tokens times infinity would be NaN nanoseconds.
		nsEach: min(1e9/perSecond, math.MaxFloat64),
		burst:  float64(burst), limit: burst, queued: queued,
		slack: max(perSecond/1e9, min(float64(burst)*0x1p-51, 0.5)),
	}
}

// window returns the time in which an empty bucket fills, in whole seconds.
func (b *rateBucket) window() time.Duration {
	// The subtraction keeps a quotient such as 10.000000000000002 from being rounded up to 11.
	const most = math.MaxInt64 / int64(time.Second)
	if s := math.Ceil(b.burst*b.nsEach/1e9 - 1e-9); s < float64(most) {
		return time.Duration(max(s, 1)) * time.Second
	}
	return time.Duration(most) * time.Second
}

func (b *rateBucket) Begin(s *bucketState, now int64) { *s = bucketState{tokens: b.burst, at: now} }

// tokens returns the number of tokens in the bucket now.
func (b *rateBucket) tokens(s *bucketState, now int64) float64 {
	if t := s.tokens + float64(now-s.at)*b.perNS; t < b.burst {
		return t
	}
	return b.burst
}

// take admits n units if the bucket has n tokens, or will have them within a nanosecond, the resolution of
// the clock. In a bucket of billions of tokens, where a float64 is less exact, it may be a few nanoseconds.
// So a request that waits for its RetryAfter is always admitted.
func (b *rateBucket) take(s *bucketState, now int64, n int) (t takeResult, ok bool) {
	tokens := b.tokens(s, now)
	if n <= b.limit {
		if left := tokens - float64(n); left > -b.slack {
			if b.queued {
				t.pause = b.timeFor(b.burst - tokens)
			}
			ok, tokens = true, left
			*s = bucketState{tokens: tokens, at: now}
		} else {
			t.pause = b.timeFor(-left)
		}
	}
	t.remaining = b.units(tokens)
	t.resetAfter = b.timeFor(b.burst - tokens)
	if b.queued {
		t.ref = queueEnd(now, t.resetAfter)
	}
	return t, ok
}

// give puts n tokens back. In a leaky bucket, it does so only while the slots of these units are the last in
// the queue: units that came later were told to wait until after these slots, and that does not change.
func (b *rateBucket) give(s *bucketState, now int64, n int, ref int64) {
	tokens := b.tokens(s, now)
	if b.queued {
		end := queueEnd(now, b.timeFor(b.burst-tokens))
		if halfSlot := b.nsEach / 2; math.Abs(float64(end-ref)) > halfSlot {
			return
		}
	}
	*s = bucketState{tokens: min(b.burst, tokens+float64(n)), at: now}
}

func (b *rateBucket) owe(s *bucketState, now int64, n int) {
	*s = bucketState{tokens: b.tokens(s, now) - float64(n), at: now}
}

func (b *rateBucket) AtRest(s *bucketState, now int64) bool { return b.tokens(s, now) >= b.burst }

func (b *rateBucket) spent(s *bucketState, now int64) float64 {
	return (b.burst - b.tokens(s, now)) / b.burst
}

// units returns how many units could be taken at once. Fewer missing tokens than slack do not count.
func (b *rateBucket) units(tokens float64) int {
	tokens += b.slack * 0.999
	switch {
	case tokens < 1:
		return 0
	case tokens >= b.burst:
		return b.limit
	}
	return int(tokens)
}

// timeFor returns the time in which that many tokens are refilled, in whole nanoseconds. It rounds up, unless
// the fraction is only a rounding error.
func (b *rateBucket) timeFor(tokens float64) time.Duration {
	switch ns := tokens * b.nsEach; {
	case ns < 1:
		return 0
	case ns >= math.MaxInt64:
		return math.MaxInt64
	default:
		return time.Duration(math.Ceil(ns - 0.001))
	}
}

// queueEnd returns the time at which the queue is empty, if it is empty after that duration from now. It is
// never negative.
func queueEnd(now int64, after time.Duration) int64 {
	at := max(now, 0)
	if int64(after) > math.MaxInt64-at {
		return math.MaxInt64
	}
	return at + int64(after)
}
