// Package waitqueue is a queue with priorities. Add and Remove take time that depends on the number of
// different priorities, not on how many wait, so a waiter that gives up costs as little as one that is
// served.
package waitqueue

import (
	"cmp"
	"slices"
)

// Queue holds the waiters by priority; those of the same priority are in the order in which they were added.
// The zero Queue is empty. A Queue is not safe for concurrent use.
type Queue[T any] struct {
	n      int
	levels []*level[T] // the highest priority first; none is empty
}

// level holds the waiters of one priority, as a doubly linked list.
type level[T any] struct {
	priority    int
	first, last *Waiter[T]
}

// Waiter is one element of a queue. Set Value and Priority before Add, and leave Priority alone until Remove.
type Waiter[T any] struct {
	Value    T
	Priority int

	level      *level[T] // nil if it is not in a queue
	prev, next *Waiter[T]
}

// Waits reports whether w is in a queue.
func (w *Waiter[T]) Waits() bool { return w.level != nil }

// Len returns the number of waiters.
func (q *Queue[T]) Len() int { return q.n }

func (q *Queue[T]) find(priority int) (int, bool) {
	return slices.BinarySearchFunc(q.levels, priority, func(l *level[T], p int) int { return cmp.Compare(p, l.priority) })
}

// Add adds w after all waiters of its priority. w must not be in a queue.
func (q *Queue[T]) Add(w *Waiter[T]) {
	i, ok := q.find(w.Priority)
	if !ok {
		q.levels = slices.Insert(q.levels, i, &level[T]{priority: w.Priority})
	}
	l := q.levels[i]
	w.level, w.prev = l, l.last
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	q.n++
}

// Remove removes w, which must be in the queue.
func (q *Queue[T]) Remove(w *Waiter[T]) {
	l := w.level
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.level, w.prev, w.next = nil, nil, nil
	q.n--
	if l.first == nil {
		i, _ := q.find(l.priority)
		q.levels = slices.Delete(q.levels, i, i+1)
	}
}

// First returns the waiter to serve next: of the highest priority, the one that was added first. It returns
// nil if the queue is empty.
func (q *Queue[T]) First() *Waiter[T] {
	if q.n == 0 {
		return nil
	}
	return q.levels[0].first
}

// Last returns the waiter to give up first: of the lowest priority, the one that was added last. It returns
// nil if the queue is empty.
func (q *Queue[T]) Last() *Waiter[T] {
	if q.n == 0 {
		return nil
	}
	return q.levels[len(q.levels)-1].last
}
