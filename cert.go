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

// CertPair names the files of a certificate, in PEM: Cert holds the certificate and then its chain, Key the
// private key. Both may be symbolic links.
type CertPair struct{ Cert, Key string }

const (
	certInterval = time.Second // between two looks at the files, and how long files must rest before they are read
	maxCertBytes = 1 << 20     // of each file
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
// With several pairs, the client's server name (SNI) decides. A certificate for that very name is used before
// one for its wildcard, such as *.example.com for a.example.com. The first pair is the default, for a client
// that sends another name or none. If several pairs match, such as one with an RSA key and one with an ECDSA
// key, the first that the client supports is used.
//
// There is no goroutine. A handshake looks at the files if nobody has within the last second, which costs two
// system calls for each pair. Replaced files are read when they have rested for a second, and only together:
// both files must be the same before and after reading. So files that are half-written, or of which only one
// has been replaced, are not served. Still, prefer replacing them by a rename or a symbolic link, as
// cert-manager does.
//
// If a replacement cannot be used, the last good certificate of that pair is served, and slog.Default gets
// one error line. The same holds for files that are missing, larger than 1 MiB, not regular, or whose key
// does not match. A replacement that can be used is logged too. An expired certificate can be used.
//
// To present such a certificate as a client, for mutual TLS, wrap the function:
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
	next    atomic.Int64 // when the files are looked at again, in nanoseconds since started
	index   atomic.Pointer[certIndex]

	mu    sync.Mutex // guards the files; held by the handshake that looks at them
	files []*certFile
}

// get returns the certificate for a handshake.
func (c *certFiles) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := time.Now()
	if int64(now.Sub(c.started)) >= c.next.Load() && c.mu.TryLock() {
		c.look(now)
		c.mu.Unlock()
	}
	return c.index.Load().find(hello), nil
}

// look reads the files that were replaced. The caller holds mu.
func (c *certFiles) look(now time.Time) {
	c.next.Store(int64(now.Sub(c.started) + certInterval))
	changed := false
	for _, f := range c.files {
		changed = f.look(now) || changed
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

	// Of files that are not those of cert.
	seen   stamp
	seenAt time.Time // when seen was first seen
	said   string    // the last error that was logged; "" when the last replacement was good
}

// stamp distinguishes two versions of a pair.
type stamp struct{ cert, key fileStamp }

type fileStamp struct {
	info os.FileInfo // nil if there is no such file
	err  string      // why there is none
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

// rested reports whether the file was last written long before now.
func (s fileStamp) rested(now time.Time) bool {
	return s.info != nil && now.Sub(s.info.ModTime()) >= certInterval
}

func (s stamp) equal(o stamp) bool        { return s.cert.equal(o.cert) && s.key.equal(o.key) }
func (s stamp) rested(now time.Time) bool { return s.cert.rested(now) && s.key.rested(now) }
func (f *certFile) stamp() stamp          { return stamp{stampOf(f.Cert), stampOf(f.Key)} }

// errReplaced means that files were replaced while they were read.
var errReplaced = errors.New("the files are being replaced")

// first reads the files when there is no good certificate yet.
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
		f.loaded = s // otherwise they may still be written to, and are read once more
	}
	return err
}

// look reads the files if they were replaced and have rested. It reports whether there is another
// certificate.
func (f *certFile) look(now time.Time) bool {
	s := f.stamp()
	if s.equal(f.loaded) {
		f.seen, f.said = stamp{}, ""
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
		if text := err.Error(); text != f.said {
			f.said = text
			f.log(slog.LevelError, "gateway: replaced certificate files cannot be used, the last good ones are served", slog.String("error", text))
		}
		return false
	}
	f.loaded, f.seen, f.said = s, stamp{}, ""
	if slices.EqualFunc(cert.Certificate, f.cert.Certificate, bytes.Equal) {
		return false // the same ones, written again
	}
	f.cert = cert
	f.log(slog.LevelInfo, "gateway: certificate files were replaced", slog.Time("expires", cert.Leaf.NotAfter))
	return true
}

func (f *certFile) log(level slog.Level, message string, attr slog.Attr) {
	slog.Default().LogAttrs(context.Background(), level, message, slog.String("cert", f.Cert), slog.String("key", f.Key), attr)
}

// read reads the pair, whose files have the stamp s. If they have another one afterwards, it returns
// errReplaced.
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
	info, err := os.Stat(path) // before it is opened: opening a named pipe would wait for its writer
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

// certIndex finds certificates by server name. It is replaced as a whole, never changed.
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

// certNames returns the names that a certificate is for. Its common name counts if it has no others, as for
// old clients.
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

// supported returns the first of certs that the client supports, the first if it supports none, and nil
// without certs.
func supported(hello *tls.ClientHelloInfo, certs []*tls.Certificate) *tls.Certificate {
	if len(certs) == 0 {
		return nil
	}
	if len(certs) > 1 {
		unnamed := *hello
		unnamed.ServerName = "" // that has been compared
		for _, cert := range certs {
			if unnamed.SupportsCertificate(cert) == nil {
				return cert
			}
		}
	}
	return certs[0]
}
