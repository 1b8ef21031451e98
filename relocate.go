package gateway

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// relocation translates references from the target's address space to the client's. See
// ProxyOptions.RewriteLocation.
type relocation struct {
	prefix string   // what was stripped from the path, escaped; "" for nothing
	bare   bool     // the client asked for the prefix itself, without a slash behind it
	target *url.URL // that was asked
	named  string   // the Host that the target was sent; "" when it is the target's own
	scheme string   // of the client's request, and
	host   string   // its host
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
	if f.template == nil { // a path that was replaced cannot be put back
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

// mapValues replaces the values of a field. The slice that h holds stays as it is: a RoundTripper may keep
// it.
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
		return ref // of no hierarchy, such as mailto:
	case strings.HasPrefix(ref, "/"):
		return l.prefix + ref
	case l.prefix != "" && l.bare && ref != "" && ref[0] != '?' && ref[0] != '#':
		// To the target this is relative to "/", to the client to the segment before the prefix's last.
		return l.prefix + "/" + ref
	}
	return ref // a relative path is below the prefix by itself
}

// absolute translates a reference with an authority; scheme is "" when it has none.
func (l *relocation) absolute(ref, scheme, authority, path string) string {
	own := "http" // the target's scheme; h2c is http to those who ask
	if l.target.Scheme == "https" {
		own = "https"
	}
	host := l.host
	switch {
	case scheme != "" && !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return ref
	case sameHost(authority, l.target.Host), sameHost(authority, l.named):
		if strings.EqualFold(scheme, own) {
			scheme = l.scheme // else the target means another one, as when it sends its clients to https
		}
		path = l.prefix + path
	case sameHost(authority, l.host):
		// The target knows its public address. Then it may know the prefix as well.
		rest, ok := strings.CutPrefix(path, l.prefix)
		if ok && (rest == "" || strings.IndexByte("/?#", rest[0]) >= 0) {
			return ref
		}
		host, path = authority, l.prefix+path
	default:
		return ref
	}
	if host == "" { // an HTTP/1.0 client named none
		return "/" + strings.TrimLeft(path, `/\`) // two slashes would begin a host, and a browser reads a backslash as one
	}
	if scheme != "" {
		scheme += ":"
	}
	return scheme + "//" + host + path
}

// sameHost reports whether two authorities are the same host and port. A port that some scheme has by default
// is as good as none.
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

// cutScheme cuts the scheme and its colon off a reference (RFC 3986 section 3.1). The scheme is "" when there
// is none.
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

// cookie puts the Path of a Set-Cookie line behind the prefix. No other byte changes. A cookie whose name
// begins with __Host- stays as it is, since a browser takes it with Path=/ alone (RFC 6265bis section
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
			continue // a client takes it for none
		}
		at := len(name) + 1 + strings.Index(value, path)
		if path == "/" {
			path = "" // so that the prefix itself matches, too
		}
		parts[i+1] = part[:at] + l.prefix + path + part[at+max(1, len(path)):]
	}
	line = strings.Join(parts, ";")
	if !placed && l.bare {
		// By default the path would be the client's without its last segment, which is more than the prefix.
		line += "; Path=" + l.prefix
	}
	return line
}
