package urlpath

import (
	"net/url"
	"strings"
)

// Path is a path and the positions of its segments. Set sets Text and Escaped. Split sets the other fields.
//
// For example, for "/a/b%2Fc/" Len is 2, Segment(1) is "b/c", Rest(1) is "b/c/", and TrailingSlash is true.
type Path struct {
	Text    string
	Escaped bool // Text is percent-encoded

	TrailingSlash bool // it ends in a slash
	Doubled       bool // it has two slashes in a row
	Dotted        bool // a segment begins with a dot
	Tailed        bool // a segment of Text ends in a dot or a blank
	Len           int  // number of segments; a trailing slash adds none

	// starts holds the position of each segment and, after the last one, the position at which the next
	// segment would begin. In a path with more segments than that, the others are searched for when needed.
	starts [16]int32
}

// Set makes p, which must be zero, the path of u. The path is not split yet.
func (p *Path) Set(u *url.URL) {
	p.Text, p.Escaped = splittable(u)
}

// splittable returns u's path in the cheapest form in which every "/" separates segments: u.Path itself when
// no "/" in it was sent encoded, and the escaped path otherwise. An empty path is "/" (RFC 9110 section
// 4.2.3).
func splittable(u *url.URL) (text string, escaped bool) {
	switch {
	case u.Path == "":
		return "/", false
	case u.RawPath == "" || !decodesTo(u.RawPath, u.Path):
		return u.Path, false
	}
	return Escape(u.RawPath), true
}

// Split finds the segments of p.Text, which must begin with a slash.
func (p *Path) Split() {
	n, at := 0, 1
	for ; at < len(p.Text); n++ {
		if n < len(p.starts) {
			p.starts[n] = int32(at)
		}
		switch p.Text[at] {
		case '/':
			p.Doubled = true
		case '.':
			p.Dotted = true
		}
		i := strings.IndexByte(p.Text[at:], '/')
		if i < 0 {
			i = len(p.Text) - at
		}
		if i > 0 && isTail(p.Text[at+i-1]) {
			p.Tailed = true
		}
		at += i + 1
	}
	if n < len(p.starts) {
		p.starts[n] = int32(at)
	}
	p.Len, p.TrailingSlash = n, at == len(p.Text)
}

// Segment returns segment i, decoded. i must be less than Len.
func (p *Path) Segment(i int) string {
	if i+1 < len(p.starts) {
		return p.decode(p.Text[p.starts[i] : p.starts[i+1]-1])
	}
	s, _, _ := strings.Cut(p.from(i), "/")
	return p.decode(s)
}

// Rest returns segment i and all that follows it, decoded. It returns "" when i is Len.
func (p *Path) Rest(i int) string {
	if i >= p.Len {
		return ""
	}
	return p.decode(p.from(i))
}

func (p *Path) from(i int) string {
	known := min(i, len(p.starts)-1)
	s := p.Text[p.starts[known]:]
	for ; known < i; known++ {
		s = s[strings.IndexByte(s, '/')+1:]
	}
	return s
}

func (p *Path) decode(s string) string {
	if p.Escaped {
		return Unescape(s)
	}
	return s
}
