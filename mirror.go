package gateway

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// MirrorOptions selects the requests that Mirror copies and limits their cost. The bodies in memory take at
// most MaxInFlight times MaxBodyBytes.
type MirrorOptions struct {
	Fraction     float64       // share of requests that are mirrored, at most 1; 0 means 1, negative means none
	MaxBodyBytes int64         // a request with a larger body is not mirrored; 0 means 64 KiB, negative means no bodies
	BodyTimeout  time.Duration // longest pause within a body that is mirrored, after which the client gets 408; 0 means 60s, negative none
	MaxInFlight  int           // number of shadow requests in flight, above which no more are sent; 0 means 64
	Timeout      time.Duration // limit of the time for one shadow request; 0 means 30s
}

// Mirror sends copies of a share of the requests to shadow. The responses of shadow are discarded, and its
// failures do not affect the client.
//
// shadow runs on its own goroutine, and the client never waits for it. The copy of a request without a body
// is sent at once. The copy of a request with a body is sent when the handler inside Mirror has read the
// whole body; if it does not read the whole body, no copy is sent.
//
// The copy has the fields, the path values and the identity that the request has when it reaches Mirror. Its
// context ends after Timeout, and not when the client leaves. Upgrades and CONNECT are not mirrored. A panic
// of shadow ends only the shadow request and is logged by slog.Default. To measure shadow, put Observe around
// it.
//
// Mirror panics when shadow is nil, when Fraction is above 1 or not a number, and on a negative MaxInFlight
// or Timeout.
func Mirror(shadow http.Handler, opts *MirrorOptions) Middleware {
	m := &mirror{shadow: shadow}
	if opts != nil {
		m.MirrorOptions = *opts
	}
	switch {
	case shadow == nil:
		panic("gateway: Mirror: nil handler")
	case !(m.Fraction <= 1):
		panic("gateway: Mirror: Fraction must be at most 1")
	case m.MaxInFlight < 0:
		panic("gateway: Mirror: negative MaxInFlight")
	case m.Timeout < 0:
		panic("gateway: Mirror: negative Timeout")
	}
	if m.Fraction == 0 {
		m.Fraction = 1
	}
	if m.MaxBodyBytes == 0 {
		m.MaxBodyBytes = 64 << 10
	}
	if m.BodyTimeout == 0 {
		m.BodyTimeout = defaultBodyTimeout
	}
	if m.MaxInFlight == 0 {
		m.MaxInFlight = 64
	}
	if m.Timeout == 0 {
		m.Timeout = 30 * time.Second
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !m.selects(r) {
				next.ServeHTTP(w, r)
				return
			}
			if !hasContent(r) {
				go m.copy(r).run(nil)
				next.ServeHTTP(w, r)
				return
			}
			ex, rw, r := enter(w, r)
			body := newClientBody(r.Context(), rw, r, m.BodyTimeout)
			defer body.release()
			tee := &mirrorBody{clientBody: body, copy: m.copy(r), declared: r.ContentLength}
			defer tee.abandon()
			teed := r.WithContext(r.Context())
			teed.Body = tee
			ex.derived(teed)
			next.ServeHTTP(rw, teed)
			if !rw.started() {
				body.refuseSlow(rw, r)
			}
		})
	}
}

type mirror struct {
	MirrorOptions
	shadow   http.Handler
	inFlight atomic.Int64
}

// selects reports whether r is to be mirrored. If it is, a shadow request counts as in flight until release.
func (m *mirror) selects(r *http.Request) bool {
	switch {
	case r.Method == http.MethodConnect || len(r.Header["Upgrade"]) > 0,
		r.Body != nil && r.Body != http.NoBody && r.ContentLength > max(m.MaxBodyBytes, 0),
		r.ContentLength < 0 && m.MaxBodyBytes < 0,
		m.Fraction < 1 && rand.Float64() >= m.Fraction:
		return false
	}
	if m.inFlight.Add(1) > int64(m.MaxInFlight) {
		m.inFlight.Add(-1)
		return false
	}
	return true
}

// mirrorCopy is the copy of a request for the shadow. It counts as in flight until run returns or release is
// called.
type mirrorCopy struct {
	m   *mirror
	req *http.Request
	ex  *exchange
}

// copy returns a copy of r without its body. The copy shares nothing with r that next may change.
func (m *mirror) copy(r *http.Request) *mirrorCopy {
	ex := exchangeFrom(r.Context()).child(context.WithoutCancel(r.Context()))
	ex.rawRest = exchangeFrom(r.Context()).allowsRaw()
	req := r.Clone(ex)
	req.Body = http.NoBody
	ex.req = req
	ex.w = responseWriter{ResponseWriter: discardWriter{header: make(http.Header)}, ex: ex}
	return &mirrorCopy{m: m, req: req, ex: ex}
}

// run sends the copy to the shadow. Call it on its own goroutine. Either run or release must be called, once.
func (c *mirrorCopy) run(body []byte) {
	defer c.release()
	defer func() { // a panic of shadow must not end the process
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			_ = logPanic("a shadow of Mirror panicked", p, slog.Attr{})
		}
	}()
	ctx, cancel := context.WithTimeout(c.ex.Context, c.m.Timeout)
	defer cancel()
	c.ex.Context = ctx // no other code has the copy yet
	if len(body) > 0 {
		c.req.Body = io.NopCloser(bytes.NewReader(body))
	}
	c.req.ContentLength, c.req.TransferEncoding = int64(len(body)), nil
	c.m.shadow.ServeHTTP(&c.ex.w, c.req)
}

// release ends the copy's count as in flight.
func (c *mirrorCopy) release() { c.m.inFlight.Add(-1) }

// mirrorBody copies a body while it is read. It may be read on another goroutine than the handler's, as
// transports do.
type mirrorBody struct {
	*clientBody
	declared int64 // Content-Length; -1 when it is not known

	mu   sync.Mutex
	copy *mirrorCopy // nil if the copy has been sent or dropped
	data []byte
}

func (b *mirrorBody) Read(p []byte) (int, error) {
	n, err := b.clientBody.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.copy == nil {
		return n, err
	}
	most := b.copy.m.MaxBodyBytes
	if int64(len(b.data)+n) > most || err != nil && err != io.EOF {
		b.drop()
		return n, err
	}
	if need := len(b.data) + n; need > cap(b.data) {
		room := max(need, min(2*cap(b.data), int(most)), 512)
		if b.declared > 0 {
			// Allocate at most twice what has arrived, or 64 KiB, even if a larger length is declared.
			room = max(need, int(min(b.declared, int64(max(64<<10, 2*cap(b.data))))))
		}
		b.data = append(make([]byte, 0, room), b.data...)
	}
	b.data = append(b.data, p[:n]...)
	if err == io.EOF || int64(len(b.data)) == b.declared {
		go b.copy.run(b.data)
		b.copy, b.data = nil, nil
		b.unlimited()
	}
	return n, err
}

// abandon drops the copy if the body was not read to its end.
func (b *mirrorBody) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.copy != nil {
		b.drop()
	}
}

// drop discards the copy. The caller holds b.mu.
func (b *mirrorBody) drop() {
	b.copy.release()
	b.copy, b.data = nil, nil
	b.unlimited() // without a copy, a slow client occupies no memory
}

// discardWriter is a ResponseWriter that discards what is written.
type discardWriter struct{ header http.Header }

func (d discardWriter) Header() http.Header         { return d.header }
func (d discardWriter) WriteHeader(int)             {}
func (d discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (d discardWriter) Flush()                      {}
