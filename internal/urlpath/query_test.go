package urlpath

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func TestCleanQuery(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"", ""},
		{"a=1&b=2&&=&c", "a=1&b=2&&=&c"},
		{"a=%2f+x?/:@", "a=%2f+x?/:@"},
		{"a=1;b=2&c=3&d=%zz", "c=3"},
		{"a=%", ""},
		{"a=%4", ""},
		{"b=2&a=1&%2=x", "a=1&b=2"},
		{"a= b|é", "a=%20b%7C%C3%A9"},
		{strings.Repeat("&", 10_000), ""},
		{strings.Repeat("&", 9_999), strings.Repeat("&", 9_999)},
	} {
		if got := CleanQuery(tt.query); got != tt.want {
			t.Errorf("%.40q: %.40q, want %.40q", tt.query, got, tt.want)
		}
	}
}

// FuzzCleanQuery: the clean query has what net/url reads of the query, no raw byte, and is clean already.
func FuzzCleanQuery(f *testing.F) {
	for _, q := range []string{"a=1&b=2", "a;b&c=%41", "%zz&x", "a= b\x00\xff", "?=?", "&&="} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		clean := CleanQuery(query)
		want, _ := url.ParseQuery(query)
		got, err := url.ParseQuery(clean)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q becomes %q: %v, %v; want %v", query, clean, got, err, want)
		}
		for i := range len(clean) {
			if c := clean[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("#;\"<>\\^`{|}", c) >= 0 {
				t.Errorf("%q holds %q", clean, c)
			}
		}
		if again := CleanQuery(clean); again != clean {
			t.Errorf("%q is cleaned again to %q", clean, again)
		}
	})
}
