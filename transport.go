package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/seed-96248d0c/gateway/internal/h1"
	"github.com/seed-96248d0c/gateway/internal/neterror"
)

// TransportOptions configures the connections of a transport. The zero value selects the defaults.
type TransportOptions struct {
	TLS            *tls.Config   // client certificates for mTLS, and root certificates; nil means the system's roots
	DialTimeout    time.Duration // limit of the time to connect, and also of the time for the TLS handshake; 0 means 3s
	MaxIdlePerHost int           // number of idle connections kept for each host; 0 means 256
	MaxPerHost     int           // number of connections to each host; 0 means no limit
	IdleTimeout    time.Duration // how long an idle connection is kept; 0 means 90s

	// Ping is how long an HTTP/2 connection may receive nothing before a PING frame is sent. If no
	// answer arrives within the same time, or within 15s if that is less, the connection is closed and
	// its requests fail. Later requests use another connection. 0 means 15s, negative means no PING
	// frames.
	//
	// A gRPC server may close a connection on which PING frames arrive more often than it permits while the
	// streams are silent (KeepaliveEnforcementPolicy of grpc-go: by default, every 5 minutes). Later
	// connections to such a target send none. If the first silent stream must not be cut, choose a value
	// that the server permits.
	Ping time.Duration
}

const (
	defaultPing     = 15 * time.Second
	maxPingPatience = 15 * time.Second // longest time for the answer to a PING
)

// maxResponseHeaderBytes limits the size of a response header.
const maxResponseHeaderBytes = 1 << 20

// NewTransport returns a transport for UpstreamOptions.Transport. With nil options it is like the one that
// upstreams use by default. It speaks HTTP/1.1 and, over TLS, HTTP/2. For URLs with the scheme h2c it speaks
// HTTP/2 without TLS. For URLs with the scheme unix it speaks HTTP/1.1 to the socket whose path is the URL's
// Host. (To make an http.Transport support unix, call its RegisterProtocol("unix", NewTransport(nil)).) It
// ignores the environment's proxy settings, does not decompress responses, and accepts a response header of
// at most 1 MiB. It is safe for concurrent use. NewTransport panics on a negative option other than Ping.
//
// An upgrade, such as to WebSocket, needs HTTP/1.1. For https targets, upgrades use separate connections that
// offer only HTTP/1.1. For h2c targets, the field Upgrade is removed, as if the target had ignored it (RFC
// 9110 section 7.8).
func NewTransport(opts *TransportOptions) http.RoundTripper {
	var o TransportOptions
	if opts != nil {
		o = *opts
	}
	if o.DialTimeout < 0 || o.MaxIdlePerHost < 0 || o.MaxPerHost < 0 || o.IdleTimeout < 0 {
		panic("gateway: NewTransport: negative option")
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 3 * time.Second
	}
	if o.MaxIdlePerHost == 0 {
		o.MaxIdlePerHost = 256
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 90 * time.Second
	}
	if o.Ping == 0 {
		o.Ping = defaultPing
	}
	dialer := &net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}
	t := &transport{
		h1:       o.http1(dialer, "h2", "http/1.1"),
		upgrades: o.http1(dialer, "http/1.1"),
		h2:       o.pinging(dialer),
		h2c:      o.pinging(dialer),
		idn:      o.http2(dialer),
	}
	for _, h2 := range [...]*http.Transport{t.h2.loud, t.h2.quiet} {
		h2.Protocols.SetHTTP2(true)
		h2.DialTLSContext = t.dialHTTP2
	}
	t.h2c.loud.Protocols.SetUnencryptedHTTP2(true)
	t.h2c.quiet.Protocols.SetUnencryptedHTTP2(true)
	t.idn.Protocols.SetHTTP1(true)
	t.idn.Protocols.SetHTTP2(true)
	t.idn.TLSClientConfig = o.TLS.Clone()
	return t
}

// http1 returns a transport for HTTP/1.1. Over TLS it offers the protocols in offer.
func (o *TransportOptions) http1(dialer *net.Dialer, offer ...string) *h1.Transport {
	return h1.New(&h1.Options{
		Dial:                dialPatiently(dialer),
		TLS:                 o.TLS,
		Offer:               offer,
		DialTimeout:         o.DialTimeout,
		TLSHandshakeTimeout: o.DialTimeout,
		ContinueTimeout:     time.Second,
		IdleTimeout:         o.IdleTimeout,
		MaxIdlePerHost:      o.MaxIdlePerHost,
		MaxPerHost:          o.MaxPerHost,
		MaxHeaderBytes:      maxResponseHeaderBytes,
	})
}

// dialPatiently returns dialer.DialContext, which dials a Unix socket again while the queue of the socket is
// full. The kernel refuses such a connection at once (EAGAIN). With TCP, the connection would wait.
func dialPatiently(dialer *net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		const longest = 20 * time.Millisecond
		for pause := time.Millisecond; ; pause = min(2*pause, longest) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if network != schemeUnix || !neterror.BacklogFull(err) {
				return conn, err
			}
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(pause):
			}
		}
	}
}

// pinging is an HTTP/2 transport that sends PING frames, and one that does not, for targets that do not
// permit them.
type pinging struct{ loud, quiet *http.Transport }

// pinging returns both transports. The caller must set their Protocols.
func (o *TransportOptions) pinging(dialer *net.Dialer) pinging {
	silent := *o
	silent.Ping = -1
	return pinging{o.http2(dialer), silent.http2(dialer)}
}

// http2 returns a transport of net/http. The caller must set its Protocols.
func (o *TransportOptions) http2(dialer *net.Dialer) *http.Transport {
	t := &http.Transport{
		DialContext:            dialer.DialContext,
		Protocols:              new(http.Protocols),
		DisableCompression:     true,
		MaxIdleConnsPerHost:    o.MaxIdlePerHost,
		MaxConnsPerHost:        o.MaxPerHost,
		IdleConnTimeout:        o.IdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		WriteBufferSize:        16 << 10,
		ReadBufferSize:         16 << 10,
	}
	if o.Ping > 0 {
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: o.Ping, PingTimeout: min(o.Ping, maxPingPatience)}
	}
	return t
}

// defaultTransport returns the transport that is shared by every Upstream without UpstreamOptions.Transport.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport(nil) })

// transport sends each request with the protocol of its target: HTTP/1.1 by internal/h1, HTTP/2 by net/http.
//
// On every new connection to a target with the scheme https, the target chooses the protocol (ALPN).
// transport remembers which targets chose HTTP/1.1. This only decides whose pool of connections it looks into
// first. A request to an unknown target goes to h2, so that concurrent first requests share one HTTP/2
// connection, as with net/http. If the target chooses HTTP/1.1, the new connection goes into the pool of h1,
// and the request is sent by h1.
//
// For example, a target that spoke HTTP/2 restarts and now speaks HTTP/1.1. The next request finds no HTTP/2
// connection, so a new one is opened. The target chooses HTTP/1.1, and the request is sent with that. A
// change from HTTP/1.1 to HTTP/2 works in the same way (see sendOn).
type transport struct {
	h1       *h1.Transport
	upgrades *h1.Transport // for https; offers only HTTP/1.1
	h2, h2c  pinging
	idn      *http.Transport // for hosts that are not ASCII, which only net/http can convert

	known    hostSet // targets that last chose HTTP/1.1
	pingless hostSet // targets that closed a connection because of its PING frames

	mu    sync.Mutex             // guards spare
	spare map[string][]*tls.Conn // HTTP/2 connections that h2 will use instead of dialing, by address
}

// hostSet is a set of hosts of targets' URLs. It is read without a lock and rarely changes. The zero value is
// empty.
type hostSet struct {
	hosts atomic.Pointer[map[string]bool] // replaced as a whole, never modified
	mu    sync.Mutex                      // held while hosts is replaced
}

// maxTargets is the largest number of hosts in a hostSet. When it is reached, the set is emptied: the
// protocol of each target is then found again.
const maxTargets = 10_000

func (s *hostSet) has(host string) bool {
	hosts := s.hosts.Load()
	return hosts != nil && (*hosts)[host]
}

// put adds host, or removes it if in is false.
func (s *hostSet) put(host string, in bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has(host) == in {
		return
	}
	hosts := make(map[string]bool)
	if old := s.hosts.Load(); old != nil && len(*old) < maxTargets {
		maps.Copy(hosts, *old)
	}
	if in {
		hosts[host] = true
	} else {
		delete(hosts, host)
	}
	s.hosts.Store(&hosts)
}

// errHTTP1 is the error of a dial for HTTP/2 when the target chose HTTP/1.1.
var errHTTP1 = errors.New("gateway: the target chose HTTP/1.1")

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) { return t.do(r, directCall{}) }

// directCall is a deadline and hooks that internal/h1 takes as arguments, which saves a context.
type directCall struct {
	by    time.Time // deadline of the response header, after which the error is ErrTimeout; zero for none
	hooks *h1.Hooks // called with arg; may be nil
	arg   any
}

// speaksHTTP1 reports whether a request to u is sent with HTTP/1.1. It returns false if that is not known.
func (t *transport) speaksHTTP1(u *url.URL, upgrade bool) bool {
	switch u.Scheme {
	case schemeUnix:
		return true
	case "http":
		return isASCII(u.Host)
	}
	return u.Scheme == "https" && (upgrade || t.known.has(u.Host)) && isASCII(u.Host)
}

// to returns the transport for host.
func (p pinging) to(host string, pingless *hostSet) *http.Transport {
	if pingless.has(host) {
		return p.quiet
	}
	return p.loud
}

// failed updates t after a request to host has failed with err. t may be nil.
func (t *transport) failed(host string, err error) {
	if t != nil && neterror.TooManyPings(err) {
		t.pingless.put(host, true)
	}
}

// do makes a round trip.
func (t *transport) do(r *http.Request, call directCall) (*http.Response, error) {
	upgrade := len(r.Header["Upgrade"]) > 0
	switch {
	case r.URL.Scheme == "h2c":
		return call.sendStandard(t.h2c.to(r.URL.Host, &t.pingless), asHTTP(r, upgrade))
	case r.URL.Scheme == schemeUnix:
		return call.send(t.h1, r)
	case !isASCII(r.URL.Host):
		return call.sendStandard(t.idn, r)
	case r.URL.Scheme != "https":
		return call.send(t.h1, r)
	case upgrade:
		return call.send(t.upgrades, r)
	}
	if !t.known.has(r.URL.Host) {
		out, body := keepBody(r)
		res, err := call.sendStandard(t.h2.to(r.URL.Host, &t.pingless), out)
		if !errors.Is(err, errHTTP1) {
			body.release()
			return res, err
		}
		t.known.put(r.URL.Host, true)
	}
	res, err := call.send(t.h1, r)
	var other *h1.OtherProtocol
	if errors.As(err, &other) {
		return t.sendOn(other, call)
	}
	return res, err
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// send makes a round trip with HTTP/1.1.
func (c directCall) send(t *h1.Transport, r *http.Request) (*http.Response, error) {
	d := h1.Deadline{By: c.by, Err: ErrTimeout}
	if c.hooks == nil {
		return t.RoundTripBy(r, d)
	}
	if httptrace.ContextClientTrace(r.Context()) != nil { // the user's own hooks must be called as well
		return t.RoundTripBy(c.traced(r), d)
	}
	return t.Do(r, d, c.hooks, c.arg)
}

// traced returns r with the hooks as an httptrace.ClientTrace in its context, for other transports.
func (c directCall) traced(r *http.Request) *http.Request {
	if c.hooks == nil {
		return r
	}
	var trace httptrace.ClientTrace
	if f := c.hooks.GotConn; f != nil {
		trace.GotConn = func(info httptrace.GotConnInfo) { f(c.arg, info) }
	}
	if f := c.hooks.GotFirstResponseByte; f != nil {
		trace.GotFirstResponseByte = func() { f(c.arg) }
	}
	if f := c.hooks.Got1xxResponse; f != nil {
		limit := int64(c.hooks.Max1xx)
		var count atomic.Int64
		trace.Got1xxResponse = func(code int, header textproto.MIMEHeader) error {
			if count.Add(1) > limit && limit > 0 {
				return fmt.Errorf("%w: more than %d informational responses", ErrBadGateway, limit)
			}
			return f(c.arg, code, header)
		}
	}
	header := c.header(r)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &trace))
	r.Header = header
	return r
}

// sendOn sends a request for which h1 has opened a connection on which the target chose HTTP/2. h2 sends it
// on that connection, or on an older one.
func (t *transport) sendOn(other *h1.OtherProtocol, call directCall) (*http.Response, error) {
	r := other.Request
	if other.Protocol != "h2" {
		other.Conn.Close()
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, other
	}
	t.known.put(r.URL.Host, false)
	port := r.URL.Port()
	if port == "" {
		port = "443"
	}
	addr := net.JoinHostPort(r.URL.Hostname(), port)
	t.mu.Lock()
	if t.spare == nil {
		t.spare = make(map[string][]*tls.Conn)
	}
	t.spare[addr] = append(t.spare[addr], other.Conn)
	t.mu.Unlock()
	defer func() {
		if t.takeSpare(addr, other.Conn) != nil {
			other.Conn.Close()
		}
	}()
	return call.sendStandard(t.h2.to(r.URL.Host, &t.pingless), r)
}

// sendStandard makes a round trip with a transport of net/http.
func (c directCall) sendStandard(t *http.Transport, r *http.Request) (*http.Response, error) {
	r = c.traced(r)
	if c.by.IsZero() {
		return t.RoundTrip(r)
	}
	// The context is not canceled while the response's body may still be read.
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(time.Until(c.by), func() { cancel(ErrTimeout) })
	res, err := t.RoundTrip(r.WithContext(ctx))
	if !timer.Stop() && err == nil {
		res.Body.Close()
		return nil, ErrTimeout
	}
	if err != nil {
		if context.Cause(ctx) == ErrTimeout {
			err = timedOut(err)
		}
		cancel(nil)
	}
	return res, err
}

// takeSpare removes a connection to addr from spare and returns it: conn, or any if conn is nil. It returns
// nil if there is none.
func (t *transport) takeSpare(addr string, conn *tls.Conn) *tls.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	conns := t.spare[addr]
	i := slices.Index(conns, conn)
	if conn == nil {
		i = len(conns) - 1
	}
	if i < 0 {
		return nil
	}
	conn = conns[i]
	if conns = slices.Delete(conns, i, i+1); len(conns) == 0 {
		delete(t.spare, addr)
	} else {
		t.spare[addr] = conns
	}
	return conn
}

// dialHTTP2 opens the connections of h2 over TLS. If the target chooses HTTP/1.1, the connection is kept for
// h1 and the error is errHTTP1.
func (t *transport) dialHTTP2(ctx context.Context, _, addr string) (net.Conn, error) {
	if conn := t.takeSpare(addr, nil); conn != nil {
		return conn, nil
	}
	protocol, conn, err := t.h1.Negotiate(ctx, addr)
	switch {
	case err != nil:
		return nil, err
	case protocol == "h2":
		return conn, nil
	case conn != nil:
		conn.Close()
	}
	return nil, errHTTP1
}

// keptBody is a request's body whose Close has no effect before release. h2 closes the body when it finds
// that the target chose HTTP/1.1. With a keptBody, h1 can then still send the request.
type keptBody struct {
	io.ReadCloser
	mu               sync.Mutex
	closed, released bool
}

// keepBody returns a copy of r with a keptBody, or r and nil if it has no body.
func keepBody(r *http.Request) (*http.Request, *keptBody) {
	if r.Body == nil || r.Body == http.NoBody {
		return r, nil
	}
	body := &keptBody{ReadCloser: r.Body}
	out := *r
	out.Body = body
	return &out, body
}

func (b *keptBody) Close() error {
	b.mu.Lock()
	b.closed = true
	released := b.released
	b.mu.Unlock()
	if !released {
		return nil
	}
	return b.ReadCloser.Close()
}

// release closes the body if Close was called before. After release, Close closes the body.
func (b *keptBody) release() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.released = true
	closed := b.closed
	b.mu.Unlock()
	if closed {
		b.ReadCloser.Close()
	}
}

// asHTTP returns a copy of r, whose scheme is h2c, with the scheme http, which http.Transport uses for h2c.
// If dropUpgrade is true, the copy has no Upgrade, which HTTP/2 does not have.
func asHTTP(r *http.Request, dropUpgrade bool) *http.Request {
	out := *r
	u := *r.URL
	u.Scheme = "http"
	out.URL = &u
	if dropUpgrade {
		out.Header = maps.Clone(r.Header)
		delete(out.Header, "Connection")
		delete(out.Header, "Upgrade")
	}
	return &out
}

// CloseIdleConnections closes the connections that no request uses.
func (t *transport) CloseIdleConnections() {
	t.h1.CloseIdleConnections()
	t.upgrades.CloseIdleConnections()
	for _, p := range [...]pinging{t.h2, t.h2c} {
		p.loud.CloseIdleConnections()
		p.quiet.CloseIdleConnections()
	}
	t.idn.CloseIdleConnections()
}
