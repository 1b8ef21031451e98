package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// TrustProxies configures the trusted proxies in front of the gateway: their addresses, and the field in
// which they write the client's address. field is "X-Forwarded-For", "Forwarded" (RFC 7239), or a field with
// a single address, such as "CF-Connecting-IP". It must be the field that your proxies write. The other
// fields are ignored, because a client can send them.
//
// Inside TrustProxies, ClientAddr reads a list from right to left. It skips addresses in prefixes and returns
// the first other one. If all are in prefixes, it returns the leftmost. An element without an address ends
// the search: ClientAddr returns the address to its right. A field with a single address is used only if it
// occurs exactly once.
//
// List only the addresses of your own proxies: a peer in prefixes can claim any client address. Fields from a
// peer outside prefixes are ignored. A peer on a Unix socket is trusted: it has no address, and the socket's
// file permissions control who can connect. Without TrustProxies, no peer is trusted.
//
// Proxy and Aggregate pass on what a trusted proxy wrote about the client's scheme and host: the fields
// X-Forwarded-Proto, -Host, -Port, -Prefix, -Scheme, -Server and -Ssl. If field is "Forwarded", they use the
// proto and host that the outermost trusted proxy wrote there. TrustProxies panics if field is not a field
// name or a prefix is invalid.
func TrustProxies(field string, prefixes ...netip.Prefix) Middleware {
	if !httpfield.IsToken(field) || httpfield.IsHopByHop(http.CanonicalHeaderKey(field)) {
		panic(fmt.Sprintf("gateway: TrustProxies: %q is not a field that can hold an address", field))
	}
	t := &trustedProxies{field: http.CanonicalHeaderKey(field), prefixes: newAddrSet("TrustProxies", prefixes)}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			h := t.find(r)
			ex.mu.Lock()
			ex.hops = h
			ex.mu.Unlock()
			next.ServeHTTP(rw, r)
		})
	}
}

// The fields that TrustProxies reads as lists. Any other field holds a single address.
const (
	fieldXForwardedFor = "X-Forwarded-For"
	fieldForwarded     = "Forwarded"
)

// hops describes how the request came from the client to this process.
type hops struct {
	client   netip.Addr // invalid until ClientAddr or TrustProxies sets it
	text     string     // client as text; "" until clientText sets it
	viaProxy bool       // the peer is a trusted proxy, so the field is used
	field    string     // the field that trusted proxies write, in canonical form; "" without TrustProxies

	// What the outermost trusted proxy wrote in Forwarded. "" if it wrote nothing, and if field is another
	// one.
	proto, host string
}

// trustedProxies holds the arguments of TrustProxies.
type trustedProxies struct {
	field    string // canonical
	prefixes addrSet
}

// find reads the field of r that trusted proxies write, if the peer is one.
func (t *trustedProxies) find(r *http.Request) hops {
	peer := remoteAddr(r)
	h := hops{client: peer, field: t.field}
	if peer.IsValid() && !t.prefixes.has(peer) || !peer.IsValid() && !onUnixSocket(r) {
		return h
	}
	h.viaProxy = true
	lines := r.Header[t.field]
	switch t.field {
	case fieldXForwardedFor:
		h.client, _ = t.walkBack(lines, peer, parseNode)
	case fieldForwarded:
		var element string
		h.client, element = t.walkBack(lines, peer, parseForwarded)
		h.proto, h.host = forwardedPair(element, "proto"), forwardedPair(element, "host")
		if !strings.EqualFold(h.proto, "https") && !strings.EqualFold(h.proto, "http") {
			h.proto = ""
		}
		if !httpfield.IsHost(h.host) {
			h.host = ""
		}
	default:
		if len(lines) == 1 {
			if client, ok := parseNode(lines[0]); ok {
				h.client = client
			}
		}
	}
	return h
}

// onUnixSocket reports whether r arrived on a Unix socket.
func onUnixSocket(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// walkBack reads the list of addresses in lines from right to left, beginning after peer. It returns the
// first address that is not trusted, and its element. For example, with "198.51.100.7, 10.0.0.2", the peer
// 10.0.0.1 and the prefix 10.0.0.0/8, it returns 198.51.100.7.
func (t *trustedProxies) walkBack(lines []string, peer netip.Addr, parse func(string) (netip.Addr, bool)) (netip.Addr, string) {
	found := ""
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; {
			var element string
			rest, element, more = cutLastElement(rest)
			hop, ok := parse(element)
			if !ok {
				return peer, found
			}
			peer, found = hop, element
			if !t.prefixes.has(hop) {
				return peer, found
			}
		}
	}
	return peer, found
}

// cutLastElement cuts the last element from a comma-separated list. A comma in a quoted string does not
// separate elements. In a quoted string, a backslash escapes a quote.
func cutLastElement(list string) (rest, last string, more bool) {
	for i, quoted := len(list)-1, false; i >= 0; i-- {
		switch {
		case list[i] == '"':
			escapes := len(list[:i]) - len(strings.TrimRight(list[:i], `\`))
			quoted = quoted != (escapes%2 == 0)
		case list[i] == ',' && !quoted:
			return list[:i], list[i+1:], true
		}
	}
	return "", list, false
}

// parseForwarded returns the address in the pair "for" of one element of Forwarded (RFC 7239 section 4).
func parseForwarded(element string) (netip.Addr, bool) {
	return parseNode(forwardedPair(element, "for"))
}

// forwardedPair returns the value of the first pair with that name in one element of Forwarded, without its
// quotes, or "" if there is none. Values of other pairs may be quoted strings with any text of the client, so
// the element is parsed and not searched.
func forwardedPair(element, name string) string {
	for more := true; more; {
		var pair string
		pair, element, more = cutPair(element)
		key, value, _ := strings.Cut(pair, "=")
		if strings.EqualFold(strings.Trim(key, " \t"), name) {
			value = strings.Trim(value, " \t")
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return value
		}
	}
	return ""
}

// cutPair cuts the first pair from an element of Forwarded. A semicolon in a quoted string does not separate
// pairs.
func cutPair(element string) (pair, rest string, more bool) {
	for i, quoted := 0, false; i < len(element); i++ {
		switch c := element[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ';' && !quoted:
			return element[:i], element[i+1:], true
		}
	}
	return element, "", false
}

// parseNode parses an address with or without a port. An IPv6 address may be in brackets.
func parseNode(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	a, err := netip.ParseAddr(s)
	if err != nil {
		if n := len(s); n > 2 && s[0] == '[' && s[n-1] == ']' {
			a, err = netip.ParseAddr(s[1 : n-1])
		} else {
			var ap netip.AddrPort
			ap, err = netip.ParseAddrPort(s)
			a = ap.Addr()
		}
	}
	return a.Unmap().WithZone(""), err == nil
}

// remoteAddr returns the peer's address, or the zero Addr if it has none, as on a Unix socket.
func remoteAddr(r *http.Request) netip.Addr {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	a, _ := parseNode(r.RemoteAddr)
	return a
}

// ClientAddr returns the client's address: the one that TrustProxies found, or else that of RemoteAddr.
// Limits, forwarding and the access log all use it. An IPv4-mapped IPv6 address is returned as IPv4, and a
// zone is removed. ClientAddr returns the zero Addr if RemoteAddr holds no address, as on a Unix socket.
func ClientAddr(r *http.Request) netip.Addr {
	ex := exchangeFrom(r.Context())
	if ex == nil {
		return remoteAddr(r)
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.clientAddr(r)
}

// clientAddr is ClientAddr for a caller that holds ex.mu.
func (ex *exchange) clientAddr(r *http.Request) netip.Addr {
	if !ex.client.IsValid() {
		ex.client = remoteAddr(r)
	}
	return ex.client
}

// clientText returns ClientAddr, and the same address as text ("" for the zero Addr). The record keeps the
// text, because limits, forwarding and the access log all need it.
func clientText(r *http.Request) (netip.Addr, string) {
	ex := exchangeFrom(r.Context())
	if ex == nil {
		a := remoteAddr(r)
		if !a.IsValid() {
			return a, ""
		}
		return a, a.String()
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	a := ex.clientAddr(r)
	if ex.text == "" && a.IsValid() {
		ex.text = a.String()
	}
	return a, ex.text
}

// AllowAddrs calls the next handler when ClientAddr is in one of prefixes, and otherwise answers 403. Without
// prefixes it refuses every request. It searches the prefixes one by one: for thousands of them, write a
// middleware of your own.
//
// Behind a proxy or a load balancer, put AllowAddrs inside TrustProxies. Outside it, ClientAddr is the
// proxy's own address, and all clients are treated as one.
//
// A prefix of IPv4 matches an IPv4-mapped IPv6 address as well. A prefix such as ::ffff:10.0.0.0/104 means
// 10.0.0.0/8; one with fewer than 96 bits is invalid. ::/0 matches every IPv6 address and no IPv4 address. A
// request without an address, such as one that arrives on a Unix socket without TrustProxies, is refused.
// AllowAddrs panics on an invalid prefix.
func AllowAddrs(prefixes ...netip.Prefix) Middleware {
	allowed := newAddrSet("AllowAddrs", prefixes)
	return filterAddrs("AllowAddrs", func(a netip.Addr) bool { return allowed.has(a) })
}

// DenyAddrs answers 403 when ClientAddr is in one of prefixes, and to a request without an address. Otherwise
// it calls the next handler. In all other respects it is like AllowAddrs.
func DenyAddrs(prefixes ...netip.Prefix) Middleware {
	denied := newAddrSet("DenyAddrs", prefixes)
	return filterAddrs("DenyAddrs", func(a netip.Addr) bool { return !denied.has(a) })
}

// filterAddrs calls the next handler when pass returns true for ClientAddr, and refuses a request without an
// address.
func filterAddrs(caller string, pass func(netip.Addr) bool) Middleware {
	refused := &Error{Status: http.StatusForbidden, Err: fmt.Errorf("%w: %s refuses the client's address", ErrForbidden, caller)}
	unknown := &Error{Status: http.StatusForbidden, Err: fmt.Errorf("%w: %s: the client has no address", ErrForbidden, caller)}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, rw, r := enter(w, r)
			switch a := ClientAddr(r); {
			case !a.IsValid():
				refuse(rw, r, unknown)
			case !pass(a):
				refuse(rw, r, refused)
			default:
				next.ServeHTTP(rw, r)
			}
		})
	}
}

// addrSet is the set of addresses that are in one of the prefixes.
type addrSet []netip.Prefix

// newAddrSet returns the set for prefixes. It panics on an invalid prefix, with the name of caller.
func newAddrSet(caller string, prefixes []netip.Prefix) addrSet {
	set := make(addrSet, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() {
			panic("gateway: " + caller + ": invalid prefix")
		}
		if a := p.Addr(); a.Is4In6() {
			if p.Bits() < 96 { // such as ::ffff:10.0.0.0/8, which would match no address
				panic("gateway: " + caller + ": prefix " + p.String() + " of an IPv4-mapped address needs at least 96 bits")
			}
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		set[i] = p.Masked()
	}
	return set
}

func (s addrSet) has(a netip.Addr) bool {
	for _, p := range s {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
