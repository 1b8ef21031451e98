// Package idletimer ends a response whose sender pauses for too long. Only the time of reads counts, so a
// receiver that reads slowly does not make the sender look idle.
package idletimer

import (
	"sync"
	"time"
)

// Timer measures the pauses within one response. Its clock runs only between BeginRead and EndRead. A nil
// Timer never expires. A Timer is safe for concurrent use, with one read at a time.
type Timer struct {
	after    time.Duration
	close    func() error
	excepted func() bool

	mu      sync.Mutex
	timer   *time.Timer
	reading bool
	last    time.Time // when the read began, or Sent was last called
	expired bool
}

// New returns a timer that calls close, from another goroutine, when a read has waited for longer than after.
// close must interrupt the read. While excepted returns true, the wait is not the sender's fault and is
// measured again; excepted may be nil. New returns nil if after is not positive.
func New(after time.Duration, close func() error, excepted func() bool) *Timer {
	if after <= 0 {
		return nil
	}
	return &Timer{after: after, close: close, excepted: excepted}
}

// BeginRead starts the clock.
func (t *Timer) BeginRead() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reading, t.last = true, time.Now()
	if t.timer == nil {
		t.timer = time.AfterFunc(t.after, t.check)
	} else {
		t.timer.Reset(t.after)
	}
}

// EndRead stops the clock.
func (t *Timer) EndRead() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reading = false
	t.timer.Stop()
}

// Sent starts the clock of a running read again: on an upgraded connection, data in the other direction ends
// the pause as well.
func (t *Timer) Sent() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now()
}

// check interrupts the read if the pause is long enough.
func (t *Timer) check() {
	t.mu.Lock()
	rest := t.after - time.Since(t.last)
	switch {
	case !t.reading:
		t.mu.Unlock()
		return
	case rest > 0:
		t.timer.Reset(rest)
		t.mu.Unlock()
		return
	case t.excepted != nil && t.excepted():
		t.timer.Reset(t.after)
		t.mu.Unlock()
		return
	}
	t.expired = true
	t.mu.Unlock()
	t.close()
}

// Expired reports whether the timer has interrupted a read, and returns after which pause.
func (t *Timer) Expired() (after time.Duration, expired bool) {
	if t == nil {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.after, t.expired
}
