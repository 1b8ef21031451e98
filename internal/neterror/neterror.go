// Package neterror classifies the errors of HTTP transports: those of net/http and of internal/h1. A function
// reports what happened to a request, for example that no byte of it was sent. The caller decides what that
// means for a target or for a client.
//
// net/http has no error values for many of these conditions. They are recognized by their texts, which tests
// compare with those of the Go version in use.
package neterror

import (
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/h1"
)

// Unsent reports whether err occurred before a byte of the request was sent: no connection could be made.
func Unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// Refusal returns the HTTP status for an error with which a transport refused to send a request: 400, or 431
// if the fields are larger than an HTTP/2 target allows. It returns 0 for any other error.
func Refusal(err error) int {
	if errors.Is(err, h1.ErrInvalidRequest) {
		return http.StatusBadRequest
	}
	text := innermost(err)
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

// EnhanceYourCalm reports whether an HTTP/2 target ended a connection or a stream with ENHANCE_YOUR_CALM (RFC
// 9113 section 7): it got too many requests, resets or pings. All requests of the connection fail then.
func EnhanceYourCalm(err error) bool {
	text := innermost(err)
	return strings.HasPrefix(text, "server sent GOAWAY") && strings.Contains(text, "ErrCode=ENHANCE_YOUR_CALM") ||
		strings.HasPrefix(text, "stream error: ") && strings.Contains(text, "; ENHANCE_YOUR_CALM")
}

// TooManyPings reports whether an HTTP/2 target ended a connection because of its pings: GOAWAY with ENHANCE_YOUR_CALM
// and the debug data "too_many_pings", as gRPC's servers send it (gRPC's proposal A8).
func TooManyPings(err error) bool {
	return EnhanceYourCalm(err) && strings.Contains(innermost(err), `debug="too_many_pings"`)
}

// innermost returns the text of the innermost error that err wraps, without the prefix "http2: ". An HTTP/2
// connection of net/http wraps the error and puts its own name before it.
func innermost(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return strings.TrimPrefix(err.Error(), "http2: ")
		}
		err = inner
	}
}
