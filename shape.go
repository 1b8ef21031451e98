package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/rawjson"
)

// Shape selects and renames parts of a JSON text, for a client that needs less. The zero value changes
// nothing.
//
// A path is a list of names with dots between them, from the outside in: "user.address.city". A name is the
// name of an object's member or the index of an array's element. A star stands for every member or element:
// "items.*.title". A backslash before a dot, a star or a backslash makes it a part of the name: `a\.b`. All
// paths refer to the text before it is changed.
//
//	Shape{Only: []string{"items.*.title", "next"}, Rename: map[string]string{"items": "rows"}}
//	{"items":[{"title":"A","plot":"…"},{"title":"B"}],"next":2,"debug":{}}   becomes
//	{"rows":[{"title":"A"},{"title":"B"}],"next":2}
//
// The value at a path is kept or dropped as a whole, with everything in it. Kept values are copied byte for
// byte: large numbers, escapes and the order of members stay as they were. The objects and arrays that
// contain a value in Only are kept, even if nothing is left in them. If a path in Only leads through a value
// that is neither an object nor an array, that value is dropped. A text that is neither an object nor an
// array becomes null if Only or Drop would leave nothing of it.
//
// If an object has two members with the same name, both are treated alike. In a name, an escape that
// encoding/json would replace by U+FFFD (a lone surrogate) is matched by U+FFFD. A name of more than 64 KiB,
// in an object of which only a part is kept, is an error. So is a text that nests deeper than 10,000.
type Shape struct {
	Only []string // paths of the values that are kept, and nothing else; nil keeps all
	Drop []string // paths of the values that are dropped, even if Only keeps a value that contains them

	// Rename maps a path to a new name, which replaces the last name of the path. In the output, the new name
	// always means the renamed member: another member of the same object with that name is dropped, even if
	// the renamed member is absent.
	Rename map[string]string
}

// compile returns nil if s changes nothing.
func (s Shape) compile() (*rawjson.Projection, error) {
	p, err := rawjson.NewProjection(s.Only, s.Drop, s.Rename)
	if err != nil {
		return nil, fmt.Errorf("Shape: %w", err)
	}
	if p.KeepsAll() {
		return nil, nil
	}
	return p, nil
}

// Reshape applies s to the JSON in the answers of the handler inside. It changes answers with a status of 2xx
// and a Content-Type of application/json or a type that ends in +json. Others pass unchanged: errors,
// redirects, 204, other media types such as application/x-ndjson and text/event-stream, and an empty body.
//
// The body is changed as it is written. So at most about 100 KiB of a body are in memory, whatever its
// size, plus what Rename adds to 8 KiB of it. The output is buffered, up to 24 KiB, until the handler
// flushes or ends.
//
// A body that is not one complete JSON text in UTF-8 is an error: it is malformed, contains several JSON
// texts, is cut off, or is shorter than its Content-Length. If nothing has been sent yet, the client gets
// 502. Otherwise the connection is aborted with http.ErrAbortHandler, so that the client can tell that its
// answer is incomplete. The outcome is OutcomeAborted.
//
// Reshape removes Range and If-Range from the request, since ranges would refer to the unchanged body, and
// sets its Accept-Encoding to identity. If the answer has a Content-Encoding or the status 206 nevertheless,
// it cannot be changed, and the client gets 502. To compress answers, put the compressing middleware outside
// Reshape.
//
// In a changed answer, and in a 304, ETag becomes a weak validator. It does not depend on s: after a
// deployment with another Shape, a client that revalidates its copy keeps the old one. Content-Length is that
// of the new body if the new body fits in the buffer. Otherwise, and for HEAD, it is removed. Accept-Ranges
// and the digests of the body (Content-Digest, Repr-Digest, Digest, Content-MD5) are removed, from the
// trailers as well. Cache-Control: no-transform does not prevent the change.
//
// Reshape panics on a path that is empty or malformed, on a Rename whose path ends in a star, on Renames that
// give the same name to two members or two names to one member, and on paths with stars that together need
// more than 10,000 states.
func Reshape(s Shape) Middleware {
	projection, err := s.compile()
	if err != nil {
		panic("gateway: Reshape: " + err.Error())
	}
	return func(next http.Handler) http.Handler {
		if projection == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			if plain := withoutCodings(r); plain != r {
				r = plain
				ex.derived(r)
			}
			f := &reshaping{projection: projection, ex: ex, w: rw, r: r, original: original{declared: -1}}
			f.outer, rw.filter = rw.filter, f
			defer f.end()
			next.ServeHTTP(rw, r)
		})
	}
}

// withoutCodings returns r, or a copy of r that asks for neither a part of a body nor a content coding.
func withoutCodings(r *http.Request) *http.Request {
	_, ranged := r.Header["Range"]
	_, conditional := r.Header["If-Range"]
	codings := r.Header["Accept-Encoding"]
	if !ranged && !conditional && (codings == nil || slices.Equal(codings, identityCoding)) {
		return r
	}
	plain := r.WithContext(r.Context())
	plain.Header = maps.Clone(r.Header)
	delete(plain.Header, "Range")
	delete(plain.Header, "If-Range")
	if codings != nil {
		plain.Header["Accept-Encoding"] = slices.Clone(identityCoding)
	}
	return plain
}

var identityCoding = []string{"identity"}

// reshaping applies a projection to one answer. It is the filter of the handler's writer.
type reshaping struct {
	projection *rawjson.Projection
	ex         *exchange
	w          *responseWriter
	r          *http.Request
	outer      bodyFilter // the writer's filter before this one

	stage reshapeStage
	err   error // why the answer cannot be passed on
	original
	projected
}

// original is the answer as the handler writes it.
type original struct {
	declared int64 // Content-Length of the body; -1 if it is not known
	received int64 // bytes of the body so far
}

// projected is the answer as it is sent.
type projected struct {
	held      int // the status, until it is sent; 0 means none
	projector *rawjson.Projector
	buffer    *[32 << 10]byte // from the pool; backs out
	out       []byte          // the part of the body that has not been sent
}

// reshapeStage says how a reshaping treats what the handler writes.
type reshapeStage uint8

const (
	undecided reshapeStage = iota // the handler has not set a status
	passing                       // the answer is sent unchanged
	changing                      // the body is projected
	refused                       // the answer cannot be passed on: err is set
	broken                        // writing to the client has failed
)

const (
	reshapePiece = 8 << 10  // bytes of the body that are projected at once
	reshapeHeld  = 24 << 10 // bytes of output that are collected before they are sent
)

// header is called when the handler sets a status. The first call decides how the answer is treated.
func (f *reshaping) header(status int) {
	first := f.stage == undecided
	if first {
		f.decide(status)
	}
	switch {
	case f.stage == passing:
		f.w.headerTo(f.outer, status)
	case first:
		f.held = status
	}
}

// decide chooses the stage from the status and the fields of the answer, and prepares it.
func (f *reshaping) decide(status int) {
	h := f.w.Header()
	f.stage = passing
	switch {
	case status == http.StatusNotModified:
		if _, typed := h["Content-Type"]; isJSON(h) || !typed {
			f.editFields()
		}
	case status < 200, status > 299, status == http.StatusNoContent, status == http.StatusResetContent, !isJSON(h):
	case status == http.StatusPartialContent:
		f.refuse(errors.New("status 206 with a JSON body, although no range was requested"))
	case isEncoded(h):
		f.refuse(fmt.Errorf("a JSON body with the content coding %s, although none was accepted", truncate(h.Get("Content-Encoding"))))
	case f.r.Method == http.MethodHead:
		f.editFields()
	default:
		f.stage = changing
		if length := h["Content-Length"]; len(length) > 0 {
			if n, err := strconv.ParseInt(length[0], 10, 64); err == nil && n >= 0 {
				f.declared = n
			}
		}
		f.editFields()
		f.projector = f.projection.Start()
		f.buffer = buffers.Get().(*[32 << 10]byte)
		f.out = f.buffer[:0]
	}
}

// isJSON reports whether a body is JSON, by its Content-Type. It ignores the parameters, even malformed ones,
// because a client may ignore them as well.
func isJSON(h http.Header) bool {
	for _, contentType := range h["Content-Type"] {
		media, _, _ := strings.Cut(contentType, ";")
		media = strings.ToLower(strings.TrimSpace(media))
		if media == "application/json" || strings.HasSuffix(media, "+json") {
			return true
		}
	}
	return false
}

// isEncoded reports whether a body has a content coding.
func isEncoded(h http.Header) bool {
	for _, line := range h["Content-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
				return true
			}
		}
	}
	return false
}

// bodyDigests are the fields that hold a digest of the body.
var bodyDigests = []string{"Content-Digest", "Repr-Digest", "Digest", "Content-Md5"}

// editFields edits the fields that describe the body.
func (f *reshaping) editFields() {
	h := f.w.Header()
	if tag := h["Etag"]; len(tag) > 0 && tag[0] != "" && !strings.HasPrefix(tag[0], "W/") {
		h["Etag"] = []string{"W/" + tag[0]}
	}
	delete(h, "Content-Length")
	delete(h, "Accept-Ranges")
	for _, name := range bodyDigests {
		delete(h, name)
	}
}

// write is called with each part of the handler's body.
func (f *reshaping) write(p []byte) (int, error) {
	f.implicit()
	switch f.stage {
	case passing:
		return f.w.writeTo(f.outer, p)
	case refused, broken:
		return 0, f.err
	}
	if f.declared >= 0 && f.received+int64(len(p)) > f.declared {
		return 0, http.ErrContentLength
	}
	f.received += int64(len(p))
	for piece := range slices.Chunk(p, reshapePiece) {
		var err error
		if f.out, err = f.projector.Append(f.out, piece, false); err != nil {
			f.refuse(fmt.Errorf("body of the answer: %w", err))
			return 0, f.err
		}
		if len(f.out) >= reshapeHeld {
			if err := f.send(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// implicit decides for status 200 if the handler writes the body without setting a status.
func (f *reshaping) implicit() {
	if f.stage != undecided {
		return
	}
	if f.decide(http.StatusOK); f.stage != passing {
		f.held = http.StatusOK
	}
}

// flush sends the collected output.
func (f *reshaping) flush() error {
	f.implicit()
	switch f.stage {
	case refused, broken:
		return f.err
	case changing:
		if err := f.send(); err != nil {
			return err
		}
	}
	return f.w.flushTo(f.outer)
}

// send sends the status, unless it was sent, and the collected output.
func (f *reshaping) send() error {
	if f.held != 0 {
		status := f.held
		f.held = 0
		f.w.headerTo(f.outer, status)
	}
	if len(f.out) == 0 {
		return nil
	}
	_, err := f.w.writeTo(f.outer, f.out)
	f.out = f.out[:0]
	if err != nil {
		f.stage, f.err = broken, err
	}
	return err
}

// refuse records why the answer cannot be passed on. The cause is noted at once, before Write returns it to the
// handler: the handler may report an error of its own, and the first note counts.
func (f *reshaping) refuse(err error) {
	cause := attemptError(f.r, fmt.Errorf("gateway: Reshape: %w", err))
	f.stage, f.err = refused, cause
	f.ex.note(result{err: cause, began: true, gone: leftEarly(f.r.Context())}.outcome(), cause)
}

// end is deferred around the handler. It completes the answer or replaces it by an error.
func (f *reshaping) end() {
	panicked := recover()
	f.w.filter = f.outer
	if panicked == nil {
		f.finish()
	}
	if f.buffer != nil {
		buffers.Put(f.buffer)
		f.buffer, f.out = nil, nil
	}
	unsent := f.held != 0
	if unsent {
		f.w.restart()
	}
	switch {
	case f.stage == refused && unsent && (panicked == nil || panicked == http.ErrAbortHandler): // the handler aborts when its write fails
		WriteError(f.w, f.r, f.err)
	case f.stage == refused && panicked == nil:
		panic(http.ErrAbortHandler)
	case panicked != nil:
		panic(panicked)
	}
}

// finish sends the rest of the answer after the handler has returned.
func (f *reshaping) finish() {
	h := f.w.Header()
	switch {
	case f.stage == undecided && !f.w.started() && isJSON(h) && len(h["Content-Length"]) == 0:
		f.editFields() // the server sends 200 without a body
		return
	case f.stage != changing:
		return
	}
	for _, name := range bodyDigests {
		delete(h, name)
		delete(h, http.TrailerPrefix+name)
	}
	if f.declared >= 0 && f.received < f.declared {
		f.refuse(fmt.Errorf("%d bytes of a body of %d", f.received, f.declared))
		return
	}
	if f.received > 0 {
		var err error
		if f.out, err = f.projector.Append(f.out, nil, true); err != nil {
			f.refuse(fmt.Errorf("body of the answer: %w", err))
			return
		}
	}
	if f.held != 0 && !hasTrailers(h) {
		h["Content-Length"] = []string{strconv.Itoa(len(f.out))}
	}
	_ = f.send() // after an error the connection cannot be used, so there is nothing to do
}

// hasTrailers reports whether a handler has announced or set trailers.
func hasTrailers(h http.Header) bool {
	if len(h["Trailer"]) > 0 {
		return true
	}
	for name := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}
