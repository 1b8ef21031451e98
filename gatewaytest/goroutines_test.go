package gatewaytest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// waitFor signals running and then waits for end.
func waitFor(end, running chan bool) {
	running <- true
	<-end
}

// TestLeftBehind checks that a goroutine is reported until it ends. It uses a subtest, so that there is
// also a parent test that waits, which must not be reported.
func TestLeftBehind(t *testing.T) {
	t.Run("subtest", func(t *testing.T) {
		if left := gatewaytest.LeftBehind(time.Minute); left != "" { // goroutines of other tests may still be ending
			t.Fatalf("before it begins: %q", left)
		}
		end, running := make(chan bool), make(chan bool)
		go waitFor(end, running)
		<-running
		left := gatewaytest.LeftBehind(0)
		if !strings.Contains(left, "gatewaytest_test.waitFor") || strings.Count(left, "goroutine ") != 2 { // the goroutine's own line, and "created by"
			t.Errorf("got %q", left)
		}
		time.AfterFunc(10*time.Millisecond, func() { close(end) })
		if left := gatewaytest.LeftBehind(time.Minute); left != "" {
			t.Errorf("after it ended: %q", left)
		}
	})
}
