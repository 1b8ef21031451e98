package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/h1"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// ProxyOptions configures what Proxy limits and changes in a request and its response. The zero value
// forwards path and body unchanged, and the query without the parameters that Go cannot parse.
type ProxyOptions struct {
	StripPrefix    string            // prefix that is removed from the path, in whole decoded segments; other paths get 404; "" removes nothing
	Path           string            // new path; {name} is a path value of the route; {name...} keeps its slashes and may be empty; "" keeps the path
	PreserveHost   bool              // send the client's Host instead of the target's
	MaxBodyBytes   int64             // limit of a request's body, above which the client gets 413; 0 means 10 MiB, negative no limit
	BodyTimeout    time.Duration     // longest pause within a request's body, after which the client gets 408; without a Content-Length, it ends when the answer begins; 0 means 60s, negative no limit
	MaxFieldBytes  int               // limit of all request fields together (names, values and 4 bytes each), above which the client gets 431; 0 means 64 KiB, negative no limit
	Identity       map[string]string // claims to send by field: {"X-Email": "email"}; the client's own such fields are removed; nil means {"X-User-ID": "sub"}
	ClientCert     bool              // send the verified client certificate as Client-Cert (RFC 9440)
	KeepQuery      bool              // send the query unchanged; false drops parameters that Go cannot parse, such as those with ";", and counts them in the log line's remarks
	RequestFields  FieldEdits        // edits of the client's request fields; applied before the gateway sets its own fields and calls Rewrite
	ResponseFields FieldEdits        // edits of the fields of the target's response; applied before ModifyResponse

	// RewriteLocation translates Location, Content-Location and the Path of cookies in the target's response
	// to the address that the client used. StripPrefix is put back in front of a path. The target's scheme
	// and host become those in X-Forwarded-Proto and X-Forwarded-Host. For StripPrefix "/api" at gw.example:
	//
	//	/users/7                  becomes  /api/users/7
	//	http://10.0.0.1/users/7   becomes  https://gw.example/api/users/7
	//	a=1; Path=/               becomes  a=1; Path=/api
	//
	// References to other hosts and relative paths are not changed. A reference to the gateway's own host
	// gets the prefix if it lacks it. If Path is set, the original path is not known, so only scheme and host
	// change. A cookie keeps its Domain. A cookie whose name begins with __Host- keeps its Path.
	RewriteLocation bool

	Rewrite        func(*httputil.ProxyRequest) // called with the outgoing request after all other changes; nil changes nothing
	ModifyResponse func(*http.Response) error   // called with the target's response; if it returns an error, the client gets that by WriteError; nil changes nothing
}

// Proxy returns a handler that forwards requests to an Upstream, or to any other RoundTripper if Rewrite sets
// the URL. It streams bodies in both directions. It supports server-sent events, WebSocket and other
// upgrades, gRPC, and trailers in both directions.
//
// Proxy removes hop-by-hop fields (RFC 9110 section 7.6.1). It sets X-Forwarded-For, X-Forwarded-Host,
// X-Forwarded-Proto, X-Forwarded-Prefix (what StripPrefix removed, after what trusted proxies removed),
// X-Real-IP, X-Trace-ID, traceparent and the identity fields. A client cannot forge these fields: Proxy first
// removes them from every request and its trailers, on public routes as well, in every spelling that a
// backend could take for the same field. A request whose Identity has a claim that is not a valid field value
// is refused with 401. A claim that is absent or empty sets no field.
//
// X-User-ID is removed even if ProxyOptions.Identity does not list it, since Auth and most backends use it
// for the user. With several issuers, a subject is unique only together with its issuer, so send both:
// {"X-User-ID": "sub", "X-User-Issuer": "iss"}.
//
// The field traceparent carries the span of the request's context. Observe starts that span, or another
// middleware such as otelhttp. Without a span, no traceparent is sent.
//
// Proxy itself refuses a request that a transport could not send, with a status below 500. So a client cannot
// cause a failure that counts against a healthy target. A malformed method, which HTTP/2 permits, is answered
// with 400. Fields that exceed MaxFieldBytes, or the limit that an HTTP/2 target has announced, are answered
// with 431. A trailer without a valid name is dropped.
//
// Proxy does not forward what two parsers could interpret differently:
//   - A path with dot segments, encoded or not, is answered with 400, whichever mux routed it.
//   - Query parameters that Go cannot parse are dropped, as by httputil.ReverseProxy, unless KeepQuery is
//     set. Raw bytes that are not allowed in a query are escaped.
//   - CONNECT is answered with 501.
//   - Upgrade is removed in three cases: the upgrade is to another version of HTTP, whose requests the
//     gateway could not check; the request is HTTP/1.0; or the request has a body.
//
// A field that RequestFields or ResponseFields drops or sets is removed from the trailers as well. A client
// cannot send a field that RequestFields drops or sets, in any spelling that a backend could take for the
// same field. ResponseFields applies to the target's responses, including informational ones. It does not
// apply to answers of the gateway itself.
//
// Proxy reads a request body of at most 16 KiB and of known length completely before it asks the target, if
// the client speaks HTTP/1.1 and does not expect 100 Continue. The body is then sent in one write with the
// header, and a client that sends it slowly does not occupy the target. Other bodies are streamed.
//
// Apart from the edits above, the response reaches the client unchanged; Proxy adds no Content-Type. Each
// piece of the body is sent as soon as it arrives. If the length of the body is known, the header is sent
// together with the first bytes of the body. If these do not arrive within 2ms, and the transport reports how
// much it has buffered, the header is sent alone. A small response that arrives whole is sent in one write.
// Up to 100 informational (1xx) responses are passed on, each as soon as it arrives.
//
// An error before the response has begun is answered by WriteError. Once it has begun, Proxy aborts the
// connection with http.ErrAbortHandler, so that the client can tell that its response is incomplete.
//
// A client that sends Expect: 100-continue over HTTP/1.1 gets 100 Continue when the target has sent it, or
// when the transport has waited long enough for it (one second with NewTransport).
//
// Rewrite may modify Out or replace it. Either way, the outgoing request is canceled when In is.
// ModifyResponse must leave a consistent response: a new body needs its own Content-Length. A panic in either
// function is not recovered.
//
// The handler is safe for concurrent use if to and the functions of opts are. Proxy panics when to is nil,
// when StripPrefix does not begin with a slash, when Path is malformed, and on an edit that FieldEdits does
// not allow. It also panics when an identity field is not a field name, is an alias of another, or is one
// that Proxy itself sets.
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
	if p.opts.MaxFieldBytes == 0 {
		p.opts.MaxFieldBytes = 64 << 10
	}
	if p.opts.BodyTimeout == 0 {
		p.opts.BodyTimeout = defaultBodyTimeout
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
	p.prefix = urlpath.Escape(p.opts.StripPrefix)
	p.editFields()
	p.asLines = p.sendsLines()
	return p
}

type proxy struct {
	to       http.RoundTripper
	opts     ProxyOptions
	owned    *ownedFields
	template *urlpath.Template
	prefix   string // StripPrefix, escaped
	asLines  bool   // see sendsLines

	requestFields, responseFields fieldEdits
}

// editFields checks RequestFields and ResponseFields. The fields that RequestFields drops or sets become
// owned fields: a client cannot send them under an alias or in a trailer, and cannot name them in Connection
// to have them removed.
func (p *proxy) editFields() {
	p.requestFields = newFieldEdits("RequestFields", p.opts.RequestFields, func(name string) bool {
		return p.owned.has(name, ownedHere{})
	})
	for _, name := range p.requestFields.removed {
		p.owned.names.Add(name)
	}
	p.responseFields = newFieldEdits("ResponseFields", p.opts.ResponseFields, func(name string) bool {
		return httpfield.SameName(name, "X-Trace-Id")
	})
}

// forwarding is the state of one request in a proxy. It holds everything that the steps share, in one
// allocation.
type forwarding struct {
	*proxy
	ex        *exchange
	w         *responseWriter
	in        *http.Request // the client's request
	ownedHere ownedHere     // the fields that the gateway owns on this request
	body      *requestBody  // nil when the client sends no body

	interim interim

	// The outgoing request, unless Rewrite replaces it. out.URL points to url, and the gateway's own fields
	// are slices of values.
	out    http.Request
	url    url.URL
	lines  *headerLines // the fields, if they are sent as lines; then made is the same as a header, if that was needed
	made   http.Header
	values [10]string

	answerFields // of the response, if its Header was not made
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	if err := p.checkRequest(r); err != nil {
		refuse(rw, r, err)
		return
	}
	f := &forwarding{proxy: p, ex: ex, w: rw, in: r, ownedHere: ex.ownedHere()}
	out, err := f.outgoing()
	if err != nil {
		refuse(rw, r, err)
		return
	}
	f.setBody(out)
	if f.body != nil {
		// The transport may still be reading the body when the response is complete. It must not read it
		// after the handler returns.
		defer f.body.finish()
	}
	if p.opts.Rewrite != nil {
		var release func()
		out, release = f.rewrite(out)
		defer release()
	}
	if _, ok := out.Header["User-Agent"]; !ok && f.lines == nil {
		out.Header["User-Agent"] = noField // otherwise the transport sends its own
	}
	if f.body != nil {
		f.body.client.watch(out.Context())
		if f.readsWhole(out) {
			if err := f.body.readWhole(); err != nil {
				f.interim.stop()
				f.fail(attemptError(out, err))
				return
			}
		}
	}
	res, err := f.send(out)
	f.lines.release() // every attempt has ended, or has a response
	f.interim.stop()
	if err != nil {
		f.fail(attemptError(out, err))
		return
	}
	if f.body != nil && f.in.ContentLength < 0 {
		f.body.client.unlimited() // in a bidirectional stream, the client may send nothing for a long time
	}
	// The target's body is closed even if ModifyResponse replaces it or panics.
	arrived := res.Body
	defer arrived.Close()
	if err := checkResponse(out, res); err != nil {
		f.fail(err)
		return
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		f.upgrade(out, res)
		return
	}
	httpfield.RemoveHopByHop(res.Header)
	if !f.modify(out, res) {
		return
	}
	if res.Body != arrived {
		defer res.Body.Close()
	}
	f.answerEarly()
	f.answer(res)
}

// send sends out. It calls gate first, unless the method header has already checked everything that gate
// checks.
func (f *forwarding) send(out *http.Request) (*http.Response, error) {
	call := directCall{hooks: &interimHooks, arg: f}
	if f.expectation() != nil || len(out.Header["Upgrade"]) > 0 {
		call.hooks = &allHooks
	}
	if f.lines != nil {
		call.hooks = &lineHooks
		return f.to.(*Upstream).roundTrip(out, call)
	}
	// ownedHere.addr is set if the fields of a trusted proxy are passed on.
	if f.opts.Rewrite != nil || f.ownedHere.addr != "" || len(out.Trailer) > 0 {
		var err error
		if out, err = gate(out); err != nil {
			return nil, err
		}
	}
	if u, ok := f.to.(*Upstream); ok {
		return u.roundTrip(out, call)
	}
	return f.to.RoundTrip(call.traced(out))
}

// readsWhole reports whether to read the client's whole body before the target is asked. Some bodies are
// streamed instead: long ones, those of unknown length, those with trailers, and those for which the client
// waits for 100 Continue.
func (f *forwarding) readsWhole(out *http.Request) bool {
	return out.Body == f.body && 0 < out.ContentLength && out.ContentLength <= wholeBytes && f.in.ContentLength == out.ContentLength &&
		len(out.Trailer) == 0 && f.in.ProtoMajor == 1 && len(f.in.Header["Expect"]) == 0
}

// expectation returns the state of the client's Expect: 100-continue, or nil if the client did not send it.
func (f *forwarding) expectation() *expectation {
	if f.body == nil {
		return nil
	}
	return f.body.expectation
}

// The hooks that Proxy gives to a transport. Each is called with the forwarding as its first argument.
var (
	interimHooks = h1.Hooks{Got1xxResponse: passInterim, Max1xx: maxInterim}
	lineHooks    = h1.Hooks{Got1xxResponse: passInterim, Max1xx: maxInterim, Lines: sentLines, Fields: takeFields}
	allHooks     = h1.Hooks{GotConn: forwardingConn, GotFirstResponseByte: forwardingAnswered, Got1xxResponse: passInterim, Max1xx: maxInterim}
)

func passInterim(f any, code int, header textproto.MIMEHeader) error {
	return f.(*forwarding).interim.pass(code, header)
}

func forwardingConn(f any, info httptrace.GotConnInfo) {
	f.(*forwarding).interim.gotConn(info)
	if e := f.(*forwarding).expectation(); e != nil {
		e.begin()
	}
}

func forwardingAnswered(f any) {
	if e := f.(*forwarding).expectation(); e != nil {
		e.firstByte()
	}
}

// checkRequest returns the error with which r is refused, or nil if r may be forwarded. It does not rely on
// checks of a Router, since any mux may have routed r.
func (p *proxy) checkRequest(r *http.Request) error {
	var reason string
	switch {
	case p.opts.MaxBodyBytes > 0 && r.ContentLength > p.opts.MaxBodyBytes:
		return ErrBodyTooLarge
	case p.opts.MaxFieldBytes > 0 && fieldBytes(r) > p.opts.MaxFieldBytes:
		return &Error{Status: http.StatusRequestHeaderFieldsTooLarge, Err: fmt.Errorf("gateway: Proxy: the fields have more than %d bytes", p.opts.MaxFieldBytes)}
	case r.Method == http.MethodConnect:
		return &Error{Status: http.StatusNotImplemented, Err: errors.New("gateway: Proxy: CONNECT is not supported")}
	case !httpfield.IsToken(r.Method):
		reason = "a malformed method"
	case r.URL.Opaque != "" || r.URL.Path != "" && r.URL.Path[0] != '/':
		reason = "a request target that is not a path"
	case !httpfield.IsHost(r.Host):
		reason = "a malformed Host"
	default:
		if reason = exchangeFrom(r.Context()).ambiguity(r.URL.Path); reason != "" {
			reason += " in the path"
		}
	}
	if reason == "" {
		return nil
	}
	return &Error{Status: http.StatusBadRequest, Err: errors.New("gateway: Proxy: " + reason)}
}

// outgoing returns the outgoing request, without its body.
func (f *forwarding) outgoing() (*http.Request, error) {
	f.interim.w, f.interim.edits, f.interim.here = f.w, &f.responseFields, &f.ownedHere
	f.interim.silent = !f.in.ProtoAtLeast(1, 1)
	f.out = *f.in
	out := &f.out
	out.Close = false
	out.RequestURI = ""
	if !f.opts.PreserveHost {
		out.Host = ""
	}
	if err := f.setURL(); err != nil {
		return nil, err
	}
	out.URL = &f.url
	if err := f.setFields(out); err != nil {
		return nil, err
	}
	out.Trailer = f.trailer()
	if len(out.Trailer) > 0 {
		out.ContentLength = -1 // over HTTP/1.1 only a chunked body has trailers
	}
	return out, nil
}

// setURL sets the path and the query of the outgoing request. The Upstream or Rewrite sets scheme and host.
// If the client sent an absolute URL, its scheme and host are dropped, since the client chose them.
func (f *forwarding) setURL() error {
	link := &f.url
	*link = *f.in.URL
	link.Scheme, link.User, link.Host = "", nil, ""
	path := urlpath.Escaped(f.in.URL)
	if prefix := f.opts.StripPrefix; prefix != "" {
		rest, ok := urlpath.CutPrefix(path, prefix)
		if !ok {
			return ErrNoRoute
		}
		path = rest
	}
	if f.template != nil {
		var err error
		if path, err = fillPath(f.template, f.in, f.ex.ambiguity); err != nil {
			return err
		}
	}
	if err := urlpath.SetEscaped(link, path); err != nil {
		return &Error{Status: http.StatusBadRequest, Err: err}
	}
	link.RawQuery = f.query()
	return nil
}

// query returns the query of the outgoing request.
func (f *forwarding) query() string {
	if f.opts.KeepQuery {
		return urlpath.CarryQuery(f.in.URL.RawQuery)
	}
	query, dropped := urlpath.CleanQuery(f.in.URL.RawQuery)
	switch {
	case dropped == 1:
		f.ex.remark("query", errors.New("dropped 1 parameter"))
	case dropped > 1:
		f.ex.remark("query", fmt.Errorf("dropped %d parameters", dropped))
	}
	return query
}

// fillPath fills a template of ProxyOptions.Path with the path values of r.
func fillPath(template *urlpath.Template, r *http.Request, ambiguity func(string) string) (string, error) {
	path, err := template.ExpandAs(func(h *urlpath.Hole) (value string, rest bool, err error) {
		value = r.PathValue(h.Name)
		switch {
		case h.Rest || isRest(r, h.Name):
			return urlpath.EscapedRest(r.URL, value), true, nil
		case value == "":
			return "", false, errors.New("the route has no such path value")
		}
		return value, false, nil
	}, ambiguity)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, urlpath.ErrAmbiguous): // the target could read a path that differs from the routed one
		return "", &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("gateway: Proxy: Path: %w", err)}
	}
	return "", fmt.Errorf("gateway: Proxy: Path: %w", err)
}

// isRest reports whether the route declares the path value as {name...}, not as {name}. If Routers are
// nested, the innermost pattern that has the name decides. For example, in "/a/{id}/show" inside
// "/a/{id...}" the value is one segment, and its encoded slashes stay encoded.
func isRest(r *http.Request, name string) bool {
	for _, pattern := range [2]string{r.Pattern, RoutePattern(r.Context())} {
		switch {
		case strings.HasSuffix(pattern, "/{"+name+"...}"):
			return true
		case strings.Contains(pattern, "/{"+name+"}"):
			return false
		}
	}
	return false
}

// ambiguity returns what is ambiguous in path, or "". A route with RawRest permits more (see
// urlpath.RawAmbiguity).
func (ex *exchange) ambiguity(path string) string {
	why := urlpath.Ambiguity(path)
	if why != "" && ex.allowsRaw() {
		why = urlpath.RawAmbiguity(path)
	}
	return why
}

// allowsRaw reports whether the route has RawRest.
func (ex *exchange) allowsRaw() bool {
	if ex == nil {
		return false
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.rawRest
}

// noField is the value of a field that a transport leaves out.
var noField = []string{""}

// header returns the fields of the outgoing request, in four steps. It copies the client's fields, without
// hop-by-hop fields and those that the gateway owns. It removes the fields that Connection names. It sets TE
// and Upgrade, which apply to one connection, for the connection to the target. Last, it sets the gateway's
// own fields, so that Connection cannot remove them.
func (f *forwarding) header() (http.Header, error) {
	in := f.in.Header
	h := make(http.Header, len(in)+8)
	for name, values := range in {
		if httpfield.IsHopByHop(name) || isFraming(name) || f.owned.has(name, f.ownedHere) {
			continue
		}
		if f.opts.Rewrite == nil && isMalformed(name, values) { // Rewrite may remove it
			return nil, malformedField(name)
		}
		if f.opts.Rewrite != nil {
			values = slices.Clone(values) // Rewrite may modify the values of Out, and In must not change
		}
		h[name] = values
	}
	httpfield.RemoveNamed(h, in["Connection"])

	if httpfield.HasToken(in["Te"], "trailers") {
		h["Te"] = []string{"trailers"}
	}
	protocols := httpfield.UpgradeProtocols(in)
	if !httpfield.IsPrintable(protocols) {
		return nil, &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("gateway: Proxy: malformed name of a protocol in Upgrade: %q", protocols)}
	}
	if protocols != "" && f.in.ProtoMajor == 1 && f.in.ProtoMinor >= 1 && !hasContent(f.in) {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{protocols}
	}
	f.requestFields.write(h)
	return h, f.owned.write(&fieldWriter{in: f.in, prefix: f.prefix, header: h, values: f.values[:0]})
}

// trailer returns the names of the trailers that the client announced and that may be sent on. Their values
// arrive with the end of the body. Nil means that the request cannot have trailers.
func (f *forwarding) trailer() http.Header {
	if !hasContent(f.in) || f.in.ContentLength >= 0 && len(f.in.Trailer) == 0 {
		return nil
	}
	h := make(http.Header, len(f.in.Trailer))
	for name := range f.in.Trailer {
		if httpfield.IsToken(name) && f.owned.allowTrailer(name, f.ownedHere) {
			h[name] = nil
		}
	}
	return h
}

// hasContent reports whether r has a body, or may have one.
func hasContent(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}

// setBody makes the client's body the body of out, limited to MaxBodyBytes.
func (f *forwarding) setBody(out *http.Request) {
	if !hasContent(f.in) {
		out.Body = nil // lets the transport send the request again on another connection
		out.ContentLength = 0
		return
	}
	b := new(requestBody)
	f.interim.body = b
	b.client.init(f.w, f.in, f.opts.BodyTimeout)
	b.from, b.trailer, b.limit = f.in, out.Trailer, f.opts.MaxBodyBytes
	b.owned, b.ownedHere = f.owned, f.ownedHere
	f.body, out.Body = b, b
	if f.in.ProtoMajor == 1 && httpfield.HasToken(f.in.Header["Expect"], "100-continue") {
		b.expectation = &expectation{changed: make(chan struct{})}
		b.client.onStop = b.expectation
	}
}

// rewrite calls ProxyOptions.Rewrite and returns the request to send. The caller calls release when the
// request has ended.
func (f *forwarding) rewrite(out *http.Request) (rewritten *http.Request, release func()) {
	pr := &httputil.ProxyRequest{In: f.in, Out: out}
	f.opts.Rewrite(pr)
	ctx := pr.Out.Context()
	release = func() {}
	if exchangeFrom(ctx) != f.ex {
		// Out was replaced by a request whose context does not end when the client leaves.
		own, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(f.in.Context(), cancel)
		ctx, release = own, func() { stop(); cancel() }
	}
	rewritten = pr.Out.WithContext(ctx)
	_, agent := rewritten.Header["User-Agent"]
	_, traced := rewritten.Header[fieldTraceparent]
	if agent && traced {
		return rewritten, release
	}
	rewritten.Header = maps.Clone(rewritten.Header) // other code may hold the map, if Rewrite replaced it
	if rewritten.Header == nil {
		rewritten.Header = make(http.Header)
	}
	if !traced {
		rewritten.Header[fieldTraceparent] = nil // so that an Upstream does not set it
	}
	return rewritten, release
}

// fail answers a request for which there is no response to pass on.
func (f *forwarding) fail(err error) {
	var cause error
	slow := false
	if f.body != nil {
		slow = f.body.client.awaitInterrupted() != nil
		cause = f.body.cause()
		f.body.prepareRefusal()
	}
	err = forwardError(err, cause, slow, leftEarly(f.in.Context()))
	if errors.Is(err, errSlowClient) {
		refuse(f.w, f.in, err) // the failed read canceled the context, but the client has not left
		return
	}
	WriteError(f.w, f.in, err)
}

// answerEarly permits the answer to begin before the client has sent its whole body.
func (f *forwarding) answerEarly() {
	if f.body != nil {
		f.body.client.answerNow()
	}
}

// modify applies RewriteLocation, ResponseFields and ModifyResponse to the response to out. If ModifyResponse
// returns an error, modify answers the request with that error and returns false.
func (f *forwarding) modify(out *http.Request, res *http.Response) bool {
	if f.answerFields.areOf(res) {
		return true // takeFields has seen that there is nothing to do
	}
	if f.opts.RewriteLocation {
		f.relocate(out, res)
	}
	if res.Header == nil {
		res.Header = make(http.Header)
	}
	f.responseFields.remove(res.Header)
	f.responseFields.write(res.Header)
	if f.opts.ModifyResponse == nil {
		return true
	}
	err := f.opts.ModifyResponse(res)
	if err == nil {
		return true
	}
	var own *Error
	if !errors.As(err, &own) {
		err = fmt.Errorf("%w: ModifyResponse: %w", ErrBadGateway, err)
	}
	f.answerEarly()
	WriteError(f.w, f.in, err)
	return false
}

// answer sends the response to the client.
func (f *forwarding) answer(res *http.Response) {
	announced := len(res.Trailer)
	f.answerHeader(res)
	f.w.WriteHeader(res.StatusCode)
	if !httpfield.BodyAllowed(res.StatusCode) {
		return
	}
	length := res.ContentLength
	if isEventStream(res.Header.Get("Content-Type")) {
		length = -1
	}
	if f.in.Method == http.MethodHead {
		length = 0
	}
	if err := f.answerBody(res.Body, length); err != nil {
		f.abort()
	}
	res.Body.Close() // puts unannounced trailers into res.Trailer
	f.answerTrailer(res, announced)
}

// answerHeader sets the fields of the response, and announces its trailers.
func (f *forwarding) answerHeader(res *http.Response) {
	h := f.w.Header()
	if f.answerFields.areOf(res) {
		for i, name := range f.names {
			if !httpfield.IsHopByHop(name) {
				f.answerField(h, name, f.fieldValues[i:i+1:i+1])
			}
		}
	}
	for name, values := range res.Header {
		f.answerField(h, name, values)
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // otherwise the server guesses one
	}
	if len(res.Trailer) == 0 || !f.in.ProtoAtLeast(1, 1) {
		return
	}
	for name := range res.Trailer {
		if f.answersTrailer(name) {
			h.Add("Trailer", name)
		}
	}
	if f.in.ProtoMajor == 1 && f.in.Method != http.MethodHead {
		delete(h, "Content-Length") // a target may send both over HTTP/2; over HTTP/1.1, trailers need chunked coding
	}
}

// answerField adds the values of a field of the response to h.
func (f *forwarding) answerField(h http.Header, name string, values []string) {
	if f.ownedHere.isTrace(name) {
		return // Observe has set it
	}
	if had, ok := h[name]; ok {
		values = append(had[:len(had):len(had)], values...)
	}
	h[name] = values
}

// answerBody copies the body to the client, as copyBody does. When that fails it records the outcome and
// returns the cause.
func (f *forwarding) answerBody(body io.Reader, length int64) error {
	readErr, writeErr := copyBody(f.w, body, length, f.in.ProtoMajor == 1 && f.in.TLS == nil)
	switch {
	case errors.Is(writeErr, http.ErrContentLength):
		// ModifyResponse replaced the body, but did not set the new Content-Length.
		f.ex.note(result{panicked: true}.outcome(), writeErr)
		return writeErr
	case writeErr != nil:
		// The client has left, or its connection has failed.
		f.ex.note(result{gone: true}.outcome(), writeErr)
		return writeErr
	case readErr != nil:
		f.ex.note(f.cutOff(readErr))
		_ = f.w.FlushError() // the client gets what was read before the error
		return readErr
	}
	return nil
}

// answerTrailer sends the trailers of the response. announced is the number of trailers that the target
// announced before the body.
func (f *forwarding) answerTrailer(res *http.Response, announced int) {
	if len(res.Trailer) == 0 {
		return
	}
	_ = f.w.FlushError() // otherwise net/http sends a short body with a Content-Length and drops the trailers
	h := f.w.Header()
	for name, values := range res.Trailer {
		if !f.answersTrailer(name) {
			continue
		}
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// answersTrailer reports whether to send a trailer of the response to the client.
func (f *forwarding) answersTrailer(name string) bool {
	return httpfield.AllowedInTrailer(name) && !f.responseFields.removes(name) && !f.ownedHere.isTrace(name)
}

// abort ends a response that has begun and cannot be completed.
func (f *forwarding) abort() {
	if f.body != nil && f.body.client.unread() {
		// Otherwise net/http would wait for the rest of the client's body before it closes the connection.
		f.body.client.abort()
	}
	panic(http.ErrAbortHandler)
}
