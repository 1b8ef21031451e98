package urlpath

import (
	"net/url"
	"testing"
)

func TestEscaped(t *testing.T) {
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
		if got := Escaped(u); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.raw, got, tt.want)
		}
	}
	// Somebody has changed Path alone, so RawPath is of another path.
	for _, raw := range []string{"/old%2Fpath", "/new", "/new%2Fpath%2Fx", "/new%2", "/new%2Xpath"} {
		u := &url.URL{Path: "/new/path", RawPath: raw}
		if got := Escaped(u); got != "/new/path" {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

// FuzzEscaped: what is forwarded decodes to what was matched, and is a path.
func FuzzEscaped(f *testing.F) {
	f.Add("/a%2Fb{", "/a/b{")
	f.Add("/%zz", "/%zz")
	f.Fuzz(func(t *testing.T, raw, path string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			u = &url.URL{Path: path, RawPath: raw}
		}
		escaped := Escaped(u)
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

func TestEscapedRest(t *testing.T) {
	for _, tt := range []struct{ path, value, want string }{
		{"/files/a%2Fb/c", "a/b/c", "a%2Fb/c"},
		{"/files/a%2fb|/c/", "a/b|/c/", "a%2fb%7C/c/"},
		{"/files/a/b", "b", "b"},
		{"/files/", "", ""},
		{"/files/a", "", ""},
		{"/elsewhere", "a/b?c", "a/b%3Fc"}, // the value is not this path's
	} {
		u, err := url.Parse(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := EscapedRest(u, tt.value); got != tt.want {
			t.Errorf("%q, %q: %q, want %q", tt.path, tt.value, got, tt.want)
		}
	}
}

func TestSetEscaped(t *testing.T) {
	for _, tt := range []struct{ escaped, path, want string }{
		{"", "/", "/"},
		{"/a%2Fb", "/a/b", "/a%2Fb"},
		{"/%C3%A4", "/ä", "/%C3%A4"},
	} {
		var u url.URL
		if err := SetEscaped(&u, tt.escaped); err != nil || u.Path != tt.path || u.EscapedPath() != tt.want {
			t.Errorf("%q: %q, %q, %v", tt.escaped, u.Path, u.EscapedPath(), err)
		}
	}
	u := url.URL{Path: "/old"}
	if err := SetEscaped(&u, "/%zz"); err == nil || u.Path != "/old" {
		t.Errorf("a malformed path gives %q, %v", u.Path, err)
	}
}

func TestAmbiguity(t *testing.T) {
	for path, want := range map[string]string{
		"/": "", "/a.b/..c/d../...": "", "/.well-known": "", "a": "", "": "", "/%2e%2e": "",
		"/.": "a dot segment", "/..": "a dot segment", "..": "a dot segment", "/a/./b": "a dot segment",
		"/a/../b": "a dot segment", "/a/..;x/b": "a dot segment", "/.;": "a dot segment",
		`/a\b`: "a backslash", "/a\x00": "NUL",
	} {
		if got := Ambiguity(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestCollapse(t *testing.T) {
	for path, want := range map[string]string{"/": "/", "//": "/", "///a//b/": "/a/b/", "a//": "a/", "": ""} {
		if got := Collapse(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}
