package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// ownedFields are the fields that the gateway itself sets on requests to upstreams. It removes them and their
// aliases from every incoming request, so that no client can forge one.
type ownedFields struct {
	names      httpfield.Names
	identity   []identityField
	clientCert bool // write Client-Cert
}

type identityField struct {
	name  string // canonical
	claim string
}

// reservedFields are set on every request, or have the same meaning as a field that is. Content-Length and
// Transfer-Encoding are set by the transport. They are in the list because of their aliases: a server that
// treats "_" as "-" could use Transfer_Encoding to find the end of the body.
var reservedFields = []string{
	"Content-Length", "Transfer-Encoding",
	"Forwarded", "X-Real-Ip", "Client-Cert", "Client-Cert-Chain", "Traceparent", "Tracestate", "X-Trace-Id",
}

// xForwarded is the prefix of a family of fields. The gateway owns all of them, and sets some.
const xForwarded = "X-Forwarded-"

const (
	fieldXForwardedHost   = "X-Forwarded-Host"
	fieldXForwardedPrefix = "X-Forwarded-Prefix"
	fieldXForwardedProto  = "X-Forwarded-Proto"
)

// writtenForwarded are the fields X-Forwarded-* that are set on every request.
var writtenForwarded = []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// trustedForwarded are the fields X-Forwarded-* that are accepted from a trusted proxy, besides
// X-Forwarded-For. Others are not accepted, because a proxy passes them on as the client sent them, and one
// such as X-Forwarded-User could name a user.
var trustedForwarded = []string{
	"X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto", "X-Forwarded-Scheme",
	"X-Forwarded-Server", "X-Forwarded-Ssl",
}

// newOwnedFields returns the fields for identity, a map from field to claim. A nil map means {"X-User-ID":
// "sub"}. caller is the name of the exported function, for the message of a panic.
func newOwnedFields(caller string, identity map[string]string) *ownedFields {
	if identity == nil {
		identity = map[string]string{"X-User-ID": "sub"}
	}
	f := new(ownedFields)
	taken := slices.Concat(reservedFields, writtenForwarded)
	for name, claim := range identity {
		if !httpfield.IsToken(name) || claim == "" {
			panic(fmt.Sprintf("gateway: %s: identity field %q from claim %q is malformed", caller, name, claim))
		}
		name = http.CanonicalHeaderKey(name)
		if !httpfield.AllowedInTrailer(name) && name != "Authorization" && name != "Cookie" {
			panic(fmt.Sprintf("gateway: %s: identity field %q has another meaning in HTTP", caller, name))
		}
		for _, other := range taken {
			if httpfield.SameName(name, other) {
				panic(fmt.Sprintf("gateway: %s: identity field %q is an alias of %q", caller, name, other))
			}
		}
		taken = append(taken, name)
		f.identity = append(f.identity, identityField{name, claim})
		f.names.Add(name)
	}
	// Auth and most backends use X-User-ID for the user, even if identity does not have it.
	if !f.names.Has(userField) {
		f.names.Add(userField)
	}
	for _, name := range reservedFields {
		f.names.Add(name)
	}
	f.names.AddPrefix(xForwarded)
	return f
}

// has reports whether name is one of the fields in f, one of those in here, or an alias of one of them.
func (f *ownedFields) has(name string, here ownedHere) bool {
	return f.names.Has(name) || here.isTrace(name) || here.addr != "" && httpfield.SameName(name, here.addr)
}

// allowTrailer reports whether a client's trailer is passed on.
func (f *ownedFields) allowTrailer(name string, here ownedHere) bool {
	return httpfield.AllowedInTrailer(name) && !f.has(name, here)
}

// mayHaveTrailers reports whether r has trailers, or may get some at the end of its body. net/http's server
// adds unannounced trailers to its own request, which r may be.
func mayHaveTrailers(r *http.Request) bool {
	return r.Trailer != nil || r.ContentLength < 0 && r.Body != nil && r.Body != http.NoBody
}

// guardTrailers hides trailers that the gateway owns from handlers of this process. r must be the gateway's
// own copy of the request. At the end of the body, the server sets the trailers' values in the map that r
// shares with the server's request. So r gets another map, and a body that copies the permitted values.
func (f *ownedFields) guardTrailers(r *http.Request, here ownedHere) {
	if r.Trailer == nil {
		return // the server adds unannounced trailers to its own request only
	}
	t := &trailerGuard{ReadCloser: r.Body, from: r.Trailer, to: make(http.Header, len(r.Trailer)), owned: f, here: here}
	t.pass()
	r.Trailer = t.to
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = t
	}
}

// trailerGuard is a request's body. At its end, it copies the trailers that a client may set.
type trailerGuard struct {
	io.ReadCloser
	from, to http.Header
	owned    *ownedFields
	here     ownedHere
}

func (t *trailerGuard) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF {
		t.pass()
	}
	return n, err
}

func (t *trailerGuard) pass() {
	for name, values := range t.from {
		if t.owned.allowTrailer(name, t.here) {
			t.to[name] = values
		}
	}
}

// ownedHere are the additional fields that the gateway owns on one request. They depend on the middleware
// that the request has passed.
type ownedHere struct {
	trace string // the field with the trace id (ObserveOptions.TraceHeader); "" for none
	addr  string // the field with the client's address (TrustProxies); "" for none
}

// ownedHere returns the fields that the gateway owns on this request.
func (ex *exchange) ownedHere() ownedHere {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ownedHere{trace: ex.traceHeader, addr: ex.field}
}

// isTrace reports whether name is the field that carries the trace id, or an alias of it.
func (h ownedHere) isTrace(name string) bool {
	return h.trace != "" && httpfield.SameName(name, h.trace)
}

// write writes the fields of a request that is sent on behalf of w.in. The caller has left out, or removed from
// w.header, the fields that f owns. The error is a 401 if a claim of the identity is not a valid field value,
// and a 400 if a line is malformed.
func (f *ownedFields) write(w *fieldWriter) error {
	w.peer = remoteAddr(w.in)
	var trace tracing
	var id *Identity
	if ex := exchangeFrom(w.in.Context()); ex != nil {
		ex.mu.Lock()
		w.hops, id, trace = ex.hops, ex.identity, ex.tracing
		ex.mu.Unlock()
	}
	w.clientAddr()
	w.fromTrustedProxy()
	w.hostAndProto()
	w.trace(&trace, w.in.Context())
	if f.clientCert {
		w.clientCert()
	}
	w.forwardedPrefix()
	if id != nil {
		if err := w.identity(id, f.identity); err != nil {
			return err
		}
	}
	if w.malformed != "" {
		return malformedField(w.malformed)
	}
	return nil
}

// fieldWriter writes the fields of one request, to a header or to lines.
type fieldWriter struct {
	in     *http.Request // the client's
	prefix string        // that Proxy strips, escaped; "" for none

	header http.Header // nil if the fields are written to lines
	lines  []byte      // fields as HTTP/1.1 has them, each with its line end

	malformed string // the name of a field in lines that cannot be sent; "" for none

	// values holds the values of all fields in header, to save an allocation for each: a field's []string is a
	// slice of values with one element. It is empty at first, and its memory belongs to the header afterwards.
	values []string

	peer     netip.Addr
	hops     hops
	reported struct{ host, proto bool } // X-Forwarded-Host and -Proto are written
	stripped []string                   // X-Forwarded-Prefix of trusted proxies, if prefix is to be added to it
}

// set writes a field that has one value.
func (w *fieldWriter) set(name, value string) {
	if w.header == nil {
		w.line(name, value)
		return
	}
	w.values = append(w.values, value)
	n := len(w.values)
	w.header[name] = w.values[n-1 : n : n]
}

// pass writes a field of the client's request with its values.
func (w *fieldWriter) pass(name string, values []string) {
	if w.header != nil {
		w.header[name] = values
		return
	}
	for _, value := range values {
		w.line(name, value)
	}
}

// line appends one line. Lines are not checked again before they are sent.
func (w *fieldWriter) line(name, value string) {
	if httpfield.HasControl(value) {
		w.malformed = name
	}
	w.lines = httpfield.AppendLine(w.lines, name, value)
}

// clientAddr sets X-Real-IP to the client's address, and X-Forwarded-For to the addresses from the client to
// the peer. If a trusted proxy writes X-Forwarded-For, that is its list and then the peer's address.
// Otherwise it is the client's address and then the peer's, if they differ.
func (w *fieldWriter) clientAddr() {
	client, before := clientText(w.in)
	peer := ""
	if before != "" {
		w.set("X-Real-Ip", before)
	}
	switch {
	case client == w.peer:
		peer, before = before, ""
	case w.peer.IsValid():
		peer = w.peer.String()
	}
	if lines := w.in.Header[fieldXForwardedFor]; w.hops.viaProxy && w.hops.field == fieldXForwardedFor && len(lines) > 0 {
		before = strings.Join(lines, ", ")
	}
	if before != "" && peer != "" {
		before += ", "
	}
	if before+peer != "" {
		w.set(fieldXForwardedFor, before+peer)
	}
}

// fromTrustedProxy copies the fields in which a trusted proxy reports how the client reached it. It does not
// copy aliases of these fields, which the client may have sent.
func (w *fieldWriter) fromTrustedProxy() {
	if !w.hops.viaProxy {
		return
	}
	if w.hops.field == fieldForwarded {
		w.forwarded(w.in.Header[fieldForwarded])
		return
	}
	for _, name := range trustedForwarded {
		values := w.in.Header[name]
		switch {
		case len(values) == 0:
			continue
		case name == fieldXForwardedPrefix && w.prefix != "":
			w.stripped = values
			continue
		case name == fieldXForwardedHost:
			w.reported.host = true
		case name == fieldXForwardedProto:
			w.reported.proto = true
		}
		w.pass(name, values)
	}
	if w.hops.field != fieldXForwardedFor {
		if values := w.in.Header[w.hops.field]; len(values) == 1 {
			w.pass(w.hops.field, values)
		}
	}
}

// forwarded adds the peer to the trusted proxies' Forwarded, and sets X-Forwarded-Host and X-Forwarded-Proto
// to the values in it.
func (w *fieldWriter) forwarded(before []string) {
	switch peer := w.peer; {
	case len(before) == 0:
	case !peer.IsValid():
		w.pass(fieldForwarded, before)
	default:
		node := peer.String()
		if peer.Is6() {
			node = httpfield.String("[" + node + "]")
		}
		w.set(fieldForwarded, strings.Join(before, ", ")+", for="+node)
	}
	if w.hops.host != "" {
		w.reported.host = true
		w.set(fieldXForwardedHost, w.hops.host)
	}
	if w.hops.proto != "" {
		w.reported.proto = true
		w.set(fieldXForwardedProto, strings.ToLower(w.hops.proto))
	}
}

// hostAndProto sets X-Forwarded-Host and X-Forwarded-Proto, unless a trusted proxy has sent them.
func (w *fieldWriter) hostAndProto() {
	if !w.reported.host && w.in.Host != "" {
		w.set(fieldXForwardedHost, w.in.Host)
	}
	if !w.reported.proto {
		w.set(fieldXForwardedProto, scheme(w.in))
	}
}

// forwardedPrefix sets X-Forwarded-Prefix: the prefixes that trusted proxies have stripped, then the one that
// Proxy strips.
func (w *fieldWriter) forwardedPrefix() {
	if w.prefix == "" {
		return
	}
	prefix := ""
	for _, line := range w.stripped {
		for before := range strings.SplitSeq(line, ",") {
			prefix += strings.TrimRight(strings.TrimSpace(before), "/")
		}
	}
	w.set(fieldXForwardedPrefix, prefix+w.prefix)
}

// trace sets the field that carries the trace id, and traceparent and tracestate.
func (w *fieldWriter) trace(t *tracing, ctx context.Context) {
	if id := t.traceID(); id != "" {
		w.set(t.traceHeader, id)
	}
	if traceparent, state := t.parent(ctx); traceparent != "" {
		w.set(fieldTraceparent, traceparent)
		if state != "" {
			w.set(fieldTracestate, state)
		}
	}
}

// clientCert sets Client-Cert to the verified certificate of the client, if it has one (RFC 9440).
func (w *fieldWriter) clientCert() {
	if t := w.in.TLS; t != nil && len(t.VerifiedChains) > 0 && len(t.VerifiedChains[0]) > 0 {
		w.set("Client-Cert", string(httpfield.AppendBytes(nil, t.VerifiedChains[0][0].Raw)))
	}
}

// identity sets the identity fields. A claim that is absent or empty sets no field. A claim that is not a
// valid field value is an error.
func (w *fieldWriter) identity(id *Identity, fields []identityField) error {
	for _, field := range fields {
		value, ok := claimText(id, field.claim)
		switch {
		case ok:
			w.set(field.name, value)
		case !isAbsent(claimOf(id, field.claim)):
			return badCredentials("the claim " + field.claim + " cannot be a field value")
		}
	}
	return nil
}
