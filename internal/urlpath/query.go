package urlpath

import (
	"net/url"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// maxParameters is how many parameters of a query net/url reads.
const maxParameters = 10_000

// CleanQuery returns query as it is when every parser reads it alike. Otherwise it returns the parameters
// that net/url reads in it, encoded anew.
//
// Bytes that are not allowed in a query (RFC 3986 section 3.4) are escaped. Over HTTP/2 a client can send a
// blank, which would end the request's target in HTTP/1.1.
func CleanQuery(query string) string {
	if ambiguousQuery(query) {
		values, _ := url.ParseQuery(query)
		return values.Encode()
	}
	return escapeExcept(query, '?')
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
