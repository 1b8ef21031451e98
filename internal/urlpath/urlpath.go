// Package urlpath reads and writes the path of a request in one consistent form, so that the path that is
// matched and authorized is also the path that is forwarded. It returns paths in escaped form, splits them
// into segments, reports why a path is ambiguous, cleans queries, and fills templates with {…}.
//
// The two forms of net/url are not enough. URL.Path does not distinguish "/" from "%2F". Neither does
// URL.EscapedPath if RawPath has a raw byte that should have been escaped, such as "{", "|" or a non-ASCII
// letter: it then falls back to Path.
package urlpath

import (
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// Escaped returns u's path as it is forwarded. Percent-encoding stays as the client sent it, and only raw
// bytes that are not allowed in a path are escaped. The result is never empty.
func Escaped(u *url.URL) string {
	text, escaped := splittable(u)
	if escaped {
		return text
	}
	return (&url.URL{Path: text}).EscapedPath()
}

// EscapedRest returns the escaped form of value, which is the value of a path wildcard {name...}. Such a
// value is decoded, so it has lost the difference between "/" and "%2F". The end of u's path that decodes to
// value still has it, where there is one. Otherwise each of value's segments is escaped.
//
// For u's path "/files/a%2Fb/c" and the value "a/b/c", the result is "a%2Fb/c".
func EscapedRest(u *url.URL, value string) string {
	rest := Escaped(u)
	for {
		i := strings.IndexByte(rest, '/')
		if i < 0 {
			break
		}
		if rest = rest[i+1:]; decodesTo(rest, value) {
			return rest
		}
	}
	var b strings.Builder
	for i, s := range strings.Split(value, "/") {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// CutPrefix removes prefix from path, which is escaped, and reports whether path begins with it. Segments are
// compared in decoded form. prefix must not end in a slash; its percent-encoding is optional.
func CutPrefix(path, prefix string) (rest string, ok bool) {
	for prefix != "" {
		if path == "" {
			return "", false
		}
		var want, got string
		want, prefix = cutSegment(prefix)
		if got, path = cutSegment(path); got != want && Unescape(got) != Unescape(want) {
			return "", false
		}
	}
	return path, true
}

// cutSegment splits a path, which begins with a slash, after its first segment.
func cutSegment(path string) (segment, rest string) {
	end := strings.IndexByte(path[1:], '/')
	if end < 0 {
		return path[1:], ""
	}
	return path[1 : end+1], path[end+1:]
}

// SetEscaped sets u's path to the one that escaped encodes. An empty path is "/". It fails when escaped holds
// an invalid percent-encoding.
func SetEscaped(u *url.URL, escaped string) error {
	if escaped == "" {
		escaped = "/"
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return err
	}
	u.Path, u.RawPath = path, escaped
	return nil
}

// Ambiguity reports why servers may read a decoded path in different ways: "a dot segment", "a backslash"
// or "NUL". The target could then serve another path than the one that was authorized here. For an
// unambiguous path it returns "".
//
// A dot segment also counts beside an encoded slash, which has been decoded in path, with a parameter
// ("..;x"), which some servers strip before they resolve the segment, and with a blank at its end (".. "),
// which some cut.
func Ambiguity(path string) string { return ambiguity(path, false) }

// RawAmbiguity is Ambiguity for a path that may have backslashes. What stands between backslashes is a
// segment, too.
func RawAmbiguity(path string) string { return ambiguity(path, true) }

func ambiguity(path string, backslashes bool) string {
	for i := range len(path) {
		switch path[i] {
		case 0:
			return "NUL"
		case '\\':
			if !backslashes {
				return "a backslash"
			}
		case '.':
			if (i == 0 || path[i-1] == '/' || path[i-1] == '\\') && dotSegment(path[i:]) {
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
	if s != "" && s[0] <= ' ' {
		for s != "" && isTail(s[0]) {
			s = s[1:]
		}
	}
	return s == "" || s[0] == '/' || s[0] == ';' || s[0] == '\\'
}

// Collapse replaces each run of slashes with one slash.
func Collapse(path string) string {
	b := make([]byte, 0, len(path))
	for i := range len(path) {
		if path[i] != '/' || i == 0 || path[i-1] != '/' {
			b = append(b, path[i])
		}
	}
	return string(b)
}

// Unescape decodes one segment or several. A text with an invalid percent-encoding is returned as it is, as
// http.ServeMux does.
func Unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if d, err := url.PathUnescape(s); err == nil {
		return d
	}
	return s
}

// Escape escapes the bytes that are not allowed in a path (RFC 3986 section 3.3) and leaves the others as
// they are, percent signs too. As in net/url, "[" and "]" are allowed.
func Escape(raw string) string { return escapeExcept(raw, '/') }

// escapeExcept is Escape with one more byte that is allowed.
func escapeExcept(raw string, allowed byte) string {
	bad := 0
	for i := range len(raw) {
		if c := raw[i]; !inPath[c] && c != allowed {
			bad++
		}
	}
	if bad == 0 {
		return raw
	}
	b := make([]byte, 0, len(raw)+2*bad)
	for i := range len(raw) {
		if c := raw[i]; inPath[c] || c == allowed {
			b = append(b, c)
		} else {
			b = append(b, '%', hexdigit.Upper[c>>4], hexdigit.Upper[c&15])
		}
	}
	return string(b)
}

// inPath holds the bytes that are allowed in an escaped path.
var inPath = func() (set [256]bool) {
	for c := range 256 {
		set[c] = '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' ||
			c != 0 && c < 0x80 && strings.IndexByte("-._~!$&'()*+,;=:@/[]%", byte(c)) >= 0
	}
	return set
}()

// decodesTo reports whether raw is an encoding of path. It is not when only URL.Path has been changed since
// the URL was parsed.
func decodesTo(raw, path string) bool {
	i := 0
	for ; len(raw) > 0; i++ {
		c := raw[0]
		raw = raw[1:]
		if c == '%' {
			var ok bool
			if c, ok = hexdigit.Pair(raw); !ok {
				return false
			}
			raw = raw[2:]
		}
		if i == len(path) || path[i] != c {
			return false
		}
	}
	return i == len(path)
}
