//go:build !linux

// E2e measures what a proxied request costs, end to end. It reads processor time from /proc and pins processes to
// processors, so it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "e2e: needs Linux")
	os.Exit(1)
}
