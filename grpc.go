package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// grpcStatus is the status of a gRPC call, which is sent in the trailers. 0 means OK, that the answer is not
// a gRPC response, or that its status has not arrived.
type grpcStatus int

// The statuses that are errors of a server, by OpenTelemetry's semantic conventions for gRPC.
const (
	grpcUnknown          grpcStatus = 2
	grpcDeadlineExceeded grpcStatus = 4
	grpcUnimplemented    grpcStatus = 12
	grpcInternal         grpcStatus = 13
	grpcUnavailable      grpcStatus = 14
	grpcDataLoss         grpcStatus = 15
)

// isGRPC reports whether h is of a gRPC request or response.
func isGRPC(h http.Header) bool {
	ct := h["Content-Type"]
	return len(ct) > 0 && strings.HasPrefix(ct[0], "application/grpc")
}

// grpcStatusIn returns the status in h, which are the trailers of a response, or its header where it has no
// message (Trailers-Only). prefix is put before the field name.
func grpcStatusIn(h http.Header, prefix string) grpcStatus {
	values := h[prefix+"Grpc-Status"]
	if len(values) == 0 {
		return 0
	}
	if n, err := strconv.ParseUint(values[0], 10, 8); err == nil && n <= 16 {
		return grpcStatus(n)
	}
	return grpcUnknown
}

// httpStatus returns the 5xx that corresponds to s, and 0 if s is not an error of the server.
func (s grpcStatus) httpStatus() int {
	switch s {
	case grpcUnavailable:
		return http.StatusServiceUnavailable
	case grpcDeadlineExceeded:
		return http.StatusGatewayTimeout
	case grpcUnimplemented:
		return http.StatusNotImplemented
	case grpcUnknown, grpcInternal, grpcDataLoss:
		return http.StatusInternalServerError
	}
	return 0
}

// err returns the cause for the log, and nil if s is not an error of the server.
func (s grpcStatus) err() error {
	if s.httpStatus() == 0 {
		return nil
	}
	return fmt.Errorf("%w: gRPC status %d", errGRPC, int(s))
}

var errGRPC = errors.New("gateway: the call failed")

// hasGRPCTimeout reports whether the client chose a deadline for its call.
func hasGRPCTimeout(r *http.Request) bool {
	return r != nil && len(r.Header["Grpc-Timeout"]) > 0
}
