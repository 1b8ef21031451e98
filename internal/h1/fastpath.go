package h1

import (
	"errors"
	"io"
	"os"
)

// fastPath is the state of probeWriteRead. It saves one system call for each request on an idle connection.
//
// A probe, a write and a read make these system calls: a read that finds nothing (the probe), a write, a read
// that finds nothing again, and, after the runtime has waited for data, a read that returns the response. The
// fast path omits the second read. That is safe because the runtime resets the socket's readiness before the
// probe: data that arrives after the probe ends the wait.
type fastPath struct {
	fn       func(fd uintptr) bool // fastPathStep as a func value, made once
	request  []byte
	response *buffer // nil until the socket is readable: a wait needs no buffer
	probed   [1]byte
	stage    uint8
	written  int // bytes
	read     int // bytes
	err      error
}

// Stages of the fast path. Its functions return the last one that was reached.
const (
	fastPathStart   = iota // nothing was done
	fastPathStale          // the probe found data, or the end of the connection
	fastPathWriting        // the request was not written in full
	fastPathSent           // the request was written
	fastPathRead           // the first bytes of the response were read, or reading failed
)

// probeWriteRead probes an idle connection, writes the request to it and reads the first bytes of the
// response. It may stop early: the caller continues from the stage that it returns. n is the number of bytes
// that were written if the stage is fastPathWriting, and that were read if it is fastPathRead. response has
// what was read, or is nil.
func (w *wire) probeWriteRead(request []byte) (stage uint8, n int, response *buffer, err error) {
	if err := w.armRead(); err != nil {
		return fastPathStart, 0, nil, err
	}
	w.fast = fastPath{fn: w.fast.fn, request: request}
	err = w.raw.Read(w.fast.fn)
	f := w.fast
	w.fast = fastPath{fn: w.fast.fn}
	if f.written > 0 {
		w.mu.Lock()
		w.written += int64(f.written)
		w.mu.Unlock()
	}
	if err == nil {
		err = f.err
	}
	switch {
	case err == nil && f.stage == fastPathWriting:
		return f.stage, f.written, f.response, nil
	case err == nil:
		return f.stage, f.read, f.response, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return f.stage, 0, f.response, w.deadlinePassed(err)
	case err == io.EOF:
		w.eof = true
	default:
		if failure := w.failureErr(); failure != nil {
			err = failure
		}
	}
	return f.stage, f.written, f.response, err
}

// fastPathStep is the function that RawConn.Read calls: once at once, and again each time the socket becomes
// readable. It reports whether the wait is over.
func (w *wire) fastPathStep(fd uintptr) bool {
	f := &w.fast
	if f.stage == fastPathStart {
		if _, err := readSocket(fd, f.probed[:]); err != errWouldBlock {
			f.stage = fastPathStale
			return true
		}
		f.stage = fastPathWriting
		if f.written, f.err = writeSocket(fd, f.request); f.written < len(f.request) {
			return true
		}
		f.stage = fastPathSent
		return false
	}
	if f.response == nil {
		f.response = getBuffer()
	}
	n, err := readSocket(fd, f.response.b)
	if err == errWouldBlock {
		f.response.release()
		f.response = nil
		return false
	}
	f.stage, f.read, f.err = fastPathRead, n, err
	return true
}
