// Http3 serves a gateway over HTTP/3 by github.com/quic-go/quic-go, beside HTTP/1.1 and HTTP/2 on the same
// port. The answers of the two tell clients by Alt-Svc that there is a third.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(backend http.RoundTripper) http.Handler {
	var rt gateway.Router
	rt.Use(gateway.Observe(nil))
	rt.Handle("/", gateway.Proxy(backend, nil))
	return &rt
}

// run serves h over TCP on l and over UDP on the same address, until ctx ends, and drains both.
func run(ctx context.Context, l net.Listener, h http.Handler, config *tls.Config) error {
	udp, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		return err
	}
	defer udp.Close()
	h3 := &http3.Server{
		Handler: h, TLSConfig: http3.ConfigureTLSConfig(config), Port: l.Addr().(*net.TCPAddr).Port,
		MaxHeaderBytes: 64 << 10, IdleTimeout: 2 * time.Minute, // as Serve sets them for the others
	}
	advertised := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = h3.SetQUICHeaders(w.Header())
		h.ServeHTTP(w, r)
	})

	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	go func() {
		defer stop() // each ends the other
		ended <- gateway.Serve(ctx, &http.Server{Handler: advertised, TLSConfig: config}, &gateway.ServeOptions{Listener: l})
	}()
	go func() {
		defer stop()
		if err := h3.Serve(udp); !errors.Is(err, http.ErrServerClosed) {
			ended <- err
			return
		}
		ended <- nil
	}()
	<-ctx.Done()
	drain, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(h3.Shutdown(drain), <-ended, <-ended)
}

func main() {
	certs, err := gateway.CertFiles(gateway.CertPair{Cert: "tls.crt", Key: "tls.key"})
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:8443")
	if err != nil {
		log.Fatal(err)
	}
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	log.Fatal(run(context.Background(), l, newHandler(backend), &tls.Config{GetCertificate: certs}))
}
