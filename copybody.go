package gateway

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/h1"
)

// buffers holds buffers for copying bodies.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyBody copies src to the client. It returns the errors of src and of w separately.
//
// Bytes that have arrived are not held back until more arrive. If length is -1, which means unknown, the body
// is flushed after each read. Otherwise it is flushed after a read that did not fill the buffer, since then
// no more had arrived. A complete body is not flushed, so that a small response is sent in one write with its
// header.
//
// bareTCP is true if the client's connection is plain TCP, without TLS. The kernel can then copy the rest of
// a long body of known length from one connection to the other, if src supports that.
func copyBody(w *responseWriter, src io.Reader, length int64, bareTCP bool) (readErr, writeErr error) {
	if src == http.NoBody {
		return nil, nil
	}
	streams := length < 0
	if streams {
		if err := flush(w); err != nil {
			return nil, err
		}
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	late := length > 0 && isLate(src)
	for began := false; ; began = true {
		if bareTCP && began && length > 0 {
			if done, readErr, writeErr := splice(w, src); done {
				return readErr, writeErr
			}
			bareTCP = false
		}
		n, err := 0, error(nil)
		if late {
			late = false
			n, err = readLate(w, src, buf[:])
		} else {
			n, err = src.Read(buf[:])
		}
		if n > 0 {
			length -= int64(n)
			if _, err := w.Write(buf[:n]); err != nil {
				return nil, err
			}
			if streams || length > 0 && n < len(buf) && err == nil {
				if err := flush(w); err != nil {
					return nil, err
				}
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// splicer is a body that the kernel can copy to a connection; see h1.Body.
type splicer interface {
	Splice(w io.ReaderFrom) (n int64, done bool, err error)
}

// splice lets the kernel copy the rest of src, if possible, and reports whether it did. Bytes that have
// arrived are not held back.
func splice(w *responseWriter, src io.Reader) (done bool, readErr, writeErr error) {
	body, ok := src.(splicer)
	if !ok || w.filter != nil {
		return false, nil, nil
	}
	if _, ok := w.ResponseWriter.(io.ReaderFrom); !ok {
		return false, nil, nil
	}
	_, done, err := body.Splice(w)
	if writing, ok := errors.AsType[*h1.WriteError](err); ok {
		return done, nil, writing.Err
	}
	return done, err, nil
}

// flush flushes w, if w supports that.
func flush(w *responseWriter) error {
	if err := w.FlushError(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// isLate reports whether no byte of the body has arrived with the header. It returns false if that is not
// known.
func isLate(body io.Reader) bool {
	b, ok := body.(interface{ Buffered() int })
	return ok && b.Buffered() == 0
}

// headerWait is how long a header waits for the first bytes of the body. Many servers send both at the same
// time, but not in one packet.
const headerWait = 2 * time.Millisecond

// readLate reads the first bytes of a body that is late. If they do not arrive within headerWait, it sends
// the header without them.
func readLate(w *responseWriter, src io.Reader, p []byte) (int, error) {
	var mu sync.Mutex // serializes the use of w
	var arrived bool
	var panicked any // a panic of the timer's goroutine, raised again on this one
	timer := time.AfterFunc(headerWait, func() {
		mu.Lock()
		defer mu.Unlock()
		defer func() { panicked = recover() }()
		if !arrived {
			_ = w.FlushError() // if it fails, so does the next write
		}
	})
	defer func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		arrived = true
		if panicked != nil {
			panic(panicked)
		}
	}()
	return src.Read(p)
}

func isEventStream(contentType string) bool {
	if len(contentType) < len("text/event-stream") || !strings.EqualFold(contentType[:5], "text/") {
		return false
	}
	media, _, _ := mime.ParseMediaType(contentType)
	return media == "text/event-stream"
}
