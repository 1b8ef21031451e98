package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/h1"
	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// The gate checks every request before a transport gets it. It refuses a request that a transport could not
// send, as an error of the client, so that it does not count as a failure of a target. net/http's server
// accepts some such requests: over HTTP/2 it does not check the method, and in no version does it check the
// names in Trailer.

// gate returns r as it may be sent. It returns an error with a status below 500 if a transport of net/http would
// refuse r before it sends anything. r itself is not changed: without its framing fields, the request is a copy.
func gate(r *http.Request) (*http.Request, error) {
	reason, framed := unsendable(r)
	if reason != "" {
		return nil, cannotSend(reason)
	}
	if framed {
		return withoutFraming(r), nil
	}
	return r, nil
}

// cannotSend returns the 400 for a request that no transport would send.
func cannotSend(reason string) error {
	return &Error{Status: http.StatusBadRequest, Err: errors.New("gateway: the request cannot be sent: " + reason)}
}

// unsendable returns what is wrong with r, and "" when a transport accepts it. framed is whether the header has
// framing fields.
func unsendable(r *http.Request) (reason string, framed bool) {
	switch {
	case r.Method != "" && !httpfield.IsToken(r.Method):
		return fmt.Sprintf("malformed method %q", r.Method), false
	case r.URL == nil:
		return "no URL", false
	case r.Header == nil:
		return "no header", false
	case !httpfield.IsHost(r.Host):
		return "malformed Host", false
	case r.ContentLength != 0 && r.Body == nil:
		return "a ContentLength without a Body", false
	}
	for name, values := range r.Header {
		if isMalformed(name, values) {
			return fmt.Sprintf("malformed field %q", name), false
		}
		framed = framed || isFraming(name)
	}
	for name, values := range r.Trailer {
		switch {
		case isFraming(name):
			return fmt.Sprintf("trailer %q", name), false
		case isMalformed(name, values):
			return fmt.Sprintf("malformed trailer %q", name), false
		}
	}
	return "", framed
}

// isMalformed reports whether a field cannot be sent: its name is no token, or a value has a control character other
// than a tab.
func isMalformed(name string, values []string) bool {
	if !httpfield.IsToken(name) {
		return true
	}
	for _, value := range values {
		if httpfield.HasControl(value) {
			return true
		}
	}
	return false
}

// isFraming reports whether a field determines where a message ends. A transport writes these fields itself,
// from the request's ContentLength, Body and Trailer. Values in the header could contradict them.
func isFraming(name string) bool {
	switch len(name) {
	case len("Trailer"):
		return strings.EqualFold(name, "Trailer")
	case len("Content-Length"):
		return strings.EqualFold(name, "Content-Length")
	case len("Transfer-Encoding"):
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

// withoutFraming returns a copy of r without framing fields in its header.
func withoutFraming(r *http.Request) *http.Request {
	out := *r
	out.Header = make(http.Header, len(r.Header))
	for name, values := range r.Header {
		if !isFraming(name) {
			out.Header[name] = values
		}
	}
	return &out
}

// fieldBytes returns the size of a request's fields: names and values, and 4 bytes for each field, which are the colon,
// the blank and the line end of HTTP/1.1.
func fieldBytes(r *http.Request) int {
	size := len("Host") + len(r.Host) + 4
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value) + 4
		}
	}
	return size
}

// refusedLocally returns the status for an error with which a transport of net/http refused to send a
// request, and 0 for any other error. The gate refuses such requests first, except for two cases that depend
// on the connection: the target's limit for fields, and Upgrade, which HTTP/2 does not have. net/http has no
// error values for these, so they are recognized by their text. internal/h1 has.
func refusedLocally(err error) int {
	if errors.Is(err, h1.ErrInvalidRequest) {
		return http.StatusBadRequest
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		// An HTTP/2 connection puts its name before the error that it wraps.
		err = inner
	}
	text := strings.TrimPrefix(err.Error(), "http2: ")
	if strings.HasPrefix(text, "request header list larger than") {
		return http.StatusRequestHeaderFieldsTooLarge
	}
	for _, prefix := range refusals {
		if strings.HasPrefix(text, prefix) {
			return http.StatusBadRequest
		}
	}
	return 0
}

// refusals are the beginnings of those errors of net/http that are about the request alone.
var refusals = [...]string{
	"invalid Upgrade request header", "invalid Connection request header", "invalid Transfer-Encoding request header",
	"invalid Host header", "http: invalid Host header", "invalid request :path", "invalid HTTP header ",
	"invalid HTTP trailer ", "invalid Trailer key", "request body larger than specified content length",
	"http: ContentLength=", "http: Request.ContentLength=", "net/http: invalid header ", "net/http: invalid trailer ",
	"net/http: invalid method ", "net/http: can't write control character in Request.URL",
	"http: nil Request", "http: no Host in request URL",
}

// surelySent is the size of fields that every common server accepts. Some accept no more than this.
const surelySent = 8 << 10

// mayBeTooLarge reports whether r may have failed with err because its fields are too large for the target. A
// server that cannot answer 431 closes the connection. A server with HTTP/2 announces its limit, but the
// first request may be sent before that arrives: the server then closes the connection as malformed, and
// net/http retries until the time is over. So the failure of a large request is not a failure of the target,
// unless nothing was sent.
func mayBeTooLarge(r *http.Request, err error) bool {
	if r.URL == nil || fieldBytes(r)+len(r.URL.Path)+len(r.URL.RawQuery) <= surelySent || neverSent(err) {
		return false
	}
	switch cause := context.Cause(r.Context()); {
	case cause == nil:
		return true
	case errors.Is(cause, ErrTimeout):
		return r.URL.Scheme != "http" // HTTP/1.1 is not tried again
	}
	return false
}
