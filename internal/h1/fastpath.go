package h1

import (
	"errors"
	"io"
	"os"
)

// fastPath is a request and the first bytes of its response in one wait for the network.
//
// Seen from the kernel, an idle connection that is probed, written to and then read costs a read that finds
// nothing, the write, a second read that finds nothing, a wait, and the read. The first read is the check
// that nothing has arrived. The second is spared here: the runtime forgets what it has heard of the socket
// before the first, so whatever arrives after the check ends the wait.
type fastPath struct {
	fn                func(fd uintptr) bool // turnStep as a func value, made once
	request, response []byte
	stage             uint8
	written, read     int
	err               error
}

// Stages of a turn.
const (
	fastPathStart   = iota // nothing was done
	fastPathStale          // the idle connection has ended, or something had arrived
	fastPathWriting        // the request is written in part, or not at all
	fastPathSent           // the request is written
	fastPathRead           // the first bytes of the response are read, or err is why not
)

// probeWriteRead probes an idle connection, writes the request to it and reads the first bytes of the response. It
// returns how far it has come, and the caller goes on from there: n bytes were written in turnWriting, and
// read in turnRead.
func (w *wire) probeWriteRead(request, response []byte) (stage uint8, n int, err error) {
	if err := w.armRead(); err != nil {
		return fastPathStart, 0, err
	}
	w.fast = fastPath{fn: w.fast.fn, request: request, response: response}
	err = w.raw.Read(w.fast.fn)
	t := w.fast
	w.fast = fastPath{fn: w.fast.fn}
	if t.written > 0 {
		w.mu.Lock()
		w.written += int64(t.written)
		w.mu.Unlock()
	}
	if err == nil {
		err = t.err
	}
	switch {
	case err == nil && t.stage == fastPathWriting:
		return t.stage, t.written, nil
	case err == nil:
		return t.stage, t.read, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return t.stage, 0, w.deadlinePassed(err)
	case err == io.EOF:
		w.eof = true
	default:
		if failure := w.failureErr(); failure != nil {
			err = failure
		}
	}
	return t.stage, t.written, err
}

// fastPathStep is called with the socket, first at once and then whenever it may have something to read. It
// reports whether there is nothing more to wait for.
func (w *wire) fastPathStep(fd uintptr) bool {
	t := &w.fast
	if t.stage == fastPathStart {
		if _, err := readSocket(fd, t.response[:1]); err != errWouldBlock {
			t.stage = fastPathStale
			return true
		}
		t.stage = fastPathWriting
		if t.written, t.err = writeSocket(fd, t.request); t.written < len(t.request) {
			return true
		}
		t.stage = fastPathSent
		return false
	}
	n, err := readSocket(fd, t.response)
	if err == errWouldBlock {
		return false
	}
	t.stage, t.read, t.err = fastPathRead, n, err
	return true
}
