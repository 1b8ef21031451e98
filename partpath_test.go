package gateway

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestParsePartPath(t *testing.T) {
	for _, bad := range []string{
		"", "x", "//host/x", "/a{", "/a}", "/{}", "/{a.}", "/{.a}", "/{a..b}", "/{a...}", "/{$}", "/{a{b}}", "/{a/b}", "/a#b",
		"/%", "/%4", "/%zz", "/a/../b", "/./b", "/%2e%2E/x", "/a%2F..%2Fb", `/a\b`, "/%00", "/?a=%q",
		"http://", "http:///x", "http://{host}/x", "http://h:port/", "http://user@h/", "ftp://h/x",
	} {
		if _, err := parsePartPath(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestPartPathExpand(t *testing.T) {
	for _, c := range []struct {
		name, path, value, want string // want "" means an error
	}{
		{"nothing to fill", "/a/b?c=d", "", "/a/b?c=d"},
		{"segment", "/users/{id}/x", "7", "/users/7/x"},
		{"slash", "/users/{id}", "a/b", "/users/a%2Fb"},
		{"reserved", "/users/{id}", "a?b#c%d&e=f g", "/users/a%3Fb%23c%25d&e=f%20g"},
		{"query value", "/x?a={id}&b=2", "1&b=3#=+% ü/", "/x?a=1%26b%3D3%23%3D%2B%25+%C3%BC%2F&b=2"},
		{"question mark in a query value", "/x?a=?{id}", "?", "/x?a=?%3F"},
		{"line break", "/x?a={id}", "a\r\nX: b", "/x?a=a%0D%0AX%3A+b"},
		{"part of a segment", "/v{id}.json", "1", "/v1.json"},
		{"empty", "/{id}", "", ""},
		{"dot", "/{id}", ".", ""},
		{"dots", "/{id}", "..", ""},
		{"dots in the query", "/x?a={id}", "..", ""},
		{"dots behind an encoded slash", "/{id}/x", "../admin", ""},
		{"dots before", "/{id}/x", "a/..", ""},
		{"dots that the template completes", "/.{id}", "./x", ""},
		{"dots with a parameter", "/{id}", "..;x", ""},
		{"backslash", "/{id}", `..\admin`, ""},
		{"NUL", "/{id}", "a\x00", ""},
		{"encoded dots are text", "/{id}", "%2e%2e", "/%252e%252e"},
		{"dots within a name", "/{id}", "..a", "/..a"},
		{"literal to escape", "/ü/a%2Fb|^/{id}?q=\"<", "x", "/%C3%BC/a%2Fb%7C%5E/x?q=%22%3C"},
		{"absolute", "http://127.0.0.1:80/a/{id}?b={id}", "x y", "http://127.0.0.1:80/a/x%20y?b=x+y"},
		{"absolute without path", "https://h?b={id}", "x", "https://h/?b=x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := parsePartPath(c.path)
			if err != nil {
				if c.value == "" && c.want == "" {
					return
				}
				t.Fatal(err)
			}
			got, err := p.expand(func(*pathPiece) (string, error) { return c.value, nil })
			if err != nil {
				got = ""
			}
			if got != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
			if c.want == "" {
				return
			}
			u, err := url.Parse(got)
			if err != nil || u.String() != got {
				t.Errorf("the URL is read as %q, %v", u, err)
			}
		})
	}
}

// FuzzPartPath: no value changes anything but its own segment and its own query value.
func FuzzPartPath(f *testing.F) {
	for _, v := range []string{"7", "../x", "a/b", "%2e%2e", "a&b=c", "a?b#c", ";", "\\", "\x00", "\xff", ".", "a\r\nb"} {
		f.Add(v, v)
	}
	p, err := parsePartPath("/users/{a}/list?n=1&after={b}&z=2")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got, err := p.expand(func(hole *pathPiece) (string, error) {
			if hole.value == "a" {
				return a, nil
			}
			return b, nil
		})
		if err != nil {
			return
		}
		u, err := url.Parse(got)
		if err != nil {
			t.Fatal(err)
		}
		segments := strings.Split(u.EscapedPath(), "/")
		if len(segments) != 4 || segments[1] != "users" || segments[3] != "list" {
			t.Fatalf("path %q", u.EscapedPath())
		}
		if s, err := url.PathUnescape(segments[2]); err != nil || s != a {
			t.Fatalf("segment %q", segments[2])
		}
		q, err := url.ParseQuery(u.RawQuery)
		if err != nil || len(q) != 3 || len(q["after"]) != 1 || q.Get("after") != b || q.Get("n") != "1" || q.Get("z") != "2" {
			t.Fatalf("query %q: %v", u.RawQuery, err)
		}
		if clean := strings.Split(u.Path, "/"); strings.Contains(u.Path, "\\") || slices.Contains(clean, "..") || slices.Contains(clean, ".") {
			t.Fatalf("path %q", u.Path)
		}
	})
}
