package keytable

import (
	"strings"
	"sync"
)

// shard is the part of a table that is under one lock: a hash table with linear probing. It is written by hand
// because the key has been hashed already, and because a Go map would cost two more cache misses and more
// memory.
//
// Marks and entries are separate slices, so that a search reads few cache lines: those of some marks, and one
// or two for the entry that it finds.
type shard[S any] struct {
	mu    sync.Mutex
	clock forwardClock
	_     [cacheLine - 16]byte

	marks   []mark     // 0 means that the place is free
	entries []entry[S] // entry i belongs to mark i
	n       int        // keys
	pos     int        // the place at which the next sweep begins
}

const cacheLine = 64

// mark is 24 bits of a key's hash and, in the lowest 8, the length of its name plus 1.
type mark uint32

func newMark(hash uint64, length int) mark { return mark(hash)<<8 | mark(length+1) }
func (m mark) length() int                 { return int(m&0xff) - 1 }

// entry is a key with its state. Most names are short and in the entry itself, which saves a cache miss. 24
// bytes are room for any IPv6 prefix of 64 bits.
type entry[S any] struct {
	state S
	short [shortName]byte
	long  string // a name that is longer
}

const (
	shortName = 24
	minPlaces = 8
)

func (e *entry[S]) setName(name string) {
	if len(name) <= shortName {
		copy(e.short[:], name)
		return
	}
	// A copy, so that it does not keep the request in memory that the name was a part of.
	e.long = strings.Clone(name)
}

// name returns the name, whose length is in m.
func (e *entry[S]) name(m mark) string {
	if n := m.length(); n <= shortName {
		return string(e.short[:n])
	}
	return e.long
}

// find returns the entry of name, whose mark is m, or nil.
func find[S any, K string | []byte](s *shard[S], m mark, name K) *entry[S] {
	marks := s.marks
	if len(marks) == 0 {
		return nil
	}
	for i := home(m, len(marks)); ; {
		switch marks[i] {
		case m:
			e := &s.entries[i]
			if len(name) <= shortName {
				if string(e.short[:len(name)]) == string(name) {
					return e
				}
			} else if e.long == string(name) {
				return e
			}
		case 0:
			return nil
		}
		if i++; i == len(marks) {
			i = 0
		}
	}
}

// home returns the place at which the search for m begins, in a table with this number of places. If that was
// occupied, m is at the next place that was free.
func home(m mark, places int) int { return int(uint64(m) * uint64(places) >> 32) }

// add adds name, which is not held.
func (s *shard[S]) add(m mark, name string) *entry[S] {
	if 8*(s.n+1) > 7*len(s.marks) {
		s.resize(len(s.marks) + len(s.marks)/4 + minPlaces)
	}
	i := s.place(m)
	s.marks[i] = m
	s.n++
	e := &s.entries[i]
	e.setName(name)
	return e
}

// place returns the first free place for m.
func (s *shard[S]) place(m mark) int {
	i := home(m, len(s.marks))
	for s.marks[i] != 0 {
		if i++; i == len(s.marks) {
			i = 0
		}
	}
	return i
}

// resize moves the keys to a table with the given number of places.
func (s *shard[S]) resize(places int) {
	marks, entries := s.marks, s.entries
	s.marks, s.entries = make([]mark, places), make([]entry[S], places)
	for i, m := range marks {
		if m != 0 {
			to := s.place(m)
			s.marks[to], s.entries[to] = m, entries[i]
		}
	}
	if len(marks) > 0 { // the order of the keys stays about the same
		s.pos = int(uint64(s.pos) * uint64(places) / uint64(len(marks)))
	}
}

// remove frees place i. The keys after it move up, so that no search ends too early at the gap.
func (s *shard[S]) remove(i int) {
	places := len(s.marks)
	for at := i; ; {
		if at++; at == places {
			at = 0
		}
		m := s.marks[at]
		if m == 0 {
			break
		}
		// The key may move to the gap unless its home lies between them.
		if distance(home(m, places), at, places) >= distance(i, at, places) {
			s.marks[i], s.entries[i] = m, s.entries[at]
			i = at
		}
	}
	s.marks[i], s.entries[i] = 0, entry[S]{}
	s.n--

	// Shrink the table if most of it is free, but leave room for some more keys.
	switch {
	case s.n == 0:
		s.marks, s.entries, s.pos = nil, nil, 0
	case places > 2*minPlaces && 3*s.n < places:
		s.resize(2*s.n + minPlaces)
	}
}

// distance returns how many places lie from one to another, around the end.
func distance(from, to, places int) int {
	if d := to - from; d >= 0 {
		return d
	}
	return to - from + places
}
