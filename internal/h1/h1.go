// Package h1 is an HTTP/1.1 client transport for proxying. It sends a request unchanged: it adds no
// User-Agent and no Accept-Encoding, does not decompress, does not follow redirects, and ignores the
// environment's proxy settings. One round trip runs on the caller's goroutine: the request line, the fields
// and a small body leave in one write, and the response is read by a strict parser into one Response, one
// header map and one string. Only a body that is streamed has a goroutine of its own, and an idle connection
// has none: it is probed before it is used again. A request's context is watched only if its target does not
// answer within milliseconds. A response that is not complete and well-formed is an error, and its connection
// is closed.
//
// Differences from net/http.Transport:
//
//   - Requests: a method, target, Host, field or trailer that is not well-formed is refused with
//     [ErrInvalidRequest] before a connection is asked for; CONNECT is refused. Fields are sent in no
//     particular order. Content-Length, Transfer-Encoding, Trailer and Host in Request.Header are left out in
//     any spelling.
//   - Retries: the rules of net/http, and in addition a small body that was read in advance can be sent
//     again, and PUT, DELETE and QUERY are idempotent.
//   - Expect: a final answer in place of 100 Continue ends the exchange: the body is not sent, the connection
//     closes.
//   - Responses: see the list at parseHead for what is refused that net/http accepts. The header bytes of all
//     interim responses and the final one count together against MaxHeaderBytes, whether a hook sees them or
//     not. A body that ends with the connection is whole over TLS only if the target closed the TLS session.
//   - Connections: a request dials on its own goroutine and does not take a connection that another request
//     gives back meanwhile, unless MaxPerHost makes it wait.
package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"sync"
	"time"
)

// Options configures a Transport. The zero value of each field is its default.
type Options struct {
	// Dial opens a connection to addr, which is host:port, or, if network is "unix", the path of a socket. It
	// must return soon after its context is done. If the connection is a syscall.Conn, it is probed without a system call that could block.
	// The default is a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// TLS is the configuration for targets of scheme https. It is cloned. The server's name is set for each
	// target unless it is given, and NextProtos is replaced.
	TLS *tls.Config

	// Offer is the protocols that each TLS handshake offers to the target by ALPN. A target may choose another than
	// HTTP/1.1: then the round trip fails with OtherProtocol. nil means "http/1.1" alone.
	Offer []string

	DialTimeout           time.Duration // 0 means 30s, negative none
	TLSHandshakeTimeout   time.Duration // 0 means 10s, negative none
	ResponseHeaderTimeout time.Duration // from the end of the request to the end of the response's header; 0 means none
	ContinueTimeout       time.Duration // how long a body waits for 100 Continue where it was asked for; 0 means 1s
	IdleTimeout           time.Duration // 0 means 90s, negative none

	MaxIdlePerHost int // idle connections that are kept for a target; 0 means 256, negative none
	MaxPerHost     int // connections to a target, those that are being dialed included; 0 means no limit

	// MaxHeaderBytes bounds the status line and the fields of a response, those of the interim responses
	// before it included, and again its trailers. 0 means 1 MiB.
	MaxHeaderBytes int

	// InlineBody is the largest body of known length that is read on the caller's goroutine, before anything
	// is sent, so that it leaves in the same write as the header. While the caller waits for such a body, the
	// end of its context does not release it: the body's Read must return by itself. Bodies that are in
	// memory (those of bytes.Reader, bytes.Buffer and strings.Reader, and those whose method InMemory returns true)
	// are read so in any case, up to 16 KiB.
	// 0 means those alone.
	InlineBody int
}

// Errors that a round trip returns, wrapped.
var (
	// ErrInvalidRequest means that the request cannot be sent as HTTP/1.1. Nothing of it was sent, except
	// where the body turns out to be not as long as its Content-Length, or the trailers behind it to be malformed.
	ErrInvalidRequest = errors.New("h1: invalid request")

	// ErrInvalidResponse means that the target sent something other than a well-formed response.
	ErrInvalidResponse = errors.New("h1: invalid response")

	// ErrRequestBody means that reading the request's body failed, or that the body is not as long as its
	// Content-Length. It wraps the error of the body too.
	ErrRequestBody = errors.New("h1: request body")

	// ErrResponseHeaderTimeout means that the target did not answer within ResponseHeaderTimeout. It is a
	// net.Error of a timeout.
	ErrResponseHeaderTimeout error = &timeoutError{"h1: timeout awaiting the response's header"}
)

// OtherProtocol is the error of a round trip whose target chose a protocol other than HTTP/1.1. Nothing was sent,
// and the request's body is not closed. The connection is the caller's.
type OtherProtocol struct {
	Protocol string // such as "h2"
	Conn     *tls.Conn
	Request  *http.Request // as it is to be sent instead: the one that was given, or a copy with a body from its beginning
}

func (e *OtherProtocol) Error() string {
	return "h1: the target chose the protocol " + strconv.Quote(e.Protocol)
}

type timeoutError struct{ text string }

func (e *timeoutError) Error() string        { return e.text }
func (e *timeoutError) Timeout() bool        { return true }
func (e *timeoutError) Temporary() bool      { return true }
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Hooks are the functions that a round trip calls as it goes. Any of them may be nil. Each gets the argument
// that was given to Do, so that one Hooks serves all requests. All are called on the goroutine of the round
// trip, except WroteRequest and Wait100Continue, which the goroutine of a streamed body calls, possibly after
// Do has returned.
type Hooks struct {
	GetConn              func(arg any, hostPort string)
	GotConn              func(arg any, info httptrace.GotConnInfo)
	TLSHandshakeStart    func(arg any)
	TLSHandshakeDone     func(arg any, state tls.ConnectionState, err error)
	WroteHeaders         func(arg any)
	Wait100Continue      func(arg any)
	WroteRequest         func(arg any, info httptrace.WroteRequestInfo)
	GotFirstResponseByte func(arg any)
	Got100Continue       func(arg any)

	// Got1xxResponse is called for each interim response other than 101. Its error ends the round trip.
	Got1xxResponse func(arg any, code int, header textproto.MIMEHeader) error

	Max1xx int // most interim responses of a round trip; one more ends it. 0 means no limit.
}

// traceHooks calls the hooks of an httptrace.ClientTrace, which is the argument.
func traceHooks(trace *httptrace.ClientTrace) *Hooks {
	h := new(Hooks)
	if trace.GetConn != nil {
		h.GetConn = func(_ any, hostPort string) { trace.GetConn(hostPort) }
	}
	if trace.GotConn != nil {
		h.GotConn = func(_ any, info httptrace.GotConnInfo) { trace.GotConn(info) }
	}
	if trace.TLSHandshakeStart != nil {
		h.TLSHandshakeStart = func(any) { trace.TLSHandshakeStart() }
	}
	if trace.TLSHandshakeDone != nil {
		h.TLSHandshakeDone = func(_ any, state tls.ConnectionState, err error) { trace.TLSHandshakeDone(state, err) }
	}
	if trace.WroteHeaders != nil {
		h.WroteHeaders = func(any) { trace.WroteHeaders() }
	}
	if trace.Wait100Continue != nil {
		h.Wait100Continue = func(any) { trace.Wait100Continue() }
	}
	if trace.WroteRequest != nil {
		h.WroteRequest = func(_ any, info httptrace.WroteRequestInfo) { trace.WroteRequest(info) }
	}
	if trace.GotFirstResponseByte != nil {
		h.GotFirstResponseByte = func(any) { trace.GotFirstResponseByte() }
	}
	if trace.Got100Continue != nil {
		h.Got100Continue = func(any) { trace.Got100Continue() }
	}
	if trace.Got1xxResponse != nil {
		h.Got1xxResponse = func(_ any, code int, header textproto.MIMEHeader) error {
			return trace.Got1xxResponse(code, header)
		}
	}
	return h
}

// Transport, made by New, is an http.RoundTripper for the schemes http and https that speaks HTTP/1.1. For the
// scheme unix, it speaks HTTP/1.1 to a Unix socket whose path is URL.Host; without Request.Host it sends the Host
// localhost. It is safe for concurrent use. It holds its idle connections until they time out or CloseIdleConnections is
// called.
type Transport struct {
	opts Options

	mu        sync.Mutex // guards what follows; never held across I/O
	hosts     map[hostKey]*host
	sweeping  bool // the timer is set
	sweep     *time.Timer
	closeIdle bool // connections that are given back are closed, until the next one is asked for
}

// New returns a Transport. The options are copied; nil means all defaults.
func New(opts *Options) *Transport {
	t := &Transport{hosts: make(map[hostKey]*host)}
	if opts != nil {
		t.opts = *opts
	}
	o := &t.opts
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	if o.TLS == nil {
		o.TLS = new(tls.Config)
	}
	o.TLS = o.TLS.Clone()
	if o.TLS.NextProtos = o.Offer; o.Offer == nil {
		o.TLS.NextProtos = []string{"http/1.1"}
	}
	setDefault(&o.DialTimeout, 30*time.Second)
	setDefault(&o.TLSHandshakeTimeout, 10*time.Second)
	setDefault(&o.ContinueTimeout, time.Second)
	setDefault(&o.IdleTimeout, 90*time.Second)
	setDefault(&o.MaxIdlePerHost, 256)
	setDefault(&o.MaxHeaderBytes, 1<<20)
	return t
}

// setDefault replaces 0 by the default and a negative number by 0.
func setDefault[T int | time.Duration](option *T, value T) {
	if *option == 0 {
		*option = value
	}
	*option = max(*option, 0)
}

// RoundTrip sends a request and returns its response. Where the context ends it, the error wraps
// context.Cause, which is the context's own error unless a cause was given. A response that is there when the
// context ends may be returned all the same. It calls the hooks of the httptrace.ClientTrace in the request's
// context, but for PutIdleConn and WroteHeaderField.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.RoundTripBy(req, Deadline{})
}

// RoundTripBy is RoundTrip with a deadline.
func (t *Transport) RoundTripBy(req *http.Request, d Deadline) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		return t.Do(req, d, traceHooks(trace), nil)
	}
	return t.Do(req, d, nil, nil)
}

// Deadline is until when the response's header must be there. It includes all that comes before: waiting for a
// connection, opening it, and sending the request. It does not end a Read of the request's body. It costs less than
// a context with a deadline.
type Deadline struct {
	By  time.Time // zero: as long as it takes
	Err error     // what the round trip fails with
}

// bound returns a context with this deadline.
func (d Deadline) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.By.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, d.By, d.Err)
}

// Do is DoBy with hooks of its own, which may be nil, and the argument that they get. It does not look
// for an httptrace.ClientTrace in the context; a net.Dialer still does.
//
// The request's body is closed in any case, possibly after Do has returned: a body that is streamed is read
// by a goroutine, which ends with the exchange, but not before a Read of the body that is in progress
// returns. The response's body implements Body, or after 101 Upgraded, unless it is http.NoBody.
func (t *Transport) Do(req *http.Request, d Deadline, hooks *Hooks, arg any) (*http.Response, error) {
	if hooks == nil {
		hooks = &noHooks
	}
	c := newCall(t, req, hooks, arg)
	c.deadline = d
	res, err := c.do()
	c.release()
	return res, err
}

var noHooks Hooks

// Negotiate opens a connection to a target of scheme https, which is host or host:port, and returns the
// protocol that the target chose of those in Options.Offer. If that is HTTP/1.1, Negotiate keeps the connection
// for a later request and returns "http/1.1" and no connection; it also does so when there is an idle one.
// Otherwise the connection is the caller's, to be handed for example to the DialTLSContext of an http.Transport.
func (t *Transport) Negotiate(ctx context.Context, target string) (string, *tls.Conn, error) {
	key, ok := keyOf("https", target)
	if !ok {
		return "", nil, invalid("host %q", target)
	}
	c, err := t.get(ctx, key, false, Deadline{}, &noHooks, nil)
	if err != nil {
		return "", nil, err
	}
	if proto := c.otherProtocol(); proto != "" {
		t.releaseSlot(c.host)
		return proto, c.rw.(*tls.Conn), nil
	}
	t.put(c)
	return "http/1.1", nil, nil
}
