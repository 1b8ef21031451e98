package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

const (
	spliceFrom = 32 << 10 // the smallest rest of a body, in bytes, that is copied in the kernel
	copySize   = 32 << 10 // of the buffers of WriteTo
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// Body is the body of a response that is neither empty nor an upgraded connection.
//
// Only one goroutine may read at a time. Close may be called at any time, and ends a Read, WriteTo or Splice
// that is blocked.
type Body interface {
	io.ReadCloser

	// WriteTo copies the rest of the body to w. It uses Splice if w has a ReadFrom method. An error of w is
	// returned as a *WriteError. Every other error is one of the body. WriteTo does not close the body.
	io.WriterTo

	// Splice copies the rest of the body in the kernel: it passes the TCP connection to w.ReadFrom in an
	// io.LimitedReader. The response writers of net/http and TCP connections then use splice(2).
	//
	// Splice needs a body of known length on TCP without TLS, with at least 32 KiB left and nothing in the
	// read buffer. Otherwise it does nothing and returns done == false. If done is true, err is nil if the
	// body is complete, and otherwise as for WriteTo.
	Splice(w io.ReaderFrom) (n int64, done bool, err error)
}

// WriteError is an error of the writer to which WriteTo or Splice copies.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return e.Err.Error() }
func (e *WriteError) Unwrap() error { return e.Err }

// States of a body.
const (
	bodyIdle    int32 = iota
	bodyBusy          // Read, WriteTo or Splice is in progress
	bodyClosing       // Close was called while busy
	bodyClosed
)

// errClosedWhileReading is the error of a Read during which Close is called.
var errClosedWhileReading = errors.New("h1: body closed while it is read")

// body implements Body. It finishes the exchange on its connection when the end of the body has been read,
// when reading fails, or on Close.
type body struct {
	res      *response
	conn     *conn
	left     int64 // bytes to come: of a body of known length, or of the current chunk
	phase    uint8 // of a chunked body: chunkSize, chunkData, ...
	overhead int   // bytes of chunked framing above the allowance; see advance
	err      error // returned by all further reads; io.EOF at the end of the body
	limited  io.LimitedReader

	state    atomic.Int32
	mu       sync.Mutex // guards ownsConn
	ownsConn bool       // the exchange on conn has not been finished
}

// beginRead makes the body busy, or returns why it cannot be read.
func (b *body) beginRead() error {
	if b.state.CompareAndSwap(bodyIdle, bodyBusy) {
		return nil
	}
	if b.state.Load() == bodyBusy {
		return errors.New("h1: two reads of a body at once")
	}
	return http.ErrBodyReadAfterClose
}

// endRead ends what beginRead began. It closes the body if Close was called in between.
func (b *body) endRead() {
	if !b.state.CompareAndSwap(bodyBusy, bodyIdle) {
		b.state.Store(bodyClosed)
		b.finish(false)
	}
}

// finish finishes the exchange on the connection, once.
func (b *body) finish(clean bool) {
	b.mu.Lock()
	live := b.ownsConn
	b.ownsConn = false
	b.mu.Unlock()
	if live {
		c := b.conn
		b.conn = nil
		c.finish(clean)
	}
}

// Close closes the body. The connection can be reused if the rest of the body has already been received.
func (b *body) Close() error {
	for {
		switch state := b.state.Load(); state {
		case bodyIdle:
			if !b.state.CompareAndSwap(bodyIdle, bodyClosed) {
				continue
			}
			if b.err == nil {
				b.drain()
			}
			b.finish(false) // does nothing if the end has been read
			return nil
		case bodyBusy:
			if !b.state.CompareAndSwap(bodyBusy, bodyClosing) {
				continue
			}
			b.mu.Lock()
			if b.ownsConn {
				b.conn.wire.fail(errClosedWhileReading)
			}
			b.mu.Unlock()
			return nil
		default:
			return nil
		}
	}
}

// drain consumes the buffered part of the body. The caller finishes the exchange afterwards.
func (b *body) drain() {
	if b.res.framing == closeDelimited {
		return
	}
	b.conn.bufferedOnly = true
	for b.skip() == nil {
	}
}

// fail ends the body with err and returns the error for the reader: if the context or a time limit caused
// err, it is that. io.EOF means that the body is complete. errNotBuffered does not end the body.
func (b *body) fail(err error) error {
	switch err {
	case errNotBuffered:
		return err
	case io.EOF:
		b.err = err
		b.finish(true)
		return err
	}
	w := b.conn.wire
	if failure := w.failureErr(); failure != nil {
		err = failure
	} else if ctx := w.ctx; ctx != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	b.err = err
	b.finish(false)
	return err
}

// unexpected converts io.EOF to io.ErrUnexpectedEOF, where the connection must not end.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// available consumes chunked framing up to the next bytes of the body. It returns how many of them follow
// without more framing: the rest of the chunk or of the body, or a huge number if the body ends with the
// connection. At the end of the body it returns io.EOF.
func (b *body) available() (int64, error) {
	if b.err != nil {
		return 0, b.err
	}
	switch b.res.framing {
	case lengthDelimited:
		if b.left == 0 {
			return 0, b.fail(io.EOF)
		}
		return b.left, nil
	case closeDelimited:
		return 1 << 62, nil
	}
	for b.phase != chunkData {
		if err := b.advance(); err != nil {
			return 0, b.fail(err)
		}
	}
	return b.left, nil
}

// consumed records that n bytes of the body were read with the error err. It returns the error for the
// reader: io.EOF if these were the last bytes.
func (b *body) consumed(n int, err error) error {
	if n > 0 {
		err = nil // the next read returns the error again
	}
	if err != nil {
		if b.res.framing == closeDelimited {
			if err == io.EOF && !b.conn.endOfStream() {
				err = io.ErrUnexpectedEOF
			}
			return b.fail(err)
		}
		return b.fail(unexpected(err))
	}
	if b.res.framing == closeDelimited {
		return nil
	}
	if b.left -= int64(n); b.left > 0 {
		return nil
	}
	if b.res.framing == lengthDelimited {
		return b.fail(io.EOF)
	}
	// If the last chunk has already been received, find it now: the connection becomes idle sooner.
	b.phase = chunkEnd
	bufferedOnly := b.conn.bufferedOnly
	b.conn.bufferedOnly = true
	for b.phase != chunkData {
		if err := b.advance(); err == errNotBuffered {
			break
		} else if err != nil {
			return b.fail(err)
		}
	}
	b.conn.bufferedOnly = bufferedOnly
	return nil
}

// Buffered returns how many bytes of a body of known length are in the read buffer, so that Read returns them
// without blocking. For other bodies, and at the end, it returns -1.
func (b *body) Buffered() int {
	if b.res.framing != lengthDelimited || b.beginRead() != nil {
		return -1
	}
	defer b.endRead()
	if b.err != nil {
		return -1
	}
	return int(min(int64(len(b.conn.buffered())), b.left))
}

// Read reads from the body. It returns io.EOF together with the last bytes if it knows that they are the
// last.
func (b *body) Read(p []byte) (int, error) {
	if err := b.beginRead(); err != nil {
		return 0, err
	}
	defer b.endRead()
	if len(p) == 0 {
		return 0, nil
	}
	left, err := b.available()
	if err != nil {
		return 0, err
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.conn.read(p)
	return n, b.consumed(n, err)
}

// skip consumes the buffered bytes of the body, up to the next chunk's framing.
func (b *body) skip() error {
	left, err := b.available()
	if err != nil {
		return err
	}
	n := len(b.conn.buffered())
	if n == 0 {
		return errNotBuffered
	}
	if int64(n) > left {
		n = int(left)
	}
	b.conn.r += n
	return b.consumed(n, nil)
}

// WriteTo copies the rest of the body to w.
func (b *body) WriteTo(w io.Writer) (total int64, err error) {
	if err := b.beginRead(); err != nil {
		return 0, err
	}
	defer b.endRead()
	var pooled *[copySize]byte
	defer func() {
		if pooled != nil {
			copyBuffers.Put(pooled)
		}
	}()
	for {
		left, err := b.available()
		if err != nil {
			return total, copyError(nil, err)
		}
		if have := b.conn.buffered(); len(have) > 0 {
			// Write before the bytes are consumed: at the end of the body, consumed releases the buffer.
			n := len(have)
			if int64(n) > left {
				n = int(left)
			}
			written, werr := write(w, have[:n])
			total += int64(written)
			b.conn.r += n
			if err := b.consumed(n, nil); werr != nil || err != nil {
				return total, copyError(werr, err)
			}
			continue
		}
		if left >= spliceFrom && b.res.framing == lengthDelimited {
			if rf, ok := w.(io.ReaderFrom); ok {
				if n, done, err := b.splice(rf); done {
					return total + n, err
				}
			}
		}
		if left < bufferSize || b.res.framing == chunkDelimited {
			if err := b.conn.fill(bufferSize); err != nil {
				return total, copyError(nil, b.consumed(0, err))
			}
			continue
		}
		if pooled == nil {
			pooled = copyBuffers.Get().(*[copySize]byte)
		}
		p := pooled[:]
		if int64(len(p)) > left {
			p = p[:left]
		}
		n, rerr := b.conn.rw.Read(p)
		written, werr := write(w, p[:n])
		total += int64(written)
		if n == 0 && rerr == nil {
			continue
		}
		if err := b.consumed(n, rerr); werr != nil || err != nil {
			return total, copyError(werr, err)
		}
	}
}

// copyError returns the error of WriteTo: that of the writer, or else that of the body unless it is io.EOF.
func copyError(werr, err error) error {
	if werr != nil {
		return werr
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// write writes p to w. It returns an error of w as a *WriteError.
func write(w io.Writer, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return n, &WriteError{err}
	}
	return n, nil
}

// Splice implements Body.
func (b *body) Splice(w io.ReaderFrom) (n int64, done bool, err error) {
	if err := b.beginRead(); err != nil {
		return 0, true, err
	}
	defer b.endRead()
	if b.err != nil || b.res.framing != lengthDelimited || b.left < spliceFrom || len(b.conn.buffered()) > 0 {
		return 0, false, nil
	}
	return b.splice(w)
}

// splice is Splice for a body of known length of which nothing is buffered. It does nothing unless the
// connection is TCP without TLS.
func (b *body) splice(w io.ReaderFrom) (n int64, done bool, err error) {
	c := b.conn
	tcp, ok := c.wire.Conn.(*net.TCPConn)
	if !ok || c.tls != nil {
		return 0, false, nil
	}
	if err := c.wire.watchNow(); err != nil {
		return 0, true, b.fail(err)
	}
	b.limited = io.LimitedReader{R: tcp, N: b.left}
	n, err = w.ReadFrom(&b.limited)
	b.left = b.limited.N
	switch {
	case b.left == 0:
		b.fail(io.EOF)
		if err != nil {
			err = &WriteError{err}
		}
		return n, true, err
	case err == nil:
		return n, true, b.fail(io.ErrUnexpectedEOF)
	case c.wire.failureErr() != nil || c.wire.peerClosed():
		return n, true, b.fail(unexpected(err))
	default:
		// Bytes may have been read from the connection but not written: the body cannot be read on.
		b.err = &WriteError{err}
		b.finish(false)
		return n, true, b.err
	}
}
