package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// watchAfter is how long a read or a write may block before the request pays for a watcher of its
	// context.
	watchAfter = 10 * time.Millisecond

	// watchSlack is how much of watchAfter may be gone when a deadline that an earlier read has set is kept:
	// so a connection in steady use sets one every few milliseconds, and not for each request.
	watchSlack = 8 * time.Millisecond

	// idleWriteTimeout bounds what TLS writes on its own account on an idle connection.
	idleWriteTimeout = 2 * time.Second
)

// longAgo is a deadline that ends every read and write.
var longAgo = time.Unix(1, 0)

// wire is the network connection below TLS. Its Read and Write return at the end of the context of the
// exchange that it carries, at the end of the time for the response's header, and when fail is called.
//
// The context costs nothing while the target is fast. Read and Write set a deadline some milliseconds ahead,
// which a later exchange finds and keeps. Only when that passes does wire watch the context, by
// context.AfterFunc; the watcher sets a deadline in the past. So TLS never sees the deadlines that merely
// started a watcher, which it could not recover from in a write.
type wire struct {
	net.Conn
	raw      syscall.RawConn // nil if the connection has none
	cancelFn func()          // cancel as a func value, made once
	probe    probe
	fast     fastPath
	eof      bool // Read has returned io.EOF

	mu        sync.Mutex // guards what follows
	exchange             // that is in progress
	deadlines            // as they are set on Conn
}

// exchange is what a wire knows of the exchange that it carries.
type exchange struct {
	ctx         context.Context // nil when idle
	cancelable  bool            // ctx can be done
	deadline    time.Time       // of ctx, or zero
	watching    bool            // the deadlines of Conn are headerBy, and a watcher of ctx runs if it can end
	stopWatcher func() bool     // stops the watcher
	failure     error           // what reads and writes return from now on
	headerBy    time.Time       // the response's header must be read by then, or zero
	headerErr   error           // the failure if it is not
	written     int64           // bytes
}

// deadlines are for the reads and the writes of a connection; zero means none.
type deadlines struct{ readBy, writeBy time.Time }

// probe is a read that does not wait.
type probe struct {
	on  bool             // Read is one
	fn  func(fd uintptr) // readNow as a func value, made once
	buf []byte
	n   int
	err error
}

func newWire(nc net.Conn) *wire {
	w := &wire{Conn: nc}
	w.cancelFn = w.cancel
	if sc, ok := nc.(syscall.Conn); ok && canProbe {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
			w.probe.fn = w.readNow
			w.fast.fn = w.fastPathStep
		}
	}
	return w
}

// begin starts an exchange under a context.
func (w *wire) begin(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exchange = exchange{ctx: ctx, cancelable: ctx.Done() != nil}
	w.deadline, _ = ctx.Deadline()
}

// end ends the exchange and reports whether nothing has interrupted it, so that the connection can carry
// another.
func (w *wire) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ok := w.failure == nil
	if w.stopWatcher != nil && !w.stopWatcher() {
		ok = false // the watcher is running or about to
	}
	w.ctx, w.stopWatcher, w.watching = nil, nil, false
	return ok
}

// cancel is what the watcher calls.
func (w *wire) cancel() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil {
		return // the exchange has ended; end has seen this watcher, and the connection is not used again
	}
	w.failLocked(context.Cause(w.ctx))
}

// fail makes reads and writes return err, those that are blocked included.
func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(err)
}

func (w *wire) failLocked(err error) {
	if w.failure == nil {
		w.failure = err
	}
	w.readBy, w.writeBy = longAgo, longAgo
	w.Conn.SetDeadline(longAgo)
}

// failureErr returns the reason why reads and writes fail, or nil.
func (w *wire) failureErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// bytesWritten returns how many bytes of the exchange were written.
func (w *wire) bytesWritten() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// limitHeader makes reads fail with late once d has passed, until headerDone is called. An earlier limit
// stays.
func (w *wire) limitHeader(d time.Duration, late error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	by := time.Now().Add(d)
	if w.failure != nil || !w.headerBy.IsZero() && w.headerBy.Before(by) {
		return
	}
	w.headerBy, w.headerErr = by, late
	if w.watching || w.readBy.IsZero() || by.Before(w.readBy) {
		w.setReadBy(by)
	}
}

// limitExchange is expectHeader for writes, too.
func (w *wire) limitExchange(d Deadline) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.headerBy, w.headerErr = d.By, d.Err // reads and writes set their deadlines by it
}

// liftHeaderLimit lifts the limit of expectHeader.
func (w *wire) liftHeaderLimit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.headerBy.IsZero() {
		return
	}
	w.headerBy = time.Time{}
	if w.watching && w.failure == nil {
		w.setReadBy(time.Time{})
		w.setWriteBy(time.Time{})
	}
}

func (w *wire) setReadBy(t time.Time) {
	w.readBy = t
	w.Conn.SetReadDeadline(t)
}

func (w *wire) setWriteBy(t time.Time) {
	w.writeBy = t
	w.Conn.SetWriteDeadline(t)
}

// armRead prepares a read that may block.
func (w *wire) armRead() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure != nil {
		return w.failure
	}
	if w.watching {
		return nil
	}
	if !w.cancelable && w.headerBy.IsZero() || w.ctx == nil {
		if !w.readBy.IsZero() {
			w.setReadBy(time.Time{})
		}
		return nil
	}
	now := time.Now()
	by := now.Add(watchAfter)
	if !w.deadline.IsZero() && w.deadline.Before(by) {
		by = w.deadline
	}
	if !w.headerBy.IsZero() && w.headerBy.Before(by) {
		by = w.headerBy
	}
	if w.readBy.After(by) || w.readBy.Before(by.Add(-watchSlack)) {
		if w.ctx.Err() != nil { // data that comes fast must not outlive the context
			w.failLocked(context.Cause(w.ctx))
			return w.failure
		}
		w.setReadBy(by)
	}
	return nil
}

// armWrite prepares a write that may block.
func (w *wire) armWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure != nil {
		return w.failure
	}
	if w.watching {
		return nil
	}
	if w.ctx == nil { // TLS answers on an idle connection, or shakes hands
		if w.probe.on {
			w.setWriteBy(time.Now().Add(idleWriteTimeout))
		}
		return nil
	}
	if !w.cancelable && w.headerBy.IsZero() {
		if !w.writeBy.IsZero() {
			w.setWriteBy(time.Time{})
		}
		return nil
	}
	by := time.Now().Add(watchAfter)
	if !w.deadline.IsZero() && w.deadline.Before(by) {
		by = w.deadline
	}
	if !w.headerBy.IsZero() && w.headerBy.Before(by) {
		by = w.headerBy
	}
	if w.writeBy.After(by) || w.writeBy.Before(by.Add(-watchSlack)) {
		if w.ctx.Err() != nil {
			w.failLocked(context.Cause(w.ctx))
			return w.failure
		}
		w.setWriteBy(by)
	}
	return nil
}

// deadlinePassed is called when a deadline has passed. It returns why the read or write fails, or nil after it has
// started the watcher.
func (w *wire) deadlinePassed(timeout error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.failure != nil:
		return w.failure
	case w.ctx == nil:
		return timeout
	case w.ctx.Err() != nil:
		w.failLocked(context.Cause(w.ctx))
		return w.failure
	case !w.headerBy.IsZero() && !time.Now().Before(w.headerBy):
		w.failLocked(w.headerErr)
		return w.failure
	}
	w.watchLocked()
	return nil
}

// watchNow starts the watcher, so that the connection can be read without wire's Read.
func (w *wire) watchNow() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		w.watchLocked()
	}
	return w.failure
}

func (w *wire) watchLocked() {
	if !w.watching {
		w.watching = true
		if w.cancelable {
			w.stopWatcher = context.AfterFunc(w.ctx, w.cancelFn)
		}
	}
	w.setReadBy(w.headerBy)
	w.setWriteBy(w.headerBy)
}

// detach leaves the connection to the caller, without a context and without deadlines.
func (w *wire) detach() bool {
	if !w.end() {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadlines = deadlines{}
	w.Conn.SetDeadline(time.Time{})
	return true
}

func (w *wire) Read(p []byte) (int, error) {
	if w.probe.on {
		return w.readIfReady(p)
	}
	for {
		if err := w.armRead(); err != nil {
			return 0, err
		}
		n, err := w.Conn.Read(p)
		if err == nil || n > 0 {
			return n, err
		}
		if err == io.EOF {
			w.eof = true
			return 0, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if failure := w.failureErr(); failure != nil {
				err = failure
			}
			return 0, err
		}
		if err := w.deadlinePassed(err); err != nil {
			return 0, err
		}
	}
}

func (w *wire) Write(p []byte) (int, error) {
	total := 0
	for {
		if err := w.armWrite(); err != nil {
			return total, err
		}
		n, err := w.Conn.Write(p[total:])
		total += n
		if n > 0 {
			w.mu.Lock()
			w.written += int64(n)
			w.mu.Unlock()
		}
		if err == nil {
			return total, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if failure := w.failureErr(); failure != nil {
				err = failure
			}
			return total, err
		}
		if err := w.deadlinePassed(err); err != nil {
			return total, err
		}
	}
}

// errWouldBlock is what a probe returns when there is nothing to read. TLS can read on after it, as it is
// Temporary.
var errWouldBlock error = &timeoutError{"h1: nothing to read"}

// readIfReady reads what has arrived, and never waits.
func (w *wire) readIfReady(p []byte) (int, error) {
	if w.raw == nil {
		// A deadline in the past shows the end of a pipe, but not that of a wrapped socket.
		w.setReadBy(longAgo)
		n, err := w.Conn.Read(p)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errWouldBlock
		}
		return n, err
	}
	w.probe.buf = p
	if err := w.raw.Control(w.probe.fn); err != nil {
		return 0, err
	}
	w.probe.buf = nil
	return w.probe.n, w.probe.err
}

// readNow is called with the socket.
func (w *wire) readNow(fd uintptr) { w.probe.n, w.probe.err = readSocket(fd, w.probe.buf) }

// quiet reports whether nothing has arrived on an idle connection but what TLS itself is sent. r reads from
// the wire, through TLS where there is TLS: then the tickets of new sessions and new keys, which a server may
// send at any time, are taken in.
//
// Without a raw connection, the end of a socket that somebody has wrapped is not seen; that of a net.Pipe is.
func (w *wire) quiet(r io.Reader, scratch []byte) bool {
	w.probe.on = true
	n, err := r.Read(scratch)
	w.probe.on = false
	return n == 0 && err == errWouldBlock
}

// peerClosed reports whether the target has peerClosed a connection that is not used again.
func (w *wire) peerClosed() bool {
	var one [1]byte
	n, err := w.readIfReady(one[:])
	return n == 0 && err != errWouldBlock
}
