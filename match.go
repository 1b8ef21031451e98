package gateway

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/routing"
)

// Match is a named predicate; the name is what Explain prints, and two of one name are the same one.
//
// Func sees the request as it came to the Router, before Use's middleware: nobody is authenticated yet. It
// must be safe for concurrent use, answer the same for the same request, and leave the body alone.
type Match struct {
	Name string
	Func func(*http.Request) bool

	kind routing.Kind
}

// MatchHeader holds when one line of the header field is value, letter by letter; when value is "", when
// the field is there at all. It panics when name is no field name, and for Host, which is part of the
// pattern.
func MatchHeader(name, value string) Match {
	name = matchedField("MatchHeader", name)
	m := Match{Name: "header " + name, kind: routing.Header}
	if value == "" {
		m.Func = func(r *http.Request) bool { return len(r.Header[name]) > 0 }
		return m
	}
	m.Name += " = " + strconv.Quote(value)
	m.Func = func(r *http.Request) bool { return slices.Contains(r.Header[name], value) }
	return m
}

// MatchHeaderRegexp holds when expr matches one line of the header field, anywhere in it unless expr is
// anchored. It panics when name is no field name or Host, and on a bad expression.
func MatchHeaderRegexp(name, expr string) Match {
	name = matchedField("MatchHeaderRegexp", name)
	re, err := regexp.Compile(expr)
	if err != nil {
		panic("gateway: MatchHeaderRegexp: " + err.Error())
	}
	return Match{
		Name: "header " + name + " ~ " + strconv.Quote(expr),
		kind: routing.Header,
		Func: func(r *http.Request) bool { return slices.ContainsFunc(r.Header[name], re.MatchString) },
	}
}

func matchedField(caller, name string) string {
	if !httpfield.IsToken(name) {
		panic("gateway: " + caller + ": " + strconv.Quote(name) + " is no header field name")
	}
	if name = http.CanonicalHeaderKey(name); name == "Host" {
		panic("gateway: " + caller + ": Host is no header field in net/http; put the host in the pattern")
	}
	return name
}

// MatchQuery holds when one of the query's values for name is value; when value is "", when the query has
// name at all.
func MatchQuery(name, value string) Match {
	m := Match{Name: "query " + url.QueryEscape(name), kind: routing.Query}
	if value != "" {
		m.Name += " = " + strconv.Quote(value)
	}
	m.Func = func(r *http.Request) bool { return queryHas(r.URL.RawQuery, name, value) }
	return m
}

// queryHas looks for a pair in a query as url.ParseQuery would find it, without building the map.
func queryHas(query, name, value string) bool {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if pair == "" || strings.IndexByte(pair, ';') >= 0 {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		k, err := queryUnescape(k)
		if err != nil || k != name {
			continue
		}
		if v, err = queryUnescape(v); err == nil && (value == "" || v == value) {
			return true
		}
	}
	return false
}

func queryUnescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}
