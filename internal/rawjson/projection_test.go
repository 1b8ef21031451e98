package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// projected applies p to text in pieces of size bytes.
func projected(p *Projection, text string, size int) (string, error) {
	q := p.Start()
	var out []byte
	var err error
	for piece := range chunks(text, size) {
		b := []byte(piece)
		if out, err = q.Append(out, b, false); err != nil {
			return string(out), err
		}
		copy(b, bytes.Repeat([]byte{'!'}, len(b))) // it must not be kept
	}
	out, err = q.Append(out, nil, true)
	return string(out), err
}

func TestProjection(t *testing.T) {
	const doc = `{"id": 7, "user":{"name":"Ann","mail":"a@b","tags":["x",{"y":1}]}, "items":[{"id":1,"title":"A","more":{"z": [1 , 2]}},{"id":2,"title":"B"},3,null], "n":12345678901234567890.10, "a.b":1, "*":2}`
	for _, tt := range []struct {
		name       string
		only, drop []string
		rename     map[string]string
		text, want string
	}{
		{"nothing", nil, nil, nil, " {\"a\" : 1} ", `{"a" : 1}`},
		{"only one", []string{"n"}, nil, nil, doc, `{"n":12345678901234567890.10}`},
		{"only none", []string{}, nil, nil, doc, `{}`},
		{"only none of an array", []string{}, nil, nil, `[1,[2]]`, `[]`},
		{"only none of a scalar", []string{}, nil, nil, `1`, `null`},
		{"only of a scalar", []string{"a"}, nil, nil, ` "secret" `, `null`},
		{"only what is not there", []string{"x.y"}, nil, nil, doc, `{}`},
		{"only in elements", []string{"items.*.title"}, nil, nil, doc, `{"items":[{"title":"A"},{"title":"B"}]}`},
		{"only an element", []string{"items.1.id"}, nil, nil, doc, `{"items":[{"id":2}]}`},
		{"only, of several", []string{"items.*.id", "user.name", "id"}, nil, nil, doc, `{"id":7,"user":{"name":"Ann"},"items":[{"id":1},{"id":2}]}`},
		{"only, with stars and names", []string{"*.name", "user.mail"}, nil, nil, doc, `{"user":{"name":"Ann","mail":"a@b"},"items":[]}`},
		{"only an object and something in it", []string{"user", "user.name"}, nil, nil, doc, `{"user":{"name":"Ann","mail":"a@b","tags":["x",{"y":1}]}}`},
		{"only a scalar on the way", []string{"id.x", "n"}, nil, nil, doc, `{"n":12345678901234567890.10}`},
		{"a whole value stands as it came", []string{"items.0.more"}, nil, nil, doc, `{"items":[{"more":{"z": [1 , 2]}}]}`},
		{"drop", nil, []string{"user", "items", "a\\.b", "\\*"}, nil, doc, `{"id":7,"n":12345678901234567890.10}`},
		{"drop in elements", nil, []string{"items.*.id", "user.tags.*.y", "user.tags.0"}, nil,
			doc, `{"id":7,"user":{"name":"Ann","mail":"a@b","tags":[{}]},"items":[{"title":"A","more":{"z": [1 , 2]}},{"title":"B"},3,null],"n":12345678901234567890.10,"a.b":1,"*":2}`},
		{"drop all", nil, []string{"*"}, nil, doc, `{}`},
		{"drop out of only", []string{"user"}, []string{"user.mail", "user.tags"}, nil, doc, `{"user":{"name":"Ann"}}`},
		{"drop of only", []string{"user", "id"}, []string{"user"}, nil, doc, `{"id":7}`},
		{"rename", []string{"id", "user"}, nil, map[string]string{"id": "key", "user.name": "n\"é"}, doc, `{"key":7,"user":{"n\"é":"Ann","mail":"a@b","tags":["x",{"y":1}]}}`},
		{"rename in elements", []string{"items.*.title"}, nil, map[string]string{"items.*.title": "t", "items": "rows"}, doc, `{"rows":[{"t":"A"},{"t":"B"}]}`},
		{"rename what is dropped", nil, []string{"a"}, map[string]string{"a": "b"}, `{"a":1,"b":2}`, `{"b":2}`},
		{"rename to a name that is there", nil, nil, map[string]string{"a": "b"}, `{"b":2,"a":1,"\u0062":3}`, `{"b":1}`},
		{"rename to a name that is there, without the renamed", nil, nil, map[string]string{"a": "b"}, `{"b":2,"c":3}`, `{"c":3}`},
		{"rename in turn", nil, nil, map[string]string{"a": "b", "b": "a"}, `{"a":1,"b":2}`, `{"b":1,"a":2}`},
		{"rename to itself", nil, nil, map[string]string{"a": "a"}, `{"\u0061":1,"b":2}`, `{"a":1,"b":2}`},
		{"rename of an index", nil, nil, map[string]string{"0": "1"}, `[5,6]`, `[5,6]`},
		{"two of one name", []string{"a"}, nil, map[string]string{"a": "z"}, `{"a":1,"a":{"b":2},"c":3}`, `{"z":1,"z":{"b":2}}`},
		{"escaped names", []string{"user"}, nil, nil, `{"us\u0065r":1,"\"user":2}`, `{"us\u0065r":1}`},
		{"a lone surrogate", []string{"\ufffd"}, nil, nil, `{"\ud800":1,"\ud800x":2}`, `{"\ud800":1}`},
		{"many names", []string{"a", "b", "c", "d", "e", "f", "g", "h", "i.j"}, nil, nil, `{"i":{"j":1,"k":2},"j":3,"h":4}`, `{"i":{"j":1},"h":4}`},
		{"indexes", []string{"0", "2"}, nil, nil, `[1,2,3,4]`, `[1,3]`},
		{"no index", []string{"01", "+1", "-0", "1e0", "99999999999999999999"}, nil, nil, `[1,2,3,4]`, `[]`},
		{"empty ones", []string{"a.b"}, nil, nil, `{"a":{},"c":[]}`, `{"a":{}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewProjection(tt.only, tt.drop, tt.rename)
			if err != nil {
				t.Fatal(err)
			}
			for size := 1; size <= 2*len(tt.text); size *= 2 {
				got, err := projected(p, tt.text, size)
				if err != nil || got != tt.want {
					t.Fatalf("in pieces of %d: got %s, %v\nwant %s", size, got, err, tt.want)
				}
			}
		})
	}
}

func TestProjectionRefuses(t *testing.T) {
	var wide []string
	for i := range 15 {
		wide = append(wide, strings.Repeat("*.", i)+"x"+strings.Repeat(".*", 15-i)+".y")
	}
	for _, tt := range []struct {
		only, drop []string
		rename     map[string]string
	}{
		{[]string{""}, nil, nil},
		{[]string{"a..b"}, nil, nil},
		{[]string{".a"}, nil, nil},
		{nil, []string{"a."}, nil},
		{nil, []string{"a*"}, nil},
		{nil, []string{`a\`}, nil},
		{nil, []string{`\a`}, nil},
		{nil, []string{"\xff"}, nil},
		{nil, nil, map[string]string{"a.*": "b"}},
		{nil, nil, map[string]string{"a": "\xff"}},
		{nil, nil, map[string]string{"a": "x", "b": "x"}},
		{nil, nil, map[string]string{"*.a": "x", "k.b": "x"}},
		{nil, nil, map[string]string{"*.a": "x", "k.a": "y"}},
		{wide, nil, nil},
	} {
		if _, err := NewProjection(tt.only, tt.drop, tt.rename); err == nil {
			t.Errorf("%v: no error", tt)
		}
	}
}

// A text that is malformed anywhere, also in what is dropped, is refused.
func TestProjectorRefuses(t *testing.T) {
	p, _ := NewProjection([]string{"a.b"}, nil, nil)
	for _, text := range []string{
		"", " ", "{", `{"a":`, `{"a":{"b":1}`, `{"x":}`, `{"x":[1,]}`, `{"x":"\x"}`, "{\"x\":\"\xff\"}", `{"a":{"b":01}}`, `{}{}`, `{"a":1}x`, "\ufeff{}", `{"x":NaN}`, `12 ` + "3",
		`{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + "}", strings.Repeat("[", 1<<20),
		`{"` + strings.Repeat("x", maxName) + `":1}`,
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			if got, err := projected(p, text, size); err == nil {
				t.Errorf("%.40q in pieces of %d: no error, got %.40q", text, size, got)
			}
		}
	}
	long := `{"` + strings.Repeat("x", maxName-2) + `":{"b":1},"a":{"b":"` + strings.Repeat("y", 1<<20) + `"}}`
	if got, err := projected(p, long, 1000); err != nil || got != `{"a":{"b":"`+strings.Repeat("y", 1<<20)+`"}}` {
		t.Errorf("a long name and a long string: %v, %.60s", err, got)
	}
}

func TestProjectorMemory(t *testing.T) {
	p, err := NewProjection([]string{"*.id", "*.tags.0"}, nil, map[string]string{"*.id": "key"})
	if err != nil {
		t.Fatal(err)
	}
	element := []byte(`{"id":1,"title":"a film","tags":["x","y"]},`)
	q := p.Start()
	dst, err := q.Append(make([]byte, 0, 1<<10), []byte("["), false)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1000, func() {
		for size := 1; size < len(element); size += 5 { // cut everywhere
			if dst, err = q.Append(dst[:0], element[:size], false); err == nil {
				dst, err = q.Append(dst, element[size:], false)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	runtime.KeepAlive(q)
}

// modelValue is a decoded value whose members keep their order and may have one name twice.
type modelValue struct {
	object, array bool
	names         []string
	values        []modelValue
	scalar        any
}

func (v modelValue) String() string {
	if !v.object && !v.array {
		return fmt.Sprintf("%#v", v.scalar)
	}
	var b strings.Builder
	for i, inside := range v.values {
		if v.object {
			fmt.Fprintf(&b, "%q:", v.names[i])
		}
		fmt.Fprintf(&b, "%v,", inside)
	}
	if v.object {
		return "{" + b.String() + "}"
	}
	return "[" + b.String() + "]"
}

// decodeModel decodes one text with encoding/json.
func decodeModel(text []byte) (modelValue, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := modelOf(d)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return v, nil
		}
		err = errors.New("more follows")
	}
	return v, err
}

func modelOf(d *json.Decoder) (v modelValue, err error) {
	t, err := d.Token()
	if err != nil {
		return v, err
	}
	switch t {
	case json.Delim('{'):
		v.object = true
	case json.Delim('['):
		v.array = true
	default:
		v.scalar = t
		return v, nil
	}
	for d.More() {
		if v.object {
			name, err := d.Token()
			if err != nil {
				return v, err
			}
			v.names = append(v.names, name.(string))
		}
		inside, err := modelOf(d)
		if err != nil {
			return v, err
		}
		v.values = append(v.values, inside)
	}
	_, err = d.Token()
	return v, err
}

// modelRules is a projection that is applied path by path.
type modelRules struct {
	only, drop []path
	all        bool
	rename     map[string]path // by new name and path
	names      map[string]string
}

func matches(p, at path) bool {
	return slices.EqualFunc(p, at, func(s, t segment) bool { return s.leadsOver(t.name) && (!t.any || s.any || isIndex(s.name)) })
}

// apply projects the value at a path. kept is whether it or something around it is kept by name.
func (m *modelRules) apply(v modelValue, at path, kept bool) (modelValue, bool) {
	through := false
	for _, p := range m.only {
		kept = kept || matches(p, at)
		through = through || len(p) > len(at) && matches(p[:len(at)], at)
	}
	for _, p := range m.drop {
		if matches(p, at) {
			return v, false
		}
	}
	if !v.object && !v.array {
		return v, kept
	}
	if !kept && !through {
		return v, false
	}
	out := modelValue{object: v.object, array: v.array}
	for i, inside := range v.values {
		name := strconv.Itoa(i)
		s := segment{name: name, any: true} // an element
		if v.object {
			name = v.names[i]
			s = segment{name: name}
		}
		next := append(slices.Clone(at), s)
		inside, ok := m.apply(inside, next, kept)
		if !ok {
			continue
		}
		if v.object {
			to, renamed := m.newName(next)
			if !renamed && m.isTaken(next, kept) {
				continue
			}
			if renamed {
				name = to
			}
			out.names = append(out.names, name)
		}
		out.values = append(out.values, inside)
	}
	return out, true
}

func (m *modelRules) newName(at path) (string, bool) {
	for text, p := range m.rename {
		if matches(p, at) && !at[len(at)-1].any {
			return m.names[text], true
		}
	}
	return "", false
}

// isTaken reports whether a renamed member beside the one at a path has its name.
func (m *modelRules) isTaken(at path, kept bool) bool {
	last := len(at) - 1
	for text, p := range m.rename {
		if m.names[text] != at[last].name || len(p) != len(at) || !matches(p[:last], at[:last]) {
			continue
		}
		// Would the renamed one be kept, if it were an object?
		beside := append(slices.Clone(at[:last]), segment{name: p[last].name})
		if _, ok := m.apply(modelValue{object: true}, beside, kept); ok {
			return true
		}
	}
	return false
}

// FuzzProjection compares with a plain model, for any projection, text and pieces.
func FuzzProjection(f *testing.F) {
	f.Add("items.*.title,user", "user.mail", "user.name=n", `{"items":[{"title":"A","x":1}],"user":{"name":"Ann","mail":1}}`, 3)
	f.Add("", "a.*.b", "a=c", `{"c":2,"a":[{"b":1,"b":2},{"\u0062":3}],"a":{"x":{"b":{}}}}`, 1)
	f.Add("a.0,a.2.b,*.c", "", "", `{"a":[1,2,{"b":12345678901234567890.10}],"d":{"c":"\ud800","e":null}}`, 2)
	f.Add("-", "", "", `[1,{"a":"\ud83d\ude00"}]`, 5)
	f.Add("\ufffd,x", "x.y", "x=\ufffd", `{"\ud800":{"x":1},"x":[{"y":1}]}`, 4)
	f.Add("*.*", "*.a", "*.b=c", `{"x":{"a":1,"b":2,"c":3,"d":[]},"y":[[[[]]]]}`, 64)
	f.Fuzz(func(t *testing.T, onlyList, dropList, renameList, text string, size int) {
		list := func(s string) (paths []string) {
			if s == "-" {
				return []string{}
			}
			if s != "" {
				paths = strings.Split(s, ",")
			}
			return paths
		}
		only, drop := list(onlyList), list(dropList)
		rename := make(map[string]string)
		for _, pair := range list(renameList) {
			from, to, _ := strings.Cut(pair, "=")
			rename[from] = to
		}
		p, err := NewProjection(only, drop, rename)
		if err != nil || size < 1 || len(text) > 1<<12 || len(onlyList)+len(dropList)+len(renameList) > 200 {
			return
		}
		v, valid := Parse([]byte(text))
		got, err := projected(p, text, size)
		if (err == nil) != valid {
			t.Fatalf("%q: valid %v, but %v", text, valid, err)
		}
		if whole, wholeErr := projected(p, text, len(text)+1); err == nil && (wholeErr != nil || whole != got) {
			t.Fatalf("in pieces of %d %q, in one %q", size, got, whole)
		}
		if !valid {
			return
		}
		m := &modelRules{all: only == nil, names: rename, rename: make(map[string]path)}
		for _, s := range only {
			m.only = append(m.only, mustPath(s))
		}
		for _, s := range drop {
			m.drop = append(m.drop, mustPath(s))
		}
		for _, s := range slices.Sorted(maps.Keys(rename)) {
			m.rename[s] = mustPath(s)
		}
		in, err := decodeModel(v)
		if err != nil {
			t.Fatalf("%q: encoding/json: %v", text, err)
		}
		want, ok := m.apply(in, nil, m.all)
		if !ok { // of the whole, something is left
			want = modelValue{object: in.object, array: in.array}
		}
		out, err := decodeModel([]byte(got))
		if err != nil || out.String() != want.String() {
			t.Fatalf("only %q drop %q rename %q\nof   %s\ngot  %s, %v\nwant %v", only, drop, rename, text, got, err, want)
		}
		if p.KeepsAll() && got != string(v) {
			t.Fatalf("%q became %q", v, got)
		}
	})
}

func mustPath(s string) path {
	p, err := parsePath(s)
	if err != nil {
		panic(err)
	}
	return p
}

// shapeDocument is a body of 1 MB.
func shapeDocument() []byte {
	item := `{"id":1234567,"title":"The Long Tide","synopsis":"All that there is to say about The Long Tide, and more.","artwork":{"wide":"/artwork/the-long-tide-1920x1080.jpg","tall":"/artwork/the-long-tide-600x900.jpg"},"cast":["A. Actor","B. Actor","C. Actor"],"score":8.75,"seen":false}`
	return []byte(`{"items":[` + strings.Repeat(item+",", 3600) + item + `]}`)
}

func BenchmarkProjector(b *testing.B) {
	text := shapeDocument()
	p, err := NewProjection([]string{"items.*.id", "items.*.title", "items.*.artwork.tall"}, nil, map[string]string{"items.*.artwork": "art"})
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, len(text))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		q := p.Start()
		for piece := range slices.Chunk(text, 8<<10) {
			if dst, err = q.Append(dst[:0], piece, false); err != nil {
				b.Fatal(err)
			}
		}
		if _, err = q.Append(dst[:0], nil, true); err != nil {
			b.Fatal(err)
		}
	}
}
