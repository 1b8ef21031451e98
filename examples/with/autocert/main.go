// Autocert gets a gateway's certificates from an ACME authority such as Let's Encrypt, by
// golang.org/x/crypto. Where another program gets them and leaves them in files, see gateway.CertFiles and
// examples/tls.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"net/http"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/seed-96248d0c/gateway"
)

// newManager gets certificates for hosts from the authority whose directory is given, "" for Let's Encrypt,
// and keeps them in a folder. Several gateways share one, or have a Cache of their own on a database.
func newManager(folder, directory string, client *http.Client, hosts ...string) *autocert.Manager {
	return &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(folder),
		HostPolicy: autocert.HostWhitelist(hosts...), // else anybody could use up the authority's limits
		Client:     &acme.Client{DirectoryURL: directory, HTTPClient: client},
	}
}

// run serves h by TLS on https, and on http what the authority asks to see, and redirects to https.
func run(ctx context.Context, https, http1 net.Listener, h http.Handler, m *autocert.Manager) error {
	config := m.TLSConfig() // with acme-tls/1, by which the authority may ask on the TLS port instead
	config.MinVersion = tls.VersionTLS12
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	serve := func(l net.Listener, srv *http.Server) {
		defer stop() // each ends the other
		ended <- gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l})
	}
	go serve(https, &http.Server{Handler: h, TLSConfig: config})
	go serve(http1, &http.Server{Handler: m.HTTPHandler(nil)})
	return errors.Join(<-ended, <-ended)
}

func main() {
	https, err := net.Listen("tcp", ":443")
	if err != nil {
		log.Fatal(err)
	}
	http1, err := net.Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	m := newManager("certs", "", nil, "gw.example")
	log.Fatal(run(context.Background(), https, http1, gateway.Proxy(backend, nil), m))
}
