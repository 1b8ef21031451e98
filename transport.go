package gateway

import (
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"
)

// TransportOptions configures the connections of a transport. The zero value selects the defaults.
type TransportOptions struct {
	TLS            *tls.Config   // client certificates for mTLS, and root certificates; nil means the system's roots
	DialTimeout    time.Duration // limit of the time to connect, and of the time for the TLS handshake; 0 means 3s
	MaxIdlePerHost int           // number of idle connections kept for each host; 0 means 256
	MaxPerHost     int           // number of connections to each host; 0 means no limit
	IdleTimeout    time.Duration // how long an idle connection is kept; 0 means 90s

	// Ping is how long an HTTP/2 connection may receive nothing before a PING frame is sent. If no answer
	// arrives within the same time, or within 15s if that is less, the connection is closed and its requests
	// fail. Later requests use another connection. 0 means 15s, negative means no PING frames. gRPC servers
	// may close a connection that sends PING frames more often than they permit while its streams are silent
	// (KeepaliveEnforcementPolicy of grpc-go), so choose a value that they permit.
	Ping time.Duration
}

const (
	defaultPing     = 15 * time.Second
	maxPingPatience = 15 * time.Second // for the answer to a ping
)

// maxResponseHeaderBytes bounds the header of a target's response.
const maxResponseHeaderBytes = 1 << 20

// NewTransport returns a transport for UpstreamOptions.Transport. With nil options it is like the one that
// upstreams use by default. It speaks HTTP/1.1 and, over TLS, HTTP/2. For URLs with the scheme h2c it speaks
// HTTP/2 without TLS. It ignores the environment's proxy settings, does not decompress responses, and accepts
// at most 1 MiB of response header. It is safe for concurrent use. NewTransport panics on a negative option
// other than Ping.
//
// An upgrade, such as to WebSocket, needs HTTP/1.1. For https targets, upgrades use separate connections that
// offer only HTTP/1.1. For h2c targets, the field Upgrade is removed, as if the target had ignored it (RFC
// 9110 section 7.8).
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
