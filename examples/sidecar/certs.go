package main

import (
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

// hostname returns the name by which callers know the server of a workload. Servers know callers by the URI
// certs.Workload.
func hostname(name string) string { return name + ".mesh" }

// issue writes a certificate and its key to files in dir. A workload has one certificate for both sides of a
// connection.
func issue(a *certs.Authority, dir, name string) (gateway.CertPair, error) {
	files := gateway.CertPair{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	t := certs.Template(name)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.URIs, t.DNSNames = []*url.URL{certs.Workload(name)}, []string{hostname(name)}
	cert, err := a.Issue(t)
	if err != nil {
		return files, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return files, err
	}
	return files, certs.Write(files, cert)
}
