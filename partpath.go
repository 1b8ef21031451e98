package gateway

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// partPath is what Part.Path says: a path, or a URL, with holes. {id} takes a path value of the route,
// {user.id} a field of another part.
type partPath struct {
	pieces []pathPiece
	holes  int
}

// pathPiece is literal text, or one hole.
type pathPiece struct {
	literal string   // percent-encoded; "" for a hole
	value   string   // the path value's name; "" for a field
	part    string   // whose field
	index   int      // of part, for Aggregate
	field   []string // the way to it, by member names and list indices
	query   bool     // the hole stands behind the question mark
}

// parsePartPath reads a template. Bytes that may not stand in a URL are percent-encoded, so that the
// escaping of the whole is never given up for their sake.
func parsePartPath(s string) (partPath, error) {
	var t partPath
	rest := s
	switch {
	case strings.HasPrefix(s, "http://"), strings.HasPrefix(s, "https://"):
		authority := strings.Index(s, "//") + 2
		end := authority + strings.IndexAny(s[authority:]+"/", "/?")
		origin, err := url.Parse(s[:end])
		if err != nil || origin.Hostname() == "" || origin.User != nil || strings.ContainsAny(s[:end], "{}#") {
			return t, errors.New("the URL's origin must be a scheme and a host as they are")
		}
		t.pieces = append(t.pieces, pathPiece{literal: s[:end]})
		if rest = s[end:]; !strings.HasPrefix(rest, "/") {
			rest = "/" + rest
		}
	case !strings.HasPrefix(s, "/"), strings.HasPrefix(s, "//"):
		return t, errors.New("a path begins with one slash")
	}

	query := false
	for rest != "" {
		i := strings.IndexAny(rest, "{}?#")
		if i < 0 {
			i = len(rest)
		}
		if _, err := url.PathUnescape(rest[:i]); err != nil {
			return t, err
		}
		literal := escapeRaw(rest[:i])
		if rest = rest[i:]; rest == "" {
			t.pieces = append(t.pieces, pathPiece{literal: literal})
			break
		}
		switch rest[0] {
		case '#':
			return t, errors.New("a fragment is not sent")
		case '}':
			return t, errors.New("a closing brace without an opening one")
		case '?':
			literal += "?"
			query = true
			rest = rest[1:]
		}
		if literal != "" {
			t.pieces = append(t.pieces, pathPiece{literal: literal})
		}
		if rest == "" || rest[0] != '{' {
			continue
		}
		name, after, closed := strings.Cut(rest[1:], "}")
		if !closed {
			return t, errors.New("an opening brace without a closing one")
		}
		hole, err := parseHole(name)
		if err != nil {
			return t, err
		}
		hole.query = query
		t.pieces = append(t.pieces, hole)
		t.holes++
		rest = after
	}

	sample, err := t.expand(func(*pathPiece) (string, error) { return "x", nil })
	if err != nil {
		return t, err
	}
	_, err = url.Parse(sample)
	return t, err
}

func parseHole(name string) (pathPiece, error) {
	steps := strings.Split(name, ".")
	for _, step := range steps {
		if step == "" || strings.ContainsAny(step, "{/$ ") {
			return pathPiece{}, fmt.Errorf("{%s} is neither {name} nor {part.field}", name)
		}
	}
	if len(steps) == 1 {
		return pathPiece{value: name}, nil
	}
	return pathPiece{part: steps[0], field: steps[1:]}, nil
}

// expand fills the holes with what value says, each percent-encoded so that it stays one segment or one
// query value. A value that could make the path another one than the template's is an error.
func (t *partPath) expand(value func(*pathPiece) (string, error)) (string, error) {
	var b strings.Builder
	for i := range t.pieces {
		p := &t.pieces[i]
		if p.literal != "" {
			b.WriteString(p.literal)
			continue
		}
		v, err := value(p)
		if err != nil {
			return "", fmt.Errorf("%s: %w", p, err)
		}
		switch {
		case v == "", v == ".", v == "..":
			return "", fmt.Errorf("%s: %q fits in no URL", p, v)
		case p.query:
			b.WriteString(url.QueryEscape(v))
		default:
			b.WriteString(url.PathEscape(v))
		}
	}
	target := b.String()
	path, _, _ := strings.Cut(target, "?")
	if why := hostile(unescape(path)); why != "" {
		return "", errors.New(why + " in the path")
	}
	return target, nil
}

// String is the hole as it was written, for error messages.
func (p *pathPiece) String() string {
	if p.value != "" {
		return "{" + p.value + "}"
	}
	return "{" + p.part + "." + strings.Join(p.field, ".") + "}"
}
