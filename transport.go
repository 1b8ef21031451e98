package gateway

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// TransportOptions bound the connections to targets.
type TransportOptions struct {
	TLS            *tls.Config   // client certificates for mTLS, roots; nil: system roots
	DialTimeout    time.Duration // 0 means 3s
	MaxIdlePerHost int           // 0 means 256
	MaxPerHost     int           // connections; 0 means no limit
	IdleTimeout    time.Duration // 0 means 90s
}

// maxResponseHeaderBytes bounds the header of a target's answer.
const maxResponseHeaderBytes = 1 << 20

// NewTransport returns the transport that upstreams use when none is given. It speaks HTTP/1.1 and, over
// TLS, HTTP/2; to URLs of scheme h2c it speaks HTTP/2 without TLS. It asks no proxy of the environment,
// leaves encodings alone, and takes at most 1 MiB of response header. It is safe for concurrent use. A negative
// option panics.
func NewTransport(opts *TransportOptions) http.RoundTripper {
	var o TransportOptions
	if opts != nil {
		o = *opts
	}
	if o.DialTimeout < 0 || o.MaxIdlePerHost < 0 || o.MaxPerHost < 0 || o.IdleTimeout < 0 {
		panic("gateway: NewTransport: negative option")
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 3 * time.Second
	}
	if o.MaxIdlePerHost == 0 {
		o.MaxIdlePerHost = 256
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 90 * time.Second
	}
	build := func(p *http.Protocols) *http.Transport {
		return &http.Transport{
			DialContext:            (&net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        o.TLS.Clone(),
			TLSHandshakeTimeout:    o.DialTimeout,
			Protocols:              p,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    o.MaxIdlePerHost,
			MaxConnsPerHost:        o.MaxPerHost,
			IdleConnTimeout:        o.IdleTimeout,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: maxResponseHeaderBytes,
			WriteBufferSize:        16 << 10,
			ReadBufferSize:         16 << 10,
		}
	}
	var usual, clear http.Protocols
	usual.SetHTTP1(true)
	usual.SetHTTP2(true)
	clear.SetUnencryptedHTTP2(true)
	return &transport{usual: build(&usual), clear: build(&clear)}
}

// defaultTransport is shared by every Upstream that is given none.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport(nil) })

// transport adds the scheme h2c to http.Transport.
type transport struct {
	usual, clear *http.Transport
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "h2c" {
		return t.usual.RoundTrip(r)
	}
	out := *r
	u := *r.URL
	u.Scheme = "http"
	out.URL = &u
	return t.clear.RoundTrip(&out)
}

// CloseIdleConnections closes the connections that no request uses.
func (t *transport) CloseIdleConnections() {
	t.usual.CloseIdleConnections()
	t.clear.CloseIdleConnections()
}
