package gateway

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// ownFields are the request fields that the gateway itself writes on what it sends to an upstream. What
// it writes it also removes from what came in, in every spelling that a server could fold into the same
// variable.
type ownFields struct {
	identity   []identityField
	clientCert bool      // write Client-Cert
	initials   [256]bool // of the folded names, both cases
	names      []string
}

type identityField struct {
	name  string // canonical
	claim string
}

// forwardedFields are written on every request, or stand for what is.
var forwardedFields = []string{
	"Forwarded", "X-Real-Ip", "Client-Cert", "Client-Cert-Chain", "Traceparent", "Tracestate", "X-Trace-Id",
}

const xForwarded = "xforwarded" // how the folded names of a whole family begin

// writtenFields are those of the family that are written on every request.
var writtenFields = []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// believedFields are what a trusted proxy may say besides X-Forwarded-For. Others of the family it passes on
// as a client sent them, which could name a user.
var believedFields = []string{
	"X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto", "X-Forwarded-Scheme",
	"X-Forwarded-Server", "X-Forwarded-Ssl",
}

// newOwnFields precomputes the fields for identity, a map from field to claim. nil means
// {"X-User-ID": "sub"}. who is the exported function that a panic names.
func newOwnFields(who string, identity map[string]string) *ownFields {
	if identity == nil {
		identity = map[string]string{"X-User-ID": "sub"}
	}
	f := &ownFields{names: append([]string(nil), forwardedFields...)}
	for name, claim := range identity {
		if !validToken(name) || claim == "" {
			panic(fmt.Sprintf("gateway: %s: identity field %q from claim %q", who, name, claim))
		}
		name = http.CanonicalHeaderKey(name)
		if neverTrailer(name) && name != "Authorization" && name != "Cookie" {
			panic(fmt.Sprintf("gateway: %s: identity field %q has another meaning", who, name))
		}
		for _, other := range slices.Concat(f.names, writtenFields) {
			if sameField(name, other) {
				panic(fmt.Sprintf("gateway: %s: identity field %q could be taken for %q", who, name, other))
			}
		}
		f.identity = append(f.identity, identityField{name, claim})
		f.names = append(f.names, name)
	}
	f.initials['x'], f.initials['X'] = true, true
	for _, name := range f.names {
		for i := range len(name) {
			if c := foldByte(name[i]); c != 0 {
				f.initials[c] = true
				if 'a' <= c && c <= 'z' {
					f.initials[c-'a'+'A'] = true
				}
				break
			}
		}
	}
	return f
}

// owns reports whether name is one of the fields or an alias of one.
func (f *ownFields) owns(name string) bool {
	for i := 0; ; i++ {
		if i == len(name) {
			return false
		}
		if foldByte(name[i]) == 0 {
			continue
		}
		if !f.initials[name[i]] {
			return false
		}
		break
	}
	if hasFoldedPrefix(name, xForwarded) {
		return true
	}
	for _, own := range f.names {
		if sameField(name, own) {
			return true
		}
	}
	return false
}

// traceField is the name of the field that carries the trace id; "" for none.
func (ex *exchange) traceField() string {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.traceHeader
}

// isTraceField reports whether name is traceHeader or an alias of it.
func isTraceField(name, traceHeader string) bool {
	return traceHeader != "" && sameField(name, traceHeader)
}

// write sets the fields on h, from which everything that f owns is gone, for a request that goes out on
// behalf of in. It fails with 401 when a claim is there that is no field value.
func (f *ownFields) write(h http.Header, in *http.Request) error {
	ex := exchangeFrom(in.Context())
	var (
		traceID, traceHeader, traceParent, traceState string
		via                                           bool
		id                                            *Identity
	)
	if ex != nil {
		ex.mu.Lock()
		traceID, traceHeader, traceState = ex.traceID, ex.traceHeader, ex.traceState
		via, id = ex.viaProxy, ex.identity
		if ex.span.IsValid() {
			traceParent = telemetry.FormatTraceparent(ex.span)
		}
		ex.mu.Unlock()
	}

	// One array for all the values: each field takes a slice of one.
	values := make([]string, 0, 9+len(f.identity))
	set := func(name, value string) {
		values = append(values, value)
		n := len(values)
		h[name] = values[n-1 : n : n]
	}

	peer := remoteAddr(in)
	if peer.IsValid() {
		node := peer.String()
		if client := ClientAddr(in); client == peer {
			set("X-Real-Ip", node)
		} else {
			set("X-Real-Ip", client.String())
		}
		if before := in.Header["X-Forwarded-For"]; via && len(before) > 0 {
			node = strings.Join(before, ", ") + ", " + node
		}
		set("X-Forwarded-For", node)
	}
	if via {
		// A trusted proxy's word on how the client reached it stands; its aliases do not.
		for _, name := range believedFields {
			if came := in.Header[name]; len(came) > 0 {
				h[name] = came
			}
		}
		if before := in.Header["Forwarded"]; len(before) > 0 && peer.IsValid() {
			node := peer.String()
			if peer.Is6() {
				node = `"[` + node + `]"`
			}
			set("Forwarded", strings.Join(before, ", ")+", for="+node)
		}
	}
	if _, ok := h["X-Forwarded-Host"]; !ok && in.Host != "" {
		set("X-Forwarded-Host", in.Host)
	}
	if _, ok := h["X-Forwarded-Proto"]; !ok {
		if in.TLS != nil {
			set("X-Forwarded-Proto", "https")
		} else {
			set("X-Forwarded-Proto", "http")
		}
	}
	if traceID != "" {
		set(traceHeader, traceID)
	}
	if traceParent != "" {
		set("Traceparent", traceParent)
		if traceState != "" {
			set("Tracestate", traceState)
		}
	}
	if f.clientCert && in.TLS != nil && len(in.TLS.VerifiedChains) > 0 && len(in.TLS.VerifiedChains[0]) > 0 {
		set("Client-Cert", ":"+base64.StdEncoding.EncodeToString(in.TLS.VerifiedChains[0][0].Raw)+":")
	}
	if id == nil {
		return nil
	}
	for _, field := range f.identity {
		value, ok := claimText(id, field.claim)
		switch {
		case ok:
			set(field.name, value)
		case !isAbsent(claimOf(id, field.claim)):
			return badCredentials("the claim " + field.claim + " is no field value")
		}
	}
	return nil
}

// isAbsent reports whether a claim says nothing at all.
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

// foldByte returns c in lower case when it is a letter or digit, and 0 otherwise.
func foldByte(c byte) byte {
	switch {
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	case 'A' <= c && c <= 'Z':
		return c - 'A' + 'a'
	}
	return 0
}

// hasFoldedPrefix reports whether the letters and digits of name begin with prefix, which is folded.
func hasFoldedPrefix(name, prefix string) bool {
	n := 0
	for i := 0; i < len(name) && n < len(prefix); i++ {
		c := foldByte(name[i])
		if c == 0 {
			continue
		}
		if c != prefix[n] {
			return false
		}
		n++
	}
	return n == len(prefix)
}

// validToken reports whether s is a token of RFC 9110 section 5.6.2, as field names are.
func validToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if foldByte(c) == 0 && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}
