package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// ownedFields are the request fields that the gateway itself writes on what it sends to an upstream. The
// gateway removes them from every request that comes in, together with their aliases, so that no client can
// forge one.
type ownedFields struct {
	names      httpfield.Names
	identity   []identityField
	clientCert bool // write Client-Cert
}

type identityField struct {
	name  string // canonical
	claim string
}

// reservedFields are written on every request, or mean the same as one that is.
var reservedFields = []string{
	"Forwarded", "X-Real-Ip", "Client-Cert", "Client-Cert-Chain", "Traceparent", "Tracestate", "X-Trace-Id",
}

// xForwarded begins the names of a family of which some are written and all are owned.
const xForwarded = "X-Forwarded-"

// writtenForwarded are the fields of the family that are written on every request.
var writtenForwarded = []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// trustedForwarded are the fields of the family that are accepted from a trusted proxy, besides
// X-Forwarded-For. A proxy passes others of the family on as a client sent them, and one such as
// X-Forwarded-User could name a user.
var trustedForwarded = []string{
	"X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto", "X-Forwarded-Scheme",
	"X-Forwarded-Server", "X-Forwarded-Ssl",
}

// newOwnedFields precomputes the fields for identity, a map from field to claim. A nil map means
// {"X-User-ID": "sub"}. A panic names caller, the exported function that was called.
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
			panic(fmt.Sprintf("gateway: %s: identity field %q has another meaning", caller, name))
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
	for _, name := range reservedFields {
		f.names.Add(name)
	}
	f.names.AddPrefix(xForwarded)
	return f
}

// has reports whether name is one of the fields or an alias of one. traceHeader is the field that carries the
// trace id, "" for none: it is a field of the gateway's as well.
func (f *ownedFields) has(name, traceHeader string) bool {
	return f.names.Has(name) || isTraceField(name, traceHeader)
}

// allowTrailer reports whether a trailer of a client goes on to the target.
func (f *ownedFields) allowTrailer(name, traceHeader string) bool {
	return httpfield.AllowedInTrailer(name) && !f.has(name, traceHeader)
}

// traceField returns the name of the field that carries the trace id, "" for none.
func (ex *exchange) traceField() string {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.traceHeader
}

// isTraceField reports whether name is traceHeader or an alias of it.
func isTraceField(name, traceHeader string) bool {
	return traceHeader != "" && httpfield.SameName(name, traceHeader)
}

// write sets the fields on h for a request that is sent on behalf of in. The caller has removed from h
// everything that f owns. The error is a 401: the identity has a claim that cannot be a field value.
func (f *ownedFields) write(h http.Header, in *http.Request) error {
	w := fieldWriter{header: h, in: in, peer: remoteAddr(in), values: make([]string, 0, 9+len(f.identity))}
	var trace tracing
	var id *Identity
	if ex := exchangeFrom(in.Context()); ex != nil {
		ex.mu.Lock()
		w.viaProxy, id, trace = ex.viaProxy, ex.identity, ex.tracing
		ex.mu.Unlock()
	}
	w.clientAddr()
	w.fromTrustedProxy()
	w.hostAndProto()
	w.trace(&trace)
	if f.clientCert {
		w.clientCert()
	}
	if id == nil {
		return nil
	}
	return w.identity(id, f.identity)
}

// fieldWriter writes the fields of one request.
type fieldWriter struct {
	header   http.Header
	in       *http.Request // the client's
	peer     netip.Addr
	viaProxy bool // the peer is a trusted proxy

	// values holds the values of all fields, so that they cost one allocation: each field gets a slice of one.
	values []string
}

func (w *fieldWriter) set(name, value string) {
	w.values = append(w.values, value)
	n := len(w.values)
	w.header[name] = w.values[n-1 : n : n]
}

// clientAddr sets X-Real-IP to the client's address, and X-Forwarded-For to the list of a trusted proxy with
// the peer's address behind it.
func (w *fieldWriter) clientAddr() {
	if !w.peer.IsValid() {
		return
	}
	peer := w.peer.String()
	if client := ClientAddr(w.in); client == w.peer {
		w.set("X-Real-Ip", peer)
	} else {
		w.set("X-Real-Ip", client.String())
	}
	if before := w.in.Header["X-Forwarded-For"]; w.viaProxy && len(before) > 0 {
		peer = strings.Join(before, ", ") + ", " + peer
	}
	w.set("X-Forwarded-For", peer)
}

// fromTrustedProxy copies what a trusted proxy tells of how the client reached it. Aliases of these fields are
// not copied: they may be the client's.
func (w *fieldWriter) fromTrustedProxy() {
	if !w.viaProxy {
		return
	}
	for _, name := range trustedForwarded {
		if values := w.in.Header[name]; len(values) > 0 {
			w.header[name] = values
		}
	}
	if before := w.in.Header["Forwarded"]; len(before) > 0 && w.peer.IsValid() {
		node := w.peer.String()
		if w.peer.Is6() {
			node = httpfield.String("[" + node + "]")
		}
		w.set("Forwarded", strings.Join(before, ", ")+", for="+node)
	}
}

// hostAndProto sets X-Forwarded-Host and X-Forwarded-Proto, unless a trusted proxy has sent them.
func (w *fieldWriter) hostAndProto() {
	if _, ok := w.header["X-Forwarded-Host"]; !ok && w.in.Host != "" {
		w.set("X-Forwarded-Host", w.in.Host)
	}
	if _, ok := w.header["X-Forwarded-Proto"]; !ok {
		if w.in.TLS != nil {
			w.set("X-Forwarded-Proto", "https")
		} else {
			w.set("X-Forwarded-Proto", "http")
		}
	}
}

// trace sets the field that carries the trace id, and traceparent and tracestate.
func (w *fieldWriter) trace(t *tracing) {
	if t.traceID != "" {
		w.set(t.traceHeader, t.traceID)
	}
	if t.span.IsValid() {
		w.set("Traceparent", telemetry.FormatTraceparent(t.span))
		if t.traceState != "" {
			w.set("Tracestate", t.traceState)
		}
	}
}

// clientCert sets Client-Cert to the verified certificate of the client, if it has one (RFC 9440).
func (w *fieldWriter) clientCert() {
	if t := w.in.TLS; t != nil && len(t.VerifiedChains) > 0 && len(t.VerifiedChains[0]) > 0 {
		w.set("Client-Cert", string(httpfield.AppendBytes(nil, t.VerifiedChains[0][0].Raw)))
	}
}

// identity sets the fields that name the user. A claim that is absent or empty sets none. A claim that is there
// and cannot be a field value is an error.
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

// isAbsent reports whether a claim is missing, empty, or an empty list.
func isAbsent(claim any) bool {
	switch v := claim.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []string:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}
