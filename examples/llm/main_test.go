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
	for _, want := range []string{"alice asks once: 200", "40 streams at once: 10 are served", "given back: 200"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q", want)
		}
	}
}
