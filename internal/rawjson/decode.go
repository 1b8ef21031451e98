package rawjson

import (
	"encoding/json"
	"errors"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// encoding/json takes the last of two members with the same name, replaces invalid UTF-8, and its Decoder
// ignores text after the value. Two readers of a token that differ in this see two different tokens. So text
// that decides who is calling is decoded here: it is an error if it can be read in more than one way.

// MaxDecodeDepth is how deep DecodeObject and StringMember let arrays and objects nest.
const MaxDecodeDepth = 32

// The errors of DecodeObject and StringMember beside ErrSyntax and ErrDepth. Value.At returns ErrDuplicate
// too.
var (
	ErrDuplicate = errors.New("JSON object with two members of one name")
	ErrTooMany   = errors.New("JSON with too many values")
	ErrNotObject = errors.New("JSON that is not an object")
)

// DecodeObject decodes a text that is one JSON object with at most maxValues values in it, the object itself
// counted. Numbers become json.Number. Two members of one name, at any depth, and lone surrogates are errors.
func DecodeObject(text []byte, maxValues int) (map[string]any, error) {
	object, _, err := DecodeSized(text, maxValues)
	return object, err
}

// DecodeSized is DecodeObject that also returns the bytes of memory that the object takes, its strings
// counted. Many small values take far more than their text: an empty object takes 2 bytes of text and 50
// bytes of memory.
func DecodeSized(text []byte, maxValues int) (object map[string]any, size int, err error) {
	d := decoder{bytes: text, text: string(text), left: maxValues, lex: Lexer{MaxDepth: MaxDecodeDepth}}
	d.lex.Feed(text, true)
	if t, err := d.lex.Next(); err != nil || t.Kind != ObjectStart {
		return nil, 0, ErrNotObject
	}
	if d.left--; d.left < 0 {
		return nil, 0, ErrTooMany
	}
	if object, err = d.object(); err != nil {
		return nil, 0, err
	}
	if _, err := d.lex.Next(); err != nil { // Done, unless text follows
		return nil, 0, err
	}
	return object, len(text) + d.size, nil
}

// Elements returns the elements of the array in the top-level member name of a JSON object, as they were
// sent. It returns nil if there is no such member or it is not an array. The text must be well-formed JSON.
// Duplicate names inside an element are not checked, so that they do not affect the other elements. Two
// top-level members with this name are ErrDuplicate.
func Elements(text []byte, name string) ([]Value, error) {
	lex := Lexer{MaxDepth: len(text)}
	lex.Feed(text, true)
	if t, err := lex.Next(); err != nil || t.Kind != ObjectStart {
		return nil, ErrNotObject
	}
	var list []Value
	found, inside, start := false, false, 0
	var buf [64]byte
	for {
		t, err := lex.Next()
		if err != nil {
			return nil, err
		}
		depth := lex.Depth() // after t
		switch {
		case t.Kind == Done:
			return list, nil
		case t.Kind == Name && depth == 1:
			decoded, _ := unquote(buf[:], text[t.Start:t.End], t.Escaped())
			if inside = string(decoded) == name; inside && found {
				return nil, ErrDuplicate
			}
			found = found || inside
		case !inside || depth < 2 || t.Kind == Name:
		case t.Kind == ArrayStart && depth == 2:
			list = []Value{}
		case (t.Kind == ArrayStart || t.Kind == ObjectStart) && depth == 3:
			start = t.Start
		case (t.Kind == ArrayEnd || t.Kind == ObjectEnd) && depth == 2:
			if list != nil {
				list = append(list, Value(text[start:t.End]))
			}
		case depth == 2 && list != nil:
			list = append(list, Value(text[t.Start:t.End]))
		}
	}
}

// StringMember returns the string in the top-level member name of a JSON object, or "" if there is no such
// member. It checks the whole text as DecodeObject does, except that it allows two members of one name
// elsewhere. It decodes nothing else. Use it for a value that is needed before a signature is verified.
func StringMember(text []byte, name string) (string, error) {
	d := decoder{bytes: text, lex: Lexer{MaxDepth: MaxDecodeDepth}}
	d.lex.Feed(text, true)
	if t, err := d.lex.Next(); err != nil || t.Kind != ObjectStart {
		return "", ErrNotObject
	}
	found, value := false, ""
	var buf [64]byte
	for {
		t, err := d.lex.Next()
		if err != nil {
			return "", err
		}
		if t.Kind == Done {
			return value, nil
		}
		if t.Kind != Name && t.Kind != String {
			continue
		}
		s, paired := unquote(buf[:], text[t.Start:t.End], t.Escaped())
		if !paired {
			return "", ErrSyntax
		}
		if t.Kind != Name || d.lex.Depth() != 1 || string(s) != name {
			continue
		}
		if found {
			return "", ErrDuplicate
		}
		found = true
		if t, err = d.lex.Next(); err != nil {
			return "", err
		}
		if t.Kind != String {
			return "", ErrSyntax
		}
		if s, paired = unquote(buf[:], text[t.Start:t.End], t.Escaped()); !paired {
			return "", ErrSyntax
		}
		value = string(s)
	}
}

type decoder struct {
	lex   Lexer
	bytes []byte
	text  string // the same; strings without escapes are parts of it
	left  int    // values that may follow
	size  int    // bytes of memory that the decoded values take, beside text
}

// The bytes of memory that a decoded value takes beside its text: the word behind an interface, a map's
// header and each group of eight members, a slice's header and each element.
const (
	boxedString  = 16
	mapHeader    = 48
	mapTable     = 80
	mapGroup     = 288
	boxedSlice   = 24
	sliceElement = 16
)

// mapSize returns the bytes of memory that a map of n members takes. Above eight members it is a table that
// is at most seven eighths full.
func mapSize(n int) int {
	switch {
	case n == 0:
		return mapHeader
	case n <= 8:
		return mapHeader + mapGroup
	}
	groups := 2
	for groups*7 < n {
		groups *= 2
	}
	return mapHeader + mapTable + groups*mapGroup
}

// value decodes the value that begins with t.
func (d *decoder) value(t Token) (any, error) {
	if d.left--; d.left < 0 {
		return nil, ErrTooMany
	}
	switch t.Kind {
	case ObjectStart:
		return d.object()
	case ArrayStart:
		return d.array()
	case String:
		d.size += boxedString
		return d.string(t)
	case Number:
		d.size += boxedString
		return json.Number(d.text[t.Start:t.End]), nil
	case True:
		return true, nil
	case False:
		return false, nil
	}
	return nil, nil // null
}

// object decodes the members up to the closing brace.
func (d *decoder) object() (map[string]any, error) {
	object := make(map[string]any)
	for {
		t, err := d.lex.Next()
		if err != nil {
			return nil, err
		}
		if t.Kind == ObjectEnd {
			d.size += mapSize(len(object))
			return object, nil
		}
		name, err := d.string(t)
		if err != nil {
			return nil, err
		}
		if _, ok := object[name]; ok {
			return nil, ErrDuplicate
		}
		if t, err = d.lex.Next(); err != nil {
			return nil, err
		}
		if object[name], err = d.value(t); err != nil {
			return nil, err
		}
	}
}

// array decodes the elements up to the closing bracket.
func (d *decoder) array() ([]any, error) {
	array := []any{}
	for {
		t, err := d.lex.Next()
		if err != nil {
			return nil, err
		}
		if t.Kind == ArrayEnd {
			d.size += boxedSlice + sliceElement*cap(array)
			return array, nil
		}
		v, err := d.value(t)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
}

// string decodes a Name or a String.
func (d *decoder) string(t Token) (string, error) {
	if !t.Escaped() {
		return d.text[t.Start+1 : t.End-1], nil
	}
	var buf [64]byte
	s, paired := unquote(buf[:], d.bytes[t.Start:t.End], true)
	if !paired {
		return "", ErrSyntax
	}
	d.size += len(s)
	return string(s), nil
}

// unquote decodes a quoted string. Without escapes, the result is a part of quoted. With escapes, it is
// written into buf, which grows as append does. A lone surrogate becomes U+FFFD, as in encoding/json, and
// paired is false.
func unquote(buf, quoted []byte, escaped bool) (decoded []byte, paired bool) {
	text := quoted[1 : len(quoted)-1]
	if !escaped {
		return text, true
	}
	dst := buf[:0]
	paired = true
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			dst = append(dst, text[i])
			continue
		}
		i++
		switch c := text[i]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hexRune(text[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(utf8.RuneError)
				if rest := text[i+1:]; len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' {
					low = hexRune(rest[2:])
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					paired = false
				} else {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // quote, backslash, slash
			dst = append(dst, c)
		}
	}
	return dst, paired
}

// hexRune returns the value of the first four bytes, which are hexadecimal digits.
func hexRune(digits []byte) (r rune) {
	for _, c := range digits[:4] {
		v, _ := hexdigit.Value(c)
		r = r<<4 | rune(v)
	}
	return r
}
