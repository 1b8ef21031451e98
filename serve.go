package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ServeOptions configures how Serve listens and stops.
type ServeOptions struct {
	Drain    time.Duration // longest time for requests and connections to finish after ctx has ended; 0 means 30s, negative none
	Delay    time.Duration // time between the end of ctx and the closing of the listener; 0 means none
	Listener net.Listener  // nil means a TCP listener on srv.Addr
	Ready    string        // path of a readiness probe, such as "/ready": 200, and 503 once ctx has ended; "" means none
}

// Serve runs srv until ctx ends. Then it shuts srv down in these steps: it answers 503 at ServeOptions.Ready
// and waits for Delay; it stops accepting connections; it waits for requests and upgraded connections to end,
// for at most Drain; it closes the remaining connections. Then it returns nil.
//
// Serve returns an error if it cannot listen or accept, and if Ready does not begin with a slash. It serves
// TLS if srv.TLSConfig has certificates or a function that returns them.
//
// Serve sets three fields of srv if they are zero: ReadHeaderTimeout to 10s, IdleTimeout to 2m and
// MaxHeaderBytes to 64 KiB. It does not limit the time for a request's body or for an answer, since a stream
// may be long; see ProxyOptions.BodyTimeout, UpstreamOptions.Timeout and Timeout.
//
// The contexts of requests are not canceled during Drain. When all requests have ended, or after three
// quarters of Drain, Serve sends a close frame with status 1001, going away (RFC 6455 section 7.4.1), to both
// ends of each WebSocket that Proxy forwards. Other upgraded connections get no message. They may finish
// until Drain is over. After closing connections, Serve waits for their handlers for at most a second, so
// that their log lines are written. A request that Serve cut off has OutcomeRejected.
//
// Serve replaces srv's Handler, BaseContext and ConnState by functions that call them. To let a second signal
// kill the process, restore the signal's default as soon as the first one arrives:
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
	setServerDefaults(srv)
	s := newServing()
	s.attach(srv)
	if o.Ready != "" {
		srv.Handler = readiness(ctx, o.Ready, srv.Handler)
	}

	served := make(chan error, 1)
	go func() {
		listener := trackedListener{listener, s}
		if servesTLS(srv) {
			served <- srv.ServeTLS(listener, "", "")
		} else {
			served <- srv.Serve(listener)
		}
	}()
	select {
	case err := <-served:
		return serveError(err)
	case <-ctx.Done():
	}
	if o.Delay > 0 {
		delay := time.NewTimer(o.Delay)
		defer delay.Stop()
		select {
		case err := <-served:
			return serveError(err)
		case <-delay.C:
		}
	}
	s.stop(srv, o.Drain)
	<-served
	return nil
}

// serveError returns the error of a server that ended before it was stopped.
func serveError(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil // the caller shut it down
	}
	return fmt.Errorf("gateway: Serve: %w", err)
}

// setServerDefaults limits the time and the memory that a client can use without sending a request.
func setServerDefaults(srv *http.Server) {
	if srv.ReadHeaderTimeout == 0 {
		srv.ReadHeaderTimeout = 10 * time.Second
	}
	if srv.IdleTimeout == 0 {
		srv.IdleTimeout = 2 * time.Minute
	}
	if srv.MaxHeaderBytes == 0 {
		srv.MaxHeaderBytes = 64 << 10
	}
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

// readiness answers requests for path: 200, or 503 after ctx has ended. It passes other requests to next.
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

// serving tracks what http.Server.Shutdown does not wait for: hijacked connections, and handlers whose
// connection has ended, which still write their log lines.
type serving struct {
	handlers atomic.Int64 // number of running handlers
	draining atomic.Bool
	cut      atomic.Bool   // connections in use are being closed
	stopping chan struct{} // closed when the server stops accepting

	mu       sync.Mutex
	conns    map[*trackedConn]bool // hijacked connections
	done     chan struct{}         // closed when draining is set and no connection and no handler is left
	upgraded map[*func()]bool      // functions that ask upgraded connections to end; nil after they were called
}

func newServing() *serving {
	return &serving{
		stopping: make(chan struct{}), conns: make(map[*trackedConn]bool), done: make(chan struct{}),
		upgraded: make(map[*func()]bool),
	}
}

// servingKey is the context key of a server's serving.
type servingKey struct{}

// servingFrom returns the serving of the server that received the request of ctx, or nil without Serve.
func servingFrom(ctx context.Context) *serving {
	s, _ := ctx.Value(servingKey{}).(*serving)
	return s
}

// hasCut reports whether Serve is closing connections that are in use. It is false for a nil s.
func (s *serving) hasCut() bool { return s != nil && s.cut.Load() }

// stops returns a channel that is closed when the server begins to drain. It is for handlers that do not end
// by themselves. Without Serve, the channel is nil.
func (s *serving) stops() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.stopping
}

// attach wraps the hooks of srv, so that s can track its connections and handlers. srv must serve a
// trackedListener.
func (s *serving) attach(srv *http.Server) {
	if hook := srv.ConnState; hook != nil {
		srv.ConnState = func(c net.Conn, state http.ConnState) { s.watch(c, state); hook(c, state) }
	} else {
		srv.ConnState = s.watch
	}
	base := srv.BaseContext
	srv.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return context.WithValue(ctx, servingKey{}, s)
	}
	srv.Handler = s.handler(srv.Handler)
}

// handler counts the running handlers.
func (s *serving) handler(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handlers.Add(1)
		defer func() {
			if s.handlers.Add(-1) == 0 && s.draining.Load() {
				s.mu.Lock()
				s.checkDone()
				s.mu.Unlock()
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// watch is a hook for http.Server.ConnState. It adds hijacked connections to conns.
func (s *serving) watch(c net.Conn, state http.ConnState) {
	if state != http.StateHijacked {
		return
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*trackedConn); ok {
		s.mu.Lock()
		if !t.closed {
			s.conns[t] = true
		}
		s.mu.Unlock()
	}
}

func (s *serving) closed(t *trackedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.closed = true
	if s.conns[t] {
		delete(s.conns, t)
		s.checkDone()
	}
}

// checkDone closes done if no connection and no handler is left. The caller holds mu.
func (s *serving) checkDone() {
	if s.done != nil && s.draining.Load() && len(s.conns) == 0 && s.handlers.Load() == 0 {
		close(s.done)
		s.done = nil
	}
}

// trackUpgraded calls f on a new goroutine when upgraded connections should end, unless untrack is called
// before. If s is nil, f is never called.
func (s *serving) trackUpgraded(f func()) (untrack func()) {
	if s == nil {
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upgraded == nil {
		go f()
		return func() {}
	}
	s.upgraded[&f] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.upgraded, &f)
	}
}

// endUpgraded asks the upgraded connections to end.
func (s *serving) endUpgraded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.upgraded {
		go (*f)()
	}
	s.upgraded = nil
}

// cutPatience is how long stop waits for the handlers of connections that it has closed, so that they can
// write their log lines.
const cutPatience = time.Second

// stop shuts srv down and waits until no connection and no handler is left. After drain, it closes the
// remaining connections. It is called once.
func (s *serving) stop(srv *http.Server, drain time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	close(s.stopping)
	early := time.AfterFunc(drain/4*3, s.endUpgraded)
	if srv.Shutdown(ctx) != nil {
		s.cut.Store(true)
		_ = srv.Close()
	}
	early.Stop()
	s.endUpgraded()

	s.mu.Lock()
	done := s.done
	s.draining.Store(true)
	s.checkDone()
	s.mu.Unlock()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	s.cut.Store(true)
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, t := range conns {
		_ = t.Close()
	}
	patience := time.NewTimer(cutPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
	}
}

// trackedListener accepts connections that report to serving when they are closed.
type trackedListener struct {
	net.Listener
	serving *serving
}

func (l trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &trackedConn{Conn: c, serving: l.serving}, nil
}

type trackedConn struct {
	net.Conn
	serving *serving
	closed  bool // guarded by serving.mu
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.serving.closed(c)
	return err
}

// ReadFrom permits copying inside the kernel (sendfile, splice).
func (c *trackedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite closes the writing side, if the connection supports that.
func (c *trackedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
