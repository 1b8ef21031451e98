package main

import (
	"log/slog"
	"strings"
	"testing"

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
	if !strings.HasSuffix(out.String(), "nothing is left open.\n") {
		t.Error("it did not come to its end")
	}
}
