package h1

import (
	"context"
	"time"
)

// hostKey names the target of a connection.
type hostKey struct {
	tls  bool
	addr string // host:port in lower case, or the path of a Unix socket, which begins with a slash
}

// network is the network of addr.
func (k hostKey) network() string {
	if k.addr[0] == '/' {
		return "unix"
	}
	return "tcp"
}

// host is the connections to a target. A host without connections and waiters is not in Transport.hosts.
type host struct {
	key     hostKey
	idle    []*conn // the one that was used last is last, and is used first
	open    int     // connections that are idle, in use or being dialed
	waiters []*waiter
}

// waiter is a request that waits because of MaxPerHost. Those that came first are served first.
type waiter struct {
	ready    chan grant // has room for one
	canceled bool       // the request does not wait any more
}

// grant is a connection, or without one the right to dial.
type grant struct{ c *conn }

// get returns an idle connection that is alive, or a new one. The caller owes a call of put, drop or releasePlace.
//
// Where unprobed is set, the caller itself finds out whether a connection whose wire can take a turn is
// alive.
func (t *Transport) get(ctx context.Context, key hostKey, skipProbe bool, d Deadline, hooks *Hooks, arg any) (*conn, error) {
	c, h, w := t.acquire(key, skipProbe)
	if c != nil {
		return c, nil
	}
	ctx, cancel := d.bound(ctx) // only a request that waits pays for it
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

// acquire returns an idle connection, or a waiter, or neither where the caller is to dial, for which it has a
// place.
func (t *Transport) acquire(key hostKey, skipProbe bool) (*conn, *host, *waiter) {
	now := time.Now()
	t.mu.Lock()
	t.closeIdle = false
	h := t.hosts[key]
	if h == nil {
		h = &host{key: key}
		t.hosts[key] = h
	}
	hasSlot := false // one of the open connections is this request's, to use or to replace
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
			expired[0].close() // its place is this request's
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

// await waits for a grant or the end of the context. It returns nil where the caller is to dial.
func (t *Transport) await(ctx context.Context, h *host, w *waiter) (*conn, error) {
	select {
	case g := <-w.ready:
		if g.c != nil && !g.c.alive() { // probed in any case, so that a dead one does not cost the place
			g.c.close()
			g.c = nil // its place is this request's
		}
		return g.c, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	w.canceled = true
	h.removeWaiter(w)
	t.mu.Unlock()
	select {
	case g := <-w.ready: // it came meanwhile
		if g.c != nil {
			t.put(g.c)
		} else {
			t.releaseSlot(h)
		}
	default:
		// The host still has the open connections that this request has waited for.
	}
	return nil, context.Cause(ctx)
}

// popIdle takes the connection that was used last. If that has been idle for too long, so have all others,
// and it returns them all to be closed.
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

// nextWaiter removes and returns the first request that still waits, or nil.
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

// removeWaiter removes a waiter that is gone.
func (h *host) removeWaiter(gone *waiter) {
	for i, w := range h.waiters {
		if w == gone {
			h.waiters = append(h.waiters[:i], h.waiters[i+1:]...)
			return
		}
	}
}

// put gives back a connection that can carry another request.
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

// drop closes a connection that was acquired or dialed.
func (t *Transport) drop(c *conn) {
	c.abort()
	t.releaseSlot(c.host)
}

// releaseSlot gives up a place among the open connections of a host.
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

func (t *Transport) removeIfEmpty(h *host) {
	if h.open == 0 && len(h.waiters) == 0 && t.hosts[h.key] == h {
		delete(t.hosts, h.key)
	}
}

// scheduleSweep starts the timer unless it runs. There is one for all connections, and none without idle
// ones.
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

// sweepIdle closes what has been idle for too long.
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
		// Not for each connection by itself: at most ten sweeps in an IdleTimeout.
		t.scheduleSweep(max(next, t.opts.IdleTimeout/10))
	}
	t.mu.Unlock()
	t.discard(expired)
}

// CloseIdleConnections closes the connections that no request uses. Those in use are closed when they are
// given back, unless another request asks for a connection before that.
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

// discard closes idle connections that no list has any more, and then gives up their places.
func (t *Transport) discard(conns []*conn) {
	for _, c := range conns {
		c.close()
		t.releaseSlot(c.host)
	}
}
