package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// ForwardAuthOptions configures the request that ForwardAuth sends to the service, and what it takes from the
// answer. With the zero value, the request has the path of the client's request, and its Authorization and
// Cookie.
type ForwardAuthOptions struct {
	// Path is the path and query of the request to the service, such as "/oauth2/auth" or "/check?app=1". For
	// a RoundTripper that is not an Upstream, it may be an absolute URL. "" means the path and query of the
	// client's request, as for Envoy's ext_authz.
	Path string

	// Headers are the client's fields that the service gets. nil means Authorization and Cookie. Some
	// services also need Origin, or Accept, by which they distinguish a browser from an API client.
	Headers []string

	// Identity maps a claim of the Identity to the answer's field that has it. It must have "sub", or be
	// empty for no Identity. nil means {"sub": "X-User-ID"}, or "Remote-User" if the answer has no X-User-ID.
	Identity map[string]string

	Copy    []string      // the answer's fields that the upstream gets; they replace the client's fields of the same name and its aliases
	Origins []string      // origins whose pages may open WebSockets and send cookies; see AuthOptions.Origins
	Timeout time.Duration // limit of the time for the whole answer; 0 means 1s
}

const (
	maxDecisionBody   = 256 << 10 // of an answer that the client gets
	maxDecisionFields = 64 << 10  // of every answer: names, values and 4 bytes each
)

// ForwardAuth asks another service whether a request may pass, as nginx's auth_request, Traefik's
// ForwardAuth, Caddy's forward_auth and Envoy's HTTP ext_authz do. So it works with Authelia, Authentik,
// oauth2-proxy, Pomerium or OPA. to is usually an Upstream:
//
//	sso := gateway.NewUpstream("oauth2-proxy", gateway.MustTargets("http://127.0.0.1:4180"), nil)
//	rt.With(gateway.ForwardAuth(sso, &gateway.ForwardAuthOptions{
//		Path:     "/oauth2/auth",
//		Identity: map[string]string{"sub": "X-Auth-Request-User"},
//		Copy:     []string{"X-Auth-Request-Email"},
//	}))
//
// The service gets a GET without a body. It has the client's fields in Headers, and these:
//
//   - X-Forwarded-Method, and the same as X-Original-Method
//   - X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-For and X-Real-IP, as Proxy sends them
//   - X-Forwarded-Uri: path and query
//   - X-Original-Url: scheme, host, path and query
//   - the trace, as Proxy sends it
//
// A client cannot forge these fields, because the service gets no fields of the client other than Headers.
// The path is that of r.URL, which the next handler sees as well. A path that servers interpret differently
// is answered with 400, as by Proxy, and so are two fields Authorization.
//
// The answer decides:
//
//   - 2xx: the request passes. The fields in Identity become the Identity, and those in Copy are set on
//     the request. Set-Cookie is sent to the client with the answer of the next handler, since a session
//     may have been renewed. Everything else in the answer is ignored.
//   - 401, 403, and a redirect (3xx with Location): the client gets this answer unchanged, with its
//     body. HandleErrors is not called. ForwardAuth does not follow the redirect.
//   - Any other status: the client gets 503, with OutcomeUnavailable. The same holds if there is no answer,
//     if it is late, malformed or too large (64 KiB of fields, 256 KiB of body), and if its field for "sub"
//     occurs twice. So no request passes without a decision of the service.
//
// The client's own fields in Copy and Identity, and X-User-ID, are removed from every request that passes and
// from its trailers, even if the answer has no such field. They are removed in every spelling that a server
// could take for the same field. A client cannot name the service's fields in Connection to have them
// removed. Without a subject in the answer, the request passes as anonymous, or with the Identity that an
// outer Auth found. Require answers 401 to an anonymous request.
//
// The claims besides "sub", "iss", "aud" and "scope" are in Identity.Claims: a string, or a list of strings
// if the field occurs more than once. "aud" and "scope" are split at spaces. A handler inside ForwardAuth
// finds the subject in X-User-ID, as inside Auth. Which fields a backend gets from the Identity is set by
// ProxyOptions.Identity.
//
// A CORS preflight request has no credentials, so the service would refuse it: put CORS middleware outside
// ForwardAuth. The handshake of a WebSocket is handled like any other request. As in Auth, a handshake that a
// page of another origin has sent with cookies gets 403, unless Origins allows it.
//
// ForwardAuth panics when to is nil, on a malformed Path or origin, on an Identity without "sub", and on a
// field that neither the client nor the service may set, such as Connection, Host or X-Forwarded-For.
func ForwardAuth(to http.RoundTripper, opts *ForwardAuthOptions) Middleware {
	if to == nil {
		panic("gateway: ForwardAuth: nil RoundTripper")
	}
	d := newDecider(to, opts)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			v, err := d.ask(ex, r)
			if err == nil && v.passes {
				err = d.checkOrigin(ex, r)
			}
			switch {
			case err != nil && leftEarly(r.Context()):
				WriteError(rw, r, errClientLeft) // the client left, which is not a refusal
			case err != nil:
				refuseUndecided(rw, r, err)
			case v.passes:
				addCookies(rw.Header(), v.header)
				next.ServeHTTP(rw, d.admit(ex, r, v))
			default:
				v.answer(ex, rw)
			}
		})
	}
}

// decider asks the service of one ForwardAuth. It does not depend on the client's response.
type decider struct {
	to       http.RoundTripper
	link     *url.URL // of the service; nil means the path and query of the client's request
	headers  []string // canonical
	identity []identityField
	fallback string // the field for the subject if that of identity is absent; "" for none
	copied   []string
	origins  originRules
	timeout  time.Duration

	owned  *ownedFields    // set on the request to the service; removed from trailers of a request that passes
	forged httpfield.Names // the client's fields that are removed from a request that passes
}

func newDecider(to http.RoundTripper, opts *ForwardAuthOptions) *decider {
	var o ForwardAuthOptions
	if opts != nil {
		o = *opts
	}
	if o.Timeout < 0 {
		panic("gateway: ForwardAuth: negative Timeout")
	}
	d := &decider{to: to, origins: newOriginRules("ForwardAuth", o.Origins), timeout: cmp.Or(o.Timeout, time.Second),
		owned: newOwnedFields("ForwardAuth", map[string]string{})}
	if o.Path != "" {
		var err error
		if d.link, err = parseDeciderPath(o.Path); err != nil {
			panic("gateway: ForwardAuth: Path: " + err.Error())
		}
	}
	if o.Headers == nil {
		o.Headers = []string{"Authorization", "Cookie"}
	}
	for _, name := range o.Headers {
		d.headers = append(d.headers, d.fieldName("Headers", name))
	}
	d.forged.Add(userField)
	switch {
	case o.Identity == nil:
		d.identity, d.fallback = []identityField{{userField, "sub"}}, "Remote-User"
		d.forged.Add(d.fallback)
		d.owned.names.Add(d.fallback)
	case len(o.Identity) > 0 && o.Identity["sub"] == "":
		panic("gateway: ForwardAuth: Identity needs a field for sub")
	}
	for claim, name := range o.Identity {
		if claim == "" || !httpfield.IsToken(name) {
			panic(fmt.Sprintf("gateway: ForwardAuth: Identity: malformed field %q for the claim %q", name, claim))
		}
		d.identity = append(d.identity, identityField{http.CanonicalHeaderKey(name), claim})
		d.forged.Add(name)
	}
	for _, name := range o.Copy {
		if httpfield.SameName(name, userField) {
			panic("gateway: ForwardAuth: Copy: X-User-ID is written from the Identity: use Identity and ProxyOptions.Identity")
		}
		d.copied = append(d.copied, d.fieldName("Copy", name))
	}
	for i, name := range d.copied {
		if slices.ContainsFunc(d.copied[:i], func(other string) bool { return httpfield.SameName(name, other) }) {
			panic(fmt.Sprintf("gateway: ForwardAuth: Copy: %q occurs twice, or is an alias of another", name))
		}
		d.forged.Add(name)
		d.owned.names.Add(name)
	}
	for _, f := range d.identity {
		d.owned.names.Add(f.name)
	}
	return d
}

// fieldName returns the canonical form of a name in Headers or Copy. It panics on a field that frames a
// message or that the gateway writes itself.
func (d *decider) fieldName(option, name string) string {
	if !httpfield.IsToken(name) {
		panic(fmt.Sprintf("gateway: ForwardAuth: %s: malformed field name %q", option, name))
	}
	canonical := http.CanonicalHeaderKey(name)
	switch {
	case httpfield.IsHopByHop(canonical), isFraming(canonical), d.owned.names.Has(name),
		slices.Contains([]string{"Host", "Expect", "Set-Cookie"}, canonical),
		slices.ContainsFunc(questionFields, func(other string) bool { return httpfield.SameName(name, other) }):
		panic(fmt.Sprintf("gateway: ForwardAuth: %s: %q applies to one connection only, or the gateway writes it itself", option, name))
	}
	return canonical
}

// questionFields are set on every request to the service, besides those that Proxy sets. X-Forwarded-Method
// and X-Forwarded-Uri are not listed, since all fields X-Forwarded-* are owned.
var questionFields = []string{"X-Original-Method", "X-Original-Url"}

// parseDeciderPath parses ForwardAuthOptions.Path.
func parseDeciderPath(path string) (*url.URL, error) {
	if strings.HasPrefix(path, "/") {
		return parseProbe(path)
	}
	u, err := url.Parse(path)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("%q is neither a path nor a URL", path)
	}
	return u, nil
}

// decision is the answer of the service.
type decision struct {
	passes   bool
	status   int
	header   http.Header
	body     []byte    // nil if the request passes
	identity *Identity // nil if the answer has no subject
}

// ask asks the service about r. An error means that there is no decision.
func (d *decider) ask(ex *exchange, r *http.Request) (*decision, error) {
	if d.origins.concern(r) {
		ex.forgetPlace()
	}
	ctx, cancel := withLimit(r.Context(), d.timeout)
	defer cancel()
	q, err := d.question(ex, r)
	if err != nil {
		return nil, err
	}
	// The service gets its own record, so that the log line's target stays that of the client's request.
	res, err := d.to.RoundTrip(q.WithContext(ex.part(ctx)))
	if err != nil {
		return nil, d.undecided(attemptError(q.WithContext(ctx), err))
	}
	v, err := d.read(res)
	if err != nil {
		return nil, d.undecided(err)
	}
	return v, nil
}

// undecided returns the error for a request without a decision: a 503, or a 4xx if the client is the cause,
// such as 431 for a Cookie that is too large to be sent.
func (d *decider) undecided(err error) error {
	var own *Error
	if errors.As(err, &own) && own.status() >= 400 && own.status() < 500 {
		return err
	}
	return &Error{Status: http.StatusServiceUnavailable, Err: fmt.Errorf("gateway: ForwardAuth: %w", err)}
}

// question returns the request to the service about r. The error is a 400.
func (d *decider) question(ex *exchange, r *http.Request) (*http.Request, error) {
	bad := func(reason string) error {
		return &Error{Status: http.StatusBadRequest, Err: errors.New("gateway: ForwardAuth: " + reason)}
	}
	switch {
	case !httpfield.IsToken(r.Method):
		return nil, bad("a malformed method")
	case r.URL.Opaque != "" || r.URL.Path == "" || r.URL.Path[0] != '/':
		return nil, bad("a request target that is not a path")
	case !httpfield.IsHost(r.Host):
		return nil, bad("a malformed Host")
	case len(r.Header["Authorization"]) > 1:
		return nil, bad("two Authorization fields")
	}
	if reason := ex.ambiguity(r.URL.Path); reason != "" {
		return nil, bad(reason + " in the path")
	}
	path := urlpath.Escaped(r.URL)
	query := urlpath.CarryQuery(r.URL.RawQuery)
	link := d.link
	if link == nil {
		link = new(url.URL)
		if err := urlpath.SetEscaped(link, path); err != nil {
			return nil, bad("a malformed path")
		}
		link.RawQuery = query
	}
	uri := path
	if query != "" {
		uri += "?" + query
	}
	h := make(http.Header, len(d.headers)+12)
	h["User-Agent"] = noField
	for _, name := range d.headers {
		values := r.Header[name]
		if isMalformed(name, values) {
			return nil, malformedField(name)
		}
		if len(values) > 0 {
			h[name] = values
		}
	}
	if err := d.owned.write(&fieldWriter{in: r, header: h}); err != nil {
		return nil, err
	}
	h["X-Forwarded-Method"], h["X-Original-Method"] = []string{r.Method}, []string{r.Method}
	h["X-Forwarded-Uri"] = []string{uri}
	origin := firstElement(h["X-Forwarded-Proto"]) + "://" + firstElement(h["X-Forwarded-Host"])
	h["X-Original-Url"] = []string{origin + uri}
	own := *link // a copy, because a RoundTripper may keep it
	return &http.Request{Method: http.MethodGet, URL: &own, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h}, nil
}

// read reads an answer of the service. An error means that there is no decision.
func (d *decider) read(res *http.Response) (*decision, error) {
	if res.Body == nil {
		res.Body = http.NoBody
	}
	defer res.Body.Close()
	size := 0
	for name, values := range res.Header {
		for _, value := range values {
			size += len(name) + len(value) + 4
		}
		if isMalformed(name, values) {
			return nil, errors.New("the answer has a malformed field")
		}
	}
	if size > maxDecisionFields {
		return nil, fmt.Errorf("the answer has fields of more than %d bytes", maxDecisionFields)
	}
	v := &decision{status: res.StatusCode, header: res.Header}
	switch status := res.StatusCode; {
	case status >= 200 && status < 300:
		v.passes = true
		var err error
		v.identity, err = d.identify(res.Header)
		readRest(res)
		return v, err
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
	case status >= 300 && status < 400 && res.Header.Get("Location") != "":
	default:
		return nil, fmt.Errorf("the answer has the status %d", status)
	}
	var err error
	if v.body, err = io.ReadAll(io.LimitReader(res.Body, maxDecisionBody+1)); err != nil {
		return nil, fmt.Errorf("body of the answer: %w", err)
	}
	if len(v.body) > maxDecisionBody {
		return nil, fmt.Errorf("the answer has a body of more than %d bytes", maxDecisionBody)
	}
	return v, nil
}

// identify returns the Identity in an answer, or nil if it has no subject.
func (d *decider) identify(h http.Header) (*Identity, error) {
	id := &Identity{Claims: make(map[string]any)}
	for _, f := range d.identity {
		values := h[f.name]
		if f.claim == "sub" && strings.Join(values, "") == "" && d.fallback != "" {
			values = h[d.fallback]
		}
		if len(values) == 0 || len(values) == 1 && values[0] == "" {
			continue
		}
		switch f.claim {
		case "sub", "iss":
			if len(values) > 1 || !httpfield.IsValue(values[0]) {
				return nil, fmt.Errorf("the answer's %s is ambiguous or malformed", f.name)
			}
			if f.claim == "sub" {
				id.Subject = values[0]
			} else {
				id.Issuer = values[0]
			}
		case "aud":
			id.Audience = strings.Fields(strings.Join(values, " "))
		case "scope":
			id.Scopes = strings.Fields(strings.Join(values, " "))
		default:
			if id.Claims[f.claim] = values[0]; len(values) > 1 {
				id.Claims[f.claim] = slices.Clone(values)
			}
		}
	}
	if id.Subject == "" {
		return nil, nil
	}
	return id, nil
}

// checkOrigin returns an error for a request that a page of another origin has sent. The service cannot check
// this, since it does not get Origin.
func (d *decider) checkOrigin(ex *exchange, r *http.Request) error {
	if !d.origins.concern(r) {
		return nil
	}
	return d.origins.check(ex, r, true)
}

// admit stores the Identity in the record and returns the request for the inner handlers. It has the fields
// of the answer that are in Copy, and lacks the client's fields that could be taken for them. r itself is not
// changed.
func (d *decider) admit(ex *exchange, r *http.Request, v *decision) *http.Request {
	ex.mu.Lock()
	if v.identity != nil {
		ex.identity = v.identity
	}
	id := ex.identity
	ex.mu.Unlock()
	out := r.WithContext(r.Context())
	ex.derived(out)
	if mayHaveTrailers(r) {
		d.owned.guardTrailers(out, ex.ownedHere())
	}
	h := make(http.Header, len(r.Header)+len(d.copied)+1)
	for name, values := range r.Header {
		if !d.forged.Has(name) {
			h[name] = values
		}
	}
	d.unnameCopied(h)
	for _, name := range d.copied {
		if values := v.header[name]; len(values) > 0 {
			h[name] = values
		}
	}
	if id != nil && httpfield.IsValue(id.Subject) {
		h[userField] = ex.userValue(id.Subject)
	}
	out.Header = h
	return out
}

// unnameCopied removes the names of the service's fields from Connection. Otherwise Proxy would treat them as
// hop-by-hop fields and remove them.
func (d *decider) unnameCopied(h http.Header) {
	lines := h["Connection"]
	if len(lines) == 0 || len(d.copied) == 0 {
		return
	}
	var kept []string
	for _, line := range lines {
		for token := range strings.SplitSeq(line, ",") {
			if token = strings.TrimSpace(token); token != "" && !d.forged.Has(token) {
				kept = append(kept, token)
			}
		}
	}
	if len(kept) == 0 {
		delete(h, "Connection")
		return
	}
	h["Connection"] = []string{strings.Join(kept, ", ")}
}

// addCookies adds the cookies of a service's answer to the client's response.
func addCookies(to, from http.Header) {
	if cookies := from["Set-Cookie"]; len(cookies) > 0 {
		to["Set-Cookie"] = slices.Concat(to["Set-Cookie"], cookies)
	}
}

// answer sends the service's answer to the client unchanged, and records that the request was refused.
func (v *decision) answer(ex *exchange, w *responseWriter) {
	cause := ErrUnauthenticated
	if v.status == http.StatusForbidden {
		cause = ErrForbidden
	}
	ex.note(result{refused: true}.outcome(), fmt.Errorf("%w: ForwardAuth: the answer has the status %d", cause, v.status))
	header := maps.Clone(v.header)
	httpfield.RemoveHopByHop(header)
	here := ex.ownedHere()
	h := w.Header()
	for name, values := range header {
		if !isFraming(name) && !here.isTrace(name) {
			h[name] = slices.Concat(h[name], values)
		}
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // otherwise the server guesses one
	}
	if httpfield.BodyAllowed(v.status) {
		h["Content-Length"] = []string{strconv.Itoa(len(v.body))}
	}
	w.WriteHeader(v.status)
	if httpfield.BodyAllowed(v.status) {
		_, _ = w.Write(v.body)
	}
}
