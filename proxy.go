package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strings"
	"sync"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
	"github.com/seed-96248d0c/gateway/internal/wsframe"
)

// ProxyOptions say what Proxy changes on the way. Without them the path, the query and the body go out as
// they came.
type ProxyOptions struct {
	StripPrefix    string                       // removed from the path, by whole segments; a path without it gets 404
	Path           string                       // new path; {name} takes the route's path value
	PreserveHost   bool                         // send the client's Host instead of the target's
	MaxBodyBytes   int64                        // request body; 0 means 10 MiB, negative none; above it 413
	Identity       map[string]string            // field to claim: written when somebody is authenticated, removed with its aliases from every request that comes in; nil means {"X-User-ID": "sub"}
	ClientCert     bool                         // send the verified client certificate as Client-Cert (RFC 9440)
	Rewrite        func(*httputil.ProxyRequest) // last word on the outgoing request; nil changes nothing
	ModifyResponse func(*http.Response) error   // an error is answered instead; nil changes nothing
}

// Proxy forwards to an Upstream, or to any RoundTripper (then Rewrite sets the URL): streaming, server-sent
// events, WebSocket and other upgrades, gRPC and trailers both ways. It removes hop-by-hop fields (RFC 9110
// section 7.6.1), sets X-Forwarded-For, -Host and -Proto, X-Real-IP, X-Trace-ID, traceparent and the
// identity fields, and lets no client forge them under any spelling that a backend could fold into them:
// what it writes it also removes, on public routes and from trailers too. An Identity whose claim is no field
// value is refused with 401; a claim that is absent or empty writes nothing.
//
// What two parsers could read differently does not go on: a path with dot segments, encoded or not, gets 400
// whatever mux routed it; query parameters are cleaned as httputil.ReverseProxy does, and raw bytes that may
// not stand in a query are escaped; CONNECT gets 501. An upgrade to another version of HTTP, behind which
// nobody would look at the requests any more, is not offered to the target, nor is one from HTTP/1.0 or with a
// body.
//
// The answer goes back as it came, also without a Content-Type. 1xx answers go on at once, at most 100. What
// goes wrong before the answer has begun is answered by WriteError; after that the connection is aborted with
// http.ErrAbortHandler, so that the client sees that its answer is not whole.
//
// When the client asked for 100-continue over HTTP/1.1, its body is not asked for before the target does, or
// the transport's patience ends (a second with NewTransport).
//
// Rewrite may change or replace Out; the request ends with In in any case. What ModifyResponse changes, it must
// change as a whole: a new body needs its own Content-Length. A panic in either goes on up.
//
// It panics at setup when to is nil, a template is malformed, or a field name is
// none, is another's alias, or is one that Proxy writes anyway.
func Proxy(to http.RoundTripper, opts *ProxyOptions) http.Handler {
	if to == nil {
		panic("gateway: Proxy: nil RoundTripper")
	}
	p := &proxy{to: to}
	if opts != nil {
		p.opts = *opts
	}
	if p.opts.MaxBodyBytes == 0 {
		p.opts.MaxBodyBytes = 10 << 20
	}
	if s := p.opts.StripPrefix; s != "" && s[0] != '/' {
		panic("gateway: Proxy: StripPrefix must begin with a slash")
	}
	p.opts.StripPrefix = strings.TrimSuffix(p.opts.StripPrefix, "/")
	if p.opts.Path != "" {
		var err error
		if p.template, err = urlpath.ParseTemplate(p.opts.Path, urlpath.Syntax{Rest: true, Dots: true}); err != nil {
			panic(fmt.Sprintf("gateway: Proxy: Path %q: %v", p.opts.Path, err))
		}
	}
	p.owned = newOwnedFields("Proxy", p.opts.Identity)
	p.owned.clientCert = p.opts.ClientCert
	return p
}

type proxy struct {
	to       http.RoundTripper
	opts     ProxyOptions
	owned    *ownedFields
	template *urlpath.Template
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	if err := p.unforwardable(r); err != nil {
		refuse(rw, r, err)
		return
	}
	t := &trip{w: rw, silent: !r.ProtoAtLeast(1, 1)}
	t.trace.Got1xxResponse = t.pass
	ctx := r.Context()
	if p.opts.Rewrite == nil {
		ctx = httptrace.WithClientTrace(ctx, &t.trace)
	}
	out := r.WithContext(ctx)
	if err := p.outgoing(ex, r, out); err != nil {
		refuse(rw, r, err)
		return
	}
	var body *requestBody
	if hasContent(r) {
		body = &t.body
		body.from, body.trailer, body.limit = r, out.Trailer, p.opts.MaxBodyBytes
		body.owned, body.traceHeader = p.owned, ex.traceField()
		out.Body = body
		// The transport may still be reading when the answer is complete; after that it must not.
		defer body.finish(rw)
		if r.ProtoMajor == 1 && httpfield.HasToken(r.Header["Expect"], "100-continue") {
			e := &expectation{changed: make(chan struct{})}
			body.expectation = e
			t.trace.GotConn = e.begin
			t.trace.GotFirstResponseByte = e.firstByte
		}
	} else {
		out.Body = nil // lets the transport send the request again on another connection
		out.ContentLength = 0
	}

	if p.opts.Rewrite != nil {
		pr := &httputil.ProxyRequest{In: r, Out: out}
		p.opts.Rewrite(pr)
		out = pr.Out
		ctx := out.Context()
		if exchangeFrom(ctx) != ex {
			// A request made from nothing would not notice that the client has left.
			own, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(r.Context(), cancel)()
			ctx = own
		}
		out = out.WithContext(httptrace.WithClientTrace(ctx, &t.trace))
		if out.Header == nil {
			out.Header = make(http.Header)
		}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = noField // else the transport names itself
	}
	if len(out.Header["Upgrade"]) > 0 {
		t.trace.GotConn = t.gotConn
	}
	res, err := p.to.RoundTrip(out)
	t.over()
	if err != nil {
		p.fail(rw, r, body, attemptError(out, err))
		return
	}
	// ModifyResponse may replace the body, and a panic of its must not leave it open.
	arrived := res.Body
	defer arrived.Close()
	if err := unanswerable(res); err != nil {
		p.fail(rw, r, body, err)
		return
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		p.upgrade(rw, r, out, res, t.conn)
		return
	}

	httpfield.RemoveHopByHop(res.Header)
	if !p.modify(rw, r, res, body) {
		return
	}
	if res.Body != arrived {
		defer res.Body.Close()
	}
	if body != nil && body.unread() {
		body.goOn(rw)
	}
	p.answer(ex, rw, r, res, body)
}

// unforwardable says why r does not go on, whoever routed it; nil when it does.
func (p *proxy) unforwardable(r *http.Request) error {
	var reason string
	switch {
	case p.opts.MaxBodyBytes > 0 && r.ContentLength > p.opts.MaxBodyBytes:
		return ErrBodyTooLarge
	case r.Method == http.MethodConnect:
		return &Error{Status: http.StatusNotImplemented, Err: errors.New("gateway: Proxy: CONNECT asks for a tunnel")}
	case r.URL.Opaque != "" || r.URL.Path != "" && r.URL.Path[0] != '/':
		reason = "a target that is no path"
	case !httpfield.IsHostBytes(r.Host):
		reason = "a malformed Host"
	default:
		if reason = urlpath.Ambiguity(r.URL.Path); reason != "" {
			reason += " in the path"
		}
	}
	if reason == "" {
		return nil
	}
	return &Error{Status: http.StatusBadRequest, Err: errors.New("gateway: Proxy: " + reason)}
}

// hasContent reports whether r has a body, or could have one.
func hasContent(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// unanswerable says why an answer cannot be passed on; nil when it can. It mends what needs no refusal.
func unanswerable(res *http.Response) error {
	if code := res.StatusCode; code < 200 && code != http.StatusSwitchingProtocols || code > 999 {
		return fmt.Errorf("%w: status %d", ErrBadGateway, code)
	}
	switch lengths := res.Header["Content-Length"]; {
	case len(lengths) == 0:
	case len(lengths) > 1 || !isDigits(lengths[0]):
		// HTTP/2 does not frame by it, but the client's HTTP/1.1 will.
		return fmt.Errorf("%w: Content-Length %q", ErrBadGateway, lengths)
	case lengths[0][0] == '0' && len(lengths[0]) > 1: // which some would read as octal
		res.Header["Content-Length"] = []string{strings.TrimLeft(lengths[0][:len(lengths[0])-1], "0") + lengths[0][len(lengths[0])-1:]}
	}
	return nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// fillPath fills a template of ProxyOptions.Path with the path values of r.
func fillPath(template *urlpath.Template, r *http.Request) (string, error) {
	path, err := template.Expand(func(h *urlpath.Hole) (string, error) {
		value := r.PathValue(h.Name)
		switch {
		case h.Rest:
			return urlpath.EscapedRest(r.URL, value), nil
		case value == "":
			return "", errors.New("the route has no such path value")
		}
		return value, nil
	})
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, urlpath.ErrAmbiguous): // the target could read another path than the one that was routed
		return "", &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("gateway: Proxy: Path: %w", err)}
	}
	return "", fmt.Errorf("gateway: Proxy: Path: %w", err)
}

// outgoing makes out, a copy of r, the request that is sent, but for its body.
func (p *proxy) outgoing(ex *exchange, r, out *http.Request) error {
	link := *r.URL
	// The client may have sent an absolute URL: where to is for the Upstream or Rewrite to say.
	link.Scheme, link.User, link.Host = "", nil, ""
	out.URL = &link
	out.Close = false
	out.RequestURI = ""
	if !p.opts.PreserveHost {
		out.Host = ""
	}

	path := urlpath.Escaped(r.URL)
	if prefix := p.opts.StripPrefix; prefix != "" {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok || rest != "" && rest[0] != '/' {
			return ErrNoRoute
		}
		path = rest
	}
	if p.template != nil {
		var err error
		if path, err = fillPath(p.template, r); err != nil {
			return err
		}
	}
	if err := urlpath.SetEscaped(&link, path); err != nil {
		return &Error{Status: http.StatusBadRequest, Err: err}
	}
	link.RawQuery = urlpath.CleanQuery(link.RawQuery)

	protocols := httpfield.UpgradeProtocols(r.Header)
	if !httpfield.IsPrintable(protocols) {
		return &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("gateway: Proxy: upgrade to protocol %q", protocols)}
	}
	out.Header = p.forwardable(ex, r.Header)
	if httpfield.HasToken(r.Header["Te"], "trailers") {
		out.Header["Te"] = []string{"trailers"}
	}
	if protocols != "" && r.ProtoMajor == 1 && r.ProtoMinor >= 1 && !hasContent(r) {
		out.Header["Connection"] = []string{"Upgrade"}
		out.Header["Upgrade"] = []string{protocols}
	}
	if err := p.owned.write(out.Header, r); err != nil {
		return err
	}
	out.Trailer = nil
	if hasContent(r) && (r.ContentLength < 0 || len(r.Trailer) > 0) {
		traceHeader := ex.traceField()
		out.Trailer = make(http.Header, len(r.Trailer))
		for name := range r.Trailer {
			if p.owned.allowTrailer(name, traceHeader) {
				out.Trailer[name] = nil // its value comes with the end of the body
			}
		}
		if len(out.Trailer) > 0 {
			out.ContentLength = -1 // over HTTP/1.1 only chunks carry trailers
		}
	}
	return nil
}

// noField stands for a field that is not sent.
var noField = []string{""}

// forwardable copies the fields that are for the target: none that is for this hop alone, and none that
// the gateway writes itself.
func (p *proxy) forwardable(ex *exchange, h http.Header) http.Header {
	traceHeader := ex.traceField()
	out := make(http.Header, len(h)+8)
	for name, values := range h {
		if httpfield.IsHopByHop(name) || p.owned.has(name, traceHeader) {
			continue
		}
		if p.opts.Rewrite != nil {
			values = slices.Clone(values) // In keeps its own, whatever Rewrite does
		}
		out[name] = values
	}
	httpfield.RemoveNamed(out, h["Connection"])
	return out
}

// fail answers a request that got no response.
func (p *proxy) fail(rw *responseWriter, r *http.Request, body *requestBody, err error) {
	if body != nil {
		if cause := body.cause(); cause != nil && !leftEarly(r.Context()) {
			err = cause // whatever the transport made of it
		}
		if body.unread() && !body.quit() {
			body.goOn(rw)
		}
	}
	WriteError(rw, r, err)
}

// modify lets ModifyResponse have its say, and answers if it says no.
func (p *proxy) modify(rw *responseWriter, r *http.Request, res *http.Response, body *requestBody) bool {
	if p.opts.ModifyResponse == nil {
		return true
	}
	err := p.opts.ModifyResponse(res)
	if err == nil {
		return true
	}
	var own *Error
	if !errors.As(err, &own) {
		err = fmt.Errorf("%w: ModifyResponse: %w", ErrBadGateway, err)
	}
	if body != nil && body.unread() {
		body.goOn(rw)
	}
	WriteError(rw, r, err)
	return false
}

// answer passes the response on. body is the request's, nil for none.
func (p *proxy) answer(ex *exchange, rw *responseWriter, r *http.Request, res *http.Response, body *requestBody) {
	traceHeader := ex.traceField()
	h := rw.Header()
	for name, values := range res.Header {
		if isTraceField(name, traceHeader) {
			continue // the gateway has said it
		}
		if had, ok := h[name]; ok {
			values = append(had[:len(had):len(had)], values...)
		}
		h[name] = values
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // else the server guesses
	}
	announced := len(res.Trailer)
	if announced > 0 && r.ProtoAtLeast(1, 1) {
		for name := range res.Trailer {
			if httpfield.AllowedInTrailer(name) {
				h.Add("Trailer", name)
			}
		}
		if r.ProtoMajor == 1 && r.Method != http.MethodHead {
			delete(h, "Content-Length") // came over HTTP/2; over HTTP/1.1 only chunks carry trailers
		}
	}
	rw.WriteHeader(res.StatusCode)
	if !httpfield.BodyAllowed(res.StatusCode) {
		return
	}

	streams := res.ContentLength == -1 && r.Method != http.MethodHead || isEventStream(res.Header)
	readErr, writeErr := copyBody(rw, res.Body, streams)
	switch {
	case errors.Is(writeErr, http.ErrContentLength):
		// ModifyResponse has replaced the body and left the length of the old one.
		ex.note(result{panicked: true}.outcome(), writeErr)
		abort(rw, body)
	case writeErr != nil:
		// The client is gone, or its connection is; there is nobody to tell.
		ex.note(result{gone: true}.outcome(), writeErr)
		abort(rw, body)
	case readErr != nil:
		e := result{err: readErr, began: true, gone: leftEarly(r.Context())}
		ex.note(e.outcome(), fmt.Errorf("%w: body of the response: %w", ErrBadGateway, readErr))
		_ = rw.FlushError() // the client gets what came
		abort(rw, body)
	}

	// Closing fills in trailers that were not announced.
	res.Body.Close()
	if len(res.Trailer) == 0 {
		return
	}
	// Even a short answer is sent in chunks then, which alone carry trailers.
	_ = rw.FlushError()
	for name, values := range res.Trailer {
		if !httpfield.AllowedInTrailer(name) {
			continue
		}
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// abort ends an answer that has begun and cannot be finished.
func abort(rw *responseWriter, body *requestBody) {
	if body != nil && body.unread() {
		// Else the server would wait for the rest of the body before it closes the connection.
		body.aborted = true
		_ = http.NewResponseController(rw).SetReadDeadline(past)
	}
	panic(http.ErrAbortHandler)
}

// upgrade joins the two connections after both ends agreed to switch protocols. wire is the connection
// below the response's body, which alone can be closed by half.
func (p *proxy) upgrade(rw *responseWriter, r, out *http.Request, res *http.Response, wire net.Conn) {
	asked, got := out.Header["Upgrade"], httpfield.UpgradeProtocols(res.Header)
	if got == "" || !httpfield.HasToken(asked, got) {
		WriteError(rw, r, fmt.Errorf("%w: switched to protocol %q, asked was %q", ErrBadGateway, got, asked))
		return
	}
	httpfield.RemoveHopByHop(res.Header)
	res.Header["Connection"], res.Header["Upgrade"] = []string{"Upgrade"}, []string{got}
	if !p.modify(rw, r, res, nil) {
		return
	}
	target, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		WriteError(rw, r, fmt.Errorf("%w: switched protocols on a connection that cannot be written to", ErrBadGateway))
		return
	}
	defer target.Close()
	conn, buf, err := rw.Hijack()
	if err != nil {
		// What stands around the gateway cannot do that; no target is to blame.
		answerError(rw, r, finish(fmt.Errorf("gateway: Proxy: upgrade: %w", err)), result{panicked: true})
		return
	}
	defer conn.Close()
	// The server no longer watches the connection for a request that ends another way.
	stop := context.AfterFunc(r.Context(), func() { target.Close(); conn.Close() })
	defer stop()

	h := rw.Header()
	for name, values := range res.Header {
		h[name] = append(h[name], values...)
	}
	head := http.Response{StatusCode: res.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if head.Write(buf) != nil || buf.Flush() != nil {
		return
	}
	// A WebSocket is told when the server drains; what other protocols would need to hear is not known.
	var toClient, toTarget io.Writer = conn, target
	if strings.EqualFold(got, "websocket") {
		client, server := wsframe.NewWriter(conn, false), wsframe.NewWriter(target, true)
		toClient, toTarget = client, server
		serving, _ := r.Context().Value(upgradesKey{}).(*upgrades)
		forget := serving.atGoodbye(func() {
			client.GoAway()
			server.GoAway()
		})
		defer forget()
	}
	finished := make(chan bool, 2)
	join := func(dst io.Writer, src io.Reader, wire net.Conn) {
		_, err := io.Copy(dst, src)
		if cw, ok := wire.(interface{ CloseWrite() error }); ok && err == nil {
			// One direction has ended well; the other may go on.
			err = cw.CloseWrite()
		} else if err == nil {
			err = errors.ErrUnsupported
		}
		finished <- err == nil
	}
	// The server's reader would take a half-closed connection for a client that left: only what it has
	// already is read from it.
	early, _ := buf.Reader.Peek(buf.Reader.Buffered())
	go join(toTarget, io.MultiReader(bytes.NewReader(early), conn), wire)
	go join(toClient, target, conn)
	if wellEnded := <-finished; !wellEnded {
		target.Close()
		conn.Close()
	}
	<-finished
}

// trip is one request on its way: it passes 1xx answers on until the final one is here, and remembers the
// connection that they come by.
type trip struct {
	w      *responseWriter
	silent bool // the client knows no 1xx
	trace  httptrace.ClientTrace
	body   requestBody

	mu     sync.Mutex
	conn   net.Conn
	passed int
	ended  bool
}

func (t *trip) gotConn(info httptrace.GotConnInfo) {
	t.mu.Lock()
	t.conn = info.Conn
	t.mu.Unlock()
}

// most1xx bounds the informational answers to one request; net/http does not once it hands them out.
const most1xx = 100

func (t *trip) pass(code int, header textproto.MIMEHeader) error {
	if e := t.body.expectation; e != nil {
		e.informed(code)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil
	}
	if t.passed++; t.passed > most1xx {
		return fmt.Errorf("%w: more than %d informational answers", ErrBadGateway, most1xx)
	}
	if t.silent || code == http.StatusContinue {
		return nil // the server sends its own 100 when the body is read
	}
	h := t.w.Header()
	saved := maps.Clone(h)
	clear(h)
	maps.Copy(h, http.Header(header))
	httpfield.RemoveHopByHop(h)
	t.w.WriteHeader(code)
	clear(h)
	maps.Copy(h, saved)
	return nil
}

// over says that the final answer, or none, is here.
func (t *trip) over() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
}

// buffers are for copying bodies.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyBody copies src to the client, each piece at once if it streams, and tells apart which end failed.
func copyBody(w *responseWriter, src io.Reader, streams bool) (readErr, writeErr error) {
	if src == http.NoBody {
		return nil, nil
	}
	if streams {
		if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil, err
		}
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return nil, err
			}
			if streams {
				if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
					return nil, err
				}
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

func isEventStream(h http.Header) bool {
	ct := h["Content-Type"]
	if len(ct) == 0 || len(ct[0]) < len("text/event-stream") || !strings.EqualFold(ct[0][:5], "text/") {
		return false
	}
	media, _, _ := mime.ParseMediaType(ct[0])
	return media == "text/event-stream"
}
