// Package grpcmeta reads the status and the deadline of a gRPC call from its HTTP fields. The
// names and formats are those of gRPC's PROTOCOL-HTTP2.md.
package grpcmeta

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Is reports whether h is the header of a gRPC request or response.
func Is(h http.Header) bool {
	ct := h["Content-Type"]
	return len(ct) > 0 && strings.HasPrefix(ct[0], "application/grpc")
}

// Status is the status of a gRPC call. 0 means OK, that the answer is not a gRPC response, or that its status
// has not arrived.
type Status int

// The statuses that are errors of a server, by OpenTelemetry's semantic conventions for gRPC.
const (
	Unknown          Status = 2
	DeadlineExceeded Status = 4
	Unimplemented    Status = 12
	Internal         Status = 13
	Unavailable      Status = 14
	DataLoss         Status = 15
)

const lastStatus = 16 // UNAUTHENTICATED

// StatusIn returns the status in h. h holds the trailers of a response, or its header when the response has
// no message (Trailers-Only). prefix is put before the field name. A status that is not a number, or that is
// not a known one, is Unknown.
func StatusIn(h http.Header, prefix string) Status {
	values := h[prefix+"Grpc-Status"]
	if len(values) == 0 {
		return 0
	}
	if n, err := strconv.ParseUint(values[0], 10, 8); err == nil && n <= lastStatus {
		return Status(n)
	}
	return Unknown
}

// HTTPStatus returns the 5xx that corresponds to s, or 0 if s is not an error of the server.
func (s Status) HTTPStatus() int {
	switch s {
	case Unavailable:
		return http.StatusServiceUnavailable
	case DeadlineExceeded:
		return http.StatusGatewayTimeout
	case Unimplemented:
		return http.StatusNotImplemented
	case Unknown, Internal, DataLoss:
		return http.StatusInternalServerError
	}
	return 0
}

var errFailed = errors.New("gateway: the call failed")

// Err returns the cause for the log, or nil if s is not an error of the server.
func (s Status) Err() error {
	if s.HTTPStatus() == 0 {
		return nil
	}
	return fmt.Errorf("%w: gRPC status %d", errFailed, int(s))
}

// HasTimeout reports whether the client set a deadline for its call, readable or not.
func HasTimeout(h http.Header) bool { return len(h["Grpc-Timeout"]) > 0 }

// Timeout returns the deadline of a gRPC call (field grpc-timeout), counted from the beginning of the call.
// It returns 0 if h is not the header of a gRPC call, or has no valid deadline. For a deadline of 0, which
// has already passed, it returns 1ns. For one that exceeds a time.Duration, it returns the longest
// Duration.
func Timeout(h http.Header) time.Duration {
	if !HasTimeout(h) || !Is(h) {
		return 0
	}
	v := h["Grpc-Timeout"][0]
	last := len(v) - 1
	if last < 1 || last > 8 { // TimeoutValue: at most 8 digits
		return 0
	}
	for _, c := range v[:last] {
		if c < '0' || c > '9' {
			return 0
		}
	}
	unit := timeoutUnit(v[last])
	if unit == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(v[:last], 10, 64)
	if n > int64(math.MaxInt64/unit) {
		return math.MaxInt64
	}
	return max(1, time.Duration(n)*unit)
}

func timeoutUnit(c byte) time.Duration {
	switch c {
	case 'H':
		return time.Hour
	case 'M':
		return time.Minute
	case 'S':
		return time.Second
	case 'm':
		return time.Millisecond
	case 'u':
		return time.Microsecond
	case 'n':
		return time.Nanosecond
	}
	return 0
}
