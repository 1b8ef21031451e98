package httpfield

import (
	"net/http"
	"net/textproto"
	"strings"
)

// IsHopByHop reports whether a field is meant for one connection only (RFC 9110 section 7.6.1). The name is
// in canonical form. Proxy is not a field of HTTP, but a CGI program that receives its fields as environment
// variables would read it as HTTP_PROXY.
func IsHopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Proxy":
		return true
	}
	return false
}

// AllowedInTrailer reports whether a field may be sent in a trailer. A field that frames, routes or
// authenticates a message, or that describes how to read the body, may not (RFC 9110 section 6.5.1). The name
// is in canonical form.
func AllowedInTrailer(name string) bool {
	switch name {
	case "Authorization", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type",
		"Cookie", "Expect", "Host", "Max-Forwards", "Pragma", "Range", "Set-Cookie", "Www-Authenticate":
		return false
	}
	return !IsHopByHop(name) && !strings.HasPrefix(name, "If-")
}

// RemoveHopByHop removes from h the hop-by-hop fields and those that the Connection field names.
func RemoveHopByHop(h http.Header) {
	RemoveNamed(h, h["Connection"])
	for name := range h {
		if IsHopByHop(name) {
			delete(h, name)
		}
	}
}

// RemoveNamed removes from h the fields that the lines of a Connection field name. Its cost grows with the
// number of names, and not with names times fields: a hostile client can send a hundred thousand of each.
// It leaves hop-by-hop fields to RemoveHopByHop or IsHopByHop.
func RemoveNamed(h http.Header, connection []string) {
	for _, line := range connection {
		if line == "keep-alive" { // the most frequent value
			continue
		}
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
}

// UpgradeProtocols returns the protocols to which h asks to switch, separated by commas, or "" for none.
//
// Other versions of HTTP are left out: a server may ignore an Upgrade (RFC 9110 section 7.8), and requests
// inside an upgraded HTTP connection would bypass every rule of the gateway.
func UpgradeProtocols(h http.Header) string {
	lines := h["Upgrade"]
	if len(lines) == 0 || !HasToken(h["Connection"], "Upgrade") {
		return ""
	}
	protocols := ""
	for _, line := range lines {
		for p := range strings.SplitSeq(line, ",") {
			p = textproto.TrimString(p)
			name, _, _ := strings.Cut(p, "/")
			switch strings.ToLower(name) {
			case "", "h2c", "h2", "http", "tls":
				continue
			}
			if protocols != "" {
				protocols += ", "
			}
			protocols += p
		}
	}
	return protocols
}
