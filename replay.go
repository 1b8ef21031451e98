package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/chunkbuf"
)

// replay buffers the beginning of a request's body until a response arrives, so that the request can be sent
// again. A nil replay means that the request has no body.
//
// Each attempt reads the body through its own view, which starts at the beginning. A transport may continue
// to read a view after its RoundTrip has returned an error, while the next attempt already has a new view.
// Such a late read still consumes the source, so its bytes are buffered for the new view. For example,
// attempt 1 buffers "abc", fails, and is still blocked in a read. Attempt 2 reads "abc" from the buffer. Then
// "def" arrives in the read of attempt 1: it is appended to the buffer, where attempt 2 reads it next.
type replay struct {
	source   io.ReadCloser
	limit    int64         // largest number of bytes to buffer
	declared int64         // Content-Length; negative if it is not known
	before   time.Duration // how long Proxy waited for the client, if Proxy has read the whole body

	announced

	reading sync.Mutex // held during a read of source, which may take as long as the client wants

	mu   sync.Mutex
	read int64 // bytes read from source
	kept chunkbuf.Buffer
	lost bool  // kept is incomplete: the body is longer than limit, or no further view is needed
	err  error // the error with which source ended; io.EOF at its end
	replayViews
}

// announced is the trailer that the client has announced.
type announced struct {
	trailer http.Header // the request's; filled by the last read of source
	names   []string
}

// replayViews is the state of the views.
type replayViews struct {
	current *replayView // the newest view
	done    bool        // there will be no further view
}

// newReplay returns nil for a request without a body.
func newReplay(r *http.Request, limit int64) *replay {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	b := &replay{source: r.Body, limit: limit, declared: r.ContentLength, lost: limit <= 0}
	b.trailer = r.Trailer
	for name := range r.Trailer {
		b.names = append(b.names, name)
	}
	if small, ok := r.Body.(*requestBody); ok && r.ContentLength > 0 && small.take(&b.kept) {
		b.read, b.err = int64(b.kept.Len()), io.EOF
		b.lost = b.read > limit
		b.before = small.client.waited()
	}
	return b
}

// pending returns b, or nil if the client has nothing more to send.
func (b *replay) pending() *replay {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == io.EOF {
		return nil
	}
	return b
}

// waited returns how long Proxy waited for the client before the replay began.
func (b *replay) waited() time.Duration {
	if b == nil {
		return 0
	}
	return b.before
}

// resendable reports whether the body can be read from its beginning again.
func (b *replay) resendable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return (!b.lost || b.read == 0) && (b.err == nil || b.err == io.EOF)
}

// cause returns the error that ended reading of the body. It returns nil if there was none, or if reading was
// no longer needed.
func (b *replay) cause() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil || b.err == io.EOF {
		return nil
	}
	err := requestBodyError(b.err)
	if isOver(err) {
		return nil
	}
	return err
}

// awaitsClient reports whether a read of the client's body is in progress.
func (b *replay) awaitsClient() bool {
	if b == nil || !b.reading.TryLock() {
		return b != nil
	}
	b.reading.Unlock()
	return false
}

// attach makes a new view the body of out. out also gets a new map for the trailers, because a transport that
// is still sending an earlier attempt may read that attempt's map. clock is the attempt's clock.
func (b *replay) attach(out *http.Request, clock *attemptClock) error {
	if b.trailer != nil {
		out.Trailer = make(http.Header, len(b.names))
		for _, name := range b.names {
			out.Trailer[name] = nil
		}
	}
	trailer := out.Trailer
	out.GetBody = func() (io.ReadCloser, error) { return b.view(trailer, clock) }
	view, err := b.view(trailer, clock)
	if err == nil {
		out.Body = view
	}
	return err
}

// attachAgain makes out.GetBody attach a new view each time, with a new map for the trailers: the goroutine of
// a dead connection may still read the trailers of the earlier view.
func (b *replay) attachAgain(out *http.Request, clock *attemptClock) {
	var again func() (io.ReadCloser, error)
	again = func() (io.ReadCloser, error) {
		err := b.attach(out, clock)
		out.GetBody = again
		return out.Body, err
	}
	out.GetBody = again
}

// view returns the body from its beginning and ends the previous view. The trailers are written to trailer
// when the body ends.
func (b *replay) view(trailer http.Header, clock *attemptClock) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil {
		if b.lost && b.read > 0 || b.done {
			return nil, errors.New("gateway: the request's body was not buffered")
		}
		b.current.ended = true
	}
	b.current = &replayView{of: b, trailer: trailer, clock: clock}
	return b.current, nil
}

// whole returns an independent replay of the same body, if the whole body has been read and buffered. It
// returns false for a body with trailers.
func (b *replay) whole() (*replay, bool) {
	if b == nil {
		return nil, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	ended := b.err == io.EOF || b.err == nil && b.declared >= 0 && b.read >= b.declared
	if b.lost || !ended || b.trailer != nil {
		return nil, false
	}
	return &replay{source: io.NopCloser(bytes.NewReader(b.kept.Bytes())), limit: b.limit, declared: b.declared}, true
}

// slow returns the error of a client that was slow, and nil if it was not. When a read of its body fails, the
// server cancels the request first. So an attempt may end before the read does: slow waits for that.
func (b *replay) slow() error {
	if b == nil {
		return nil
	}
	if body, ok := b.source.(heldBody); ok {
		return body.awaitInterrupted()
	}
	return nil
}

// settle is called when no further view is needed. It frees the buffer if the current view has read it to the
// end, and closes the source if no view is open.
func (b *replay) settle() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.done = true
	if b.current == nil || b.current.at == b.kept.Len() {
		b.discard()
	}
	unused := b.current == nil || b.current.ended
	b.mu.Unlock()
	if unused {
		b.source.Close()
	}
}

// discard frees the buffer, which the current view has read to the end. The caller holds mu.
func (b *replay) discard() {
	b.lost = true
	b.kept.Free()
	if b.current != nil {
		b.current.at = 0 // a late read of an earlier view may still append to kept
	}
}

// heldBody is the body of a client's request. A read may have to wait until the target asks for the body.
type heldBody interface {
	awaitWanted() bool
	wakeReader()

	// awaitInterrupted waits for the end of a read that is being interrupted. It returns an error if the
	// client was slow.
	awaitInterrupted() error
}

// replayView is the body as one attempt reads it.
type replayView struct {
	of      *replay
	trailer http.Header // filled when the body ends
	clock   *attemptClock
	at      int  // position in of.kept
	ended   bool // closed, or replaced by a newer view
}

// fillTrailer copies the trailers if the source has ended without an error. The caller holds of.mu.
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

// readKept reads from the buffer, or returns the error with which the view or the source ended. ok is false
// if the source must be read. The caller holds of.mu.
func (v *replayView) readKept(p []byte) (n int, err error, ok bool) {
	b := v.of
	switch {
	case v.ended:
		return 0, errBodyClosed, true
	case v.at < b.kept.Len():
		n = b.kept.CopyAt(p, v.at)
		if v.at += n; v.at == b.kept.Len() && b.done {
			b.discard() // no other view needs the buffer
		}
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
	// From here on, the read waits for the client.
	if s, ok := b.source.(heldBody); ok && !v.clock.hasExpired() && s.awaitWanted() {
		return 0, nil
	}
	if !v.clock.begin() {
		return 0, errBodyClosed
	}
	complete := false
	defer func() { v.clock.end(complete) }()
	b.reading.Lock()
	defer b.reading.Unlock()
	b.mu.Lock()
	n, err, ok = v.readKept(p) // an earlier view may have read while this one waited for b.reading
	b.mu.Unlock()
	if ok {
		return n, err
	}
	n, err = b.source.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	b.read += int64(n)
	complete = err == io.EOF || b.declared >= 0 && b.read >= b.declared
	stale := b.current != v // the bytes belong to a newer view
	switch {
	case stale, !b.lost && !b.done && int64(b.kept.Len()+n) <= b.limit:
		b.kept.Append(p[:n])
		v.at = b.kept.Len()
	default:
		b.discard()
	}
	if !stale {
		v.fillTrailer()
	}
	return n, err
}

// InMemory reports whether Read never blocks. internal/h1 calls it.
func (v *replayView) InMemory() bool { return v.of.pending() == nil }

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
