package rawjson

import "bytes"

// maxDepth is how deep a Value may nest, as in encoding/json.
const maxDepth = 10_000

// Value is one valid JSON value as it was sent, without white space around it. Parse makes one; so do the methods
// of Value and of Items, as parts of another one. They share its memory. The other ways to make one are for
// constants: the methods rely on Parse's check.
type Value []byte

// Parse returns the one JSON value that text holds, or false when it holds none or more than one, has a string
// that is not UTF-8, or nests more than 10,000 deep. The Value is a part of text.
func Parse(text []byte) (Value, bool) {
	lex := Lexer{MaxDepth: maxDepth}
	lex.Feed(text, true)
	t, err := lex.Next()
	if err != nil {
		return nil, false
	}
	for start, end := t.Start, t.End; ; end = t.End {
		if t, err = lex.Next(); err != nil {
			return nil, false
		}
		if t.Kind == Done {
			return Value(text[start:end]), true
		}
	}
}

// IsObject reports whether v is an object.
func (v Value) IsObject() bool { return v[0] == '{' }

// Scalar returns a string, a number or a boolean as a URL would carry it: a string decoded, the others as they
// are. Null is "". Objects and arrays have no such text: ok is false.
func (v Value) Scalar() (text string, ok bool) {
	switch v[0] {
	case '"':
		var buf [64]byte
		s, _ := unquote(buf[:], v, bytes.IndexByte(v, '\\') >= 0)
		return string(s), true
	case '{', '[':
		return "", false
	case 'n':
		return "", true
	}
	return string(v), true
}

// Items returns the members of an object or the elements of an array. For another value, there are none.
func (v Value) Items() Items {
	it := Items{text: v, lex: Lexer{MaxDepth: maxDepth}}
	it.lex.Feed(v, true)
	_, _ = it.lex.Next() // the opening bracket
	return it
}

// Items walks the members of an object or the elements of an array.
type Items struct {
	text []byte
	lex  Lexer
}

// Item is a member of an object or an element of an array.
type Item struct {
	Text  []byte // as it stands: of a member, its name, the colon and its value
	Value Value

	name    []byte // of a member, quoted
	escaped bool
}

// Next returns the next item, or false after the last one.
func (it *Items) Next() (item Item, ok bool) {
	t, err := it.lex.Next()
	if err != nil || t.Kind == ObjectEnd || t.Kind == ArrayEnd || t.Kind == Done {
		return Item{}, false
	}
	start := t.Start
	if t.Kind == Name {
		item.name, item.escaped = it.text[t.Start:t.End], t.Escaped()
		t, _ = it.lex.Next()
	}
	value, end := t.Start, t.End
	if t.Kind == ObjectStart || t.Kind == ArrayStart {
		end = it.lex.skip()
	}
	item.Text, item.Value = it.text[start:end], Value(it.text[value:end])
	return item, true
}

// Name returns the decoded name of a member. A name with escapes is decoded into buf, which grows as append does;
// one without is returned in place.
func (i Item) Name(buf []byte) []byte {
	name, _ := unquote(buf, i.name, i.escaped)
	return name
}
