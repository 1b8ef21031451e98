package gateway

import (
	"context"
	"hash/maphash"
	"strings"
	"sync"
	"time"
)

// verified is a token that was found good.
type verified struct {
	token string
	id    *Identity
	extra int       // bytes that id holds, where the token's length does not bound them
	until time.Time // from when on it is good no more

	// The key that verified it, and how it was asked for. Nil for a token that no key verified.
	key      any
	kid, alg string

	used time.Time // last; guarded by its shard's lock
}

// size counts against a shard's maxBytes.
func (v *verified) size() int { return len(v.token) + v.extra }

// tokenCache remembers good tokens, so that a token is verified once and not on every request. What is
// asked with one token at the same time waits for one verification.
//
// An entry is found by a hash with a seed of this process and then compared as a whole, so no token is
// taken for another, and how long the search takes tells nothing of the tokens that are there. What is not
// good is not remembered: a flood of bad tokens displaces nobody.
type tokenCache struct {
	verify func(ctx context.Context, token string) (*verified, error)
	seed   maphash.Seed
	shards []tokenShard // a power of two of them
}

type tokenShard struct {
	mu       sync.Mutex
	tokens   map[uint64]*verified
	flights  map[string]*flight
	bytes    int // of the tokens' sizes
	max      int // tokens
	maxBytes int // of the tokens' sizes
}

// flight is a verification that is going on.
type flight struct {
	done     chan struct{}
	v        *verified
	err      error
	deserted bool // it ended because its caller left: the result says nothing of the token
}

// The bounds of a cache. A token over the usual size takes the place of several.
const (
	maxTokenShards    = 256
	minShardTokens    = 8
	usualTokenBytes   = 2 << 10
	tokensLookedAt    = 8 // for one to displace
	defaultTokenCache = 10_000
)

// newTokenCache returns a cache of at most size tokens, with 2 KiB of token text for each on average; nil
// when size is negative.
func newTokenCache(size int, verify func(context.Context, string) (*verified, error)) *tokenCache {
	if size < 0 {
		return nil
	}
	if size == 0 {
		size = defaultTokenCache
	}
	n := 1
	for n < maxTokenShards && size/(2*n) >= minShardTokens {
		n *= 2
	}
	c := &tokenCache{verify: verify, seed: maphash.MakeSeed(), shards: make([]tokenShard, n)}
	for i := range c.shards {
		c.shards[i] = tokenShard{
			tokens:   make(map[uint64]*verified),
			flights:  make(map[string]*flight),
			max:      size / n,
			maxBytes: size / n * usualTokenBytes,
		}
	}
	return c
}

// lookup returns the token as it was verified, now or before; hit tells which.
func (c *tokenCache) lookup(ctx context.Context, token string) (v *verified, hit bool, err error) {
	hash := maphash.String(c.seed, token)
	s := &c.shards[hash&uint64(len(c.shards)-1)]
	for {
		now := time.Now()
		s.mu.Lock()
		if v := s.tokens[hash]; v != nil && v.token == token {
			if now.Before(v.until) {
				v.used = now
				s.mu.Unlock()
				return v, true, nil
			}
			s.remove(hash, v)
		}
		f := s.flights[token]
		if f == nil {
			f = &flight{done: make(chan struct{}), deserted: true}
			s.flights[token] = f
			s.mu.Unlock()
			c.fly(ctx, s, f, hash, token)
			return f.v, false, f.err
		}
		s.mu.Unlock()
		select {
		case <-f.done:
			if !f.deserted {
				return f.v, false, f.err
			}
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// fly verifies the token for all who wait for f.
func (c *tokenCache) fly(ctx context.Context, s *tokenShard, f *flight, hash uint64, token string) {
	defer func() {
		s.mu.Lock()
		delete(s.flights, token)
		if f.v != nil {
			s.add(hash, f.v, time.Now())
		}
		s.mu.Unlock()
		close(f.done)
	}()
	f.v, f.err = c.verify(ctx, token)
	if f.v != nil {
		// As it came, it is a part of a field that may be much longer, and would keep all of it.
		f.v.token = strings.Clone(f.v.token)
	}
	f.deserted = f.err != nil && ctx.Err() != nil
}

// forget drops v, unless another entry stands in its place by now.
func (c *tokenCache) forget(v *verified) {
	hash := maphash.String(c.seed, v.token)
	s := &c.shards[hash&uint64(len(c.shards)-1)]
	s.mu.Lock()
	if s.tokens[hash] == v {
		s.remove(hash, v)
	}
	s.mu.Unlock()
}

// add makes room and puts v in. The caller holds the lock.
func (s *tokenShard) add(hash uint64, v *verified, now time.Time) {
	if !now.Before(v.until) {
		return
	}
	if old := s.tokens[hash]; old != nil {
		s.remove(hash, old)
	}
	for len(s.tokens) > 0 && (len(s.tokens) >= s.max || s.bytes+v.size() > s.maxBytes) {
		s.displace(now)
	}
	v.used = now
	s.tokens[hash] = v
	s.bytes += v.size()
}

// displace removes the one of a few, which the map picks at random, that has expired or was not used for the
// longest time.
func (s *tokenShard) displace(now time.Time) {
	var oldest *verified
	var at uint64
	looked := 0
	for hash, v := range s.tokens {
		if !now.Before(v.until) {
			s.remove(hash, v)
			return
		}
		if oldest == nil || v.used.Before(oldest.used) {
			oldest, at = v, hash
		}
		if looked++; looked == tokensLookedAt {
			break
		}
	}
	s.remove(at, oldest)
}

func (s *tokenShard) remove(hash uint64, v *verified) {
	delete(s.tokens, hash)
	s.bytes -= v.size()
}
