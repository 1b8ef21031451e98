// Mtls runs a gateway that knows its clients by their certificates, and shows its own to the server behind it,
// all in one process on loopback: three authorities are made at the start, one for clients, one for what is
// inside, and one that nobody trusts. Both sides speak HTTP/2.
//
//	go run ./examples/mtls
//
// The gateway itself is newGateway and edgeTLS; the rest shows what they do.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// newGateway lets everybody ask for the prices, and billing alone for the ledger. transport has the gateway's
// own certificate.
func newGateway(target string, transport http.RoundTripper, log *slog.Logger) http.Handler {
	books := gateway.NewUpstream("books", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
	// The target is told the subject as X-User-ID, and the certificate as Client-Cert, and by nobody else.
	proxy := gateway.Proxy(books, &gateway.ProxyOptions{ClientCert: true})

	byCert := gateway.ClientCert(func(cs *tls.ConnectionState) (*gateway.Identity, error) {
		uris := cs.VerifiedChains[0][0].URIs
		if len(uris) != 1 {
			return nil, nil // a certificate of ours, but nobody's
		}
		return &gateway.Identity{Subject: uris[0].String()}, nil
	})
	billing := certs.Workload("billing").String()

	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Logger: log}))
	rt.Handle("GET /prices", proxy, gateway.Auth(byCert, &gateway.AuthOptions{Optional: true}))
	rt.Handle("GET /ledger", proxy, gateway.Auth(byCert, nil),
		gateway.Require("billing", func(id *gateway.Identity, _ *http.Request) bool { return id.Subject == billing }))
	return &rt
}

// edgeTLS is what the gateway shows and asks of clients. With tls.VerifyClientCertIfGiven one without
// certificate gets as far as the routes, where Auth decides; with tls.RequireAndVerifyClientCert there is no
// connection. In both a certificate of an authority that is not in clients ends the handshake.
func edgeTLS(own tls.Certificate, clients *x509.CertPool, ask tls.ClientAuthType) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: clients, ClientAuth: ask, MinVersion: tls.VersionTLS13}
}

// books is the server behind the gateway. It tells what it was told.
func books(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s from %s for %q", r.Proto, r.TLS.PeerCertificates[0].Subject.CommonName, r.Header.Get("X-User-ID"))
	field := r.Header.Get("Client-Cert") // RFC 9440: base64 between colons
	if field == "" {
		return
	}
	der, err := base64.StdEncoding.DecodeString(strings.Trim(field, ":"))
	if err != nil {
		http.Error(w, "no Client-Cert", http.StatusBadRequest)
		return
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		http.Error(w, "no certificate", http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, " with the certificate of %s", cert.Subject.CommonName)
}

// certificates are all that anybody here has.
type certificates struct {
	clients, inside, other *certs.Authority
	edge, books, gateway   tls.Certificate // of inside
	billing, reports       tls.Certificate // of clients
	mallory                tls.Certificate // of other
}

func newCertificates() (*certificates, error) {
	var c certificates
	var errs []error
	for name, a := range map[string]**certs.Authority{"clients": &c.clients, "inside": &c.inside, "other": &c.other} {
		var err error
		*a, err = certs.NewAuthority(name)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, issue := range []struct {
		cert *tls.Certificate
		make func(*certs.Authority, string) (tls.Certificate, error)
		by   *certs.Authority
		name string
	}{
		{&c.edge, forServer, c.inside, "edge"},
		{&c.books, forServer, c.inside, "books"},
		{&c.gateway, forClient, c.inside, "gateway"},
		{&c.billing, forClient, c.clients, "billing"},
		{&c.reports, forClient, c.clients, "reports"},
		{&c.mallory, forClient, c.other, "billing"}, // so it says
	} {
		var err error
		*issue.cert, err = issue.make(issue.by, issue.name)
		errs = append(errs, err)
	}
	return &c, errors.Join(errs...)
}

// run shows everything. Its error says what was not as it must be.
func run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	all, err := newCertificates()
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	var servers []<-chan error
	defer func() {
		stop()
		for _, served := range servers {
			<-served
		}
	}()
	serve := func(h http.Handler, t *tls.Config) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		// A handshake that fails is the server's own to tell.
		srv := &http.Server{Handler: h, TLSConfig: t, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
		served := make(chan error, 1)
		servers = append(servers, served)
		go func() {
			served <- gateway.Serve(serving, srv, &gateway.ServeOptions{Listener: l, Drain: 5 * time.Second})
		}()
		return "https://" + l.Addr().String(), nil
	}

	// The server behind the gateway takes nobody but those whom its own authority knows.
	target, err := serve(http.HandlerFunc(books), edgeTLS(all.books, all.inside.Pool(), tls.RequireAndVerifyClientCert))
	if err != nil {
		return err
	}
	transport := gateway.NewTransport(&gateway.TransportOptions{TLS: &tls.Config{
		RootCAs:      all.inside.Pool(),
		Certificates: []tls.Certificate{all.gateway}, // GetClientCertificate, where it changes while the gateway runs
		MinVersion:   tls.VersionTLS13,
	}})
	defer (&http.Client{Transport: transport}).CloseIdleConnections()
	handler := newGateway(target, transport, log)
	open, err := serve(handler, edgeTLS(all.edge, all.clients.Pool(), tls.VerifyClientCertIfGiven))
	if err != nil {
		return err
	}
	strict, err := serve(handler, edgeTLS(all.edge, all.clients.Pool(), tls.RequireAndVerifyClientCert))
	if err != nil {
		return err
	}

	for _, try := range []struct {
		name string
		cert *tls.Certificate
		base string
		path string
		want string // the answer's status and body, or the handshake's error
	}{
		{"billing reads the ledger", &all.billing, open, "/ledger",
			`200 HTTP/2.0 from gateway for "spiffe://shop.example/billing" with the certificate of billing`},
		{"reports may not", &all.reports, open, "/ledger", "403"},
		{"nor anybody", nil, open, "/ledger", "401"},
		{"but all see the prices", nil, open, "/prices", `200 HTTP/2.0 from gateway for ""`},
		{"and reports by name", &all.reports, open, "/prices",
			`200 HTTP/2.0 from gateway for "spiffe://shop.example/reports" with the certificate of reports`},
		{"another authority's billing", &all.mallory, open, "/prices", "handshake: remote error: tls: unknown certificate authority"},
		{"where one is required", &all.billing, strict, "/ledger",
			`200 HTTP/2.0 from gateway for "spiffe://shop.example/billing" with the certificate of billing`},
		{"nobody gets in without", nil, strict, "/prices", "handshake: remote error: tls: certificate required"},
		{"nor by another authority", &all.mallory, strict, "/prices", "handshake: remote error: tls: unknown certificate authority"},
		{"nor past the gateway", &all.billing, target, "/ledger", "handshake: remote error: tls: unknown certificate authority"},
	} {
		got := ask(ctx, all.inside.Pool(), try.cert, try.base, try.path)
		if got != try.want {
			return fmt.Errorf("%s: %s, instead of %s", try.name, got, try.want)
		}
		fmt.Fprintf(out, "%-28s %s\n", try.name, got)
	}
	fmt.Fprintln(out, "Who is who was told by certificates alone.")
	return nil
}

// ask sends a request, with fields that would make it billing's if they were believed, and returns what came of it.
func ask(ctx context.Context, roots *x509.CertPool, cert *tls.Certificate, base, path string) string {
	config := &tls.Config{
		RootCAs:    roots,
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// Shown whatever authorities the server asks for.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return new(tls.Certificate), nil
			}
			return cert, nil
		},
	}
	if err := knock(ctx, config, strings.TrimPrefix(base, "https://")); err != nil {
		return "handshake: " + err.Error()
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("X-User-ID", certs.Workload("billing").String())
	req.Header.Set("Client-Cert", ":AAAA:")
	req.Header.Set("client_cert", ":AAAA:")
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err.Error()
	case res.ProtoMajor != 2:
		return "answered by " + res.Proto
	case res.StatusCode != http.StatusOK:
		return fmt.Sprint(res.StatusCode)
	}
	return fmt.Sprintf("%d %s", res.StatusCode, body)
}

// knock connects and listens. A server tells only after a TLS 1.3 handshake what it thinks of the certificate, and
// who talks on meanwhile may not hear why it hung up.
func knock(ctx context.Context, config *tls.Config, addr string) error {
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1)) // in HTTP/2 the server speaks first, too
	return err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "mtls:", err)
		os.Exit(1)
	}
}
