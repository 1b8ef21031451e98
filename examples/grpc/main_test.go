package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestRun is what main does.
func TestRun(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), &out, slog.New(slog.DiscardHandler))
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.String(), "drained and stopped.\n") {
		t.Error("it did not come to its end")
	}
}

func TestGRPCTimeout(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"": 0, "1": 0, "S": 0, "5S": 5 * time.Second, "250m": 250 * time.Millisecond, "99999999n": 99999999,
		"24H": 24 * time.Hour, "25H": 0, "99999999H": 0, "999999999n": 0, "-1S": 0, "1x": 0, "0S": 0,
	} {
		if got := grpcTimeout(in); got != want {
			t.Errorf("%q: %v instead of %v", in, got, want)
		}
	}
}
