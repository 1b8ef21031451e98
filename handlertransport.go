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

// HandlerTransport makes a handler of this process usable where a RoundTripper is asked for. Each round
// trip has a record of its own: it knows the trace, the client and the identity of the request around it,
// and a Router inside overwrites nothing of the outer request's.
//
// The handler runs on a goroutine of its own and sees the request as a server would hand it over: Host,
// RequestURI and RemoteAddr are set (the outer client's address, where that is known), the fields are a
// copy, and its context ends when the caller's does, when the caller closes the response's body, or when
// the handler returns. The response is there as soon as its header is; its body follows as it is written,
// with at most 4 KiB held back until Flush or the end, so one round trip holds about 6 KiB beside what the
// handler needs itself. Content-Length, trailers, 1xx answers (to an httptrace.ClientTrace) and HEAD behave
// as over a connection. There is no connection, so Hijack and upgrades are not supported.
//
// A panic becomes an error, which counts as OutcomeInternal, or the end of the body when the response has
// begun; it is logged with its stack where the server logs its own. http.ErrAbortHandler is the end of a
// connection.
//
// When the context ends, the round trip and reads of the body return at once and writes fail. A handler
// that looks at neither its context nor its writes' errors is not waited for: its goroutine lasts until it
// returns, as that of any handler.
//
// It is safe for concurrent use if h is. It panics when h is nil.
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
		cancel:   cancel,
		request:  req,
		answered: make(chan struct{}),
		header:   make(http.Header),
		declared: -1,
	}
	in := inbound(req, ex)
	ex.w = responseWriter{ResponseWriter: trip, ex: ex}
	ex.req, ex.ownHeader = in, true
	trip.inner = ex
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

// inbound is the request that a server would make of req.
func inbound(req *http.Request, ex *exchange) *http.Request {
	link := &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery, ForceQuery: req.URL.ForceQuery}
	if link.Path == "" {
		link.Path = "/"
	}
	target := urlpath.Escaped(link)
	if link.RawQuery != "" || link.ForceQuery {
		target += "?" + link.RawQuery
	}
	// Not a copy of req, which may carry the path values of the route that it came by.
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
		Trailer:       req.Trailer, // takes its values while the body is read
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
	case in.ContentLength <= 0: // to a client, 0 means unknown
		in.ContentLength = -1
		in.TransferEncoding = []string{"chunked"}
	}
	return in
}

// handlerTrip is one round trip: the ResponseWriter that the handler has, and what the caller gets of it.
type handlerTrip struct {
	outer    context.Context // the caller's
	inner    *exchange       // the handler's record
	cancel   context.CancelFunc
	request  *http.Request
	answered chan struct{} // closed when res or err stands

	res http.Response // the caller's, once answered
	err error         // instead

	// The reader's, once answered. Of data and pipe one is set.
	data   []byte // all of a short body
	end    error  // what comes after data
	pipe   *io.PipeReader
	closed atomic.Bool

	mu       sync.Mutex
	header   http.Header // the handler's
	sent     http.Header // as it was when the status was; nil before
	status   int         // 0 until there is one
	declared int64       // Content-Length; -1 when unknown
	written  int64
	held     []byte // written and not passed on
	dead     error  // why writes fail
	out      *io.PipeWriter
	unwatch  func() bool
	trailer  http.Header // when the handler has returned
}

// heldBytes is how much is held back, as by net/http's server.
const heldBytes = 4 << 10

var errHandlerDone = errors.New("gateway: HandlerTransport: write after the handler has returned")

// serve runs the handler.
func (t *handlerTrip) serve(h http.Handler, w http.ResponseWriter, in *http.Request) {
	if body := in.Body; body != http.NoBody {
		// What reads the body while the caller has gone would wait for ever.
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

// failure makes an error of what a handler panicked with; nil means runtime.Goexit.
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

// panicError is a panic that became an error. No upstream is to blame for it.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// isPanic reports whether err began as a panic in this process.
func isPanic(err error) bool {
	var p *panicError
	return errors.As(err, &p)
}

// Header is the handler's view of the response's fields.
func (t *handlerTrip) Header() http.Header { return t.header }

// WriteHeader passes 1xx on and notes the final status.
func (t *handlerTrip) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("gateway: HandlerTransport: invalid status %d", code))
	}
	if code < 200 && code != http.StatusSwitchingProtocols {
		t.mu.Lock()
		late := t.dead != nil || t.status != 0
		t.mu.Unlock()
		trace := httptrace.ContextClientTrace(t.outer)
		if !late && trace != nil && trace.Got1xxResponse != nil {
			_ = trace.Got1xxResponse(code, textproto.MIMEHeader(t.header.Clone()))
		}
		return
	}
	t.mu.Lock()
	t.begin(code)
	t.mu.Unlock()
}

// begin fixes status and fields, if nothing has. The caller holds mu.
func (t *handlerTrip) begin(code int) {
	if t.status != 0 || t.dead != nil {
		return
	}
	t.status = code
	t.sent = t.header.Clone()
	for name := range t.sent {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			delete(t.sent, name)
		}
	}
	for _, line := range t.sent["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(textproto.TrimString(name))
			if httpfield.IsToken(name) && name != "Trailer" && name != "Content-Length" && name != "Transfer-Encoding" {
				if t.res.Trailer == nil {
					t.res.Trailer = make(http.Header)
				}
				t.res.Trailer[name] = nil // its value comes with the end of the body
			}
		}
	}
	delete(t.sent, "Trailer")
	// A field without a value is one that is not to be sent.
	if length := t.sent["Content-Length"]; len(length) > 0 {
		n, err := strconv.ParseInt(length[0], 10, 64)
		if err != nil || n < 0 || !httpfield.BodyAllowed(code) {
			delete(t.sent, "Content-Length")
		} else {
			t.declared = n
		}
	}
}

// Write holds back what is short and passes the rest on, which waits for the reader.
func (t *handlerTrip) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.begin(http.StatusOK)
	switch {
	case t.dead != nil:
		err := t.dead
		t.mu.Unlock()
		return 0, err
	case !httpfield.BodyAllowed(t.status):
		t.mu.Unlock()
		return 0, http.ErrBodyNotAllowed
	case t.declared >= 0 && t.written+int64(len(p)) > t.declared:
		t.mu.Unlock()
		return 0, http.ErrContentLength
	}
	t.written += int64(len(p))
	if t.request.Method == http.MethodHead {
		t.mu.Unlock()
		return len(p), nil
	}
	if len(t.held)+len(p) <= heldBytes {
		t.held = append(t.held, p...)
		t.mu.Unlock()
		return len(p), nil
	}
	if err := t.passOn(p); err != nil { // unlocks
		return 0, err
	}
	return len(p), nil
}

// Flush passes on what is held back.
func (t *handlerTrip) Flush() { _ = t.FlushError() }

// FlushError is Flush for http.ResponseController.
func (t *handlerTrip) FlushError() error {
	t.mu.Lock()
	t.begin(http.StatusOK)
	if err := t.dead; err != nil {
		t.mu.Unlock()
		return err
	}
	return t.passOn(nil)
}

// EnableFullDuplex is for http.ResponseController: reading and writing never wait for each other here.
func (t *handlerTrip) EnableFullDuplex() error { return nil }

// passOn answers, if that has not been done, and hands what is held back and p to the reader. The caller
// holds mu, which is unlocked before anything waits.
func (t *handlerTrip) passOn(p []byte) error {
	held := t.held
	t.held = nil // two goroutines may write; each has its own bytes
	if t.out == nil {
		t.sniff(held, p)
		body, out := io.Pipe()
		t.out = out
		if t.bodiless() {
			t.end = io.EOF
		} else {
			t.pipe = body
		}
		t.unwatch = context.AfterFunc(t.outer, func() { out.CloseWithError(t.outer.Err()) })
		t.answer(t.declared)
	}
	out := t.out
	t.mu.Unlock()
	for _, b := range [2][]byte{held, p} {
		if len(b) == 0 {
			continue
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
	}
	if held != nil {
		t.mu.Lock()
		if t.held == nil {
			t.held = held[:0]
		}
		t.mu.Unlock()
	}
	return nil
}

// sniff names the content's type as net/http's server does, from the first bytes.
func (t *handlerTrip) sniff(first, second []byte) {
	if _, ok := t.sent["Content-Type"]; ok || len(first)+len(second) == 0 || t.sent.Get("Content-Encoding") != "" {
		return
	}
	if len(first) < 512 && len(second) > 0 {
		first = append(first[:len(first):len(first)], second[:min(len(second), 512)]...)
	}
	t.sent["Content-Type"] = []string{http.DetectContentType(first)}
}

// answer gives the caller its response. The caller holds mu.
func (t *handlerTrip) answer(length int64) {
	if !httpfield.BodyAllowed(t.status) {
		length = 0
	}
	t.res.Status = strconv.Itoa(t.status) + " " + http.StatusText(t.status)
	t.res.StatusCode = t.status
	t.res.Proto, t.res.ProtoMajor, t.res.ProtoMinor = "HTTP/1.1", 1, 1
	t.res.Header = t.sent
	t.res.ContentLength = length
	t.res.Request = t.request
	t.res.Body = handlerBody{t}
	close(t.answered)
}

// finish ends the response when the handler has: in whole, or because of failure.
func (t *handlerTrip) finish(failure error) {
	t.mu.Lock()
	if t.dead != nil {
		t.mu.Unlock()
		return
	}
	if failure == nil {
		failure = t.outer.Err() // a handler that gave up has not answered in whole
	}
	end := failure
	if failure == nil {
		t.begin(http.StatusOK)
		t.endTrailer()
		if end = io.EOF; t.written < t.declared && !t.bodiless() {
			end = io.ErrUnexpectedEOF // as over a connection, which would be closed
		}
	}
	t.dead = errHandlerDone
	if out, held := t.out, t.held; out != nil {
		t.mu.Unlock()
		if failure == nil && len(held) > 0 {
			_, _ = out.Write(held)
		}
		t.unwatch()
		out.CloseWithError(end)
		return
	}
	defer t.mu.Unlock()
	if failure != nil { // nothing has gone out, so there is no response
		t.err = failure
		close(t.answered)
		return
	}
	t.sniff(t.held, nil)
	length := t.declared
	if _, said := t.sent["Content-Length"]; !said && length < 0 && len(t.res.Trailer) == 0 && len(t.trailer) == 0 && !t.bodiless() {
		length = int64(len(t.held))
		t.sent["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	t.data, t.end = t.held, end
	t.answer(length)
}

// bodiless reports whether the response has no body, whatever the handler writes. The caller holds mu.
func (t *handlerTrip) bodiless() bool {
	return t.request.Method == http.MethodHead || !httpfield.BodyAllowed(t.status)
}

// endTrailer gathers the trailers that the handler has set. The caller holds mu.
func (t *handlerTrip) endTrailer() {
	for name, values := range t.header {
		if after, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			name = http.CanonicalHeaderKey(after)
		} else if _, ok := t.res.Trailer[name]; !ok {
			continue
		}
		if t.trailer == nil {
			t.trailer = make(http.Header)
		}
		t.trailer[name] = values
	}
}

// abandon ends the round trip without a response, unless there is one.
func (t *handlerTrip) abandon(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.answered:
	default:
		t.dead, t.err, t.held = err, err, nil
		close(t.answered)
	}
}

// handlerBody is the body of the caller's response.
type handlerBody struct{ trip *handlerTrip }

// Read fills in the trailers at the end.
func (b handlerBody) Read(p []byte) (int, error) {
	t := b.trip
	if t.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	var n int
	var err error
	if t.pipe != nil {
		n, err = t.pipe.Read(p)
	} else {
		n = copy(p, t.data)
		if t.data = t.data[n:]; len(t.data) == 0 {
			err = t.end
		}
	}
	if err == io.EOF {
		t.mu.Lock()
		if t.res.Trailer == nil && t.trailer != nil {
			t.res.Trailer = make(http.Header)
		}
		maps.Copy(t.res.Trailer, t.trailer)
		t.mu.Unlock()
	}
	return n, err
}

// Close ends the handler's context and fails its writes.
func (b handlerBody) Close() error {
	t := b.trip
	if !t.closed.CompareAndSwap(false, true) {
		return nil
	}
	t.cancel()
	if t.pipe != nil {
		t.pipe.CloseWithError(io.ErrClosedPipe)
	}
	return nil
}

// noted returns how the handler's own gateway says that it ended, if it says so.
func (b handlerBody) noted() (Outcome, bool) {
	ex := b.trip.inner
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.outcome, ex.noted
}
