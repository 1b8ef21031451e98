//go:build linux

package main

import (
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// serveFasthttp is a proxy of fasthttp on both sides, as its examples write one.
func serveFasthttp(l net.Listener, target string) error {
	client := &fasthttp.HostClient{
		Addr:                     target,
		MaxConns:                 4096,
		MaxIdleConnDuration:      time.Hour,
		NoDefaultUserAgentHeader: true,
	}
	s := &fasthttp.Server{
		NoDefaultServerHeader: true,
		MaxRequestBodySize:    10 << 20,
		Handler: func(c *fasthttp.RequestCtx) {
			c.Request.URI().SetScheme("http") // where the front is https, it would ask the target for TLS
			c.Request.Header.Del("Connection")
			c.Request.Header.Set("X-Forwarded-For", c.RemoteIP().String())
			c.Request.Header.SetBytesV("X-Forwarded-Host", c.Host())
			if err := client.Do(&c.Request, &c.Response); err != nil {
				c.Error("bad gateway", fasthttp.StatusBadGateway)
				return
			}
			c.Response.Header.Del("Connection")
		},
	}
	return s.Serve(l)
}
