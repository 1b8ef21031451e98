package gateway_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// This file has what tests on the wire share: servers and clients of each protocol, raw connections, and gateways
// between the two.

// The protocols that a hop may have.
const (
	http1 = "http1" // HTTP/1.1
	http2 = "http2" // HTTP/2 over TLS
	h2c   = "h2c"   // HTTP/2 without TLS
)

// front is a gateway of one Proxy, observed, before a backend.
type front struct {
	*httptest.Server
	journal journal
	backend *httptest.Server
}

func newFront(t *testing.T, opts *gateway.ProxyOptions, backend http.HandlerFunc, mw ...gateway.Middleware) *front {
	t.Helper()
	f := &front{backend: serve(t, backend)}
	f.start(t, gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(f.backend.URL), nil), opts), mw...)
	return f
}

func (f *front) start(t *testing.T, h http.Handler, mw ...gateway.Middleware) {
	t.Helper()
	var observe gateway.Middleware
	f.journal, observe = observed()
	f.Server = serve(t, gateway.Chain(append([]gateway.Middleware{observe}, mw...)...)(h))
}

// raw sends bytes as they are and returns the connection.
func raw(t *testing.T, s *httptest.Server, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(deadline())
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

// serveProtocol runs h on a real listener that speaks protocol.
func serveProtocol(t *testing.T, protocol string, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	startServer(t, protocol, s)
	return s
}

// startServer starts s so that it speaks protocol.
func startServer(t *testing.T, protocol string, s *httptest.Server) {
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	switch protocol {
	case http2:
		s.EnableHTTP2 = true
		s.StartTLS()
	case h2c:
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	default:
		s.Start()
	}
	t.Cleanup(s.Close)
}

// clientOf returns a client for s that uses nothing but protocol.
func clientOf(t *testing.T, protocol string, s *httptest.Server) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	switch protocol {
	case http2:
		transport.Protocols.SetHTTP2(true)
		transport.TLSClientConfig = &tls.Config{RootCAs: rootsOf(s)}
	case h2c:
		transport.Protocols.SetUnencryptedHTTP2(true)
	default:
		transport.Protocols.SetHTTP1(true)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

// way is a client, a gateway of one Proxy, observed, and a target.
type way struct {
	*http.Client
	url     string
	journal journal
	server  *httptest.Server
}

// newWay speaks one protocol before the gateway and one behind it.
func newWay(t *testing.T, before, behind string, opts *gateway.ProxyOptions, target http.HandlerFunc) *way {
	t.Helper()
	return newWayTo(t, before, newTarget(t, behind, httptest.NewUnstartedServer(target), gateway.TransportOptions{}, gateway.UpstreamOptions{}), opts)
}

// newTransport returns a transport whose idle connections are closed when the test ends.
func newTransport(t *testing.T, o *gateway.TransportOptions) http.RoundTripper {
	var own gateway.TransportOptions
	if o != nil {
		own = *o
	}
	if own.DialTimeout == 0 {
		own.DialTimeout = patience // a busy machine may take longer than the default for a crowd of handshakes
	}
	transport := gateway.NewTransportUnderTest(&own)
	t.Cleanup(transport.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	return transport
}

// newTarget starts s as a target that speaks protocol, and returns an Upstream before it.
func newTarget(t *testing.T, protocol string, s *httptest.Server, to gateway.TransportOptions, o gateway.UpstreamOptions) *gateway.Upstream {
	t.Helper()
	link, transport := startTarget(t, protocol, s, to)
	o.Transport = transport
	return gateway.NewUpstream("target", gateway.MustTargets(link), &o)
}

// startTarget starts s as a target that speaks protocol, and returns its URL and a transport.
func startTarget(t *testing.T, protocol string, s *httptest.Server, to gateway.TransportOptions) (link string, transport http.RoundTripper) {
	t.Helper()
	startServer(t, protocol, s)
	link = s.URL
	switch protocol {
	case http2:
		to.TLS = &tls.Config{RootCAs: rootsOf(s)}
	case h2c:
		link = "h2c" + strings.TrimPrefix(link, "http")
	}
	return link, newTransport(t, &to)
}

// connect makes a connection to a target, for the tests in which the time of a handshake would be the target's.
func connect(t *testing.T, link string, transport http.RoundTripper) {
	t.Helper()
	res, err := transport.RoundTrip(newRequest(t, "GET", link, nil))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
}

func newWayTo(t *testing.T, before string, to http.RoundTripper, opts *gateway.ProxyOptions) *way {
	t.Helper()
	j, observe := observed()
	s := serveProtocol(t, before, observe(gateway.Proxy(to, opts)))
	return &way{Client: clientOf(t, before, s), url: s.URL, journal: j, server: s}
}

// do sends a request and fails the test when it gets no answer.
func (w *way) do(t *testing.T, r *http.Request) *http.Response {
	t.Helper()
	res, err := w.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// plainTarget is a target that speaks TCP. answer is called for each connection, in turn or at once, and
// closes it by returning.
func plainTarget(t testing.TB, answer func(conn net.Conn, br *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(deadline())
				answer(conn, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

// listenAgain listens on an address that the test has used before. Somebody else may have it for a moment.
func listenAgain(t *testing.T, addr string) net.Listener {
	t.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for late := deadline(); ; <-look.C {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			return l
		}
		if time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

// readHead reads a request or a response up to the empty line, as it came.
func readHead(br *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// toPlain is a gateway before a plainTarget.
func toPlain(t *testing.T, opts *gateway.ProxyOptions, answer func(conn net.Conn, br *bufio.Reader)) *way {
	t.Helper()
	transport := newTransport(t, nil)
	up := gateway.NewUpstream("target", gateway.MustTargets(plainTarget(t, answer)), &gateway.UpstreamOptions{Transport: transport})
	return newWayTo(t, http1, up, opts)
}
