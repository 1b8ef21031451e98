package gateway

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"unicode"
	"unique"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// pathPattern is a parsed pattern: [METHOD ][HOST]/[PATH], as in http.ServeMux.
type pathPattern struct {
	text     string
	method   string // "" is every method
	host     string // "" is every host
	segments []pathSegment
}

// pathSegment is a piece of a pattern. The last of a pattern can be {$} or match all that is left; a
// trailing slash is a nameless one of the latter.
type pathSegment struct {
	kind segmentKind
	text string // the decoded literal, or the wildcard's name
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota // as it stands
	slashSegment                      // {$}: the path ends here, with a slash
	wildSegment                       // {name}: any one segment
	restSegment                       // {name...} or a trailing slash: all that is left, or nothing
)

// parsePattern reads a pattern. It accepts what http.ServeMux accepts, but refuses what no request could
// match here: unclean paths and dot segments, for whatever method, and hosts with a port.
func parsePattern(text string) (*pathPattern, error) {
	if text == "" {
		return nil, errors.New("empty pattern")
	}
	p := &pathPattern{text: text}
	rest := text
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		p.method, rest = text[:i], strings.TrimLeft(text[i+1:], " \t")
		if p.method != "" && !httpfield.IsToken(p.method) {
			return nil, fmt.Errorf("invalid method %q", p.method)
		}
	}
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		return nil, errors.New("host/path missing /")
	}
	host, path := rest[:slash], rest[slash:]
	if strings.IndexByte(host, '{') >= 0 {
		return nil, errors.New("host contains '{' (missing initial '/'?)")
	}
	p.method, p.host = shared(p.method), canonicalHost(host)
	if _, _, err := net.SplitHostPort(host); err == nil {
		return nil, errors.New("host with a port can never match, for ports are ignored")
	}

	seen := make(map[string]bool)
	for more := true; more; {
		var seg string
		seg, path, more = strings.Cut(path[1:], "/")
		if more {
			path = "/" + path
		}
		s, err := parseSegment(seg, !more)
		if err != nil {
			return nil, err
		}
		if s.kind >= wildSegment && s.text != "" {
			if seen[s.text] {
				return nil, fmt.Errorf("duplicate wildcard name %q", s.text)
			}
			seen[s.text] = true
		}
		p.segments = append(p.segments, s)
	}
	return p, nil
}

// parseSegment reads what stands between two slashes, or after the last.
func parseSegment(seg string, last bool) (pathSegment, error) {
	if seg == "" {
		if last {
			return pathSegment{kind: restSegment}, nil
		}
		return pathSegment{}, errors.New("unclean path can never match")
	}
	switch i := strings.IndexByte(seg, '{'); {
	case i < 0:
		literal := urlpath.Unescape(seg)
		if what := urlpath.Ambiguity(literal); what != "" {
			return pathSegment{}, fmt.Errorf("path with %s can never match", what)
		}
		return pathSegment{kind: literalSegment, text: shared(literal)}, nil
	case i > 0:
		return pathSegment{}, errors.New("bad wildcard segment (must start with '{')")
	case seg[len(seg)-1] != '}':
		return pathSegment{}, errors.New("bad wildcard segment (must end with '}')")
	}
	name := seg[1 : len(seg)-1]
	if name == "$" {
		if !last {
			return pathSegment{}, errors.New("{$} not at end")
		}
		return pathSegment{kind: slashSegment}, nil
	}
	kind := wildSegment
	if cut, ok := strings.CutSuffix(name, "..."); ok {
		if !last {
			return pathSegment{}, errors.New("{...} wildcard not at end")
		}
		name, kind = cut, restSegment
	}
	if name == "" {
		return pathSegment{}, errors.New("empty wildcard")
	}
	for i, c := range name { // a Go identifier
		if !unicode.IsLetter(c) && c != '_' && (i == 0 || !unicode.IsDigit(c)) {
			return pathSegment{}, fmt.Errorf("bad wildcard name %q", name)
		}
	}
	return pathSegment{kind: kind, text: shared(name)}, nil
}

// shared returns the one copy of s that all patterns share, so that in big tables the words that are
// compared are in the processor's cache.
func shared(s string) string { return unique.Make(s).Value() }

// canonicalHost returns host, as in the Host field, as patterns have it: without port, brackets and
// final dot, in lower case. It allocates only when something in it is in upper case.
func canonicalHost(host string) string {
	if strings.IndexByte(host, ':') >= 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		} else if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
			host = host[1 : n-1]
		}
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// coversMethod reports whether a pattern's method takes a request's. GET takes HEAD too.
func coversMethod(pattern, request string) bool {
	return pattern == request || pattern == "" || pattern == "GET" && request == "HEAD"
}

// disjointMethods reports whether no request has both patterns' methods.
func disjointMethods(a, b string) bool { return !coversMethod(a, b) && !coversMethod(b, a) }

// samePath returns a path that both patterns match, where there is one, and onlyPath one that a matches
// and b does not. They are for the words of a panic.
func samePath(a, b *pathPattern) string {
	var out strings.Builder
	for i := 0; i < len(a.segments) || i < len(b.segments); i++ {
		switch {
		case i >= len(a.segments):
			writeExample(&out, b.segments[i])
		case i >= len(b.segments), a.segments[i].kind < b.segments[i].kind:
			writeExample(&out, a.segments[i])
		default:
			writeExample(&out, b.segments[i])
		}
	}
	return out.String()
}

func onlyPath(a, b *pathPattern) string {
	var out strings.Builder
	for i, s := range a.segments {
		var other pathSegment
		if i < len(b.segments) {
			other = b.segments[i]
		}
		switch {
		case s.kind == wildSegment && other.kind == literalSegment && other.text == s.text:
			s.text += "x"
		case s.kind == restSegment && other.kind == slashSegment && s.text == "":
			s = pathSegment{kind: literalSegment, text: "x"}
		case s.kind == restSegment && other.kind != slashSegment:
			s.text = ""
		}
		out.WriteByte('/')
		out.WriteString(s.text)
	}
	return out.String()
}

func writeExample(out *strings.Builder, s pathSegment) {
	out.WriteByte('/')
	if s.kind == literalSegment || s.kind == wildSegment {
		out.WriteString(s.text)
	}
}
