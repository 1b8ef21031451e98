// Package httpfield implements the rules of HTTP header fields: the characters of names and values, names
// that a server could take for the same field, hop-by-hop fields, lists, and structured fields. Its functions
// depend only on names and values, not on the sender of a message or on what a gateway does with it.
package httpfield

import (
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"unicode"
	"unicode/utf8"
)

// IsToken reports whether s is a token, as field names and methods are (RFC 9110 section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return s != ""
}

// tokenBytes holds the bytes of a token. It is a table because every field name of every request is checked.
var tokenBytes = func() (set [256]bool) {
	for c := range 256 {
		set[c] = foldByte(byte(c)) != 0 || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return set
}()

// ToToken returns s with "_" in place of every character that a token cannot hold.
func ToToken(s string) string {
	return strings.Map(func(c rune) rune {
		if c < utf8.RuneSelf && tokenBytes[byte(c)] {
			return c
		}
		return '_'
	}, s)
}

// IsToken68 reports whether s has the syntax of credentials in one piece, as a bearer token has (token68 in
// RFC 9110 section 11.2, b64token in RFC 6750 section 2.1).
func IsToken68(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		if c := s[i]; foldByte(c) == 0 && strings.IndexByte("-._~+/", c) < 0 {
			return false
		}
	}
	return s != ""
}

// IsHost reports whether s can be a Host: a name or an address, which may have a port. It accepts "". A
// server does not check the Host of an HTTP/2 request, and a comma in it would make two elements of one in
// X-Forwarded-Host.
//
// Where a Host has a second colon, servers disagree on where its name ends. For example, nginx reads
// "a.example:80:80" as a.example. So at most one colon is allowed outside the brackets of an IPv6 address,
// and only digits after it. Brackets must hold an IPv6 address. An empty label ("a..") is not allowed.
func IsHost(s string) bool {
	if s != "" && s[0] == '[' {
		end := strings.IndexByte(s, ']')
		if end < 0 || strings.IndexByte(s[:end], ':') < 0 {
			return false
		}
		if _, err := netip.ParseAddr(s[1:end]); err != nil || !isHostName(s[1:end], ":") {
			return false
		}
		s = s[end+1:]
		return s == "" || s[0] == ':' && isPort(s[1:])
	}
	if colon := strings.IndexByte(s, ':'); colon >= 0 {
		if !isPort(s[colon+1:]) {
			return false
		}
		s = s[:colon]
	}
	return isHostName(s, "")
}

// isHostName reports whether s has only characters that are allowed in a name or listed in more. A label
// may be empty only at the beginning or end.
func isHostName(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		if foldByte(c) == 0 && strings.IndexByte("-._~%!$&'()*+;=", c) < 0 && strings.IndexByte(more, c) < 0 {
			return false
		}
		if c == '.' && i > 0 && s[i-1] == '.' {
			return false
		}
	}
	return true
}

func isPort(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// IsPrintable reports whether s has only printable ASCII characters, including the space.
func IsPrintable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// HasControl reports whether s has a control character other than a tab. A field value with one cannot be
// sent.
func HasControl(s string) bool {
	for len(s) >= 8 {
		// Eight bytes at a time. The top bit of a byte of low is set if that byte is below a space, and of
		// del if it is 0x7f. Bytes above such a byte may have a false bit, so the bytes are then checked
		// one by one.
		x := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		const ones, tops = 0x0101010101010101, 0x8080808080808080
		y := x ^ 0x7f*ones
		low, del := (x-' '*ones)&^x, (y-ones)&^y
		if (low|del)&tops != 0 && hasControl(s[:8]) {
			return true
		}
		s = s[8:]
	}
	return hasControl(s)
}

func hasControl(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

// AppendLine appends an HTTP/1.1 field line with its CRLF. It removes whitespace around the value, and does
// not validate the name or the value.
func AppendLine(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, textproto.TrimString(value)...)
	return append(b, "\r\n"...)
}

// IsValue reports whether a field with the value s is read as exactly s by every recipient (RFC 9110 section
// 5.5): s is not empty, is UTF-8 without control characters, and does not begin or end with whitespace, which
// recipients remove.
func IsValue(s string) bool {
	if s == "" || s[0] == ' ' || s[len(s)-1] == ' ' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			return false
		} else if c >= utf8.RuneSelf {
			return isUnicodeValue(s)
		}
	}
	return true
}

// isUnicodeValue is IsValue for text that is not pure ASCII. Some recipients remove Unicode whitespace too.
func isUnicodeValue(s string) bool {
	if !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return false
	}
	return !strings.ContainsFunc(s, unicode.IsControl)
}

// HasToken reports whether one of the comma-separated lists has token as an element, in upper or lower case.
func HasToken(lists []string, token string) bool {
	for _, list := range lists {
		for t := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(textproto.TrimString(t), token) {
				return true
			}
		}
	}
	return false
}

// BodyAllowed reports whether a response with this status may have a body (RFC 9110 section 6.4.1). The
// response to a HEAD request never has one, whatever its status.
func BodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
