package gateway

import (
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// interim passes informational (1xx) responses on until the final response arrives. It also keeps the
// connection that they arrive on, for upgrade.
type interim struct {
	w      *responseWriter
	body   *requestBody // nil: none
	edits  *fieldEdits  // of responses
	here   ownedHere    // the field of the trace id is not the target's
	silent bool         // the client is HTTP/1.0, which has no 1xx

	mu      sync.Mutex
	conn    net.Conn
	stopped bool
}

func (i *interim) gotConn(info httptrace.GotConnInfo) {
	i.mu.Lock()
	i.conn = info.Conn
	i.mu.Unlock()
}

// maxInterim bounds the informational responses to one attempt: one target must not use up what another may
// send. net/http has no bound of its own once Got1xxResponse is set.
const maxInterim = 100

// pass is called for each informational response.
func (i *interim) pass(code int, header textproto.MIMEHeader) error {
	if i.body != nil && i.body.expectation != nil {
		i.body.expectation.informed(code)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return nil
	}
	if i.silent || code == http.StatusContinue {
		return nil // the server sends its own 100 when the body is read
	}
	h := i.w.Header()
	saved := maps.Clone(h)
	clear(h)
	for name, values := range header {
		if !i.here.isTrace(name) {
			h[name] = values
		}
	}
	httpfield.RemoveHopByHop(h)
	i.edits.remove(h)
	i.w.WriteHeader(code)
	clear(h)
	maps.Copy(h, saved)
	return nil
}

// stop ends passing on: the transport has returned the final response or an error.
func (i *interim) stop() {
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
}

// expectation tracks whether the target wants the body of a client that expects 100-continue. It is needed
// because a transport reads the body also when the target has answered without it, to keep the connection.
// The server would then send 100 to the client for a body that nobody wants.
type expectation struct {
	lock     sync.Mutex
	answered bool          // a response has begun in the current attempt, and it is not 1xx as far as is known
	wanted   bool          // the target sent 100
	over     bool          // nobody reads any more
	changed  chan struct{} // closed at the next change
}

// hold waits while the target has answered without asking for the body. It reports whether it waited.
func (e *expectation) hold() bool {
	e.lock.Lock()
	changed, held := e.changed, e.answered && !e.wanted && !e.over
	e.lock.Unlock()
	if held {
		<-changed
	}
	return held
}

// change wakes hold, which checks again. The caller holds e.lock.
func (e *expectation) change() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// wake makes hold return once.
func (e *expectation) wake() {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.change()
}

// begin is called when a connection is found: an attempt begins.
func (e *expectation) begin() {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.answered, e.wanted = false, false
	e.change()
}

// firstByte is called when a response begins, final or 1xx.
func (e *expectation) firstByte() {
	e.lock.Lock()
	e.answered = true
	e.lock.Unlock()
}

// informed records that the response that began was a 1xx.
func (e *expectation) informed(code int) {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.answered, e.wanted = false, e.wanted || code == http.StatusContinue
	e.change()
}

// release ends all waiting, because the body is no longer read.
func (e *expectation) release() {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.over = true
	e.change()
}
