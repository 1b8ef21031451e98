package main

import (
	"strings"
	"testing"
	"testing/synctest"
)

// TestRun draws the chart in no time, on the clock of a bubble.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		if err := run(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		t.Log("\n" + out.String())
		for _, want := range []string{
			"token bucket   |         +1         1111",
			"fixed window   |         ++",
			"sliding window |         + ",
			"leaky bucket   |         11111111111",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("want %q", want)
			}
		}
	})
}
