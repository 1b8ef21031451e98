//go:build !plan9

package neterror

import (
	"errors"
	"syscall"
)

// LocalShortage reports whether err means that this machine has run out of a resource, such as file descriptors.
func LocalShortage(err error) bool {
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
