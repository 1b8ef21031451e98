package main

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// mesh is what a workload needs to speak mTLS with the others: a certificate of its own, whose files are
// replaced while it runs, and the authority that all trust.
type mesh struct {
	own   func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	roots *x509.CertPool
}

func newMesh(files gateway.CertPair, roots *x509.CertPool) (mesh, error) {
	own, err := gateway.CertFiles(files)
	return mesh{own, roots}, err
}

// server is for a listener that takes nobody but workloads.
func (m mesh) server() *tls.Config {
	return &tls.Config{
		GetCertificate: m.own, ClientCAs: m.roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
}

// transport is to another workload, which has to prove its name.
func (m mesh) transport(name string) http.RoundTripper {
	return gateway.NewTransport(&gateway.TransportOptions{TLS: &tls.Config{
		RootCAs: m.roots, ServerName: hostname(name), GetClientCertificate: m.asClient, MinVersion: tls.VersionTLS13,
	}})
}

func (m mesh) asClient(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return m.own(new(tls.ClientHelloInfo))
}

func (m mesh) upstream(name, target string) *gateway.Upstream {
	return gateway.NewUpstream(name, gateway.MustTargets(target), &gateway.UpstreamOptions{
		Transport: m.transport(name),
		Timeout:   2 * time.Second,
		Retry:     gateway.RetryOptions{Attempts: 3},
		Circuit:   gateway.NewCircuit(name, nil),
	})
}

// byCert takes a workload's name from its certificate, and from it the user for whom it asks: callers are
// workloads of ours, which have authenticated the user or have been told by one that has.
func byCert() gateway.Authenticator {
	workload := gateway.ClientCert(func(cs *tls.ConnectionState) (*gateway.Identity, error) {
		uris := cs.VerifiedChains[0][0].URIs
		if len(uris) != 1 {
			return nil, nil
		}
		return &gateway.Identity{Subject: uris[0].String()}, nil
	})
	return gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		id, err := workload.Authenticate(r)
		if err == nil && id != nil {
			id.Claims = map[string]any{"user": r.Header.Get("X-User-ID")}
		}
		return id, err
	})
}

// inbound stands before a service on this host: of the workloads, callers may ask. The service is told who
// does, in X-Caller, and for whom, in X-User-ID.
func inbound(service string, logger *slog.Logger, callers ...string) http.Handler {
	to := gateway.NewUpstream("service", gateway.MustTargets(service), nil)
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: logger, TrustTrace: isWorkload}),
		gateway.Auth(byCert(), nil),
		gateway.Require("caller", func(id *gateway.Identity, _ *http.Request) bool {
			return slices.ContainsFunc(callers, func(name string) bool { return id.Subject == certs.Workload(name).String() })
		}),
	)
	rt.Handle("/", gateway.Proxy(to, &gateway.ProxyOptions{
		Identity:   map[string]string{"X-Caller": "sub", "X-User-ID": "user"},
		ClientCert: true,
	}))
	return &rt
}

// isWorkload says whose trace is continued.
func isWorkload(r *http.Request) bool { return r.TLS != nil && len(r.TLS.VerifiedChains) > 0 }

// outbound listens on loopback alone, to a service on this host that asks another workload by plain HTTP.
func outbound(peer *gateway.Upstream, logger *slog.Logger) http.Handler {
	service := gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		user := r.Header.Get("X-User-ID")
		if user == "" {
			return nil, gateway.ErrNoCredentials
		}
		return &gateway.Identity{Subject: user}, nil
	})
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: logger, TrustTrace: func(*http.Request) bool { return true }}),
		gateway.Auth(service, &gateway.AuthOptions{Optional: true}),
	)
	rt.Handle("/", gateway.Proxy(peer, nil))
	return &rt
}

// newGateway is the way in for those outside: they show a key, and are nobody's workload.
func newGateway(orders *gateway.Upstream, logger *slog.Logger) http.Handler {
	byKey := gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) { // a stand-in for NewOIDC
		switch r.Header.Get("X-API-Key") {
		case "":
			return nil, gateway.ErrNoCredentials
		case "key of alice":
			return &gateway.Identity{Subject: "alice"}, nil
		}
		return nil, gateway.ErrUnauthenticated
	})
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: logger}),
		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, nil),
		gateway.Auth(byKey, nil),
	)
	rt.Handle("GET /orders/{id}", gateway.Proxy(orders, nil))
	return &rt
}
