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

// requestBody is the body that the transport reads: at most limit bytes of the client's body, and nothing
// once the handler has returned.
type requestBody struct {
	client  clientBody
	from    *http.Request
	limit   int64       // negative: none
	trailer http.Header // of the outgoing request; its values are set at the end of the body
	failed  atomic.Pointer[error]

	// For fillTrailer: the trailers that only the gateway may write.
	owned     *ownedFields
	ownedHere ownedHere

	mu     sync.Mutex // held while reading
	read   int64
	closed atomic.Bool
	whole  chunkbuf.Buffer // the whole body, when readWhole has read it and nobody has taken it
	at     int             // position in whole

	*expectation // nil unless the client expects 100-continue
}

// awaitWanted waits until the body is wanted, and reports whether it waited. Meanwhile another attempt may
// have begun to read.
func (b *requestBody) awaitWanted() bool { return b.expectation != nil && b.hold() }

// wakeReader makes a reader that waits in awaitWanted return: its attempt has timed out.
func (b *requestBody) wakeReader() {
	if b.expectation != nil {
		b.expectation.wake()
	}
}

// awaitInterrupted is that of the client's body.
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
		p = p[:b.limit-b.read+1] // one more shows that there is more
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

// wholeBytes is up to which length a body is read before the target is asked.
const wholeBytes = 16 << 10

// readWhole reads a small body of known length to its end before the request is sent. So the body leaves in one
// write with the header, the target is not kept waiting by a slow client, and the request can be sent again.
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

// fail records why the body could not be read, unless the request had ended before.
func (b *requestBody) fail(err error) error {
	if !isOver(err) {
		b.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// cause returns why the body could not be read, and nil if it could.
func (b *requestBody) cause() error {
	if slow := b.client.slow(); slow != nil {
		return slow
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends reading. The transport calls it when it needs no more of the body. It does not close the
// client's body: that would wait for bytes which a client that expects 100-continue has not sent.
func (b *requestBody) Close() error {
	b.closed.Store(true)
	if b.expectation != nil {
		b.release()
	}
	return nil
}

// prepareRefusal is called before an answer to a request that failed. If no read is under way, the server
// treats the rest of the body like any that a handler leaves unread: it reads a short one, and keeps the
// connection.
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
	if b.mu.TryLock() { // a read of a body that is not here may still be waiting
		b.whole.Free()
		b.mu.Unlock()
	}
}
