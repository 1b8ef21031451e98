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
// connection to the target, for upgrade.
type interim struct {
	w      *responseWriter
	body   *requestBody // nil for none
	edits  *fieldEdits  // of responses
	here   *ownedHere   // has the field of the trace id, which the target must not set
	silent bool         // the client uses HTTP/1.0, which has no 1xx

	mu      sync.Mutex
	conn    net.Conn
	stopped bool
}

func (i *interim) gotConn(info httptrace.GotConnInfo) {
	i.mu.Lock()
	i.conn = info.Conn
	i.mu.Unlock()
}

// maxInterim limits the number of informational responses to one attempt. net/http does not limit it if
// Got1xxResponse is set. The limit is for each attempt, so that a first target cannot use up that of the
// next.
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
		return nil // net/http's server sends 100 when the body is read
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

// stop is called when the transport has returned the final response or an error. Later calls of pass have no
// effect.
func (i *interim) stop() {
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
}

// expectation tracks whether the target has asked for the body of a client that expects 100-continue. If the
// target answers without the body, a transport may still read the body, to keep the connection. The
// server would then send 100 to the client, which would send a body that is not needed. So such a read waits.
type expectation struct {
	lock     sync.Mutex
	answered bool          // a response has begun in the current attempt, which may turn out to be a 1xx
	wanted   bool          // the target has sent 100
	over     bool          // reading of the body has ended
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

// begin is called when an attempt has a connection.
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

// informed records that the response that has begun is a 1xx.
func (e *expectation) informed(code int) {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.answered, e.wanted = false, e.wanted || code == http.StatusContinue
	e.change()
}

// release wakes all readers for good, because reading of the body has ended.
func (e *expectation) release() {
	e.lock.Lock()
	defer e.lock.Unlock()
	e.over = true
	e.change()
}
