package routing

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"
	"unique"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Pattern is a parsed pattern: [METHOD ][HOST]/[PATH], as in http.ServeMux.
type Pattern struct {
	text     string
	method   string // "" is every method
	host     string // "" is every host
	segments []segment
}

// segment is one segment of a pattern. The last one can be {$} or match all that is left; a trailing slash is
// one of these without a name.
type segment struct {
	kind segmentKind
	text string // the decoded literal, or the wildcard's name
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota // this text
	slashSegment                      // {$}: the path ends here, with a slash
	wildSegment                       // {name}: any one segment
	restSegment                       // {name...} or a trailing slash: all that is left, or nothing
)

// Parse reads a pattern. It accepts what http.ServeMux accepts, except for patterns that no request can
// match here: paths that are not clean or have dot segments, whatever the method, and hosts with a port. It
// also refuses probable mistakes, such as "/users/:id" and "get /", with a hint at the right form. A host
// may begin with the label "*".
func Parse(text string) (*Pattern, error) {
	if text == "" {
		return nil, errors.New("empty pattern")
	}
	p := &Pattern{text: text}
	rest := text
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		p.method, rest = text[:i], strings.TrimLeft(text[i+1:], " \t")
		if p.method != "" && !httpfield.IsToken(p.method) {
			return nil, fmt.Errorf("invalid method %q", p.method)
		}
		if upper := strings.ToUpper(p.method); upper != p.method && slices.Contains(knownMethods, upper) {
			return nil, fmt.Errorf("method %q can never match: case counts, so write %s", p.method, upper)
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
	if strings.HasSuffix(host, ":") && strings.HasPrefix(path, "//") {
		return nil, errors.New("a URL can never match: leave out the scheme, and write host/path")
	}
	p.method, p.host = shared(p.method), canonicalHost(host)
	if err := checkHost(p.host); err != nil {
		return nil, err
	}
	if _, _, err := net.SplitHostPort(host); err == nil {
		return nil, errors.New("host with a port can never match, for ports are ignored")
	}

	names := make(map[string]bool)
	for more := true; more; {
		var text string
		text, path, more = strings.Cut(path[1:], "/")
		if more {
			path = "/" + path
		}
		s, err := parseSegment(text, !more)
		if err != nil {
			return nil, err
		}
		if s.kind >= wildSegment && s.text != "" {
			if names[s.text] {
				return nil, fmt.Errorf("duplicate wildcard name %q", s.text)
			}
			names[s.text] = true
		}
		p.segments = append(p.segments, s)
	}
	return p, nil
}

var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}

// checkHost returns why a wildcard host is malformed. Its first label is "*", and a name follows.
func checkHost(host string) error {
	if name, wild := strings.CutPrefix(host, "*."); strings.Contains(name, "*") || wild && name == "" {
		return fmt.Errorf("host %q can never match: a wildcard host is \"*.\" and a name, as in *.example.com", host)
	}
	return nil
}

// hint returns what was probably meant by a literal segment in the syntax of another router or of a URL.
func hint(text string) error {
	switch {
	case text[0] == ':' && len(text) > 1:
		return fmt.Errorf("%q is not a wildcard; write {%s}, or %%3A for the colon", text, text[1:])
	case text == "*":
		return errors.New(`"*" is not a wildcard; write {name...} for all that is left, or %2A for the asterisk`)
	case strings.IndexByte(text, '?') >= 0:
		return errors.New("a pattern has no query; write MatchQuery in Route.Match, or %3F for the question mark")
	case strings.IndexByte(text, '#') >= 0:
		return errors.New("a pattern has no fragment; write %23 for the number sign")
	}
	return nil
}

// parseSegment reads the text between two slashes or, when it is the last, after the last slash.
func parseSegment(text string, last bool) (segment, error) {
	if text == "" {
		if last {
			return segment{kind: restSegment}, nil
		}
		return segment{}, errors.New("unclean path can never match")
	}
	switch i := strings.IndexByte(text, '{'); {
	case i < 0:
		if err := hint(text); err != nil {
			return segment{}, err
		}
		literal := urlpath.Unescape(text)
		if what := urlpath.Ambiguity(literal); what != "" {
			return segment{}, fmt.Errorf("path with %s can never match", what)
		}
		return segment{kind: literalSegment, text: shared(literal)}, nil
	case i > 0:
		return segment{}, errors.New("bad wildcard segment (must start with '{')")
	case text[len(text)-1] != '}':
		return segment{}, errors.New("bad wildcard segment (must end with '}')")
	}
	return parseWildcard(text[1:len(text)-1], last)
}

// parseWildcard reads the text between braces.
func parseWildcard(name string, last bool) (segment, error) {
	if name == "$" {
		if !last {
			return segment{}, errors.New("{$} not at end")
		}
		return segment{kind: slashSegment}, nil
	}
	kind := wildSegment
	if cut, ok := strings.CutSuffix(name, "..."); ok {
		if !last {
			return segment{}, errors.New("{...} wildcard not at end")
		}
		name, kind = cut, restSegment
	}
	if name == "" {
		return segment{}, errors.New("empty wildcard")
	}
	for i, c := range name { // a Go identifier
		if !unicode.IsLetter(c) && c != '_' && (i == 0 || !unicode.IsDigit(c)) {
			return segment{}, fmt.Errorf("bad wildcard name %q", name)
		}
	}
	return segment{kind: kind, text: shared(name)}, nil
}

// shared returns the copy of s that all patterns share. In a big table, the compared words then stay in the
// processor's cache.
func shared(s string) string { return unique.Make(s).Value() }

// HasRest reports whether the last segment of the pattern takes all that is left of a path.
func (p *Pattern) HasRest() bool { return p.segments[len(p.segments)-1].kind == restSegment }

// canonicalHost returns a Host field's value in the form that patterns use: in lower case, without port,
// brackets and final dot. It allocates only when something is in upper case.
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

// coversMethod reports whether a pattern's method accepts a request's. GET accepts HEAD too.
func coversMethod(pattern, request string) bool {
	return pattern == request || pattern == "" || pattern == "GET" && request == "HEAD"
}

// disjointMethods reports whether no request has a method that both patterns accept.
func disjointMethods(a, b string) bool { return !coversMethod(a, b) && !coversMethod(b, a) }
