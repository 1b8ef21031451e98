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

// maxFields limits the fields of a header. MaxHeaderBytes alone would not bound the memory: the shortest
// field, "a:\n", has 3 bytes but costs far more in a map.
const maxFields = 8192

// response is an http.Response together with what it points to, so that one allocation suffices.
type response struct {
	http.Response
	stream     body
	values     [maxListed]string // of the fields, if there are not more
	names      [maxListed]string // of the fields, if the Header is not made; see Hooks.Fields
	listed     int               // the number of names; 0 if the Header is made
	coding     [1]string
	deviations deviation
	framing    uint8
}

// maxListed is the largest number of fields of a response whose Header is not made.
const maxListed = 12

// deviation is a set of deviations from the syntax that the parser has accepted. After any of them, the
// connection is not reused.
type deviation uint8

const (
	bareLF         deviation = 1 << iota // a line ended with LF instead of CRLF
	otherDeviation                       // any other in the list at parseHead
)

// Kinds of framing: what ends the body of a response.
const (
	noBody          = iota
	lengthDelimited // the body has ContentLength bytes
	chunkDelimited  // the body ends with the last chunk
	closeDelimited  // the body ends with the connection
	bodyForbidden   // the status forbids a body, but the fields announce one
)

// malformed returns an error that wraps ErrInvalidResponse.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidResponse, fmt.Sprintf(format, args...))
}

// quote quotes the first 60 bytes of s for an error.
func quote(s string) string { return strconv.Quote(s[:min(len(s), 60)]) }

// errTooLarge is the error for a header or trailer that exceeds MaxHeaderBytes or maxFields.
var errTooLarge = fmt.Errorf("%w: header larger than MaxHeaderBytes", ErrInvalidResponse)

const protocolStart = "HTTP/1."

// readHead reads a header or trailer up to its empty line, inclusive. It must begin with start, and is at
// most *budget bytes long, by which *budget is reduced. lines is the number of lines before the empty one.
func (c *conn) readHead(budget *int, start string) (head string, lines int, err error) {
	line, pos := 0, 0 // where the current line begins, and where the search for its end continues
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

// nextLine splits s after its first line. bareLF reports that the line ended with LF instead of CRLF.
func nextLine(s string) (line, rest string, bareLF bool) {
	i := strings.IndexByte(s, '\n')
	line, rest = s[:i], s[i+1:]
	if i > 0 && line[i-1] == '\r' {
		return line[:i-1], rest, false
	}
	return line, rest, true
}

// parseHead parses a header, whose status line and fields make up the given number of lines. It accepts the
// same responses as http.ReadResponse and returns the same values, except that it does not turn "Pragma:
// no-cache" into Cache-Control, and removes control characters from the reason phrase. It refuses the
// following, which http.ReadResponse accepts:
//
//   - a version other than HTTP/1.x, and a status with a sign or below 100: they cannot be forwarded
//   - control characters in chunk extensions, and lines of a trailer that end with LF instead of CRLF
//   - more than 8,192 fields
//
// It accepts these malformed headers, since each has only one meaning. The connection is not reused after
// them.
//
//   - a line that ends with LF instead of CRLF (RFC 9112 section 2.2)
//   - more than one space before the status
//   - a field that continues on the next line: the lines are joined (section 5.2)
//   - a space in a field name: the name keeps it, so it equals no other name (section 5.1)
//   - Content-Length together with Transfer-Encoding: Content-Length is removed (section 6.3)
//   - Transfer-Encoding in HTTP/1.0: it is ignored
//
// If asList is true, it does not make the Header of a response that Hooks.Fields may take.
func (res *response) parseHead(head string, lines int, method string, asList bool) error {
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
	if asList && res.StatusCode >= 200 && res.ProtoMinor > 0 && 2 <= lines && lines-1 <= maxListed {
		return res.parseList(rest, method)
	}
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

// parseList parses the fields into names and values. If the parser itself has to change the Header, it makes
// that as well.
func (res *response) parseList(s, method string) error {
	n, simple, length := 0, true, ""
	for {
		name, value, rest, seen, err := nextField(s)
		res.deviations |= seen
		if err != nil {
			return err
		}
		if name == "" {
			break
		}
		switch name {
		case "Content-Length":
			simple = simple && length == "" && value != ""
			length = value
		case "Connection":
			simple = simple && strings.EqualFold(value, "keep-alive")
		case "Trailer", "Transfer-Encoding":
			simple = false
		}
		res.names[n], res.values[n] = name, value
		n, s = n+1, rest
	}
	res.listed = n
	if !simple {
		res.makeHeader()
		return res.setFraming(method)
	}
	size := int64(-1)
	if length != "" {
		var err error
		if size, err = parseLength(length); err != nil {
			return err
		}
	}
	res.frame(method, false, size)
	return nil
}

// makeHeader makes the Header from the list.
func (res *response) makeHeader() {
	res.Header = make(http.Header, res.listed)
	for i, name := range res.names[:res.listed] {
		addField(res.Header, name, res.values[i:i+1:i+1])
	}
	res.listed = 0
}

// addField adds a field to header. value has one element, and a capacity of 1: so append cannot write a second
// value of this field over that of the next.
func addField(header http.Header, name string, value []string) {
	if old := header[name]; old != nil {
		value = append(old, value[0])
	}
	header[name] = value
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseFields parses field lines up to the empty line and adds them to header. The slices of values in header
// are cut from values, which needs one element for each line.
func parseFields(s string, header http.Header, values []string) (seen deviation, err error) {
	for {
		name, value, rest, deviations, err := nextField(s)
		seen |= deviations
		if name == "" || err != nil {
			return seen, err
		}
		values[0], s = value, rest
		addField(header, name, values[:1:1])
		values = values[1:]
	}
}

// nextField parses the field at the beginning of s. The name is "" at the empty line.
func nextField(s string) (name, value, rest string, seen deviation, err error) {
	line, rest, bare := nextLine(s)
	if bare {
		seen |= bareLF
	}
	if line == "" {
		return "", "", rest, seen, nil
	}
	if isBlank(line[0]) {
		return "", "", "", seen, malformed("continuation line before the first field: %s", quote(line))
	}
	colon := strings.IndexByte(line, ':')
	if colon < 0 {
		return "", "", "", seen, malformed("field without a colon: %s", quote(line))
	}
	name, ok := canonicalName(line[:colon])
	if !ok {
		if name = line[:colon]; !isTokenWithSpaces(name) {
			return "", "", "", seen, malformed("field name: %s", quote(line))
		}
		seen |= otherDeviation
	}
	value = trimBlanks(line[colon+1:])
	if isBlank(rest[0]) {
		value, rest, bare = unfold(value, rest)
		seen |= otherDeviation
		if bare {
			seen |= bareLF
		}
	}
	if !isValue(value) {
		return "", "", "", seen, malformed("value of the field %s", name)
	}
	return name, value, rest, seen, nil
}

// unfold joins a value with its continuation lines, at the beginning of s, each after one space. It returns
// the rest of s, and whether one of the lines ended with LF instead of CRLF.
func unfold(value, s string) (joined, rest string, bare bool) {
	b := []byte(value)
	for isBlank(s[0]) {
		line, rest, lf := nextLine(s)
		s, bare = rest, bare || lf
		b = append(append(b, ' '), trimBlanks(line)...)
	}
	return strings.TrimLeft(string(b), " \t"), s, bare
}

// setFraming determines where the body ends (RFC 9112 section 6.3).
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
	res.frame(method, chunked, length)
	if res.framing == chunkDelimited {
		delete(res.Header, "Content-Length")
	}
	return nil
}

// frame sets framing, ContentLength and Close. length is -1 without Content-Length.
func (res *response) frame(method string, chunked bool, length int64) {
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
		res.ContentLength, res.framing = -1, chunkDelimited
	case length == 0:
		res.ContentLength, res.framing = 0, noBody
	case length > 0:
		res.ContentLength, res.framing = length, lengthDelimited
	default:
		res.ContentLength, res.framing = -1, closeDelimited
		res.Close = true
	}
}

// transferEncoding reports whether the body is chunked. It removes the field, as net/http does, and refuses
// other codings.
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

// contentLength returns the value of Content-Length, or -1 without the field. If the field is repeated, its
// values must be equal.
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
	return parseLength(lengths[0])
}

// parseLength parses a value of Content-Length.
func parseLength(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, malformed("Content-Length %s", quote(s))
	}
	return int64(n), nil
}

// closesConn reports whether the target closes the connection after the response.
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
				name = element // not a valid name, so no trailer has it
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
