package gateway_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/seed-96248d0c/gateway"
)

// FuzzAggregateValue compares an aggregate with decoding each body, merging and encoding: for any mix of bodies, the
// answer is one JSON object of equal value.
func FuzzAggregateValue(f *testing.F) {
	f.Add(200, []byte(`{"a":1,"b":{"c":[1,2.50]}}`), 200, []byte(`{"a":2,"d":null}`), 204, []byte(""), false)
	f.Add(200, []byte(`{"a":1,"a":2}`), 404, []byte(`{"errors":1}`), 200, []byte(`[1,{"x":"\ud800"}]`), true)
	f.Add(200, []byte(`12345678901234567890.10`), 500, []byte(`{}`), 200, []byte(`{"one":7,"three":{"errors":[]},"errors":2}`), true)
	f.Add(200, []byte("\ufeff{}"), 201, []byte(`{"x":NaN}`), 299, []byte(` {"x" : 1e999 } `), true)
	f.Add(206, []byte(`{}`), 301, []byte(`{}`), 200, []byte(`{"\u0065rrors":{},"on\u0065":3}`), true)
	f.Fuzz(func(t *testing.T, status1 int, body1 []byte, status2 int, body2 []byte, status3 int, body3 []byte, merge bool) {
		var parts []gateway.Part
		var values []any
		var failed []any
		names := []string{"one", "two", "three"}
		for i, part := range []struct {
			status int
			body   []byte
		}{{status1, body1}, {status2, body2}, {status3, body3}} {
			if part.status < 200 || part.status > 599 || len(part.body) > 1<<12 {
				return
			}
			parts = append(parts, gateway.Part{Name: names[i], From: sends{part.status, part.body}, Path: "http://x/", Optional: true, NotFoundNull: i == 1})
			value, ok := decodedPart(part.status, part.body, i == 1)
			values = append(values, value)
			if !ok {
				failed = append(failed, names[i])
			}
		}
		w := recorded(gateway.Aggregate(parts, &gateway.AggregateOptions{Merge: merge}), nil)
		if w.Code != 200 || !json.Valid(w.Body.Bytes()) || !utf8.Valid(w.Body.Bytes()) {
			t.Fatalf("got %d %q", w.Code, w.Body)
		}
		want := map[string]any{}
		for i, value := range values {
			object, isObject := value.(map[string]any)
			if !merge || !isObject {
				object = map[string]any{names[i]: value}
			}
			for name, member := range object {
				if _, taken := want[name]; !taken && (name != "errors") {
					want[name] = member
				}
			}
		}
		got := decoded(t, w.Body.Bytes()).(map[string]any)
		var named []any
		if list, ok := got["errors"].([]any); ok {
			for _, e := range list {
				named = append(named, e.(map[string]any)["name"])
			}
		}
		delete(got, "errors")
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(named, failed) {
			t.Fatalf("%q\n%q\n%q\nmerge %v\ngot  %v %v\nwant %v %v", body1, body2, body3, merge, got, named, want, failed)
		}
	})
}

// sends is a RoundTripper that answers with a status and a body.
type sends struct {
	status int
	body   []byte
}

func (s sends) RoundTrip(r *http.Request) (*http.Response, error) {
	return answered(r, s.status, io.NopCloser(bytes.NewReader(s.body))), nil
}

// decodedPart returns the value of a part's answer, as encoding/json decodes it, and whether the part succeeds.
func decodedPart(status int, body []byte, notFoundNull bool) (any, bool) {
	switch {
	case status == http.StatusNoContent, status == http.StatusNotFound && notFoundNull:
		return nil, true
	case status > 299, status == http.StatusPartialContent, !json.Valid(body), !utf8.Valid(body):
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var value any
	err := d.Decode(&value)
	return value, err == nil
}

func decoded(t *testing.T, body []byte) (value any) {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		t.Fatal(err)
	}
	return value
}
