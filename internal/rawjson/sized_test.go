package rawjson

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// TestDecodeSized: the size is what the decoded object takes on the heap, within a fifth.
func TestDecodeSized(t *testing.T) {
	heap := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	var members strings.Builder
	for i := range 40 {
		fmt.Fprintf(&members, `,"member-%d":%d`, i, i)
	}
	for name, text := range map[string]string{
		"a token's claims": `{"iss":"https://id.example","aud":"api","sub":"user-1","scope":"read pay","iat":1700000000,"exp":1700003600}`,
		"Keycloak": `{"exp":1700003600,"iat":1700000000,"auth_time":1700000000,"jti":"0c1b4b2e-6d7e-4d5e-9d9d-1c1b4b2e6d7e",` +
			`"iss":"https://id.example/realms/r","aud":["api","account"],"sub":"f:0c1b4b2e-6d7e","typ":"Bearer","azp":"app",` +
			`"sid":"0c1b4b2e","acr":"1","allowed-origins":["https://app.example"],"realm_access":{"roles":["offline_access","uma_authorization"]},` +
			`"resource_access":{"app":{"roles":["a","b"]},"account":{"roles":["manage-account","view-profile"]}},"scope":"openid profile email",` +
			`"email_verified":true,"name":"A B","preferred_username":"a","given_name":"A","family_name":"B","email":"a@b.example"}`,
		"numbers":        `{"a":[` + strings.Repeat("1,", 999) + `1]}`,
		"empty objects":  `{"a":[` + strings.Repeat("{},", 999) + `{}]}`,
		"small objects":  `{"a":[` + strings.Repeat(`{"a":1},`, 299) + `{}]}`,
		"empty lists":    `{"a":[` + strings.Repeat("[],", 999) + `[]]}`,
		"many members":   `{"a":1` + members.String() + `}`,
		"escaped":        `{"a":"` + strings.Repeat(`\u00e4`, 500) + `"}`,
		"one long claim": `{"a":"` + strings.Repeat(`p`, 8000) + `"}`,
	} {
		const n = 500
		kept := make([]map[string]any, n)
		before := heap()
		size := 0
		for i := range kept {
			kept[i], size, _ = DecodeSized([]byte(text), len(text))
		}
		got := (heap() - before) / n
		runtime.KeepAlive(kept)
		if size < got*4/5 || size > got*6/5+64 {
			t.Errorf("%s: takes %d bytes, counted as %d", name, got, size)
		} else {
			t.Logf("%s: takes %d bytes, counted as %d", name, got, size)
		}
	}
}

func TestElements(t *testing.T) {
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	for name, tt := range map[string]struct {
		text string
		want []string
		err  error
	}{
		"none":             {`{"a":[1]}`, nil, nil},
		"empty":            {`{"keys":[]}`, []string{}, nil},
		"values":           {`{"x":[9,{"keys":[8]}],"keys":[1, "a" ,{"b":[2]},[3,[4]],null,true],"y":[5]}`, []string{`1`, `"a"`, `{"b":[2]}`, `[3,[4]]`, `null`, `true`}, nil},
		"an object":        {`{"keys":{"a":[1]}}`, nil, nil},
		"a string":         {`{"keys":"a"}`, nil, nil},
		"null":             {`{"keys":null}`, nil, nil},
		"escaped":          {`{"\u006beys":[1]}`, []string{`1`}, nil},
		"twice":            {`{"keys":[1],"keys":[2]}`, nil, ErrDuplicate},
		"twice, escaped":   {`{"keys":[1],"\u006beys":[2]}`, nil, ErrDuplicate},
		"twice in element": {`{"keys":[{"a":1,"a":2},{"a":"\ud800"}]}`, []string{`{"a":1,"a":2}`, `{"a":"\ud800"}`}, nil},
		"deep":             {`{"keys":[` + deep + `,2]}`, []string{deep, `2`}, nil},
		"deep elsewhere":   {`{"x":` + deep + `,"keys":[2]}`, []string{`2`}, nil},
		"list":             {`[1]`, nil, ErrNotObject},
		"more":             {`{"keys":[1]}{}`, nil, ErrSyntax},
		"cut off":          {`{"keys":[1`, nil, ErrSyntax},
	} {
		list, err := Elements([]byte(tt.text), "keys")
		if !errors.Is(err, tt.err) || len(list) != len(tt.want) || (list == nil) != (tt.want == nil) {
			t.Errorf("%s: %d elements, error %v", name, len(list), err)
			continue
		}
		for i, v := range list {
			if string(v) != tt.want[i] {
				t.Errorf("%s: element %d is %.40s", name, i, v)
			}
		}
	}
}
