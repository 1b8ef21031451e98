//go:build unix

package h1

import "syscall"

const canProbe = true

// readNow reads from a socket that does not block.
func (w *wire) readNow(fd uintptr) {
	p := &w.probe
	for {
		p.n, p.err = syscall.Read(int(fd), p.buf)
		if p.err != syscall.EINTR {
			break
		}
	}
	if p.err == syscall.EAGAIN {
		p.err = wouldBlock
	}
	p.n = max(p.n, 0)
}
