package rawjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// tokensOf lexes pieces and returns the tokens, each as its kind and its whole text.
func tokensOf(maxDepth int, pieces ...[]byte) (tokens []string, err error) {
	lex := Lexer{MaxDepth: maxDepth}
	text := ""
	for i, piece := range pieces {
		lex.Feed(piece, i == len(pieces)-1)
		for {
			t, err := lex.Next()
			if err != nil {
				if _, again := lex.Next(); again != err {
					return nil, fmt.Errorf("%w, and then %w", err, again)
				}
				return tokens, err
			}
			if t.Kind == More {
				break
			}
			if t.Kind == Done {
				return tokens, nil
			}
			text += string(piece[t.Start:t.End])
			if !t.Partial() {
				tokens = append(tokens, fmt.Sprintf("%d%s depth=%d escaped=%v", t.Kind, text, lex.Depth(), t.Escaped()))
				text = ""
			}
		}
	}
	return tokens, errors.New("More after the last piece")
}

func TestLexerTokens(t *testing.T) {
	const text = " {\"a\\n\" : [ 1 ,-0.5e+3, true,false\n] , \"b\":{ },\"c\":null,\"d\":\"\u00e9\U0001F600\"} "
	want := []Token{
		{Kind: ObjectStart, Start: 1, End: 2},
		{Kind: Name, marks: escaped, Start: 2, End: 7},
		{Kind: ArrayStart, Start: 10, End: 11},
		{Kind: Number, Start: 12, End: 13},
		{Kind: Number, Start: 15, End: 22},
		{Kind: True, Start: 24, End: 28},
		{Kind: False, Start: 29, End: 34},
		{Kind: ArrayEnd, Start: 35, End: 36},
		{Kind: Name, Start: 39, End: 42},
		{Kind: ObjectStart, Start: 43, End: 44},
		{Kind: ObjectEnd, Start: 45, End: 46},
		{Kind: Name, Start: 47, End: 50},
		{Kind: Null, Start: 51, End: 55},
		{Kind: Name, Start: 56, End: 59},
		{Kind: String, Start: 60, End: 68},
		{Kind: ObjectEnd, Start: 68, End: 69},
		{Kind: Done, Start: 70, End: 70},
		{Kind: Done, Start: 70, End: 70},
	}
	lex := Lexer{MaxDepth: 2}
	lex.Feed([]byte(text), true)
	for i, w := range want {
		got, err := lex.Next()
		if err != nil || got != w {
			t.Fatalf("token %d: got %+v, %v; want %+v", i, got, err, w)
		}
	}
}

// A token that could go on in the next piece is partial, and its last part may be empty.
func TestLexerPartialTokens(t *testing.T) {
	lex := Lexer{MaxDepth: 1}
	for i, step := range []struct {
		piece string
		last  bool
		want  []Token
	}{
		{`[1`, false, []Token{{Kind: ArrayStart, End: 1}, {Kind: Number, marks: partial, Start: 1, End: 2}}},
		{``, false, nil},
		{`,"\`, false, []Token{{Kind: Number}, {Kind: String, marks: escaped | partial, Start: 1, End: 3}}},
		{"n\xc3", false, []Token{{Kind: String, marks: escaped | partial, End: 2}}},
		{"\xa9", false, []Token{{Kind: String, marks: escaped | partial, End: 1}}},
		{`"`, false, []Token{{Kind: String, marks: escaped, End: 1}}},
		{`,tru`, false, []Token{{Kind: True, marks: partial, Start: 1, End: 4}}},
		{`e]`, false, []Token{{Kind: True, End: 1}, {Kind: ArrayEnd, Start: 1, End: 2}}},
		{` `, false, nil},
		{``, true, []Token{{Kind: Done}}},
	} {
		lex.Feed([]byte(step.piece), step.last)
		for _, want := range step.want {
			if got, err := lex.Next(); err != nil || got != want {
				t.Fatalf("piece %d: got %+v, %v; want %+v", i, got, err, want)
			}
		}
		if !step.last {
			if got, err := lex.Next(); err != nil || got.Kind != More {
				t.Fatalf("piece %d: got %+v, %v; want More", i, got, err)
			}
		}
	}
}

func TestLexerDepth(t *testing.T) {
	for _, depth := range []int{1, 2, 63, 64, 65, 127, 128, 129, 1000} {
		var opening, closing []byte
		for i := range depth { // objects and arrays in turns of three
			if i%3 == 0 {
				opening, closing = append(opening, `{"a":`...), append(closing, '}')
			} else {
				opening, closing = append(opening, '['), append(closing, ']')
			}
		}
		slices.Reverse(closing)
		text := slices.Concat(opening, []byte("1"), closing)
		if _, err := tokensOf(depth, text); err != nil {
			t.Errorf("depth %d: %v", depth, err)
		}
		if _, err := tokensOf(depth-1, text); err != ErrDepth {
			t.Errorf("depth %d, one less allowed: %v", depth, err)
		}
		for i := range closing { // another bracket, at each level
			wrong := slices.Clone(text)
			wrong[len(text)-1-i] ^= ']' ^ '}'
			if _, err := tokensOf(depth, wrong); err != ErrSyntax {
				t.Errorf("depth %d, wrong bracket %d: %v", depth, i, err)
			}
		}
	}
}

func TestLexerRefuses(t *testing.T) {
	for _, text := range []string{
		"", " ", "{", "[", "}", "]", ",", ":", "1 2", "[1 2]", "[,1]", "[1,]", "[1,,2]", "{,}", `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a",1}`,
		`{"a":1:2}`, `{1:2}`, `{"a":1]`, `[1}`, `["a":1]`, `{"a" "b"}`, "true false", `{true:1}`, `{"a" null}`, `{"a":1 false}`, "[1null]", "tru", "truE", "nul", "falsey", "01", "-", "-a", "1.", ".1", "1.e1", "1e", "1e+", "+1",
		"1e1.5", "0x1", "1_0", "NaN", "'a'", `"`, `"\`, `"\"`, `"\x"`, `"\u12"`, `"\u12g4"`, "\"\n\"", "\"\x00\"", "\x00", "1\x00", "\ufeff1", "\v1",
		"\"\x80\"", "\"\xc0\x80\"", "\"\xc3\"", "\"\xe0\x9f\xbf\"", "\"\xed\xa0\x80\"", "\"\xf0\x8f\xbf\xbf\"", "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xe2\x82\"", "\"\xff\"",
	} {
		if _, err := tokensOf(10, []byte(text)); err != ErrSyntax {
			t.Errorf("%q: %v", text, err)
		}
		var pieces [][]byte
		for i := range len(text) {
			pieces = append(pieces, []byte(text[i:i+1]))
		}
		if _, err := tokensOf(10, append(pieces, nil)...); err != ErrSyntax {
			t.Errorf("%q, in bytes: %v", text, err)
		}
	}
}

// FuzzLexer holds the verdict beside encoding/json, and the tokens of a text in pieces beside those of the whole.
func FuzzLexer(f *testing.F) {
	for _, seed := range []string{
		`{"a":[1,2.50,-0e-1,{"b":"\u00e9\ud83d\ude00\\"}],"c":null,"d":true,"e":false}`, " [ ] ", `"é€😀"`, "12", `[[[]],{},[{}]]`, `[1,]`, "\"\xe2\x82\"", `{"a":1}}`,
	} {
		f.Add([]byte(seed), uint8(1))
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		whole, err := tokensOf(maxDepth, text)
		if valid := json.Valid(text) && utf8.Valid(text); valid != (err == nil) {
			t.Fatalf("%q: %v, but encoding/json: %v", text, err, valid)
		}
		pieces := slices.Collect(slices.Chunk(text, max(int(size), 1)))
		got, pieceErr := tokensOf(maxDepth, append(pieces, nil)...)
		if pieceErr != err {
			t.Fatalf("%q: %v, in pieces of %d: %v", text, err, size, pieceErr)
		}
		// In pieces, a token can end before the error after it is found, and so can the whole's.
		if err == nil && !slices.Equal(got, whole) {
			t.Fatalf("%q in pieces of %d: %q, want %q", text, size, got, whole)
		}
	})
}

func benchDocument() []byte {
	return []byte(`{"id":1,"items":[` + strings.Repeat(`{"title":"a film, \"quoted\", été","score":1.50,"tags":["x","y"],"seen":false},`, 200) + `{}]}`)
}

func BenchmarkParse(b *testing.B) {
	text := benchDocument()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Parse(text); !ok {
			b.Fatal("not JSON")
		}
	}
}

// BenchmarkValid is what Parse does, with the standard library.
func BenchmarkValid(b *testing.B) {
	text := benchDocument()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if !json.Valid(text) || !utf8.Valid(text) {
			b.Fatal("not JSON")
		}
	}
}

func BenchmarkAt(b *testing.B) {
	v, _ := Parse(benchDocument())
	pointer, _ := ParsePointer("/items/150/score")
	b.SetBytes(int64(len(v)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.At(pointer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeObject(b *testing.B) {
	text := []byte(`{"iss":"https://id.example","sub":"user-1","aud":["api","web"],"exp":1893456000,"iat":1893452400,"scope":"read write","act":{"sub":"x"}}`)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeObject(text, len(text)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStringMember(b *testing.B) {
	text := []byte(`{"aud":["api","web"],"exp":1893456000,"iss":"https://id.example","scope":"read \"write\"","act":{"sub":"x"}}`)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := StringMember(text, "iss"); err != nil {
			b.Fatal(err)
		}
	}
}
