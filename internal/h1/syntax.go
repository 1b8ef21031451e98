package h1

import (
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// Classes of bytes.
const (
	tokenByte = 1 << iota // allowed in a token: a method or field name (RFC 9110 section 5.6.2)
	hostByte              // allowed in a Host; more than RFC 9110 allows, as in net/http
	upperByte             // A to Z
	lowerByte             // a to z
)

var classes = func() (table [256]byte) {
	for i := range 256 {
		c := byte(i)
		isLower, isUpper, isDigit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
		if isUpper {
			table[i] |= upperByte
		}
		if isLower {
			table[i] |= lowerByte
		}
		if isLower || isUpper || isDigit {
			table[i] |= tokenByte | hostByte
		}
		if strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			table[i] |= tokenByte
		}
		if strings.IndexByte("!$%&'()*+,-.:;=[]_~", c) >= 0 {
			table[i] |= hostByte
		}
	}
	return table
}()

// all reports whether all bytes of s belong to the class.
func all(s string, class byte) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

func isToken(s string) bool { return s != "" && all(s, tokenByte) }
func isValue(s string) bool { return !httpfield.HasControl(s) }
func isHost(s string) bool  { return s != "" && all(s, hostByte) }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// isTokenWithSpaces reports whether s consists of bytes that are allowed in a token and spaces.
func isTokenWithSpaces(s string) bool {
	for i := range len(s) {
		if classes[s[i]]&tokenByte == 0 && s[i] != ' ' {
			return false
		}
	}
	return s != ""
}

// withoutControls returns s without its control characters.
func withoutControls(s string) string {
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c != 0x7f || c == '\t' {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// trimBlanks removes spaces and tabs around s.
func trimBlanks(s string) string {
	for s != "" && isBlank(s[0]) {
		s = s[1:]
	}
	for s != "" && isBlank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// hasToken reports whether one of the comma-separated lists contains the token. Case is ignored.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		if len(list) == len(token) {
			if strings.EqualFold(list, token) {
				return true
			}
			continue
		}
		for element := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(trimBlanks(element), token) {
				return true
			}
		}
	}
	return false
}

// commonNames maps canonical field names to themselves, so that converting a common name does not allocate.
var commonNames = func() map[string]string {
	m := make(map[string]string)
	for _, name := range strings.Fields(`Accept-Ranges Access-Control-Allow-Credentials Access-Control-Allow-Headers
		Access-Control-Allow-Methods Access-Control-Allow-Origin Access-Control-Expose-Headers Access-Control-Max-Age
		Age Allow Alt-Svc Cache-Control Connection Content-Disposition Content-Encoding Content-Language
		Content-Length Content-Location Content-Range Content-Security-Policy Content-Type Cross-Origin-Opener-Policy
		Cross-Origin-Resource-Policy Date Etag Expires Keep-Alive Last-Modified Link Location Permissions-Policy
		Pragma Referrer-Policy Retry-After Server Server-Timing Set-Cookie Strict-Transport-Security Trailer
		Transfer-Encoding Upgrade Vary Via Www-Authenticate X-Content-Type-Options X-Frame-Options X-Powered-By
		X-Ratelimit-Limit X-Ratelimit-Remaining X-Ratelimit-Reset X-Request-Id X-Xss-Protection
		Grpc-Status Grpc-Message Traceparent`) {
		m[name] = name
	}
	return m
}()

// canonicalName returns the canonical form of a field name, as http.CanonicalHeaderKey does, and whether the
// name is valid.
func canonicalName(name string) (string, bool) {
	excluded := byte(lowerByte) // the class that a canonical name does not have at this position
	canonical := true
	for i := range len(name) {
		class := classes[name[i]]
		if class&tokenByte == 0 {
			return "", false
		}
		if class&excluded != 0 {
			canonical = false
		}
		excluded = upperByte
		if name[i] == '-' {
			excluded = lowerByte
		}
	}
	if canonical {
		return name, name != ""
	}
	var small [48]byte
	b := append(small[:0], name...)
	up := true
	for i, c := range b {
		switch {
		case up && 'a' <= c && c <= 'z':
			b[i] = c - 'a' + 'A'
		case !up && 'A' <= c && c <= 'Z':
			b[i] = c - 'A' + 'a'
		}
		up = c == '-'
	}
	if common, ok := commonNames[string(b)]; ok {
		return common, true
	}
	return string(b), true
}
