package urlpath

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func TestCleanQuery(t *testing.T) {
	for _, tt := range []struct {
		query, want string
		dropped     int
	}{
		{"", "", 0},
		{"a=1&b=2&&=&c", "a=1&b=2&&=&c", 0},
		{"a=%2f+x?/:@", "a=%2f+x?/:@", 0},
		{"a=1;b=2&c=3&d=%zz", "c=3", 2},
		{"a=%", "", 1},
		{"a=%4", "", 1},
		{"a=;&a=1&a=2&;", "a=1&a=2", 2},
		{"b=2&a=1&%2=x", "a=1&b=2", 1},
		{"a= b|é", "a=%20b%7C%C3%A9", 0},
		{strings.Repeat("&", 10_000), "", 0},
		{strings.Repeat("&", 9_999), strings.Repeat("&", 9_999), 0},
	} {
		if got, dropped := CleanQuery(tt.query); got != tt.want || dropped != tt.dropped {
			t.Errorf("%.40q: %.40q and %d dropped, want %.40q and %d", tt.query, got, dropped, tt.want, tt.dropped)
		}
	}
}

// FuzzCleanQuery: the clean query has what net/url reads of the query, no raw byte, and is clean already.
func FuzzCleanQuery(f *testing.F) {
	for _, q := range []string{"a=1&b=2", "a;b&c=%41", "%zz&x", "a= b\x00\xff", "?=?", "&&="} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		clean, _ := CleanQuery(query)
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
		if again, dropped := CleanQuery(clean); again != clean || dropped != 0 {
			t.Errorf("%q is cleaned again to %q, and %d dropped", clean, again, dropped)
		}
	})
}

func TestCarryQuery(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"", ""},
		{"b=2;a=1&%zz&x=é|{\"}", "b=2;a=1&%zz&x=é|{\"}"},
		{"a=b c\td\x00\r\n\x7f#e", "a=b%20c%09d%00%0D%0A%7F%23e"},
	} {
		if got := CarryQuery(tt.query); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.query, got, tt.want)
		}
	}
}
