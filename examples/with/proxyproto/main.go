// Proxyproto takes connections from a TCP load balancer that announces the client by the PROXY protocol, as
// AWS NLB, HAProxy and Traefik do. The listener of github.com/pires/go-proxyproto makes the announced address
// the connection's, so ClientAddr, limits, X-Forwarded-For and the log have it. There is no need for
// TrustProxies.
package main

import (
	"context"
	"log"
	"net"
	"net/http"

	"github.com/pires/go-proxyproto"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(backend http.RoundTripper) http.Handler {
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), gateway.RateLimit(gateway.NewTokenBucket(1, 2, nil), gateway.KeyByIP, nil))
	rt.Handle("/", gateway.Proxy(backend, nil))
	return &rt
}

// run serves h on l. Connections from balancers must announce a client; others must not, for anybody can
// announce whatever they like.
func run(ctx context.Context, l net.Listener, h http.Handler, balancers ...string) error {
	policy, err := proxyproto.PolicyFromRanges(balancers, proxyproto.REQUIRE, proxyproto.REJECT)
	if err != nil {
		return err
	}
	return gateway.Serve(ctx, &http.Server{Handler: h}, &gateway.ServeOptions{
		Listener: &proxyproto.Listener{Listener: l, ConnPolicy: policy},
	})
}

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		log.Fatal(err)
	}
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	log.Fatal(run(context.Background(), l, newHandler(backend), "127.0.0.0/8"))
}
