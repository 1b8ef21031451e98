package urlpath

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Syntax selects what a template may hold besides a path that begins with a slash and holes {name}.
type Syntax struct {
	Rest   bool // {name...}, whose value may be empty or several segments
	Fields bool // {name.field.0}, a value within another
	Query  bool // a question mark and what follows it
	Origin bool // an http or https URL in place of a path; its scheme and host have no holes
	Dots   bool // "." and ".." as values, where they do not make a dot segment
}

// Template is a path or a URL with holes for values. Except for the Ref of its holes, it is immutable and
// safe for concurrent use.
//
// With every Syntax, "http://10.0.0.1/users/{id}/list?after={user.last}" has the holes {id}, in the path, and
// {user.last}, in the query.
type Template struct {
	pieces []piece
	holes  []*Hole
	dots   bool
}

// piece is literal text, percent-encoded, or a hole.
type piece struct {
	literal string
	hole    *Hole
}

// Hole is one {…} of a template.
type Hole struct {
	Name  string
	Field []string // the steps behind the name of {name.field.0}; nil for a plain {name}
	Rest  bool     // {name...}
	Query bool     // it stands behind the question mark
	Ref   int      // for the caller, who may set it before the first Expand
}

// ErrAmbiguous is wrapped by Expand's error if the values produce a path that servers read in different ways.
var ErrAmbiguous = errors.New("ambiguous path")

// ParseTemplate reads a template. Bytes that are not allowed in a URL are percent-encoded; percent-encoding
// in text stays as it is.
func ParseTemplate(text string, allow Syntax) (*Template, error) {
	t := &Template{dots: allow.Dots}
	rest, err := t.parseOrigin(text, allow)
	if err != nil {
		return nil, err
	}
	query := false
	for rest != "" {
		i := strings.IndexAny(rest, "{}?#")
		if i < 0 {
			i = len(rest)
		}
		if err := t.addLiteral(rest[:i]); err != nil {
			return nil, err
		}
		if rest = rest[i:]; rest == "" {
			break
		}
		switch rest[0] {
		case '#':
			return nil, errors.New("a fragment is never sent")
		case '}':
			return nil, errors.New("a closing brace has no opening one")
		case '?':
			if !allow.Query {
				return nil, errors.New("a query is not allowed")
			}
			t.pieces = append(t.pieces, piece{literal: "?"})
			query, rest = true, rest[1:]
		case '{':
			name, after, closed := strings.Cut(rest[1:], "}")
			if !closed {
				return nil, errors.New("an opening brace has no closing one")
			}
			h, err := parseHole(name, allow)
			if err != nil {
				return nil, err
			}
			h.Query = query
			t.holes = append(t.holes, h)
			t.pieces = append(t.pieces, piece{hole: h})
			rest = after
		}
	}
	return t, t.check()
}

// parseOrigin adds the origin of a URL to t, if there is one. It returns the rest of the template, which
// begins with a slash.
func (t *Template) parseOrigin(text string, allow Syntax) (rest string, err error) {
	switch {
	case strings.HasPrefix(text, "/") && !(allow.Origin && strings.HasPrefix(text, "//")): // "//" would begin a host
		return text, nil
	case !allow.Origin || !strings.HasPrefix(text, "http://") && !strings.HasPrefix(text, "https://"):
		return "", errors.New("a path must begin with one slash")
	}
	host := strings.Index(text, "//") + 2
	end := host + strings.IndexAny(text[host:]+"/", "/?")
	origin, err := url.Parse(text[:end])
	if err != nil || origin.Hostname() == "" || origin.User != nil || strings.ContainsAny(text[:end], "{}#") {
		return "", errors.New("the origin of a URL must be a scheme and a host without braces")
	}
	t.pieces = append(t.pieces, piece{literal: text[:end]})
	if rest = text[end:]; !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest, nil
}

func (t *Template) addLiteral(text string) error {
	if _, err := url.PathUnescape(text); err != nil {
		return err
	}
	if text != "" {
		t.pieces = append(t.pieces, piece{literal: Escape(text)})
	}
	return nil
}

// parseHole reads what stands between two braces.
func parseHole(text string, allow Syntax) (*Hole, error) {
	h := &Hole{Name: text}
	if allow.Rest {
		h.Name, h.Rest = strings.CutSuffix(text, "...")
	}
	steps := []string{h.Name}
	if allow.Fields && !h.Rest {
		steps = strings.Split(h.Name, ".")
		h.Name = steps[0]
	}
	for _, step := range steps {
		if step == "" || strings.ContainsAny(step, "{/$ ") {
			return nil, fmt.Errorf("{%s} is not %s", text, allow.holes())
		}
	}
	if len(steps) > 1 {
		h.Field = steps[1:]
	}
	return h, nil
}

// holes lists the forms of holes that are allowed, for error messages.
func (allow Syntax) holes() string {
	forms := "{name}"
	if allow.Rest {
		forms += " or {name...}"
	}
	if allow.Fields {
		forms += " or {name.field}"
	}
	return forms
}

// check fills every hole with a letter, to find errors at setup that no value could correct: a dot segment
// or a malformed URL.
func (t *Template) check() error {
	sample, err := t.Expand(func(*Hole) (string, error) { return "x", nil })
	if err == nil {
		_, err = url.ParseRequestURI(sample)
	}
	return err
}

// Holes returns the template's holes in the order in which they stand. The slice must not be changed.
func (t *Template) Holes() []*Hole { return t.holes }

// Expand fills each hole with what value returns for it. The value of a plain hole is percent-encoded, so
// that it stays one segment or one query value. The value of a {name...} is escaped already (EscapedRest) and
// is taken as it is.
//
// Its error wraps the one of value, or ErrAmbiguous when the path has become ambiguous. An empty value of a
// plain hole is an error too, and so are "." and ".." where Syntax.Dots does not allow them. Where the
// value of a {name...} is empty, one of the slashes around it is left out.
func (t *Template) Expand(value func(*Hole) (string, error)) (string, error) {
	return t.ExpandAs(func(h *Hole) (string, bool, error) { v, err := value(h); return v, h.Rest, err }, Ambiguity)
}

// ExpandAs is Expand with another function in place of Ambiguity, and with a value that decides itself
// whether it is that of a {name...}.
func (t *Template) ExpandAs(value func(*Hole) (v string, rest bool, err error), ambiguity func(path string) string) (string, error) {
	var b strings.Builder
	empty := false // the last piece was the value of a {name...}, and empty
	for _, p := range t.pieces {
		h := p.hole
		if h == nil {
			literal := p.literal
			if empty && strings.HasSuffix(b.String(), "/") {
				literal = strings.TrimPrefix(literal, "/")
			}
			empty = false
			b.WriteString(literal)
			continue
		}
		v, rest, err := value(h)
		if err != nil {
			return "", fmt.Errorf("%s: %w", h, err)
		}
		switch {
		case rest:
			empty = v == ""
			b.WriteString(v)
		case v == "", !t.dots && (v == "." || v == ".."):
			return "", fmt.Errorf("%s: the value %q cannot stand in a URL", h, v)
		case h.Query:
			b.WriteString(url.QueryEscape(v))
		default:
			b.WriteString(url.PathEscape(v))
		}
	}
	target := b.String()
	path, _, _ := strings.Cut(target, "?")
	if why := ambiguity(Unescape(path)); why != "" {
		return "", fmt.Errorf("%w: it has %s", ErrAmbiguous, why)
	}
	return target, nil
}

// String returns the hole as it was written.
func (h *Hole) String() string {
	s := "{" + h.Name
	for _, step := range h.Field {
		s += "." + step
	}
	if h.Rest {
		s += "..."
	}
	return s + "}"
}
