package grpcmeta_test

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
)

func TestTimeout(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"":           0,
		"1S":         time.Second,
		"250m":       250 * time.Millisecond,
		"7u":         7 * time.Microsecond,
		"99999999n":  99_999_999,
		"2M":         2 * time.Minute,
		"3H":         3 * time.Hour,
		"99999999H":  math.MaxInt64,
		"0n":         1, // has passed
		"S":          0,
		"1":          0,
		"1s":         0,
		"-1S":        0,
		"+1S":        0,
		" 1S":        0,
		"1.5S":       0,
		"123456789S": 0, // more than 8 digits
	} {
		h := http.Header{"Content-Type": {"application/grpc+proto"}, "Grpc-Timeout": {value}}
		if got := grpcmeta.Timeout(h); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
		h.Set("Content-Type", "application/json")
		if got := grpcmeta.Timeout(h); got != 0 {
			t.Errorf("%q not of gRPC: %v", value, got)
		}
	}
}

func TestStatus(t *testing.T) {
	for value, want := range map[string]struct {
		status grpcmeta.Status
		http   int
	}{
		"0":   {0, 0},
		"1":   {1, 0},
		"2":   {grpcmeta.Unknown, 500},
		"4":   {grpcmeta.DeadlineExceeded, 504},
		"5":   {5, 0},
		"12":  {grpcmeta.Unimplemented, 501},
		"13":  {grpcmeta.Internal, 500},
		"14":  {grpcmeta.Unavailable, 503},
		"15":  {grpcmeta.DataLoss, 500},
		"16":  {16, 0},
		"17":  {grpcmeta.Unknown, 500},
		"-1":  {grpcmeta.Unknown, 500},
		"":    {grpcmeta.Unknown, 500},
		"two": {grpcmeta.Unknown, 500},
	} {
		h := http.Header{"Grpc-Status": {value}, http.TrailerPrefix + "Grpc-Status": {"0"}}
		got := grpcmeta.StatusIn(h, "")
		if got != want.status || got.HTTPStatus() != want.http || (got.Err() != nil) != (want.http != 0) {
			t.Errorf("%q: %d, %d, %v", value, got, got.HTTPStatus(), got.Err())
		}
		if got := grpcmeta.StatusIn(h, http.TrailerPrefix); got != 0 {
			t.Errorf("with the prefix: %d", got)
		}
	}
	if got := grpcmeta.StatusIn(nil, ""); got != 0 {
		t.Errorf("absent: %d", got)
	}
}
