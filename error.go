package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Error is an error together with the HTTP status of its answer. Status, Type, Title, Detail and Header are
// sent to the client. Err, the cause, is only logged.
//
// The zero value is a 500 without detail. An Error must not be modified once it has been passed to
// WriteError.
type Error struct {
	Status int         // HTTP status; 0 means 500, as does a value below 200 or above 999
	Type   string      // URI of the problem type (RFC 9457 section 3.1.1); "" means about:blank
	Title  string      // short text for the problem type; "" means http.StatusText
	Detail string      // text for this occurrence; "" sends none
	Header http.Header // additional response fields, such as Retry-After or WWW-Authenticate
	Err    error       // cause; never sent to the client

	violated []string // for the member violated-policies: names of policies of RateLimit; nil sends none
}

// Error returns status, title, detail and cause in one line. It is for logs: do not send it to a client.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("gateway: ")
	b.WriteString(strconv.Itoa(e.status()))
	b.WriteByte(' ')
	b.WriteString(e.title())
	if e.Detail != "" {
		b.WriteString(": ")
		b.WriteString(e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// status returns the status to send.
func (e *Error) status() int {
	if e.Status < 200 || e.Status > 999 {
		return http.StatusInternalServerError
	}
	return e.Status
}

func (e *Error) title() string {
	switch {
	case e.Title != "":
		return e.Title
	case e.Status == statusClientClosed:
		return "Client Closed Request"
	}
	return http.StatusText(e.status())
}

// Errors of this package, for errors.Is. WriteError answers each with the status in its comment.
var (
	ErrUnauthenticated = errors.New("gateway: unauthenticated")     // 401
	ErrForbidden       = errors.New("gateway: forbidden")           // 403
	ErrNoRoute         = errors.New("gateway: no route")            // 404, or 405 with Allow
	ErrBodyTooLarge    = errors.New("gateway: body too large")      // 413
	ErrRateLimited     = errors.New("gateway: rate limited")        // 429
	ErrBadGateway      = errors.New("gateway: upstream failed")     // 502
	ErrCircuitOpen     = errors.New("gateway: circuit open")        // 503
	ErrNoTarget        = errors.New("gateway: no target available") // 503
	ErrOverloaded      = errors.New("gateway: overloaded")          // 503
	ErrTimeout         = errors.New("gateway: upstream timed out")  // 504
	ErrNoCredentials   = errors.New("gateway: no credentials")      // 401; an Authenticator found no credentials of its kind
)

// statusClientClosed is nginx's status for a client that left before its answer. It is only logged: no client
// receives it.
const statusClientClosed = 499

// statuses maps errors to statuses. If an error wraps several of them, the first in this list decides.
var statuses = []struct {
	err    error
	status int
}{
	{ErrUnauthenticated, http.StatusUnauthorized},
	{ErrNoCredentials, http.StatusUnauthorized},
	{ErrForbidden, http.StatusForbidden},
	{ErrNoRoute, http.StatusNotFound},
	{ErrBodyTooLarge, http.StatusRequestEntityTooLarge},
	{ErrRateLimited, http.StatusTooManyRequests},
	{ErrCircuitOpen, http.StatusServiceUnavailable},
	{ErrNoTarget, http.StatusServiceUnavailable},
	{ErrOverloaded, http.StatusServiceUnavailable},
	{errClientDeadline, http.StatusGatewayTimeout},
	{ErrTimeout, http.StatusGatewayTimeout},
	{ErrBadGateway, http.StatusBadGateway},
	{context.DeadlineExceeded, http.StatusGatewayTimeout},
	{context.Canceled, statusClientClosed},
}

// waiter is an error with a value for Retry-After.
type waiter interface{ retryAfter() time.Duration }

// finish returns a copy of err as an Error in which every field that the client sees is set.
func finish(err error) *Error {
	if r, ok := err.(*refusal); ok {
		return r.finished()
	}
	var e Error
	var given *Error
	var tooLarge *http.MaxBytesError
	switch {
	case err == error(given): // a nil *Error
		err, e.Status = nil, http.StatusInternalServerError
	case errors.As(err, &given) && given != nil:
		e = *given
		e.Header = given.Header.Clone()
		if err != error(given) {
			e.Err = err // the whole chain, for the log
		}
		e.Status = given.status()
	case errors.As(err, &tooLarge):
		e.Status, e.Err = http.StatusRequestEntityTooLarge, err
	default:
		e.Status, e.Err = http.StatusInternalServerError, err
		for _, s := range statuses {
			if errors.Is(err, s.err) {
				e.Status = s.status
				break
			}
		}
	}
	if e.Type == "" {
		e.Type = "about:blank"
	}
	e.Title = e.title()
	if e.Header == nil {
		e.Header = make(http.Header)
	}
	var wait waiter
	if errors.As(err, &wait) && e.Header.Get("Retry-After") == "" {
		e.Header.Set("Retry-After", seconds(wait.retryAfter()))
	}
	if e.Status == http.StatusUnauthorized && e.Header.Get("WWW-Authenticate") == "" {
		e.Header.Set("WWW-Authenticate", "Bearer")
	}
	return &e
}

// seconds formats d for Retry-After: whole seconds, rounded up, at least 1.
func seconds(d time.Duration) string {
	return strconv.Itoa(int(max(1, math.Ceil(d.Seconds()))))
}

// causeText returns the cause of err for the log.
func causeText(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

// logPanic logs a panic in a user's function, which is not raised again, and returns it as an error. The
// caller must be the deferred function that recovered, so that debug.Stack has the panic's stack. An empty
// name is left out.
func logPanic(message string, p any, name slog.Attr) error {
	slog.Default().LogAttrs(context.Background(), slog.LevelError, "gateway: "+message,
		name, slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	return &panicError{p}
}

// WriteError answers r with err, as application/problem+json (RFC 9457) with the trace id. It writes every
// error answer of this package. Inside HandleErrors, the function given there writes the answer instead.
//
// The answer has the Status, Type, Title, Detail and Header of an *Error. The errors of this package, such as
// ErrRateLimited, have the status in their comment. An *http.MaxBytesError is answered with 413,
// context.DeadlineExceeded with 504, and any other error with 500. err.Error() is never sent; it goes to the
// log and the span. context.Canceled, from a client that left, is logged as 499. A client that is still
// connected then gets 400.
//
// If the response has already begun, WriteError writes nothing and only records err.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	gone := leftEarly(r.Context())
	if gone && servingFrom(r.Context()).hasCut() {
		gone, err = false, serverStopped(err)
	}
	e := finish(err)
	answerError(w, r, e, result{err: e, gone: gone})
}

// refuse answers with err. It records the outcome OutcomeRejected, for any status.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	answerError(w, r, finish(err), result{refused: true})
}

// refuseUndecided answers with err, the error of an Authenticator, a Limiter or a KeyFunc. It records a
// refusal, or OutcomeUnavailable if err means that no decision could be made.
func refuseUndecided(w http.ResponseWriter, r *http.Request, err error) {
	e := finish(err)
	answerError(w, r, e, result{refused: true, undecided: couldNotDecide(e)})
}

// answerError sends e, which finish returned, and records the result of the exchange.
func answerError(w http.ResponseWriter, r *http.Request, e *Error, end result) {
	ex := exchangeFrom(r.Context())
	ex.note(end.outcome(), e)
	if ex.began(w) {
		return
	}
	if e.Status == statusClientClosed {
		// The client may still read: it may have closed only its sending side, or other code may have
		// canceled the request. 499 is not a registered status, so send 400 (RFC 9110 section 15).
		sent := *e
		sent.Status, sent.Title = http.StatusBadRequest, http.StatusText(http.StatusBadRequest)
		e = &sent
	}

	h := w.Header()
	for _, name := range []string{"Content-Encoding", "Content-Length", "Content-Range", "Etag", "Last-Modified"} {
		delete(h, name) // describes another body than the problem's
	}
	fields := &[4]string{"no-store", "application/problem+json", "", "nosniff"}
	h["Cache-Control"] = fields[0:1:1]
	for name, values := range e.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	if ex.handleError(w, r, e) {
		return
	}
	body := e.problem(TraceID(r.Context()))
	fields[2] = strconv.Itoa(len(body))
	h["Content-Type"], h["Content-Length"], h["X-Content-Type-Options"] = fields[1:2:2], fields[2:3:3], fields[3:4:4]
	w.WriteHeader(e.Status)
	_, _ = w.Write(body)
}

// problem returns e as a JSON problem (RFC 9457 section 3).
func (e *Error) problem(traceID string) []byte {
	body := make([]byte, 0, 192+len(e.Type)+len(e.Title)+len(e.Detail))
	body = appendJSONString(append(body, `{"type":`...), e.Type)
	if e.Title != "" {
		body = appendJSONString(append(body, `,"title":`...), e.Title)
	}
	body = strconv.AppendInt(append(body, `,"status":`...), int64(e.Status), 10)
	if e.Detail != "" {
		body = appendJSONString(append(body, `,"detail":`...), e.Detail)
	}
	if traceID != "" {
		body = appendJSONString(append(body, `,"trace_id":`...), traceID)
	}
	for i, name := range e.violated {
		if i == 0 {
			body = append(body, `,"violated-policies":[`...)
		} else {
			body = append(body, ',')
		}
		body = appendJSONString(body, name)
		if i == len(e.violated)-1 {
			body = append(body, ']')
		}
	}
	return append(body, "}\n"...)
}

// appendJSONString appends s as a JSON string, in the form of encoding/json. It is fast for a text that needs
// no escape, as almost all do.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s)
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// began reports whether the response of w has begun, according to w or to a writer of this package that w
// wraps. If unwrapping w leads to no writer of this package, as with some compressing writers, the record's
// own writer decides.
func (ex *exchange) began(w http.ResponseWriter) bool {
	for {
		switch v := w.(type) {
		case *responseWriter:
			if v.started() {
				return true
			}
			w = v.ResponseWriter
		case interface{ Unwrap() http.ResponseWriter }:
			w = v.Unwrap()
		default:
			if ex == nil {
				return false
			}
			if ex.whole != nil {
				ex = ex.whole
			}
			return ex.w.ex != nil && ex.w.started()
		}
	}
}

// handleError calls the function of the innermost HandleErrors, and reports whether there is one. An error
// that the function itself writes is not passed to it again.
func (ex *exchange) handleError(w http.ResponseWriter, r *http.Request, e *Error) bool {
	if ex == nil {
		return false
	}
	ex.mu.Lock()
	before := ex.answering
	if before.onError != nil {
		ex.answering = answering{answered: e}
	}
	ex.mu.Unlock()
	if before.onError == nil {
		return false
	}
	defer func() {
		ex.mu.Lock()
		ex.answering = before
		ex.mu.Unlock()
	}()
	before.onError(w, r, e)
	if rw, ok := w.(*responseWriter); ok && !rw.started() {
		rw.WriteHeader(e.Status) // otherwise net/http sends 200
	}
	return true
}

// answerInstead calls h to answer a request that was refused with err. The outcome is OutcomeRejected, even
// if h answers 200.
func (ex *exchange) answerInstead(h http.Handler, w *responseWriter, r *http.Request, err error) {
	e := finish(err)
	ex.note(result{refused: true}.outcome(), e)
	ex.mu.Lock()
	before := ex.answered
	ex.answered = e
	ex.mu.Unlock()
	defer func() {
		ex.mu.Lock()
		ex.answered = before
		ex.mu.Unlock()
	}()
	h.ServeHTTP(w, r)
}

// ErrorFrom returns the error that a handler is answering. It returns an error only in the function given to
// HandleErrors and in BreakerOptions.Fallback. Elsewhere it returns nil.
func ErrorFrom(ctx context.Context) error {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return nil
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.answered == nil {
		return nil
	}
	return ex.answered
}

// HandleErrors makes h write the error answers of this package for everything inside it. All fields of e that
// the client sees are set, and e.Header has already been added to w. h may call WriteError, which then writes
// a problem. If h writes nothing, the client gets the status without a body. If HandleErrors are nested, the
// innermost h is called. h must be safe for concurrent use. HandleErrors panics if h is nil.
func HandleErrors(h func(w http.ResponseWriter, r *http.Request, e *Error)) Middleware {
	if h == nil {
		panic("gateway: HandleErrors: nil function")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			ex.mu.Lock()
			outer := ex.onError
			ex.onError = h
			ex.mu.Unlock()
			defer func() {
				ex.mu.Lock()
				ex.onError = outer
				ex.mu.Unlock()
			}()
			next.ServeHTTP(rw, r)
		})
	}
}
