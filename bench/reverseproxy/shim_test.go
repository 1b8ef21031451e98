// Package httputil runs the tests of net/http/httputil's ReverseProxy, as they are in the Go source tree, against
// gateway.Proxy. The file that declares this package's only test is replaced by theirs while it runs.
package httputil

//lint:file-ignore U1000 the tests of net/http/httputil use what is declared here

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	stdutil "net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// overStandard is the variable in the environment that makes a ReverseProxy without a Transport use net/http's, and not
// that of gateway.NewTransport.
const overStandard = "GATEWAY_SHIM_STANDARD"

// ReverseProxy is gateway.Proxy with the fields of httputil.ReverseProxy. Each field is what a user who comes from
// httputil would write instead; what Proxy has no counterpart for is ignored.
type ReverseProxy struct {
	Rewrite        func(*ProxyRequest)
	Transport      http.RoundTripper
	FlushInterval  time.Duration // ignored: Proxy sends each part as it arrives
	ErrorLog       *log.Logger   // the logger of gateway.Observe
	BufferPool     BufferPool    // ignored: Proxy has a pool of its own
	ModifyResponse func(*http.Response) error
	ErrorHandler   func(http.ResponseWriter, *http.Request, error) // that of gateway.HandleErrors
	Director       func(*http.Request)                             // called by Rewrite

	target  *url.URL // of NewSingleHostReverseProxy
	once    sync.Once
	handler http.Handler
}

type (
	ProxyRequest = stdutil.ProxyRequest
	BufferPool   = stdutil.BufferPool
)

// NewSingleHostReverseProxy returns a proxy before a gateway.Upstream of one target.
func NewSingleHostReverseProxy(target *url.URL) *ReverseProxy {
	p := &ReverseProxy{target: target}
	p.Director = p.direct
	return p
}

// direct is the Director of NewSingleHostReverseProxy.
func (p *ReverseProxy) direct(r *http.Request) {
	host := r.Host
	(&ProxyRequest{Out: r}).SetURL(p.target)
	r.Host = host
}

// isPlain reports whether the Upstream alone does all that the Director would.
func (p *ReverseProxy) isPlain() bool {
	return p.target != nil && strings.Trim(p.target.Path, "/") == "" && p.target.RawQuery == "" &&
		reflect.ValueOf(p.Director).Pointer() == reflect.ValueOf(p.direct).Pointer()
}

func (p *ReverseProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.once.Do(p.build)
	p.handler.ServeHTTP(w, r)
}

func (p *ReverseProxy) build() {
	opts := gateway.ProxyOptions{Rewrite: p.Rewrite, ModifyResponse: p.ModifyResponse}
	opts.ResponseFields.Drop = hopHeaders // no test sends one
	if p.Director != nil {
		opts.PreserveHost = true
	}
	if p.Director != nil && !p.isPlain() {
		opts.Rewrite = func(pr *ProxyRequest) { p.Director(pr.Out) }
	}
	to := p.Transport
	if to == nil {
		to = defaultTransport()
	}
	to = overLoopback(to)
	if p.target != nil {
		to = gateway.NewUpstream("target", []gateway.Target{{URL: &url.URL{Scheme: p.target.Scheme, Host: p.target.Host}}},
			&gateway.UpstreamOptions{Transport: to})
	}
	p.handler = gateway.Proxy(to, &opts)
	if p.ErrorHandler != nil {
		p.handler = gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) { p.ErrorHandler(w, r, e) })(p.handler)
	}
	if p.ErrorLog != nil {
		p.handler = gateway.Observe(&gateway.ObserveOptions{Logger: slog.New(slog.NewTextHandler(p.ErrorLog.Writer(), nil))})(p.handler)
	}
}

var defaultTransport = sync.OnceValue(func() http.RoundTripper {
	if os.Getenv(overStandard) != "" {
		return new(http.Transport)
	}
	return gateway.NewTransport(nil)
})

// overLoopback returns transport, but one of net/http looks up no names: the tests need no network.
func overLoopback(transport http.RoundTripper) http.RoundTripper {
	t, ok := transport.(*http.Transport)
	if !ok || t.DialContext != nil {
		return transport
	}
	t = t.Clone()
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, err := netip.ParseAddrPort(addr); err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}}
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return t
}

// What the tests use of the package that they are in.

var (
	inOurTests bool
	hopHeaders []string // fields beside the known ones that are for one hop
	ascii      = struct{ EqualFold func(s, t string) bool }{strings.EqualFold}
)

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

// upgradeType returns what a message asks to be upgraded to.
func upgradeType(h http.Header) string {
	for _, list := range h["Connection"] {
		for token := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

// flushInterval is that of Proxy: it does not wait.
func (p *ReverseProxy) flushInterval(*http.Response) time.Duration { return -1 }

var errNoCounterpart = errors.New("an Upstream has no such function")

func singleJoiningSlash(a, b string) string { panic(errNoCounterpart) }

// joinURLPath returns the path that an Upstream asks for b at a target with the path of a. A RawPath that says no more
// than Path is left out, as the tests expect.
func joinURLPath(a, b *url.URL) (path, rawpath string) {
	target, asked := *a, *b
	target.Scheme, target.Host = "http", "target.example"
	up := gateway.NewUpstream("target", []gateway.Target{{URL: &target}}, &gateway.UpstreamOptions{Transport: lastURL{&asked}})
	_, _ = up.RoundTrip(&http.Request{Method: "GET", URL: b, Header: http.Header{}})
	if a.RawPath == "" && b.RawPath == "" && asked.RawPath == (&url.URL{Path: asked.Path}).EscapedPath() {
		asked.RawPath = ""
	}
	return asked.Path, asked.RawPath
}

// lastURL keeps the URL of the last request, and fails.
type lastURL struct{ to *url.URL }

func (l lastURL) RoundTrip(r *http.Request) (*http.Response, error) {
	*l.to = *r.URL
	return nil, errNoCounterpart
}
