package httpfield

import (
	"encoding/base64"
	"slices"
	"strconv"
)

// The functions of this file write the bare items of structured fields (RFC 9651 section 4.1). Each appends
// to b, so that a caller builds a whole field in one buffer:
//
//	b = httpfield.AppendString(b, "default")
//	b = httpfield.AppendInteger(append(b, ";q="...), 100) // "default";q=100

// AppendString appends a String: s in quotes. s must be printable ASCII. The text is also a quoted-string
// (RFC 9110 section 5.6.4), as parameters of WWW-Authenticate and Forwarded are.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// String returns what AppendString appends.
func String(s string) string { return string(AppendString(make([]byte, 0, len(s)+2), s)) }

// AppendInteger appends a non-negative Integer. A number outside the range of an Integer is replaced by the
// nearest one in the range.
func AppendInteger(b []byte, n int64) []byte {
	return strconv.AppendInt(b, min(max(n, 0), 999_999_999_999_999), 10)
}

// AppendDecimal appends a non-negative Decimal with three digits after the point. A number outside the
// range of a Decimal is replaced by the nearest one in the range.
func AppendDecimal(b []byte, x float64) []byte {
	return strconv.AppendFloat(b, min(max(x, 0), 999_999_999_999), 'f', 3, 64)
}

// AppendBytes appends a Byte Sequence: data in base64 between colons.
func AppendBytes(b, data []byte) []byte {
	b = slices.Grow(b, base64.StdEncoding.EncodedLen(len(data))+2)
	b = append(b, ':')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, ':')
}
