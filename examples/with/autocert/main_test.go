package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// resolver answers every question with this machine, and returns its address.
func resolver(t *testing.T) string {
	l := listen(t)
	srv := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m)
	})}
	served := make(chan error)
	go func() { served <- srv.ActivateAndServe() }()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return l.Addr().String()
}

// authority is Pebble, the ACME server that Let's Encrypt tests with. It asks for proof on the two ports.
func authority(t *testing.T, http1, https int) (directory string, client *http.Client, roots *x509.CertPool) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	logger := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	issuer := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {}})
	checker := va.New(logger, http1, https, true, resolver(t), store)
	api := wfe.New(logger, store, checker, issuer, []string{"ca.example"}, true, false, 0, 0)
	srv := httptest.NewTLSServer(api.Handler())
	t.Cleanup(srv.Close)
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(issuer.GetRootCert(0).PEM())
	return srv.URL + wfe.DirectoryPath, srv.Client(), roots
}

// TestAutocert has the first handshake get a certificate, which proves that the gateway has the name, and the
// next use it. After a restart it comes from the folder.
func TestAutocert(t *testing.T) {
	https, http1 := listen(t), listen(t)
	directory, client, roots := authority(t, port(http1), port(https))
	folder := t.TempDir()
	h := gateway.Proxy(ask.Upstream(t, ask.Echo), nil)

	serve := func(https, http1 net.Listener, directory string) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error)
		go func() { served <- run(ctx, https, http1, h, newManager(folder, directory, client, "gw.example")) }()
		return func() {
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
	}
	handshake := func(l net.Listener, name string) (*tls.Conn, error) {
		return tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
	}

	stop := serve(https, http1, directory)
	if conn, err := handshake(https, "other.example"); err == nil {
		conn.Close()
		t.Error("there is a certificate for a name that is not the gateway's")
	}
	first, err := handshake(https, "gw.example")
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	over := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "gw.example"}}
	if got, want := ask.DoWith(t, over, "GET", "https://"+https.Addr().String()+"/items", "").String(), `200 GET /items by ""`; got != want {
		t.Errorf("%s; want %s", got, want)
	}
	over.CloseIdleConnections()
	got := ask.Do(t, "GET", "http://"+http1.Addr().String()+"/items", "")
	if want := "https://127.0.0.1:443/items"; got.Status != http.StatusFound || got.Header.Get("Location") != want {
		t.Errorf("over HTTP: %s to %s; want a redirect to %s", got, got.Header.Get("Location"), want)
	}
	stop()

	https, http1 = listen(t), listen(t)
	defer serve(https, http1, "https://127.0.0.1:1/nobody")()
	again, err := handshake(https, "gw.example")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.ConnectionState().PeerCertificates[0].Equal(first.ConnectionState().PeerCertificates[0]) {
		t.Error("after a restart there is another certificate")
	}
}
