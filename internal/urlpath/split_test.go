package urlpath

import (
	"strings"
	"testing"
)

func TestPathSplit(t *testing.T) {
	for _, text := range []string{
		"/", "/a", "/a/", "/a/b", "/a/b/", "/a/bc/def", "//", "/a//b", "//a", "/.a/.", "/a/../b",
		strings.Repeat("/ab", 15), strings.Repeat("/ab", 16), strings.Repeat("/ab", 16) + "/", strings.Repeat("/ab", 17),
		strings.Repeat("/ab", 40), strings.Repeat("/ab", 40) + "/",
	} {
		p := Path{Text: text}
		p.Split()
		want := strings.Split(text[1:], "/")
		slash := want[len(want)-1] == ""
		if slash {
			want = want[:len(want)-1]
		}
		if p.Len != len(want) || p.TrailingSlash != slash || p.Doubled != strings.Contains(text, "//") || p.Dotted != strings.Contains(text, "/.") {
			t.Errorf("%q: %+v", text, p)
			continue
		}
		for i, s := range want {
			rest := strings.Join(want[i:], "/")
			if slash {
				rest += "/"
			}
			if p.Segment(i) != s || p.Rest(i) != rest {
				t.Errorf("%q: segment %d is %q, rest %q; want %q, %q", text, i, p.Segment(i), p.Rest(i), s, rest)
			}
		}
		if p.Rest(len(want)) != "" {
			t.Errorf("%q: rest %q behind the last", text, p.Rest(len(want)))
		}
	}
}
