package gateway

import (
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// encoding/json takes the last of two equal members, repairs what is no UTF-8 and ignores what follows
// nothing but a stream. Two readers of one token that differ in such a thing see two tokens. So what
// decides who is calling is read here, where everything that is read in more than one way is an error.

// maxJSONDepth is how deep arrays and objects may be nested.
const maxJSONDepth = 32

var (
	errJSON       = errors.New("malformed JSON")
	errJSONTwice  = errors.New("JSON object with two members of one name")
	errJSONDepth  = errors.New("JSON nested too deep")
	errJSONMany   = errors.New("JSON with too many values")
	errJSONObject = errors.New("JSON that is no object")
)

// decodeObject reads one JSON object (RFC 8259) and nothing after it, of at most maxValues values in all.
// Numbers become json.Number. It refuses two members of one name at any depth, lone surrogates and what is
// no UTF-8. Strings share memory with text.
func decodeObject(text string, maxValues int) (map[string]any, error) {
	d := strictDecoder{text: text, left: maxValues}
	d.space()
	if d.peek() != '{' {
		return nil, errJSONObject
	}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if d.space(); d.pos != len(text) {
		return nil, errJSON
	}
	return v.(map[string]any), nil
}

// memberOf finds the string member of that name at the top of a JSON object, without a judgement of the
// rest and without memory for it. It is for what must be looked at before a signature is checked.
func memberOf(text, name string) (string, error) {
	d := strictDecoder{text: text, left: len(text)}
	d.space()
	if d.peek() != '{' {
		return "", errJSONObject
	}
	found, value := false, ""
	err := d.object(0, func(member string) error {
		if member != name {
			return d.skip(1)
		}
		if found {
			return errJSONTwice
		}
		found = true
		if d.peek() != '"' {
			return errJSON
		}
		var err error
		value, err = d.string()
		return err
	})
	if err != nil {
		return "", err
	}
	if d.space(); d.pos != len(text) {
		return "", errJSON
	}
	return value, nil
}

type strictDecoder struct {
	text string
	pos  int
	left int // values that may still come
}

// peek returns the next byte, 0 at the end. A NUL in the text is no JSON either way.
func (d *strictDecoder) peek() byte {
	if d.pos < len(d.text) {
		return d.text[d.pos]
	}
	return 0
}

func (d *strictDecoder) space() {
	for d.pos < len(d.text) {
		switch d.text[d.pos] {
		case ' ', '\t', '\r', '\n':
			d.pos++
		default:
			return
		}
	}
}

// value reads what stands at pos, inside depth arrays and objects.
func (d *strictDecoder) value(depth int) (any, error) {
	if d.left--; d.left < 0 {
		return nil, errJSONMany
	}
	switch d.peek() {
	case '{':
		m := make(map[string]any)
		err := d.object(depth, func(name string) error {
			if _, twice := m[name]; twice {
				return errJSONTwice
			}
			v, err := d.value(depth + 1)
			m[name] = v
			return err
		})
		return m, err
	case '[':
		list := []any{}
		err := d.array(depth, func() error {
			v, err := d.value(depth + 1)
			list = append(list, v)
			return err
		})
		return list, err
	case '"':
		return d.string()
	case 't':
		return true, d.literal("true")
	case 'f':
		return false, d.literal("false")
	case 'n':
		return nil, d.literal("null")
	}
	n, err := d.number()
	return json.Number(n), err
}

// skip reads past a value.
func (d *strictDecoder) skip(depth int) error {
	switch d.peek() {
	case '{':
		return d.object(depth, func(string) error { return d.skip(depth + 1) })
	case '[':
		return d.array(depth, func() error { return d.skip(depth + 1) })
	case '"':
		_, err := d.string()
		return err
	case 't':
		return d.literal("true")
	case 'f':
		return d.literal("false")
	case 'n':
		return d.literal("null")
	}
	_, err := d.number()
	return err
}

// object reads an object whose brace is at pos, and has member read each value.
func (d *strictDecoder) object(depth int, member func(name string) error) error {
	if depth >= maxJSONDepth {
		return errJSONDepth
	}
	d.pos++
	d.space()
	if d.peek() == '}' {
		d.pos++
		return nil
	}
	for {
		if d.space(); d.peek() != '"' {
			return errJSON
		}
		name, err := d.string()
		if err != nil {
			return err
		}
		if d.space(); d.peek() != ':' {
			return errJSON
		}
		d.pos++
		d.space()
		if err := member(name); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.pos++
		case '}':
			d.pos++
			return nil
		default:
			return errJSON
		}
	}
}

// array reads an array whose bracket is at pos, and has element read each value.
func (d *strictDecoder) array(depth int, element func() error) error {
	if depth >= maxJSONDepth {
		return errJSONDepth
	}
	d.pos++
	d.space()
	if d.peek() == ']' {
		d.pos++
		return nil
	}
	for {
		d.space()
		if err := element(); err != nil {
			return err
		}
		d.space()
		switch d.peek() {
		case ',':
			d.pos++
		case ']':
			d.pos++
			return nil
		default:
			return errJSON
		}
	}
}

func (d *strictDecoder) literal(word string) error {
	if !strings.HasPrefix(d.text[d.pos:], word) {
		return errJSON
	}
	d.pos += len(word)
	return nil
}

// number reads [-] (0 / 1-9 digits) [. digits] [e [+-] digits].
func (d *strictDecoder) number() (string, error) {
	start := d.pos
	if d.peek() == '-' {
		d.pos++
	}
	switch c := d.peek(); {
	case c == '0':
		d.pos++
	case !d.digits():
		return "", errJSON
	}
	if d.peek() == '.' {
		d.pos++
		if !d.digits() {
			return "", errJSON
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.pos++
		if c := d.peek(); c == '+' || c == '-' {
			d.pos++
		}
		if !d.digits() {
			return "", errJSON
		}
	}
	return d.text[start:d.pos], nil
}

// digits reads at least one.
func (d *strictDecoder) digits() bool {
	start := d.pos
	for c := d.peek(); '0' <= c && c <= '9'; c = d.peek() {
		d.pos++
	}
	return d.pos > start
}

// string reads a string whose quote is at pos. One without escapes is a part of the text.
func (d *strictDecoder) string() (string, error) {
	d.pos++
	start, ascii := d.pos, true
	for ; d.pos < len(d.text); d.pos++ {
		switch c := d.text[d.pos]; {
		case c == '"':
			s := d.text[start:d.pos]
			d.pos++
			if !ascii && !utf8.ValidString(s) {
				return "", errJSON
			}
			return s, nil
		case c == '\\':
			return d.escaped(start)
		case c < ' ':
			return "", errJSON
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return "", errJSON
}

// escaped reads a string from start whose first backslash is at pos.
func (d *strictDecoder) escaped(start int) (string, error) {
	b := append(make([]byte, 0, d.pos-start+32), d.text[start:d.pos]...)
	for d.pos < len(d.text) {
		c := d.text[d.pos]
		d.pos++
		switch {
		case c == '"':
			if !utf8.Valid(b) {
				return "", errJSON
			}
			return string(b), nil
		case c < ' ':
			return "", errJSON
		case c != '\\':
			b = append(b, c)
			continue
		}
		c = d.peek()
		d.pos++
		switch c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r, ok := d.hex4()
			if ok && utf16.IsSurrogate(r) {
				ok = strings.HasPrefix(d.text[d.pos:], `\u`)
				if ok {
					d.pos += 2
					var low rune
					low, ok = d.hex4()
					r = utf16.DecodeRune(r, low)
					ok = ok && r != utf8.RuneError
				}
			}
			if !ok {
				return "", errJSON
			}
			b = utf8.AppendRune(b, r)
		default:
			return "", errJSON
		}
	}
	return "", errJSON
}

// hex4 reads four hexadecimal digits.
func (d *strictDecoder) hex4() (r rune, ok bool) {
	if len(d.text)-d.pos < 4 {
		return 0, false
	}
	for _, c := range []byte(d.text[d.pos : d.pos+4]) {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	d.pos += 4
	return r, true
}
