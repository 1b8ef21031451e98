package gateway_test

import (
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// TestMain fails when a goroutine of this package, or of a connection that it holds, is left behind.
func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// deadline is for what ought to happen at once.
func deadline() time.Time { return time.Now().Add(10 * time.Second) }
