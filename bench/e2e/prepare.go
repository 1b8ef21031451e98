//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	issuer   = "https://id.example"
	audience = "api"
)

// prepare writes what contenders and target need into dir: a certificate for https, the key that tokens are verified
// by, and the files that the target serves. It returns a token.
func prepare(dir string) (token string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(48 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	signing, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	public, err := x509.MarshalPKIXPublicKey(&signing.PublicKey)
	if err != nil {
		return "", err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	write := map[string][]byte{
		"cert.pem":  certPEM,
		"key.pem":   keyPEM,
		"both.pem":  append(certPEM[:len(certPEM):len(certPEM)], keyPEM...), // as HAProxy wants it
		"token.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	}
	if err := os.MkdirAll(filepath.Join(dir, "www", "files"), 0o700); err != nil {
		return "", err
	}
	for name, size := range files {
		write[filepath.Join("www", "files", name)] = fileBody(size)
	}
	for name, data := range write {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return "", err
		}
	}
	return jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": issuer, "aud": audience, "sub": "alice", "scope": "read write", "exp": time.Now().Add(48 * time.Hour).Unix(),
	}).SignedString(signing)
}

// fileBody is a JSON object of exactly size bytes.
func fileBody(size int64) []byte {
	head, tail := `{"id":7,"name":"Ada","text":"`, `"}`
	return fmt.Append(nil, head, strings.Repeat("x", int(size)-len(head)-len(tail)), tail)
}
