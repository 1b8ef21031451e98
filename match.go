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

// Match is a named predicate on requests. Explain prints the name. Two matches with the same name are the
// same predicate; Router panics when their functions differ. Name must not be empty, and Func must not be
// nil.
//
// Func is called before the middleware of Router.Use, so the request has no Identity from that middleware.
// Func must be safe for concurrent use, return the same result for the same request, and not read the body.
type Match struct {
	Name string
	Func func(*http.Request) bool

	kind         routing.Kind
	field, value string // of MatchHeader with a value
}

// predicates converts matches to the type of internal/routing.
func predicates(matches []Match) (list []routing.Predicate) {
	for _, m := range matches {
		p := routing.Predicate{Name: m.Name, Kind: m.kind, Holds: m.Func}
		if m.field != "" && sameSource(m.Func, headerIs("", "")) { // false if the user has replaced Func
			p.Field, p.Value = m.field, m.value
		}
		list = append(list, p)
	}
	return list
}

// uniqueMatches returns the matches without those whose name an earlier one has.
func uniqueMatches(matches []Match) (unique []Match) {
	for _, m := range matches {
		if !slices.ContainsFunc(unique, func(o Match) bool { return o.Name == m.Name }) {
			unique = append(unique, m)
		}
	}
	return unique
}

// MatchHeader returns a predicate that holds when one line of the header field equals value. Values are
// compared case-sensitively. With an empty value, the predicate holds when the field is present. MatchHeader
// panics when name is not a field name, or is Host, which belongs in the pattern.
func MatchHeader(name, value string) Match {
	name = matchedField("MatchHeader", name)
	m := Match{Name: "header " + name, kind: routing.Header}
	if value == "" {
		m.Func = func(r *http.Request) bool { return len(r.Header[name]) > 0 }
		return m
	}
	m.Name += " = " + strconv.Quote(value)
	m.field, m.value = name, value
	m.Func = headerIs(name, value)
	return m
}

// headerIs returns the Func of a MatchHeader with a value. It must not be inlined: sameSource compares code
// pointers, which are the same for all its results.
//
//go:noinline
func headerIs(name, value string) func(*http.Request) bool {
	return func(r *http.Request) bool { return slices.Contains(r.Header[name], value) }
}

// MatchHeaderRegexp returns a predicate that holds when expr matches one line of the header field. Without
// anchors (^ and $), expr may match any part of the line. MatchHeaderRegexp panics when name is not a field
// name or is Host, and on a malformed expression.
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

// matchedField returns the canonical form of a field name.
func matchedField(caller, name string) string {
	if !httpfield.IsToken(name) {
		panic("gateway: " + caller + ": " + strconv.Quote(name) + " is not a header field name")
	}
	if name = http.CanonicalHeaderKey(name); name == "Host" {
		panic("gateway: " + caller + ": Host is not in net/http's header; put the host in the pattern")
	}
	return name
}

// MatchQuery returns a predicate that holds when one of the query's values for name equals value. With an
// empty value, the predicate holds when the query has name.
func MatchQuery(name, value string) Match {
	m := Match{Name: "query " + url.QueryEscape(name), kind: routing.Query}
	if value != "" {
		m.Name += " = " + strconv.Quote(value)
	}
	m.Func = func(r *http.Request) bool { return queryHas(r.URL.RawQuery, name, value) }
	return m
}

// queryHas reports whether url.ParseQuery would find the pair name=value in query, without building the map.
// An empty value means any value.
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
