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
	// bodyEndGrace is how long a complete response waits for the sender of its request's body. The connection
	// can be reused only if the sender has finished. A fast target may answer before the sender's goroutine
	// runs again after its last write.
	bodyEndGrace = 50 * time.Millisecond

	// writeErrorGrace is how long a response is awaited after writing the request has failed. Usually it has
	// already arrived: a target that refuses a large body answers and closes the connection.
	writeErrorGrace = 250 * time.Millisecond
)

// sender writes a request's body while the caller reads the response. Its goroutine ends when the body or the
// connection ends, or later, when a Read of the body that is in progress returns.
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
	err  error // of the body or the connection; may be read after done is closed
}

// continueGate holds a body back until 100 Continue arrives, if the request expects it. The first decision
// counts: to send the body or to withhold it.
type continueGate struct {
	decision chan bool // true sends the body; nil if the request does not expect 100 Continue
	once     sync.Once
	timeout  time.Duration // after which the body is sent all the same
}

// allowBody lets the sender send a body that it still holds back.
func (g *continueGate) allowBody() {
	if g.decision != nil {
		g.once.Do(func() { g.decision <- true })
	}
}

// withholdBody makes the sender not send a body that it still holds back. It reports whether it did so.
func (g *continueGate) withholdBody() bool {
	withheld := false
	if g.decision != nil {
		g.once.Do(func() { withheld = true; g.decision <- false })
	}
	return withheld
}

// finished reports whether the whole body has been sent. It waits up to bodyEndGrace for that.
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

// errBodyWithheld is the error of a sender whose body was withheld.
var errBodyWithheld = errors.New("h1: request body withheld: no 100 Continue")

// run is the sender's goroutine.
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
		s.wire.fail(bodyErr) // the request is incomplete, so no response to it can follow
	case err != nil:
		s.wire.limitHeader(writeErrorGrace, err)
	case s.headerTimeout > 0:
		s.wire.limitHeader(s.headerTimeout, ErrResponseHeaderTimeout)
	}
	if s.hooks.WroteRequest != nil {
		s.hooks.WroteRequest(s.arg, httptrace.WroteRequestInfo{Err: s.err})
	}
}

// awaitContinue waits for the decision, or decides to send the body when the timeout has passed. It reports
// whether to send the body.
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

// Space kept around the data of a chunk, for the line with its size and for the CRLF after it.
const (
	chunkHeadRoom = 18
	chunkTailRoom = 2
)

// stream copies the body to the connection. bodyErr is an error of the body, err one of the connection.
func (s *sender) stream() (bodyErr, err error) {
	buf := getBuffer()
	defer buf.release()
	left, empty := s.length, 0
	for {
		space := buf.b[chunkHeadRoom : len(buf.b)-chunkTailRoom]
		if s.length >= 0 && left < int64(len(space)) {
			space = space[:left+1] // one byte more detects a body that is too long
		}
		n, readErr := s.body.Read(space)
		if s.length >= 0 && int64(n) > left {
			return bodyTooLong(s.length), nil
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
			return bodyTooShort(left, s.length), nil
		case s.length >= 0:
			return nil, nil
		default:
			return s.lastChunk(buf.b[:0])
		}
	}
}

// bodyTooLong is the error for a body that is longer than its Content-Length.
func bodyTooLong(length int64) error {
	return fmt.Errorf("%w: %w: longer than Content-Length %d", ErrRequestBody, ErrInvalidRequest, length)
}

// bodyTooShort is the error for a body that ended before its Content-Length.
func bodyTooShort(missing, length int64) error {
	return fmt.Errorf("%w: %w: %w: %d bytes of Content-Length %d are missing",
		ErrRequestBody, ErrInvalidRequest, io.ErrUnexpectedEOF, missing, length)
}

// frameChunk turns the n bytes at b[chunkHeadRoom:] into a chunk. It returns the part of b that holds it.
func frameChunk(b []byte, n int) []byte {
	var size [16]byte
	digits := strconv.AppendInt(size[:0], int64(n), 16)
	start := chunkHeadRoom - 2 - len(digits)
	copy(b[start:], digits)
	copy(b[chunkHeadRoom-2:], "\r\n")
	copy(b[chunkHeadRoom+n:], "\r\n")
	return b[start : chunkHeadRoom+n+2]
}

// lastChunk writes the end of a chunked body and its trailers. It runs after the body's last Read, since the
// values of the trailers may be set until then.
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
