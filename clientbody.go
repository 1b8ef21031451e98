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

// clientBody is the body of a client's request, whose reads can be ended from outside. It ends them when the
// request's time is over, and when the client pauses for too long. A read that is under way is interrupted by
// the read deadline of the client's connection.
//
// Once it has set that deadline on an HTTP/1.1 connection, the connection is not used for another request. So
// the server's own deadlines never need to be restored.
type clientBody struct {
	src      io.ReadCloser
	w        http.ResponseWriter // of the request; its controller sets the deadline
	ctx      context.Context     // nil until watch
	http1    bool
	declared int64         // Content-Length; negative when it is not known
	pause    time.Duration // longest read; none unless positive. Guarded by mu.

	onStop *expectation // keeps readers waiting until reading has ended; nil: none

	mu     sync.Mutex
	cond   sync.Cond // signals the end of a read
	wait   bodywait.Clock
	limits readLimits
	bodyProgress
}

// bodyProgress is how far a body was read.
type bodyProgress struct {
	read   int64
	eof    bool
	reason error // why reading has ended, if src did not end it
}

// readLimits are what can end a read.
type readLimits struct {
	timer           *time.Timer // for pause; nil before the first read
	armed           bool        // timer runs
	unwatch         func() bool // stops watching the context
	interrupted     bool        // the read deadline was set
	uninterruptible bool        // it could not be set
	released        bool        // the handler returns: the connection must be left alone
}

// errBodyClosed is what a read of a body returns that is not to be read any more.
var errBodyClosed = errors.New("gateway: read of a request body after it was closed")

// past is a deadline that interrupts a read at once.
var past = time.Unix(1, 0)

const (
	// defaultBodyTimeout is the longest pause within a request's body.
	defaultBodyTimeout = time.Minute

	// cancelGrace is how long a read may go on after its context was canceled. A read whose connection has
	// failed returns by itself within this time, with a more specific error than the context's.
	cancelGrace = 20 * time.Millisecond

	// lingerTime is how long the server may take to read the rest of a body after the answer, so that the
	// client sees the answer and not a reset connection.
	lingerTime = 500 * time.Millisecond
)

// init prepares b for the body of r, whose answer is written to w.
func (b *clientBody) init(w http.ResponseWriter, r *http.Request, pause time.Duration) {
	b.src, b.w, b.pause = r.Body, w, pause
	b.http1, b.declared = r.ProtoMajor == 1, r.ContentLength
	b.cond.L = &b.mu
	b.wait = bodywait.Start(false)
}

// newClientBody returns the body of r, which is watched until release. It returns nil when r has none.
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

// Close closes the client's body, which may wait for the rest of it.
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

// paused is called by the timer. The timer is not reset by each read, so it may come early.
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
		// The server cancels the context when a read fails, and that read is about to return. Otherwise,
		// other code has canceled the context.
		time.AfterFunc(cancelGrace, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.interrupt(err)
		})
	default:
		b.interrupt(err)
	}
}

// interrupt ends reading for a reason. It interrupts a read that is under way, and, on an HTTP/1.1
// connection, keeps the server from waiting for the rest of the body before it answers. The caller holds
// b.mu.
func (b *clientBody) interrupt(reason error) {
	if b.reason != nil || b.limits.released {
		return
	}
	b.reason = reason
	if b.onStop != nil {
		b.onStop.release()
	}
	if b.eof { // the server already reads on, to notice a client that leaves
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

// slow returns the reason for which reading has ended if the client was slow, and nil otherwise.
func (b *clientBody) slow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(b.reason, errSlowClient) {
		return b.reason
	}
	return nil
}

// refuseSlow answers 408 if the client was slow, and reports whether it did. b is nil for a request without a
// body.
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

// unlimited lets the client pause: its answer has begun.
func (b *clientBody) unlimited() {
	b.mu.Lock()
	b.pause = 0
	b.mu.Unlock()
}

// unread reports whether a part of the body is left on an HTTP/1.1 connection, in front of the next request.
func (b *clientBody) unread() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.http1 && !b.eof
}

// reading reports whether a read is under way.
func (b *clientBody) reading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.Reading()
}

// waited returns how long the client has been waited for.
func (b *clientBody) waited() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait.ClientTime()
}

// stopped reports whether reading was ended from outside.
func (b *clientBody) stopped() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limits.interrupted
}

// limitRest bounds the time in which the server reads the rest of the body before it sends an answer. A
// deadline of the server's own is left as it is. The server clears the deadline when it has read the rest.
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

// answerNow lets the answer begin before the body has ended. Without it, the server would first read the body
// to its end. The rest of the body is then sent in front of the next request, and net/http cannot always tell
// the two apart (golang/go#68560), so the connection is closed after the answer.
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

// release ends reading when the handler returns. On an HTTP/1.1 connection it interrupts a read that is under
// way. The server would do that as well, but it waits forever if the read ends at the same moment.
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
