package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeObject(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for name, tt := range map[string]struct {
		text string
		want error
	}{
		"empty":                   {`{}`, nil},
		"blanks":                  {" {\t\"a\" :\r\n1 , \"b\" : [ ] } ", nil},
		"values":                  {`{"a":"b","c":[1,-0.5e+3,true,false,null,{"d":"\u00e4\n\ud83d\ude00"}]}`, nil},
		"twice":                   {`{"a":1,"a":1}`, ErrDuplicate},
		"twice, one escaped":      {`{"iss":1,"\u0069ss":1}`, ErrDuplicate},
		"twice, inside":           {`{"a":[{"b":1,"b":2}]}`, ErrDuplicate},
		"other case":              {`{"a":1,"A":2}`, nil},
		"array":                   {`[]`, ErrNotObject},
		"nothing":                 {``, ErrNotObject},
		"string":                  {`"a"`, ErrNotObject},
		"something after":         {`{}{}`, ErrSyntax},
		"NUL after":               {"{}\x00", ErrSyntax},
		"comma at the end":        {`{"a":1,}`, ErrSyntax},
		"comma at the end, array": {`{"a":[1,]}`, ErrSyntax},
		"no colon":                {`{"a" 1}`, ErrSyntax},
		"name without quotes":     {`{a:1}`, ErrSyntax},
		"cut off":                 {`{"a":[1`, ErrSyntax},
		"string cut off":          {`{"a":"b`, ErrSyntax},
		"escape cut off":          {`{"a":"b\`, ErrSyntax},
		"hex cut off":             {`{"a":"\u12`, ErrSyntax},
		"unknown escape":          {`{"a":"\x41"}`, ErrSyntax},
		"control in string":       {"{\"a\":\"\n\"}", ErrSyntax},
		"lone surrogate":          {`{"a":"\ud800"}`, ErrSyntax},
		"lone low surrogate":      {`{"a":"\udc00\ud800"}`, ErrSyntax},
		"half a pair":             {`{"a":"\ud800\u0041"}`, ErrSyntax},
		"no UTF-8":                {"{\"a\":\"\xff\"}", ErrSyntax},
		"no UTF-8, escaped":       {"{\"a\":\"\\n\xff\"}", ErrSyntax},
		"leading zero":            {`{"a":01}`, ErrSyntax},
		"plus":                    {`{"a":+1}`, ErrSyntax},
		"point alone":             {`{"a":1.}`, ErrSyntax},
		"exponent alone":          {`{"a":1e}`, ErrSyntax},
		"NaN":                     {`{"a":NaN}`, ErrSyntax},
		"comment":                 {`{/**/"a":1}`, ErrSyntax},
		"word":                    {`{"a":trueish}`, ErrSyntax},
		"BOM":                     {"\ufeff{}", ErrNotObject},
		"deep":                    {deep(MaxDecodeDepth), nil},
		"too deep":                {deep(MaxDecodeDepth + 1), ErrDepth},
		"arrays too deep":         {`{"a":` + strings.Repeat("[", 100000), ErrDepth},
		"many":                    {`{"a":[` + strings.Repeat("1,", 97) + `1]}`, nil},
		"too many":                {`{"a":[` + strings.Repeat("1,", 98) + `1]}`, ErrTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := DecodeObject([]byte(tt.text), 100)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v, error %v, want %v", got, err, tt.want)
			}
			if err == nil {
				if want := decodeLoosely(t, tt.text); !reflect.DeepEqual(got, want) {
					t.Errorf("%v, but encoding/json reads %v", got, want)
				}
			}
		})
	}
}

func TestStringMember(t *testing.T) {
	for text, want := range map[string]string{
		`{"iss":"a"}`:                      "a",
		`{"x":{"iss":"b"},"iss":"\u0061"}`: "a",
		`{"x":[1,"2",{}],"iss":"a","b":1}`: "a",
		`{"iss":"a","iss":"b"}`:            "",
		`{"iss":"a"`:                       "",
		`{"iss":1}`:                        "",
		`{"Iss":"a"}`:                      "",
		`["iss","a"]`:                      "",
		`{"iss":"a","x":"\ud800"}`:         "",
		`{"\ud800":1,"iss":"a"}`:           "",
		`{"iss":"\udc00"}`:                 "",
	} {
		if got, _ := StringMember([]byte(text), "iss"); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func decodeLoosely(t *testing.T, text string) map[string]any {
	var v map[string]any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("encoding/json refuses %q: %v", text, err)
	}
	return v
}

// FuzzDecodeObject: what is read here, encoding/json reads too, and in the same way.
func FuzzDecodeObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,"b\u00e4",{"c":null}]}`, `{"a":1,"a":2}`, `{"a":-1.5e9,"b":"\ud83d\ude00"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := DecodeObject(text, len(text))
		if err != nil {
			return
		}
		if want := decodeLoosely(t, string(text)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, but encoding/json reads %v", text, got, want)
		}
		if !bytes.Contains(text, []byte(`"iss"`)) {
			return
		}
		want, _ := got["iss"].(string)
		if iss, _ := StringMember(text, "iss"); iss != want {
			t.Errorf("%q: iss %q, want %q", text, iss, want)
		}
	})
}
