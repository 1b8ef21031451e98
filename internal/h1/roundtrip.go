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
	*c = call{
		t: t, req: req, original: req, ownsBody: req.Body != nil, hooks: hooks, arg: arg,
		outgoing: outgoing{buf: getBuffer()},
	}
	return c
}

func (c *call) release() {
	c.buf.release()
	*c = call{}
	callPool.Put(c)
}

// do makes the round trip. The request's body is closed by do or by the body's sender.
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
		c.closeBody() // nobody will read it any more
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
		res, failure := c.attempt(ctx, conn)
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

// connect returns an idle connection or a new one.
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

// failure describes an attempt on one connection that ended without a response. retryable decides by it.
type failure struct {
	err         error
	unsent      bool // no byte of the request was written
	noReply     bool // the connection ended before the first byte of a response
	bodyStarted bool // a sender has started to read the body
	aborted     bool // the context, a time limit or the body ended the attempt; a retry cannot help
}

// retryable reports whether the request may be sent again on another connection after it failed on a reused
// one, which its target has probably closed. Either no byte of the request was written, or the request can be
// repeated (RFC 9110 section 9.2.2) and the target sent no byte of a response. In both cases the body must be
// available again.
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

// reopenBody replaces the body by a new one from GetBody, for another sender. GetBody may set the Trailer of
// the original request.
func (c *call) reopenBody() error {
	if c.req.GetBody == nil {
		return errors.New("h1: the body cannot be sent again")
	}
	body, err := c.req.GetBody()
	if err != nil {
		return err
	}
	r := *c.original // the caller's request is not modified
	r.Body = body
	c.req, c.body, c.ownsBody = &r, body, true
	return nil
}

// unsentRequest returns the request with its whole body unread, for OtherProtocol. The caller owns the body.
func (c *call) unsentRequest() *http.Request {
	c.ownsBody = false
	if !c.inline {
		return c.req
	}
	r := *c.original
	r.Body = io.NopCloser(bytes.NewReader(bytes.Clone(c.buf.b[c.headerLen:])))
	return &r
}

// attempt sends the request on conn and reads the header of the response. If it fails, it closes conn.
func (c *call) attempt(ctx context.Context, conn *conn) (*response, *failure) {
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
		// Data that could be read now was sent before this request, so it is not the response.
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

// streamsBody reports whether a sender sends the body.
func (c *call) streamsBody() bool { return c.body != nil && !c.inline }

// fitsFastPath reports whether the fast path can send the request: it is complete in the buffer, and no hook
// waits for the end of the write.
func (c *call) fitsFastPath() bool {
	return !c.streamsBody() && c.hooks.WroteHeaders == nil && c.hooks.WroteRequest == nil
}

// tryFastPath starts the exchange on an idle connection that was not probed. It returns how many bytes of the
// request were written; the caller writes the rest.
func (c *call) tryFastPath(conn *conn) (written int, f *failure) {
	if d := c.t.opts.ResponseHeaderTimeout; d > 0 {
		conn.wire.limitHeader(d, ErrResponseHeaderTimeout)
	}
	stage, n, response, err := conn.wire.probeWriteRead(c.buf.b)
	conn.buf = response
	switch stage {
	case fastPathStart: // an old read deadline had passed
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

// errStaleConn means that an idle connection was found unusable before the request was written. The request
// is sent on another connection.
var errStaleConn = errors.New("h1: the idle connection has ended")

// noReplyFailure returns the failure for a connection that ended before the first byte of a response.
func noReplyFailure(err error) *failure {
	return &failure{err: fmt.Errorf("h1: connection ended before the response: %w", unexpected(err)), noReply: true}
}

// startSender starts a goroutine that sends the body.
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
	c.body, c.ownsBody = nil, false // the sender closes it
	go s.run()
}

// fail closes the connection of an attempt that has no response. It returns the failure with the error that
// the caller gets: if the context or a time limit ended the attempt, that is the error.
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

// receive reads the header of the final response. It passes those of interim responses to the hooks.
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
		if err := res.parseHead(head, lines, c.req.Method, c.hooks.Fields != nil); err != nil {
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
	if n := res.listed; n > 0 && !c.hooks.Fields(c.arg, res.names[:n:n], res.values[:n:n]) {
		res.makeHeader()
	}
	conn.wire.liftHeaderLimit()
	res.Request = c.original
	res.TLS = conn.tls
	if conn.send != nil && c.expect && conn.send.withholdBody() {
		conn.noReuse = true // the target may still expect the body
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res, c.switchProtocols(conn, res)
	}
	c.attachBody(conn, res)
	return res, nil
}

// interim handles an interim response.
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

// attachBody sets the response's body. If there is none, the exchange ends here.
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

// switchProtocols makes the connection the body of a 101 response.
func (c *call) switchProtocols(conn *conn, res *response) error {
	if !c.upgrade {
		return malformed("101 Switching Protocols without a request for it")
	}
	if conn.send != nil && !conn.send.finished() {
		return malformed("101 Switching Protocols before the end of the request")
	}
	u := &upgraded{conn: conn.netConn(), read: append([]byte(nil), conn.buffered()...)}
	if !conn.wire.detach() {
		return io.ErrUnexpectedEOF // fail replaces it by the reason
	}
	conn.buf.release()
	conn.input = input{}
	conn.send = nil
	t, h := conn.t, conn.host
	u.releaseSlot = func() { t.releaseSlot(h) }
	res.Body = u
	return nil
}
