//go:build !plan9

package gateway

import (
	"errors"
	"syscall"
)

// isShortOfResources reports whether err is for want of something in this machine, such as file descriptors. Many
// clients together can use those up. No target is to blame.
func isShortOfResources(err error) bool {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return false
	}
	switch e {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}
