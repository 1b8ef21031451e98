package h1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"sync"
	"time"
)

const (
	bufferSize    = 16 << 10 // of the pooled buffers
	maxKeptBuffer = 64 << 10 // larger ones are left to the garbage collector
)

// buffer is a pooled piece of memory. Whoever holds it releases it once.
type buffer struct{ b []byte }

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, bufferSize)} }}

func getBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) release() {
	if cap(b.b) > maxKeptBuffer {
		return
	}
	b.b = b.b[:cap(b.b)]
	buffers.Put(b)
}

// conn is a connection to a target, through TLS or not. It belongs to one exchange at a time, or is idle.
type conn struct {
	t    *Transport
	host *host
	wire *wire
	rw   net.Conn             // the wire, or TLS over it
	tls  *tls.ConnectionState // nil without TLS

	reused    bool
	idleSince time.Time
	scratch   [1]byte // of alive

	input

	// Of the exchange.
	send    *sender // of its streamed body, or nil
	noReuse bool    // something was seen after which the connection is not used again
}

// input is what has been read and not consumed: buf.b[r:w]. An idle connection has no buffer.
type input struct {
	buf          *buffer
	r, w         int
	bufferedOnly bool // fill returns errNoFill
}

// dial opens a connection. The place among the open connections of the host is the caller's.
func (t *Transport) dial(ctx context.Context, h *host, hooks *Hooks, arg any) (*conn, error) {
	dialCtx := ctx
	if t.opts.DialTimeout > 0 {
		var cancel context.CancelFunc
		dialCtx, cancel = context.WithTimeout(ctx, t.opts.DialTimeout)
		defer cancel()
	}
	nc, err := t.opts.Dial(dialCtx, h.key.network(), h.key.addr)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	c := &conn{t: t, host: h, wire: newWire(nc)}
	c.rw = c.wire
	if h.key.tls {
		if err := c.handshake(ctx, hooks, arg); err != nil {
			nc.Close()
			return nil, err
		}
	}
	return c, nil
}

// handshake puts TLS over the wire.
func (c *conn) handshake(ctx context.Context, hooks *Hooks, arg any) error {
	config := c.t.opts.TLS
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = hostname(c.host.key.addr)
	}
	if d := c.t.opts.TLSHandshakeTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d, errTLSHandshakeTimeout)
		defer cancel()
	}
	if hooks.TLSHandshakeStart != nil {
		hooks.TLSHandshakeStart(arg)
	}
	tc := tls.Client(c.wire, config)
	err := tc.HandshakeContext(ctx)
	if err != nil && ctx.Err() != nil {
		if err = context.Cause(ctx); context.Cause(ctx) == errTLSHandshakeTimeout {
			err = errTLSHandshakeTimeout
		}
	}
	if hooks.TLSHandshakeDone != nil {
		hooks.TLSHandshakeDone(arg, tc.ConnectionState(), err)
	}
	if err != nil {
		return err
	}
	state := tc.ConnectionState()
	c.rw, c.tls = tc, &state
	return nil
}

var errTLSHandshakeTimeout error = &timeoutError{"h1: TLS handshake timeout"}

// otherProtocol returns the protocol that the target chose if it is not HTTP/1.1, and otherwise "".
func (c *conn) otherProtocol() string {
	if c.tls == nil || c.tls.NegotiatedProtocol == "http/1.1" {
		return ""
	}
	return c.tls.NegotiatedProtocol
}

// hostname is the host of host:port, without the brackets of an IPv6 address.
func hostname(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// alive reports whether an idle connection can carry a request: its target has neither closed it nor sent
// anything. A byte that arrives between this check and the request is read as the answer to the request, as
// with any HTTP/1.1 client.
func (c *conn) alive() bool {
	return c.wire.quiet(c.rw, c.scratch[:])
}

// hasFastPath reports whether the wire's take serves for this connection.
func (c *conn) hasFastPath() bool { return c.tls == nil && c.wire.raw != nil }

// close closes an idle connection, over TLS with a farewell.
func (c *conn) close() { c.rw.Close() }

// abort closes the connection at once.
func (c *conn) abort() { c.wire.Conn.Close() }

// readUnsolicited takes what a target has sent on a new connection before it was asked anything. That serves as an
// answer, as a target may say in this way that it is overloaded. But its answer to the request may follow, so
// the connection is not used again.
func (c *conn) readUnsolicited() {
	if !c.hasFastPath() {
		return
	}
	c.buf = getBuffer()
	n, err := c.wire.readIfReady(c.buf.b)
	if n > 0 || err != errWouldBlock {
		c.noReuse = true
	}
	c.w = n
}

// gotConnInfo describes the connection to hooks.
func (c *conn) gotConnInfo() httptrace.GotConnInfo {
	info := httptrace.GotConnInfo{Conn: c.netConn(), Reused: c.reused, WasIdle: c.reused}
	if c.reused {
		info.IdleTime = time.Since(c.idleSince)
	}
	return info
}

// netConn is the connection that Dial has returned, or TLS over it.
func (c *conn) netConn() net.Conn {
	if c.tls != nil {
		return c.rw
	}
	return c.wire.Conn
}

// errNotBuffered is what fill returns where nothing may be waited for.
var errNotBuffered = errors.New("h1: nothing more is buffered")

// buffered is the bytes that were read and not consumed.
func (c *conn) buffered() []byte {
	if c.buf == nil {
		return nil
	}
	return c.buf.b[c.r:c.w]
}

// fill reads more, at most up to limit bytes that are not consumed. It fails with bufio.ErrBufferFull where
// there are as many already.
func (c *conn) fill(limit int) error {
	if c.bufferedOnly {
		return errNotBuffered
	}
	if c.buf == nil {
		c.buf = getBuffer()
		c.r, c.w = 0, 0
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w-c.r >= limit {
		return bufio.ErrBufferFull
	}
	if c.w == len(c.buf.b) {
		if c.r > 0 {
			c.w = copy(c.buf.b, c.buf.b[c.r:c.w])
			c.r = 0
		} else {
			larger := &buffer{make([]byte, 2*len(c.buf.b))}
			copy(larger.b, c.buf.b)
			c.buf.release()
			c.buf = larger
		}
	}
	for range 100 {
		n, err := c.rw.Read(c.buf.b[c.w:])
		c.w += n
		if n > 0 {
			return nil // an error comes again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// read reads body bytes, from the buffer or past it.
func (c *conn) read(p []byte) (int, error) {
	if have := c.buffered(); len(have) > 0 {
		n := copy(p, have)
		c.r += n
		return n, nil
	}
	if c.bufferedOnly {
		return 0, errNotBuffered
	}
	if len(p) >= bufferSize/4 {
		return c.rw.Read(p)
	}
	if err := c.fill(bufferSize); err != nil {
		return 0, err
	}
	n := copy(p, c.buffered())
	c.r += n
	return n, nil
}

// endOfStream reports whether an io.EOF is the target's own end of the stream: over TLS, only a closed
// session is, as anybody on the way can close the connection.
func (c *conn) endOfStream() bool { return c.tls == nil || !c.wire.eof }

// finish ends the exchange. The connection is used again if the exchange was clean and everything speaks for
// it.
func (c *conn) finish(clean bool) {
	if c.send != nil {
		if clean = clean && !c.noReuse && c.send.finished(); !clean {
			c.send.withholdBody()
		}
		c.send = nil
	}
	if c.w > c.r {
		clean = false // bytes after the answer
	}
	if c.buf != nil {
		c.buf.release()
	}
	c.input = input{}
	if !c.wire.end() || !clean || c.noReuse {
		c.t.drop(c)
		return
	}
	c.t.put(c)
}
