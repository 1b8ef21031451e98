package gateway

import (
	"crypto/tls"
	"maps"
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

	// Ping is for HTTP/2. A connection on which nothing arrives for so long is asked with a PING frame whether it
	// lives. Without an answer for as long again, at most 15s, it is closed and its requests fail, so that later ones
	// use another. 0 means 15s, negative never. Servers of gRPC may close a connection that asks more often than they
	// permit (KeepaliveEnforcementPolicy of grpc-go) while a stream on it is silent: agree on a number with them.
	Ping time.Duration
}

const (
	defaultPing     = 15 * time.Second
	maxPingPatience = 15 * time.Second // for the answer to a ping
)

// maxResponseHeaderBytes bounds the header of a target's response.
const maxResponseHeaderBytes = 1 << 20

// NewTransport returns a transport like the one that upstreams use by default. It uses HTTP/1.1 and, over
// TLS, HTTP/2. For URLs with the scheme h2c it uses HTTP/2 without TLS. It ignores the proxies of the
// environment, does not decompress responses, and accepts at most 1 MiB of response header. It is safe for
// concurrent use. It panics on a negative option other than Ping.
//
// An upgrade, such as to WebSocket, needs HTTP/1.1. To https targets, upgrades are sent on connections of their own
// that offer nothing else. To h2c targets, they are sent as plain requests: a server may ignore an Upgrade (RFC 9110
// section 7.8).
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
	if o.Ping == 0 {
		o.Ping = defaultPing
	}
	build := func(p *http.Protocols) *http.Transport {
		t := &http.Transport{
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
		if o.Ping > 0 {
			t.HTTP2 = &http.HTTP2Config{SendPingTimeout: o.Ping, PingTimeout: min(o.Ping, maxPingPatience)}
		}
		return t
	}
	var standard, h2c, http1 http.Protocols
	standard.SetHTTP1(true)
	standard.SetHTTP2(true)
	h2c.SetUnencryptedHTTP2(true)
	http1.SetHTTP1(true)
	t := &transport{standard: build(&standard), h2c: build(&h2c), upgrades: build(&http1)}
	if t.upgrades.TLSClientConfig == nil {
		t.upgrades.TLSClientConfig = new(tls.Config)
	}
	t.upgrades.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return t
}

// defaultTransport is shared by every Upstream without a transport of its own.
var defaultTransport = sync.OnceValue(func() http.RoundTripper { return NewTransport(nil) })

// transport adds the scheme h2c to http.Transport, and upgrades of https.
type transport struct {
	standard, h2c *http.Transport
	upgrades      *http.Transport // for https; speaks HTTP/1.1 alone
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	upgrade := len(r.Header["Upgrade"]) > 0
	switch {
	case r.URL.Scheme == "h2c":
		return t.h2c.RoundTrip(asHTTP(r, upgrade))
	case upgrade && r.URL.Scheme == "https":
		return t.upgrades.RoundTrip(r)
	}
	return t.standard.RoundTrip(r)
}

// asHTTP returns a copy of r, whose scheme is h2c, with the scheme by which http.Transport knows it. Without Upgrade,
// which HTTP/2 does not have, if dropUpgrade is true.
func asHTTP(r *http.Request, dropUpgrade bool) *http.Request {
	out := *r
	u := *r.URL
	u.Scheme = "http"
	out.URL = &u
	if dropUpgrade {
		out.Header = maps.Clone(r.Header)
		delete(out.Header, "Connection")
		delete(out.Header, "Upgrade")
	}
	return &out
}

// CloseIdleConnections closes the connections that no request is using.
func (t *transport) CloseIdleConnections() {
	t.standard.CloseIdleConnections()
	t.h2c.CloseIdleConnections()
	t.upgrades.CloseIdleConnections()
}
