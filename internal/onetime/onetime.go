// Package onetime remembers identifiers that may be used once, for the time in which they could be used
// again.
package onetime

import (
	"sync"
	"time"
)

// Memory remembers each identifier for a time window, and never forgets one earlier. It is divided into
// shards by the identifier, so that callers do not wait for one lock. It is safe for concurrent use.
type Memory struct {
	window time.Duration
	shards []shard
}

type shard struct {
	mu    sync.Mutex
	max   int
	known map[[16]byte]struct{}
	queue []entry // in the order of their time, from first on
	first int
}

type entry struct {
	id [16]byte
	at int64 // nanoseconds since 1970, by the wall clock
}

// shards is how many shards a large Memory has. The low bits of an identifier choose among them.
const shards = 64

// New returns a Memory of at most most identifiers, each for window. An identifier takes about 70 bytes.
func New(most int, window time.Duration) *Memory {
	n := 1
	if most >= shards*64 {
		n = shards
	}
	s := &Memory{window: window, shards: make([]shard, n)}
	for i := range s.shards {
		s.shards[i].max = most / n
		s.shards[i].known = make(map[[16]byte]struct{})
	}
	return s
}

// Add remembers id, which must be evenly distributed, such as a part of a hash. fresh is false if id is
// already remembered. full means that there is no room, so a later use of id could not be detected.
func (s *Memory) Add(id [16]byte, now time.Time) (fresh, full bool) {
	at := now.UnixNano()
	shard := &s.shards[int(id[15])%len(s.shards)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.forget(at - int64(s.window))
	if _, ok := shard.known[id]; ok {
		return false, false
	}
	if len(shard.known) >= shard.max {
		return false, true
	}
	shard.known[id] = struct{}{}
	shard.queue = append(shard.queue, entry{id, at})
	return true, false
}

// forget drops the entries that are older than before. The caller holds the lock.
func (s *shard) forget(before int64) {
	for s.first < len(s.queue) && s.queue[s.first].at < before {
		delete(s.known, s.queue[s.first].id)
		s.first++
	}
	if s.first > len(s.queue)/2 {
		s.queue = append(s.queue[:0], s.queue[s.first:]...)
		s.first = 0
	}
}
