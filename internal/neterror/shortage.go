//go:build !plan9

package neterror

import (
	"errors"
	"syscall"
)

// LocalShortage reports whether err means that this machine has run out of a resource, such as file
// descriptors.
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

// BacklogFull reports whether err, of a dial, means that a Unix socket has no room for another connection
// at this moment.
func BacklogFull(err error) bool { return errors.Is(err, syscall.EAGAIN) }
