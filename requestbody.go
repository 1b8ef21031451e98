package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
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
	own         *ownFields
	traceHeader string

	mu     sync.Mutex // held while reading
	read   int64
	closed atomic.Bool

	// For a client that waits for 100-continue: where the target answered without asking for the body, the
	// transport reads it all the same, to keep the connection, and so would ask for it.
	released chan struct{} // closed when nobody waits any more; nil: the client does not wait
	answered atomic.Bool   // the target has, and not with 1xx
	wanted   atomic.Bool   // the target sent 100
}

var errBodyClosed = errors.New("gateway: read of a request body after its end")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.released != nil && b.answered.Load() && !b.wanted.Load() {
		<-b.released
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
		if len(values) > 0 && validToken(name) && !neverTrailer(name) && !b.own.owns(name) && !isTraceField(name, b.traceHeader) {
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
	if !b.closed.Swap(true) && b.released != nil {
		close(b.released)
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
