package gateway_test

import (
	"testing"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// TestMain fails when a goroutine of this package, or of a connection that it holds, is left behind.
func TestMain(m *testing.M) {
	gateway.ParseFlags()
	gatewaytest.CheckGoroutines(m)
}
