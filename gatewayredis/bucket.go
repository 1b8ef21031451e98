package gatewayredis

import (
	"math"
	"strconv"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// algorithm turns what a script has read into decisions. Times are in microseconds, as Redis has them.
type algorithm interface {
	script() *script

	// parameters are the script's limit and rate.
	parameters() (limit, rate string)

	// reading is what an answer of the script means.
	reading(f [5]float64) reading

	// decide returns the decision on n units that are taken from r if ok. r is the state before.
	decide(r reading, n int64, ok bool) gateway.Decision

	// spend returns r with n units less.
	spend(r reading, n int64) reading

	// local returns a limiter in memory with the share of one of several gateways.
	local(of gateways) *local

	// spent returns how many units of r's allowance are not there.
	spent(r reading) int64

	// keeps returns how many of the units that were taken last before r have not lapsed, and whether the others go back.
	keeps(r reading, units int64) (kept int64, giveBack bool)

	// leaseTime returns how long units may be spent that were taken at r.
	leaseTime(r reading) time.Duration

	// age returns r at a later time. Windows do not roll: ok is false when r's window is over.
	age(r reading, now int64) (_ reading, ok bool)
}

// reading is the state of a key at a time of Redis' clock.
type reading struct {
	now    int64   // µs of Unix time
	tokens float64 // of a bucket
	start  int64   // of a window, µs of Unix time
	used   int64   // in the window
	before int64   // in the window before
}

// bucket is the token bucket and, if queued is true, the leaky bucket. Its arithmetic is that of package gateway's,
// except that RetryAfter and ResetAfter are rounded up to microseconds: at a time in between, Redis' clock shows the
// microsecond before.
type bucket struct {
	rate   float64 // units a second
	perNS  float64 // units a nanosecond
	burst  float64
	limit  int
	window time.Duration
	queued bool
}

func newBucket(caller string, perSecond float64, burst int, queued bool) *bucket {
	if !(perSecond > 0) {
		panic("gatewayredis: " + caller + ": perSecond must be positive")
	}
	if int64(burst) > maxLimit {
		panic("gatewayredis: " + caller + ": the limit must be at most 1<<52")
	}
	perSecond = min(perSecond, 1e9)
	b := &bucket{rate: perSecond, perNS: perSecond / 1e9, burst: float64(burst), limit: burst, queued: queued}
	const most = math.MaxInt64 / int64(time.Second)
	if s := math.Ceil(b.burst/b.rate - 1e-9); s < float64(most) {
		b.window = time.Duration(max(s, 1)) * time.Second
	} else {
		b.window = time.Duration(most) * time.Second
	}
	return b
}

func (b *bucket) script() *script { return bucketScript }

func (b *bucket) parameters() (limit, rate string) {
	return strconv.Itoa(b.limit), strconv.FormatFloat(b.perNS, 'g', -1, 64)
}

func (b *bucket) reading(f [5]float64) reading {
	return reading{tokens: min(f[0], b.burst), now: int64(f[1])}
}

func (b *bucket) decide(r reading, n int64, ok bool) gateway.Decision {
	d := gateway.Decision{OK: ok, Limit: b.limit, Window: b.window}
	tokens := r.tokens
	if ok {
		tokens -= float64(n)
	}
	d.Remaining = b.units(tokens)
	d.ResetAfter = roundUp(b.timeFor(b.burst - tokens))
	switch {
	case ok && b.queued:
		d.Wait = b.timeFor(b.burst - r.tokens)
		d.Ref = queueEnd(r.now, d.ResetAfter)
	case !ok && n <= int64(b.limit):
		d.RetryAfter = max(roundUp(b.timeFor(float64(n)-tokens)), time.Microsecond)
	}
	return d
}

func (b *bucket) spend(r reading, n int64) reading {
	r.tokens = min(b.burst, r.tokens-float64(n))
	return r
}

func (b *bucket) spent(r reading) int64 { return int64(max(0, b.burst-r.tokens)) }

// keeps lets the slots of a leaky bucket lapse whose time is over. They need not go back: the queue is shorter by them.
func (b *bucket) keeps(r reading, units int64) (kept int64, giveBack bool) {
	if b.queued {
		return min(units, int64(math.Ceil(b.burst-r.tokens-b.perNS))), false
	}
	return units, true
}

func (b *bucket) leaseTime(reading) time.Duration { return leaseTime }

func (b *bucket) age(r reading, now int64) (reading, bool) {
	if now > r.now {
		r.tokens = min(b.burst, r.tokens+float64(now-r.now)*1000*b.perNS)
		r.now = now
	}
	return r, true
}

func (b *bucket) local(of gateways) *local {
	l := &local{of: of, share: of.part(b.limit), limit: b.limit}
	rate := b.rate / float64(of.count)
	if b.queued {
		l.MemoryLimiter = gateway.NewLeakyBucket(rate, l.share-1, nil)
	} else {
		l.MemoryLimiter = gateway.NewTokenBucket(rate, l.share, nil)
	}
	return l
}

// units returns how many units could be taken at once. It ignores a lack of less than a nanosecond's worth.
func (b *bucket) units(tokens float64) int {
	tokens += b.perNS * 0.999
	switch {
	case tokens < 1:
		return 0
	case tokens >= b.burst:
		return b.limit
	}
	return int(tokens)
}

// timeFor returns the time in which so many tokens come. It rounds up to nanoseconds, unless the excess is only a
// rounding error of the quotient.
func (b *bucket) timeFor(tokens float64) time.Duration {
	switch ns := tokens / b.rate * 1e9; {
	case ns < 1:
		return 0
	case ns >= math.MaxInt64:
		return math.MaxInt64
	default:
		return time.Duration(math.Ceil(ns - 0.001))
	}
}

// roundUp rounds up to whole microseconds.
func roundUp(d time.Duration) time.Duration {
	if d > math.MaxInt64-time.Microsecond {
		return math.MaxInt64
	}
	return (d + time.Microsecond - 1).Truncate(time.Microsecond)
}

// queueEnd returns the time at which a queue that lasts for after is empty. It is at most maxUnits.
func queueEnd(now int64, after time.Duration) int64 {
	return min(now+after.Microseconds(), maxUnits)
}
