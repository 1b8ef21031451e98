//go:build !plan9

package neterror

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestLocalShortage(t *testing.T) {
	socket := func(e syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", e)}
	}
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"no file descriptor of the process", socket(syscall.EMFILE), true},
		{"no file descriptor of the machine", socket(syscall.ENFILE), true},
		{"no buffer", fmt.Errorf("write: %w", syscall.ENOBUFS), true},
		{"no memory", syscall.ENOMEM, true},
		{"refused", socket(syscall.ECONNREFUSED), false},
		{"another error", errors.New("too many open files"), false},
	} {
		if got := LocalShortage(test.err); got != test.want {
			t.Errorf("%s: LocalShortage = %v, want %v", test.name, got, test.want)
		}
	}
}

func TestBacklogFull(t *testing.T) {
	dial := func(e syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", e)}
	}
	if !BacklogFull(dial(syscall.EAGAIN)) || BacklogFull(dial(syscall.ECONNREFUSED)) || BacklogFull(errors.New("again")) {
		t.Error("BacklogFull is not about EAGAIN alone")
	}
}
