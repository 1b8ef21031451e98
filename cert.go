package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// CertPair names the files of a certificate, in PEM: Cert holds the certificate followed by its chain, and
// Key the private key. Both may be symbolic links.
type CertPair struct{ Cert, Key string }

const (
	// certInterval is the time between two checks of the files. It is also the time for which replaced files
	// must not change before they are read.
	certInterval = time.Second

	maxCertBytes = 1 << 20 // of each file
)

// CertFiles serves certificates from files, for tls.Config.GetCertificate. When the files are replaced, as by
// certbot or cert-manager, the next handshakes get the new certificates. No restart is needed:
//
//	certs, err := gateway.CertFiles(gateway.CertPair{Cert: "tls.crt", Key: "tls.key"})
//	if err != nil {
//		log.Fatal(err)
//	}
//	srv := &http.Server{Addr: ":443", Handler: &rt, TLSConfig: &tls.Config{GetCertificate: certs}}
//
// With several pairs, the client's server name (SNI) decides. A certificate for the exact name is used before
// one for a wildcard, such as *.example.com for a.example.com. The first pair is the default, for a client
// that sends another name or none. If several pairs match, such as one with an RSA key and one with an ECDSA
// key, the first that the client supports is used.
//
// There is no goroutine. A handshake checks the files if the last check was more than a second ago, which
// costs two system calls for each pair. Replaced files are read when they have not changed for a second. Both
// files must be the same before and after reading. So a pair that is half-written, or of which only one file
// has been replaced, is not served. Still, prefer replacing files by a rename or a symbolic link, as
// cert-manager does.
//
// If a replacement cannot be used, the last good certificate of that pair is served, and slog.Default logs an
// error once. A replacement cannot be used if a file is missing, larger than 1 MiB or not regular, or if the
// key does not match. A replacement that can be used is logged too. An expired certificate can be used.
//
// To use such a certificate as a client certificate, for mutual TLS, wrap the function:
//
//	tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
//		return certs(&tls.ClientHelloInfo{}) // the first pair
//	}}
//
// CertFiles returns an error without pairs, and if a pair cannot be used. The function that it returns never
// returns an error. It is safe for concurrent use.
func CertFiles(pairs ...CertPair) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if len(pairs) == 0 {
		return nil, errors.New("gateway: CertFiles: no pairs")
	}
	c := &certFiles{started: time.Now()}
	for _, p := range pairs {
		f := &certFile{CertPair: p}
		if err := f.first(c.started); err != nil {
			return nil, fmt.Errorf("gateway: CertFiles: %w", err)
		}
		c.files = append(c.files, f)
	}
	c.index.Store(newCertIndex(c.files))
	c.next.Store(int64(certInterval))
	return c.get, nil
}

// certFiles holds the pairs of one CertFiles.
type certFiles struct {
	started time.Time
	next    atomic.Int64 // time of the next check of the files, in nanoseconds since started
	index   atomic.Pointer[certIndex]

	mu    sync.Mutex // guards files; held by the handshake that checks them
	files []*certFile
}

// get returns the certificate for a handshake.
func (c *certFiles) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := time.Now()
	if int64(now.Sub(c.started)) >= c.next.Load() && c.mu.TryLock() {
		c.check(now)
		c.mu.Unlock()
	}
	return c.index.Load().find(hello), nil
}

// check reads the files that were replaced. The caller holds mu.
func (c *certFiles) check(now time.Time) {
	c.next.Store(int64(now.Sub(c.started) + certInterval))
	changed := false
	for _, f := range c.files {
		changed = f.check(now) || changed
	}
	if changed {
		c.index.Store(newCertIndex(c.files))
	}
}

// certFile is a pair of files and the last good certificate in them.
type certFile struct {
	CertPair
	cert   *tls.Certificate
	loaded stamp // of the files that cert was read from

	// The replacement that has not been loaded yet.
	seen   stamp
	seenAt time.Time // when a check first found seen
	logged string    // the last error that was logged; "" if the last replacement was good
}

// stamp distinguishes two versions of a pair.
type stamp struct{ cert, key fileStamp }

type fileStamp struct {
	info os.FileInfo // nil if there is no such file
	err  string      // the error of os.Stat if info is nil
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{err: err.Error()}
	}
	return fileStamp{info: info}
}

func (s fileStamp) equal(o fileStamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil && s.err == o.err
	}
	return os.SameFile(s.info, o.info) && s.info.Size() == o.info.Size() && s.info.ModTime().Equal(o.info.ModTime())
}

// rested reports whether the file was last written at least certInterval before now.
func (s fileStamp) rested(now time.Time) bool {
	return s.info != nil && now.Sub(s.info.ModTime()) >= certInterval
}

func (s stamp) equal(o stamp) bool        { return s.cert.equal(o.cert) && s.key.equal(o.key) }
func (s stamp) rested(now time.Time) bool { return s.cert.rested(now) && s.key.rested(now) }
func (f *certFile) stamp() stamp          { return stamp{stampOf(f.Cert), stampOf(f.Key)} }

// errReplaced means that files were replaced while they were read.
var errReplaced = errors.New("the files are being replaced")

// first reads the files for CertFiles, when there is no certificate yet.
func (f *certFile) first(now time.Time) error {
	var s stamp
	var err error
	for range 3 {
		s = f.stamp()
		if f.cert, err = f.read(s); err != errReplaced {
			break
		}
	}
	if err == nil && s.rested(now) {
		f.loaded = s // if the files are newer, they may still be written to, and the next check reads them again
	}
	return err
}

// check reads the files if they were replaced and have rested. It reports whether f.cert has changed.
func (f *certFile) check(now time.Time) bool {
	s := f.stamp()
	if s.equal(f.loaded) {
		f.seen, f.logged = stamp{}, ""
		return false
	}
	if !s.equal(f.seen) {
		f.seen, f.seenAt = s, now
	}
	if now.Sub(f.seenAt) < certInterval && !s.rested(now) {
		return false
	}
	cert, err := f.read(s)
	switch {
	case err == errReplaced:
		f.seen = stamp{}
		return false
	case err != nil:
		if text := err.Error(); text != f.logged {
			f.logged = text
			f.log(slog.LevelError, "gateway: replaced certificate files cannot be used, the last good ones are served", slog.String("error", text))
		}
		return false
	}
	f.loaded, f.seen, f.logged = s, stamp{}, ""
	if slices.EqualFunc(cert.Certificate, f.cert.Certificate, bytes.Equal) {
		return false // the same certificate was written again
	}
	f.cert = cert
	f.log(slog.LevelInfo, "gateway: certificate files were replaced", slog.Time("expires", cert.Leaf.NotAfter))
	return true
}

func (f *certFile) log(level slog.Level, message string, attr slog.Attr) {
	slog.Default().LogAttrs(context.Background(), level, message, slog.String("cert", f.Cert), slog.String("key", f.Key), attr)
}

// read reads the pair, whose stamp is s. If the stamp is another one afterwards, it returns errReplaced.
func (f *certFile) read(s stamp) (*tls.Certificate, error) {
	cert, err := readPair(f.CertPair)
	if !f.stamp().equal(s) {
		return nil, errReplaced
	}
	return cert, err
}

func readPair(p CertPair) (*tls.Certificate, error) {
	certPEM, err := readPEM(p.Cert)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM(p.Key)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", p.Cert, p.Key, err)
	}
	return &cert, nil
}

// readPEM reads a file of PEM blocks. A block without an end is an error: package pem would ignore it.
func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path) // checked before os.Open, which would wait for the writer of a named pipe
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCertBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxCertBytes:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxCertBytes)
	}
	blocks := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		blocks++
	}
	if blocks != bytes.Count(text, []byte("-----BEGIN ")) {
		return nil, fmt.Errorf("%s has a PEM block that is not complete", path)
	}
	return text, nil
}

// certIndex finds certificates by server name. It is immutable.
type certIndex struct {
	all    []*tls.Certificate
	byName map[string][]*tls.Certificate // names in lower case, wildcards as they are
}

func newCertIndex(files []*certFile) *certIndex {
	x := &certIndex{byName: make(map[string][]*tls.Certificate)}
	for _, f := range files {
		x.all = append(x.all, f.cert)
		for _, name := range certNames(f.cert) {
			if name = strings.ToLower(name); !slices.Contains(x.byName[name], f.cert) {
				x.byName[name] = append(x.byName[name], f.cert)
			}
		}
	}
	return x
}

// certNames returns the DNS names of a certificate or, if it has none, its common name.
func certNames(cert *tls.Certificate) []string {
	if names := cert.Leaf.DNSNames; len(names) > 0 || cert.Leaf.Subject.CommonName == "" {
		return names
	}
	return []string{cert.Leaf.Subject.CommonName}
}

// find returns the certificate for a handshake.
func (x *certIndex) find(hello *tls.ClientHelloInfo) *tls.Certificate {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if cert := supported(hello, x.byName[name]); cert != nil {
		return cert
	}
	if _, domain, ok := strings.Cut(name, "."); ok {
		if cert := supported(hello, x.byName["*."+domain]); cert != nil {
			return cert
		}
	}
	return supported(hello, x.all)
}

// supported returns the first of certs that the client supports. It returns the first of all if the client
// supports none, and nil if certs is empty.
func supported(hello *tls.ClientHelloInfo, certs []*tls.Certificate) *tls.Certificate {
	if len(certs) == 0 {
		return nil
	}
	if len(certs) > 1 {
		unnamed := *hello
		unnamed.ServerName = "" // find has compared the name, so SupportsCertificate must not
		for _, cert := range certs {
			if unnamed.SupportsCertificate(cert) == nil {
				return cert
			}
		}
	}
	return certs[0]
}
