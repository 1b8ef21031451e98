package main

import (
	"testing"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestCheck is what -check does.
func TestCheck(t *testing.T) {
	if err := check(t.Context(), t.Output()); err != nil {
		t.Fatal(err)
	}
}
