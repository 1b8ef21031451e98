package h1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
)

var callPool = sync.Pool{New: func() any { return new(call) }}

func newCall(t *Transport, req *http.Request, hooks *Hooks, arg any) *call {
	c := callPool.Get().(*call)
	*c = call{t: t, req: req, original: req, ownsBody: req.Body != nil, hooks: hooks, arg: arg, outgoing: outgoing{buf: getBuffer()}}
	return c
}

func (c *call) release() {
	c.buf.release()
	*c = call{}
	callPool.Put(c)
}

// do makes the round trip. It closes the request's body, or leaves that to the body's sender.
func (c *call) do() (*http.Response, error) {
	ctx := c.req.Context()
	err := c.prepare()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = c.readInline()
	}
	if err != nil || c.inline || c.body == nil {
		c.closeBody() // it has been read, or will not be
	}
	if err != nil {
		return nil, err
	}
	for {
		conn, err := c.connect(ctx)
		if other, ok := err.(*OtherProtocol); ok {
			other.Request = c.unsentRequest()
			return nil, err
		}
		if err != nil {
			c.closeBody()
			return nil, err
		}
		res, failure := c.exchange(ctx, conn)
		if failure == nil {
			return &res.Response, nil
		}
		if !conn.reused || !c.retryable(failure) {
			c.closeBody()
			return nil, failure.err
		}
		if failure.bodyStarted {
			if err := c.reopenBody(); err != nil {
				return nil, failure.err
			}
		}
	}
}

// closeBody closes the request's body unless a sender has taken it.
func (c *call) closeBody() {
	if c.ownsBody {
		c.ownsBody = false
		c.req.Body.Close()
	}
}

// connect returns a connection, an idle one or a new one.
func (c *call) connect(ctx context.Context) (*conn, error) {
	if c.hooks.GetConn != nil {
		c.hooks.GetConn(c.arg, c.key.addr)
	}
	conn, err := c.t.get(ctx, c.key, c.fitsFastPath(), c.deadline, c.hooks, c.arg)
	if err != nil {
		return nil, err
	}
	if proto := conn.otherProtocol(); proto != "" {
		c.t.releaseSlot(conn.host)
		return nil, &OtherProtocol{Protocol: proto, Conn: conn.rw.(*tls.Conn)}
	}
	if c.hooks.GotConn != nil {
		c.hooks.GotConn(c.arg, conn.gotConnInfo())
	}
	return conn, nil
}

// failure is why an attempt on one connection has no response, and what a retry needs to know of it.
type failure struct {
	err         error
	unsent      bool // nothing of the request was written
	noReply     bool // the target ended the connection without a byte of response
	bodyStarted bool // the body was given to a sender
	aborted     bool // the failure is not the connection's
}

// retryable reports whether the request may be sent again on another connection, after it failed on one that
// had been used before: the target has closed an idle connection, most likely, and the request is one that can
// be repeated (RFC 9110 section 9.2.2), or no byte of it was written.
func (c *call) retryable(f *failure) bool {
	req := c.req
	if f.aborted {
		return false
	}
	hasBody := c.length != 0
	if f.unsent {
		return !hasBody || c.inline || !f.bodyStarted || req.GetBody != nil
	}
	if !f.noReply || hasBody && !c.inline && req.GetBody == nil {
		return false
	}
	switch req.Method {
	case "", "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY":
		return true
	}
	return len(req.Header["Idempotency-Key"]) > 0 || len(req.Header["X-Idempotency-Key"]) > 0
}

// reopenBody gets the body anew, for another sender. GetBody may also set the Trailer of the request that was given.
func (c *call) reopenBody() error {
	if c.req.GetBody == nil {
		return errors.New("h1: the body cannot be sent again")
	}
	body, err := c.req.GetBody()
	if err != nil {
		return err
	}
	r := *c.original // the caller's request stays as it is
	r.Body = body
	c.req, c.body, c.ownsBody = &r, body, true
	return nil
}

// unsentRequest returns the request with its body from the beginning. The body is the caller's again.
func (c *call) unsentRequest() *http.Request {
	c.ownsBody = false
	if !c.inline {
		return c.req
	}
	r := *c.original
	r.Body = io.NopCloser(bytes.NewReader(bytes.Clone(c.buf.b[c.headerLen:])))
	return &r
}

// exchange sends the request and reads the header of the response. On failure the connection is gone.
func (c *call) exchange(ctx context.Context, conn *conn) (*response, *failure) {
	w := conn.wire
	w.begin(ctx)
	if !c.deadline.By.IsZero() {
		w.limitExchange(c.deadline)
	}
	conn.noReuse = c.close
	request := c.buf.b
	if !conn.reused {
		conn.readUnsolicited()
	}
	if conn.reused && c.fitsFastPath() && conn.hasFastPath() {
		written, f := c.tryFastPath(conn)
		if f != nil {
			return nil, c.fail(ctx, conn, *f)
		}
		request = request[written:]
	}
	var writeErr error
	if len(request) > 0 {
		if _, writeErr = conn.rw.Write(request); writeErr != nil {
			writeErr = fmt.Errorf("h1: writing the request: %w", writeErr)
		}
	}
	streamed := c.streamsBody()
	if writeErr == nil && c.hooks.WroteHeaders != nil {
		c.hooks.WroteHeaders(c.arg)
	}
	if writeErr == nil && streamed {
		c.startSender(conn)
	} else if c.hooks.WroteRequest != nil {
		c.hooks.WroteRequest(c.arg, httptrace.WroteRequestInfo{Err: writeErr})
	}
	f := &failure{err: writeErr, bodyStarted: writeErr == nil && streamed}
	if writeErr != nil && conn.reused && w.bytesWritten() == 0 {
		// What may be there to read was sent before this request.
		return nil, c.fail(ctx, conn, *f)
	}
	switch {
	case writeErr != nil:
		conn.noReuse = true
		w.limitHeader(writeErrorGrace, writeErr) // an answer may explain the error
	case !streamed && c.t.opts.ResponseHeaderTimeout > 0:
		w.limitHeader(c.t.opts.ResponseHeaderTimeout, ErrResponseHeaderTimeout)
	}
	res, err := c.receive(conn, f)
	if err != nil {
		if writeErr == nil || !f.noReply {
			f.err = err
		}
		return nil, c.fail(ctx, conn, *f)
	}
	return res, nil
}

// streamsBody reports whether the body has a sender.
func (c *call) streamsBody() bool { return c.body != nil && !c.inline }

// fitsFastPath reports whether the request can be written in a turn: it is all in the buffer, and nobody wants
// to know when it was written.
func (c *call) fitsFastPath() bool {
	return !c.streamsBody() && c.hooks.WroteHeaders == nil && c.hooks.WroteRequest == nil
}

// tryFastPath begins the exchange on an idle connection that was not probed. It returns how much of the request
// is written.
func (c *call) tryFastPath(conn *conn) (written int, f *failure) {
	if d := c.t.opts.ResponseHeaderTimeout; d > 0 {
		conn.wire.limitHeader(d, ErrResponseHeaderTimeout)
	}
	conn.buf = getBuffer()
	stage, n, err := conn.wire.probeWriteRead(c.buf.b, conn.buf.b)
	switch stage {
	case fastPathStart: // the wait was over before it began
		if err == nil && !conn.alive() {
			err = errStaleConn
		}
		if err != nil {
			return 0, &failure{err: err}
		}
		return 0, nil
	case fastPathStale:
		return 0, &failure{err: errStaleConn}
	case fastPathWriting:
		if err != nil {
			return 0, &failure{err: fmt.Errorf("h1: writing the request: %w", err)}
		}
		return n, nil
	}
	if err != nil {
		return 0, noReplyFailure(err)
	}
	conn.w = n
	return len(c.buf.b), nil
}

// errStaleConn is why a request is not sent on an idle connection. It is sent on another.
var errStaleConn = errors.New("h1: the idle connection has ended")

// noReplyFailure is the failure of a connection that ends without a byte of response.
func noReplyFailure(err error) *failure {
	return &failure{err: fmt.Errorf("h1: connection ended before the response: %w", unexpected(err)), noReply: true}
}

// startSender sends the body from a goroutine of its own.
func (c *call) startSender(conn *conn) {
	s := &sender{
		wire: conn.wire, w: conn.rw, body: c.body, length: c.length, hooks: c.hooks, arg: c.arg,
		headerTimeout: c.t.opts.ResponseHeaderTimeout, done: make(chan struct{}),
	}
	if c.length < 0 {
		s.trailer = c.req.Trailer
	}
	if c.expect {
		s.decision, s.timeout = make(chan bool, 1), c.t.opts.ContinueTimeout
	}
	conn.send = s
	c.body, c.ownsBody = nil, false // it is the sender's
	go s.run()
}

// fail ends an exchange that has no response.
func (c *call) fail(ctx context.Context, conn *conn, f failure) *failure {
	f.unsent = conn.wire.bytesWritten() == 0
	if reason := conn.wire.failureErr(); reason != nil {
		f.err, f.aborted = reason, true
	} else if ctx.Err() != nil {
		f.err, f.aborted = context.Cause(ctx), true
	}
	conn.finish(false)
	return &f
}

// receive reads the header of the final response, and hands out those before it.
func (c *call) receive(conn *conn, f *failure) (*response, error) {
	for len(conn.buffered()) == 0 {
		if err := conn.fill(bufferSize); err != nil {
			f.noReply = true
			return nil, noReplyFailure(err).err
		}
	}
	if c.hooks.GotFirstResponseByte != nil {
		c.hooks.GotFirstResponseByte(c.arg)
	}
	budget := c.t.opts.MaxHeaderBytes
	res := new(response)
	for interims := 1; ; interims++ {
		head, lines, err := conn.readHead(&budget, protocolStart)
		if err != nil {
			return nil, fmt.Errorf("h1: reading the response's header: %w", err)
		}
		if err := res.parseHead(head, lines, c.req.Method); err != nil {
			return nil, err
		}
		conn.noReuse = conn.noReuse || res.deviations != 0 || res.framing == bodyForbidden
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			break
		}
		if limit := c.hooks.Max1xx; limit > 0 && interims > limit {
			return nil, fmt.Errorf("h1: more than %d interim responses", limit)
		}
		if err := c.interim(conn, res); err != nil {
			return nil, err
		}
		*res = response{}
	}
	conn.wire.liftHeaderLimit()
	res.Request = c.original
	res.TLS = conn.tls
	if conn.send != nil && c.expect && conn.send.withholdBody() {
		conn.noReuse = true // the target may still wait for the body
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res, c.switchProtocols(conn, res)
	}
	c.attachBody(conn, res)
	return res, nil
}

// interim handles a response 1xx.
func (c *call) interim(conn *conn, res *response) error {
	if res.StatusCode == http.StatusContinue {
		if c.hooks.Got100Continue != nil {
			c.hooks.Got100Continue(c.arg)
		}
		if conn.send != nil {
			conn.send.allowBody()
		}
	}
	if c.hooks.Got1xxResponse != nil {
		if err := c.hooks.Got1xxResponse(c.arg, res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
			return err
		}
	}
	return nil
}

// attachBody gives the response its body. A connection that is done with is given back at once.
func (c *call) attachBody(conn *conn, res *response) {
	conn.noReuse = conn.noReuse || res.Close
	if res.framing == noBody || res.framing == bodyForbidden {
		res.Body = http.NoBody
		conn.finish(true)
		return
	}
	b := &res.stream
	b.res, b.conn, b.ownsConn = res, conn, true
	if res.framing == lengthDelimited {
		b.left = res.ContentLength
	}
	res.Body = b
}

// switchProtocols makes the connection the response's body.
func (c *call) switchProtocols(conn *conn, res *response) error {
	if !c.upgrade {
		return malformed("101 Switching Protocols that was not asked for")
	}
	if conn.send != nil && !conn.send.finished() {
		return malformed("101 Switching Protocols before the end of the request")
	}
	u := &upgraded{conn: conn.netConn(), read: append([]byte(nil), conn.buffered()...)}
	if !conn.wire.detach() {
		return io.ErrUnexpectedEOF // fail finds the reason
	}
	conn.buf.release()
	conn.input = input{}
	conn.send = nil
	t, h := conn.t, conn.host
	u.releaseSlot = func() { t.releaseSlot(h) }
	res.Body = u
	return nil
}
