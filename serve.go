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

// ServeOptions say how Serve starts and stops.
type ServeOptions struct {
	Drain    time.Duration // 0 means 30s, negative none: what is in flight is cut
	Delay    time.Duration // between turning unready and closing the listener; 0 means none
	Listener net.Listener  // nil: one on srv.Addr
	Ready    string        // path, with its slash, answered with 200, and with 503 once ctx has ended; "" means none
}

// Serve runs srv until ctx ends, then turns unready, waits Delay, stops accepting, drains requests and
// upgraded connections for at most Drain, closes what is left, and returns. It serves TLS when
// srv.TLSConfig has certificates. It returns nil after a stop, also one that had to close what was left,
// and an error when it could not listen or accept.
//
// Requests in flight keep their contexts while they drain. When they are done, or three quarters of Drain
// are over, both ends of each WebSocket that a Proxy joined are sent a close with status 1001, going away
// (RFC 6455 section 7.4.1); of other protocols nothing is known, so the ends themselves have what is left of
// Drain to finish. Serve waits for their handlers as well, so that what they have to log is logged. It takes srv
// over: it sets Handler, BaseContext and ConnState around what is there. To let a second signal kill the process,
// give the signal back as soon as the first has come:
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
	t := srv.TLSConfig
	secure := t != nil && (len(t.Certificates) > 0 || t.GetCertificate != nil || t.GetConfigForClient != nil)
	listener := o.Listener
	if listener == nil {
		addr := srv.Addr
		if addr == "" {
			addr = ":http"
			if secure {
				addr = ":https"
			}
		}
		var err error
		if listener, err = net.Listen("tcp", addr); err != nil {
			return fmt.Errorf("gateway: Serve: %w", err)
		}
	}

	upgraded := &upgrades{conns: make(map[*trackedConn]bool), none: make(chan struct{}), goodbyes: make(map[*func()]bool)}
	listener = trackedListener{listener, upgraded}
	if hook := srv.ConnState; hook != nil {
		srv.ConnState = func(c net.Conn, s http.ConnState) { upgraded.watch(c, s); hook(c, s) }
	} else {
		srv.ConnState = upgraded.watch
	}
	base := srv.BaseContext
	srv.BaseContext = func(l net.Listener) context.Context {
		ctx := context.Background()
		if base != nil {
			ctx = base(l)
		}
		return context.WithValue(ctx, upgradesKey{}, upgraded)
	}
	srv.Handler = upgraded.handler(srv.Handler)
	if o.Ready != "" {
		srv.Handler = readiness(ctx, o.Ready, srv.Handler)
	}

	served := make(chan error, 1)
	go func() {
		if secure {
			served <- srv.ServeTLS(listener, "", "")
		} else {
			served <- srv.Serve(listener)
		}
	}()
	select {
	case err := <-served:
		if errors.Is(err, http.ErrServerClosed) {
			return nil // somebody else shut it down
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

// readiness answers path until and after ctx ends, and leaves all else to next.
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

// upgrades are the connections that left the server's hands for another protocol, which
// http.Server.Shutdown does not wait for.
type upgrades struct {
	mu       sync.Mutex
	conns    map[*trackedConn]bool
	handlers int // running, whose requests offered an upgrade
	draining bool
	none     chan struct{} // closed when draining and neither of them is left

	goodbyes map[*func()]bool // what to call when the connections are to end; nil once that has been
}

// upgradesKey finds the server's upgrades in the context of a request, where Serve runs it.
type upgradesKey struct{}

// atGoodbye has f called, on a goroutine of its own, when upgraded connections are to end, unless forget is
// called before. A nil u never ends.
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

func (u *upgrades) sayGoodbye() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for f := range u.goodbyes {
		go (*f)()
	}
	u.goodbyes = nil
}

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

// handler counts those who may be busy with an upgraded connection: once it is closed they still have to log it.
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

// ended ends the drain if nothing is left. It is called with mu held.
func (u *upgrades) ended() {
	if u.draining && len(u.conns) == 0 && u.handlers == 0 {
		u.draining = false
		close(u.none)
	}
}

// drain waits until all are closed and handled, or ctx ends, and then closes what is left. It is called once.
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

// trackedListener hands out connections that tell when they are closed.
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

// ReadFrom keeps the kernel's own ways of copying (sendfile, splice) possible.
func (c *trackedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite keeps half-close possible.
func (c *trackedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
