package gateway_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// pemPair is a self-signed certificate and its key, in PEM. Its serial number tells it from others.
type pemPair struct {
	serial    int64
	cert, key []byte
}

// makePair makes a certificate for these DNS names. The first one is the common name too.
func makePair(t *testing.T, serial int64, key crypto.Signer, names ...string) pemPair {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(1e6 * time.Hour), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:]}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return pemPair{
		serial: serial,
		cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}),
	}
}

func newECKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// write writes the pair to dir, in place, and returns the files. They seem to have been written at the
// given time.
func (p pemPair) write(t *testing.T, dir string, at time.Time) gateway.CertPair {
	t.Helper()
	pair := gateway.CertPair{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	writeFile(t, pair.Cert, p.cert, at)
	writeFile(t, pair.Key, p.key, at)
	return pair
}

func writeFile(t *testing.T, name string, content []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

// swapLink makes link point to target in one step.
func swapLink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
}

// serialFor returns the serial number of the certificate for a client that sends this server name.
func serialFor(t *testing.T, get func(*tls.ClientHelloInfo) (*tls.Certificate, error), name string) int64 {
	t.Helper()
	cert, err := get(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.Int64()
}

// TestCertFilesReplaced replaces certificates under a server that is never quiet, as cert-manager and
// Kubernetes do: the files are links through a link to a directory, which is swapped. Every client gets a
// whole certificate.
func TestCertFilesReplaced(t *testing.T) {
	captureDefaultLog(t)
	dir := t.TempDir()
	for serial := range int64(3) {
		sub := filepath.Join(dir, fmt.Sprint("version", serial))
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		makePair(t, serial, newECKey(), "a.example", "a.example").write(t, sub, time.Now().Add(-time.Minute))
	}
	swapLink(t, "version0", filepath.Join(dir, "data"))
	pair := gateway.CertPair{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	swapLink(t, filepath.Join("data", "tls.crt"), pair.Cert)
	swapLink(t, filepath.Join("data", "tls.key"), pair.Key)
	certs, err := gateway.CertFiles(pair)
	if err != nil {
		t.Fatal(err)
	}

	l := must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() {
		srv := &http.Server{Handler: text("ok"), TLSConfig: &tls.Config{GetCertificate: certs}, ErrorLog: log.New(io.Discard, "", 0)}
		if err := gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l}); err != nil {
			t.Error(err)
		}
	})
	var latest atomic.Int64
	for range 2 {
		all.Go(func() {
			last := int64(0)
			for ctx.Err() == nil {
				conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: "a.example", InsecureSkipVerify: true})
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				serial := conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
				if conn.Close(); serial < last {
					t.Errorf("certificate %d after %d", serial, last)
				}
				if last = serial; latest.Load() < serial {
					latest.Store(serial)
				}
			}
		})
	}
	for serial := int64(1); serial < 3; serial++ {
		swapLink(t, fmt.Sprint("version", serial), filepath.Join(dir, "data"))
		if err := os.RemoveAll(filepath.Join(dir, fmt.Sprint("version", serial-1))); err != nil {
			t.Fatal(err)
		}
		for late := deadline(); latest.Load() != serial; runtime.Gosched() {
			if time.Now().After(late) {
				t.Fatalf("certificate %d is not served", serial)
			}
		}
	}
}

// TestCertFilesBroken replaces good files by each kind of broken ones, for a long time and with a
// handshake each second. The good ones are served on, which is logged once, and repaired files are
// served.
func TestCertFilesBroken(t *testing.T) {
	good, next := makePair(t, 1, newECKey(), "a.example", "a.example"), makePair(t, 2, newECKey(), "a.example", "a.example")
	chain := append(bytes.Clone(next.cert), good.cert...)
	huge := append(bytes.Clone(next.cert), bytes.Repeat([]byte("\n"), 1<<20)...)
	for _, tt := range []struct {
		name      string
		cert, key []byte // nil: the file is missing
		text      string // in the log
	}{
		{"no files", nil, nil, "no such file"},
		{"no key", next.cert, nil, "no such file"},
		{"empty", []byte{}, []byte{}, "tls.crt"},
		{"garbage", []byte("\x00\x01"), next.key, "tls.crt"},
		{"another's key", next.cert, good.key, "private key does not match"},
		{"the key first", good.cert, next.key, "private key does not match"},
		{"a key for a certificate", next.key, next.key, "tls.crt"},
		{"half a certificate", next.cert[:len(next.cert)/2], next.key, "not complete"},
		{"half a key", next.cert, next.key[:len(next.key)/2], "not complete"},
		{"half a chain", chain[:len(next.cert)+100], next.key, "not complete"},
		{"a certificate of garbage", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), next.key, "tls.crt"},
		{"huge", huge, next.key, "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			logs := captureDefaultLog(t)
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				pair := good.write(t, dir, time.Now().Add(-time.Hour))
				get, err := gateway.CertFiles(pair)
				if err != nil {
					t.Fatal(err)
				}
				for file, content := range map[string][]byte{pair.Cert: tt.cert, pair.Key: tt.key} {
					if content == nil {
						os.Remove(file)
					} else {
						writeFile(t, file, content, time.Now())
					}
				}
				for range 100 {
					if got := serialFor(t, get, "a.example"); got != 1 {
						t.Fatalf("certificate %d is served", got)
					}
					time.Sleep(time.Second)
				}
				text := logs.String()
				if strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=ERROR") || !strings.Contains(text, tt.text) {
					t.Errorf("logged %q, want %q", text, tt.text)
				}
				if strings.Contains(text, "PRIVATE") {
					t.Errorf("the key is logged: %s", text)
				}
				next.write(t, dir, time.Now().Add(-time.Hour))
				time.Sleep(time.Second)
				if got := serialFor(t, get, "a.example"); got != 2 {
					t.Errorf("certificate %d is served when all is good again", got)
				}
				if text := logs.String()[len(text):]; strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=INFO") {
					t.Errorf("logged %q", text)
				}
			})
		})
	}
}

// TestCertFilesWrittenSlowly writes a new certificate, its chain and its key in pieces, with a handshake
// after each one. Nothing is logged, and the new certificate is served when it is whole, with its chain.
func TestCertFilesWrittenSlowly(t *testing.T) {
	logs := captureDefaultLog(t)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		good, next := makePair(t, 1, newECKey(), "a.example", "a.example"), makePair(t, 2, newECKey(), "a.example", "a.example")
		pair := good.write(t, dir, time.Now())
		get, err := gateway.CertFiles(pair)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		chain := append(bytes.Clone(next.cert), good.cert...)
		write := func(file string, content []byte) {
			const piece = 50
			for n := 0; n < len(content)+piece; n += piece {
				writeFile(t, file, content[:min(n, len(content))], time.Now())
				if got := serialFor(t, get, "a.example"); got != 1 {
					t.Fatalf("certificate %d after %d bytes of %s", got, n, file)
				}
				time.Sleep(900 * time.Millisecond)
			}
		}
		write(pair.Cert, chain)
		write(pair.Key, next.key)
		time.Sleep(time.Second)
		serialFor(t, get, "a.example")
		time.Sleep(time.Second)
		cert, _ := get(&tls.ClientHelloInfo{})
		if got := cert.Leaf.SerialNumber.Int64(); got != 2 || len(cert.Certificate) != 2 {
			t.Errorf("certificate %d, a chain of %d", got, len(cert.Certificate))
		}
		if text := logs.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "level=INFO") {
			t.Errorf("logged %q", text)
		}
	})
}

// TestCertFilesAfterQuiet: after a night without clients, the first one gets the certificate that came in
// the night, and not the one that may have expired. Clients in the same second cost no system calls.
func TestCertFilesAfterQuiet(t *testing.T) {
	captureDefaultLog(t)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		get, err := gateway.CertFiles(makePair(t, 1, newECKey(), "a.example").write(t, dir, time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		makePair(t, 2, newECKey(), "a.example").write(t, dir, time.Now())
		time.Sleep(time.Hour)
		if got := serialFor(t, get, ""); got != 2 {
			t.Errorf("certificate %d is served", got)
		}
		makePair(t, 3, newECKey(), "a.example").write(t, dir, time.Now().Add(-time.Hour))
		if got := serialFor(t, get, ""); got != 2 {
			t.Errorf("certificate %d is served within the second", got)
		}
		if n := testing.AllocsPerRun(100, func() { get(&tls.ClientHelloInfo{}) }); n > 1 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestCertFilesNames picks among certificates by name and by what the client supports.
func TestCertFilesNames(t *testing.T) {
	var pairs []gateway.CertPair
	for serial, names := range [][]string{
		{"default.example", "default.example"},
		{"x", "*.example", "a.b.example"},
		{"x", "a.example"},
		{"only.common"},
		{"x", "default.example", "*.b.example"}, // taken only if the client cannot use the first
	} {
		var key crypto.Signer = newECKey()
		if serial == 4 {
			key = testRSA()
		}
		pairs = append(pairs, makePair(t, int64(serial), key, names...).write(t, t.TempDir(), time.Now()))
	}
	get, err := gateway.CertFiles(pairs...)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{
		"": 0, "default.example": 0, "unknown.test": 0, "example": 0, "x.y.example": 0,
		"a.example": 2, "A.Example": 2, "a.example.": 2, "b.example": 1, "a.b.example": 1, "c.b.example": 4,
		"only.common": 3, "sub.only.common": 0, ".example": 1,
	} {
		if got := serialFor(t, get, name); got != want {
			t.Errorf("%q: certificate %d, want %d", name, got, want)
		}
	}
	onlyRSA := &tls.ClientHelloInfo{
		CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, SupportedVersions: []uint16{tls.VersionTLS12},
		SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0}, SignatureSchemes: []tls.SignatureScheme{tls.PKCS1WithSHA256},
	}
	for name, want := range map[string]int64{"default.example": 4, "": 4, "unknown.test": 4, "a.example": 2} {
		onlyRSA.ServerName = name
		if cert, _ := get(onlyRSA); cert.Leaf.SerialNumber.Int64() != want {
			t.Errorf("%q with RSA alone: certificate %d, want %d", name, cert.Leaf.SerialNumber, want)
		}
	}
}

func TestCertFilesErrors(t *testing.T) {
	dir := t.TempDir()
	good := makePair(t, 1, newECKey(), "a.example").write(t, dir, time.Now())
	for name, pairs := range map[string][]gateway.CertPair{
		"no pairs":    nil,
		"no file":     {{Cert: filepath.Join(dir, "none"), Key: good.Key}},
		"no names":    {{}},
		"a directory": {{Cert: dir, Key: good.Key}},
		"swapped":     {{Cert: good.Key, Key: good.Cert}},
		"the second":  {good, {Cert: good.Cert, Key: dir}},
	} {
		if get, err := gateway.CertFiles(pairs...); err == nil || get != nil || !strings.HasPrefix(err.Error(), "gateway: CertFiles: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCertFilesForClients presents a certificate as a client, as the documentation shows.
func TestCertFilesForClients(t *testing.T) {
	certs, err := gateway.CertFiles(makePair(t, 7, newECKey(), "client.example").write(t, t.TempDir(), time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	s := serveProtocol(t, http2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].SerialNumber)
	}))
	s.TLS.ClientAuth = tls.RequireAnyClientCert
	client := tls.Config{RootCAs: rootsOf(s), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return certs(&tls.ClientHelloInfo{})
	}}
	up := gateway.NewUpstream("u", gateway.MustTargets(s.URL), &gateway.UpstreamOptions{Transport: newTransport(t, &gateway.TransportOptions{TLS: &client})})
	if rec := recorded(gateway.Proxy(up, nil), nil); rec.Body.String() != "7" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
