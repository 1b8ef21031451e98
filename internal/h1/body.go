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
	spliceFrom = 32 << 10 // a body with at least so much left is left to the kernel where it can be
	copySize   = 32 << 10
)

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// Body is what a response's body has besides io.ReadCloser, where it is neither empty nor that of an upgrade.
//
// WriteTo copies the rest of the body without a buffer of the caller's, and where it is long and of known
// length hands the TCP connection to the ReadFrom of the writer, in an io.LimitedReader: the response writer
// of net/http and a TCP connection then splice in the kernel. An error of the writer is a *WriteError, all
// others are those of the body. The body is still to be closed.
//
// Splice is WriteTo for that alone: done is false, and nothing has happened, unless the rest of the body is of known
// length and long, comes over bare TCP, and none of it has been read into the buffer. The error is nil when the
// body is complete.
//
// One goroutine at a time may read. Close may be called at any time, and ends a Read or WriteTo that is
// blocked.
type Body interface {
	io.ReadCloser
	io.WriterTo
	Splice(w io.ReaderFrom) (n int64, done bool, err error)
}

// WriteError is an error of the writer that WriteTo copies to.
type WriteError struct{ Err error }

func (e *WriteError) Error() string { return e.Err.Error() }
func (e *WriteError) Unwrap() error { return e.Err }

// States of a body.
const (
	bodyIdle    int32 = iota
	bodyBusy          // Read or WriteTo is in progress
	bodyClosing       // and Close has been called meanwhile
	bodyClosed
)

// errClosedWhileReading is the error of a Read that Close has ended.
var errClosedWhileReading = errors.New("h1: body closed while it is read")

// body is the body of a response. The connection is given back when the end has been read, or by Close.
type body struct {
	res      *response
	conn     *conn
	left     int64 // bytes of the body, or of the chunk
	phase    uint8 // of a chunked body
	overhead int   // of chunked framing
	err      error // what Read returns from now on, io.EOF at the end
	limited  io.LimitedReader

	state    atomic.Int32
	mu       sync.Mutex // guards live
	ownsConn bool       // conn is this body's
}

func (b *body) beginRead() error {
	if b.state.CompareAndSwap(bodyIdle, bodyBusy) {
		return nil
	}
	if b.state.Load() == bodyBusy {
		return errors.New("h1: two reads of a body at once")
	}
	return http.ErrBodyReadAfterClose
}

func (b *body) endRead() {
	if !b.state.CompareAndSwap(bodyBusy, bodyIdle) {
		b.state.Store(bodyClosed)
		b.finish(false)
	}
}

// finish gives the connection back, once.
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

// Close ends the body. If the rest of it is here already, the connection can be used again.
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
			b.finish(false) // unless the end has been reached
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

// drain reads what is buffered. The connection is given back afterwards in any case.
func (b *body) drain() {
	if b.res.framing == closeDelimited {
		return
	}
	b.conn.bufferedOnly = true
	for b.skip() == nil {
	}
}

// fail ends the body with an error, or with io.EOF where it is whole. errNoFill ends nothing.
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

// unexpected is the error for the end of the connection where more must come.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// available brings the body to its next bytes, and returns how many there are at least, before the end or
// before more framing. At the end of the body it returns io.EOF.
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

// consumed is called after n bytes were consumed, or an error was met.
func (b *body) consumed(n int, err error) error {
	if n > 0 {
		err = nil // it comes again
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
	// The end of the body may be here already. Then it is found now, so that the connection is free sooner.
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

// Buffered returns how many bytes of a body of known length Read returns without waiting. For other bodies it
// returns -1.
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

// Read reads body bytes. It returns io.EOF together with the last of them where that is known.
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

// skip consumes what is buffered of the body, up to the next framing.
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

// WriteTo copies what is left of the body to w.
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
			// From the buffer, and the bytes are taken only afterwards: at the end of the body the buffer is
			// lost.
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

// copyError is what WriteTo returns for an error of the writer, or else of the body.
func copyError(werr, err error) error {
	if werr != nil {
		return werr
	}
	if err == io.EOF {
		return nil
	}
	return err
}

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

// Splice hands what is left of the body to the kernel, where that can be.
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

// splice gives the rest of a body of known length to w.ReadFrom, if it comes over bare TCP. Nothing is
// buffered.
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
		b.err = &WriteError{err} // bytes may be lost between the two connections
		b.finish(false)
		return n, true, b.err
	}
}
