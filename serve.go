package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServeOptions configures Serve.
type ServeOptions struct {
	Drain    time.Duration // time for what is in flight to finish; 0 means 30s, negative none
	Delay    time.Duration // between turning unready and closing the listener; 0 means none
	Listener net.Listener  // nil: one on srv.Addr
	Ready    string        // path, with its slash, answered with 200, and with 503 once ctx has ended; "" means none
}

// Serve runs srv until ctx ends. Then it turns unready, waits for Delay, stops accepting connections, drains requests
// and upgraded connections for at most Drain, closes what is left, and returns nil. It returns an error if it cannot
// listen or accept. It serves TLS if srv.TLSConfig has certificates.
//
// Requests in flight keep their contexts while they drain. Upgraded connections are asked to end when all requests are
// done, or after three quarters of Drain: both ends of a WebSocket that Proxy joined get a close frame with status
// 1001, going away (RFC 6455 section 7.4.1). Other protocols have no such message that Serve knows; their connections
// have the rest of Drain to finish. Serve also waits for the handlers of upgraded connections, so that their log lines
// are written.
//
// Serve takes over srv: it wraps Handler, BaseContext and ConnState. To let a second signal kill the process, restore
// the signal's default as soon as the first one arrives:
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//	context.AfterFunc(ctx, stop)
func Serve(ctx context.Context, srv *http.Server, opts *ServeOptions) error {
	var o ServeOptions
	if opts != nil {
		o = *opts
	}
	if o.Ready != "" && o.Ready[0] != '/' {
		return fmt.Errorf("gateway: Serve: Ready must begin with a slash: %q", o.Ready)
	}
	if o.Drain == 0 {
		o.Drain = 30 * time.Second
	}
	listener, err := listen(srv, o.Listener)
	if err != nil {
		return fmt.Errorf("gateway: Serve: %w", err)
	}
	upgraded := newUpgrades()
	upgraded.attach(srv)
	if o.Ready != "" {
		srv.Handler = readiness(ctx, o.Ready, srv.Handler)
	}

	served := make(chan error, 1)
	go func() {
		listener := trackedListener{listener, upgraded}
		if servesTLS(srv) {
			served <- srv.ServeTLS(listener, "", "")
		} else {
			served <- srv.Serve(listener)
		}
	}()
	select {
	case err := <-served:
		if errors.Is(err, http.ErrServerClosed) {
			return nil // the caller shut it down
		}
		return fmt.Errorf("gateway: Serve: %w", err)
	case <-ctx.Done():
	}

	if o.Delay > 0 {
		time.Sleep(o.Delay)
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.Drain)
	defer cancel()
	early := time.AfterFunc(o.Drain/4*3, upgraded.sayGoodbye)
	if srv.Shutdown(drain) != nil {
		_ = srv.Close()
	}
	early.Stop()
	upgraded.sayGoodbye()
	upgraded.drain(drain)
	<-served
	return nil
}

func servesTLS(srv *http.Server) bool {
	t := srv.TLSConfig
	return t != nil && (len(t.Certificates) > 0 || t.GetCertificate != nil || t.GetConfigForClient != nil)
}

// listen returns given, or a listener on srv.Addr if given is nil.
func listen(srv *http.Server, given net.Listener) (net.Listener, error) {
	if given != nil {
		return given, nil
	}
	addr := srv.Addr
	switch {
	case addr != "":
	case servesTLS(srv):
		addr = ":https"
	default:
		addr = ":http"
	}
	return net.Listen("tcp", addr)
}

// readiness answers path by whether ctx has ended, and passes every other request to next.
func readiness(ctx context.Context, path string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Cache-Control", "no-store")
		if ctx.Err() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte("draining\n"))
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
}

// upgrades tracks the connections that were taken over for another protocol. http.Server.Shutdown does not wait for
// them.
type upgrades struct {
	mu       sync.Mutex
	conns    map[*trackedConn]bool
	handlers int // that run and whose requests offered an upgrade
	draining bool
	none     chan struct{} // closed when draining and no connection and no handler is left

	goodbyes map[*func()]bool // called to ask connections to end; nil once they have been called
}

func newUpgrades() *upgrades {
	return &upgrades{conns: make(map[*trackedConn]bool), none: make(chan struct{}), goodbyes: make(map[*func()]bool)}
}

// attach wraps the hooks of srv through which u learns what it tracks. srv must serve a trackedListener.
func (u *upgrades) attach(srv *http.Server) {
	if hook := srv.ConnState; hook != nil {
		srv.ConnState = func(c net.Conn, s http.ConnState) { u.watch(c, s); hook(c, s) }
	} else {
		srv.ConnState = u.watch
	}
	base := srv.BaseContext
	srv.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return context.WithValue(ctx, upgradesKey{}, u)
	}
	srv.Handler = u.handler(srv.Handler)
}

// upgradesKey is the context key of a server's upgrades.
type upgradesKey struct{}

// atGoodbye calls f, on a goroutine of its own, when upgraded connections should end, unless forget is called before.
// A nil u never calls it.
func (u *upgrades) atGoodbye(f func()) (forget func()) {
	if u == nil {
		return func() {}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.goodbyes == nil {
		go f()
		return func() {}
	}
	u.goodbyes[&f] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.goodbyes, &f)
	}
}

// sayGoodbye asks the upgraded connections to end.
func (u *upgrades) sayGoodbye() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for f := range u.goodbyes {
		go (*f)()
	}
	u.goodbyes = nil
}

// watch is a hook for http.Server.ConnState. It adds a connection that a handler took over.
func (u *upgrades) watch(c net.Conn, s http.ConnState) {
	if s != http.StateHijacked {
		return
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*trackedConn); ok {
		u.mu.Lock()
		if !t.closed {
			u.conns[t] = true
		}
		u.mu.Unlock()
	}
}

func (u *upgrades) closed(t *trackedConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t.closed = true
	if u.conns[t] {
		delete(u.conns, t)
		u.ended()
	}
}

// handler counts the running handlers that may use an upgraded connection. They still write their log lines after it
// is closed.
func (u *upgrades) handler(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.Header["Upgrade"]) > 0 {
			u.mu.Lock()
			u.handlers++
			u.mu.Unlock()
			defer u.handled()
		}
		next.ServeHTTP(w, r)
	})
}

func (u *upgrades) handled() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handlers--
	u.ended()
}

// ended ends the drain if nothing is left. The caller holds mu.
func (u *upgrades) ended() {
	if u.draining && len(u.conns) == 0 && u.handlers == 0 {
		u.draining = false
		close(u.none)
	}
}

// drain waits until no connection and no handler is left. When ctx ends it closes the connections that are left. It is
// called once.
func (u *upgrades) drain(ctx context.Context) {
	u.mu.Lock()
	u.draining = true
	u.ended()
	u.mu.Unlock()
	select {
	case <-u.none:
	case <-ctx.Done():
		u.mu.Lock()
		conns := make([]*trackedConn, 0, len(u.conns))
		for t := range u.conns {
			conns = append(conns, t)
		}
		u.mu.Unlock()
		for _, t := range conns {
			_ = t.Close()
		}
	}
}

// trackedListener accepts connections that report to upgrades when they are closed.
type trackedListener struct {
	net.Listener
	upgraded *upgrades
}

func (l trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &trackedConn{Conn: c, upgraded: l.upgraded}, nil
}

type trackedConn struct {
	net.Conn
	upgraded *upgrades
	closed   bool // guarded by upgraded.mu
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.upgraded.closed(c)
	return err
}

// ReadFrom lets the kernel copy (sendfile, splice).
func (c *trackedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite lets one direction be closed.
func (c *trackedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
