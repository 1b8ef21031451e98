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
	// sendGrace is how long the end of a response waits for the end of its request's body, so that the
	// connection can be used again: a target may answer before the sender has been scheduled once more.
	sendGrace = 50 * time.Millisecond

	// lateAnswer is how long a target may take to answer after its side has stopped taking the request. The
	// answer is usually there already.
	lateAnswer = 250 * time.Millisecond
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

	permission

	done chan struct{}
	err  error // of the body or the connection, valid after done
}

// permission is what a body waits for where the request asks for 100 Continue.
type permission struct {
	decided  chan bool // whether to send the body; nil if it does not wait
	decide   sync.Once
	patience time.Duration
}

// proceed lets a body go that waits for 100 Continue.
func (p *permission) proceed() {
	if p.decided != nil {
		p.decide.Do(func() { p.decided <- true })
	}
}

// skip keeps back a body that still waits for 100 Continue.
func (p *permission) skip() { p.keepBack() }

// keepBack keeps back a body that still waits for 100 Continue, and reports whether it did.
func (p *permission) keepBack() bool {
	kept := false
	if p.decided != nil {
		p.decide.Do(func() { kept = true; p.decided <- false })
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
	if s.keepBack() {
		return false
	}
	timer := time.NewTimer(sendGrace)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.err == nil
	case <-timer.C:
		return false
	}
}

// errNotSent is the error of a sender whose body was kept back.
var errNotSent = errors.New("h1: the body was not asked for")

// run is the goroutine.
func (s *sender) run() {
	defer close(s.done)
	defer s.body.Close()
	if s.decided != nil && !s.permitted() {
		s.err = errNotSent
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
		s.wire.expectHeader(lateAnswer, err)
	case s.headerTimeout > 0:
		s.wire.expectHeader(s.headerTimeout, ErrResponseHeaderTimeout)
	}
	if s.hooks.WroteRequest != nil {
		s.hooks.WroteRequest(s.arg, httptrace.WroteRequestInfo{Err: s.err})
	}
}

// permitted waits for 100 Continue, or until patience ends.
func (s *sender) permitted() bool {
	if s.hooks.Wait100Continue != nil {
		s.hooks.Wait100Continue(s.arg)
	}
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	select {
	case send := <-s.decided:
		return send
	case <-timer.C:
		s.proceed()
		return <-s.decided
	}
}

// Room around the data of a chunk, for its size and for the end of its line.
const (
	chunkHead = 18
	chunkTail = 2
)

// stream copies the body. It keeps apart errors of the body and of the connection.
func (s *sender) stream() (bodyErr, err error) {
	buf := getBuffer()
	defer buf.release()
	left, empty := s.length, 0
	for {
		space := buf.b[chunkHead : len(buf.b)-chunkTail]
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
	start := chunkHead - 2 - len(digits)
	copy(b[start:], digits)
	copy(b[chunkHead-2:], "\r\n")
	copy(b[chunkHead+n:], "\r\n")
	return b[start : chunkHead+n+2]
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
