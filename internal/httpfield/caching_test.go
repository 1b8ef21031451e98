package httpfield

import (
	"net/http"
	"testing"
	"time"
)

func TestCaching(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }
	line := func(s string) http.Header { return http.Header{"Cache-Control": {s}} }
	silent := http.Header{}
	for _, tt := range []struct {
		name             string
		parts            []http.Header
		public, personal string // the answer to nobody in particular, and to a caller that is known
	}{
		{"none", nil, "", ""},
		{"silent", []http.Header{silent, silent}, "", ""},
		{"the least age", []http.Header{line("max-age=60"), line("MAX-AGE=\"5\"")}, "max-age=5", "private, max-age=5"},
		{"one is silent", []http.Header{line("public, max-age=60"), silent}, "max-age=0", "private, max-age=0"},
		{"one is silent, first", []http.Header{silent, line("public, max-age=60")}, "max-age=0", "private, max-age=0"},
		{"no-store", []http.Header{line("public, max-age=60"), line("no-store")}, "no-store", "no-store"},
		{"private", []http.Header{line("public, max-age=60"), line("private, max-age=70")}, "private, max-age=60", "private, max-age=60"},
		{"private for a field", []http.Header{line(`private="x, y", max-age=70`)}, "private, max-age=70", "private, max-age=70"},
		{"public", []http.Header{line("public, max-age=60"), line("max-age=70, public")}, "public, max-age=60", "public, max-age=60"},
		{"public for one", []http.Header{line("public, max-age=60"), line("max-age=70")}, "max-age=60", "private, max-age=60"},
		{"shared by both", []http.Header{line("s-maxage=60, max-age=5"), line("public, max-age=70")}, "max-age=5, s-maxage=60", "max-age=5, s-maxage=60"},
		{"shared by one", []http.Header{line("s-maxage=0, max-age=60"), line("max-age=70")}, "max-age=0", "private, max-age=60"},
		{"shared alone", []http.Header{line("s-maxage=60")}, "s-maxage=60", "s-maxage=60"},
		{"no-cache", []http.Header{line("max-age=60"), line(`no-cache="set-cookie"`)}, "no-cache, max-age=0", "private, no-cache, max-age=0"},
		{"revalidation", []http.Header{line("max-age=60, must-revalidate"), line("max-age=60, proxy-revalidate, no-transform")},
			"max-age=60, must-revalidate, proxy-revalidate, no-transform", "private, max-age=60, must-revalidate, proxy-revalidate, no-transform"},
		{"what only permits", []http.Header{line("max-age=60, immutable, stale-while-revalidate=9, x=\"a, no-store\"")}, "max-age=60", "private, max-age=60"},
		{"nothing known", []http.Header{line("immutable")}, "no-cache", "private"},
		{"twice", []http.Header{{"Cache-Control": {"max-age=60", "max-age=7,, , max-age=9"}}}, "max-age=7", "private, max-age=7"},
		{"malformed", []http.Header{line("max-age=-1")}, "max-age=0", "private, max-age=0"},
		{"malformed too", []http.Header{line("max-age=1.5")}, "max-age=0", "private, max-age=0"},
		{"no age", []http.Header{line("max-age")}, "max-age=0", "private, max-age=0"},
		{"an overflow", []http.Header{line("max-age=99999999999999999999")}, "max-age=2147483647", "private, max-age=2147483647"},
		{"an open quote", []http.Header{line(`x="a, no-store`)}, "no-cache", "private"},
		{"Age", []http.Header{{"Cache-Control": {"max-age=60, s-maxage=90"}, "Age": {"50"}}}, "max-age=10, s-maxage=40", "max-age=10, s-maxage=40"},
		{"too old", []http.Header{{"Cache-Control": {"max-age=60"}, "Age": {"61"}}}, "max-age=0", "private, max-age=0"},
		{"Expires", []http.Header{{"Expires": {"Tue, 24 Nov 2026 12:00:30 GMT"}}}, "max-age=30", "private, max-age=30"},
		{"Expires after Date", []http.Header{{"Expires": {"Tue, 24 Nov 2026 12:00:30 GMT"}, "Date": {"Tue, 24 Nov 2026 12:00:10 GMT"}}}, "max-age=20", "private, max-age=20"},
		{"Expires in the past", []http.Header{{"Expires": {"0"}}}, "max-age=0", "private, max-age=0"},
		{"Expires and max-age", []http.Header{{"Expires": {"0"}, "Cache-Control": {"max-age=9"}}}, "max-age=9", "private, max-age=9"},
		{"Pragma", []http.Header{{"Pragma": {"no-cache"}}}, "no-cache", "private, no-cache"},
		{"Pragma and Cache-Control", []http.Header{{"Pragma": {"no-cache"}, "Cache-Control": {"max-age=9"}}}, "max-age=9", "private, max-age=9"},
	} {
		var s Strictest
		for _, h := range tt.parts {
			s.Add(CachingOf(h, now))
		}
		if got := s.Format(false); got != tt.public {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.public)
		}
		if got := s.Format(true); got != tt.personal {
			t.Errorf("%s, personal: %q, want %q", tt.name, got, tt.personal)
		}
	}
}

// TestCachingOrder: the order of the parts does not matter.
func TestCachingOrder(t *testing.T) {
	lines := []string{"", "no-store", "private", "public", "no-cache", "max-age=5", "public, max-age=9", "s-maxage=7", "max-age=3, s-maxage=4", "must-revalidate", "immutable"}
	for _, a := range lines {
		for _, b := range lines {
			for _, c := range lines {
				format := func(order ...string) string {
					var s Strictest
					for _, line := range order {
						h := http.Header{}
						if line != "" {
							h["Cache-Control"] = []string{line}
						}
						s.Add(CachingOf(h, time.Now))
					}
					return s.Format(false) + " / " + s.Format(true)
				}
				if x, y := format(a, b, c), format(c, a, b); x != y {
					t.Errorf("%q, %q, %q: %s, in another order %s", a, b, c, x, y)
				}
			}
		}
	}
}
