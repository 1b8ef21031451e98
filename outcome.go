package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/seed-96248d0c/gateway/internal/grpcmeta"
	"github.com/seed-96248d0c/gateway/internal/idletimer"
	"github.com/seed-96248d0c/gateway/internal/neterror"
)

// Outcome classifies the result of an attempt or of an exchange. An attempt is a request that an Upstream
// sends to one target. An exchange is a client's request and its answer. Each has exactly one Outcome.
// Circuits, retries, passive health checks, metrics and the access log all use it, so they never disagree.
//
// A gRPC status counts as the corresponding HTTP status: UNAVAILABLE as 503, DEADLINE_EXCEEDED as 504,
// UNIMPLEMENTED as 501, and UNKNOWN, INTERNAL and DATA_LOSS as 500. The others are OutcomeOK, as a 4xx is. A
// circuit treats INTERNAL as a 501: servers answer every malformed message or metadata field with INTERNAL,
// so otherwise any client could open the circuit. DEADLINE_EXCEEDED is OutcomeClientCanceled in two cases:
// the client itself chose the deadline, in the field Grpc-Timeout; or the client has kept the target waiting
// for its messages. If a failure's status arrives in the trailers, circuits and health checks have already
// counted the header as a success. They then replace that success by a failure, as for a response that is cut
// off.
type Outcome int

const (
	OutcomeOK             Outcome = iota // an answer below 500 reached the client
	OutcomeClientCanceled                // the client left before the answer was complete; not counted as a failure
	OutcomeRejected                      // the gateway refused: authentication, limit, open circuit, overload, slow client
	OutcomeTimeout                       // the upstream was too slow
	OutcomeUpstreamError                 // failed connection, protocol error or 5xx, of an upstream or of a local handler
	OutcomeAborted                       // the upstream failed after its response had begun
	OutcomeInternal                      // a panic in this process; not counted as a failure of an upstream
	OutcomeUnavailable                   // the gateway could not decide: key set, introspection endpoint or limiter cannot be reached; not counted as a failure of an upstream
)

// String returns the word for logs and labels, such as "client_canceled".
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeClientCanceled:
		return "client_canceled"
	case OutcomeRejected:
		return "rejected"
	case OutcomeTimeout:
		return "timeout"
	case OutcomeUpstreamError:
		return "upstream_error"
	case OutcomeAborted:
		return "aborted"
	case OutcomeInternal:
		return "internal"
	case OutcomeUnavailable:
		return "unavailable"
	}
	return "Outcome(" + strconv.Itoa(int(o)) + ")"
}

// result is the result of an attempt or an exchange, from which its Outcome follows.
type result struct {
	status    int // of the answer; 0 without an answer
	grpc      grpcCall
	err       error // the cause of a failure; nil if it did not fail
	refused   bool  // the gateway refused it
	undecided bool  // the gateway could not decide whether to refuse it
	began     bool  // the response had begun when err occurred
	gone      bool  // the client had left
	panicked  bool  // code of this process failed
}

// grpcCall is the result of a gRPC call.
type grpcCall struct {
	status  grpcmeta.Status
	excused bool // the client chose the deadline, or kept the target waiting for its messages
}

// expired reports whether the call ended with DEADLINE_EXCEEDED because of the client. Any client can choose
// a deadline that no server meets, or send no messages until the server's own deadline has passed. So such a
// call is treated as one whose client left.
func (c grpcCall) expired() bool { return c.status == grpcmeta.DeadlineExceeded && c.excused }

// answered returns the status that decides the outcome: the HTTP status, or the 5xx that corresponds to the
// gRPC status. For example, UNAVAILABLE is a 503.
func (e result) answered() int {
	if status := e.grpc.status.HTTPStatus(); status != 0 && !e.grpc.expired() {
		return status
	}
	return e.status
}

// forCircuit returns the status by which a circuit judges the answer. INTERNAL counts as a 501, because any
// client can provoke it: by a malformed message, by too many or too few messages, or by a malformed metadata
// field.
func (e result) forCircuit() int {
	if e.grpc.status == grpcmeta.Internal {
		return http.StatusNotImplemented
	}
	return e.answered()
}

// outcome decides the Outcome. No other code does.
func (e result) outcome() Outcome {
	switch {
	case e.undecided:
		return OutcomeUnavailable
	case e.refused, errors.Is(e.err, errSlowClient):
		return OutcomeRejected
	case errors.Is(e.err, errClientDeadline):
		return OutcomeClientCanceled
	case e.panicked, e.err != nil && isPanic(e.err):
		return OutcomeInternal
	case e.gone:
		return OutcomeClientCanceled
	case e.err == nil && e.grpc.expired():
		return OutcomeClientCanceled
	case e.err == nil && e.answered() < 500:
		return OutcomeOK
	case e.err == nil:
		return OutcomeUpstreamError
	case errors.Is(e.err, context.Canceled):
		return OutcomeClientCanceled
	case errors.Is(e.err, ErrTimeout), errors.Is(e.err, context.DeadlineExceeded):
		return OutcomeTimeout
	case isRefusal(e.err):
		return OutcomeRejected
	case e.began:
		return OutcomeAborted
	case errors.Is(e.err, http.ErrAbortHandler):
		return OutcomeAborted
	}
	return OutcomeUpstreamError
}

// errServerStopped is the error of a request that Serve cut off.
var errServerStopped = errors.New("gateway: the server stopped before the answer was complete")

// blameServer corrects the outcome of a request that Serve cut off. The handler cannot distinguish it from
// one whose client left.
func blameServer(ctx context.Context, o Outcome, err error) (Outcome, error) {
	if o != OutcomeClientCanceled || !servingFrom(ctx).hasCut() {
		return o, err
	}
	return result{refused: true}.outcome(), serverStopped(nil)
}

// serverStopped returns the 503 for a request that Serve cut off. err is the resulting error of the handler,
// or nil.
func serverStopped(err error) error {
	stopped := errServerStopped
	if err != nil {
		stopped = fmt.Errorf("%w: %w", errServerStopped, err)
	}
	return &Error{Status: http.StatusServiceUnavailable, Err: stopped}
}

// isRefusal reports whether err is a refusal by the gateway, which no upstream has caused.
func isRefusal(err error) bool {
	for _, refusal := range []error{ErrCircuitOpen, ErrNoTarget, ErrOverloaded, errServerStopped} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return finish(err).Status < 500
}

// couldNotDecide reports whether e means that an Authenticator, a Limiter or a KeyFunc could not decide. That
// is so for every 5xx. Any other status is a refusal.
func couldNotDecide(e *Error) bool { return e.Status >= 500 }

// lookupError converts err, which a KeySource or a user's function returned, to the error of an
// Authenticator. A refusal, an *Error, and any error after the request's end are returned unchanged. Any
// other error becomes a 503: the caller could not be authenticated or refused.
func lookupError(ctx context.Context, err error) error {
	var own *Error
	if errors.Is(err, ErrUnauthenticated) || errors.As(err, &own) || ctx.Err() != nil {
		return err
	}
	return &Error{Status: http.StatusServiceUnavailable, Err: err}
}

// undecidedBy returns the 503 for a request about which a policy could not decide. name is the name of the
// policy, for the log.
func undecidedBy(name string, err error) error {
	return &Error{Status: http.StatusServiceUnavailable, Err: fmt.Errorf("gateway: %s: %w", name, err)}
}

// isRefused reports whether o means that the gateway refused the request, or could not decide.
func isRefused(o Outcome) bool { return o == OutcomeRejected || o == OutcomeUnavailable }

// isFailure reports whether o counts as an error in the RED method.
func isFailure(o Outcome) bool {
	switch o {
	case OutcomeTimeout, OutcomeUpstreamError, OutcomeAborted, OutcomeInternal, OutcomeUnavailable:
		return true
	}
	return false
}

// isUpstreamFailure reports whether o is a failure of an upstream, or of a local handler in its place.
func isUpstreamFailure(o Outcome) bool {
	switch o {
	case OutcomeTimeout, OutcomeUpstreamError, OutcomeAborted:
		return true
	}
	return false
}

// isNeutral reports whether o is neither a success nor a failure of an upstream.
func isNeutral(o Outcome) bool {
	switch o {
	case OutcomeClientCanceled, OutcomeRejected, OutcomeInternal, OutcomeUnavailable:
		return true
	}
	return false
}

// isCircuitFailure is the default of CircuitOptions.IsFailure. A 501 or a 505 is not a failure: any client
// can send a method or a version that the upstream does not implement.
func isCircuitFailure(o Outcome, status int) bool {
	switch o {
	case OutcomeTimeout, OutcomeAborted:
		return true
	case OutcomeUpstreamError:
		return status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported
	}
	return false
}

// severity grades the failure of an attempt by how clearly it shows that the target cannot serve. A target is
// ejected for any severity but severityNone (see HealthOptions).
type severity int32

const (
	severityNone        severity = iota // not a failure of the target as a whole
	severityAnswers                     // it answered that it cannot serve: 502, 503, 504
	severityFails                       // it did not send a complete response: protocol error, timeout, abort
	severityUnreachable                 // no connection could be made
)

// severity returns the severity of the result of an attempt. A 500, a 501 or a 505 is about one request: if
// it counted, a client that knows a request with this answer could get the target ejected.
func (e result) severity() severity {
	switch e.outcome() {
	case OutcomeTimeout, OutcomeAborted:
	case OutcomeUpstreamError:
		switch e.answered() {
		case 0:
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return severityAnswers
		default:
			return severityNone
		}
	default:
		return severityNone
	}
	if neterror.Unsent(e.err) {
		return severityUnreachable
	}
	return severityFails
}

// describe returns the result of a failed attempt as a short text, for TargetStatus.Reason.
func (e result) describe() string {
	text := e.outcome().String()
	switch {
	case e.severity() == severityUnreachable:
		return text + ", not reachable"
	case e.severity() == severityAnswers:
		return text + ", status " + strconv.Itoa(e.answered())
	}
	return text
}

// errorType returns the attribute error.type of OpenTelemetry's conventions: the status for an error answer,
// the outcome for another failure, and "" for a success.
func errorType(o Outcome, status int) string {
	switch {
	case status >= 500 && (o == OutcomeUpstreamError || o == OutcomeRejected || o == OutcomeUnavailable):
		return strconv.Itoa(status)
	case isFailure(o):
		return o.String()
	}
	return ""
}

// leftEarly reports whether ctx was canceled, as when the client leaves, and did not end by its deadline.
func leftEarly(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.Canceled)
}

var (
	// errSlowClient is the cause of the 408 for a client that did not send its body in time.
	errSlowClient = errors.New("gateway: the client did not send its body in time")

	// errClientDeadline means that an attempt failed after the deadline that the client itself chose.
	errClientDeadline = errors.New("gateway: the deadline that the client chose (grpc-timeout) has passed")
)

// errClientLeft is context.Canceled with a text for the log.
var errClientLeft error = clientLeft{}

type clientLeft struct{}

func (clientLeft) Error() string        { return "gateway: the client left" }
func (clientLeft) Is(target error) bool { return target == context.Canceled }

// slowClient returns the 408 for a client that did not send its body in time.
func slowClient(err error) error {
	return &Error{Status: http.StatusRequestTimeout, Err: fmt.Errorf("%w: %w", errSlowClient, hideOutcome(err))}
}

// clientDeadline wraps the error of an attempt that failed after the deadline that the client itself chose.
func clientDeadline(err error) error {
	return fmt.Errorf("%w: %w", errClientDeadline, hideOutcome(err))
}

// hideOutcome hides the errors that err wraps, so that they do not decide the outcome. It does not hide
// ErrBadGateway, after which a request may be sent again.
func hideOutcome(err error) error {
	if errors.Is(err, ErrBadGateway) {
		return err
	}
	return hideCanceled{err}
}

// isOver reports whether err means that reading a body ended because its request had ended.
func isOver(err error) bool {
	var own *Error
	return !errors.As(err, &own) && (errors.Is(err, errBodyClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// requestBodyError wraps the error of a read of a request's body in the corresponding error of this package.
// Such an error counts against no target, because the client is its cause.
func requestBodyError(err error) error {
	var tooLarge *http.MaxBytesError
	var own *Error
	switch {
	case errors.As(err, &own), errors.Is(err, ErrBodyTooLarge), isOver(err):
		return err
	case errors.As(err, &tooLarge):
		return fmt.Errorf("%w: %w", ErrBodyTooLarge, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return slowClient(err)
	}
	return &Error{Status: http.StatusBadRequest, Err: fmt.Errorf("body of the request: %w", err)}
}

// errIdle is why a response ended whose target sent nothing for UpstreamOptions.Idle.
var errIdle = errors.New("gateway: the target paused for too long")

// idleCause returns why t interrupted a read from the target, and nil if it did not.
func idleCause(t *idletimer.Timer) error {
	after, expired := t.Expired()
	if !expired {
		return nil
	}
	return fmt.Errorf("%w: nothing for %v", errIdle, after)
}

// attemptError wraps the error of a round trip of r in the corresponding error of this package.
func attemptError(r *http.Request, err error) error {
	var tooLarge *http.MaxBytesError
	var slow net.Error
	var own *Error
	switch ctx := r.Context(); {
	case errors.Is(err, ErrBodyTooLarge), errors.Is(err, ErrTimeout), errors.Is(err, ErrBadGateway),
		errors.Is(err, ErrNoTarget), errors.Is(err, ErrCircuitOpen), errors.As(err, &own):
		return err // wrapped already
	case errors.As(err, &tooLarge):
		return fmt.Errorf("%w: %w", ErrBodyTooLarge, err)
	case neterror.Refusal(err) != 0:
		return &Error{Status: neterror.Refusal(err), Err: err}
	case neterror.LocalShortage(err), neterror.EnhanceYourCalm(err):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	case mayBeTooLarge(r, err):
		return &Error{Status: http.StatusRequestHeaderFieldsTooLarge, Err: err}
	case context.Cause(ctx) == ErrTimeout, ctx.Err() == context.DeadlineExceeded:
		return timedOut(err)
	case leftEarly(ctx):
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case errors.As(err, &slow) && slow.Timeout():
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return fmt.Errorf("%w: %w", ErrBadGateway, err)
}

// surelyAccepted is the size of fields that every common server accepts. Some servers accept no more.
const surelyAccepted = 8 << 10

// mayBeTooLarge reports whether r may have failed with err because its fields are too large for the target.
// Some servers close the connection instead of answering 431. A server with HTTP/2 announces its limit, but
// the first request may be sent before the announcement arrives: the server then closes the connection, and
// net/http retries until the time is over. So the failure of a request with large fields does not count
// against the target, unless nothing was sent.
func mayBeTooLarge(r *http.Request, err error) bool {
	if r.URL == nil || fieldBytes(r)+len(r.URL.Path)+len(r.URL.RawQuery) <= surelyAccepted || neterror.Unsent(err) {
		return false
	}
	switch cause := context.Cause(r.Context()); {
	case cause == nil:
		return true
	case errors.Is(cause, ErrTimeout):
		return r.URL.Scheme != "http" && r.URL.Scheme != schemeUnix // with HTTP/1.1, net/http does not retry
	}
	return false
}

// hideCanceled has the text of an error but does not wrap it. Some transports report an expired timeout as
// context.Canceled, which must not be taken for a client that left.
type hideCanceled struct{ err error }

func (h hideCanceled) Error() string { return h.err.Error() }

// timedOut wraps the error of a round trip whose time was over.
func timedOut(err error) error { return fmt.Errorf("%w: %w", ErrTimeout, hideCanceled{err}) }

// panicError is a panic as an error. It counts against no upstream.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// isPanic reports whether err wraps a panic of this process.
func isPanic(err error) bool {
	var p *panicError
	return errors.As(err, &p)
}

// roundTripError returns the error of an attempt that got no response. err is the error that the transport
// returned for out. If the client was the cause, roundTripError returns the error about the client instead.
func (a *attempt) roundTripError(out *http.Request, err error) error {
	err = fmt.Errorf("target %s: %w", a.member.URL.Redacted(), attemptError(out, err))
	if leftEarly(a.client) {
		if slow := a.body.slow(); slow != nil {
			return slow
		}
	}
	if cause := a.body.cause(); bodyIsCause(cause, leftEarly(a.client)) {
		return cause
	}
	switch {
	case errors.Is(err, errSlowClient), leftEarly(a.client):
		return err
	case a.client.Err() == context.DeadlineExceeded:
		if a.clock.clientIsLate() || a.clientTookMost() {
			return slowClient(err)
		}
	case errors.Is(err, ErrBadGateway) && a.clock.stalled() && !neterror.Unsent(err):
		return slowClient(fmt.Errorf("%w: the target broke off while it waited for the rest of the body", err))
	}
	if a.pastOwnDeadline() {
		return clientDeadline(err)
	}
	return err
}

// clientTookMost reports whether most of the request's time was spent waiting for its body.
func (a *attempt) clientTookMost() bool {
	before := a.body.waited()
	return before+a.clock.clientTime() > (before+time.Since(a.start))/2
}

// failedByClient returns the error that replaces a 5xx which the client may have caused: the target may have
// waited for the client's body until a time limit of its own. A 5xx that arrives at once counts against the
// target, even if the client has not sent its whole body. A gRPC status is not replaced, since a gRPC stream
// is often open without messages.
func (a *attempt) failedByClient(res *http.Response) error {
	if res.StatusCode < 500 || grpcmeta.Is(res.Header) || !a.clock.keptWaiting() {
		return nil
	}
	return slowClient(fmt.Errorf("the target answered %d while it waited for the rest of the body", res.StatusCode))
}

// bodyError returns the error of an attempt whose response was cut off. err is the error of the read.
func (a *attempt) bodyError(err error) error {
	if cause := a.body.cause(); cause != nil && !leftEarly(a.client) {
		return cause
	}
	switch {
	case a.pastOwnDeadline():
		return clientDeadline(err)
	case neterror.EnhanceYourCalm(err):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	}
	return err
}

// hadTooLittleTime reports whether the caller's time limit passed when the target had had less than half of
// it. The rest was spent earlier, for example on another part of an aggregate. The attempt is then treated as
// one whose client left.
func (a *attempt) hadTooLittleTime() bool { return endedBeforeHalf(a.client, a.start) }

// endedBeforeHalf reports whether the time limit of ctx has passed, and work that began at start had less
// than half of it. For example, with a limit of 2s, work that began after 1.2s had 0.8s.
func endedBeforeHalf(ctx context.Context, start time.Time) bool {
	if ctx.Err() != context.DeadlineExceeded {
		return false
	}
	limit, _ := ctx.Value(limitKey{}).(time.Duration)
	return time.Since(start) < limit/2
}

// judge returns the outcome of the handler inside a Breaker, for its circuit. o is the outcome of the
// exchange. If the request's time limit has passed, it matters how much of the time the handler had, as for
// an attempt.
func (g *guard) judge(o Outcome) Outcome {
	switch {
	case g.began.IsZero() || g.ctx.Err() != context.DeadlineExceeded:
	case isUpstreamFailure(o) && (endedBeforeHalf(g.ctx, g.began) || g.body.tookTime(g.began)):
		return OutcomeClientCanceled
	case o == OutcomeAborted:
		return OutcomeTimeout // does not replace the success of the header, which was sent in time
	}
	return o
}

// mayBeTargets reports whether an attempt may have failed with err because of its target, so that another
// target may answer. If the target broke off while the client was slow, the target may have failed.
func mayBeTargets(err error) bool {
	switch (result{err: err}).outcome() {
	case OutcomeTimeout, OutcomeUpstreamError:
		return true
	}
	return errors.Is(err, errSlowClient) && errors.Is(err, ErrBadGateway)
}

// bodyIsCause reports whether a request failed because of cause, the error of a read of its body. left is
// true if the context was canceled. That happens when the client leaves, but also when the read of a slow
// client fails.
func bodyIsCause(cause error, left bool) bool {
	return cause != nil && (errors.Is(cause, errSlowClient) || !left)
}

// forwardError returns the error of a request for which Proxy has no response. err is the transport's error.
// cause is the error of a read of the request's body, which may be the reason for err; nil for none. slow is
// true if the client sent its body too slowly, and left if the request's context was canceled.
func forwardError(err, cause error, slow, left bool) error {
	if cause != nil && (slow || !left) {
		err = cause
	}
	if left && !errors.Is(err, errSlowClient) {
		return errClientLeft
	}
	return err
}

// cutOff returns the outcome of a request whose response was cut off by err, and the error for the log.
func (f *forwarding) cutOff(err error) (Outcome, error) {
	gone := leftEarly(f.in.Context())
	if f.body != nil {
		if cause := f.body.cause(); bodyIsCause(cause, gone) {
			err, gone = cause, false
		}
	}
	o := result{err: err, began: true, gone: gone}.outcome()
	switch {
	case o == OutcomeClientCanceled && gone:
		err = errClientLeft
	case o != OutcomeClientCanceled && o != OutcomeRejected:
		err = fmt.Errorf("%w: body of the response: %w", ErrBadGateway, err)
	}
	return o, err
}

// slowRead returns the 408 for a read of a client's body that failed with err, or nil if err does not mean
// that the client was slow.
func slowRead(err error) error {
	switch {
	case errors.Is(err, errSlowClient): // from an inner clientBody
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return slowClient(errors.New("the server's read deadline has passed"))
	}
	return nil
}

// partError is like attemptError, for any RoundTripper. A context.Canceled while the part's context has not
// ended is a failure of the RoundTripper.
func partError(req *http.Request, err error) error {
	if errors.Is(err, context.Canceled) && req.Context().Err() == nil {
		err = hideCanceled{err}
	}
	return attemptError(req, err)
}

// partOutcome returns the outcome of a part whose response is a failure. If the response is from a gateway
// inside a HandlerTransport, it is the outcome that this gateway noted, such as a refusal or a timeout.
func partOutcome(res *http.Response) Outcome {
	if body, ok := res.Body.(handlerBody); ok && res.StatusCode >= 500 {
		if o, noted := body.recordedOutcome(); noted && o != OutcomeOK {
			return o
		}
	}
	return result{err: ErrBadGateway}.outcome()
}

// partStatus returns the status of the answer when a required part ended with o.
func partStatus(o Outcome) int {
	switch o {
	case OutcomeRejected, OutcomeUnavailable:
		return http.StatusServiceUnavailable
	case OutcomeTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}
