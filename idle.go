package gateway

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// errIdle is why a response ended whose target sent nothing for UpstreamOptions.Idle.
var errIdle = errors.New("gateway: the target paused for too long")

// idleTimer ends a response whose target pauses for too long. Its clock runs only while a read from the
// target is under way. So the time in which a client does not read is not a pause of the target. Nor is the
// time in which the client has still to send a part of its body, for which the target may be waiting. A nil
// idleTimer never ends a response.
type idleTimer struct {
	after time.Duration
	close func() error // interrupts the read
	body  *replay      // the request's

	mu      sync.Mutex
	timer   *time.Timer
	reading bool
	last    time.Time // when the read began, or something was sent to the target
	expired bool
}

// newIdleTimer returns nil if after is not positive.
func newIdleTimer(after time.Duration, close func() error, body *replay) *idleTimer {
	if after <= 0 {
		return nil
	}
	return &idleTimer{after: after, close: close, body: body}
}

// begin starts the clock: a read from the target begins.
func (t *idleTimer) begin() {
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

// end stops the clock: the read has returned.
func (t *idleTimer) end() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reading = false
	t.timer.Stop()
}

// sent starts the clock again: on an upgraded connection, data sent to the target ends the silence as well.
func (t *idleTimer) sent() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = time.Now()
}

// check interrupts the read if the pause is long enough.
func (t *idleTimer) check() {
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
	case t.body.awaitsClient():
		t.timer.Reset(t.after)
		t.mu.Unlock()
		return
	}
	t.expired = true
	t.mu.Unlock()
	t.close()
}

// cause returns why the read was interrupted, and nil if it was not.
func (t *idleTimer) cause() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.expired {
		return nil
	}
	return fmt.Errorf("%w: nothing for %v", errIdle, t.after)
}
