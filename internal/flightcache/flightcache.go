// Package flightcache is an in-memory cache that loads a value once for all concurrent callers with the same
// key.
//
// The number of entries and their bytes are limited. Each entry has its own time of expiry. An error of the
// load function is not cached, and neither is an entry that has already expired. Concurrent callers share one
// load in these cases as well. So a flood of keys that fail evicts nothing.
//
// To cache failures as well, use a second cache for them, and load the first cache through it. Failures then
// evict other failures, and never values.
package flightcache

import (
	"context"
	"hash/maphash"
	"strings"
	"sync"
	"time"
)

// An Entry is a value with its bounds. A load function fills in the exported fields. Nobody changes an entry
// that Load has returned, since it is shared by callers.
type Entry[V any] struct {
	Value V
	Size  int       // bytes of Value without the key; 0 if the length of the key bounds them
	Until time.Time // the entry is valid before this time; an entry with the zero time is not cached

	key  string
	used time.Time // last returned by Load; guarded by its shard's lock
}

// bytes returns the bytes by which the entry counts against a shard's maxBytes.
func (e *Entry[V]) bytes() int { return len(e.key) + e.Size }

// A Cache maps keys to entries. It is safe for concurrent use.
//
// An entry is found by a hash whose seed is random in each process, and its whole key is then compared. So no
// key is mistaken for another, and the time of a lookup reveals nothing about the keys that are there.
type Cache[V any] struct {
	load   func(ctx context.Context, key string) (*Entry[V], error)
	seed   maphash.Seed
	shards []shard[V] // their number is a power of two
}

type shard[V any] struct {
	mu         sync.Mutex
	entries    map[uint64]*Entry[V]
	flights    map[string]*flight[V]
	bytes      int // of all entries
	maxEntries int
	maxBytes   int
}

// A flight is a load that is running.
type flight[V any] struct {
	done      chan struct{}
	entry     *Entry[V]
	err       error
	abandoned bool // the context of its caller ended: the other callers must load again
}

const (
	maxShards       = 256
	minShardEntries = 8
	sampleSize      = 8 // entries among which displace chooses
)

// New returns a cache of at most maxEntries entries, whose keys and Sizes are together at most maxBytes.
// Both are divided evenly among shards, of which there are at most 256. An entry that is larger than its
// shard is not remembered. New panics when a bound is not positive.
//
// Load calls load for a key that the cache does not hold. load may run at the same time for different keys,
// and must return an entry or an error.
func New[V any](maxEntries, maxBytes int, load func(ctx context.Context, key string) (*Entry[V], error)) *Cache[V] {
	if maxEntries <= 0 || maxBytes <= 0 {
		panic("flightcache: New: bounds must be positive")
	}
	n := 1
	for n < maxShards && maxEntries/(2*n) >= minShardEntries {
		n *= 2
	}
	c := &Cache[V]{load: load, seed: maphash.MakeSeed(), shards: make([]shard[V], n)}
	for i := range c.shards {
		c.shards[i] = shard[V]{
			entries:    make(map[uint64]*Entry[V]),
			flights:    make(map[string]*flight[V]),
			maxEntries: maxEntries / n,
			maxBytes:   maxBytes / n,
		}
	}
	return c
}

// shardOf returns the shard that holds key, and the key's hash.
func (c *Cache[V]) shardOf(key string) (*shard[V], uint64) {
	hash := maphash.String(c.seed, key)
	return &c.shards[hash&uint64(len(c.shards)-1)], hash
}

// Load returns the entry for key. hit reports whether the cache already held it. Otherwise it was loaded by
// this call or by a concurrent one.
//
// A load runs with the context of the call that started it. If that context ends, one of the waiting calls
// loads again with its own context. If the context of a waiting call ends, that call returns the context's
// error.
func (c *Cache[V]) Load(ctx context.Context, key string) (e *Entry[V], hit bool, err error) {
	s, hash := c.shardOf(key)
	for {
		now := time.Now()
		s.mu.Lock()
		if e := s.entries[hash]; e != nil && e.key == key {
			if now.Before(e.Until) {
				e.used = now
				s.mu.Unlock()
				return e, true, nil
			}
			s.remove(hash, e)
		}
		f := s.flights[key]
		if f == nil {
			// abandoned stays set if load panics: the waiting calls then load again.
			f = &flight[V]{done: make(chan struct{}), abandoned: true}
			s.flights[key] = f
			s.mu.Unlock()
			c.loadFlight(ctx, s, f, hash, key)
			return f.entry, false, f.err
		}
		s.mu.Unlock()
		select {
		case <-f.done:
			if !f.abandoned {
				return f.entry, false, f.err
			}
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// loadFlight loads key for every call that waits for f.
func (c *Cache[V]) loadFlight(ctx context.Context, s *shard[V], f *flight[V], hash uint64, key string) {
	defer func() {
		s.mu.Lock()
		delete(s.flights, key)
		if f.entry != nil {
			s.add(hash, f.entry, time.Now())
		}
		s.mu.Unlock()
		close(f.done)
	}()
	f.entry, f.err = c.load(ctx, key)
	if f.entry != nil {
		// The key may be a part of a much longer string, which it would keep in memory.
		f.entry.key = strings.Clone(key)
	}
	f.abandoned = f.err != nil && ctx.Err() != nil
}

// Forget removes e, which Load returned. It does nothing if the cache no longer holds e.
func (c *Cache[V]) Forget(e *Entry[V]) {
	s, hash := c.shardOf(e.key)
	s.mu.Lock()
	if s.entries[hash] == e {
		s.remove(hash, e)
	}
	s.mu.Unlock()
}

// add makes room for e and stores it, unless it has expired or is too large. The caller holds the lock.
func (s *shard[V]) add(hash uint64, e *Entry[V], now time.Time) {
	if !now.Before(e.Until) || e.bytes() > s.maxBytes {
		return
	}
	if old := s.entries[hash]; old != nil {
		s.remove(hash, old)
	}
	for len(s.entries) > 0 && (len(s.entries) >= s.maxEntries || s.bytes+e.bytes() > s.maxBytes) {
		s.displace(now)
	}
	e.used = now
	s.entries[hash] = e
	s.bytes += e.bytes()
}

// displace removes one entry of a small random sample: the first that has expired, or else the one that has
// not been used for the longest time. The random order of the map's iteration makes the sample. The caller
// holds the lock.
func (s *shard[V]) displace(now time.Time) {
	var oldest *Entry[V]
	var oldestHash uint64
	seen := 0
	for hash, e := range s.entries {
		if !now.Before(e.Until) {
			s.remove(hash, e)
			return
		}
		if oldest == nil || e.used.Before(oldest.used) {
			oldest, oldestHash = e, hash
		}
		if seen++; seen == sampleSize {
			break
		}
	}
	s.remove(oldestHash, oldest)
}

// remove removes e, which the shard holds. The caller holds the lock.
func (s *shard[V]) remove(hash uint64, e *Entry[V]) {
	delete(s.entries, hash)
	s.bytes -= e.bytes()
}
