package gateway

import (
	"net/url"
	"strings"
	"testing"
)

func TestSplitPath(t *testing.T) {
	for _, text := range []string{
		"/", "/a", "/a/", "/a/b", "/a/b/", "/a/bc/def", "//", "/a//b", "//a", "/.a/.", "/a/../b",
		strings.Repeat("/ab", 15), strings.Repeat("/ab", 16), strings.Repeat("/ab", 16) + "/", strings.Repeat("/ab", 17),
		strings.Repeat("/ab", 40), strings.Repeat("/ab", 40) + "/",
	} {
		p := splitPath{text: text}
		p.split()
		want := strings.Split(text[1:], "/")
		slash := want[len(want)-1] == ""
		if slash {
			want = want[:len(want)-1]
		}
		if p.segments != len(want) || p.slash != slash || p.doubled != strings.Contains(text, "//") || p.dotted != strings.Contains(text, "/.") {
			t.Errorf("%q: %+v", text, p)
			continue
		}
		for i, s := range want {
			rest := strings.Join(want[i:], "/")
			if slash {
				rest += "/"
			}
			if p.segment(i) != s || p.rest(i) != rest {
				t.Errorf("%q: segment %d is %q, rest %q; want %q, %q", text, i, p.segment(i), p.rest(i), s, rest)
			}
		}
		if p.rest(len(want)) != "" {
			t.Errorf("%q: rest %q behind the last", text, p.rest(len(want)))
		}
	}
}

func TestEscapedPath(t *testing.T) {
	tests := []struct{ raw, want string }{
		{"", "/"},
		{"/", "/"},
		{"/a b", "/a%20b"},
		{"/a%20b", "/a%20b"},
		{"/a%2Fb", "/a%2Fb"},
		{"/a%2fb", "/a%2fb"},
		{"/files/a%2Fb{", "/files/a%2Fb%7B"},
		{"/files/a%2Fb|^\"é", "/files/a%2Fb%7C%5E%22%C3%A9"},
		{"/é", "/%C3%A9"},
		{"/%7Eme/~me", "/%7Eme/~me"},
		{"/[a]/%5Bb%5D", "/[a]/%5Bb%5D"},
		{"/100%25", "/100%25"},
		{"/a;b=c:@!$&'()*+,", "/a;b=c:@!$&'()*+,"},
	}
	for _, tt := range tests {
		u := new(url.URL)
		if tt.raw != "" {
			var err error
			if u, err = url.Parse(tt.raw); err != nil {
				t.Fatal(err)
			}
		}
		if got := escapedPath(u); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.raw, got, tt.want)
		}
	}
	// Somebody has changed Path alone, so RawPath is of another path.
	for _, raw := range []string{"/old%2Fpath", "/new", "/new%2Fpath%2Fx", "/new%2", "/new%2Xpath"} {
		u := &url.URL{Path: "/new/path", RawPath: raw}
		if got := escapedPath(u); got != "/new/path" {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

// FuzzEscapedPath: what is forwarded decodes to what was matched, and is a path.
func FuzzEscapedPath(f *testing.F) {
	f.Add("/a%2Fb{", "/a/b{")
	f.Add("/%zz", "/%zz")
	f.Fuzz(func(t *testing.T, raw, path string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			u = &url.URL{Path: path, RawPath: raw}
		}
		escaped := escapedPath(u)
		decoded, err := url.PathUnescape(escaped)
		if err != nil || decoded != u.Path && u.Path != "" && u.Path != "*" {
			t.Errorf("%q becomes %q, which decodes to %q, %v", u.Path, escaped, decoded, err)
		}
		for i := range len(escaped) {
			if !inPath[escaped[i]] {
				t.Errorf("%q holds %q", escaped, escaped[i])
			}
		}
		if again := (&url.URL{Path: decoded, RawPath: escaped}).EscapedPath(); again != escaped && decoded != "*" {
			t.Errorf("net/url makes %q of %q", again, escaped)
		}
	})
}
