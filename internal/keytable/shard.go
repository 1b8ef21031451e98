package keytable

import (
	"math/bits"
	"strings"
	"sync"
)

// shard is the part of a table that is under one lock: a hash table with linear probing. It is written by
// hand because the key has been hashed already, and because a map of the language would cost two more misses
// of the processor's caches and twice the memory.
type shard[S any] struct {
	mu     sync.Mutex
	clock  forwardClock
	slots  []slot // the index; its length is a power of two
	chunks []*chunk[S]
	n      int      // keys
	pos    int      // the entry at which the next sweep begins
	_      [64]byte // keeps the locks of two shards out of one cache line
}

// slot is 0 when it is free. Otherwise it has a key's tag in the upper half and the number of its entry, plus
// 1, in the lower half. The key's place is the tag modulo the number of slots, or the next free slot after it.
type slot uint64

func newSlot(tag uint32, entry int) slot { return slot(tag)<<32 | slot(entry+1) }
func (s slot) tag() uint32               { return uint32(s >> 32) }
func (s slot) entry() int                { return int(uint32(s)) - 1 }

type entry[S any] struct {
	key   string
	state S
}

// chunk is a piece of the list of entries. In pieces, the list grows and shrinks without moving an entry.
type chunk[S any] [chunkLen]entry[S]

const (
	chunkLen = 16
	minSlots = 8
)

func (s *shard[S]) at(i int) *entry[S] { return &s.chunks[uint(i)/chunkLen][uint(i)%chunkLen] }

// find returns the entry of name, or nil.
func find[S any, K string | []byte](s *shard[S], tag uint32, name K) *entry[S] {
	slots := s.slots
	if len(slots) == 0 {
		return nil
	}
	mask := uint32(len(slots) - 1)
	for i := tag & mask; ; i = (i + 1) & mask {
		sl := slots[i]
		if sl == 0 {
			return nil
		}
		if sl.tag() == tag {
			if e := s.at(sl.entry()); e.key == string(name) {
				return e
			}
		}
	}
}

// add adds name, which is not held. It keeps a copy, so that it does not keep the request in memory that the
// name was a part of.
func (s *shard[S]) add(tag uint32, name string) *entry[S] {
	if 4*(s.n+1) > 3*len(s.slots) {
		s.resize(max(minSlots, 2*len(s.slots)))
	}
	if s.n == chunkLen*len(s.chunks) {
		s.chunks = append(s.chunks, new(chunk[S]))
	}
	e := s.at(s.n)
	e.key = strings.Clone(name)
	s.index(newSlot(tag, s.n))
	s.n++
	return e
}

// index puts sl in the first free slot from its place on.
func (s *shard[S]) index(sl slot) {
	mask := uint32(len(s.slots) - 1)
	i := sl.tag() & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = sl
}

// resize makes n slots. The tags are all that it needs of the keys.
func (s *shard[S]) resize(n int) {
	old := s.slots
	s.slots = make([]slot, n)
	for _, sl := range old {
		if sl != 0 {
			s.index(sl)
		}
	}
}

// slotOf returns the slot of entry number i.
func (s *shard[S]) slotOf(tag uint32, i int) uint32 {
	mask := uint32(len(s.slots) - 1)
	at := tag & mask
	for s.slots[at] != newSlot(tag, i) {
		at = (at + 1) & mask
	}
	return at
}

// remove removes entry number i, and moves the last entry to its place. tagOf returns the tag of a name.
func (s *shard[S]) remove(i int, tagOf func(name string) uint32) {
	s.free(s.slotOf(tagOf(s.at(i).key), i))
	last := s.n - 1
	end := s.at(last)
	if i != last {
		lastTag := tagOf(end.key)
		s.slots[s.slotOf(lastTag, last)] = newSlot(lastTag, i)
		*s.at(i) = *end
	}
	*end = entry[S]{}
	s.n--

	// What is not needed any more is given back, with some room left for the next keys.
	if spare := len(s.chunks) - 1; s.n+chunkLen/2 <= chunkLen*spare {
		s.chunks[spare] = nil
		s.chunks = s.chunks[:spare]
	}
	switch {
	case s.n == 0:
		s.slots, s.chunks = nil, nil
	case len(s.slots) > minSlots && 8*s.n < len(s.slots):
		s.resize(max(minSlots, 1<<bits.Len(uint(2*s.n))))
	}
}

// free frees a slot. The slots after it move up, so that no search ends too early at the gap.
func (s *shard[S]) free(gap uint32) {
	mask := uint32(len(s.slots) - 1)
	for i := (gap + 1) & mask; s.slots[i] != 0; i = (i + 1) & mask {
		// The key at i may move to the gap unless its place lies between them.
		if place := s.slots[i].tag() & mask; (i-place)&mask >= (i-gap)&mask {
			s.slots[gap] = s.slots[i]
			gap = i
		}
	}
	s.slots[gap] = 0
}
