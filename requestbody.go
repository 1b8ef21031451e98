package gateway

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/seed-96248d0c/gateway/internal/chunkbuf"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// requestBody is the body of the outgoing request. The transport can read at most limit bytes of the client's
// body, and nothing after the handler has returned.
type requestBody struct {
	client  clientBody
	from    *http.Request
	limit   int64       // negative for none
	trailer http.Header // of the outgoing request; its values are set at the end of the body
	failed  atomic.Pointer[error]

	// For fillTrailer: the trailers that only the gateway may write.
	owned     *ownedFields
	ownedHere ownedHere

	mu     sync.Mutex // held while reading
	read   int64
	closed atomic.Bool
	readAhead

	*expectation // nil unless the client expects 100-continue
}

// readAhead holds the whole body, from readWhole until take.
type readAhead struct {
	whole chunkbuf.Buffer
	at    int // position in whole
}

// awaitWanted waits until the target has asked for the body, and reports whether it waited. Meanwhile another
// attempt may have begun to read.
func (b *requestBody) awaitWanted() bool { return b.expectation != nil && b.hold() }

// wakeReader makes a read that waits in awaitWanted return, because its attempt has timed out.
func (b *requestBody) wakeReader() {
	if b.expectation != nil {
		b.expectation.wake()
	}
}

// awaitInterrupted calls clientBody.awaitInterrupted.
func (b *requestBody) awaitInterrupted() error { return b.client.awaitInterrupted() }

func (b *requestBody) Read(p []byte) (int, error) {
	if b.awaitWanted() {
		return 0, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	if b.at < b.whole.Len() {
		n := b.whole.CopyAt(p, b.at)
		b.at += n
		return n, nil
	}
	return b.readClient(p)
}

// readClient reads from the client. The caller holds b.mu.
func (b *requestBody) readClient(p []byte) (int, error) {
	if b.limit >= 0 && int64(len(p))-1 > b.limit-b.read {
		p = p[:b.limit-b.read+1] // a byte above the limit shows that the body is too large
	}
	n, err := b.client.Read(p)
	b.read += int64(n)
	if b.limit >= 0 && b.read > b.limit {
		n -= int(b.read - b.limit)
		b.read = b.limit
		return n, b.fail(fmt.Errorf("%w: more than %d bytes", ErrBodyTooLarge, b.limit))
	}
	switch {
	case err == io.EOF:
		b.fillTrailer()
	case err != nil && !b.closed.Load():
		return n, b.fail(requestBodyError(err))
	}
	return n, err
}

// wholeBytes is the largest length of a body that is read completely before the target is asked.
const wholeBytes = 16 << 10

// readWhole reads a small body of known length to its end before the request is sent. So the body is sent in
// one write with the header, a slow client does not keep the target waiting, and the request can be sent
// again.
func (b *requestBody) readWhole() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		n, err := b.readClient(b.whole.Space())
		b.whole.Grow(n)
		switch {
		case err == io.EOF || int64(b.whole.Len()) > b.from.ContentLength: // the latter is for the transport to refuse
			return nil
		case err != nil:
			return err
		}
	}
}

// take hands the body over that readWhole has read, if it did and the length is right.
func (b *requestBody) take(to *chunkbuf.Buffer) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole.Len() == 0 || int64(b.whole.Len()) != b.from.ContentLength || b.at > 0 || b.closed.Load() {
		return false
	}
	b.whole.MoveTo(to)
	return true
}

// fillTrailer sets the trailers of the outgoing request, even those that were not announced. They have
// arrived with the end of the body.
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

// fail records err, the error of a read of the body, unless the request had ended before. It returns err.
func (b *requestBody) fail(err error) error {
	if !isOver(err) {
		b.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// cause returns the error of a read of the body, or nil if there was none.
func (b *requestBody) cause() error {
	if slow := b.client.slow(); slow != nil {
		return slow
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends reading. The transport calls it when it needs no more of the body. Close does not close the
// client's body, which would wait for bytes that a client that expects 100-continue has not sent.
func (b *requestBody) Close() error {
	b.closed.Store(true)
	if b.expectation != nil {
		b.release()
	}
	return nil
}

// prepareRefusal is called before a failed request is answered. If no read is in progress, the server may
// read the rest of the body, as for any handler that does not read it, and keep the connection.
func (b *requestBody) prepareRefusal() {
	b.Close()
	switch {
	case !b.client.unread():
	case b.client.reading() || b.client.stopped():
		b.client.answerNow()
	default:
		b.client.limitRest()
	}
}

// finish ends reading when the handler returns.
func (b *requestBody) finish() {
	b.Close()
	b.client.release()
	if b.mu.TryLock() { // fails if a read still waits for the client
		b.whole.Free()
		b.mu.Unlock()
	}
}
