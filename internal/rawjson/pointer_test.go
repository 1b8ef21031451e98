package rawjson

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestPointer(t *testing.T) {
	// The document of RFC 6901 section 5, and more.
	const doc = `{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6,
		" ": 7, "m~n": 8, "twice": 1, "twice": 2, "tw\u0069ce2": 9, "big": 12345678901234567890.10,
		"deep": {"x": [{"y": {}}, [], [[1], {"]": "}"}]]}, "nothing": null}`
	for pointer, want := range map[string]string{
		"/foo":                         `["bar", "baz"]`,
		"/foo/0":                       `"bar"`,
		"/foo/1":                       `"baz"`,
		"/foo/2":                       "",
		"/foo/-":                       "",
		"/foo/01":                      "",
		"/foo/+1":                      "",
		"/foo/1/x":                     "",
		"/foo/9999999999":              "",
		"/foo/99999999999999999999999": "",
		"/":                            "0",
		"/a~1b":                        "1",
		"/c%d":                         "2",
		"/e^f":                         "3",
		"/g|h":                         "4",
		"/i\\j":                        "5",
		"/k\"l":                        "6",
		"/ ":                           "7",
		"/m~0n":                        "8",
		"/twice":                       "",
		"/twice2":                      "9",
		"/big":                         "12345678901234567890.10",
		"/deep/x/0/y":                  "{}",
		"/deep/x/2/1/]":                `"}"`,
		"/deep/x/2/0/0":                "1",
		"/deep/x/1/0":                  "",
		"/nothing":                     "null",
		"/nothing/x":                   "",
		"/absent":                      "",
	} {
		tokens, err := ParsePointer(pointer)
		if err != nil {
			t.Errorf("%s: %v", pointer, err)
			continue
		}
		got, err := Value(doc).At(tokens)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v; want %q", pointer, got, err, want)
		}
	}
	for _, bad := range []string{"a", "/~", "/~2", "/a~1~", "/a/~b"} {
		if _, err := ParsePointer(bad); err == nil {
			t.Errorf("pointer %q is taken", bad)
		}
	}
	if tokens, err := ParsePointer("/~01/~1~0"); err != nil || tokens[0] != "~1" || tokens[1] != "/~" {
		t.Errorf("got %q, %v", tokens, err)
	}
}

// FuzzPointer compares what the pointer finds with what encoding/json decodes.
func FuzzPointer(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":"c"}],"d":null}`), "/a/1/b")
	f.Add([]byte("{\"a\" : 1 ,\n\"\\u0061b\":[ ]}"), "/ab")
	f.Add([]byte(`{"x":{"x":1},"x":2}`), "/x/x")
	f.Add([]byte(`[[],[[]],{"":{}}]`), "/2/")
	f.Add([]byte(`{"a":"\\\"}"}`), "/a")
	f.Fuzz(func(t *testing.T, body []byte, pointer string) {
		doc, ok := Parse(body)
		if !ok {
			return
		}
		tokens, err := ParsePointer(pointer)
		if err != nil {
			return
		}
		got, err := doc.At(tokens)
		if err == nil && (!json.Valid(got) || !bytes.Contains(doc, got)) {
			t.Fatalf("%q is no value of the document", got)
		}
		want := json.RawMessage(doc)
		for _, token := range tokens {
			switch want[0] {
			case '{':
				var members map[string]json.RawMessage
				if json.Unmarshal(want, &members) != nil {
					t.Fatal("not an object")
				}
				if want, ok = members[token]; !ok {
					if err == nil && !strings.ContainsRune(token, '\ufffd') {
						t.Fatalf("found %q, which is not there", token)
					}
					return
				}
			case '[':
				var elements []json.RawMessage
				_ = json.Unmarshal(want, &elements)
				if err != nil {
					return
				}
				n := 0
				for _, d := range token {
					n = 10*n + int(d-'0')
				}
				want = elements[n]
			default:
				if err == nil {
					t.Fatalf("found something in %q", want)
				}
				return
			}
		}
		if err == nil && string(got) != string(want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		if err == nil || err == ErrDuplicate {
			return
		}
		t.Fatalf("%q is there: %v", want, err)
	})
}
