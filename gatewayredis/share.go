package gatewayredis

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
)

const (
	announceEvery = 2 * time.Second
	seenWithin    = 10 * time.Second // a gateway must have been seen to have a share
)

// announceScript notes that a gateway is there, in a hash of ids and times. It returns how many gateways are, and how
// many of them have a smaller id.
var announceScript = makeScript(scriptClock+`
local key, id, within = KEYS[1], ARGV[1], tonumber(ARGV[2])
local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
redis.call('HSET', key, id, string.format('%.0f', now))
local all = redis.call('HGETALL', key)
local count, rank = 0, 0
for i = 1, #all, 2 do
	if math.abs(now - (tonumber(all[i + 1]) or 0)) > within then
		redis.call('HDEL', key, all[i])
	else
		count = count + 1
		if all[i] < id then rank = rank + 1 end
	end
end
redis.call('PEXPIRE', key, math.ceil(within / 1000))
return struct.pack('<dd', count, rank)
`, 2)

// gateways is how many gateways share a limit. Where a limit cannot be divided evenly, those of the lowest rank get one
// unit more.
type gateways struct{ count, rank int }

// roster tells the other gateways of this one, and counts them.
type roster struct {
	client    redis.UniversalClient
	key, id   string
	announced atomic.Int64 // time of the last announcement, by sinceStart; 0: none
	busy      atomic.Bool  // an announcement is under way
	backAt    atomic.Int64 // end of the last outage, by sinceStart; 0: none
	seen      atomic.Pointer[gateways]
}

// known returns the gateways that were seen last, or this one alone.
func (r *roster) known() gateways {
	if g := r.seen.Load(); g != nil {
		return *g
	}
	return gateways{count: 1}
}

// announce is called for each call to Redis. Every two seconds, it announces this gateway on another goroutine, so that
// no decision waits for it: in a Cluster, another node may have the key. There is at most one such goroutine.
func (r *roster) announce() {
	now := sinceStart()
	if last := r.announced.Load(); last != 0 && now-last < int64(announceEvery) || !r.busy.CompareAndSwap(false, true) {
		return
	}
	r.announced.Store(now)
	go func() {
		defer r.busy.Store(false)
		cmd := r.client.Eval(context.Background(), announceScript.source, []string{r.key}, r.id, seenWithin.Microseconds())
		answer, err := cmd.Result()
		if err != nil {
			return // the decisions find out themselves whether Redis is away
		}
		if f, err := announceScript.parse(answer); err == nil && f[0] >= 1 && f[0] <= math.MaxInt32 && f[1] >= 0 && f[1] < f[0] {
			r.see(gateways{int(f[0]), int(f[1])})
		}
	}()
}

// see notes a count. After an outage, Redis may have lost its data, so that it takes others a while to be seen again.
func (r *roster) see(g gateways) {
	at := r.backAt.Load()
	if old := r.known(); g.count >= old.count || at == 0 || sinceStart()-at > int64(seenWithin) {
		r.seen.Store(&g)
	}
}

// back is called when an outage has ended. The next call announces this gateway.
func (r *roster) back() {
	r.backAt.Store(sinceStart())
	r.announced.Store(0)
}

// part returns the share of limit units that one of several gateways has. It is at least 1.
func (g gateways) part(limit int) int {
	part := limit / g.count
	if g.rank < limit%g.count {
		part++
	}
	return max(part, 1)
}

// local is the default fallback: a limiter in memory with this gateway's share of the limit.
type local struct {
	*gateway.MemoryLimiter
	of    gateways
	share int // units of MemoryLimiter
	limit int // units of the whole limit
}

// Take takes n units. A cost above the share, but not above the limit, needs the whole share, and the rest is owed: so
// what is dear is seldom, but possible.
func (l *local) Take(ctx context.Context, key string, n int) (gateway.Decision, error) {
	beyond := 0
	if n > l.share && n <= l.limit {
		n, beyond = l.share, n-l.share
	}
	d, err := l.MemoryLimiter.Take(ctx, key, n)
	if d.OK && beyond > 0 {
		_ = l.Owe(ctx, key, beyond)
		after, _ := l.MemoryLimiter.Take(ctx, key, math.MaxInt) // is refused, and so takes nothing
		d.ResetAfter = after.ResetAfter
	}
	d.Limit = l.limit
	return d, err
}
