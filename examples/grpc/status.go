package main

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway"
	"google.golang.org/grpc/codes"
)

// statusErrors tells gRPC clients what went wrong in the gateway as they are used to: HTTP 200, a status code of
// gRPC's, and the trace id as its message. Without it they guess a code from the HTTP status.
var statusErrors = gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		gateway.WriteError(w, r, e)
		return
	}
	code, ok := map[int]codes.Code{
		http.StatusBadRequest:            codes.InvalidArgument,
		http.StatusUnauthorized:          codes.Unauthenticated,
		http.StatusForbidden:             codes.PermissionDenied,
		http.StatusNotFound:              codes.Unimplemented,
		http.StatusMethodNotAllowed:      codes.Unimplemented,
		http.StatusRequestEntityTooLarge: codes.ResourceExhausted,
		http.StatusTooManyRequests:       codes.ResourceExhausted,
		http.StatusBadGateway:            codes.Unavailable,
		http.StatusServiceUnavailable:    codes.Unavailable,
		http.StatusGatewayTimeout:        codes.DeadlineExceeded,
	}[e.Status]
	if !ok {
		code = codes.Unknown
	}
	if end, ok := r.Context().Deadline(); ok && !time.Now().Before(end) {
		code = codes.DeadlineExceeded // whoever noticed first; a server may just break the stream off
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(code)))
	h.Set("Grpc-Message", "refused by the gateway, trace "+gateway.TraceID(r.Context()))
	w.WriteHeader(http.StatusOK)
})

// deadlines ends a call when the client's patience does, also where the server does not.
func deadlines(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d := grpcTimeout(r.Header.Get("Grpc-Timeout")); d > 0 {
			gateway.Timeout(d)(next).ServeHTTP(w, r)
		} else {
			next.ServeHTTP(w, r)
		}
	})
}

// grpcTimeout reads up to eight digits and a unit; 0 means none that ends within a day.
func grpcTimeout(s string) time.Duration {
	if len(s) < 2 || len(s) > 9 {
		return 0
	}
	unit := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second,
		'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil || unit == 0 || n > uint64(24*time.Hour/unit) {
		return 0
	}
	return time.Duration(n) * unit
}
