package gatewayredis

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway"
)

const (
	// leaseTime is how long a lease may be spent. That of a window ends with the window, too.
	leaseTime = time.Second

	leaseShards = 64
	maxLeases   = 1 << 16 // keys; others are not leased
)

// leases are the units that this gateway has taken from Redis and not yet spent, by key.
//
// A key has at most size units here. They are taken when fewer are left than a request costs, by one request, for which
// the others wait. So what a window lets pass is what was taken from Redis within it, and at most size units for each
// gateway that were taken before.
type leases struct {
	l      *Limiter
	size   int64
	seed   maphash.Seed
	turn   atomic.Uint32 // of the shards that are swept
	shards [leaseShards]leaseShard
}

type leaseShard struct {
	mu    sync.Mutex
	pools map[poolKey]*pool
	_     [64]byte // the next shard is in another cache line
}

// poolKey is a key, or the name of one that is hashed.
type poolKey struct {
	key    string
	hashed bool
}

// pool is what is known of one key.
type pool struct {
	units  int64
	until  int64 // units must be spent before, by sinceStart
	at     int64 // time of known, by sinceStart: when it was asked for
	known  reading
	flight chan struct{} // is closed when the call to Redis has ended that is under way; nil: none

	refused      int64 // a cost that Redis has refused
	refusedUntil int64 // and that cannot pass before, by sinceStart
}

func newLeases(l *Limiter, size int) *leases {
	s := &leases{l: l, size: int64(size), seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].pools = make(map[poolKey]*pool)
	}
	return s
}

func (s *leases) shard(key string) (*leaseShard, poolKey) {
	k := poolKey{key: key}
	if len(key) > maxKeyLen {
		k = poolKey{s.l.key(key), true}
	}
	return &s.shards[maphash.String(s.seed, k.key)%leaseShards], k
}

// take is Limiter.Take.
func (s *leases) take(ctx context.Context, key string, n int64) (gateway.Decision, error) {
	sh, k := s.shard(key)
	for {
		sh.mu.Lock()
		p := sh.pools[k]
		if p == nil {
			if len(sh.pools) >= maxLeases/leaseShards {
				sh.mu.Unlock()
				s.sweep()
				return s.l.ask(ctx, key, n)
			}
			p = &pool{until: -1, refusedUntil: -1}
			sh.pools[k] = p
		}
		if d, ok := p.decide(s.l.algorithm, sinceStart(), n); ok {
			sh.mu.Unlock()
			return d, nil
		}
		if s.l.link.refuses() { // before the flight, for which others would wait
			sh.mu.Unlock()
			return s.l.withoutRedis(ctx, key, n)
		}
		if p.flight == nil {
			return s.refill(ctx, sh, p, key, n)
		}
		flight := p.flight
		sh.mu.Unlock()
		select {
		case <-flight:
		case <-ctx.Done():
			return gateway.Decision{}, ctx.Err()
		}
	}
}

// decide decides without Redis, if it can.
func (p *pool) decide(a algorithm, now, n int64) (d gateway.Decision, ok bool) {
	r, current := p.view(a, now)
	passes := p.units >= n && now < p.until
	if !current || !passes && (n < p.refused || now >= p.refusedUntil) {
		return d, false
	}
	if passes {
		p.units -= n
	}
	d = a.decide(r, n, passes)
	d.Ref = refOfRedis(d.Ref)
	return d, true
}

// view returns the state of the key as far as it is known here: that in Redis, and the units of the pool, of which it drops
// those that have lapsed. ok is false when the window is over.
func (p *pool) view(a algorithm, now int64) (r reading, ok bool) {
	if p.known.now == 0 {
		return r, false
	}
	r, ok = a.age(p.known, p.known.now+(now-p.at)/1000)
	p.units, _ = a.keeps(r, p.units)
	return a.spend(r, -p.units), ok
}

// refill asks Redis for n units and for those of a new lease. It is called with the shard's lock, which it gives up.
func (s *leases) refill(ctx context.Context, sh *leaseShard, p *pool, key string, n int64) (gateway.Decision, error) {
	flight := make(chan struct{})
	p.flight = flight
	at := sinceStart()
	kept, back := p.units, int64(0)
	if at >= p.until {
		kept, back = 0, s.backlog(p)
	}
	p.units = 0
	start := p.known.start
	sh.mu.Unlock()

	need := n - kept
	if n > s.l.units {
		need = n // never passes
	}
	c := s.l.takeCall(s.l.key(key), need, max(need, s.size), back, start)
	answer, err := s.l.do(ctx, c)

	sh.mu.Lock()
	p.flight = nil
	close(flight)
	p.units = kept
	if err != nil {
		sh.mu.Unlock()
		return s.l.withoutRedis(ctx, key, n)
	}
	r, taken := s.l.read(answer)
	p.settle(s.l.algorithm, at, n, r, taken)
	r = s.l.algorithm.spend(r, -kept)
	if taken > 0 {
		p.units = max(0, kept+taken-n)
	}
	sh.mu.Unlock()
	s.sweep()
	d := s.l.algorithm.decide(r, n, taken > 0)
	d.Ref = refOfRedis(d.Ref)
	return d, nil
}

// backlog returns how many units of a lease that has ended go back.
func (s *leases) backlog(p *pool) int64 {
	if units, giveBack := s.l.algorithm.keeps(p.known, p.units); giveBack {
		return units
	}
	return 0
}

// settle notes what Redis has answered, which was asked at a time.
func (p *pool) settle(a algorithm, at, n int64, r reading, taken int64) {
	p.at = at
	p.known = a.spend(r, taken)
	p.refused, p.refusedUntil = 0, -1
	if taken > 0 {
		p.until = at + a.leaseTime(r).Nanoseconds()
		return
	}
	d := a.decide(a.spend(r, -p.units), n, false)
	if d.RetryAfter > 0 {
		p.refused, p.refusedUntil = n, at+int64(min(d.RetryAfter, leaseTime))
	}
}

// give is Limiter.Return for units of Redis. It reports whether all went to the pool.
func (s *leases) give(key string, n, start int64) bool {
	sh, k := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	p := sh.pools[k]
	if p == nil {
		return false
	}
	p.refusedUntil = -1
	if p.units+n > s.size || p.flight != nil {
		return false
	}
	now := sinceStart()
	r, ok := p.view(s.l.algorithm, now)
	if !ok || r.start != start || p.units > 0 && now >= p.until {
		return false
	}
	n = min(n, s.l.algorithm.spent(r)) // a key never has more than a new one
	if n == 0 {
		return true
	}
	p.units += n
	p.until = max(p.until, now+s.l.algorithm.leaseTime(r).Nanoseconds())
	return true
}

// owe takes up to n units out of the pool, whose lease may have ended, and returns how many are still owed.
func (s *leases) owe(key string, n int64) int64 {
	sh, k := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	p := sh.pools[k]
	if p == nil {
		return n
	}
	if sinceStart() < p.until {
		m := min(n, p.units)
		p.units -= m
		n -= m
	}
	p.known = s.l.algorithm.spend(p.known, n)
	return n
}

// sweep looks at a few keys of one shard. It forgets those at rest, and gives back to Redis what was not spent in time.
// Nobody waits for that.
func (s *leases) sweep() {
	sh := &s.shards[s.turn.Add(1)%leaseShards]
	var calls []*call
	sh.mu.Lock()
	now := sinceStart()
	looked := 0
	for k, p := range sh.pools {
		if p.flight == nil && now >= p.until && now >= p.refusedUntil {
			if back := s.backlog(p); back > 0 {
				name := k.key
				if !k.hashed {
					name = s.l.key(k.key)
				}
				calls = append(calls, s.l.give(name, back, p.known.start))
			}
			delete(sh.pools, k)
		}
		if looked++; looked == 8 {
			break
		}
	}
	sh.mu.Unlock()
	for _, c := range calls {
		_ = s.l.link.send(c)
	}
}
