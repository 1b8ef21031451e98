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
	bufferSize    = 16 << 10 // of a new buffer
	maxKeptBuffer = 64 << 10 // a buffer that has grown larger does not return to the pool
)

// buffer is a pooled buffer. Its holder calls release once.
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

// conn is a connection to a target, with or without TLS. It is idle or carries one exchange.
type conn struct {
	t    *Transport
	host *host
	wire *wire
	rw   net.Conn             // the wire, or TLS over it
	tls  *tls.ConnectionState // nil without TLS

	reused    bool
	idleSince time.Time
	scratch   [1]byte // used by alive

	input

	// These belong to the exchange.
	send    *sender // sends the request's body; nil unless that is streamed
	noReuse bool    // close the connection after the exchange
}

// input holds the bytes that were read but not consumed: buf.b[r:w]. An idle connection has no buffer.
type input struct {
	buf          *buffer
	r, w         int
	bufferedOnly bool // fill and read fail with errNotBuffered rather than read from the connection
}

// dial opens a connection. The caller has a slot for it, and releases it if dial fails.
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

// handshake starts TLS on the connection.
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

// otherProtocol returns the protocol that the target chose by ALPN, or "" if that is HTTP/1.1 or none.
func (c *conn) otherProtocol() string {
	if c.tls == nil || c.tls.NegotiatedProtocol == "http/1.1" {
		return ""
	}
	return c.tls.NegotiatedProtocol
}

// hostname returns the host of host:port, an IPv6 address without its brackets.
func hostname(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// alive reports whether an idle connection can carry a request: the target has neither closed it nor sent
// anything. If data arrives after this check and before the request is sent, it is taken for the response. No
// HTTP/1.1 client can avoid that.
func (c *conn) alive() bool {
	return c.wire.quiet(c.rw, c.scratch[:])
}

// hasFastPath reports whether wire.probeWriteRead can be used for this connection.
func (c *conn) hasFastPath() bool { return c.tls == nil && c.wire.raw != nil }

// close closes an idle connection. Over TLS it sends close_notify first.
func (c *conn) close() { c.rw.Close() }

// abort closes the connection at once, over TLS without close_notify.
func (c *conn) abort() { c.wire.Conn.Close() }

// readUnsolicited reads the data that a target has sent on a new connection before the request. It counts as
// the response, since an overloaded target may send a 503 and close at once. The connection is not reused, as
// the response to the request may follow.
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

// gotConnInfo returns the argument for the hook GotConn.
func (c *conn) gotConnInfo() httptrace.GotConnInfo {
	info := httptrace.GotConnInfo{Conn: c.netConn(), Reused: c.reused, WasIdle: c.reused}
	if c.reused {
		info.IdleTime = time.Since(c.idleSince)
	}
	return info
}

// netConn returns the connection that Dial returned, or the *tls.Conn on it.
func (c *conn) netConn() net.Conn {
	if c.tls != nil {
		return c.rw
	}
	return c.wire.Conn
}

// errNotBuffered means that the next bytes are not in the buffer, and bufferedOnly is set.
var errNotBuffered = errors.New("h1: nothing more is buffered")

// buffered returns the bytes that were read but not consumed.
func (c *conn) buffered() []byte {
	if c.buf == nil {
		return nil
	}
	return c.buf.b[c.r:c.w]
}

// fill reads more bytes into the buffer. If limit bytes or more are buffered already, it fails with
// bufio.ErrBufferFull.
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
			return nil // the next Read returns the error again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// read reads from the buffer. If that is empty, it reads from the connection: directly if p is large, and
// otherwise through the buffer.
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

// endOfStream reports whether io.EOF means that the target has ended the stream. Over TLS, the target must
// have closed the session: anybody on the path can close the TCP connection.
func (c *conn) endOfStream() bool { return c.tls == nil || !c.wire.eof }

// finish ends the exchange. It returns the connection to the pool, or closes it unless all of this holds:
// clean is set, the request's body was sent, noReuse is not set, no unread bytes are buffered, and no
// cancellation or time limit interrupted the exchange.
func (c *conn) finish(clean bool) {
	if c.send != nil {
		if clean = clean && !c.noReuse && c.send.finished(); !clean {
			c.send.withholdBody()
		}
		c.send = nil
	}
	if c.w > c.r {
		clean = false // there are bytes after the response
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
