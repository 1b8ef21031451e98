package gatewaytest

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// CheckGoroutines runs the tests of a package and exits. It fails the package when its tests pass but leave
// goroutines behind, for example for a body that was not closed or a connection that is still open.
// Call it in TestMain:
//
//	func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }
//
// It waits up to 30 seconds for goroutines that are about to end. If TestMain has to do something after the
// tests, use LeftBehind instead.
func CheckGoroutines(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := LeftBehind(30 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// LeftBehind returns the stacks of all goroutines other than its caller's, or "" as soon as there are none.
// It waits for their end for at most wait. The goroutines of packages testing and os/signal are ignored.
// LeftBehind closes the idle connections of http.DefaultTransport.
func LeftBehind(wait time.Duration) string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		left := otherGoroutines()
		if left == "" {
			return ""
		}
		select {
		case <-tick.C:
		case <-timeout.C:
			return left
		}
	}
}

// otherGoroutines returns the stacks of the goroutines that LeftBehind reports.
func otherGoroutines() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	_, others, _ := strings.Cut(string(buf), "\n\n") // the first is the caller's
	var left []string
	for stack := range strings.SplitSeq(others, "\n\n") {
		_, frames, _ := strings.Cut(stack, "\n")
		switch {
		case stack == "",
			strings.HasPrefix(frames, "testing.tRunner"), // a test that has returned
			strings.Contains(stack, "testing.(*M)"),
			strings.Contains(stack, "testing.(*T).Run("), // a test that waits for its subtest
			strings.Contains(stack, "os/signal."),
			strings.Contains(stack, "runtime.ensureSigM"):
		default:
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}
