package h1

import (
	"context"
	"time"
)

// hostKey identifies a target.
type hostKey struct {
	tls  bool
	addr string // host:port in lower case, or the path of a Unix socket, which begins with a slash
}

// network returns the network of addr: "tcp" or "unix".
func (k hostKey) network() string {
	if k.addr[0] == '/' {
		return "unix"
	}
	return "tcp"
}

// host holds the connections to a target. Each connection that is idle, in use or being dialed has a slot,
// and open is the number of slots. MaxPerHost limits it. A host without slots and waiters is removed from
// Transport.hosts.
type host struct {
	key     hostKey
	idle    []*conn // most recently used last; the last is used first
	open    int
	waiters []*waiter // oldest first, served in this order
}

// waiter is a request that waits for a slot because of MaxPerHost.
type waiter struct {
	ready    chan grant // buffered, for one grant
	canceled bool       // the request has stopped waiting
}

// grant passes a slot to a waiter, with its connection, or with a nil connection if the waiter must dial.
type grant struct{ c *conn }

// get returns an idle connection that is alive, or a new one. The caller then calls put, drop or releaseSlot
// for it.
//
// If skipProbe is set, an idle connection that has a fast path is returned unprobed: the fast path probes it.
func (t *Transport) get(ctx context.Context, key hostKey, skipProbe bool, d Deadline, hooks *Hooks, arg any) (*conn, error) {
	c, h, w := t.acquire(key, skipProbe)
	if c != nil {
		return c, nil
	}
	ctx, cancel := d.bound(ctx) // not needed, and not paid for, with an idle connection
	defer cancel()
	if w != nil {
		c, err := t.await(ctx, h, w)
		if c != nil || err != nil {
			return c, err
		}
	}
	c, err := t.dial(ctx, h, hooks, arg)
	if err != nil {
		t.releaseSlot(h)
	}
	return c, err
}

// acquire returns an idle connection, or a waiter if MaxPerHost is reached. If it returns neither, the caller
// has a slot and dials.
func (t *Transport) acquire(key hostKey, skipProbe bool) (*conn, *host, *waiter) {
	now := time.Now()
	t.mu.Lock()
	t.closeIdle = false
	h := t.hosts[key]
	if h == nil {
		h = &host{key: key}
		t.hosts[key] = h
	}
	hasSlot := false // the request has taken over the slot of an idle connection
	for {
		c, expired := h.popIdle(now, t.opts.IdleTimeout)
		if c == nil && expired == nil {
			break
		}
		if hasSlot {
			h.open--
		}
		hasSlot = true
		t.mu.Unlock()
		if len(expired) > 0 {
			expired[0].close() // the request takes over its slot
			t.discard(expired[1:])
		}
		if c != nil {
			if skipProbe && c.hasFastPath() || c.alive() {
				return c, h, nil
			}
			c.close()
		}
		t.mu.Lock()
	}
	if hasSlot {
		t.mu.Unlock()
		return nil, h, nil
	}
	if t.opts.MaxPerHost <= 0 || h.open < t.opts.MaxPerHost {
		h.open++
		t.mu.Unlock()
		return nil, h, nil
	}
	w := &waiter{ready: make(chan grant, 1)}
	h.waiters = append(h.waiters, w)
	t.mu.Unlock()
	return nil, h, w
}

// await waits for a grant or the end of the context. If it returns a nil connection and no error, the caller
// has a slot and dials.
func (t *Transport) await(ctx context.Context, h *host, w *waiter) (*conn, error) {
	select {
	case g := <-w.ready:
		if g.c != nil && !g.c.alive() { // probed even if there is a fast path, to keep the slot of a dead one
			g.c.close()
			g.c = nil // the request dials in its slot
		}
		return g.c, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	w.canceled = true
	h.removeWaiter(w)
	t.mu.Unlock()
	select {
	case g := <-w.ready: // granted just before the context ended
		if g.c != nil {
			t.put(g.c)
		} else {
			t.releaseSlot(h)
		}
	default:
		// No slot was granted, so none is released.
	}
	return nil, context.Cause(ctx)
}

// popIdle removes and returns the most recently used connection. If that has been idle for too long, all
// others have too: popIdle then returns them all as expired, for the caller to close.
func (h *host) popIdle(now time.Time, timeout time.Duration) (c *conn, expired []*conn) {
	n := len(h.idle)
	if n == 0 {
		return nil, nil
	}
	c = h.idle[n-1]
	if timeout > 0 && now.Sub(c.idleSince) >= timeout {
		expired = h.idle
		h.idle = nil
		return nil, expired
	}
	h.idle[n-1] = nil
	h.idle = h.idle[:n-1]
	return c, nil
}

// nextWaiter removes and returns the oldest waiter that is not canceled, or nil.
func (h *host) nextWaiter() *waiter {
	for len(h.waiters) > 0 {
		w := h.waiters[0]
		h.waiters[0] = nil
		h.waiters = h.waiters[1:]
		if !w.canceled {
			return w
		}
	}
	h.waiters = nil
	return nil
}

// removeWaiter removes a canceled waiter, if it is still in the queue.
func (h *host) removeWaiter(canceled *waiter) {
	for i, w := range h.waiters {
		if w == canceled {
			h.waiters = append(h.waiters[:i], h.waiters[i+1:]...)
			return
		}
	}
}

// put returns a reusable connection to the pool: it passes it to a waiter, keeps it idle, or closes it if
// there are enough idle ones.
func (t *Transport) put(c *conn) {
	now := time.Now()
	t.mu.Lock()
	h := c.host
	c.reused, c.idleSince = true, now
	if w := h.nextWaiter(); w != nil {
		w.ready <- grant{c}
		t.mu.Unlock()
		return
	}
	if t.closeIdle || len(h.idle) >= t.opts.MaxIdlePerHost {
		t.mu.Unlock()
		c.close()
		t.releaseSlot(h)
		return
	}
	h.idle = append(h.idle, c)
	t.scheduleSweep(t.opts.IdleTimeout)
	t.mu.Unlock()
}

// drop closes a connection that get returned and releases its slot.
func (t *Transport) drop(c *conn) {
	c.abort()
	t.releaseSlot(c.host)
}

// releaseSlot passes a slot of the host to a waiter, or frees it.
func (t *Transport) releaseSlot(h *host) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := h.nextWaiter(); w != nil {
		w.ready <- grant{}
		return
	}
	h.open--
	t.removeIfEmpty(h)
}

// removeIfEmpty forgets a host that has neither connections nor waiters.
func (t *Transport) removeIfEmpty(h *host) {
	if h.open == 0 && len(h.waiters) == 0 && t.hosts[h.key] == h {
		delete(t.hosts, h.key)
	}
}

// scheduleSweep starts the timer of sweepIdle unless it runs. One timer serves all connections. It does not
// run while there are no idle ones.
func (t *Transport) scheduleSweep(after time.Duration) {
	if t.sweeping || t.opts.IdleTimeout <= 0 {
		return
	}
	t.sweeping = true
	if t.sweep == nil {
		t.sweep = time.AfterFunc(after, t.sweepIdle)
	} else {
		t.sweep.Reset(after)
	}
}

// sweepIdle closes the connections that have been idle for too long.
func (t *Transport) sweepIdle() {
	now := time.Now()
	var expired []*conn
	next := time.Duration(-1)
	t.mu.Lock()
	t.sweeping = false
	for _, h := range t.hosts {
		n := 0
		for n < len(h.idle) && now.Sub(h.idle[n].idleSince) >= t.opts.IdleTimeout {
			n++
		}
		if n > 0 {
			expired = append(expired, h.idle[:n]...)
			h.idle = append([]*conn(nil), h.idle[n:]...)
		}
		if len(h.idle) > 0 {
			left := t.opts.IdleTimeout - now.Sub(h.idle[0].idleSince)
			if next < 0 || left < next {
				next = left
			}
		}
	}
	if next >= 0 {
		// Connections that expire soon after one another are closed in one sweep: there are at most ten
		// sweeps in an IdleTimeout.
		t.scheduleSweep(max(next, t.opts.IdleTimeout/10))
	}
	t.mu.Unlock()
	t.discard(expired)
}

// CloseIdleConnections closes the idle connections. A connection in use is closed when its exchange ends,
// unless a new request has started by then.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	var idle []*conn
	for _, h := range t.hosts {
		idle = append(idle, h.idle...)
		h.idle = nil
	}
	t.closeIdle = true
	if t.sweeping {
		t.sweep.Stop()
		t.sweeping = false
	}
	t.mu.Unlock()
	t.discard(idle)
}

// discard closes connections that were removed from their host's idle list, and releases their slots.
func (t *Transport) discard(conns []*conn) {
	for _, c := range conns {
		c.close()
		t.releaseSlot(c.host)
	}
}
