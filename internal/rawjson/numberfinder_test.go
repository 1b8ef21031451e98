package rawjson

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"testing"
)

func TestNumberFinder(t *testing.T) {
	for _, tt := range []struct {
		pointer, text string
		want          float64 // NaN: none
	}{
		{"", "12.5", 12.5},
		{"", " -3e2 ", -300},
		{"", `{"a":1}`, math.NaN()},
		{"", `"12"`, math.NaN()},
		{"/a", `{"a":1}`, 1},
		{"/a", `{"b":{"a":2},"c":[{"a":3}],"a":1}`, 1},
		{"/a", `{"b":{"a":2},"c":[{"a":3}]}`, math.NaN()},
		{"/a", `[{"a":3}]`, math.NaN()},
		{"/a", `{"a":{"a":2}}`, math.NaN()},
		{"/a", `{"a":1,"a":5}`, 5},
		{"/a", `{"a":1,"a":null}`, math.NaN()},
		{"/a", `{"a":1}x`, math.NaN()},
		{"/a", `{"a":1,"b":`, 1},
		{"/a", `{"a":12`, math.NaN()}, // the number may go on
		{"/usage/total_tokens", `{"id":"x","usage":{"prompt_tokens":3,"total_tokens":47,"d":{"total_tokens":1}},"z":[1,{"usage":9}]}`, 47},
		{"/usage/total_tokens", `{"usage":null}`, math.NaN()},
		{"/usage/total_tokens", `{"usage":{"total_tokens":4},"x":{"usage":{"total_tokens":5}}}`, 4},
		{"/a/1/b", `{"a":[{"b":1},{"b":2},{"b":3}]}`, 2},
		{"/a/0", `{"a":[7,8]}`, 7},
		{"/a/2", `{"a":[[1,2,3],{"2":4},6]}`, 6},
		{"/a/01", `{"a":[7,8]}`, math.NaN()},
		{"/a/1", `{"a":{"1":8}}`, 8},
		{"/a~1b/~0", `{"a\u002fb":{"~":3}}`, 3},
		{"/é", `{"\u00e9":3}`, 3},
		{"/a", `{"a":` + strings.Repeat("1", 100) + `}`, math.NaN()},
		{"/a", `{"` + strings.Repeat("x", 10000) + `":1,"a":2}`, 2},
		{"/a", `{"b":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `,"a":1}`, math.NaN()},
	} {
		p, err := ParsePointer(tt.pointer)
		if err != nil {
			t.Fatal(err)
		}
		f := NewNumberFinder(p)
		for size := 1; size <= len(tt.text); size = size*2 + 1 {
			for piece := range chunks(tt.text, size) {
				f.Write([]byte(piece))
			}
			got, ok := f.Finish()
			if ok == math.IsNaN(tt.want) || ok && got != tt.want {
				t.Errorf("%s in %.60s by %d: %v, %t", tt.pointer, tt.text, size, got, ok)
			}
			f.Reset()
		}
	}
}

func chunks(s string, size int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > 0 {
			n := min(size, len(s))
			if !yield(s[:n]) {
				return
			}
			s = s[n:]
		}
	}
}

// FuzzNumberFinder compares with Value.At, for texts that are whole and have no two members of one name on the way.
func FuzzNumberFinder(f *testing.F) {
	f.Add("/a/1/b", `{"a":[{"b":1},{"b":2},{"b":3}]}`, 3)
	f.Add("/usage/total_tokens", `{"usage":{"total_tokens":4},"x":[1,2]}`, 1)
	f.Add("", `1`, 1)
	f.Fuzz(func(t *testing.T, pointer, text string, size int) {
		p, err := ParsePointer(pointer)
		v, ok := Parse([]byte(text))
		if err != nil || size < 1 {
			return
		}
		find := NewNumberFinder(p)
		for piece := range chunks(text, size) {
			b := []byte(piece)
			find.Write(b)
			copy(b, bytes.Repeat([]byte{'9'}, len(b)))
		}
		got, found := find.Finish()
		if !ok {
			return
		}
		at, err := v.At(p)
		if err == ErrDuplicate {
			return
		}
		want, perr := 0.0, error(strconv.ErrSyntax)
		if err == nil && len(at) <= maxNumber && (at[0] == '-' || at[0] >= '0' && at[0] <= '9') {
			want, perr = strconv.ParseFloat(string(at), 64)
		}
		if found != (err == nil && perr == nil) || found && got != want {
			t.Errorf("%q in %q by %d: %v, %t; want %q", pointer, text, size, got, found, at)
		}
	})
}

func BenchmarkNumberFinder(b *testing.B) {
	text := []byte(`{"id":"chatcmpl-1","choices":[{"delta":{"content":"Hello, this is some text of an answer."}}],"usage":{"total_tokens":47}}`)
	f := NewNumberFinder(Pointer{"usage", "total_tokens"})
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		f.Write(text)
		if x, ok := f.Finish(); !ok || x != 47 {
			b.Fatal(x, ok)
		}
		f.Reset()
	}
}
