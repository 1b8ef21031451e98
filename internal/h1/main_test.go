package h1_test

import (
	"testing"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// TestMain fails if goroutines of this package or of its connections are left over.
func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }
