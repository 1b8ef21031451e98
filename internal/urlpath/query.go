package urlpath

import (
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// maxParameters is how many parameters of a query net/url reads.
const maxParameters = 10_000

// CleanQuery returns query unchanged if all parsers read it in the same way. Otherwise it returns the
// parameters that net/url reads in it, encoded again, and how many it dropped.
//
// Bytes that are not allowed in a query (RFC 3986 section 3.4) are escaped. For example, an HTTP/2 client can
// send a space, which would end the request target in HTTP/1.1.
func CleanQuery(query string) (clean string, dropped int) {
	if !ambiguousQuery(query) {
		return escapeExcept(query, '?'), 0
	}
	values, _ := url.ParseQuery(query)
	for parameter := range strings.SplitSeq(query, "&") {
		if parameter != "" {
			dropped++
		}
	}
	for _, list := range values {
		dropped -= len(list)
	}
	return values.Encode(), dropped
}

// CarryQuery escapes the bytes of query that cannot be sent in the request target of HTTP/1.1: spaces,
// control characters, and "#", which would end the query. It leaves all else unchanged.
func CarryQuery(query string) string {
	carried := func(c byte) bool { return c > ' ' && c != 0x7f && c != '#' }
	bad := 0
	for i := range len(query) {
		if !carried(query[i]) {
			bad++
		}
	}
	if bad == 0 {
		return query
	}
	b := make([]byte, 0, len(query)+2*bad)
	for i := range len(query) {
		if c := query[i]; carried(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hexdigit.Upper[c>>4], hexdigit.Upper[c&15])
		}
	}
	return string(b)
}

// ambiguousQuery reports whether query has a ";", which some parsers read as "&", an invalid
// percent-encoding, or more parameters than net/url reads.
func ambiguousQuery(query string) bool {
	for i := range len(query) {
		switch query[i] {
		case ';':
			return true
		case '%':
			if _, ok := hexdigit.Pair(query[i+1:]); !ok {
				return true
			}
		}
	}
	return strings.Count(query, "&") >= maxParameters
}
