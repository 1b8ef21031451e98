package gateway

import (
	"net/http"
	"net/netip"
	"strings"
)

// TrustProxies sets which peers to believe about where a request came from. Inside it, ClientAddr reads
// X-Forwarded-For, or Forwarded (RFC 7239) if that is absent, from right to left. It skips addresses in prefixes and
// returns the first other one. If all are in prefixes, it returns the leftmost. An element that holds no address ends
// the search: the address to its right is the client's.
//
// List only the addresses of your own proxies: anyone in prefixes can claim to be any client. Fields from a peer
// outside prefixes are ignored. Without TrustProxies all are. It panics if a prefix is invalid.
func TrustProxies(prefixes ...netip.Prefix) Middleware {
	trusted := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() {
			panic("gateway: TrustProxies: invalid prefix")
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		trusted[i] = p.Masked()
	}
	trusts := func(a netip.Addr) bool {
		for _, p := range trusted {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			peer := remoteAddr(r)
			client, via := peer, trusts(peer)
			if via {
				client = walkBack(r.Header, peer, trusts)
			}
			ex.mu.Lock()
			ex.client, ex.viaProxy = client, via
			ex.mu.Unlock()
			next.ServeHTTP(rw, r)
		})
	}
}

// walkBack returns the first address that is not trusted, searching from peer back through the fields in which each
// proxy recorded the address before it.
func walkBack(h http.Header, peer netip.Addr, trusts func(netip.Addr) bool) netip.Addr {
	lines, parse := h["X-Forwarded-For"], parseNode
	if len(lines) == 0 {
		lines, parse = h["Forwarded"], parseForwarded
	}
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; {
			var element string
			rest, element, more = cutLastElement(rest)
			hop, ok := parse(element)
			if !ok {
				return peer
			}
			peer = hop
			if !trusts(hop) {
				return peer
			}
		}
	}
	return peer
}

// cutLastElement cuts the last element from a comma-separated list. A comma within a quoted string does not
// separate, and within a quoted string a backslash escapes a quote.
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

// parseForwarded returns the address of "for" in one element of Forwarded (RFC 7239 section 4). The quoted values of
// other pairs, such as "host", can hold anything that the client sent.
func parseForwarded(element string) (netip.Addr, bool) {
	for more := true; more; {
		var pair string
		pair, element, more = cutPair(element)
		name, value, _ := strings.Cut(pair, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "for") {
			value = strings.Trim(value, " \t")
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return parseNode(value)
		}
	}
	return netip.Addr{}, false
}

// cutPair cuts the first pair from an element of Forwarded. A semicolon within a quoted string does not separate.
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

// ClientAddr returns the client's address: the one that TrustProxies found, or else the one in RemoteAddr. Limits,
// forwarding and the access log all use it. An IPv4 address is never returned in its IPv6 form, and a zone is removed.
// It returns the zero Addr if RemoteAddr holds no address, as on a Unix socket.
func ClientAddr(r *http.Request) netip.Addr {
	ex := exchangeFrom(r.Context())
	if ex == nil {
		return remoteAddr(r)
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if !ex.client.IsValid() {
		ex.client = remoteAddr(r)
	}
	return ex.client
}
