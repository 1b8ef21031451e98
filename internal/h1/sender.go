package h1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"time"
)

const (
	// bodyEndGrace is how long the end of a response waits for the end of its request's body, so that the
	// connection can be used again: a target may answer before the sender has been scheduled once more.
	bodyEndGrace = 50 * time.Millisecond

	// writeErrorGrace is how long a target may take to answer after its side has stopped taking the request. The
	// answer is usually there already.
	writeErrorGrace = 250 * time.Millisecond
)

// sender writes a request's body while the caller reads the response. It ends with the body or the
// connection, but not before a Read of the body that is in progress returns.
type sender struct {
	wire          *wire
	w             io.Writer
	body          io.ReadCloser
	length        int64 // -1 means chunked
	trailer       http.Header
	headerTimeout time.Duration
	hooks         *Hooks
	arg           any

	continueGate

	done chan struct{}
	err  error // of the body or the connection, valid after done
}

// continueGate is what a body waits for where the request asks for 100 Continue.
type continueGate struct {
	decision chan bool // whether to send the body; nil if it does not wait
	once     sync.Once
	timeout  time.Duration
}

// allowBody lets a body go that waits for 100 Continue.
func (p *continueGate) allowBody() {
	if p.decision != nil {
		p.once.Do(func() { p.decision <- true })
	}
}

// withholdBody keeps back a body that still waits for 100 Continue, and reports whether it did.
func (p *continueGate) withholdBody() bool {
	kept := false
	if p.decision != nil {
		p.once.Do(func() { kept = true; p.decision <- false })
	}
	return kept
}

// finished reports whether the whole body has been sent, now or in a moment.
func (s *sender) finished() bool {
	select {
	case <-s.done:
		return s.err == nil
	default:
	}
	if s.withholdBody() {
		return false
	}
	timer := time.NewTimer(bodyEndGrace)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.err == nil
	case <-timer.C:
		return false
	}
}

// errBodyWithheld is the error of a sender whose body was kept back.
var errBodyWithheld = errors.New("h1: the body was not asked for")

// run is the goroutine.
func (s *sender) run() {
	defer close(s.done)
	defer s.body.Close()
	if s.decision != nil && !s.awaitContinue() {
		s.err = errBodyWithheld
		return
	}
	bodyErr, err := s.stream()
	s.err = bodyErr
	if err != nil {
		s.err = err
	}
	switch {
	case bodyErr != nil:
		s.wire.fail(bodyErr) // there is nothing to wait for
	case err != nil:
		s.wire.limitHeader(writeErrorGrace, err)
	case s.headerTimeout > 0:
		s.wire.limitHeader(s.headerTimeout, ErrResponseHeaderTimeout)
	}
	if s.hooks.WroteRequest != nil {
		s.hooks.WroteRequest(s.arg, httptrace.WroteRequestInfo{Err: s.err})
	}
}

// awaitContinue waits for 100 Continue, or until patience ends.
func (s *sender) awaitContinue() bool {
	if s.hooks.Wait100Continue != nil {
		s.hooks.Wait100Continue(s.arg)
	}
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case send := <-s.decision:
		return send
	case <-timer.C:
		s.allowBody()
		return <-s.decision
	}
}

// Room around the data of a chunk, for its size and for the end of its line.
const (
	chunkHeadRoom = 18
	chunkTailRoom = 2
)

// stream copies the body. It keeps apart errors of the body and of the connection.
func (s *sender) stream() (bodyErr, err error) {
	buf := getBuffer()
	defer buf.release()
	left, empty := s.length, 0
	for {
		space := buf.b[chunkHeadRoom : len(buf.b)-chunkTailRoom]
		if s.length >= 0 && left < int64(len(space)) {
			space = space[:left+1] // one more shows a body that is too long
		}
		n, readErr := s.body.Read(space)
		if s.length >= 0 && int64(n) > left {
			return fmt.Errorf("%w: %w: longer than Content-Length %d", ErrRequestBody, ErrInvalidRequest, s.length), nil
		}
		if n > 0 {
			empty = 0
			data := space[:n]
			if s.length >= 0 {
				left -= int64(n)
			} else {
				data = frameChunk(buf.b, n)
			}
			if _, err := s.w.Write(data); err != nil {
				return nil, err
			}
		} else if empty++; empty == 100 && readErr == nil {
			readErr = io.ErrNoProgress
		}
		switch {
		case readErr == nil:
		case readErr != io.EOF:
			return fmt.Errorf("%w: %w", ErrRequestBody, readErr), nil
		case left > 0 && s.length >= 0:
			return fmt.Errorf("%w: %w: %w: %d bytes of Content-Length %d are missing", ErrRequestBody, ErrInvalidRequest, io.ErrUnexpectedEOF, left, s.length), nil
		case s.length >= 0:
			return nil, nil
		default:
			return s.lastChunk(buf.b[:0])
		}
	}
}

// frameChunk makes a chunk of the n bytes at b[chunkHead:] and returns it.
func frameChunk(b []byte, n int) []byte {
	var size [16]byte
	digits := strconv.AppendInt(size[:0], int64(n), 16)
	start := chunkHeadRoom - 2 - len(digits)
	copy(b[start:], digits)
	copy(b[chunkHeadRoom-2:], "\r\n")
	copy(b[chunkHeadRoom+n:], "\r\n")
	return b[start : chunkHeadRoom+n+2]
}

// lastChunk ends a chunked body. The trailers may have got their values while the body was read.
func (s *sender) lastChunk(b []byte) (bodyErr, err error) {
	b = append(b, "0\r\n"...)
	b, bodyErr = appendTrailer(b, s.trailer)
	if bodyErr != nil {
		return bodyErr, nil
	}
	b = append(b, "\r\n"...)
	_, err = s.w.Write(b)
	return nil, err
}
