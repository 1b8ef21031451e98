package rawjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		body, want string
		ok         bool
	}{
		"object":           {" {\"a\" : 1}\r\n", `{"a" : 1}`, true},
		"scalar":           {"12", "12", true},
		"empty":            {"", "", false},
		"blanks":           {" \n", "", false},
		"two values":       {"{} {}", "", false},
		"trailing garbage": {`{"a":1}x`, "", false},
		"byte order mark":  {"\ufeff{}", "", false},
		"invalid UTF-8":    {"\"\xff\"", "", false},
		"lone surrogate":   {`"\ud800"`, `"\ud800"`, true},
		"NaN":              {"NaN", "", false},
		"comment":          {"{}//", "", false},
		"deep":             {strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "", true},
		"deeper":           {strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Parse([]byte(c.body))
			if ok != c.ok || ok && c.want != "" && string(got) != c.want {
				t.Errorf("got %.40q, %v", got, ok)
			}
		})
	}
}

func TestItems(t *testing.T) {
	for _, tt := range []struct {
		text  string
		items []string
		names []string
	}{
		{`{}`, nil, nil},
		{`[ ]`, nil, nil},
		{`7`, nil, nil},
		{`"{}"`, nil, nil},
		{`{"a" : 1 , "\u0062":{"c":[{}]},"a":[]}`, []string{`"a" : 1`, `"\u0062":{"c":[{}]}`, `"a":[]`}, []string{"a", "b", "a"}},
		{`[["\"]",{"b":"\\"}],2]`, []string{`["\"]",{"b":"\\"}]`, "2"}, nil},
		{"[ 1.50 ,\n[2,[3]],{\"a\":4} , null ]", []string{"1.50", "[2,[3]]", `{"a":4}`, "null"}, nil},
	} {
		v, ok := Parse([]byte(tt.text))
		if !ok {
			t.Fatal(tt.text)
		}
		var items, names []string
		walk := v.Items()
		for item, ok := walk.Next(); ok; item, ok = walk.Next() {
			items = append(items, string(item.Text))
			if v.IsObject() {
				names = append(names, string(item.Name(nil)))
			}
			if _, ok := Parse(item.Value); !ok {
				t.Errorf("%s: item with the value %q", tt.text, item.Value)
			}
		}
		if !reflect.DeepEqual(items, tt.items) || !reflect.DeepEqual(names, tt.names) {
			t.Errorf("%s: got %q, %q", tt.text, items, names)
		}
	}
}

func TestScalar(t *testing.T) {
	for text, want := range map[string]string{
		`"a"`: "a", `"\u0041\n\ud800\ud83d\ude00\ud800\u0041"`: "A\n\ufffd\U0001F600\ufffdA", `1E+50`: "1E+50", `true`: "true", `null`: "", `""`: "",
	} {
		if got, ok := Value(text).Scalar(); !ok || got != want {
			t.Errorf("%s: got %q, %v", text, got, ok)
		}
	}
	for _, text := range []string{`{}`, `[1]`} {
		if got, ok := Value(text).Scalar(); ok {
			t.Errorf("%s: got %q", text, got)
		}
	}
}

// FuzzItems compares items, names and strings with what encoding/json decodes.
func FuzzItems(f *testing.F) {
	for _, seed := range []string{`{"a":1,"b":[2]}`, ` [1 , "\ud800\u0041" ] `, `"\ud83d\ude00\/"`, `{"\u00e9":{"x":[]},"":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, ok := Parse(text)
		if !ok {
			return
		}
		walk := v.Items()
		switch v[0] {
		case '{':
			members := map[string]json.RawMessage{}
			for item, ok := walk.Next(); ok; item, ok = walk.Next() {
				members[string(item.Name(nil))] = json.RawMessage(item.Value)
			}
			var want map[string]json.RawMessage
			if err := json.Unmarshal(v, &want); err != nil || !reflect.DeepEqual(members, want) {
				t.Errorf("%q: got %q, want %q, %v", v, members, want, err)
			}
		case '[':
			elements := []json.RawMessage{}
			for item, ok := walk.Next(); ok; item, ok = walk.Next() {
				elements = append(elements, json.RawMessage(item.Value))
			}
			var want []json.RawMessage
			if err := json.Unmarshal(v, &want); err != nil || !reflect.DeepEqual(elements, want) {
				t.Errorf("%q: got %q, want %q, %v", v, elements, want, err)
			}
		case '"':
			got, _ := v.Scalar()
			var want string
			if err := json.Unmarshal(v, &want); err != nil || got != want {
				t.Errorf("%q: got %q, want %q, %v", v, got, want, err)
			}
		}
	})
}
