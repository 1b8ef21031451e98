package urlpath

import (
	"errors"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The two syntaxes that the gateway uses.
var (
	partSyntax  = Syntax{Origin: true, Query: true, Fields: true} // Part.Path
	proxySyntax = Syntax{Rest: true, Dots: true}                  // ProxyOptions.Path
)

func TestParseTemplate(t *testing.T) {
	for _, bad := range []string{
		"", "x", "//host/x", "/a{", "/a}", "/{}", "/{a.}", "/{.a}", "/{a..b}", "/{a...}", "/{$}", "/{a{b}}", "/{a/b}", "/a#b",
		"/%", "/%4", "/%zz", "/a/../b", "/./b", "/%2e%2E/x", "/a%2F..%2Fb", `/a\b`, "/%00", "/?a=%q",
		"http://", "http:///x", "http://{host}/x", "http://h:port/", "http://user@h/", "ftp://h/x",
	} {
		if _, err := ParseTemplate(bad, partSyntax); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestTemplateExpand(t *testing.T) {
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
			p, err := ParseTemplate(c.path, partSyntax)
			if err != nil {
				if c.value == "" && c.want == "" {
					return
				}
				t.Fatal(err)
			}
			got, err := p.Expand(func(*Hole) (string, error) { return c.value, nil })
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

// What only the other syntax allows is refused, and so is what no value could make a path.
func TestProxySyntax(t *testing.T) {
	for _, bad := range []string{
		"", "x", "/a{", "/a}", "/{}", "/{...}", "/{a{b}}", "/{a/b}", "/{$}", "/a#b", "/a?b", "/{a}?b={c}", "/%", "/%zz",
		"http://h/x", "/a/../b", "/%2e%2e/{x}", `/a\b`, "/%00",
	} {
		if _, err := ParseTemplate(bad, proxySyntax); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, c := range []struct {
		path, value, want string // want "" means an error
		ambiguous         bool
	}{
		{"/u/{id}", "a/b?c d", "/u/a%2Fb%3Fc%20d", false},
		{"/u/{id}", "", "", false},
		{"/u/{id}", "..", "", true},
		{"/u/{id}", "..;x", "", true},
		{"/u/{id}", "a\\b", "", true},
		{"/v{id}", ".", "/v.", false},
		{"/v/{rest...}", "", "/v/", false},
		{"/v/{rest...}", "a%2Fb/c", "/v/a%2Fb/c", false},
		{"/v/{rest...}", "a/%2e%2e/b", "", true},
		{"/{user.id}", "7", "/7", false}, // one name: fields are not allowed
		{"//v/a%2Fb|/{id}", "7", "//v/a%2Fb%7C/7", false},
	} {
		p, err := ParseTemplate(c.path, proxySyntax)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Expand(func(*Hole) (string, error) { return c.value, nil })
		if got != c.want || (err != nil) != (c.want == "") || errors.Is(err, ErrAmbiguous) != c.ambiguous {
			t.Errorf("%q with %q: %q, %v; want %q", c.path, c.value, got, err, c.want)
		}
	}
}

func TestTemplateHoles(t *testing.T) {
	p, err := ParseTemplate("http://h/{a}/{b.c.0}?x={d}", partSyntax)
	if err != nil {
		t.Fatal(err)
	}
	want := []Hole{{Name: "a"}, {Name: "b", Field: []string{"c", "0"}}, {Name: "d", Query: true}}
	var texts []string
	for i, h := range p.Holes() {
		if i >= len(want) || !reflect.DeepEqual(*h, want[i]) {
			t.Errorf("hole %d is %+v", i, *h)
		}
		texts = append(texts, h.String())
	}
	if got := strings.Join(texts, " "); got != "{a} {b.c.0} {d}" {
		t.Errorf("the holes are %s", got)
	}
	if p, err = ParseTemplate("/{rest...}", proxySyntax); err != nil || len(p.Holes()) != 1 || !p.Holes()[0].Rest || p.Holes()[0].String() != "{rest...}" {
		t.Errorf("got %+v, %v", p, err)
	}
	boom := errors.New("boom")
	if _, err := p.Expand(func(*Hole) (string, error) { return "", boom }); !errors.Is(err, boom) || err.Error() != "{rest...}: boom" {
		t.Errorf("got %v", err)
	}
}

// FuzzTemplate: no value changes anything but its own segment and its own query value.
func FuzzTemplate(f *testing.F) {
	for _, v := range []string{"7", "../x", "a/b", "%2e%2e", "a&b=c", "a?b#c", ";", "\\", "\x00", "\xff", ".", "a\r\nb"} {
		f.Add(v, v)
	}
	p, err := ParseTemplate("/users/{a}/list?n=1&after={b}&z=2", partSyntax)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got, err := p.Expand(func(hole *Hole) (string, error) {
			if hole.Name == "a" {
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
