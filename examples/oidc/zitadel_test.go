package main

import (
	"log/slog"
	"strings"
	"testing"
)

// TestForeignProvider logs in at a provider that is not ours, and tries everything that it issues.
func TestForeignProvider(t *testing.T) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the provider writes a line for each request
	var out strings.Builder
	if err := runForeign(t.Context(), &out); err != nil {
		t.Error(err)
	}
	t.Log("\n" + out.String())
	if n := strings.Count(out.String(), "as it must be"); n != 17 {
		t.Errorf("%d answers", n)
	}
}
