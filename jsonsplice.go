package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The functions of this file read JSON where it lies and hand out pieces of it. Nothing is decoded and
// encoded again, so numbers, escapes and the order of members stay as they were sent.
//
// All but jsonText rely on its word that what they read is JSON. They do not recurse, so nesting costs no
// stack.

var (
	errNoMember        = errors.New("gateway: no such member")
	errAmbiguousMember = errors.New("gateway: two members of one name")
)

// jsonText returns the one JSON value (RFC 8259) that body holds, without the blanks around it, or false
// when it holds none, or more than one, or text that is not UTF-8.
func jsonText(body []byte) ([]byte, bool) {
	v := bytes.Trim(body, " \t\r\n")
	return v, len(v) > 0 && utf8.Valid(v) && json.Valid(v)
}

// skipBlanks returns the index of the next byte from i on that is not white space.
func skipBlanks(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index after the string that begins at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// skipValue returns the index after the value that begins at i.
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; i < len(b); {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return len(b)
	}
	for i < len(b) && strings.IndexByte(" \t\r\n,]}", b[i]) < 0 {
		i++
	}
	return i
}

// jsonItems walks the members of an object or the elements of a list.
type jsonItems struct {
	b []byte
	i int // 0 before the first item
}

// next returns the next item as it stands, and of a member its name, still quoted, and its value.
func (it *jsonItems) next() (item, name, value []byte, ok bool) {
	i := skipBlanks(it.b, it.i+1) // past the opening bracket or the comma
	if i >= len(it.b) || it.b[i] == '}' || it.b[i] == ']' {
		return nil, nil, nil, false
	}
	begin := i
	if it.b[0] == '{' {
		i = skipString(it.b, i)
		name = it.b[begin:i]
		i = skipBlanks(it.b, i)
		i = skipBlanks(it.b, i+1) // past the colon
	}
	end := skipValue(it.b, i)
	it.i = skipBlanks(it.b, end)
	return it.b[begin:end], name, it.b[i:end], true
}

// jsonNameIs reports whether a quoted name is name, whatever escapes it is written with.
func jsonNameIs(quoted []byte, name string) bool {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return len(quoted) == len(name)+2 && string(quoted[1:len(quoted)-1]) == name
	}
	return jsonString(quoted) == name
}

// jsonString decodes a quoted string.
func jsonString(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var s string
	_ = json.Unmarshal(quoted, &s)
	return s
}

// jsonScalar returns the text of a string, a number or a boolean, as a URL would carry it. Null is the
// empty text; an object or a list has none.
func jsonScalar(v []byte) (text string, ok bool) {
	switch v[0] {
	case '"':
		return jsonString(v), true
	case '{', '[':
		return "", false
	case 'n':
		return "", true
	}
	return string(v), true
}

// parsePointer reads a JSON pointer (RFC 6901) into its reference tokens.
func parsePointer(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, errors.New("a JSON pointer begins with a slash")
	}
	tokens := strings.Split(s[1:], "/")
	for n, t := range tokens {
		for i := strings.IndexByte(t, '~'); i >= 0; {
			if i+1 == len(t) || t[i+1] != '0' && t[i+1] != '1' {
				return nil, errors.New("a tilde in a JSON pointer is written ~0")
			}
			next := strings.IndexByte(t[i+1:], '~')
			if next < 0 {
				break
			}
			i += 1 + next
		}
		tokens[n] = strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
	}
	return tokens, nil
}

// jsonAt follows reference tokens into v (RFC 6901 section 4). A name that an object has twice leads
// nowhere: whoever reads the answer could see the other of the two.
func jsonAt(v []byte, tokens []string) ([]byte, error) {
	for _, token := range tokens {
		var found []byte
		items := jsonItems{b: v}
		switch v[0] {
		case '{':
			for {
				_, name, value, ok := items.next()
				if !ok {
					break
				}
				if jsonNameIs(name, token) {
					if found != nil {
						return nil, errAmbiguousMember
					}
					found = value
				}
			}
		case '[':
			index, err := strconv.Atoi(token)
			if err != nil || index < 0 || strconv.Itoa(index) != token {
				return nil, errNoMember
			}
			for ; index >= 0; index-- {
				_, _, value, ok := items.next()
				if !ok {
					return nil, errNoMember
				}
				found = value
			}
		}
		if found == nil {
			return nil, errNoMember
		}
		v = found
	}
	return v, nil
}

// stitch writes the answer: pieces of the parts' bodies as they lie.
func (g *gathering) stitch(w http.ResponseWriter) {
	s := stitching{pieces: make([][]byte, 0, 4*len(g.parts)+3)}
	s.add(openBrace)
	if g.opts.Merge {
		g.merge(&s)
	} else {
		for i := range g.parts {
			s.member(g.parts[i].quoted, g.came[i].value)
		}
	}
	h := w.Header()
	if missing := g.missing(); missing != nil {
		s.member(quotedErrors, missing)
		h["Cache-Control"] = []string{"no-store"}
	}
	s.add(closeBrace)
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(s.size)}
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, min(s.size, 32<<10))
	for _, piece := range s.pieces {
		_, _ = out.Write(piece)
	}
	_ = out.Flush()
}

// missing is the list of the parts that failed, nil when none has.
func (g *gathering) missing() []byte {
	var b []byte
	for i := range g.came {
		f := g.came[i].failed
		if f == nil {
			continue
		}
		if b == nil {
			b = append(b, '[')
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"name":`...)
		b = append(b, g.parts[i].quoted...)
		b = append(b, `,"status":`...)
		b = strconv.AppendInt(b, int64(f.err.Status), 10)
		b = append(b, `,"outcome":"`...)
		b = append(b, f.outcome.String()...)
		b = append(b, `"}`...)
	}
	if b != nil {
		b = append(b, ']')
	}
	return b
}

// merge adds the parts' members side by side.
func (g *gathering) merge(s *stitching) {
	taken := map[string]struct{}{"errors": {}}
	for i := range g.parts {
		value := g.came[i].value
		if value[0] != '{' {
			if _, ok := taken[g.parts[i].Name]; !ok {
				taken[g.parts[i].Name] = struct{}{}
				s.member(g.parts[i].quoted, value)
			}
			continue
		}
		items := jsonItems{b: value}
		for item, name, _, ok := items.next(); ok; item, name, _, ok = items.next() {
			if _, ok := taken[jsonString(name)]; !ok {
				s.item(item)
			}
		}
		if i == len(g.parts)-1 {
			break
		}
		items = jsonItems{b: value}
		for _, name, _, ok := items.next(); ok; _, name, _, ok = items.next() {
			taken[jsonString(name)] = struct{}{}
		}
	}
}

// fewMembers reports whether an object's names may be remembered.
func fewMembers(object []byte) bool {
	items := jsonItems{b: object}
	for range maxMergedMembers {
		if _, _, _, ok := items.next(); !ok {
			return true
		}
	}
	_, _, _, more := items.next()
	return !more
}

var (
	jsonNull     = []byte("null")
	quotedErrors = []byte(`"errors"`)
	openBrace    = []byte("{")
	closeBrace   = []byte("}\n")
	colon        = []byte(":")
	comma        = []byte(",")
)

// stitching is an object in pieces.
type stitching struct {
	pieces [][]byte
	size   int
	begun  bool // a member stands
}

func (s *stitching) add(piece []byte) {
	s.pieces = append(s.pieces, piece)
	s.size += len(piece)
}

// item adds a member as it is.
func (s *stitching) item(item []byte) {
	if s.begun {
		s.add(comma)
	}
	s.begun = true
	s.add(item)
}

func (s *stitching) member(quoted, value []byte) {
	s.item(quoted)
	s.add(colon)
	s.add(value)
}
