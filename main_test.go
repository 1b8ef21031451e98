package gateway_test

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when a goroutine of this package, or of a connection that it holds, is left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leftBehind(); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftBehind waits a while for goroutines to end and returns the stacks of those that do not.
func leftBehind() string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	deadline := time.Now().Add(5 * time.Second)
	for {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for stack := range strings.SplitSeq(string(buf), "\n\n") {
			switch {
			case strings.Contains(stack, "gateway_test.leftBehind"), // this one
				strings.Contains(stack, "testing.(*M)"),
				strings.Contains(stack, "os/signal."),
				strings.Contains(stack, "runtime.ensureSigM"):
			default:
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
		runtime.Gosched()
	}
}

// deadline is for what ought to happen at once.
func deadline() time.Time { return time.Now().Add(10 * time.Second) }
