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
	// watchAfter is how long a read or a write may block before a watcher is started for the request's
	// context.
	watchAfter = 10 * time.Millisecond

	// watchSlack limits how early a deadline may be to be kept. For example, at time 0 a read sets the
	// deadline 10ms. A read at 5ms would set 15ms, but keeps 10ms, which is less than 8ms earlier. So a
	// busy connection sets a deadline every few milliseconds and not for each request.
	watchSlack = 8 * time.Millisecond

	// idleWriteTimeout limits a write by which TLS answers a message that it finds while an idle connection
	// is probed.
	idleWriteTimeout = 2 * time.Second
)

// longAgo is a deadline that ends every read and write at once.
var longAgo = time.Unix(1, 0)

// wire is the network connection, below TLS. Its Read and Write fail when the context of the current exchange
// ends, when the time for the response's header has passed, and when fail is called.
//
// A context costs nothing while the target is fast. Read and Write set a deadline some milliseconds ahead on
// the connection, and later exchanges keep it for as long as it serves. Only when it passes does wire start a
// watcher: a context.AfterFunc that sets a deadline in the past when the context ends. Read and Write then
// continue, so TLS never sees a deadline that only started a watcher. A TLS connection whose Write has timed
// out cannot be used again.
type wire struct {
	net.Conn
	raw      syscall.RawConn // nil if the connection has none
	cancelFn func()          // cancel as a func value, made once
	probe    probe
	fast     fastPath
	eof      bool // Read has returned io.EOF

	mu        sync.Mutex // guards the fields below
	exchange             // the current one
	deadlines            // that are set on Conn
}

// exchange is the state of the exchange that a wire carries.
type exchange struct {
	ctx         context.Context // nil when idle
	cancelable  bool            // ctx can be done
	deadline    time.Time       // of ctx, or zero
	watching    bool            // the watcher was started, if ctx is cancelable; the deadlines are headerBy
	stopWatcher func() bool     // as returned by context.AfterFunc
	failure     error           // returned by all further reads and writes
	headerBy    time.Time       // when the time for the response's header ends; zero means never
	headerErr   error           // the failure when headerBy passes
	written     int64           // bytes
}

// deadlines are the read and the write deadline of a connection. Zero means none.
type deadlines struct{ readBy, writeBy time.Time }

// probe is the state of a read that does not block.
type probe struct {
	on  bool             // Read does not block
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

// begin starts an exchange that ctx can end.
func (w *wire) begin(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.exchange = exchange{ctx: ctx, cancelable: ctx.Done() != nil}
	w.deadline, _ = ctx.Deadline()
}

// end ends the exchange. It reports whether the connection can carry another: neither the context nor a time
// limit has interrupted this one.
func (w *wire) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ok := w.failure == nil
	if w.stopWatcher != nil && !w.stopWatcher() {
		ok = false // the watcher is running or will run soon
	}
	w.ctx, w.stopWatcher, w.watching = nil, nil, false
	return ok
}

// cancel is called by the watcher when the context has ended.
func (w *wire) cancel() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil {
		return // the exchange has ended; end could not stop this watcher, so the connection is not reused
	}
	w.failLocked(context.Cause(w.ctx))
}

// fail makes reads and writes fail with err, including those that are blocked. The first failure stays.
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

// failureErr returns the error with which reads and writes fail, or nil.
func (w *wire) failureErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// bytesWritten returns how many bytes were written in this exchange.
func (w *wire) bytesWritten() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// limitHeader makes reads fail with err once d has passed, until liftHeaderLimit is called. If an earlier
// limit is set, that stays.
func (w *wire) limitHeader(d time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	by := time.Now().Add(d)
	if w.failure != nil || !w.headerBy.IsZero() && w.headerBy.Before(by) {
		return
	}
	w.headerBy, w.headerErr = by, err
	if w.watching || w.readBy.IsZero() || by.Before(w.readBy) {
		w.setReadBy(by)
	}
}

// limitExchange sets the limit for reads and writes at the beginning of an exchange.
func (w *wire) limitExchange(d Deadline) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.headerBy, w.headerErr = d.By, d.Err // armRead and armWrite set the deadlines
}

// liftHeaderLimit removes the limit, when the response's header has been read.
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

// armRead sets the read deadline for a read that may block, or returns why the read fails.
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
		if w.ctx.Err() != nil { // while data arrives fast, no read blocks and no watcher starts
			w.failLocked(context.Cause(w.ctx))
			return w.failure
		}
		w.setReadBy(by)
	}
	return nil
}

// armWrite sets the write deadline for a write that may block, or returns why the write fails.
func (w *wire) armWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure != nil {
		return w.failure
	}
	if w.watching {
		return nil
	}
	if w.ctx == nil { // TLS writes: in the handshake, or in answer to a message on an idle connection
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

// deadlinePassed is called when a read or write has met its deadline. It returns the error of the read or
// write, or nil if that should continue: then a watcher runs.
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

// watchNow starts the watcher at once, for a caller that reads from Conn directly.
func (w *wire) watchNow() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		w.watchLocked()
	}
	return w.failure
}

// watchLocked starts the watcher unless it runs. From now on, only the limit for the header is a deadline.
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

// detach ends the exchange and clears the deadlines, so that the caller can use Conn. It reports false if the
// exchange was interrupted.
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

// errWouldBlock is the error of a read that does not block if there is no data. It is Temporary, so that
// a tls.Conn can read again after it.
var errWouldBlock error = &timeoutError{"h1: nothing to read"}

// readIfReady reads the data that has arrived. It does not block.
func (w *wire) readIfReady(p []byte) (int, error) {
	if w.raw == nil {
		// With a deadline in the past, a net.Pipe returns its end, but a wrapped socket only a timeout.
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

// readNow is the function that readIfReady passes to RawConn.Control.
func (w *wire) readNow(fd uintptr) { w.probe.n, w.probe.err = readSocket(fd, w.probe.buf) }

// quiet reports whether nothing has arrived on an idle connection, neither data nor its end. r is the wire or
// the tls.Conn on it. Messages for TLS itself do not count: a server may send session tickets and key updates
// at any time, and the tls.Conn processes them here.
//
// If Dial wraps a socket in a type that is not a syscall.Conn, quiet does not see the connection's end. It
// does for a net.Pipe.
func (w *wire) quiet(r io.Reader, scratch []byte) bool {
	w.probe.on = true
	n, err := r.Read(scratch)
	w.probe.on = false
	return n == 0 && err == errWouldBlock
}

// peerClosed reports whether the target has closed the connection. It may consume a byte, so the connection
// must not be used afterwards.
func (w *wire) peerClosed() bool {
	var one [1]byte
	n, err := w.readIfReady(one[:])
	return n == 0 && err != errWouldBlock
}
