// Package keytable keeps a state for each of many keys, within a bound.
//
// Keys come from clients, so a table must not grow with them. It forgets a key whose state is at rest, which
// is to say, equal to a new key's; so nothing is lost with it. When the table is full of keys that are not at
// rest, new keys share one state, the overflow. No key is ever evicted while it is busy: a flood of new keys
// can neither grow the memory nor reset the state of another key.
//
// The keys are spread over 256 locks, and using a key allocates nothing unless the key is new. A table starts
// no goroutine: what has come to rest is swept a little at a time by those who use the table. It reads no
// clock either; time is an argument.
package keytable

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardCount = 256
	sweepEvery = time.Millisecond
	sweepKeys  = 64 // looked at by one sweep
)

// States defines the states of a table's keys. The table calls its methods with the lock of the state held,
// and with a time that never goes back for this state.
type States[S any] interface {
	// Begin makes a zero S the state of a new key.
	Begin(s *S, now time.Time)

	// AtRest reports whether s is equal to the state of a new key, so that the key can be forgotten.
	AtRest(s *S, now time.Time) bool
}

// Table has the states of all keys that are not at rest. Make it with New. It is safe for concurrent use.
type Table[S any] struct {
	states  States[S]
	seed    maphash.Seed
	maxKeys int64
	shards  [shardCount]shard[S]

	overflow struct {
		mu    sync.Mutex
		clock forwardClock
		begun bool
		state S
	}

	held  atomic.Int64  // keys
	swept atomic.Int64  // Unix time of the last sweep, in nanoseconds
	next  atomic.Uint32 // the shard before the one that is swept next
}

// shard is the part of a table that is under one lock.
type shard[S any] struct {
	mu      sync.Mutex
	clock   forwardClock
	keys    map[string]*entry[S]
	entries []*entry[S] // the same, in the sweep's order
	pos     int         // the index in entries at which the next sweep begins
	_       [64]byte    // keeps the locks of two shards out of one cache line
}

type entry[S any] struct {
	key   string
	state S
}

// forwardClock replaces a time that is earlier than the last one by the last one. Goroutines read the clock
// before they get a lock, and clocks are set back.
type forwardClock struct{ last time.Time }

func (c *forwardClock) advance(now time.Time) time.Time {
	if now.Before(c.last) {
		return c.last
	}
	c.last = now
	return now
}

// New returns an empty table for at most maxKeys keys. Its shards take about 35 KB.
func New[S any](maxKeys int, states States[S]) *Table[S] {
	return &Table[S]{states: states, seed: maphash.MakeSeed(), maxKeys: int64(maxKeys)}
}

// Len returns how many keys are held, including those at rest that no sweep has looked at yet. It is never
// more than the maximum.
func (t *Table[S]) Len() int {
	// A goroutine that finds no room has counted its key in held for a moment.
	return int(min(t.held.Load(), t.maxKeys))
}

// Locked is a state under its lock. The holder may read and change State until it calls Unlock, which it must
// do, soon and once.
type Locked[S any] struct {
	State    *S
	Now      time.Time // the time that was given, or the last one that this lock saw if that is later
	Overflow bool      // State is the one that all keys without room share

	mu      *sync.Mutex
	sweeps  *Table[S] // to be swept by Unlock if it is time; nil for none
	readNow time.Time // the time that was given
}

// Lock returns the state of key. If the key is new, it gets a new state; if there is no room for it, even
// after a sweep, Lock returns the overflow state.
func (t *Table[S]) Lock(key string, now time.Time) Locked[S] {
	n := name{plain: key}
	s := t.shardOf(&n)
	l := t.lockIn(s, &n, now)
	if l.State != nil {
		l.sweeps = t
		return l
	}
	t.sweep(now)
	if l = t.lockIn(s, &n, now); l.State != nil {
		return l
	}
	return t.lockOverflow(now)
}

// LockHeld returns the state of key if the key is held. Otherwise State is nil, nothing is locked, and the
// key is at rest or in the overflow.
func (t *Table[S]) LockHeld(key string, now time.Time) Locked[S] {
	n := name{plain: key}
	s := t.shardOf(&n)
	s.mu.Lock()
	if e := s.find(&n); e != nil {
		return Locked[S]{State: &e.state, Now: s.clock.advance(now), mu: &s.mu}
	}
	s.mu.Unlock()
	return Locked[S]{}
}

// LockOverflow returns the overflow state if some key had to use it. Otherwise State is nil, and nothing is
// locked.
func (t *Table[S]) LockOverflow(now time.Time) Locked[S] {
	o := &t.overflow
	o.mu.Lock()
	if o.begun {
		return Locked[S]{State: &o.state, Now: o.clock.advance(now), Overflow: true, mu: &o.mu}
	}
	o.mu.Unlock()
	return Locked[S]{}
}

// Unlock ends the use of the state. It may then look at some other keys, to forget those at rest.
func (l *Locked[S]) Unlock() {
	l.mu.Unlock()
	if l.sweeps != nil {
		l.sweeps.sweepInTime(l.readNow)
	}
}

// lockIn locks n in its shard. It adds n if it is new, or returns a zero Locked if there is no room for it.
func (t *Table[S]) lockIn(s *shard[S], n *name, now time.Time) Locked[S] {
	s.mu.Lock()
	at := s.clock.advance(now)
	e := s.find(n)
	if e == nil {
		if t.held.Add(1) > t.maxKeys {
			t.held.Add(-1)
			s.mu.Unlock()
			return Locked[S]{}
		}
		e = s.add(n)
		t.states.Begin(&e.state, at)
	}
	return Locked[S]{State: &e.state, Now: at, mu: &s.mu, readNow: now}
}

func (t *Table[S]) lockOverflow(now time.Time) Locked[S] {
	o := &t.overflow
	o.mu.Lock()
	now = o.clock.advance(now)
	if !o.begun {
		t.states.Begin(&o.state, now)
		o.begun = true
	}
	return Locked[S]{State: &o.state, Now: now, Overflow: true, mu: &o.mu}
}

// sweepInTime sweeps if the last sweep is long enough ago. If the clock was set back since then, it is.
func (t *Table[S]) sweepInTime(now time.Time) {
	at, last := now.UnixNano(), t.swept.Load()
	if since := at - last; since < 0 || since >= int64(sweepEvery) {
		if t.swept.CompareAndSwap(last, at) {
			t.sweep(now)
		}
	}
}

// sweep looks at sweepKeys keys, beginning where the last sweep ended, and forgets those at rest. It is
// called with no lock held, and skips a shard that is locked rather than wait for it.
func (t *Table[S]) sweep(now time.Time) {
	keys := sweepKeys
	for i := 0; i < shardCount && keys > 0; i++ {
		s := &t.shards[t.next.Add(1)%shardCount]
		if !s.mu.TryLock() {
			continue
		}
		if len(s.entries) > 0 {
			at := s.clock.advance(now)
			for j := min(keys, len(s.entries)); j > 0; j-- {
				keys--
				if s.pos >= len(s.entries) {
					s.pos = 0
				}
				if t.states.AtRest(&s.entries[s.pos].state, at) {
					s.remove(s.pos)
					t.held.Add(-1)
				} else {
					s.pos++
				}
			}
		}
		s.mu.Unlock()
	}
}

func (t *Table[S]) shardOf(n *name) *shard[S] {
	return &t.shards[n.hash(t.seed)%shardCount]
}

func (s *shard[S]) find(n *name) *entry[S] {
	if n.hashed {
		return s.keys[string(n.sum[:])]
	}
	return s.keys[n.plain]
}

func (s *shard[S]) add(n *name) *entry[S] {
	e := &entry[S]{key: n.own()}
	if s.keys == nil {
		s.keys = make(map[string]*entry[S])
	}
	s.keys[e.key] = e
	s.entries = append(s.entries, e)
	return e
}

func (s *shard[S]) remove(i int) {
	last := len(s.entries) - 1
	delete(s.keys, s.entries[i].key)
	s.entries[i] = s.entries[last]
	s.entries[last] = nil
	s.entries = s.entries[:last]
	if last == 0 {
		s.keys, s.entries = nil, nil // a map never shrinks by itself
	}
}
