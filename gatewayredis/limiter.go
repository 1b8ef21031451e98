package gatewayredis

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
)

// Options configures a Limiter. The zero value, and nil, mean the defaults.
type Options struct {
	Prefix  string        // of all keys in Redis; "" means "gateway:"
	Timeout time.Duration // longest time that a decision waits for Redis; 0 means 50ms
}

// Limiter is a gateway.Limiter, a gateway.Returner and a gateway.Debtor whose state is in Redis.
type Limiter struct {
	algorithm algorithm
	script    *script
	prefix    string // of a key's name, up to its hash tag
	limit     string // parameters of the script
	rate      string
	link      *link
}

var (
	_ gateway.Limiter  = (*Limiter)(nil)
	_ gateway.Returner = (*Limiter)(nil)
	_ gateway.Debtor   = (*Limiter)(nil)
)

// NewTokenBucket returns a limiter that allows bursts, as gateway.NewTokenBucket does.
func NewTokenBucket(client redis.UniversalClient, perSecond float64, burst int, opts *Options) *Limiter {
	if burst < 1 {
		panic("gatewayredis: NewTokenBucket: burst must be at least 1")
	}
	b := newBucket("NewTokenBucket", perSecond, burst, false)
	return newLimiter("NewTokenBucket", client, b, opts, "token:"+float(b.rate)+":"+strconv.Itoa(burst))
}

// NewLeakyBucket returns a limiter that spaces units evenly, as gateway.NewLeakyBucket does. Above
// 500,000 a second, where half a slot is shorter than a microsecond, Return may take a slot back for the one after it.
func NewLeakyBucket(client redis.UniversalClient, perSecond float64, queue int, opts *Options) *Limiter {
	if queue < 0 {
		panic("gatewayredis: NewLeakyBucket: queue must not be negative")
	}
	b := newBucket("NewLeakyBucket", perSecond, min(queue, math.MaxInt-1)+1, true)
	return newLimiter("NewLeakyBucket", client, b, opts, "leaky:"+float(b.rate)+":"+strconv.Itoa(queue))
}

// NewFixedWindow returns a limiter that lets limit units pass in each window, as gateway.NewFixedWindow does.
func NewFixedWindow(client redis.UniversalClient, limit int, window time.Duration, opts *Options) *Limiter {
	w := newWindow("NewFixedWindow", limit, window, false)
	return newLimiter("NewFixedWindow", client, w, opts, "fixed:"+strconv.Itoa(limit)+":"+window.String())
}

// NewSlidingWindow returns a limiter that lets about limit units pass in the last window, as gateway.NewSlidingWindow
// does.
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
	case o.Timeout < 0:
		panic("gatewayredis: " + caller + ": Timeout must not be negative")
	}
	if o.Prefix == "" {
		o.Prefix = "gateway:"
	}
	if o.Timeout == 0 {
		o.Timeout = 50 * time.Millisecond
	}
	l := &Limiter{algorithm: a, script: a.script(), prefix: o.Prefix + name + ":"}
	l.limit, l.rate = a.parameters()
	l.link = &link{client: client, timeout: o.Timeout, changed: func(*outage, time.Duration) {}}
	return l
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

// Take spends n units of key's allowance.
func (l *Limiter) Take(ctx context.Context, key string, n int) (gateway.Decision, error) {
	if err := ctx.Err(); err != nil {
		return gateway.Decision{}, err
	}
	units := int64(max(n, 1))
	c := newCall(l.script, l.key(key), "take", formatUnits(units), l.limit, l.rate)
	c.late = func(answer any) { l.undo(c.key(), answer) }
	answer, err := l.link.do(ctx, c)
	if err != nil {
		return gateway.Decision{}, err
	}
	r, taken := l.read(answer)
	return l.algorithm.decide(r, units, taken > 0), nil
}

// read returns what an answer means that the link has checked.
func (l *Limiter) read(answer any) (r reading, taken int64) {
	f, _ := l.script.parse(answer)
	return l.algorithm.reading(f), int64(f[2])
}

// undo gives back units for which nobody waited any more.
func (l *Limiter) undo(key string, answer any) {
	if r, taken := l.read(answer); taken > 0 {
		ref := l.algorithm.decide(r, taken, true).Ref
		_ = l.link.send(l.give(key, taken, ref))
	}
}

func (l *Limiter) give(key string, n, ref int64) *call {
	return newCall(l.script, key, "give", formatUnits(n), l.limit, l.rate, strconv.FormatInt(ref, 10))
}

// Return gives back n units that d granted to key.
func (l *Limiter) Return(ctx context.Context, key string, n int, d gateway.Decision) error {
	if !d.OK {
		return nil
	}
	_, err := l.link.do(ctx, l.give(l.key(key), int64(max(n, 1)), d.Ref))
	return err
}

// Owe takes n more units of key's allowance, even if fewer are left.
func (l *Limiter) Owe(ctx context.Context, key string, n int) error {
	if n < 1 {
		return nil
	}
	c := newCall(l.script, l.key(key), "owe", formatUnits(int64(n)), l.limit, l.rate)
	_, err := l.link.do(ctx, c)
	return err
}

func formatUnits(n int64) string { return strconv.FormatInt(min(n, maxUnits), 10) }
