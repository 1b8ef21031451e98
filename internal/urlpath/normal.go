package urlpath

import (
	"net/url"
	"strings"
)

// NormalURL returns an absolute http or https URL without query and fragment, and normalized (RFC 3986
// sections 6.2.2 and 6.2.3): scheme and host in small letters, without the default port, with a path of at
// least a slash, and with no escape of a character that needs none. Dot segments stay. ok is false for any
// other URL, and for one with credentials.
func NormalURL(raw string) (normal string, ok bool) {
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", false
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return u.Scheme + "://" + WithoutPort(strings.ToLower(u.Host), u.Scheme) + normalEscapes(path), true
}

// WithoutPort removes the default port of the scheme from host.
func WithoutPort(host, scheme string) string {
	switch scheme {
	case "http":
		return strings.TrimSuffix(host, ":80")
	case "https":
		return strings.TrimSuffix(host, ":443")
	}
	return host
}

// normalEscapes decodes escapes of unreserved characters and writes the others in capitals.
func normalEscapes(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b = append(b, path[i])
			continue
		}
		escape := strings.ToUpper(path[i : i+3])
		if s, err := url.PathUnescape(escape); err == nil && isUnreserved(s[0]) {
			b = append(b, s[0])
		} else {
			b = append(b, escape...)
		}
		i += 2
	}
	return string(b)
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
