package rawjson

import (
	"errors"
	"strconv"
	"strings"
)

// ErrNoMember means that a Pointer leads to nothing.
var ErrNoMember = errors.New("no such JSON member")

// Pointer is the way to a value in a JSON text: member names and array indexes. The empty one is the whole text.
type Pointer []string

// ParsePointer parses a JSON pointer (RFC 6901) in its string form: "/items/0/a~1b" is "items", "0", "a/b".
func ParsePointer(s string) (Pointer, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, errors.New("a JSON pointer begins with a slash")
	}
	p := Pointer(strings.Split(s[1:], "/"))
	for n, token := range p {
		for rest := token; ; {
			_, after, ok := strings.Cut(rest, "~")
			if !ok {
				break
			}
			if after == "" || after[0] != '0' && after[0] != '1' {
				return nil, errors.New("a tilde in a JSON pointer is written ~0")
			}
			rest = after
		}
		p[n] = strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
	}
	return p, nil
}

// At follows p into v (RFC 6901 section 4). Where it leads to nothing, the error is ErrNoMember. Where an object on
// the way has two members of the name, the error is ErrDuplicate: another reader of v could take either.
func (v Value) At(p Pointer) (Value, error) {
	for _, token := range p {
		var err error
		switch v[0] {
		case '{':
			v, err = v.member(token)
		case '[':
			v, err = v.element(token)
		default:
			err = ErrNoMember
		}
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v Value) member(name string) (found Value, err error) {
	var buf [64]byte
	items := v.Items()
	for item, ok := items.Next(); ok; item, ok = items.Next() {
		if string(item.Name(buf[:])) != name {
			continue
		}
		if found != nil {
			return nil, ErrDuplicate
		}
		found = item.Value
	}
	if found == nil {
		return nil, ErrNoMember
	}
	return found, nil
}

func (v Value) element(token string) (Value, error) {
	index, err := strconv.Atoi(token)
	if err != nil || index < 0 || strconv.Itoa(index) != token {
		return nil, ErrNoMember
	}
	items := v.Items()
	for ; ; index-- {
		item, ok := items.Next()
		if !ok {
			return nil, ErrNoMember
		}
		if index == 0 {
			return item.Value, nil
		}
	}
}
