package gateway

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// replay buffers the beginning of a request's body until a response arrives, so that the request can be sent
// again. A nil replay stands for a request without a body.
//
// Each attempt reads the body through a view of its own, which starts at the beginning. A transport may go on
// reading a view after its RoundTrip has returned an error, while the next attempt already has a new view.
// Such a late read still consumes the source, so its bytes are buffered for the new view. For example,
// attempt 1 buffers "abc", fails, and is still blocked in a read. Attempt 2 reads "abc" from the buffer. Then
// "def" arrives in the read of attempt 1: it is appended to the buffer, where attempt 2 reads it next.
type replay struct {
	source  io.ReadCloser
	limit   int64       // most bytes to buffer
	trailer http.Header // the request's; filled by the last read of source
	names   []string    // trailer names that were announced

	reading sync.Mutex // held during a read of source, which takes as long as the client likes

	mu      sync.Mutex
	kept    []byte      // everything read so far, unless lost
	lost    bool        // kept is incomplete: the body is longer than limit, or no further view is needed
	err     error       // with which source ended
	current *replayView // the newest view
	done    bool        // there will be no further view
}

// newReplay returns nil for a request without a body.
func newReplay(r *http.Request, limit int64) *replay {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &replay{source: r.Body, limit: limit, lost: limit <= 0, trailer: r.Trailer}
	for name := range r.Trailer {
		b.names = append(b.names, name)
	}
	return b
}

// resendable reports whether the body can be read from its beginning again.
func (b *replay) resendable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return (!b.lost || b.current == nil) && (b.err == nil || b.err == io.EOF)
}

// failure returns why the source could not be read to its end, and nil while it could. Then nobody else is to blame for
// what follows: a transport that cannot send the rest of a body cuts the connection, and its error may be another.
func (b *replay) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil || b.err == io.EOF || errors.Is(b.err, errBodyClosed) {
		return nil
	}
	return b.err
}

// awaitsClient reports whether a read of the client's body is under way.
func (b *replay) awaitsClient() bool {
	if b == nil || !b.reading.TryLock() {
		return b != nil
	}
	b.reading.Unlock()
	return false
}

// attach makes out's body a new view. out also gets a map of its own for the trailers, because a transport
// that still sends an earlier attempt may read that attempt's map.
func (b *replay) attach(out *http.Request) error {
	if b.trailer != nil {
		out.Trailer = make(http.Header, len(b.names))
		for _, name := range b.names {
			out.Trailer[name] = nil
		}
	}
	trailer := out.Trailer
	out.GetBody = func() (io.ReadCloser, error) { return b.view(trailer) }
	view, err := b.view(trailer)
	if err == nil {
		out.Body = view
	}
	return err
}

// view returns the body from its beginning and ends the previous view. The trailers are written to trailer
// when the body ends.
func (b *replay) view(trailer http.Header) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil {
		if b.lost || b.done {
			return nil, errors.New("gateway: the request's body is not kept")
		}
		b.current.ended = true
	}
	b.current = &replayView{of: b, trailer: trailer}
	return b.current, nil
}

// settle is called when no further view is needed. It frees the buffer if the current view has read all of
// it, and closes the source if no view is open.
func (b *replay) settle() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.done = true
	if b.current == nil || b.current.at == len(b.kept) {
		b.lost, b.kept = true, nil
		if b.current != nil {
			b.current.at = 0 // a late read of an earlier view may still append to kept
		}
	}
	unused := b.current == nil || b.current.ended
	b.mu.Unlock()
	if unused {
		b.source.Close()
	}
}

// replayView is the body as one attempt reads it.
type replayView struct {
	of      *replay
	trailer http.Header // filled when the body ends
	at      int         // position in of.kept
	ended   bool        // closed, or replaced by a newer view
}

// fillTrailer copies the trailers once the source has ended well. The caller holds of.mu.
func (v *replayView) fillTrailer() {
	if v.ended || v.of.err != io.EOF || v.trailer == nil {
		return
	}
	for name, values := range v.of.trailer {
		if len(values) > 0 {
			v.trailer[name] = values
		}
	}
}

// readKept reads without touching the source: from the buffer, or the error with which the view or the source
// ended. ok is false when the source must be read. The caller holds of.mu.
func (v *replayView) readKept(p []byte) (n int, err error, ok bool) {
	b := v.of
	switch {
	case v.ended:
		return 0, errBodyClosed, true
	case v.at < len(b.kept):
		n = copy(p, b.kept[v.at:])
		v.at += n
		return n, nil, true
	case b.err != nil:
		v.fillTrailer()
		return 0, b.err, true
	}
	return 0, nil, false
}

func (v *replayView) Read(p []byte) (int, error) {
	b := v.of
	b.mu.Lock()
	n, err, ok := v.readKept(p)
	b.mu.Unlock()
	if ok {
		return n, err
	}
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	n, err, ok = v.readKept(p) // an earlier view may have read while this one waited for reading
	b.mu.Unlock()
	if ok {
		return n, err
	}
	n, err = b.source.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	stale := b.current != v // the bytes belong to a newer view
	switch {
	case stale, !b.lost && !b.done && int64(len(b.kept)+n) <= b.limit:
		b.kept = append(b.kept, p[:n]...)
		v.at = len(b.kept)
	default:
		b.lost, b.kept = true, nil
		v.at = 0
	}
	if !stale {
		v.fillTrailer()
	}
	return n, err
}

// Close ends the view. It closes the source only when no further view will need it.
func (v *replayView) Close() error {
	b := v.of
	b.mu.Lock()
	again := v.ended
	v.ended = true
	last := b.done && b.current == v && !again
	b.mu.Unlock()
	if last {
		return b.source.Close()
	}
	return nil
}
