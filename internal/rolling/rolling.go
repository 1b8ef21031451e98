// Package rolling counts events in a rolling window, such as the last ten seconds.
//
// A Window divides its length into slots and counts events in the current slot. As time passes, it subtracts
// the slots that have become too old from the total. So counting takes constant time and a window has a fixed
// size. The package reads no clock: time is an argument, also in tests.
package rolling

import "time"

// Slots is the number of slots in a Window. An event is forgotten when it is as old as the window, or up to
// one slot earlier: in a window of 10 seconds, when it is between 9.5 and 10 seconds old.
const Slots = 20

// Counts is what a slot holds: one number or several that can be added and subtracted. The zero value counts
// nothing.
type Counts[C any] interface {
	Plus(C) C
	Minus(C) C
}

// Window is the sum of what was added within its length. Make it with New. It is not safe for concurrent use.
type Window[C Counts[C]] struct {
	start time.Time     // of slot 0
	width time.Duration // of a slot
	slot  int64         // number of the current slot, to which Add adds
	total C             // of all slots
	slots [Slots]C      // slot n is at n%Slots
}

// New returns an empty window that begins at start. A length below Slots nanoseconds counts as Slots
// nanoseconds.
func New[C Counts[C]](start time.Time, length time.Duration) Window[C] {
	return Window[C]{start: start, width: max(1, length/Slots)}
}

// Roll makes the slot of now the current one and subtracts the slots that are too old. It does nothing if
// now is before the current slot: two goroutines may read the clock in one order and call Roll in the
// other.
func (w *Window[C]) Roll(now time.Time) {
	slot := int64(now.Sub(w.start) / w.width)
	if slot-w.slot >= Slots {
		*w = Window[C]{start: w.start, width: w.width, slot: slot}
		return
	}
	for w.slot < slot {
		w.slot++
		s := &w.slots[w.slot%Slots]
		w.total = w.total.Minus(*s)
		var none C
		*s = none
	}
}

// Add adds c to the current slot and returns the slot's number, for TakeBack.
func (w *Window[C]) Add(c C) (slot int64) {
	s := &w.slots[w.slot%Slots]
	*s = (*s).Plus(c)
	w.total = w.total.Plus(c)
	return w.slot
}

// TakeBack subtracts c, which Add added to slot. It does nothing if the slot is already too old.
func (w *Window[C]) TakeBack(slot int64, c C) {
	if w.slot-slot >= Slots {
		return
	}
	s := &w.slots[slot%Slots]
	*s = (*s).Minus(c)
	w.total = w.total.Minus(c)
}

// Total returns the sum of all slots, as of the last Roll.
func (w *Window[C]) Total() C { return w.total }
