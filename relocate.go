package gateway

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// relocation translates references that are relative to the target to references for the client. See
// ProxyOptions.RewriteLocation.
type relocation struct {
	prefix string   // the stripped prefix of the path, escaped; "" for none
	bare   bool     // the path of the client's request is the prefix itself, without a slash at the end
	target *url.URL // of the request that was sent
	named  string   // the Host that was sent; "" if it is the target's own
	scheme string   // of the client's request
	host   string   // of the client's request
}

// relocate rewrites the references of the response to out.
func (f *forwarding) relocate(out *http.Request, res *http.Response) {
	h := res.Header
	if len(h["Location"]) == 0 && len(h["Content-Location"]) == 0 && len(h["Set-Cookie"]) == 0 {
		return
	}
	l := f.relocation(out, res)
	mapValues(h, "Location", l.reference)
	mapValues(h, "Content-Location", l.reference)
	if l.prefix != "" {
		mapValues(h, "Set-Cookie", l.cookie)
	}
}

func (f *forwarding) relocation(out *http.Request, res *http.Response) *relocation {
	l := &relocation{target: out.URL, named: out.Host, scheme: scheme(f.in), host: f.in.Host}
	if sent := res.Request; sent != nil && sent.URL != nil {
		l.target, l.named = sent.URL, sent.Host // an Upstream picks the target
	}
	if s := firstElement(out.Header["X-Forwarded-Proto"]); s == "http" || s == "https" {
		l.scheme = s
	}
	if s := firstElement(out.Header["X-Forwarded-Host"]); s != "" && httpfield.IsHost(s) {
		l.host = s
	}
	if f.template == nil { // a path that was replaced by ProxyOptions.Path cannot be translated back
		l.prefix = f.prefix
		l.bare = strings.Count(urlpath.Escaped(f.in.URL), "/") == strings.Count(l.prefix, "/")
	}
	return l
}

// firstElement returns the first element of a comma-separated list.
func firstElement(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	first, _, _ := strings.Cut(lines[0], ",")
	return strings.TrimSpace(first)
}

// mapValues replaces each value v of a field by f(v). It does not modify the slice in h, which a RoundTripper
// may keep.
func mapValues(h http.Header, name string, f func(string) string) {
	values := h[name]
	if len(values) == 0 {
		return
	}
	mapped := make([]string, len(values))
	for i, v := range values {
		mapped[i] = f(v)
	}
	h[name] = mapped
}

// reference translates a URI reference (RFC 3986 section 4.1). It changes the scheme, the host and the
// beginning of the path, and no other byte.
func (l *relocation) reference(ref string) string {
	scheme, rest := cutScheme(ref)
	after, ok := strings.CutPrefix(rest, "//")
	switch {
	case ok:
		end := strings.IndexAny(after, "/?#")
		if end < 0 {
			end = len(after)
		}
		return l.absolute(ref, scheme, after[:end], after[end:])
	case scheme != "":
		return ref // a URI without an authority, such as mailto:
	case strings.HasPrefix(ref, "/"):
		return l.prefix + ref
	case l.prefix != "" && l.bare && ref != "" && ref[0] != '?' && ref[0] != '#':
		// The target's path is "/". The client's is the prefix without a slash at the end, so the client
		// would resolve ref one level above it.
		return l.prefix + "/" + ref
	}
	return ref // the client resolves a relative path below the prefix
}

// absolute translates a reference with an authority. scheme is "" if it has none.
func (l *relocation) absolute(ref, scheme, authority, path string) string {
	own := "http" // the target's scheme in URLs, also if the gateway speaks h2c to it
	if l.target.Scheme == "https" {
		own = "https"
	}
	host := l.host
	switch {
	case scheme != "" && !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return ref
	case sameHost(authority, l.target.Host), sameHost(authority, l.named):
		if strings.EqualFold(scheme, own) {
			scheme = l.scheme // if it is another one, the target chose it, for example to redirect to https
		}
		path = l.prefix + path
	case sameHost(authority, l.host):
		// The target knows the gateway's public host, so it may have added the prefix itself.
		rest, ok := strings.CutPrefix(path, l.prefix)
		if ok && (rest == "" || strings.IndexByte("/?#", rest[0]) >= 0) {
			return ref
		}
		host, path = authority, l.prefix+path
	default:
		return ref
	}
	if host == "" { // the request of an HTTP/1.0 client may have no Host
		// A path with two slashes at the beginning would be read as a host. Browsers treat a backslash as a
		// slash.
		return "/" + strings.TrimLeft(path, `/\`)
	}
	if scheme != "" {
		scheme += ":"
	}
	return scheme + "//" + host + path
}

// sameHost reports whether two authorities are the same host and port. The ports 80 and 443 count as none.
func sameHost(a, b string) bool {
	if a == "" || b == "" || strings.IndexByte(a, '@') >= 0 {
		return false
	}
	port := func(u *url.URL) string {
		if p := u.Port(); p != "80" && p != "443" {
			return p
		}
		return ""
	}
	x, y := &url.URL{Host: a}, &url.URL{Host: b}
	return strings.EqualFold(x.Hostname(), y.Hostname()) && port(x) == port(y)
}

// cutScheme cuts the scheme and its colon off a reference (RFC 3986 section 3.1). scheme is "" if there is
// none.
func cutScheme(ref string) (scheme, rest string) {
	for i := range len(ref) {
		switch c := ref[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		case i > 0 && c == ':':
			return ref[:i], ref[i+1:]
		default:
			return "", ref
		}
	}
	return "", ref
}

// cookie puts the prefix in front of the Path of a Set-Cookie line. No other byte changes. A cookie whose
// name begins with __Host- is not changed, since browsers accept it only with Path=/ (RFC 6265bis section
// 4.1.3.2).
func (l *relocation) cookie(line string) string {
	const host = "__Host-"
	if name := strings.TrimLeft(line, " \t"); len(name) >= len(host) && strings.EqualFold(name[:len(host)], host) {
		return line
	}
	parts := strings.Split(line, ";")
	placed := false
	for i, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		if !strings.EqualFold(strings.Trim(name, " \t"), "Path") {
			continue
		}
		path := strings.Trim(value, " \t")
		placed = strings.HasPrefix(path, "/")
		if !placed {
			continue // clients ignore such a Path
		}
		at := len(name) + 1 + strings.Index(value, path)
		if path == "/" {
			path = "" // so that the cookie is also sent for the prefix itself
		}
		parts[i+1] = part[:at] + l.prefix + path + part[at+max(1, len(path)):]
	}
	line = strings.Join(parts, ";")
	if !placed && l.bare {
		// The default Path is the client's path without its last segment, which would be above the prefix.
		line += "; Path=" + l.prefix
	}
	return line
}
