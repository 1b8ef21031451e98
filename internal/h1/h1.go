// Package h1 is an HTTP/1.1 client transport for proxying. It sends requests unchanged: it adds no User-Agent
// and no Accept-Encoding, does not decompress, does not follow redirects, and ignores the proxy settings of
// the environment.
//
// A round trip runs on the caller's goroutine. It sends the request line, the fields and a small body in one
// write, and reads the header of the response into one Response, one header map and one string. Only a
// streamed request body has a goroutine of its own. An idle connection has none: it is probed before it is
// reused. A request's context is watched only if the target takes longer than some milliseconds.
//
// Differences from net/http.Transport:
//
//   - Requests: a malformed method, target, Host, field or trailer is refused with [ErrInvalidRequest] before
//     a connection is opened. So is CONNECT. Fields are sent in no particular order. Content-Length,
//     Transfer-Encoding, Trailer and Host in Request.Header are not sent, however they are spelled.
//   - Retries follow the rules of net/http, with two additions: a small body that was read in advance can be
//     sent again, and PUT, DELETE and QUERY count as idempotent.
//   - Expect: if the target sends a final response instead of 100 Continue, the body is not sent and the
//     connection is closed.
//   - Responses: parseHead lists what is refused although net/http accepts it. MaxHeaderBytes limits the
//     headers of all interim responses and of the final response together, with or without a hook. Over TLS,
//     a body that ends with the connection is complete only if the target closed the TLS session. An
//     incomplete or malformed response is an error, and its connection is closed.
//   - Connections: a request dials on its own goroutine. It does not take a connection that becomes idle
//     during the dial. Only a request that waits because of MaxPerHost takes one.
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
	// Dial opens a connection to addr: host:port, or the path of a socket if network is "unix". It must
	// return soon after its context is done. The fast path and exact probing need a connection that
	// implements syscall.Conn. The default is a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// TLS is the configuration for targets of scheme https. It is cloned, and NextProtos is replaced. If
	// ServerName is empty, the name of each target is used.
	TLS *tls.Config

	// Offer lists the protocols that a TLS handshake offers by ALPN. If the target chooses one other than
	// HTTP/1.1, the round trip fails with OtherProtocol. nil means only "http/1.1".
	Offer []string

	DialTimeout           time.Duration // 0 means 30s, negative none
	TLSHandshakeTimeout   time.Duration // 0 means 10s, negative none
	ResponseHeaderTimeout time.Duration // from the request's end to the header's end; 0 means none
	ContinueTimeout       time.Duration // how long a body waits for 100 Continue if expected; 0 means 1s
	IdleTimeout           time.Duration // 0 means 90s, negative none

	MaxIdlePerHost int // idle connections kept for each target; 0 means 256, negative none
	MaxPerHost     int // connections to each target, including those being dialed; 0 means no limit

	// MaxHeaderBytes limits the status lines and fields of a response and of the interim responses before it.
	// The trailers of a response have the same limit, counted separately. 0 means 1 MiB.
	MaxHeaderBytes int

	// InlineBody is the size in bytes of the largest body of known length that is read on the caller's
	// goroutine before anything is sent, and then sent in the same write as the header. The end of the
	// context does not interrupt this read: the body's Read must return by itself.
	//
	// A body in memory is sent in this way up to 16 KiB, whatever InlineBody is: a bytes.Reader, bytes.Buffer
	// or strings.Reader, or a body whose method InMemory returns true. 0 means only those.
	InlineBody int
}

// A round trip returns errors that wrap these.
var (
	// ErrInvalidRequest means that the request cannot be sent as HTTP/1.1. No byte of it was sent, with two
	// exceptions: a streamed body that is longer or shorter than its Content-Length, and malformed trailers.
	ErrInvalidRequest = errors.New("h1: invalid request")

	// ErrInvalidResponse means that the target sent a malformed response.
	ErrInvalidResponse = errors.New("h1: invalid response")

	// ErrRequestBody means that reading the request's body failed, or that the body is longer or shorter than
	// its Content-Length. The error wraps the body's own error too.
	ErrRequestBody = errors.New("h1: request body")

	// ErrResponseHeaderTimeout means that the target did not answer within ResponseHeaderTimeout. It is a
	// net.Error whose Timeout method returns true.
	ErrResponseHeaderTimeout error = &timeoutError{"h1: timeout awaiting the response's header"}
)

// OtherProtocol is the error of a round trip whose target chose a protocol other than HTTP/1.1 in the TLS
// handshake. Nothing was sent. The caller owns Conn and the body of Request, which is not closed.
type OtherProtocol struct {
	Protocol string // such as "h2"
	Conn     *tls.Conn

	// Request is the request to send on Conn: the original, or a copy of it if its body was read in advance.
	Request *http.Request
}

func (e *OtherProtocol) Error() string {
	return "h1: the target chose the protocol " + strconv.Quote(e.Protocol)
}

type timeoutError struct{ text string }

func (e *timeoutError) Error() string        { return e.text }
func (e *timeoutError) Timeout() bool        { return true }
func (e *timeoutError) Temporary() bool      { return true }
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Hooks are the functions that a round trip calls at its stages, as net/http does those of an
// httptrace.ClientTrace. Any of them may be nil. Each receives the argument that was passed to Do, so one
// Hooks can serve all requests. They are called on the goroutine of the round trip, with two exceptions: for
// a streamed body, its sender's goroutine calls Wait100Continue and WroteRequest, possibly after Do has
// returned.
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

	// Lines returns the fields to send in place of those in Request.Header: whole lines, which must be
	// well-formed, without Host, Connection, Expect and the fields that frame the message. The lines are copied.
	// Of Request.Header, only Idempotency-Key and X-Idempotency-Key are read then.
	Lines func(arg any) []byte

	// Fields may take the fields of the final response: names in canonical form, each with the value of the same
	// index. If it returns true, Response.Header is nil. Otherwise Response.Header is made. The slices belong to
	// the response and must not be modified. Fields is called only for a response whose Header would be the very
	// fields that the target sent: over HTTP/1.1, with at most 12 fields, without Trailer and Transfer-Encoding,
	// with one Content-Length at most, and with no other Connection than "keep-alive".
	Fields func(arg any, names, values []string) bool

	// Got1xxResponse is called for each 1xx response except 101. If it returns an error, the round trip fails
	// with that error.
	Got1xxResponse func(arg any, code int, header textproto.MIMEHeader) error

	// Max1xx is the number of 1xx responses that a round trip accepts. One more, and it fails. 0 means no
	// limit.
	Max1xx int
}

// traceHooks returns hooks that call the functions of trace. They ignore their argument.
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

// Transport is an http.RoundTripper that speaks HTTP/1.1 to targets of the schemes http, https and unix.
// With scheme unix, URL.Host is the path of a Unix socket, and the Host that is sent is "localhost" if
// Request.Host is empty. New makes a Transport. It is safe for concurrent use. It keeps idle connections
// until IdleTimeout passes or CloseIdleConnections is called.
type Transport struct {
	opts Options

	mu        sync.Mutex // guards the fields below; never held across I/O
	hosts     map[hostKey]*host
	sweeping  bool // the timer is set
	sweep     *time.Timer
	closeIdle bool // returned connections are closed; set by CloseIdleConnections, reset by the next request
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

// setDefault replaces 0 by value and a negative option by 0.
func setDefault[T int | time.Duration](option *T, value T) {
	if *option == 0 {
		*option = value
	}
	*option = max(*option, 0)
}

// RoundTrip sends a request and returns its response. If the request's context ends first, the error wraps
// context.Cause of the context. If the context ends at the same time as the response arrives, either may be
// returned. RoundTrip calls the hooks of the httptrace.ClientTrace in the request's context, except
// PutIdleConn and WroteHeaderField.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.RoundTripBy(req, Deadline{})
}

// RoundTripBy is like RoundTrip, with a deadline for the response's header.
func (t *Transport) RoundTripBy(req *http.Request, d Deadline) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		return t.Do(req, d, traceHooks(trace), nil)
	}
	return t.Do(req, d, nil, nil)
}

// Deadline is the time by which the header of the response must have arrived. Waiting for a connection,
// dialing, and sending the request count. It does not interrupt a Read of the request's body. It costs less
// than a context with a deadline.
type Deadline struct {
	By  time.Time // zero means no deadline
	Err error     // the error of a round trip that misses the deadline
}

// bound returns a copy of ctx that has this deadline.
func (d Deadline) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.By.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, d.By, d.Err)
}

// Do is like RoundTripBy, but calls hooks, which may be nil, with arg. It ignores an httptrace.ClientTrace in
// the context. A net.Dialer does not.
//
// Do always closes the request's body, unless it fails with OtherProtocol. A streamed body is read and
// closed by a goroutine, possibly after Do has returned. That goroutine ends with the exchange, or later,
// when a Read of the body that is in progress returns.
//
// The response's body is http.NoBody or implements [Body]. After 101 it implements [Upgraded].
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

// Negotiate returns the protocol that a target of scheme https chooses among Options.Offer. The target is
// host or host:port. Negotiate opens a connection unless an idle one exists.
//
// If the protocol is HTTP/1.1, Negotiate keeps the connection for a later request and returns "http/1.1"
// and a nil connection. Otherwise the connection is the caller's. The DialTLSContext of an http.Transport
// can return it, for example.
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
