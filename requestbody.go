package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// requestBody is the body that the transport reads: at most limit bytes of the client's body, and nothing once
// the handler has returned. Close does not close the client's body: that would wait for bytes which a client
// that expects 100-continue has not sent.
type requestBody struct {
	from    *http.Request
	limit   int64       // negative: none
	trailer http.Header // of the outgoing request; its values are set at the end of the body
	ended   atomic.Bool // from was read to its end
	failed  atomic.Pointer[error]
	aborted bool // reads of the client's connection fail from now on

	// For fillTrailer: the trailers that only the gateway may write.
	owned     *ownedFields
	ownedHere ownedHere

	mu     sync.Mutex // held while reading
	read   int64
	closed atomic.Bool

	*expectation // nil unless the client expects 100-continue
}

var errBodyClosed = errors.New("gateway: read of a request body after it was closed")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.expectation != nil && b.hold() {
		return 0, nil // another attempt may have begun, which reads now
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	if b.limit >= 0 && int64(len(p))-1 > b.limit-b.read {
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

// fillTrailer sets the trailers of the outgoing request, which have arrived with the end of the body.
// Trailers that were not announced are among them.
func (b *requestBody) fillTrailer() {
	if b.trailer == nil {
		return
	}
	for name, values := range b.from.Trailer {
		if len(values) > 0 && httpfield.IsToken(name) && b.owned.allowTrailer(name, b.ownedHere) {
			b.trailer[name] = values
		}
	}
}

func (b *requestBody) fail(err error) error {
	b.failed.CompareAndSwap(nil, &err)
	return err
}

// cause returns why the body could not be read, and nil if it could.
func (b *requestBody) cause() error {
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends reading. The transport calls it when it needs no more of the body.
func (b *requestBody) Close() error {
	b.closed.Store(true)
	if b.expectation != nil {
		b.release()
	}
	return nil
}

// unread reports whether a part of the body is left on the client's connection, in front of the next request.
func (b *requestBody) unread() bool { return b.from.ProtoMajor == 1 && !b.ended.Load() }

// allowEarlyAnswer lets the answer begin before the body has ended. Without it, the server would first read
// the body to its end. The rest of the body is then sent in front of the next request, and net/http cannot
// always tell the two apart (golang/go#68560), so the connection is closed after the answer.
func (b *requestBody) allowEarlyAnswer(rw *responseWriter) {
	if http.NewResponseController(rw).EnableFullDuplex() == nil {
		rw.Header()["Connection"] = []string{"close"}
	}
}

// stop ends reading, and reports whether no read is under way. The server treats the rest of the body like
// any that a handler leaves unread: it reads a short one, and keeps the connection.
func (b *requestBody) stop() bool {
	b.Close()
	if !b.mu.TryLock() {
		return false
	}
	b.mu.Unlock()
	return true
}

// finish ends reading when the handler returns. It interrupts a read that is under way. The server would do
// that, too, but it waits for ever when the read ends in the same moment.
func (b *requestBody) finish(rw *responseWriter) {
	if b.stop() || !b.unread() {
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

// past is a deadline that interrupts a read at once.
var past = time.Unix(1, 0)
