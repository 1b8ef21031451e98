package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestCheck is what -check does.
func TestCheck(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil && os.Getenv("GATEWAY_REQUIRE_REDIS") == "" {
		t.Skip(errNoRedis)
	}
	if err := check(t.Context(), t.Output()); err != nil {
		t.Fatal(err)
	}
}

// TestNoRedis: where there is none, the error says how to install it.
func TestNoRedis(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := check(t.Context(), t.Output()); err == nil || !strings.Contains(err.Error(), "apt-get install redis-server") {
		t.Errorf("%v", err)
	}
}
