package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// ProxyOptions say what Proxy changes on the way. Without them the path, the query and the body go out as
// they came.
type ProxyOptions struct {
	StripPrefix    string                       // removed from the path, by whole segments; a path without it gets 404
	Path           string                       // new path; {name} takes the route's path value
	PreserveHost   bool                         // send the client's Host instead of the target's
	MaxBodyBytes   int64                        // request body; 0 means 10 MiB, negative none; above it 413
	Identity       map[string]string            // field to claim: written when somebody is authenticated, removed with its aliases from every request that comes in; nil means {"X-User-ID": "sub"}
	Rewrite        func(*httputil.ProxyRequest) // last word on the outgoing request; nil changes nothing
	ModifyResponse func(*http.Response) error   // an error is answered instead; nil changes nothing
}

// Proxy forwards to an Upstream, or to any RoundTripper (then Rewrite sets the URL): streaming, server-sent
// events, WebSocket and other upgrades, gRPC and trailers both ways. It removes hop-by-hop fields (RFC 9110
// section 7.6.1), sets X-Forwarded-For, -Host and -Proto, X-Real-IP, X-Trace-ID, traceparent and the
// identity fields, and lets no client forge them under any spelling that a backend could fold into them:
// what it writes it also removes, on public routes too. Query parameters that two parsers could read
// differently are cleaned as httputil.ReverseProxy does.
//
// What goes wrong before the answer has begun is answered by WriteError; after that the connection is
// aborted with http.ErrAbortHandler, so that the client sees that its answer is not whole.
//
// It panics at setup when to is nil, a template names no path value that could exist, or a field name is
// none.
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
		p.template = parsePathTemplate(p.opts.Path)
	}
	p.own = newOwnFields("Proxy", p.opts.Identity)
	return p
}

type proxy struct {
	to       http.RoundTripper
	opts     ProxyOptions
	own      *ownFields
	template []templatePart
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	if p.opts.MaxBodyBytes > 0 && r.ContentLength > p.opts.MaxBodyBytes {
		refuse(rw, r, ErrBodyTooLarge)
		return
	}
	early := &informational{w: rw, over: !r.ProtoAtLeast(1, 1)}
	trace := &httptrace.ClientTrace{Got1xxResponse: early.pass}
	if upgradeType(r.Header) != "" {
		trace.GotConn = early.gotConn
	}
	out := r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	if err := p.outgoing(ex, r, out); err != nil {
		refuse(rw, r, err)
		return
	}
	var body *requestBody
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		body = &requestBody{from: r, trailer: out.Trailer, limit: p.opts.MaxBodyBytes}
		out.Body = body
		// The transport may still be reading when the answer is complete; after that it must not.
		defer body.stop()
		if r.ProtoMajor == 1 {
			// Without it the server swallows the body before it sends the answer.
			_ = http.NewResponseController(rw).EnableFullDuplex()
		}
	} else {
		out.Body = nil // lets the transport send the request again on another connection
	}

	p.forward(ex, rw, r, out, body, early)
	if body != nil && r.ProtoMajor == 1 {
		body.leave(rw)
	}
}

// forward sends out and answers with what comes back.
func (p *proxy) forward(ex *exchange, rw *responseWriter, r, out *http.Request, body *requestBody, early *informational) {
	if p.opts.Rewrite != nil {
		pr := &httputil.ProxyRequest{In: r, Out: out}
		p.opts.Rewrite(pr)
		out = pr.Out
	}
	res, err := p.to.RoundTrip(out)
	early.stop()
	if err != nil {
		p.fail(rw, r, body, attemptError(out, err))
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		p.upgrade(rw, r, out, res, early.conn)
		return
	}

	removeHopByHop(res.Header)
	if !p.modify(rw, r, res) {
		return
	}
	p.answer(ex, rw, r, res)
}

// outgoing makes out, a copy of r, the request that is sent, but for its body.
func (p *proxy) outgoing(ex *exchange, r, out *http.Request) error {
	link := *r.URL
	out.URL = &link
	out.Close = false
	out.RequestURI = ""
	if !p.opts.PreserveHost {
		out.Host = ""
	}

	path := escapedPath(r.URL)
	if prefix := p.opts.StripPrefix; prefix != "" {
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok || rest != "" && rest[0] != '/' {
			return ErrNoRoute
		}
		path = rest
	}
	if p.template != nil {
		var err error
		if path, err = expandPath(p.template, r); err != nil {
			return err
		}
	}
	if err := setEscapedPath(&link, path); err != nil {
		return &Error{Status: http.StatusBadRequest, Err: err}
	}
	link.RawQuery = cleanQuery(link.RawQuery)

	protocol := upgradeType(r.Header)
	if !printable(protocol) {
		return &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("upgrade to protocol %q", protocol)}
	}
	out.Header = p.forwardable(ex, r.Header)
	if hasToken(r.Header["Te"], "trailers") {
		out.Header["Te"] = []string{"trailers"}
	}
	if protocol != "" {
		out.Header["Connection"] = []string{"Upgrade"}
		out.Header["Upgrade"] = []string{protocol}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = noField // else the transport names itself
	}
	if err := p.own.write(out.Header, r); err != nil {
		return err
	}
	out.Trailer = nil
	if len(r.Trailer) > 0 {
		out.Trailer = make(http.Header, len(r.Trailer))
		for name := range r.Trailer {
			if !p.own.owns(name) && !isHopByHop(name) {
				out.Trailer[name] = nil // its value comes with the end of the body
			}
		}
	}
	return nil
}

// noField stands for a field that is not sent.
var noField = []string{""}

// forwardable copies the fields that are for the target: none that is for this hop alone, and none that
// the gateway writes itself.
func (p *proxy) forwardable(ex *exchange, h http.Header) http.Header {
	ex.mu.Lock()
	traceHeader := ex.traceHeader
	ex.mu.Unlock()
	named := h["Connection"]
	out := make(http.Header, len(h)+8)
	for name, values := range h {
		if isHopByHop(name) || p.own.owns(name) || len(named) > 0 && hasToken(named, name) ||
			traceHeader != "" && sameField(name, traceHeader) {
			continue
		}
		out[name] = values
	}
	return out
}

// fail answers a request that got no response.
func (p *proxy) fail(rw *responseWriter, r *http.Request, body *requestBody, err error) {
	if body != nil {
		if cause := body.cause(); cause != nil && !leftEarly(r.Context()) {
			err = cause // whatever the transport made of it
		}
		if !body.ended.Load() && r.ProtoMajor == 1 && (r.ContentLength < 0 || r.ContentLength > postHandlerRead) {
			// The server may not read the rest, which a client must know that would send another request.
			rw.Header().Set("Connection", "close")
		}
	}
	WriteError(rw, r, err)
}

// modify lets ModifyResponse have its say, and answers if it says no.
func (p *proxy) modify(rw *responseWriter, r *http.Request, res *http.Response) bool {
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
	WriteError(rw, r, err)
	return false
}

// answer passes the response on.
func (p *proxy) answer(ex *exchange, rw *responseWriter, r *http.Request, res *http.Response) {
	ex.mu.Lock()
	traceHeader := ex.traceHeader
	ex.mu.Unlock()
	h := rw.Header()
	for name, values := range res.Header {
		if traceHeader != "" && sameField(name, traceHeader) {
			continue // the gateway has said it
		}
		if had, ok := h[name]; ok {
			values = append(had[:len(had):len(had)], values...)
		}
		h[name] = values
	}
	announced := len(res.Trailer)
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	rw.WriteHeader(res.StatusCode)

	streams := res.ContentLength == -1 && r.Method != http.MethodHead || isEventStream(res.Header)
	readErr, writeErr := copyBody(rw, res.Body, streams)
	switch {
	case writeErr != nil:
		// The client is gone, or its connection is; there is nobody to tell.
		ex.note(ending{gone: true}.outcome(), writeErr)
		panic(http.ErrAbortHandler)
	case readErr != nil:
		e := ending{err: readErr, began: true, gone: leftEarly(r.Context())}
		ex.note(e.outcome(), fmt.Errorf("%w: body of the response: %w", ErrBadGateway, readErr))
		_ = rw.FlushError() // the client gets what came
		panic(http.ErrAbortHandler)
	}

	// Closing fills in trailers that were not announced.
	res.Body.Close()
	if len(res.Trailer) == 0 {
		return
	}
	// Even a short answer is sent in chunks then, which alone carry trailers.
	_ = rw.FlushError()
	for name, values := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// upgrade joins the two connections after both ends agreed to switch protocols. wire is the connection
// below the response's body, which alone can be closed by half.
func (p *proxy) upgrade(rw *responseWriter, r, out *http.Request, res *http.Response, wire net.Conn) {
	asked, got := upgradeType(out.Header), upgradeType(res.Header)
	target, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(asked, got) {
		WriteError(rw, r, fmt.Errorf("%w: switched to protocol %q, asked was %q", ErrBadGateway, got, asked))
		return
	}
	if !p.modify(rw, r, res) {
		return
	}
	conn, buf, err := rw.Hijack()
	if err != nil {
		WriteError(rw, r, fmt.Errorf("hijack: %w", err))
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
		client, server := &frameWriter{dst: conn}, &frameWriter{dst: target, masked: true}
		toClient, toTarget = client, server
		serving, _ := r.Context().Value(upgradesKey{}).(*upgrades)
		forget := serving.atGoodbye(func() {
			client.goAway()
			server.goAway()
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

// informational passes 1xx answers on, until the final one is here, and remembers the connection that
// they come by.
type informational struct {
	mu   sync.Mutex
	w    *responseWriter
	conn net.Conn
	over bool
}

func (i *informational) gotConn(info httptrace.GotConnInfo) {
	i.mu.Lock()
	i.conn = info.Conn
	i.mu.Unlock()
}

func (i *informational) pass(code int, header textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over || code == http.StatusContinue {
		return nil // the server sends its own 100 when the body is read
	}
	h := i.w.Header()
	saved := make(http.Header, len(h))
	for name, values := range h {
		saved[name] = values
	}
	clear(h)
	for name, values := range header {
		h[name] = values
	}
	i.w.WriteHeader(code)
	clear(h)
	for name, values := range saved {
		h[name] = values
	}
	return nil
}

func (i *informational) stop() {
	i.mu.Lock()
	i.over = true
	i.mu.Unlock()
}

// requestBody is what the transport reads: at most limit bytes of the client's body, and nothing once the
// handler has returned. Closing it does not close the client's: that would wait for bytes that a client
// which was told 100-continue has not sent.
type requestBody struct {
	from    *http.Request
	trailer http.Header // of the outgoing request; takes its values at the end
	limit   int64       // negative: none
	read    int64
	closed  atomic.Bool
	ended   atomic.Bool // read to its end
	failed  atomic.Pointer[error]
}

var errBodyClosed = errors.New("gateway: read of a request body after its end")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errBodyClosed
	}
	if b.limit >= 0 && int64(len(p)) > b.limit-b.read+1 {
		p = p[:b.limit-b.read+1] // one more shows that there is more
	}
	n, err := b.from.Body.Read(p)
	b.read += int64(n)
	if b.limit >= 0 && b.read > b.limit {
		n -= int(b.read - b.limit)
		b.read = b.limit
		return n, b.fail(fmt.Errorf("%w: more than %d bytes", ErrBodyTooLarge, b.limit))
	}
	switch {
	case err == io.EOF:
		b.ended.Store(true)
		for name := range b.trailer {
			b.trailer[name] = b.from.Trailer[name]
		}
	case err != nil && !b.closed.Load():
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return n, b.fail(fmt.Errorf("%w: %w", ErrBodyTooLarge, err))
		}
		return n, b.fail(&Error{Status: http.StatusBadRequest, Err: fmt.Errorf("body of the request: %w", err)})
	}
	return n, err
}

func (b *requestBody) fail(err error) error {
	b.failed.CompareAndSwap(nil, &err)
	return err
}

// cause is why the body could not be read, nil if it could.
func (b *requestBody) cause() error {
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (b *requestBody) stop() { b.closed.Store(true) }

// postHandlerRead is how much of a body net/http's server reads to keep the connection.
const postHandlerRead = 256 << 10

// leave deals with what was not read of the client's body when the answer is complete. The server would do
// so itself, but with full duplex enabled it reads the next request twice at once then (golang/go#68560).
func (b *requestBody) leave(w *responseWriter) {
	b.stop()
	w.ex.mu.Lock()
	hijacked := w.hijacked
	w.ex.mu.Unlock()
	if hijacked || b.ended.Load() {
		return
	}
	_ = w.FlushError()
	b.from.Body.Close()
}

func (b *requestBody) Close() error {
	b.stop()
	return nil
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

// isHopByHop reports whether a field is for one connection only (RFC 9110 section 7.6.1).
func isHopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

func removeHopByHop(h http.Header) {
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for name := range h {
		if isHopByHop(name) {
			delete(h, name)
		}
	}
}

// hasToken reports whether one of the comma-separated lists has token, in any case.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for t := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(textproto.TrimString(t), token) {
				return true
			}
		}
	}
	return false
}

// upgradeType is the protocol that h asks to switch to, "" for none.
func upgradeType(h http.Header) string {
	if len(h["Upgrade"]) == 0 || !hasToken(h["Connection"], "Upgrade") {
		return ""
	}
	return h["Upgrade"][0]
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// cleanQuery returns query as it is when every parser reads it alike, and else what net/url reads of it.
func cleanQuery(query string) string {
	const most = 10_000 // as net/url
	clean := strings.Count(query, "&") < most
	for i := 0; clean && i < len(query); i++ {
		switch query[i] {
		case ';':
			clean = false
		case '%':
			clean = i+2 < len(query) && isHex(query[i+1]) && isHex(query[i+2])
		}
	}
	if clean {
		return query
	}
	values, _ := url.ParseQuery(query)
	return values.Encode()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// setEscapedPath makes u's path what the escaped path says.
func setEscapedPath(u *url.URL, escaped string) error {
	if escaped == "" {
		escaped = "/"
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return err
	}
	u.Path, u.RawPath = path, escaped
	return nil
}

// templatePart is a piece of a path template: text as it stands, or the name of a path value.
type templatePart struct {
	text, name string
	rest       bool // {name...}: slashes of the value stay
}

// parsePathTemplate splits "/users/{id}/x" into its parts; it panics when the template is none.
func parsePathTemplate(template string) []templatePart {
	if template[0] != '/' {
		panic("gateway: Proxy: Path must begin with a slash")
	}
	var parts []templatePart
	for rest := template; rest != ""; {
		text, after, found := strings.Cut(rest, "{")
		if text != "" {
			if _, err := url.PathUnescape(text); err != nil || strings.ContainsAny(text, "}?#") {
				panic(fmt.Sprintf("gateway: Proxy: Path %q is no path", template))
			}
			parts = append(parts, templatePart{text: (&url.URL{Path: mustUnescape(text), RawPath: text}).EscapedPath()})
		}
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		name, multi := strings.CutSuffix(name, "...")
		if !closed || name == "" || strings.ContainsAny(name, "{/") {
			panic(fmt.Sprintf("gateway: Proxy: bad {name} in Path %q", template))
		}
		parts = append(parts, templatePart{name: name, rest: multi})
		rest = tail
	}
	return parts
}

func mustUnescape(s string) string {
	s, _ = url.PathUnescape(s)
	return s
}

// expandPath fills a template with the path values of r. A value that would be a dot segment is refused:
// the target would read another path than the one that was routed.
func expandPath(template []templatePart, r *http.Request) (string, error) {
	var b strings.Builder
	for _, part := range template {
		if part.name == "" {
			b.WriteString(part.text)
			continue
		}
		value := r.PathValue(part.name)
		if value == "" && !part.rest {
			return "", fmt.Errorf("gateway: Proxy: the route has no path value %q", part.name)
		}
		segments := []string{value}
		if part.rest {
			if rest, ok := escapedRest(r.URL, value); ok {
				b.WriteString(rest)
				continue
			}
			segments = strings.Split(value, "/")
		}
		for i, s := range segments {
			if i > 0 {
				b.WriteByte('/')
			}
			b.WriteString(url.PathEscape(s))
		}
	}
	path := b.String()
	if slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return s == "." || s == ".." }) {
		return "", &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("path value makes %q a path with dot segments", path)}
	}
	return path, nil
}
