package urlpath

import (
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// Reading is a set of changes that some servers make to a path before they use it. Such a server may serve
// another path than the one that was matched here.
type Reading uint8

const (
	Parameters  Reading = 1 << iota // ";x" in a segment is dropped: "/admin;x" is "/admin"
	Slashes                         // encoded slashes are decoded: "/admin%2Fx" is "/admin/x"
	Tails                           // dots and blanks at the end of a segment are cut: "/admin." is "/admin"
	Backslashes                     // backslashes are slashes: "/admin\x" is "/admin/x"
)

// String names the parts of a path that the reading changes.
func (how Reading) String() string {
	var names []string
	for i, name := range []string{"parameters", "an encoded slash", "a dot or a blank at the end of a segment", "a backslash"} {
		if how&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " and ")
}

// isTail reports whether a server may cut c at the end of a segment. Some servers trim control characters
// like spaces.
func isTail(c byte) bool { return c == '.' || c <= ' ' }

// Readings returns the changes that apply to p, which has been split.
func (p *Path) Readings() (found Reading) {
	if !p.Escaped && !p.Tailed && strings.IndexByte(p.Text, ';') < 0 && strings.IndexByte(p.Text, '\\') < 0 {
		return 0
	}
	last := byte('/')
	for i := 1; i <= len(p.Text); i++ {
		c, encoded := byte('/'), false
		if i < len(p.Text) {
			c = p.Text[i]
		}
		if c == '%' && p.Escaped {
			if decoded, ok := hexdigit.Pair(p.Text[i+1:]); ok {
				c, encoded, i = decoded, true, i+2
			}
		}
		switch c {
		case '/':
			if encoded {
				found |= Slashes
			}
		case ';':
			found |= Parameters
		case '\\':
			found |= Backslashes
		default:
			last = c
			continue
		}
		if isTail(last) {
			found |= Tails
		}
		last = c
	}
	return found
}

// Read returns the path that a server reads in p if it makes all changes in how. p has been split. The result
// has no empty segments. A segment for which spelled returns true is not changed.
func (p *Path) Read(how Reading, spelled func(i int) bool) (q Path) {
	b := make([]byte, 0, len(p.Text)+8)
	i, slash := 0, true // slash: the last piece was empty, so the path ends in a slash
	for s := range strings.SplitSeq(p.Text[1:], "/") {
		s = p.decode(s)
		if spelled(i) {
			b, slash = append(append(b, '/'), url.PathEscape(s)...), false
		} else {
			for more := true; more; {
				var piece string
				piece, s, more = cutPiece(s, how)
				if piece = how.cut(piece); piece != "" {
					b = append(append(b, '/'), url.PathEscape(piece)...)
				}
				slash = piece == ""
			}
		}
		i++
	}
	if slash {
		b = append(b, '/')
	}
	q.Text, q.Escaped = string(b), true
	q.Split()
	return q
}

// cutPiece cuts s at the first slash, as a server with this reading finds it.
func cutPiece(s string, how Reading) (piece, rest string, more bool) {
	for i := range len(s) {
		if s[i] == '/' && how&Slashes != 0 || s[i] == '\\' && how&Backslashes != 0 {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// cut drops the parameters and the tail of a segment.
func (how Reading) cut(segment string) string {
	if how&Parameters != 0 {
		segment, _, _ = strings.Cut(segment, ";")
	}
	if how&Tails != 0 {
		for segment != "" && isTail(segment[len(segment)-1]) {
			segment = segment[:len(segment)-1]
		}
	}
	return segment
}
