package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/wsframe"
)

// upgrade passes a 101 on: it takes over the client's connection and copies between it and the target's
// connection, until both directions have ended.
func (f *forwarding) upgrade(out *http.Request, res *http.Response) {
	protocol := httpfield.UpgradeProtocols(res.Header) // checkResponse has checked that it was offered
	httpfield.RemoveHopByHop(res.Header)
	res.Header["Connection"], res.Header["Upgrade"] = []string{"Upgrade"}, []string{protocol}
	if !f.modify(out, res) {
		return
	}
	target, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		WriteError(f.w, f.in, fmt.Errorf("%w: switched protocols on a connection that cannot be written to", ErrBadGateway))
		return
	}
	defer target.Close()
	client, buf, err := f.w.Hijack()
	if err != nil {
		// The writer of an outer middleware does not support Hijack. This is not a failure of the target.
		err = fmt.Errorf("gateway: Proxy: upgrade: the outer writer %T does not support Hijack: %w", innermost(f.w), err)
		answerError(f.w, f.in, finish(err), result{panicked: true})
		return
	}
	client = withoutEnd(client) // endWithCredentials closes it instead, after both ends were asked to leave
	defer client.Close()
	// The server does not watch a hijacked connection, but the request's context may still end.
	stop := context.AfterFunc(f.in.Context(), func() { target.Close(); client.Close() })
	defer stop()
	if f.sendSwitch(buf.Writer, res) != nil {
		return
	}

	var toClient, toTarget io.Writer = client, target
	leave := func() {}
	if strings.EqualFold(protocol, "websocket") {
		// Of all protocols, only WebSocket has a known way to ask both ends to leave when the server drains.
		c, t := wsframe.NewWriter(client, false), wsframe.NewWriter(target, true)

		serving := servingFrom(f.in.Context())
		leave = func() { goAway(c, t) }
		defer serving.trackUpgraded(leave)()
		toClient, toTarget = c, t
	}
	defer f.endWithCredentials(leave, client, target)()
	// net/http's reader treats a half-closed connection as one that the client has left. So only the bytes
	// that it has buffered are read from it.
	early, _ := buf.Reader.Peek(buf.Reader.Buffered())
	fromClient := io.MultiReader(bytes.NewReader(early), client)

	var sent, received int64
	finished := make(chan bool, 2)
	go func() { finished <- copyDirection(toTarget, fromClient, f.interim.conn, &received) }()
	go func() { finished <- copyDirection(toClient, target, client, &sent) }()
	if halfClosed := <-finished; !halfClosed {
		target.Close()
		client.Close()
	}
	<-finished
	f.ex.tunneled(sent, received)
	if c, ok := target.(*attemptConn); ok && c.cut.err != nil {
		f.ex.note(c.cut.outcome(), c.cut.err) // the exchange has the outcome of the attempt
	}
}

// endWithCredentials ends the upgraded connection when the client's credentials have expired (see
// AuthOptions.UpgradeGrace). It calls leave, which asks both ends to leave, and closes both connections after
// leavePatience. The function that it returns stops all this.
func (f *forwarding) endWithCredentials(leave func(), client, target io.Closer) (stop func()) {
	until := f.ex.upgradeEnd()
	if until.IsZero() {
		return func() {}
	}
	var mu sync.Mutex
	stopped := false
	var closing *time.Timer
	expiry := time.AfterFunc(time.Until(until), func() {
		f.ex.remark("upgraded connection", errCredentialsExpired)
		leave()
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			closing = time.AfterFunc(leavePatience, func() { target.Close(); client.Close() })
		}
	})
	return func() {
		expiry.Stop()
		mu.Lock()
		defer mu.Unlock()
		if stopped = true; closing != nil {
			closing.Stop()
		}
	}
}

var errCredentialsExpired = errors.New("closed because the client's credentials have expired")

// leavePatience is how long the ends of a WebSocket have to answer a close frame.
const leavePatience = time.Second

// upgradeEnd returns the time at which an upgraded connection must end, because the client's credentials have
// expired. Zero means never.
func (ex *exchange) upgradeEnd() time.Time {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.until
}

// endingConn is a connection that a handler of this process has hijacked. It is closed when the client's
// credentials have expired.
type endingConn struct {
	net.Conn
	expiry *time.Timer
}

func newEndingConn(conn net.Conn, until time.Time) *endingConn {
	return &endingConn{conn, time.AfterFunc(time.Until(until), func() { conn.Close() })}
}

// Close also stops the timer, which would otherwise keep the connection in memory.
func (c *endingConn) Close() error {
	c.expiry.Stop()
	return c.Conn.Close()
}

// CloseWrite closes the writing side, if the underlying connection supports that.
func (c *endingConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// NetConn returns the underlying connection, as tls.Conn.NetConn does.
func (c *endingConn) NetConn() net.Conn { return c.Conn }

// withoutEnd returns the connection inside an endingConn, and stops the timer that would close it.
func withoutEnd(conn net.Conn) net.Conn {
	for {
		c, ok := conn.(*endingConn)
		if !ok {
			return conn
		}
		c.expiry.Stop()
		conn = c.Conn
	}
}

// innermost returns the last writer that unwrapping w leads to.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = u.Unwrap()
	}
}

// goAway asks the client of a WebSocket to leave, and then the target. If the target were asked first, it
// could close the connection before the client has its close frame. If the client does not read, the target
// is asked after goAwayPatience.
func goAway(client, target *wsframe.Writer) {
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		client.GoAway()
	}()
	patience := time.NewTimer(goAwayPatience)
	defer patience.Stop()
	select {
	case <-asked:
	case <-patience.C:
	}
	target.GoAway()
}

const goAwayPatience = 100 * time.Millisecond

// sendSwitch sends the 101 to the client, whose connection was taken over.
func (f *forwarding) sendSwitch(w *bufio.Writer, res *http.Response) error {
	h := f.w.Header()
	for name, values := range res.Header {
		if !f.ownedHere.isTrace(name) { // Observe has set it
			h[name] = append(h[name], values...)
		}
	}
	head := http.Response{StatusCode: res.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := head.Write(w); err != nil {
		return err
	}
	return w.Flush()
}

// copyDirection copies src to dst until src ends. It then closes the writing side of conn, the connection
// underlying dst. It stores the number of bytes in copied. It returns true if both succeeded, so that the
// other direction may continue.
func copyDirection(dst io.Writer, src io.Reader, conn net.Conn, copied *int64) (halfClosed bool) {
	n, err := io.Copy(dst, src)
	*copied = n
	if err != nil {
		return false
	}
	half, ok := conn.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}
