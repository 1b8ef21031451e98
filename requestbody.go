package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// requestBody is what the transport reads: at most limit bytes of the client's body, and nothing once the
// handler has returned. Closing it does not close the client's: that would wait for bytes that a client
// which was told 100-continue has not sent.
type requestBody struct {
	from    *http.Request
	limit   int64       // negative: none
	trailer http.Header // of the outgoing request; takes its values at the end
	ended   atomic.Bool // read to its end
	failed  atomic.Pointer[error]
	aborted bool // no read of the connection succeeds any more

	// Which trailers are the gateway's to write.
	owned       *ownedFields
	traceHeader string

	mu     sync.Mutex // held while reading
	read   int64
	closed atomic.Bool

	*expectation // of a client that waits for 100-continue; nil for others
}

var errBodyClosed = errors.New("gateway: read of a request body after its end")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.expectation != nil && b.hold() {
		return 0, nil // it may be another attempt's turn to read
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	if b.limit >= 0 && int64(len(p)) > b.limit-b.read+1 {
		p = p[:b.limit-b.read+1] // one more shows that there is more
	}
	n, err := b.from.Body.Read(p)
	b.read += int64(n)
	if b.limit >= 0 && b.read > b.limit {
		n -= int(b.read - b.limit)
		b.read = b.limit
		return n, b.fail(fmt.Errorf("%w: more than %d bytes", ErrBodyTooLarge, b.limit))
	}
	switch {
	case err == io.EOF:
		b.ended.Store(true)
		b.fillTrailer()
	case err != nil && !b.closed.Load():
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return n, b.fail(fmt.Errorf("%w: %w", ErrBodyTooLarge, err))
		}
		return n, b.fail(&Error{Status: http.StatusBadRequest, Err: fmt.Errorf("body of the request: %w", err)})
	}
	return n, err
}

// fillTrailer gives the outgoing request the trailers that came with the end of the body, those too that
// nobody announced.
func (b *requestBody) fillTrailer() {
	if b.trailer == nil {
		return
	}
	for name, values := range b.from.Trailer {
		if len(values) > 0 && httpfield.IsToken(name) && b.owned.allowTrailer(name, b.traceHeader) {
			b.trailer[name] = values
		}
	}
}

func (b *requestBody) fail(err error) error {
	b.failed.CompareAndSwap(nil, &err)
	return err
}

// cause is why the body could not be read, nil if it could.
func (b *requestBody) cause() error {
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Close is called by the transport when it needs no more.
func (b *requestBody) Close() error {
	b.closed.Store(true)
	if b.expectation != nil {
		b.release()
	}
	return nil
}

// unread reports whether a part of the body is left that stands in the way of the next request.
func (b *requestBody) unread() bool { return b.from.ProtoMajor == 1 && !b.ended.Load() }

// goOn lets the answer begin although the body has not ended: without it the server would swallow the body
// first. What is left of the body comes before the next request then, and net/http cannot always tell them
// apart (golang/go#68560), so there is no next one on the connection.
func (b *requestBody) goOn(rw *responseWriter) {
	if http.NewResponseController(rw).EnableFullDuplex() == nil {
		rw.Header()["Connection"] = []string{"close"}
	}
}

// quit ends reading, and reports whether nobody is reading any more. The server deals with the rest as it
// does with any body that a handler leaves: it reads what is short, and the connection goes on.
func (b *requestBody) quit() bool {
	b.Close()
	if !b.mu.TryLock() {
		return false
	}
	b.mu.Unlock()
	return true
}

// finish is called by the handler at its end: nothing is read after it. A read that is under way is ended;
// the server would do that too, but waits for ever where the read comes to its end in the same moment.
func (b *requestBody) finish(rw *responseWriter) {
	if b.quit() || !b.unread() {
		return
	}
	control := http.NewResponseController(rw)
	if control.SetReadDeadline(past) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.aborted {
		_ = control.SetReadDeadline(time.Time{})
	}
}

// past is a deadline that ends a read.
var past = time.Unix(1, 0)

// expectation is what is known of whether the target wants the body. A transport whose target answers without
// asking for it reads it all the same, to keep the connection, and so would ask the client for it.
type expectation struct {
	lock     sync.Mutex
	answered bool          // the target of this attempt has, and not with 1xx
	wanted   bool          // it sent 100
	over     bool          // nobody reads any more
	changed  chan struct{} // closed at the next change
}

// hold waits while the target has answered and does not want the body, and reports whether it had to.
func (e *expectation) hold() bool {
	e.lock.Lock()
	changed, held := e.changed, e.answered && !e.wanted && !e.over
	e.lock.Unlock()
	if held {
		<-changed
	}
	return held
}

// change makes whoever waits look again. The caller holds e.lock.
func (e *expectation) change() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// begin says that an attempt begins.
func (e *expectation) begin(httptrace.GotConnInfo) {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.answered, e.wanted = false, false
	e.change()
}

// firstByte says that an answer begins, of whatever kind.
func (e *expectation) firstByte() {
	e.lock.Lock()
	e.answered = true
	e.lock.Unlock()
}

// informed says that the answer that began was a 1xx.
func (e *expectation) informed(code int) {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.answered, e.wanted = false, e.wanted || code == http.StatusContinue
	e.change()
}

func (e *expectation) release() {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.over = true
	e.change()
}
