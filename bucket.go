package gateway

import (
	"math"
	"time"
)

// rateBucket is the token bucket and, if queued is true, the leaky bucket. A leaky bucket is a token bucket
// in which a unit waits until those that were taken before it have come back. For example, at 10 a second,
// the first unit passes at once, the second waits 100 ms and the third 200 ms.
//
// The arithmetic is that of rate.Limiter of golang.org/x/time/rate, in plain numbers under the table's lock.
// TestBucketEqualsRateLimiter compares the two: they admit the same. A rate.Limiter for each key is not used, because
// it has a lock of its own, takes five times the memory, must be called twice for a whole Decision, and creates units
// when its clock is set back.
type rateBucket struct {
	perNS  float64 // units a nanosecond
	nsEach float64 // nanoseconds until one unit comes
	burst  float64
	limit  int     // burst, as it was given
	slack  float64 // units that may be missing: those of a nanosecond, and what floats of this size cannot tell
	queued bool
}

// bucketState is how full a bucket is. Below 0, it is in debt.
type bucketState struct {
	tokens float64
	at     int64 // the time of tokens
}

func newRateBucket(caller string, perSecond float64, burst int, queued bool) *rateBucket {
	if !(perSecond > 0) {
		panic("gateway: " + caller + ": perSecond must be positive")
	}
	perSecond = min(perSecond, 1e9)
	return &rateBucket{
		perNS: perSecond / 1e9,
		// Not infinite, or no units would take no number of nanoseconds.
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

// tokens returns how full the bucket is now.
func (b *rateBucket) tokens(s *bucketState, now int64) float64 {
	if t := s.tokens + float64(now-s.at)*b.perNS; t < b.burst {
		return t
	}
	return b.burst
}

// take admits n units when they are there, or come within a nanosecond, the resolution of the clock. In a bucket of
// billions of units it may be some nanoseconds, so that a cost passes once its RetryAfter is over.
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

// give gives back the slot of a leaky bucket only while that is the last in the queue. Those that came later
// have been granted a Wait that begins after this slot, and keep it.
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

// units returns how many units could be taken at once. It ignores a lack of less than slack.
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

// timeFor returns the time in which so many tokens come, in whole nanoseconds. It rounds up, unless the
// excess is only a rounding error of the quotient.
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

// queueEnd returns the time at which a queue that lasts for after is empty. It is never negative.
func queueEnd(now int64, after time.Duration) int64 {
	at := max(now, 0)
	if int64(after) > math.MaxInt64-at {
		return math.MaxInt64
	}
	return at + int64(after)
}
