// Tls terminates TLS before a backend: certificates from files, which certbot or cert-manager replaces while
// the gateway runs, a redirect from HTTP to HTTPS, and HSTS (RFC 6797). For certificates that the gateway
// gets itself, see examples/with/autocert.
//
//	go run ./examples/tls -backend http://127.0.0.1:9000 -cert tls.crt -key tls.key
//
// Without -cert it makes a certificate that nobody trusts, for a try with curl -k.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// newGateway is what is served over TLS.
func newGateway(backend http.RoundTripper) http.Handler {
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), hsts)
	rt.Handle("/", gateway.Proxy(backend, &gateway.ProxyOptions{
		// Links and cookies of the backend, which knows http alone, get https.
		PreserveHost: true, RewriteLocation: true,
		ResponseFields: gateway.FieldEdits{Drop: []string{"Strict-Transport-Security"}},
	}))
	return &rt
}

// hsts tells browsers to come by HTTPS alone for a year. Begin with a few minutes: it cannot be taken back.
func hsts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
		next.ServeHTTP(w, r)
	})
}

// redirectTo is what is served over HTTP. It sends browsers to the host over HTTPS, whatever host they asked
// for. What is no GET or HEAD is refused: its body and credentials came in the clear, and its sender should
// notice.
func redirectTo(host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			gateway.WriteError(w, r, &gateway.Error{Status: http.StatusForbidden, Detail: "Use https."})
			return
		}
		http.Redirect(w, r, "https://"+host+r.URL.RequestURI(), http.StatusPermanentRedirect)
	})
}

// run serves the gateway on https and the redirects on http1, until ctx ends or one of them fails.
func run(ctx context.Context, https, http1 net.Listener, host string, backend http.RoundTripper, files ...gateway.CertPair) error {
	certs, err := gateway.CertFiles(files...)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 2)
	serve := func(l net.Listener, srv *http.Server) {
		defer stop()
		ended <- gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l})
	}
	go serve(https, &http.Server{
		Handler:   newGateway(backend),
		TLSConfig: &tls.Config{GetCertificate: certs, MinVersion: tls.VersionTLS12},
	})
	go serve(http1, &http.Server{Handler: redirectTo(host)})
	return errors.Join(<-ended, <-ended)
}

func main() {
	backend := flag.String("backend", "http://127.0.0.1:9000", "where requests go")
	host := flag.String("host", "localhost:8443", "the gateway's name, to which HTTP is redirected")
	httpsAddr := flag.String("https", "127.0.0.1:8443", "where TLS is served")
	httpAddr := flag.String("http", "127.0.0.1:8080", "where redirects are served")
	cert := flag.String("cert", "", "certificate file; empty makes one")
	key := flag.String("key", "", "key file")
	flag.Parse()
	if err := start(*backend, *host, *httpsAddr, *httpAddr, gateway.CertPair{Cert: *cert, Key: *key}); err != nil {
		fmt.Fprintln(os.Stderr, "tls:", err)
		os.Exit(1)
	}
}

func start(backend, host, httpsAddr, httpAddr string, files gateway.CertPair) error {
	targets, err := gateway.ParseTargets(backend)
	if err != nil {
		return err
	}
	if files.Cert == "" {
		dir, err := os.MkdirTemp("", "tls")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if files, err = selfSigned(dir, "localhost"); err != nil {
			return err
		}
	}
	https, err := net.Listen("tcp", httpsAddr)
	if err != nil {
		return err
	}
	http1, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	fmt.Printf("curl -ik https://%s/ and curl -i http://%s/\n", https.Addr(), http1.Addr())
	return run(ctx, https, http1, host, gateway.NewUpstream("backend", targets, nil), files)
}

// selfSigned writes a certificate for host, and its key, to files in dir.
func selfSigned(dir, host string) (gateway.CertPair, error) {
	files := gateway.CertPair{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	cert, err := certs.SelfSigned(host)
	if err != nil {
		return files, err
	}
	return files, certs.Write(files, cert)
}
