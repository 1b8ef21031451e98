package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// cleanQuery returns query as it is when every parser reads it alike, and else what net/url reads of it.
// Bytes that may not stand in a query (RFC 3986 section 3.4) are escaped: over HTTP/2 a client can send a
// blank, which ends the request's target in HTTP/1.1.
func cleanQuery(query string) string {
	const most = 10_000 // as net/url
	clean, raw := strings.Count(query, "&") < most, 0
	for i := 0; clean && i < len(query); i++ {
		switch c := query[i]; {
		case c == ';':
			clean = false
		case c == '%':
			clean = i+2 < len(query) && isHex(query[i+1]) && isHex(query[i+2])
		case c != '?' && !inPath[c]:
			raw++
		}
	}
	switch {
	case !clean:
		values, _ := url.ParseQuery(query)
		return values.Encode()
	case raw == 0:
		return query
	}
	b := make([]byte, 0, len(query)+2*raw)
	for i := range len(query) {
		if c := query[i]; c == '?' || inPath[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

const upperHex = "0123456789ABCDEF"

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// setEscapedPath makes u's path what the escaped path says.
func setEscapedPath(u *url.URL, escaped string) error {
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

// templatePart is a piece of a path template: text as it stands, or the name of a path value.
type templatePart struct {
	text, name string
	rest       bool // {name...}: slashes of the value stay
}

// parsePathTemplate splits "/users/{id}/x" into its parts; it panics when the template is none.
func parsePathTemplate(template string) []templatePart {
	if template[0] != '/' {
		panic("gateway: Proxy: Path must begin with a slash")
	}
	var parts []templatePart
	for rest := template; rest != ""; {
		text, after, found := strings.Cut(rest, "{")
		if text != "" {
			if _, err := url.PathUnescape(text); err != nil || strings.ContainsAny(text, "}?#") {
				panic(fmt.Sprintf("gateway: Proxy: Path %q is no path", template))
			}
			parts = append(parts, templatePart{text: (&url.URL{Path: mustUnescape(text), RawPath: text}).EscapedPath()})
		}
		if !found {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		name, multi := strings.CutSuffix(name, "...")
		if !closed || name == "" || strings.ContainsAny(name, "{/") {
			panic(fmt.Sprintf("gateway: Proxy: bad {name} in Path %q", template))
		}
		parts = append(parts, templatePart{name: name, rest: multi})
		rest = tail
	}
	return parts
}

func mustUnescape(s string) string {
	s, _ = url.PathUnescape(s)
	return s
}

// expandPath fills a template with the path values of r.
func expandPath(template []templatePart, r *http.Request) (string, error) {
	var b strings.Builder
	for _, part := range template {
		if part.name == "" {
			b.WriteString(part.text)
			continue
		}
		value := r.PathValue(part.name)
		if value == "" && !part.rest {
			return "", fmt.Errorf("gateway: Proxy: the route has no path value %q", part.name)
		}
		if !part.rest {
			b.WriteString(url.PathEscape(value))
			continue
		}
		if rest, ok := escapedRest(r.URL, value); ok {
			b.WriteString(rest)
			continue
		}
		for i, s := range strings.Split(value, "/") {
			if i > 0 {
				b.WriteByte('/')
			}
			b.WriteString(url.PathEscape(s))
		}
	}
	return b.String(), nil
}
