// Package wsframe inserts a close frame into a WebSocket stream that is being forwarded. A close frame must
// be between two other frames, so a Writer parses frame headers to find the ends of frames (RFC 6455 section
// 5). It ignores the payload.
package wsframe

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
)

// Writer passes one direction of a WebSocket connection on. It is safe for concurrent use.
type Writer struct {
	dst    io.Writer
	masked bool

	mu      sync.Mutex
	frame   scanner
	closing bool // send a close frame at the end of the current frame
	closed  bool // it has been sent: nothing may follow
}

// NewWriter returns a Writer to dst. masked is true when dst leads to a server, to which all frames are masked
// (RFC 6455 section 5.3).
func NewWriter(dst io.Writer, masked bool) *Writer {
	return &Writer{dst: dst, masked: masked}
}

// Write passes p on. Once a close frame has been sent, it drops p and reports success, so that what is still
// copied from the other end does not break off with an error.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return len(p), nil
	}
	if !w.closing {
		for rest := p; len(rest) > 0; {
			rest = rest[w.frame.scan(rest):]
		}
		return w.dst.Write(p)
	}
	end := w.frame.scan(p)
	if n, err := w.dst.Write(p[:end]); err != nil {
		return n, err
	}
	if w.frame.between() {
		return len(p), w.close()
	}
	return len(p), nil
}

// GoAway sends a close frame with status 1001, going away (RFC 6455 section 7.4.1): now if no frame is under
// way, else as soon as the current frame has ended. Further calls do nothing.
func (w *Writer) GoAway() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing = true
	if w.frame.between() && !w.closed {
		_ = w.close()
	}
}

// close sends the close frame. The caller holds mu.
func (w *Writer) close() error {
	w.closed = true
	const goingAway = 1001
	frame := []byte{0x88, 2, 0, 0}
	if w.masked {
		frame = []byte{0x88, 0x80 | 2, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(frame[2:], rand.Uint32())
	}
	payload := frame[len(frame)-2:]
	binary.BigEndian.PutUint16(payload, goingAway)
	if w.masked {
		payload[0] ^= frame[2]
		payload[1] ^= frame[3]
	}
	_, err := w.dst.Write(frame)
	return err
}

// scanner finds the ends of WebSocket frames in a stream (RFC 6455 section 5.2).
type scanner struct {
	head [10]byte // the bytes read of a frame's head, without its mask
	n    int      // number of bytes read of the head, with its mask
	left uint64   // bytes of the payload that are still to come
}

// between reports whether the stream is between two frames.
func (s *scanner) between() bool { return s.n == 0 && s.left == 0 }

// scan reads from p up to the end of the current frame, or to the end of p, and returns the number of bytes
// read.
func (s *scanner) scan(p []byte) int {
	read := 0
	for s.left == 0 && read < len(p) {
		if s.n < len(s.head) {
			s.head[s.n] = p[read]
		}
		s.n++
		read++
		if s.n < 2 {
			continue
		}
		length, size := uint64(s.head[1]&0x7f), 2
		switch length {
		case 126:
			size += 2
		case 127:
			size += 8
		}
		whole := size
		if s.head[1]&0x80 != 0 {
			whole += 4
		}
		if s.n < whole {
			continue
		}
		switch size {
		case 4:
			length = uint64(binary.BigEndian.Uint16(s.head[2:]))
		case 10:
			length = binary.BigEndian.Uint64(s.head[2:])
		}
		s.n, s.left = 0, length
		if length == 0 {
			return read
		}
	}
	n := min(s.left, uint64(len(p)-read))
	s.left -= n
	return read + int(n)
}
