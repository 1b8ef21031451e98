package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// HandlerTransport returns a RoundTripper that calls a handler of this process. Use it as the target of Proxy
// or as Part.From. The handler sees the trace, the client address and the identity of the outer request. What
// happens inside h, such as the route that a Router there matches, does not change the outer request's log
// line and metrics.
//
// The handler runs on its own goroutine and gets the request in the form in which a server would pass it:
// Host and RequestURI are set, RemoteAddr is the outer client's address if it is known, and Header is a copy.
// The handler's context ends when the caller's ends, when the caller closes the response's body, and when the
// handler returns.
//
// RoundTrip returns as soon as the handler has sent its header. The body is streamed: up to 4 KiB are
// buffered until Flush or the end. A round trip needs about 6 KiB, in addition to the handler's own memory.
// Content-Length, trailers, 1xx responses (to an httptrace.ClientTrace) and HEAD work as over a connection.
// Hijack and upgrades are not supported, because there is no connection.
//
// A panic of the handler becomes the error of RoundTrip or, if the response has begun, of a read of its body.
// The outcome is OutcomeInternal. The stack is logged to the server's ErrorLog or, without one, by package
// log. A panic with http.ErrAbortHandler has the effect of a closed connection.
//
// When the caller's context ends, RoundTrip and reads of the body return at once, and the handler's writes
// fail. A handler that ignores its context and its write errors does not delay them. Its goroutine runs until
// it returns, as under a server.
//
// The RoundTripper is safe for concurrent use if h is. HandlerTransport panics when h is nil.
func HandlerTransport(h http.Handler) http.RoundTripper {
	if h == nil {
		panic("gateway: HandlerTransport: nil handler")
	}
	return &handlerTransport{h}
}

type handlerTransport struct{ handler http.Handler }

func (t *handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	outer := req.Context()
	if req.URL == nil {
		closeBody(req)
		return nil, errors.New("gateway: HandlerTransport: request without URL")
	}
	if err := outer.Err(); err != nil {
		closeBody(req)
		return nil, err
	}
	ctx, cancel := context.WithCancel(outer)
	ex := exchangeFrom(outer).part(ctx)
	trip := &handlerTrip{
		outer:    outer,
		request:  req,
		inner:    ex,
		cancel:   cancel,
		answered: make(chan struct{}),
		head:     tripHead{header: make(http.Header), declared: -1},
	}
	in := inbound(req, ex)
	ex.w = responseWriter{ResponseWriter: trip, ex: ex}
	ex.req = in
	go trip.serve(t.handler, &ex.w, in)

	select {
	case <-trip.answered:
	case <-outer.Done():
		trip.abandon(outer.Err())
	}
	if trip.err != nil {
		return nil, trip.err
	}
	return &trip.res, nil
}

// inbound converts req, an outgoing request, to the request that a server would pass to a handler.
func inbound(req *http.Request, ex *exchange) *http.Request {
	link := &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery, ForceQuery: req.URL.ForceQuery}
	if link.Path == "" {
		link.Path = "/"
	}
	target := urlpath.Escaped(link)
	if link.RawQuery != "" || link.ForceQuery {
		target += "?" + link.RawQuery
	}
	// A new request and not a copy of req, which could have the path values of the outer route.
	in := (&http.Request{
		Method:        req.Method,
		URL:           link,
		RequestURI:    target,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        req.Header.Clone(),
		Body:          req.Body,
		ContentLength: req.ContentLength,
		Host:          req.Host,
		RemoteAddr:    req.RemoteAddr,
		TLS:           req.TLS,
		Trailer:       req.Trailer, // the values are set while the body is read
	}).WithContext(ex)
	if in.Method == "" {
		in.Method = http.MethodGet
	}
	if in.Header == nil {
		in.Header = make(http.Header)
	}
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.RemoteAddr == "" && ex.client.IsValid() {
		in.RemoteAddr = netip.AddrPortFrom(ex.client, 0).String()
	}
	switch {
	case in.Body == nil || in.Body == http.NoBody:
		in.Body, in.ContentLength = http.NoBody, 0
	case in.ContentLength <= 0: // in an outgoing request with a body, 0 means unknown
		in.ContentLength = -1
		in.TransferEncoding = []string{"chunked"}
	}
	return in
}

// handlerTrip is one round trip. It is the handler's ResponseWriter and holds the caller's response.
type handlerTrip struct {
	outer   context.Context    // the caller's
	request *http.Request      // the caller's
	inner   *exchange          // the handler's record
	cancel  context.CancelFunc // ends the handler's context

	answered chan struct{} // closed when res or err is set
	res      http.Response // what RoundTrip returns, unless err is set
	err      error         // the error that RoundTrip returns
	reader   tripReader

	mu     sync.Mutex // guards head and writer
	head   tripHead
	writer tripWriter
}

// tripHead is the status and the fields of the response.
type tripHead struct {
	header   http.Header // the map that the handler writes to
	sent     http.Header // a copy of header, made when the status was set; nil before
	status   int         // 0 until it is set
	declared int64       // Content-Length; -1 if it is not known
	trailer  http.Header // set once the handler has returned
}

// tripWriter is the handler's side of the body.
type tripWriter struct {
	written int64
	held    []byte // bytes that the handler has written and that were not sent yet
	err     error  // why writes fail; nil while they may succeed
	pipe    *io.PipeWriter
	unwatch func() bool // stops the watch of the caller's context
}

// tripReader is the caller's side of the body. It is set before answered is closed. After that, only the
// caller uses it. It has either a pipe, or data and end.
type tripReader struct {
	data   []byte // the whole of a short body
	end    error  // the error of a read after data
	pipe   *io.PipeReader
	closed atomic.Bool
}

// heldBytes is the largest number of bytes that are held back, as in net/http's server.
const heldBytes = 4 << 10

var errHandlerDone = errors.New("gateway: HandlerTransport: write after the handler has returned")

// serve runs the handler.
func (t *handlerTrip) serve(h http.Handler, w http.ResponseWriter, in *http.Request) {
	if body := in.Body; body != http.NoBody {
		// After the caller has gone, no more of the body arrives: a read would block forever.
		stop := context.AfterFunc(t.outer, func() { body.Close() })
		defer func() {
			if stop() {
				body.Close()
			}
		}()
	}
	returned := false
	defer func() {
		var err error
		if !returned {
			err = t.failure(recover())
		}
		t.finish(err)
		t.cancel()
	}()
	h.ServeHTTP(w, in)
	returned = true
}

// failure returns the error for a handler that panicked. panicked is nil after runtime.Goexit.
func (t *handlerTrip) failure(panicked any) error {
	if panicked != nil && panicked != http.ErrAbortHandler {
		logf := log.Printf
		if srv, ok := t.outer.Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
			logf = srv.ErrorLog.Printf
		}
		logf("gateway: HandlerTransport: panic serving %s: %v\n%s", t.request.RemoteAddr, panicked, debug.Stack())
		return &panicError{panicked}
	}
	if err := t.outer.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// Header returns the fields that the handler sets.
func (t *handlerTrip) Header() http.Header { return t.head.header }

// WriteHeader reports 1xx to the caller's trace and sets the final status.
func (t *handlerTrip) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("gateway: HandlerTransport: invalid status %d", code))
	}
	if code < 200 && code != http.StatusSwitchingProtocols {
		t.mu.Lock()
		late := t.writer.err != nil || t.head.status != 0
		t.mu.Unlock()
		trace := httptrace.ContextClientTrace(t.outer)
		if !late && trace != nil && trace.Got1xxResponse != nil {
			_ = trace.Got1xxResponse(code, textproto.MIMEHeader(t.head.header.Clone()))
		}
		return
	}
	t.mu.Lock()
	t.setStatus(code)
	t.mu.Unlock()
}

// setStatus sets the status and the fields to send, unless they are set. The caller holds mu.
func (t *handlerTrip) setStatus(code int) {
	head := &t.head
	if head.status != 0 || t.writer.err != nil {
		return
	}
	head.status = code
	head.sent = head.header.Clone()
	for name := range head.sent {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			delete(head.sent, name)
		}
	}
	t.announceTrailers()
	// A handler sets Content-Length to nil to send none.
	if length := head.sent["Content-Length"]; len(length) > 0 {
		n, err := strconv.ParseInt(length[0], 10, 64)
		if err != nil || n < 0 || !httpfield.BodyAllowed(code) {
			delete(head.sent, "Content-Length")
		} else {
			head.declared = n
		}
	}
}

// announceTrailers moves the names in the field Trailer to the keys of the response's Trailer. Their values
// are set at the end of the body. The caller holds mu.
func (t *handlerTrip) announceTrailers() {
	for _, line := range t.head.sent["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(textproto.TrimString(name))
			if !httpfield.IsToken(name) || name == "Trailer" || name == "Content-Length" || name == "Transfer-Encoding" {
				continue
			}
			if t.res.Trailer == nil {
				t.res.Trailer = make(http.Header)
			}
			t.res.Trailer[name] = nil
		}
	}
	delete(t.head.sent, "Trailer")
}

// Write holds p back if all bytes held back fit in heldBytes. Otherwise it sends them, and waits for the
// reader.
func (t *handlerTrip) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.setStatus(http.StatusOK)
	head, w := &t.head, &t.writer
	var err error
	switch {
	case w.err != nil:
		err = w.err
	case !httpfield.BodyAllowed(head.status):
		err = http.ErrBodyNotAllowed
	case head.declared >= 0 && w.written+int64(len(p)) > head.declared:
		err = http.ErrContentLength
	}
	if err != nil {
		t.mu.Unlock()
		return 0, err
	}
	w.written += int64(len(p))
	if t.request.Method == http.MethodHead {
		t.mu.Unlock()
		return len(p), nil
	}
	if len(w.held)+len(p) <= heldBytes {
		w.held = append(w.held, p...)
		t.mu.Unlock()
		return len(p), nil
	}
	if err := t.send(p); err != nil { // unlocks
		return 0, err
	}
	return len(p), nil
}

// Flush sends the bytes that are held back.
func (t *handlerTrip) Flush() { _ = t.FlushError() }

// FlushError is Flush with an error. http.ResponseController calls it.
func (t *handlerTrip) FlushError() error {
	t.mu.Lock()
	t.setStatus(http.StatusOK)
	if err := t.writer.err; err != nil {
		t.mu.Unlock()
		return err
	}
	return t.send(nil) // unlocks
}

// EnableFullDuplex does nothing, since reads and writes never wait for each other. http.ResponseController
// calls it.
func (t *handlerTrip) EnableFullDuplex() error { return nil }

// send makes RoundTrip return, if it has not yet. It writes the bytes that are held back, and then p, to the
// reader. The caller holds mu. send unlocks mu before it waits for the reader.
func (t *handlerTrip) send(p []byte) error {
	held := t.writer.held
	t.writer.held = nil // another goroutine may call Write, and must not send these bytes again
	if t.writer.pipe == nil {
		t.setContentType(held, p)
		t.openPipe()
		t.respond(t.head.declared)
	}
	pipe := t.writer.pipe
	t.mu.Unlock()
	for _, b := range [2][]byte{held, p} {
		if len(b) == 0 {
			continue
		}
		if _, err := pipe.Write(b); err != nil {
			return err
		}
	}
	if held != nil { // reuse the buffer
		t.mu.Lock()
		if t.writer.held == nil {
			t.writer.held = held[:0]
		}
		t.mu.Unlock()
	}
	return nil
}

// openPipe connects the writer to the reader until the caller's context ends. The caller holds mu.
func (t *handlerTrip) openPipe() {
	out, in := &t.writer, &t.reader
	in.pipe, out.pipe = io.Pipe()
	if t.bodiless() {
		in.pipe, in.end = nil, io.EOF
	}
	pipe := out.pipe
	out.unwatch = context.AfterFunc(t.outer, func() { pipe.CloseWithError(t.outer.Err()) })
}

// setContentType sets the content type from the first bytes, as net/http's server does. The caller holds mu.
func (t *handlerTrip) setContentType(first, second []byte) {
	sent := t.head.sent
	if _, ok := sent["Content-Type"]; ok || len(first)+len(second) == 0 || sent.Get("Content-Encoding") != "" {
		return
	}
	if len(first) < 512 && len(second) > 0 {
		first = append(first[:len(first):len(first)], second[:min(len(second), 512)]...)
	}
	sent["Content-Type"] = []string{http.DetectContentType(first)}
}

// respond sets the response and makes RoundTrip return it. The caller holds mu.
func (t *handlerTrip) respond(length int64) {
	status := t.head.status
	if !httpfield.BodyAllowed(status) {
		length = 0
	}
	t.res.Status = strconv.Itoa(status) + " " + http.StatusText(status)
	t.res.StatusCode = status
	t.res.Proto, t.res.ProtoMajor, t.res.ProtoMinor = "HTTP/1.1", 1, 1
	t.res.Header = t.head.sent
	t.res.ContentLength = length
	t.res.Request = t.request
	t.res.Body = handlerBody{t}
	close(t.answered)
}

// fail makes RoundTrip return err. The caller holds mu.
func (t *handlerTrip) fail(err error) {
	t.err = err
	close(t.answered)
}

// finish ends the response after the handler has ended. failure is nil if the handler returned.
func (t *handlerTrip) finish(failure error) {
	t.mu.Lock()
	if t.writer.err != nil {
		t.mu.Unlock()
		return
	}
	if failure == nil {
		failure = t.outer.Err() // the handler may have returned early, so its response may be incomplete
	}
	end := failure
	if failure == nil {
		t.setStatus(http.StatusOK)
		t.setTrailer()
		end = io.EOF
		if t.writer.written < t.head.declared && !t.bodiless() {
			end = io.ErrUnexpectedEOF // net/http's server would close the connection
		}
	}
	t.writer.err = errHandlerDone
	if t.writer.pipe != nil {
		pipe, held := t.writer.pipe, t.writer.held
		t.mu.Unlock()
		if failure == nil && len(held) > 0 {
			_, _ = pipe.Write(held)
		}
		t.writer.unwatch()
		pipe.CloseWithError(end)
		return
	}
	defer t.mu.Unlock()
	if failure != nil {
		t.fail(failure)
		return
	}
	t.finishShort(end)
}

// finishShort makes RoundTrip return a response whose whole body is held back. The caller holds mu.
func (t *handlerTrip) finishShort(end error) {
	head, held := &t.head, t.writer.held
	t.setContentType(held, nil)
	length := head.declared
	_, set := head.sent["Content-Length"]
	if !set && length < 0 && len(t.res.Trailer) == 0 && len(head.trailer) == 0 && !t.bodiless() {
		length = int64(len(held))
		head.sent["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	t.reader.data, t.reader.end = held, end
	t.respond(length)
}

// bodiless reports whether the response has no body, even if the handler writes one. The caller holds mu.
func (t *handlerTrip) bodiless() bool {
	return t.request.Method == http.MethodHead || !httpfield.BodyAllowed(t.head.status)
}

// setTrailer collects the trailers that the handler has set. The caller holds mu.
func (t *handlerTrip) setTrailer() {
	for name, values := range t.head.header {
		if after, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			name = http.CanonicalHeaderKey(after)
		} else if _, ok := t.res.Trailer[name]; !ok {
			continue
		}
		if t.head.trailer == nil {
			t.head.trailer = make(http.Header)
		}
		t.head.trailer[name] = values
	}
}

// abandon makes RoundTrip return err, unless there is a response already.
func (t *handlerTrip) abandon(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.answered:
	default:
		t.writer.err, t.writer.held = err, nil
		t.fail(err)
	}
}

// handlerBody is the body of the caller's response.
type handlerBody struct{ trip *handlerTrip }

// Read sets the trailers' values at the end of the body.
func (b handlerBody) Read(p []byte) (n int, err error) {
	t, r := b.trip, &b.trip.reader
	if r.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if r.pipe != nil {
		n, err = r.pipe.Read(p)
	} else {
		n = copy(p, r.data)
		if r.data = r.data[n:]; len(r.data) == 0 {
			err = r.end
		}
	}
	if err == io.EOF {
		t.mu.Lock()
		if t.res.Trailer == nil && t.head.trailer != nil {
			t.res.Trailer = make(http.Header)
		}
		maps.Copy(t.res.Trailer, t.head.trailer)
		t.mu.Unlock()
	}
	return n, err
}

// Close ends the handler's context and makes its writes fail.
func (b handlerBody) Close() error {
	r := &b.trip.reader
	if !r.closed.CompareAndSwap(false, true) {
		return nil
	}
	b.trip.cancel()
	if r.pipe != nil {
		r.pipe.CloseWithError(io.ErrClosedPipe)
	}
	return nil
}

// recordedOutcome returns the outcome that a gateway inside the handler has noted, and whether it has noted
// one.
func (b handlerBody) recordedOutcome() (Outcome, bool) {
	ex := b.trip.inner
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.outcome, ex.noted
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}
