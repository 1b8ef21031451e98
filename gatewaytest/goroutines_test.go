package gatewaytest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// waitFor receives from end, after it has reported that it runs.
func waitFor(end, running chan bool) {
	running <- true
	<-end
}

// TestLeftBehind has a goroutine that is left behind and ends later. It runs in a subtest, whose parent waits.
func TestLeftBehind(t *testing.T) {
	t.Run("subtest", func(t *testing.T) {
		if left := gatewaytest.LeftBehind(time.Minute); left != "" { // of other tests, that are about to end
			t.Fatalf("before it begins: %q", left)
		}
		end, running := make(chan bool), make(chan bool)
		go waitFor(end, running)
		<-running
		left := gatewaytest.LeftBehind(0)
		if !strings.Contains(left, "gatewaytest_test.waitFor") || strings.Count(left, "goroutine ") != 2 { // its own line, and who created it
			t.Errorf("got %q", left)
		}
		time.AfterFunc(10*time.Millisecond, func() { close(end) })
		if left := gatewaytest.LeftBehind(time.Minute); left != "" {
			t.Errorf("after it ended: %q", left)
		}
	})
}
