package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"

	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// forServer issues the certificate of a server on this machine.
func forServer(a *certs.Authority, name string) (tls.Certificate, error) {
	t := certs.Template(name)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	return a.Issue(t)
}

// forClient issues the certificate of a workload, whose name is a URI in the form of SPIFFE.
func forClient(a *certs.Authority, name string) (tls.Certificate, error) {
	t := certs.Template(name)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	t.URIs = []*url.URL{certs.Workload(name)}
	return a.Issue(t)
}
