// Package hexdigit reads single hexadecimal digits, for formats that mix them with other text:
// percent-encoding in URLs, escapes in JSON, trace ids. For a text that is all hexadecimal, use encoding/hex.
package hexdigit

// Upper holds the digits in upper case, as percent-encoding writes them (RFC 3986 section 2.1).
const Upper = "0123456789ABCDEF"

// Value returns the value of the digit c, in either case. ok is false when c is not a digit.
func Value(c byte) (v byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// Pair returns the byte that the first two bytes of s stand for. ok is false when s is shorter than two bytes
// or they are not digits.
func Pair(s string) (v byte, ok bool) {
	if len(s) < 2 {
		return 0, false
	}
	hi, ok1 := Value(s[0])
	lo, ok2 := Value(s[1])
	return hi<<4 | lo, ok1 && ok2
}

// IsLower reports whether every byte of s is a digit and no letter is in upper case. An empty s passes.
func IsLower(s string) bool {
	for i := range len(s) {
		if _, ok := Value(s[i]); !ok || 'A' <= s[i] && s[i] <= 'F' {
			return false
		}
	}
	return true
}
