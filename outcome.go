package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
)

// Outcome is how an attempt or an exchange ended. An attempt is one try at a target of an Upstream. An exchange is a
// request and its answer as the client sees them. One function decides the Outcome, once for each attempt and once
// for the exchange. Circuits, retries, health checks by traffic, metrics and the access log all use it, so they never
// disagree.
//
// The status of a gRPC call is judged as the HTTP status that says the same: UNAVAILABLE as 503, DEADLINE_EXCEEDED as
// 504, UNIMPLEMENTED as 501, and UNKNOWN, INTERNAL and DATA_LOSS as 500. The others are OutcomeOK, as a 4xx is. A
// DEADLINE_EXCEEDED is OutcomeClientCanceled where the client chose the deadline itself, by the field Grpc-Timeout. A
// status in the trailers comes when the response has begun: like a response that is cut off, it takes back the success
// that was counted for the header.
type Outcome int

const (
	OutcomeOK             Outcome = iota // an answer below 500 reached the client
	OutcomeClientCanceled                // the client left first; nobody's failure
	OutcomeRejected                      // the gateway refused: auth, limit, open circuit, shedding
	OutcomeTimeout                       // the upstream was too slow
	OutcomeUpstreamError                 // dial, protocol or 5xx; of a local handler too
	OutcomeAborted                       // the upstream died after its response began
	OutcomeInternal                      // a panic in this process; no upstream is to blame
	OutcomeUnavailable                   // the gateway could not decide: key set, introspection endpoint or limiter away; no upstream is to blame
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

// result is what is known about how an attempt or an exchange ended.
type result struct {
	status    int // of the answer; 0 without an answer
	grpc      grpcCall
	err       error // why it failed; nil if it did not
	refused   bool  // the gateway refused it
	undecided bool  // the gateway could not decide whether to refuse it
	began     bool  // the response had begun when err occurred
	gone      bool  // the client had left
	panicked  bool  // code of this process failed
}

// grpcCall is what is known of a call of gRPC.
type grpcCall struct {
	status      grpcStatus
	hasDeadline bool // the client chose one
}

// expired reports whether the client's own deadline ended the call. Any client can choose a deadline that no server
// meets, so this is like a client that leaves.
func (c grpcCall) expired() bool { return c.status == grpcDeadlineExceeded && c.hasDeadline }

// answered returns the status by which the answer is judged: that of HTTP, or the 5xx that says the same as the status of
// gRPC. For example, UNAVAILABLE is a 503.
func (e result) answered() int {
	if status := e.grpc.status.httpStatus(); status != 0 && !e.grpc.expired() {
		return status
	}
	return e.status
}

// outcome decides the Outcome. Nothing else does.
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

// errServerStopped is why a request ended that Serve cut off.
var errServerStopped = errors.New("gateway: the server stopped before the answer was complete")

// blameServer corrects the outcome of a request that Serve cut off. To the handler it looks like one whose client left.
func blameServer(ctx context.Context, o Outcome, err error) (Outcome, error) {
	if o != OutcomeClientCanceled || !servingFrom(ctx).hasCut() {
		return o, err
	}
	err = &Error{Status: http.StatusServiceUnavailable, Err: errServerStopped}
	return result{refused: true}.outcome(), err
}

// isRefusal reports whether err is a refusal by the gateway, for which no upstream is to blame.
func isRefusal(err error) bool {
	for _, refusal := range []error{ErrCircuitOpen, ErrNoTarget, ErrOverloaded, errServerStopped} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return finish(err).Status < 500
}

// couldNotDecide reports whether e, with which an Authenticator, a Limiter or a KeyFunc ended, is no refusal but means
// that it could not tell: every status of 5xx does.
func couldNotDecide(e *Error) bool { return e.Status >= 500 }

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

// isNeutral reports whether o tells nothing about an upstream: neither a success nor a failure of it.
func isNeutral(o Outcome) bool {
	switch o {
	case OutcomeClientCanceled, OutcomeRejected, OutcomeInternal, OutcomeUnavailable:
		return true
	}
	return false
}

// isCircuitFailure is the default of CircuitOptions.IsFailure. A 501 or a 505 is about the request: any client can
// ask for a method or a version that the upstream does not have.
func isCircuitFailure(o Outcome, status int) bool {
	switch o {
	case OutcomeTimeout, OutcomeAborted:
		return true
	case OutcomeUpstreamError:
		return status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported
	}
	return false
}

// severity is how far an attempt shows that its target cannot serve. A target is ejected for it (see HealthOptions).
type severity int32

const (
	severityNone        severity = iota // nothing that speaks of the target as a whole
	severityAnswers                     // it answered that it cannot serve: 502, 503, 504
	severityFails                       // it gave no whole answer: protocol error, timeout, abort
	severityUnreachable                 // no connection could be made
)

// severity returns what the result of an attempt says about its target. A 500 speaks of one request, and so do a 501
// and a 505: whoever knows one such request could have the target ejected by it.
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
	if neverSent(e.err) {
		return severityUnreachable
	}
	return severityFails
}

// describe returns the result of a failed attempt in a few words, for TargetStatus.
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

// errorType returns the attribute error.type of OpenTelemetry's conventions: the status for an error answer, the
// outcome for another failure, and "" for a success.
func errorType(o Outcome, status int) string {
	switch {
	case status >= 500 && (o == OutcomeUpstreamError || o == OutcomeRejected || o == OutcomeUnavailable):
		return strconv.Itoa(status)
	case isFailure(o):
		return o.String()
	}
	return ""
}

// leftEarly reports whether the caller canceled ctx, rather than its deadline.
func leftEarly(ctx context.Context) bool {
	return errors.Is(ctx.Err(), context.Canceled)
}

var (
	// errSlowClient is the cause of the 408 for a client that did not send its body in time.
	errSlowClient = errors.New("gateway: the client did not send its body in time")

	// errClientDeadline means that an attempt failed when the deadline that the client itself chose had passed.
	errClientDeadline = errors.New("gateway: the deadline that the client chose (grpc-timeout) has passed")
)

// errClientLeft is context.Canceled in the words of the log.
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

// hideOutcome hides the conditions in err that would decide the outcome otherwise. ErrBadGateway is not hidden: after
// it, a request may be sent again.
func hideOutcome(err error) error {
	if errors.Is(err, ErrBadGateway) {
		return err
	}
	return hideCanceled{err}
}

// isOver reports whether a body was not read further because its request had ended.
func isOver(err error) bool {
	var own *Error
	return !errors.As(err, &own) && (errors.Is(err, errBodyClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// requestBodyError wraps the error of a request's body in the condition of this package that it amounts to. The request
// is to blame for it, and no target.
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

// attemptError wraps the error of a round trip of r in the condition of this package that it amounts to.
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
	case refusedLocally(err) != 0:
		return &Error{Status: refusedLocally(err), Err: err}
	case isShortOfResources(err):
		return fmt.Errorf("%w: %w", ErrOverloaded, err)
	case mayBeTooLarge(r, err):
		return &Error{Status: http.StatusRequestHeaderFieldsTooLarge, Err: err}
	case context.Cause(ctx) == ErrTimeout, ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%w: %w", ErrTimeout, hideCanceled{err})
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

// hideCanceled has the text of an error but does not wrap it. A transport reports an expired timeout as a canceled
// context, which must not be taken for a client that left.
type hideCanceled struct{ err error }

func (h hideCanceled) Error() string { return h.err.Error() }
