package h1

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// maxInMemoryInline is the length of the largest body in memory that is sent together with the header,
// whatever Options.InlineBody is.
const maxInMemoryInline = 16 << 10

// call is the state of one round trip, until Do returns. It is pooled: nothing refers to it afterwards.
type call struct {
	t        *Transport
	req      *http.Request // the original, or a copy with a new body from GetBody
	original *http.Request // the caller's
	ownsBody bool          // closeBody has yet to close req.Body
	hooks    *Hooks
	arg      any
	key      hostKey
	deadline Deadline
	outgoing
}

// outgoing is the request as it is sent.
type outgoing struct {
	buf       *buffer // the header, then the body if inline is set
	headerLen int     // bytes of buf
	body      io.ReadCloser
	length    int64 // of the body; 0 means no body, -1 chunked
	inline    bool  // the body is in buf
	expect    bool  // the body waits for 100 Continue
	upgrade   bool  // the request asks for another protocol
	close     bool  // the request asks to close the connection after the response
}

// invalid returns an error that wraps ErrInvalidRequest.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidRequest, fmt.Sprintf(format, args...))
}

// prepare checks the request and writes its header.
func (c *call) prepare() error {
	req := c.req
	if req.URL == nil {
		return invalid("no URL")
	}
	if req.Header == nil {
		return invalid("no Header")
	}
	switch req.URL.Scheme {
	case "http", "https", "unix":
	default:
		return invalid("scheme %q", req.URL.Scheme)
	}
	if req.URL.Host == "" {
		return invalid("no host in the URL")
	}
	key, ok := keyOf(req.URL.Scheme, req.URL.Host)
	if !ok {
		return invalid("host %q", req.URL.Host)
	}
	c.key = key
	if err := c.setBodyLength(); err != nil {
		return err
	}
	b, err := c.appendRequestLine(c.buf.b[:0])
	if err != nil {
		return err
	}
	if b, err = c.appendFields(b); err != nil {
		return err
	}
	c.buf.b, c.headerLen = b, len(b)
	return nil
}

// keyOf returns the key of the target that a URL names, and whether the host is valid. With scheme unix, host
// is the path of a socket.
func keyOf(scheme, host string) (hostKey, bool) {
	if scheme == "unix" {
		return hostKey{false, host}, host != "" && host[0] == '/' && strings.IndexByte(host, 0) < 0
	}
	if !isHost(host) {
		return hostKey{}, false
	}
	addr := lower(host)
	colon := strings.LastIndexByte(addr, ':')
	if bracket := strings.LastIndexByte(addr, ']'); colon > bracket && colon < len(addr)-1 {
		for _, c := range []byte(addr[colon+1:]) {
			if c < '0' || '9' < c {
				return hostKey{}, false
			}
		}
		return hostKey{scheme == "https", addr}, true
	}
	addr = strings.TrimSuffix(addr, ":")
	if scheme == "https" {
		return hostKey{true, addr + ":443"}, true
	}
	return hostKey{false, addr + ":80"}, true
}

// lower is strings.ToLower for ASCII, fast if s is in lower case already.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return strings.ToLower(s)
		}
	}
	return s
}

// setBodyLength sets the body and how it is framed: by its length or in chunks.
func (c *call) setBodyLength() error {
	req := c.req
	switch {
	case req.Body == nil:
		if req.ContentLength != 0 {
			return invalid("Content-Length %d without a body", req.ContentLength)
		}
	case req.Body == http.NoBody:
	default:
		c.body, c.length = req.Body, req.ContentLength
		if c.length <= 0 || len(req.TransferEncoding) > 0 && req.TransferEncoding[0] == "chunked" {
			c.length = -1
		}
	}
	if c.length == -1 {
		for name := range req.Trailer {
			if !isToken(name) || !allowedInTrailer(name) {
				return invalid("trailer %q", name)
			}
		}
	}
	return nil
}

// allowedInTrailer reports whether a field is allowed in a trailer. Fields that frame the message are not.
func allowedInTrailer(name string) bool {
	return !strings.EqualFold(name, "Content-Length") && !strings.EqualFold(name, "Transfer-Encoding") &&
		!strings.EqualFold(name, "Trailer")
}

// appendRequestLine appends the request line and the field Host.
func (c *call) appendRequestLine(b []byte) ([]byte, error) {
	req := c.req
	switch {
	case req.Method == "":
		b = append(b, "GET"...)
	case !isToken(req.Method):
		return b, invalid("method %q", req.Method)
	case req.Method == "CONNECT":
		return b, invalid("method CONNECT")
	default:
		b = append(b, req.Method...)
	}
	b = append(b, ' ')
	start := len(b)
	u := req.URL
	if u.Opaque != "" {
		if strings.HasPrefix(u.Opaque, "//") {
			b = append(append(b, u.Scheme...), ':')
		}
		b = append(b, u.Opaque...)
	} else if path := u.EscapedPath(); path != "" {
		b = append(b, path...)
	} else {
		b = append(b, '/')
	}
	if u.ForceQuery || u.RawQuery != "" {
		b = append(append(b, '?'), u.RawQuery...)
	}
	for _, c := range b[start:] {
		if c <= ' ' || c == 0x7f {
			return b, invalid("space or control character in the URL")
		}
	}
	host := req.Host
	switch {
	case host != "":
	case u.Scheme == "unix":
		host = "localhost" // the path of a socket is not a valid Host
	default:
		host = u.Host
	}
	if !isHost(host) {
		return b, invalid("Host %q", host)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, withoutZone(host)...)
	return append(b, "\r\n"...), nil
}

// withoutZone removes the zone of an IPv6 address, which has a meaning only on this machine (RFC 6874
// section 4): "[fe80::1%25eth0]:80" becomes "[fe80::1]:80".
func withoutZone(host string) string {
	if host[0] != '[' {
		return host
	}
	end := strings.LastIndexByte(host, ']')
	if end < 0 {
		return host
	}
	zone := strings.LastIndexByte(host[:end], '%')
	if zone < 0 {
		return host
	}
	return host[:zone] + host[end:]
}

// appendFields appends the fields and the empty line after them. It sets expect, upgrade and close.
func (c *call) appendFields(b []byte) ([]byte, error) {
	if c.hooks.Lines != nil {
		b = append(b, c.hooks.Lines(c.arg)...)
	} else {
		var err error
		if b, err = c.appendHeader(b); err != nil {
			return b, err
		}
	}
	req := c.req
	if req.Close && !c.close {
		b = append(b, "Connection: close\r\n"...)
	}
	c.close = c.close || req.Close
	switch {
	case c.length > 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, c.length, 10)
		b = append(b, "\r\n"...)
	case c.length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		b = appendTrailerNames(b, req.Trailer)
	case req.Method == "POST" || req.Method == "PUT" || req.Method == "PATCH":
		b = append(b, "Content-Length: 0\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// appendHeader appends the fields of Request.Header.
func (c *call) appendHeader(b []byte) ([]byte, error) {
	for name, values := range c.req.Header {
		if !isToken(name) {
			return b, invalid("field name %q", name)
		}
		skip := false
		switch len(name) {
		case len("Host"):
			skip = strings.EqualFold(name, "Host")
		case len("Trailer"):
			skip = strings.EqualFold(name, "Trailer")
		case len("Connection"):
			if strings.EqualFold(name, "Connection") {
				c.close = c.close || hasToken(values, "close")
				c.upgrade = c.upgrade || hasToken(values, "upgrade")
			} else if name == "User-Agent" && len(values) > 0 && values[0] == "" {
				skip = true // as in net/http, an empty value means that none is sent
			}
		case len("Content-Length"):
			skip = strings.EqualFold(name, "Content-Length")
		case len("Transfer-Encoding"):
			skip = strings.EqualFold(name, "Transfer-Encoding")
		case len("Expect"):
			if strings.EqualFold(name, "Expect") {
				c.expect = c.body != nil && hasToken(values, "100-continue")
			}
		}
		for _, value := range values {
			if !isValue(value) {
				return b, invalid("value of the field %q", name)
			}
			if !skip {
				b = httpfield.AppendLine(b, name, value)
			}
		}
	}
	return b, nil
}

// appendTrailerNames appends the field Trailer, if there are trailers.
func appendTrailerNames(b []byte, trailer http.Header) []byte {
	if len(trailer) == 0 {
		return b
	}
	b = append(b, "Trailer: "...)
	for i, name := range slices.Sorted(maps.Keys(trailer)) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, name...)
	}
	return append(b, "\r\n"...)
}

// appendTrailer appends the lines of the trailer fields, sorted by name.
func appendTrailer(b []byte, trailer http.Header) ([]byte, error) {
	for _, name := range slices.Sorted(maps.Keys(trailer)) {
		if !isToken(name) || !allowedInTrailer(name) {
			return b, invalid("trailer %q", name)
		}
		for _, value := range trailer[name] {
			if !isValue(value) {
				return b, invalid("value of the trailer %q", name)
			}
			b = httpfield.AppendLine(b, name, value)
		}
	}
	return b, nil
}

// readInline reads a small body of known length into buf, after the header. A body that is not in memory is
// read here only if Options.InlineBody allows its length, since its Read may block.
func (c *call) readInline() error {
	if c.length <= 0 || c.expect {
		return nil
	}
	if c.length > int64(c.t.opts.InlineBody) && (c.length > maxInMemoryInline || !inMemory(c.body)) {
		return nil
	}
	n := int(c.length)
	b := slices.Grow(c.buf.b, n+1)[:c.headerLen+n+1] // one byte more detects a body that is too long
	c.buf.b = b
	got := 0
	for empty := 0; ; {
		m, err := c.body.Read(b[c.headerLen+got:])
		got += m
		if m > 0 {
			empty = 0
		} else if empty++; empty == 100 && err == nil {
			err = io.ErrNoProgress
		}
		if got > n {
			return bodyTooLong(c.length)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRequestBody, err)
		}
	}
	if got < n {
		return bodyTooShort(int64(n-got), c.length)
	}
	c.buf.b = b[:c.headerLen+n]
	c.inline = true
	return nil
}

// The types that io.NopCloser returns.
var (
	nopCloser         = reflect.TypeOf(io.NopCloser(nil))
	nopCloserWriterTo = reflect.TypeOf(io.NopCloser(struct {
		io.Reader
		io.WriterTo
	}{}))
)

// inMemory reports whether the body's data is in memory, so that its Read never blocks.
func inMemory(body io.ReadCloser) bool {
	var r any = body
	if t := reflect.TypeOf(body); t == nopCloser || t == nopCloserWriterTo {
		r = reflect.ValueOf(body).Field(0).Interface()
	}
	switch r := r.(type) {
	case *bytes.Reader, *bytes.Buffer, *strings.Reader:
		return true
	case interface{ InMemory() bool }:
		return r.InMemory()
	}
	return false
}
