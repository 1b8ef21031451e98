package gateway

import (
	"net/url"
	"strings"
)

// The path that is matched, authorised and forwarded is one and the same. This file says which one it is.
//
// net/http hands out two views of it, and both mislead: URL.Path has lost the difference between "/" and
// "%2F", and URL.EscapedPath goes back to Path, and so loses it too, as soon as RawPath holds one raw byte
// that should have been escaped, such as "{", "|" or a non-ASCII letter.

// escapedPath returns u's path as it is forwarded: percent-encoding stays as the client sent it, and only
// raw bytes that may not stand in a path are escaped. It is never empty.
func escapedPath(u *url.URL) string {
	path, escaped := splittablePath(u)
	if escaped {
		return path
	}
	return (&url.URL{Path: path}).EscapedPath()
}

// escapedRest returns the end of u's path that decodes to value, as it is forwarded, when what follows one
// of its slashes does: the escaped form of a path value {name...}, which has lost what "%2F" was.
func escapedRest(u *url.URL, value string) (string, bool) {
	rest := escapedPath(u)
	for {
		i := strings.IndexByte(rest, '/')
		if i < 0 {
			return "", false
		}
		if rest = rest[i+1:]; decodesTo(rest, value) {
			return rest, true
		}
	}
}

// splittablePath returns u's path in the cheapest form in which every "/" separates segments: u.Path
// itself while no "/" in it was sent encoded, and otherwise the escaped path. An empty path is "/"
// (RFC 9110 section 4.2.3).
func splittablePath(u *url.URL) (path string, escaped bool) {
	switch {
	case u.Path == "":
		return "/", false
	case u.RawPath == "" || !decodesTo(u.RawPath, u.Path):
		return u.Path, false
	}
	return escapeRaw(u.RawPath), true
}

// splitPath is a path that begins with a slash, and where its segments are.
type splitPath struct {
	text     string // as splittablePath gives it
	escaped  bool
	slash    bool // it ends in a slash
	doubled  bool // two slashes meet
	dotted   bool // a segment begins with a dot
	segments int  // what stands behind a slash, but nothing behind the last is none

	// starts is where segments start; after the last, where one would behind another slash. Paths
	// that are deeper than it is long are split again where needed.
	starts [16]int32
}

func (p *splitPath) split() {
	n, at := 0, 1
	for ; at < len(p.text); n++ {
		if n < len(p.starts) {
			p.starts[n] = int32(at)
		}
		switch p.text[at] {
		case '/':
			p.doubled = true
		case '.':
			p.dotted = true
		}
		i := strings.IndexByte(p.text[at:], '/')
		if i < 0 {
			i = len(p.text) - at
		}
		at += i + 1
	}
	if n < len(p.starts) {
		p.starts[n] = int32(at)
	}
	p.segments, p.slash = n, at == len(p.text)
}

// segment returns segment i, decoded.
func (p *splitPath) segment(i int) string {
	if i+1 < len(p.starts) {
		return p.decode(p.text[p.starts[i] : p.starts[i+1]-1])
	}
	s, _, _ := strings.Cut(p.from(i), "/")
	return p.decode(s)
}

// rest returns segment i and all that follow, decoded; "" when there is none.
func (p *splitPath) rest(i int) string {
	if i >= p.segments {
		return ""
	}
	return p.decode(p.from(i))
}

func (p *splitPath) from(i int) string {
	known := min(i, len(p.starts)-1)
	s := p.text[p.starts[known]:]
	for ; known < i; known++ {
		s = s[strings.IndexByte(s, '/')+1:]
	}
	return s
}

func (p *splitPath) decode(s string) string {
	if p.escaped {
		return unescape(s)
	}
	return s
}

// decodesTo reports whether raw is an encoding of path. It is not when somebody has changed URL.Path alone.
func decodesTo(raw, path string) bool {
	i := 0
	for ; len(raw) > 0; i++ {
		c := raw[0]
		if c == '%' {
			var ok bool
			if c, ok = unhexPair(raw); !ok {
				return false
			}
			raw = raw[2:]
		}
		raw = raw[1:]
		if i == len(path) || path[i] != c {
			return false
		}
	}
	return i == len(path)
}

// unhexPair reads the byte that s encodes in its first three: "%2F".
func unhexPair(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	hi, lo := unhex(s[1]), unhex(s[2])
	return hi<<4 | lo, hi < 16 && lo < 16
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}

// escapeRaw escapes what may not stand in a path (RFC 3986 section 3.3) and leaves all else as it is,
// percent signs too. "[" and "]" may stay, as in net/url.
func escapeRaw(raw string) string {
	const hex = "0123456789ABCDEF"
	bad := 0
	for i := range len(raw) {
		if !inPath[raw[i]] {
			bad++
		}
	}
	if bad == 0 {
		return raw
	}
	b := make([]byte, 0, len(raw)+2*bad)
	for i := range len(raw) {
		if c := raw[i]; inPath[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// inPath holds the bytes that may stand in an escaped path.
var inPath = func() (set [256]bool) {
	for c := range 256 {
		set[c] = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' ||
			c != 0 && c < 0x80 && strings.IndexByte("-._~!$&'()*+,;=:@/[]%", byte(c)) >= 0
	}
	return set
}()

// unescape decodes a segment, or several. What is no valid encoding stays as it is, as in
// http.ServeMux.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if d, err := url.PathUnescape(s); err == nil {
		return d
	}
	return s
}

// hostile says what makes a decoded path one that servers read differently from each other, so that what
// is authorised here would be something else behind; "" when nothing does. A dot segment counts beside an
// encoded slash too, and with a parameter ("..;x"), which some servers strip before they resolve it.
func hostile(path string) string {
	for i := range len(path) {
		switch path[i] {
		case 0:
			return "NUL"
		case '\\':
			return "a backslash"
		case '.':
			if (i == 0 || path[i-1] == '/') && dotSegment(path[i:]) {
				return "a dot segment"
			}
		}
	}
	return ""
}

// dotSegment reports whether s, which begins with a dot, begins with a segment "." or "..".
func dotSegment(s string) bool {
	s = s[1:]
	if s != "" && s[0] == '.' {
		s = s[1:]
	}
	return s == "" || s[0] == '/' || s[0] == ';'
}

// collapse makes every row of slashes one.
func collapse(path string) string {
	b := make([]byte, 0, len(path))
	for i := range len(path) {
		if path[i] != '/' || i == 0 || path[i-1] != '/' {
			b = append(b, path[i])
		}
	}
	return string(b)
}
