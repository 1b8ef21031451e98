// Package keytable keeps a state for each key, in bounded memory.
//
// Clients choose the keys, so the number of keys in a table is limited. A key is at rest when its state
// equals that of a new key; otherwise it is busy. A table drops keys at rest, which loses nothing. It never
// drops a busy key. When it is full of busy keys, all new keys share one state, the overflow. So a flood of
// new keys can neither grow the memory nor reset the state of another key.
//
// The keys are spread over 256 locks, and using a key allocates nothing unless the key is new. A table starts
// no goroutine: each use of the table may drop a few keys at rest. It reads no clock. Time is an argument, in
// nanoseconds since any moment that the caller chooses.
package keytable

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardBits  = 8
	shardCount = 1 << shardBits
	sweepEvery = int64(time.Millisecond)
	sweepKeys  = 64 // looked at by one sweep
	sweepLocks = 32 // most locks that one sweep takes, while there is room
)

// States defines the states of a table's keys. The table calls its methods with the lock of the state held,
// and with a time that never goes back for this state.
type States[S any] interface {
	// Begin makes a zero S the state of a new key.
	Begin(s *S, now int64)

	// AtRest reports whether s is equal to the state of a new key, so that the key can be forgotten.
	AtRest(s *S, now int64) bool
}

// Table has the states of all keys that are not at rest. Make it with New. It is safe for concurrent use.
type Table[S any] struct {
	shards [shardCount]shard[S] // first, so that each begins with a cache line

	// One more line, which every use of the table reads.
	states  States[S]
	seed    maphash.Seed
	maxKeys int64
	swept   atomic.Int64 // the time of the last sweep
	_       [cacheLine - 40]byte

	overflow struct {
		mu    sync.Mutex
		clock forwardClock
		begun bool
		state S
	}

	held atomic.Int64  // keys
	next atomic.Uint32 // the shard before the one that is swept next
}

// forwardClock never goes back: it replaces an earlier time by the last one. Goroutines read the clock before
// they get a lock, and clocks are set back.
type forwardClock int64

func (c *forwardClock) advance(now int64) int64 {
	if now > int64(*c) {
		*c = forwardClock(now)
	}
	return int64(*c)
}

// New returns an empty table for at most maxKeys keys. Its shards take about 41 KB.
func New[S any](maxKeys int, states States[S]) *Table[S] {
	t := &Table[S]{states: states, seed: maphash.MakeSeed(), maxKeys: int64(maxKeys)}
	t.overflow.clock = math.MinInt64
	for i := range t.shards {
		t.shards[i].clock = math.MinInt64
	}
	return t
}

// Len returns how many keys are held, including those at rest that no sweep has looked at yet. It is never
// more than the maximum.
func (t *Table[S]) Len() int {
	// held may be above the maximum for a moment: a goroutine counts its key before it finds that there is
	// no room.
	return int(min(t.held.Load(), t.maxKeys))
}

// Locked is a state under its lock. The holder may read and change State until it calls Unlock, which it must
// do, soon and once.
type Locked[S any] struct {
	State    *S
	Now      int64 // the time that was given, or the last one that this lock saw if that is later
	Overflow bool  // State is the one that all keys without room share

	mu *sync.Mutex
}

// Unlock ends the use of the state.
func (l *Locked[S]) Unlock() { l.mu.Unlock() }

// Lock returns the state of key. If the key is new, it gets a new state; if there is no room for it, even
// after a sweep, Lock returns the overflow state.
//
// Before it takes a lock, it may look at some other keys, to forget those at rest.
func (t *Table[S]) Lock(key string, now int64) Locked[S] {
	if since := now - t.swept.Load(); since < 0 || since >= sweepEvery {
		t.sweepInTime(now)
	}
	if len(key) > longestPlain {
		return t.lockLong(key, now)
	}
	hash := maphash.String(t.seed, key)
	s := t.shardOf(hash)
	s.mu.Lock()
	m := newMark(hash, len(key))
	if e := find(s, m, key); e != nil {
		return Locked[S]{State: &e.state, Now: s.clock.advance(now), mu: &s.mu}
	}
	return t.lockNew(s, m, now, key)
}

func (t *Table[S]) lockLong(key string, now int64) Locked[S] {
	var buf [longestPlain + 1]byte
	name := digest(&buf, key)
	hash := maphash.Bytes(t.seed, name)
	s := t.shardOf(hash)
	s.mu.Lock()
	m := newMark(hash, len(name))
	if e := find(s, m, name); e != nil {
		return Locked[S]{State: &e.state, Now: s.clock.advance(now), mu: &s.mu}
	}
	return t.lockNew(s, m, now, string(name))
}

// lockNew adds a new key to s, which is locked. If there is no room, it sweeps and tries once more.
func (t *Table[S]) lockNew(s *shard[S], m mark, now int64, name string) Locked[S] {
	for attempt := 0; ; attempt++ {
		if t.held.Add(1) <= t.maxKeys {
			break
		}
		t.held.Add(-1)
		s.mu.Unlock()
		if attempt > 0 {
			return t.lockOverflow(now)
		}
		t.sweep(now, shardCount)
		s.mu.Lock()
		if e := find(s, m, name); e != nil { // another goroutine was faster
			return Locked[S]{State: &e.state, Now: s.clock.advance(now), mu: &s.mu}
		}
	}
	e := s.add(m, name)
	now = s.clock.advance(now)
	t.states.Begin(&e.state, now)
	return Locked[S]{State: &e.state, Now: now, mu: &s.mu}
}

// LockHeld returns the state of key if the key is held. Otherwise State is nil, nothing is locked, and the
// key is at rest or in the overflow.
func (t *Table[S]) LockHeld(key string, now int64) Locked[S] {
	var buf [longestPlain + 1]byte
	name := append(buf[:0], key[:min(len(key), longestPlain)]...)
	if len(key) > longestPlain {
		name = digest(&buf, key)
	}
	hash := maphash.Bytes(t.seed, name)
	s := t.shardOf(hash)
	s.mu.Lock()
	if e := find(s, newMark(hash, len(name)), name); e != nil {
		return Locked[S]{State: &e.state, Now: s.clock.advance(now), mu: &s.mu}
	}
	s.mu.Unlock()
	return Locked[S]{}
}

// LockOverflow returns the overflow state if some key had to use it. Otherwise State is nil, and nothing is
// locked.
func (t *Table[S]) LockOverflow(now int64) Locked[S] {
	o := &t.overflow
	o.mu.Lock()
	if o.begun {
		return Locked[S]{State: &o.state, Now: o.clock.advance(now), Overflow: true, mu: &o.mu}
	}
	o.mu.Unlock()
	return Locked[S]{}
}

func (t *Table[S]) lockOverflow(now int64) Locked[S] {
	o := &t.overflow
	o.mu.Lock()
	now = o.clock.advance(now)
	if !o.begun {
		t.states.Begin(&o.state, now)
		o.begun = true
	}
	return Locked[S]{State: &o.state, Now: now, Overflow: true, mu: &o.mu}
}

// Each calls f with each key that is held and with its state, under the lock of the state. It locks one
// shard after another, so what it yields is not the state of the whole table at one moment. A key that is
// held as its SHA-256 is given as "sha256:" and 64 hexadecimal digits.
func (t *Table[S]) Each(now int64, f func(key string, s *S, now int64)) {
	for i := range t.shards {
		t.shards[i].each(now, f)
	}
}

func (s *shard[S]) each(now int64, f func(key string, s *S, now int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.clock.advance(now)
	for i, m := range s.marks {
		if m != 0 {
			e := &s.entries[i]
			f(shownName(e.name(m)), &e.state, now)
		}
	}
}

// sweepInTime sweeps if the last sweep is long enough ago, or if the clock was set back since then, unless
// another goroutine has begun to.
func (t *Table[S]) sweepInTime(now int64) {
	last := t.swept.Load()
	if since := now - last; since < 0 || since >= sweepEvery {
		if t.swept.CompareAndSwap(last, now) {
			t.sweep(now, sweepLocks)
		}
	}
}

// sweep looks at sweepKeys keys in at most that many shards and forgets those at rest. It begins with the shard
// after the last one that a sweep looked at, and in each shard with the key after the last one. It is called
// with no lock held, and skips a shard that is locked rather than wait for it.
func (t *Table[S]) sweep(now int64, shards int) {
	keys := sweepKeys
	for i := 0; i < shards && keys > 0; i++ {
		s := &t.shards[t.next.Add(1)%shardCount]
		if !s.mu.TryLock() {
			continue
		}
		if s.n > 0 {
			keys -= t.sweepShard(s, keys, now)
		}
		s.mu.Unlock()
	}
}

// sweepShard looks at the next keys of s, each at most once, and returns their number.
func (t *Table[S]) sweepShard(s *shard[S], most int, now int64) (seen int) {
	now = s.clock.advance(now)
	most = min(most, s.n)
	for seen < most && s.n > 0 {
		if s.pos >= len(s.marks) {
			s.pos = 0
		}
		switch {
		case s.marks[s.pos] == 0:
			s.pos++
		case t.states.AtRest(&s.entries[s.pos].state, now):
			s.remove(s.pos) // the next key may have moved here
			t.held.Add(-1)
			seen++
		default:
			s.pos++
			seen++
		}
	}
	return seen
}

// A hash chooses the shard by its upper bits. Its lower bits are in the mark, by which the shard finds the
// key.
func (t *Table[S]) shardOf(hash uint64) *shard[S] { return &t.shards[hash>>(64-shardBits)] }
