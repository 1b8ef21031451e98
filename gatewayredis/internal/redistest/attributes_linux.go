package redistest

import "syscall"

// attributes let the server end with the test's process, also when that dies.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
