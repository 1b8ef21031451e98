package gateway

import (
	"net/http"
	"net/textproto"
	"strings"
)

// isHopByHop reports whether a field is for one connection only (RFC 9110 section 7.6.1). Proxy is none at
// all, but a program that gets its fields as variables of the environment takes it for HTTP_PROXY.
func isHopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Proxy":
		return true
	}
	return false
}

// neverTrailer reports whether a field has no place in trailers: it frames, routes, authenticates or says how
// to read the body (RFC 9110 section 6.5.1).
func neverTrailer(name string) bool {
	switch name {
	case "Authorization", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type",
		"Cookie", "Expect", "Host", "Max-Forwards", "Pragma", "Range", "Set-Cookie", "Www-Authenticate":
		return true
	}
	return isHopByHop(name) || strings.HasPrefix(name, "If-")
}

func removeHopByHop(h http.Header) {
	removeNamed(h, h["Connection"])
	for name := range h {
		if isHopByHop(name) {
			delete(h, name)
		}
	}
}

// removeNamed removes the fields that the lines of a Connection field name. It goes through these and not
// through the fields, for each of both can be a hundred thousand.
func removeNamed(h http.Header, connection []string) {
	for _, line := range connection {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
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

// upgradeTypes are the protocols that h asks to switch to, separated by commas; "" for none. Those that are
// HTTP again are left out (RFC 9110 section 7.8 lets a server ignore any): what is asked for by them would
// pass every rule of the gateway by.
func upgradeTypes(h http.Header) string {
	lines := h["Upgrade"]
	if len(lines) == 0 || !hasToken(h["Connection"], "Upgrade") {
		return ""
	}
	types := ""
	for _, line := range lines {
		for t := range strings.SplitSeq(line, ",") {
			t = textproto.TrimString(t)
			name, _, _ := strings.Cut(t, "/")
			switch strings.ToLower(name) {
			case "", "h2c", "h2", "http", "tls":
				continue
			}
			if types != "" {
				types += ", "
			}
			types += t
		}
	}
	return types
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}
