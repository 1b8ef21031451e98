package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// The gate checks every request before a transport gets it. It refuses a request that a transport could not
// send, with a status below 500, so that no target is blamed for it. net/http's server accepts some such
// requests: it does not check the names in Trailer and, over HTTP/2, the method.

// gate returns the request to send: r, or a copy of r without framing fields if it has any. It returns an
// error with a status below 500 if a transport of net/http would refuse r before it sends anything.
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

// malformedField returns the 400 for a field that isMalformed reports.
func malformedField(name string) error { return cannotSend(fmt.Sprintf("malformed field %q", name)) }

// unsendable returns the reason why a transport would refuse r, or "" if it would not. framed is true if the
// header has framing fields.
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

// isMalformed reports whether a field cannot be sent: its name is not a token, or a value has a control
// character other than a tab.
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
// from the request's ContentLength, Body and Trailer. Such fields in the header could contradict them.
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

// fieldBytes returns the size of a request's fields: names, values, and 4 bytes for each field, for the
// colon, the space and the line end of HTTP/1.1.
func fieldBytes(r *http.Request) int {
	size := len("Host") + len(r.Host) + 4
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value) + 4
		}
	}
	return size
}
