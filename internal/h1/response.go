package h1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxFields bounds the fields of one header. Each costs much more memory than its shortest form, "a:\n".
const maxFields = 8192

// response is an http.Response and what it points to, in one allocation.
type response struct {
	http.Response
	stream     body
	values     [12]string // of the fields, if there are not more
	coding     [1]string
	deviations deviation
	framing    uint8
}

// deviation is what a header has that is accepted, and after which the connection is not used again.
type deviation uint8

const (
	bareLF         deviation = 1 << iota // a line ended with LF alone
	otherDeviation                       // it is malformed in another way, but has one meaning
)

// How the body of a response ends.
const (
	noBody          = iota
	lengthDelimited // after ContentLength bytes
	chunkDelimited  // with the last chunk
	closeDelimited  // with the connection
	bodyForbidden   // there is none, but fields say that there is
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidResponse, fmt.Sprintf(format, args...))
}

// quote shortens what is quoted in an error.
func quote(s string) string { return strconv.Quote(s[:min(len(s), 60)]) }

// errTooLarge is the error of a header or trailer that exceeds MaxHeaderBytes.
var errTooLarge = fmt.Errorf("%w: header larger than MaxHeaderBytes", ErrInvalidResponse)

const protocolStart = "HTTP/1."

// readHead reads up to and with the first empty line, and returns it with the number of lines before that.
// start is what it must begin with. It takes the bytes from the budget.
func (c *conn) readHead(budget *int, start string) (head string, lines int, err error) {
	line, pos := 0, 0 // the current line's beginning, and how far it is searched
	for {
		have := c.buffered()
		if n := min(len(have), len(start)); string(have[:n]) != start[:n] {
			return "", 0, malformed("it begins with %s", quote(string(have[:min(len(have), 60)])))
		}
		for {
			i := bytes.IndexByte(have[pos:], '\n')
			if i < 0 {
				pos = len(have)
				break
			}
			pos += i
			empty := pos == line || pos == line+1 && have[line] == '\r'
			pos++
			if pos > *budget {
				return "", 0, errTooLarge
			}
			if empty {
				*budget -= pos
				c.r += pos
				return string(have[:pos]), lines, nil
			}
			if lines++; lines > maxFields {
				return "", 0, errTooLarge
			}
			line = pos
		}
		if err := c.fill(*budget); err != nil {
			if err == bufio.ErrBufferFull {
				err = errTooLarge
			} else if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return "", 0, err
		}
	}
}

// nextLine cuts the first line off and reports whether it ended with LF alone.
func nextLine(s string) (line, rest string, bareLF bool) {
	i := strings.IndexByte(s, '\n')
	line, rest = s[:i], s[i+1:]
	if i > 0 && line[i-1] == '\r' {
		return line[:i-1], rest, false
	}
	return line, rest, true
}

// parseHead reads a status line and fields. lines is their number. It takes what http.ReadResponse takes and
// yields the same values, with these exceptions. It adds no Cache-Control where there is "Pragma: no-cache",
// and removes control characters from the reason. It refuses, and http.ReadResponse accepts:
//
//   - a version other than HTTP/1.x, and a status with a sign or below 100: neither can be forwarded as it is;
//   - control characters in chunk extensions, and lines of a trailer that end with LF alone;
//   - more than 8,192 fields.
//
// Some of what is accepted is malformed, but leaves no doubt: a line that ends with LF alone (RFC 9112 section
// 2.2), more than one blank before the status, a field that is continued on the next line, which becomes one
// line (section 5.2), a blank in a field name, which stays, so that the field is no other's (section 5.1),
// Content-Length beside Transfer-Encoding, which is removed (section 6.3), and Transfer-Encoding in HTTP/1.0,
// which is ignored. The connection is not used again after any of these.
func (res *response) parseHead(head string, lines int, method string) error {
	line, rest, bare := nextLine(head)
	if bare {
		res.deviations |= bareLF
	}
	const minimum = len("HTTP/1.1 200")
	if len(line) < minimum || line[:7] != protocolStart || !isDigit(line[7]) || line[8] != ' ' {
		return malformed("status line %s", quote(line))
	}
	status := line[9:]
	if status[0] == ' ' {
		status = strings.TrimLeft(status, " ")
		res.deviations |= otherDeviation
	}
	if len(status) < 3 || !isDigit(status[0]) || !isDigit(status[1]) || !isDigit(status[2]) || status[0] == '0' ||
		len(status) > 3 && status[3] != ' ' {
		return malformed("status line %s", quote(line))
	}
	if !isValue(status) {
		status = withoutControls(status)
		res.deviations |= otherDeviation
	}
	res.Proto, res.ProtoMajor, res.ProtoMinor = line[:8], 1, int(line[7]-'0')
	res.Status = status
	res.StatusCode = int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0')
	values := res.values[:]
	if lines-1 > len(values) {
		values = make([]string, lines-1)
	}
	res.Header = make(http.Header, min(lines-1, 64))
	seen, err := parseFields(rest, res.Header, values)
	res.deviations |= seen
	if err != nil {
		return err
	}
	return res.setFraming(method)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseFields reads lines of fields up to the empty one. It takes the memory of the values from values.
func parseFields(s string, header http.Header, values []string) (seen deviation, err error) {
	for {
		line, rest, bare := nextLine(s)
		if bare {
			seen |= bareLF
		}
		if line == "" {
			return seen, nil
		}
		s = rest
		if isBlank(line[0]) {
			return seen, malformed("continued field without a beginning: %s", quote(line))
		}
		colon := strings.IndexByte(line, ':')
		if colon < 0 {
			return seen, malformed("field without a colon: %s", quote(line))
		}
		name, ok := canonicalName(line[:colon])
		if !ok {
			if name = line[:colon]; !isTokenWithSpaces(name) {
				return seen, malformed("field name: %s", quote(line))
			}
			seen |= otherDeviation
		}
		value := trimBlanks(line[colon+1:])
		if isBlank(s[0]) {
			value, s, bare = unfold(value, s)
			seen |= otherDeviation
			if bare {
				seen |= bareLF
			}
		}
		if !isValue(value) {
			return seen, malformed("value of the field %s", name)
		}
		if old := header[name]; old != nil {
			header[name] = append(old, value)
			continue
		}
		// The capacity is 1, so that a second value of this field does not go into the memory of the next.
		values[0] = value
		header[name] = values[:1:1]
		values = values[1:]
	}
}

// unfold joins a value with the lines that continue it, at the beginning of s, by one blank each.
func unfold(value, s string) (joined, rest string, bare bool) {
	b := []byte(value)
	for isBlank(s[0]) {
		line, rest, lf := nextLine(s)
		s, bare = rest, bare || lf
		b = append(append(b, ' '), trimBlanks(line)...)
	}
	return strings.TrimLeft(string(b), " \t"), s, bare
}

// setFraming decides where the body ends (RFC 9112 section 6.3).
func (res *response) setFraming(method string) error {
	chunked, err := res.transferEncoding()
	if err != nil {
		return err
	}
	length, err := res.contentLength()
	if err != nil {
		return err
	}
	if chunked && length >= 0 {
		res.deviations |= otherDeviation
	}
	res.Close = res.closesConn()
	if err := res.moveTrailerNames(chunked); err != nil {
		return err
	}
	status := res.StatusCode
	none := status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	switch {
	case method == http.MethodHead:
		res.ContentLength, res.framing = length, noBody
	case none:
		res.ContentLength, res.framing = 0, noBody
		if status != http.StatusNotModified && (chunked || length > 0) {
			res.framing = bodyForbidden
		}
	case chunked:
		delete(res.Header, "Content-Length")
		res.ContentLength, res.framing = -1, chunkDelimited
	case length == 0:
		res.ContentLength, res.framing = 0, noBody
	case length > 0:
		res.ContentLength, res.framing = length, lengthDelimited
	default:
		res.ContentLength, res.framing = -1, closeDelimited
		res.Close = true
	}
	return nil
}

func (res *response) transferEncoding() (chunked bool, err error) {
	codings, ok := res.Header["Transfer-Encoding"]
	if !ok {
		return false, nil
	}
	if res.ProtoMinor == 0 {
		delete(res.Header, "Transfer-Encoding")
		res.deviations |= otherDeviation
		return false, nil
	}
	if len(codings) != 1 || !strings.EqualFold(codings[0], "chunked") {
		return false, malformed("Transfer-Encoding %q", codings)
	}
	delete(res.Header, "Transfer-Encoding")
	res.coding[0] = "chunked"
	res.TransferEncoding = res.coding[:]
	return true, nil
}

// contentLength returns -1 if the field is missing. The same value may be given several times.
func (res *response) contentLength() (int64, error) {
	lengths, ok := res.Header["Content-Length"]
	if !ok {
		return -1, nil
	}
	for _, other := range lengths[1:] {
		if other != lengths[0] {
			return 0, malformed("different values of Content-Length")
		}
	}
	if len(lengths) > 1 {
		res.Header["Content-Length"] = lengths[:1:1]
	}
	n, err := strconv.ParseUint(lengths[0], 10, 63)
	if err != nil {
		return 0, malformed("Content-Length %s", quote(lengths[0]))
	}
	return int64(n), nil
}

// closesConn reports whether the connection ends with the response.
func (res *response) closesConn() bool {
	connection := res.Header["Connection"]
	if res.ProtoMinor == 0 {
		return hasToken(connection, "close") || !hasToken(connection, "keep-alive")
	}
	if len(connection) > 0 && hasToken(connection, "close") {
		delete(res.Header, "Connection")
		return true
	}
	return false
}

// moveTrailerNames moves the names in the field Trailer to Response.Trailer.
func (res *response) moveTrailerNames(chunked bool) error {
	lists, ok := res.Header["Trailer"]
	if !ok || !chunked {
		return nil
	}
	delete(res.Header, "Trailer")
	for _, list := range lists {
		for element := range strings.SplitSeq(list, ",") {
			if element = trimBlanks(element); element == "" {
				continue
			}
			name, ok := canonicalName(element)
			if !ok {
				name = element // nothing is sent by that name
				res.deviations |= otherDeviation
			}
			if !allowedInTrailer(name) {
				return malformed("trailer %s", quote(element))
			}
			if res.Trailer == nil {
				res.Trailer = make(http.Header)
			}
			res.Trailer[name] = nil
		}
	}
	return nil
}
