package gatewayredis

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway"
)

// Options configures a Limiter. The zero value, and nil, mean the defaults.
type Options struct {
	// Prefix is the beginning of the name of all keys in Redis. "" means "gateway:". Gateways that share a limit need
	// the same Prefix; deployments that share a Redis need different ones.
	Prefix string

	// Timeout is the longest time for which a decision waits for Redis. 0 means 50ms. It holds with any client, however
	// that is configured. When Redis has not answered in time, it counts as away, and further decisions do not wait.
	Timeout time.Duration

	// Lease is the number of units that this gateway takes from Redis at a time, to spend them without asking Redis
	// again. 0 or 1 means no lease. It is not part of the key: gateways with different leases share one limit.
	//
	// A lease may be spent for a second, and that of a window until the window ends. What is left goes back to Redis with
	// the next call for the key, or soon after any other call; if this gateway makes none, it lapses. Until then, other
	// gateways have less, so choose a Lease that is small beside the limit divided by the number of gateways.
	//
	// In any interval, all gateways together let at most Lease units for each gateway pass more than without leases: those
	// that were taken before it. In an aligned window, none. While Redis refuses a cost, it is refused here until its
	// RetryAfter is over. Decision.Remaining and ResetAfter leave out what other gateways have taken since the last answer.
	//
	// The lease of a leaky bucket is a row of slots. Each is used at its own time or lapses, so the spacing stays even over all
	// gateways. But others wait for slots that lapse, too: use it under a steady load only.
	//
	// Leases for up to 65,536 keys are kept, at about 250 bytes each; other keys are not leased.
	Lease int

	// Fallback decides while Redis cannot, and when 8,192 calls are waiting for Redis. Return and Owe are passed on to it
	// if it is a gateway.Returner or a gateway.Debtor. Nil means a limiter in memory with this gateway's share of the
	// limit, for 1<<20 keys as in gateway.LimiterOptions.
	Fallback gateway.Limiter

	// Meter provides two counters, with the attribute gateway.limiter: gateway.redis.fallbacks counts the decisions of
	// Fallback, and gateway.redis.changes the changes between gateway.redis.state "away" and "back". Nil means
	// otel.GetMeterProvider().
	Meter metric.MeterProvider

	// Logger gets one line for each of these changes. Nil means slog.Default().
	Logger *slog.Logger
}

// Limiter is a gateway.Limiter, a gateway.Returner and a gateway.Debtor whose state is in Redis. Make it with
// NewTokenBucket, NewLeakyBucket, NewFixedWindow or NewSlidingWindow; the zero value is not usable. It is safe for
// concurrent use.
type Limiter struct {
	algorithm algorithm
	script    *script
	name      string // algorithm and parameters
	prefix    string // of a key's name, up to its hash tag
	parameters

	leases   *leases // nil means none
	link     *link
	roster   *roster
	fallback gateway.Limiter       // nil means local
	local    atomic.Pointer[local] // is replaced only while Redis answers
	report   reporter
}

// parameters are the parameters of the script.
type parameters struct {
	limit, rate string
	units       int64 // limit as a number
}

var (
	_ gateway.Limiter  = (*Limiter)(nil)
	_ gateway.Returner = (*Limiter)(nil)
	_ gateway.Debtor   = (*Limiter)(nil)
)

// NewTokenBucket returns a limiter that allows bursts, as gateway.NewTokenBucket does. It panics when client is nil,
// perSecond is not a positive number, burst is not between 1 and 1<<52, or an option is negative.
func NewTokenBucket(client redis.UniversalClient, perSecond float64, burst int, opts *Options) *Limiter {
	if burst < 1 {
		panic("gatewayredis: NewTokenBucket: burst must be at least 1")
	}
	b := newBucket("NewTokenBucket", perSecond, burst, false)
	return newLimiter("NewTokenBucket", client, b, opts, "token:"+float(b.rate)+":"+strconv.Itoa(burst))
}

// NewLeakyBucket returns a limiter that spaces units evenly, as gateway.NewLeakyBucket does. Above
// 500,000 a second, where half a slot is shorter than a microsecond, Return may take a slot back for the one after it.
//
// It panics when client is nil, perSecond is not a positive number, queue is not between 0 and 1<<52 - 1, or an option is
// negative.
func NewLeakyBucket(client redis.UniversalClient, perSecond float64, queue int, opts *Options) *Limiter {
	if queue < 0 {
		panic("gatewayredis: NewLeakyBucket: queue must not be negative")
	}
	b := newBucket("NewLeakyBucket", perSecond, min(queue, math.MaxInt-1)+1, true)
	return newLimiter("NewLeakyBucket", client, b, opts, "leaky:"+float(b.rate)+":"+strconv.Itoa(queue))
}

// NewFixedWindow returns a limiter that lets limit units pass in each window, as gateway.NewFixedWindow does.
// It panics when client is nil, limit is not between 1 and 1<<52, window is not a positive number of whole microseconds of
// at most 100 years, or an option is negative.
func NewFixedWindow(client redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
	w := newWindow("NewFixedWindow", limit, window, false)
	return newLimiter("NewFixedWindow", client, w, opts, "fixed:"+strconv.Itoa(limit)+":"+window.String())
}

// NewSlidingWindow returns a limiter that lets about limit units pass in the last window, as gateway.NewSlidingWindow
// does. It panics as NewFixedWindow does. Where limit times window in microseconds is above 1<<53, a decision may be wrong by
// a part in 1<<53.
func NewSlidingWindow(client redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
	w := newWindow("NewSlidingWindow", limit, window, true)
	return newLimiter("NewSlidingWindow", client, w, opts, "sliding:"+strconv.Itoa(limit)+":"+window.String())
}

func float(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

func newLimiter(caller string, client redis.UniversalClient, a algorithm, opts *Options, name string) *Limiter {
	var o Options
	if opts != nil {
		o = *opts
	}
	switch {
	case client == nil:
		panic("gatewayredis: " + caller + ": nil client")
	case o.Lease < 0:
		panic("gatewayredis: " + caller + ": Lease must not be negative")
	case o.Timeout < 0:
		panic("gatewayredis: " + caller + ": Timeout must not be negative")
	}
	if o.Prefix == "" {
		o.Prefix = "gateway:"
	}
	if o.Timeout == 0 {
		o.Timeout = 50 * time.Millisecond
	}
	l := &Limiter{algorithm: a, script: a.script(), name: name, prefix: o.Prefix + name + ":", fallback: o.Fallback}
	l.limit, l.rate = a.parameters()
	l.units, _ = strconv.ParseInt(l.limit, 10, 64)
	if o.Lease > 1 {
		l.leases = newLeases(l, o.Lease)
	}
	l.report = newReporter(name, &o)
	l.link = &link{client: client, timeout: o.Timeout, linkEvents: linkEvents{begins: l.begins, late: l.undo}}
	l.link.changed = func(o *outage, back bool) {
		l.report.change(o, l.roster.known(), back)
		if back {
			l.roster.back()
		}
	}
	l.roster = &roster{client: client, key: l.prefix + "gateways", id: rand.Text()}
	return l
}

// begins is called before an outage. It makes the fallback. The one of the outage before is kept while the share is the
// same, so that an outage gives nobody a new allowance.
func (l *Limiter) begins() {
	if l.fallback != nil {
		return
	}
	of := l.roster.known()
	if old := l.local.Load(); old == nil || old.of != of {
		l.local.Store(l.algorithm.local(of))
	}
}

// maxKeyLen is the length above which a key is hashed.
const maxKeyLen = 64

// key returns the name of a key in Redis. The key is the hash tag, or its beginning if it has a brace in it. Different
// keys have different names: only the name of a hashed one has a "#" before the brace.
func (l *Limiter) key(key string) string {
	if len(key) <= maxKeyLen {
		return l.prefix + "{" + key + "}"
	}
	sum := sha256.Sum256([]byte(key))
	return l.prefix + "#{" + base64.RawURLEncoding.EncodeToString(sum[:]) + "}"
}

// Take spends n units of key's allowance. An n below 1 counts as 1. An n above the limit can never pass: it is refused
// with RetryAfter 0. A refusal takes nothing.
//
// Take waits for Redis for at most Options.Timeout. Its error is ctx's, when that ends first, or that of
// Options.Fallback.
func (l *Limiter) Take(ctx context.Context, key string, n int) (gateway.Decision, error) {
	if err := ctx.Err(); err != nil {
		return gateway.Decision{}, err
	}
	units := int64(max(n, 1))
	if l.leases != nil {
		return l.leases.take(ctx, key, units)
	}
	return l.ask(ctx, key, units)
}

// ask asks Redis for n units.
func (l *Limiter) ask(ctx context.Context, key string, n int64) (gateway.Decision, error) {
	if l.link.refuses() {
		return l.withoutRedis(ctx, key, n)
	}
	answer, err := l.do(ctx, l.takeCall(l.key(key), n, n, 0, 0))
	if err != nil {
		return l.withoutRedis(ctx, key, n)
	}
	r, taken := l.read(answer)
	d := l.algorithm.decide(r, n, taken > 0)
	d.Ref = refOfRedis(d.Ref)
	return d, nil
}

// takeCall returns a call that takes n units, and up to most if there are more. Before, it gives back units of a lease,
// which were taken in the window that began at start.
func (l *Limiter) takeCall(key string, n, most, back, start int64) *call {
	c := newCall(l.script, key, "take", formatUnits(n), l.limit, l.rate)
	if most > n || back > 0 {
		c.args = append(c.args, formatUnits(most), formatUnits(back), strconv.FormatInt(start, 10))
	}
	c.undo = true
	return c
}

// withoutRedis decides after a call to Redis has failed.
func (l *Limiter) withoutRedis(ctx context.Context, key string, n int64) (gateway.Decision, error) {
	if left := ctx.Err(); left != nil {
		return gateway.Decision{}, left
	}
	l.report.fallback()
	d, err := l.other().Take(ctx, key, int(n))
	d.Ref = refOfFallback(d.Ref)
	return d, err
}

// do runs a call to Redis.
func (l *Limiter) do(ctx context.Context, c *call) (answer any, err error) {
	answer, err = l.link.do(ctx, c)
	if err == nil {
		l.roster.announce()
	}
	return answer, err
}

// read returns what an answer means that the link has checked.
func (l *Limiter) read(answer any) (r reading, taken int64) {
	f, _ := l.script.parse(answer)
	return l.algorithm.reading(f), int64(f[2])
}

// undo gives back units for which nobody waited any more.
func (l *Limiter) undo(c *call, answer any) {
	if r, taken := l.read(answer); taken > 0 {
		ref := l.algorithm.decide(r, taken, true).Ref
		_ = l.link.send(l.give(c.key(), taken, ref))
	}
}

func (l *Limiter) give(key string, n, ref int64) *call {
	return newCall(l.script, key, "give", formatUnits(n), l.limit, l.rate, strconv.FormatInt(ref, 10))
}

// other returns the limiter that decides without Redis.
func (l *Limiter) other() gateway.Limiter {
	if l.fallback != nil {
		return l.fallback
	}
	local := l.local.Load()
	for local == nil { // too many calls are waiting for Redis, which has never been away
		l.local.CompareAndSwap(nil, l.algorithm.local(l.roster.known()))
		local = l.local.Load()
	}
	return local
}

// Return gives back n units that d granted to key, as gateway.Returner describes. An n below 1 counts as 1. Units go
// back to where they came from: those of Redis are lost while it is away, which is the error.
func (l *Limiter) Return(ctx context.Context, key string, n int, d gateway.Decision) error {
	if !d.OK {
		return nil
	}
	n = max(n, 1)
	ref, redis := splitRef(d.Ref)
	if redis {
		if l.leases != nil && l.leases.give(key, int64(n), ref) {
			return nil
		}
		_, err := l.do(ctx, l.give(l.key(key), int64(n), ref))
		return err
	}
	if r, ok := l.other().(gateway.Returner); ok {
		d.Ref = ref
		return r.Return(ctx, key, n, d)
	}
	return errNoReturner
}

// Owe takes n more units of key's allowance, even if fewer are left, as gateway.Debtor describes. An n below 1 takes
// nothing. While Redis is away, the units are taken from Options.Fallback.
func (l *Limiter) Owe(ctx context.Context, key string, n int) error {
	if n < 1 {
		return nil
	}
	if l.leases != nil {
		if n = int(l.leases.owe(key, int64(n))); n == 0 {
			return nil
		}
	}
	c := newCall(l.script, l.key(key), "owe", formatUnits(int64(n)), l.limit, l.rate)
	_, err := l.do(ctx, c)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if f, ok := l.other().(gateway.Debtor); ok {
		return f.Owe(ctx, key, n)
	}
	return errNoDebtor
}

var (
	errNoReturner = errors.New("gatewayredis: Options.Fallback is no gateway.Returner")
	errNoDebtor   = errors.New("gatewayredis: Redis is away, and Options.Fallback is no gateway.Debtor")
)

func formatUnits(n int64) string { return strconv.FormatInt(min(n, maxUnits), 10) }

// A Decision's Ref is even for one of Redis, whose own are never negative, and odd for one of the fallback.

func refOfRedis(ref int64) int64 { return ref << 1 }

func refOfFallback(ref int64) int64 { return ref<<1 | 1 }

func splitRef(ref int64) (_ int64, redis bool) { return ref >> 1, ref&1 == 0 }
