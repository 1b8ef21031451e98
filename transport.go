package gateway

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// TransportOptions configures the connections to targets.
type TransportOptions struct {
	TLS            *tls.Config   // client certificates for mTLS, roots; nil: system roots
	DialTimeout    time.Duration // 0 means 3s
	MaxIdlePerHost int           // 0 means 256
	MaxPerHost     int           // connections to one host; 0 means no limit
	IdleTimeout    time.Duration // 0 means 90s
}

// maxResponseHeaderBytes bounds the header of a target's response.
const maxResponseHeaderBytes = 1 << 20

// NewTransport returns a transport like the one that upstreams use by default. It uses HTTP/1.1 and, over
// TLS, HTTP/2. For URLs with the scheme h2c it uses HTTP/2 without TLS. It ignores the proxies of the
// environment, does not decompress responses, and accepts at most 1 MiB of response header. It is safe for
// concurrent use. It panics on a negative option.
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
	var standard, h2c http.Protocols
	standard.SetHTTP1(true)
	standard.SetHTTP2(true)
	h2c.SetUnencryptedHTTP2(true)
	return &transport{standard: build(&standard), h2c: build(&h2c)}
}

// defaultTransport is shared by every Upstream without a transport of its own.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport(nil) })

// transport adds the scheme h2c to http.Transport.
type transport struct {
	standard, h2c *http.Transport
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "h2c" {
		return t.standard.RoundTrip(r)
	}
	out := *r
	u := *r.URL
	u.Scheme = "http"
	out.URL = &u
	return t.h2c.RoundTrip(&out)
}

// CloseIdleConnections closes the connections that no request is using.
func (t *transport) CloseIdleConnections() {
	t.standard.CloseIdleConnections()
	t.h2c.CloseIdleConnections()
}
