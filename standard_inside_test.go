package gateway

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"flag"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// standard makes all tests use a transport of net/http in place of NewTransport's: what this package promises, it
// promises over any transport.
var standard = flag.Bool("standard", false, "run the tests over net/http's transport instead of NewTransport's")

// ParseFlags is for TestMain.
func ParseFlags() {
	flag.Parse()
	if *standard {
		defaultTransport = sync.OnceValue(func() http.RoundTripper { return newStandardTransport(nil) })
	}
}

// NewTransportUnderTest is NewTransport, or the like of net/http.
func NewTransportUnderTest(opts *TransportOptions) http.RoundTripper {
	if *standard {
		return newStandardTransport(opts)
	}
	return NewTransport(opts)
}

// TransportsUnderTest returns NewTransport's and the like of net/http, whatever the flag says, for tests whose subject is
// a transport.
func TransportsUnderTest() map[string]http.RoundTripper {
	return map[string]http.RoundTripper{"NewTransport": NewTransport(nil), "net/http": newStandardTransport(nil)}
}

// newStandardTransport is NewTransport with net/http's transport for HTTP/1.1, too.
func newStandardTransport(opts *TransportOptions) http.RoundTripper {
	own := NewTransport(opts).(*transport)
	t := &standardTransport{h2c: own.h2c.loud, http: standardHTTP(opts, own.h2c.loud), upgrades: standardHTTP(opts, own.h2c.loud)}
	t.http.Protocols.SetHTTP2(true)
	t.upgrades.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return t
}

// standardHTTP returns a transport like other that speaks HTTP/1.1.
func standardHTTP(opts *TransportOptions, other *http.Transport) *http.Transport {
	var o TransportOptions
	if opts != nil {
		o = *opts
	}
	timeout := o.DialTimeout
	if timeout == 0 {
		timeout = 3 * time.Second
	}
	t := other.Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.DialContext = dialStandard(&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second})
	t.TLSHandshakeTimeout = timeout
	t.TLSClientConfig = o.TLS.Clone()
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = new(tls.Config)
	}
	return t
}

// socketSuffix marks a host that is the path of a Unix socket in hexadecimal, which net/http does not take as it is.
const socketSuffix = ".socket.test"

// dialStandard dials for net/http's transport.
func dialStandard(dialer *net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dial := dialPatiently(dialer)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if name, ok := strings.CutSuffix(addr, socketSuffix+":80"); ok {
			path, err := hex.DecodeString(name)
			if err != nil {
				return nil, err
			}
			network, addr = schemeUnix, string(path)
		}
		return dial(ctx, network, addr)
	}
}

type standardTransport struct{ http, h2c, upgrades *http.Transport }

func (t *standardTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	upgrade := len(r.Header["Upgrade"]) > 0
	switch {
	case r.URL.Scheme == "h2c":
		return t.h2c.RoundTrip(asHTTP(r, upgrade))
	case upgrade && r.URL.Scheme == "https":
		return t.upgrades.RoundTrip(r)
	case r.URL.Scheme == schemeUnix:
		r = asHTTP(r, false)
		r.URL.Host = hex.EncodeToString([]byte(r.URL.Host)) + socketSuffix
	}
	return t.http.RoundTrip(r)
}

func (t *standardTransport) CloseIdleConnections() {
	t.http.CloseIdleConnections()
	t.h2c.CloseIdleConnections()
	t.upgrades.CloseIdleConnections()
}
