//go:build !plan9

package gateway

import (
	"errors"
	"syscall"
)

// isShortOfResources reports whether err means that this machine has run out of a resource, such as file
// descriptors. Many clients together can cause this. It is not a failure of the target.
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
