// Package certs issues certificates for the examples. They last for an hour.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/url"
	"os"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// Authority issues certificates, as SPIRE or cert-manager would.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority returns an authority with a new key.
func NewAuthority(name string) (*Authority, error) {
	t := Template(name)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	root, err := selfSigned(t)
	if err != nil {
		return nil, err
	}
	return &Authority{root.Leaf, root.PrivateKey.(*ecdsa.PrivateKey)}, nil
}

// Pool returns the pool for those who trust a.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Issue returns a certificate with the names and the usage of t, for a new key.
func (a *Authority) Issue(t *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	return sign(t, a.cert, key, a.key)
}

// SelfSigned returns a server's certificate that no authority has signed.
func SelfSigned(host string) (tls.Certificate, error) {
	t := Template(host)
	t.DNSNames, t.ExtKeyUsage = []string{host}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return selfSigned(t)
}

// Template returns a certificate with a common name, to which the caller adds names and usage.
func Template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
	}
}

// Workload returns the URI of a workload, in the form of SPIFFE.
func Workload(name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: "shop.example", Path: "/" + name}
}

// Write writes a certificate and its key to files. Each file is replaced by a rename, so that nobody reads half
// of it.
func Write(files gateway.CertPair, cert tls.Certificate) error {
	secret, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	for path, block := range map[string]*pem.Block{
		files.Cert: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, files.Key: {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}

func selfSigned(t *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	return sign(t, t, key, key)
}

// sign leaves the serial number to x509.CreateCertificate, which chooses one at random.
func sign(t, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (tls.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
