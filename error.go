package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is a refusal or failure with its HTTP face. Detail is sent; Err is only logged.
//
// The zero value is a 500 that says nothing.
type Error struct {
	Status int         // HTTP status; 0 means 500
	Type   string      // RFC 9457 problem type; "" means about:blank
	Title  string      // "" means the status text
	Detail string      // for the client; "" sends none
	Header http.Header // extra response fields: Retry-After, WWW-Authenticate
	Err    error       // cause; never sent
}

// Error is for logs: it tells the cause, which a client must not see.
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

// status is the status that is sent. One that is no final answer means 500.
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

// Conditions that callers branch on with errors.Is.
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
	ErrNoCredentials   = errors.New("gateway: no credentials")      // an Authenticator found none of its kind
)

// statusClientClosed is what the log says of a client that left before its answer (after nginx); nobody
// ever receives it.
const statusClientClosed = 499

// statuses maps conditions to the status that answers them; the first that holds counts.
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
	{ErrTimeout, http.StatusGatewayTimeout},
	{ErrBadGateway, http.StatusBadGateway},
	{context.DeadlineExceeded, http.StatusGatewayTimeout},
	{context.Canceled, statusClientClosed},
}

// waiter is an error that knows when asking again could help.
type waiter interface{ retryAfter() time.Duration }

// finish returns err as an Error with every field filled in that the client will see. It never changes
// err.
func finish(err error) *Error {
	var e Error
	var given *Error
	var tooLarge *http.MaxBytesError
	switch {
	case err == error(given): // nil, but for its type
		err, e.Status = nil, http.StatusInternalServerError
	case errors.As(err, &given) && given != nil:
		e = *given
		e.Header = given.Header.Clone()
		if err != error(given) {
			e.Err = err // the log is told the whole chain
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

// seconds writes d for Retry-After: whole seconds, rounded up, at least 1.
func seconds(d time.Duration) string {
	return strconv.Itoa(int(max(1, math.Ceil(d.Seconds()))))
}

// WriteError is the one exit for every refusal: RFC 9457 application/problem+json with the trace id,
// unless HandleErrors stands outside. An unknown error becomes 500 without its text. What the client is
// sent is Error's Status, Type, Title, Detail and Header; the cause goes to the log and the span.
//
// The errors above get their status and an *Error has its own; an *http.MaxBytesError gets 413, an ended
// context 504, and a cancelled one 499, which nobody receives. When the response has already begun,
// WriteError writes nothing: the error is noted alone.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e := finish(err)
	answerError(w, r, e, result{err: e, gone: leftEarly(r.Context())})
}

// refuse answers with err and notes that it was the gateway that refused, whatever the status.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	answerError(w, r, finish(err), result{refused: true})
}

// answerError sends e, which is finished, and notes how that ends the exchange.
func answerError(w http.ResponseWriter, r *http.Request, e *Error, end result) {
	ex := exchangeFrom(r.Context())
	ex.note(end.outcome(), e)
	if rw, ok := w.(*responseWriter); ok && rw.started() {
		return
	}

	h := w.Header()
	// What was meant for the answer that is not sent.
	for _, name := range []string{"Content-Encoding", "Content-Length", "Content-Range", "Etag", "Last-Modified"} {
		delete(h, name)
	}
	h.Set("Cache-Control", "no-store")
	for name, values := range e.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}

	var traceID string
	if ex != nil {
		ex.mu.Lock()
		traceID = ex.traceID
		onError := ex.onError
		answered := ex.answered
		if onError != nil {
			ex.onError, ex.answered = nil, e // what onError itself writes is not handed to it again
		}
		ex.mu.Unlock()
		if onError != nil {
			defer func() {
				ex.mu.Lock()
				ex.onError, ex.answered = onError, answered
				ex.mu.Unlock()
			}()
			onError(w, r, e)
			if rw, ok := w.(*responseWriter); ok && !rw.started() {
				rw.WriteHeader(e.Status) // not the 200 of a handler that is silent
			}
			return
		}
	}

	body, _ := json.Marshal(struct {
		Type    string `json:"type"`
		Title   string `json:"title,omitempty"`
		Status  int    `json:"status"`
		Detail  string `json:"detail,omitempty"`
		TraceID string `json:"trace_id,omitempty"`
	}{e.Type, e.Title, e.Status, e.Detail, traceID})
	body = append(body, '\n')
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.Status)
	_, _ = w.Write(body)
}

// ErrorFrom returns the error that is being answered, to a fallback or an error handler; nil elsewhere.
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

// HandleErrors replaces the way errors are written by everything inside it. h gets the finished error:
// status, fields and all; its Header is in w's already. What h writes by WriteError is a problem as
// without it. When h writes nothing, the status is sent alone. Of two, the inner is asked. It panics when h is
// nil.
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

// causeText is what the log says of an error.
func causeText(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}
