package h1

import (
	"errors"
	"io"
	"os"
)

// turn is a request and the first bytes of its response in one wait for the network.
//
// Seen from the kernel, an idle connection that is probed, written to and then read costs a read that finds
// nothing, the write, a second read that finds nothing, a wait, and the read. The first read is the check
// that nothing has arrived. The second is spared here: the runtime forgets what it has heard of the socket
// before the first, so whatever arrives after the check ends the wait.
type turn struct {
	fn                func(fd uintptr) bool // turnStep as a func value, made once
	request, response []byte
	stage             uint8
	written, read     int
	err               error
}

// Stages of a turn.
const (
	turnStart   = iota // nothing was done
	turnDead           // the idle connection has ended, or something had arrived
	turnWriting        // the request is written in part, or not at all
	turnWaiting        // the request is written
	turnRead           // the first bytes of the response are read, or err is why not
)

// take probes an idle connection, writes the request to it and reads the first bytes of the response. It
// returns how far it has come, and the caller goes on from there: n bytes were written in turnWriting, and
// read in turnRead.
func (w *wire) take(request, response []byte) (stage uint8, n int, err error) {
	if err := w.armRead(); err != nil {
		return turnStart, 0, err
	}
	w.turn = turn{fn: w.turn.fn, request: request, response: response}
	err = w.raw.Read(w.turn.fn)
	t := w.turn
	w.turn = turn{fn: w.turn.fn}
	if t.written > 0 {
		w.mu.Lock()
		w.written += int64(t.written)
		w.mu.Unlock()
	}
	if err == nil {
		err = t.err
	}
	switch {
	case err == nil && t.stage == turnWriting:
		return t.stage, t.written, nil
	case err == nil:
		return t.stage, t.read, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return t.stage, 0, w.stalled(err)
	case err == io.EOF:
		w.eof = true
	default:
		if failure := w.failed(); failure != nil {
			err = failure
		}
	}
	return t.stage, t.written, err
}

// turnStep is called with the socket, first at once and then whenever it may have something to read. It
// reports whether there is nothing more to wait for.
func (w *wire) turnStep(fd uintptr) bool {
	t := &w.turn
	if t.stage == turnStart {
		if _, err := readSocket(fd, t.response[:1]); err != wouldBlock {
			t.stage = turnDead
			return true
		}
		t.stage = turnWriting
		if t.written, t.err = writeSocket(fd, t.request); t.written < len(t.request) {
			return true
		}
		t.stage = turnWaiting
		return false
	}
	n, err := readSocket(fd, t.response)
	if err == wouldBlock {
		return false
	}
	t.stage, t.read, t.err = turnRead, n, err
	return true
}
