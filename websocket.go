package gateway

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
)

// frameWriter passes one direction of a WebSocket on. It follows the frames as far as it must to know where
// one ends, for a frame of its own can only stand between two (RFC 6455 section 5.4).
type frameWriter struct {
	dst    io.Writer
	masked bool // towards a server (section 5.3)

	mu      sync.Mutex
	frame   frameScanner
	leaving bool // a close is to be sent as soon as a frame ends
	left    bool // it has been: nothing may follow
}

// Write passes p on, up to the close if there is one.
func (w *frameWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	whole := len(p)
	if w.left {
		return whole, nil
	}
	if !w.leaving {
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
		return whole, w.close()
	}
	return whole, nil
}

// goAway sends a close with status 1001 (section 7.4.1) as soon as it can.
func (w *frameWriter) goAway() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving = true
	if w.frame.between() && !w.left {
		_ = w.close()
	}
}

func (w *frameWriter) close() error {
	w.left = true
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

// frameScanner finds the ends of WebSocket frames (RFC 6455 section 5.2) in a stream.
type frameScanner struct {
	head [10]byte // what has come of a frame's head, without its mask
	n    int      // bytes of the head, with its mask
	left uint64   // bytes of the payload to come
}

// between reports whether no frame is under way.
func (s *frameScanner) between() bool { return s.n == 0 && s.left == 0 }

// scan takes what p has of one frame and returns how much that is.
func (s *frameScanner) scan(p []byte) int {
	taken := 0
	for s.left == 0 && taken < len(p) {
		if s.n < len(s.head) {
			s.head[s.n] = p[taken]
		}
		s.n++
		taken++
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
			return taken
		}
	}
	n := min(s.left, uint64(len(p)-taken))
	s.left -= n
	return taken + int(n)
}
