package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/bodywait"
)

// clientBody is the body of a client's request. It ends reading when the request's time is over, and when the
// client pauses for too long. To interrupt a read that is in progress, it sets the read deadline of the
// client's connection.
//
// After clientBody has set the deadline of an HTTP/1.1 connection, the connection is not used for another
// request. So the server's own deadlines need not be restored.
type clientBody struct {
	src      io.ReadCloser
	w        http.ResponseWriter // of the request; its ResponseController sets the deadline
	ctx      context.Context     // nil until watch is called
	http1    bool
	declared int64         // Content-Length; negative if it is not known
	pause    time.Duration // longest time of a read; no limit unless positive. Guarded by mu.

	onStop *expectation // released when reading has ended, so that no reader waits on; nil for none

	mu     sync.Mutex
	cond   sync.Cond // signals the end of a read
	wait   bodywait.Clock
	limits readLimits
	bodyProgress
}

// bodyProgress describes what was read of a body.
type bodyProgress struct {
	read   int64
	eof    bool
	reason error // why reading was ended before the end of src; nil if it was not
}

// readLimits is the state of the limits that can end reading.
type readLimits struct {
	timer           *time.Timer // for pause; nil before the first read
	armed           bool        // the timer runs
	unwatch         func() bool // stops watching the context
	interrupted     bool        // the read deadline was set
	uninterruptible bool        // the read deadline could not be set
	released        bool        // the handler returns: the connection's deadline must not be set any more
}

// errBodyClosed is the error of a read after reading has ended.
var errBodyClosed = errors.New("gateway: read of a request body after it was closed")

// past is a deadline that interrupts a read at once.
var past = time.Unix(1, 0)

const (
	// defaultBodyTimeout is the longest pause within a request's body.
	defaultBodyTimeout = time.Minute

	// cancelGrace is how long a read may continue after its context was canceled. If the connection has
	// failed, the read returns within this time, with an error that is more specific than the context's.
	cancelGrace = 20 * time.Millisecond

	// lingerTime is how long the server may read the rest of a body after the answer. If it closed the
	// connection at once, the client could get a reset instead of the answer.
	lingerTime = 500 * time.Millisecond
)

// init prepares b for the body of r, whose answer is written to w.
func (b *clientBody) init(w http.ResponseWriter, r *http.Request, pause time.Duration) {
	b.src, b.w, b.pause = r.Body, w, pause
	b.http1, b.declared = r.ProtoMajor == 1, r.ContentLength
	b.cond.L = &b.mu
	b.wait = bodywait.Start(false)
}

// newClientBody returns the body of r, or nil if r has none. The caller must call release.
func newClientBody(ctx context.Context, w http.ResponseWriter, r *http.Request, pause time.Duration) *clientBody {
	if !hasContent(r) {
		return nil
	}
	b := new(clientBody)
	b.init(w, r, pause)
	b.watch(ctx)
	return b
}

// watch ends reading when ctx ends.
func (b *clientBody) watch(ctx context.Context) {
	b.ctx = ctx
	if ctx.Done() == nil {
		return
	}
	unwatch := context.AfterFunc(ctx, b.expire)
	b.mu.Lock()
	b.limits.unwatch = unwatch
	b.mu.Unlock()
}

func (b *clientBody) Read(p []byte) (int, error) {
	if err := b.begin(); err != nil {
		return 0, err
	}
	n, err := b.src.Read(p)
	return n, b.end(n, err)
}

// Close closes the client's body. It may wait for the rest of the body.
func (b *clientBody) Close() error { return b.src.Close() }

// begin begins a read, unless reading has ended.
func (b *clientBody) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reason != nil {
		return b.reason
	}
	b.wait.BeginRead()
	if b.pause > 0 && !b.limits.armed && !b.wait.Complete() {
		b.limits.armed = true
		if b.limits.timer == nil {
			b.limits.timer = time.AfterFunc(b.pause, b.paused)
		} else {
			b.limits.timer.Reset(b.pause)
		}
	}
	return nil
}

// end ends a read and returns its error.
func (b *clientBody) end(n int, err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read += int64(n)
	b.eof = b.eof || err == io.EOF
	b.wait.EndRead(b.eof || b.declared >= 0 && b.read >= b.declared)
	if b.eof && b.limits.timer != nil {
		b.limits.timer.Stop()
	}
	if b.reason == nil {
		b.reason = slowRead(err)
	}
	b.cond.Broadcast()
	if b.reason != nil && !(b.eof && !b.limits.interrupted) {
		return b.reason
	}
	return err
}

// paused is called by the timer. A read does not reset the timer, so the timer may fire before the pause is
// long enough.
func (b *clientBody) paused() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits.armed = false
	if !b.wait.Reading() || b.wait.Complete() || b.pause <= 0 || b.reason != nil {
		return
	}
	if rest := b.pause - time.Since(b.wait.Since()); rest > 0 {
		b.limits.armed = true
		b.limits.timer.Reset(rest)
		return
	}
	b.interrupt(slowClient(errors.New("it paused for longer than BodyTimeout")))
}

// expire ends reading because the context has ended. Later calls have no effect.
func (b *clientBody) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch err := b.ctx.Err(); {
	case b.limits.released || err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		if b.wait.ClientIsLate() {
			err = slowClient(errors.New("the request's time ran out"))
		}
		b.interrupt(err)
	case b.http1 && b.wait.Reading():
		// The server cancels the context when a read fails. In that case the read is about to return. If it
		// does not return within cancelGrace, other code has canceled the context.
		time.AfterFunc(cancelGrace, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.interrupt(err)
		})
	default:
		b.interrupt(err)
	}
}

// interrupt ends reading for a reason. The deadline that it sets interrupts a read in progress. On an
// HTTP/1.1 connection, it also keeps the server from waiting for the rest of the body before the answer is
// sent. The caller holds b.mu.
func (b *clientBody) interrupt(reason error) {
	if b.reason != nil || b.limits.released {
		return
	}
	b.reason = reason
	if b.onStop != nil {
		b.onStop.release()
	}
	if b.eof { // the server now reads the connection itself, to notice when the client leaves
		return
	}
	b.limits.interrupted = http.NewResponseController(b.w).SetReadDeadline(past) == nil
	b.limits.uninterruptible = !b.limits.interrupted
	b.cond.Broadcast()
}

// awaitInterrupted waits for the end of a read that is being interrupted, and returns the reason if the
// client was slow. It is called when the request has failed.
func (b *clientBody) awaitInterrupted() error {
	if b.ctx != nil && b.ctx.Err() != nil {
		b.expire()
		b.mu.Lock()
		for b.wait.Reading() && !b.limits.uninterruptible {
			b.cond.Wait()
		}
		b.mu.Unlock()
	}
	return b.slow()
}

// slow returns the reason why reading was ended, if the client was too slow, and nil otherwise.
func (b *clientBody) slow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(b.reason, errSlowClient) {
		return b.reason
	}
	return nil
}

// refuseSlow answers 408 if the client was too slow, and reports whether it did. b is nil for a request
// without a body.
func (b *clientBody) refuseSlow(w *responseWriter, r *http.Request) bool {
	if b == nil {
		return false
	}
	err := b.awaitInterrupted()
	if err == nil {
		return false
	}
	b.answerNow()
	refuse(w, r, err)
	return true
}

// unlimited removes the limit of the client's pauses.
func (b *clientBody) unlimited() {
	b.mu.Lock()
	b.pause = 0
	b.mu.Unlock()
}

// unread reports whether a part of the body is still to be read from an HTTP/1.1 connection, before the next
// request.
func (b *clientBody) unread() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.http1 && !b.eof
}

// reading reports whether a read is in progress.
func (b *clientBody) reading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.Reading()
}

// waited returns how long reads have waited for the client.
func (b *clientBody) waited() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.ClientTime()
}

// stopped reports whether the read deadline was set to end reading.
func (b *clientBody) stopped() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limits.interrupted
}

// limitRest limits the time in which the server reads the rest of the body before it sends an answer. It does
// nothing if the server has a ReadTimeout. The server clears the deadline when it has read the rest.
func (b *clientBody) limitRest() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if srv, ok := b.ctx.Value(http.ServerContextKey).(*http.Server); ok && srv.ReadTimeout > 0 {
		return
	}
	if b.http1 && !b.eof && !b.limits.interrupted {
		_ = http.NewResponseController(b.w).SetReadDeadline(time.Now().Add(lingerTime))
	}
}

// answerNow permits the answer to begin before the body has been read. Otherwise the server would first read
// the body to its end. The connection is closed after the answer: the rest of the body comes before the next
// request on it, and net/http cannot always tell the two apart (golang/go#68560).
func (b *clientBody) answerNow() {
	if b.unread() && http.NewResponseController(b.w).EnableFullDuplex() == nil {
		b.w.Header()["Connection"] = []string{"close"}
	}
}

// abort makes reads fail from now on, so that the server closes the connection at once.
func (b *clientBody) abort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.interrupt(errBodyClosed)
	b.limits.released = true
}

// release ends reading when the handler returns. On an HTTP/1.1 connection it interrupts a read that is in
// progress. The server would do that as well, but it would wait forever if the read ends at the same moment.
func (b *clientBody) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limits.timer != nil {
		b.limits.timer.Stop()
	}
	if b.limits.unwatch != nil {
		b.limits.unwatch()
	}
	if b.http1 && b.wait.Reading() {
		b.interrupt(errBodyClosed)
		for b.wait.Reading() && !b.limits.uninterruptible {
			b.cond.Wait()
		}
		if b.limits.interrupted && !b.limits.released {
			_ = http.NewResponseController(b.w).SetReadDeadline(time.Now().Add(lingerTime))
		}
	}
	if b.reason == nil {
		b.reason = errBodyClosed
	}
	b.limits.released = true
}
