package gateway_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// restartable is a target of scheme https that can restart at the same address with other protocols.
type restartable struct {
	*httptest.Server
	addr string
}

func (s *restartable) start(t *testing.T, protocols ...string) {
	t.Helper()
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l := listenAgain(t, addr)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.Proto, body)
	}))
	s.Listener.Close()
	s.Listener, s.addr = l, l.Addr().String()
	s.Config.Protocols = new(http.Protocols)
	for _, p := range protocols {
		s.Config.Protocols.SetHTTP1(s.Config.Protocols.HTTP1() || p == http1)
		if p == http2 {
			s.Config.Protocols.SetHTTP2(true)
			s.EnableHTTP2 = true
		}
	}
	s.StartTLS()
}

// TestTransportLearnsProtocols: a target of scheme https may speak another protocol each time that it starts. No request
// fails, whether it has a body or not.
func TestTransportLearnsProtocols(t *testing.T) {
	var s restartable
	s.start(t, http1)
	transport := newTransport(t, &gateway.TransportOptions{TLS: &tls.Config{RootCAs: rootsOf(s.Server)}})
	up := gateway.NewUpstream("target", gateway.MustTargets("https://"+s.addr), &gateway.UpstreamOptions{Transport: transport})
	ask := func(want string) {
		t.Helper()
		for _, body := range []io.Reader{nil, strings.NewReader("in memory"), io.MultiReader(strings.NewReader("streamed"))} {
			r := newRequest(t, "PUT", "https://"+s.addr+"/", body)
			sent := map[bool]string{true: "in memory", false: "streamed"}[r.ContentLength > 0]
			if body == nil {
				sent = ""
			}
			res, err := up.RoundTrip(r)
			if err != nil {
				t.Errorf("%s, %q: %v", want, sent, err)
				continue
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if string(got) != want+" "+sent || err != nil {
				t.Errorf("got %q, %v, want %s %s", got, err, want, sent)
			}
		}
	}
	ask("HTTP/1.1")
	for _, next := range []struct {
		protocols []string
		want      string
	}{
		{[]string{http2, http1}, "HTTP/2.0"}, {[]string{http1}, "HTTP/1.1"}, {[]string{http2}, "HTTP/2.0"},
		{[]string{http2}, "HTTP/2.0"}, {[]string{http1}, "HTTP/1.1"}, {[]string{http1}, "HTTP/1.1"},
	} {
		s.Close()
		s.start(t, next.protocols...)
		ask(next.want)
	}
	s.Close()
}

// TestTransportFirstRequests: concurrent first requests to a target of scheme https all succeed, and those of HTTP/2
// end up on one connection.
func TestTransportFirstRequests(t *testing.T) {
	for _, protocol := range []string{http1, http2} {
		var s restartable
		s.start(t, protocol)
		t.Cleanup(s.Close)
		transport := newTransport(t, &gateway.TransportOptions{TLS: &tls.Config{RootCAs: rootsOf(s.Server)}, MaxPerHost: 3})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				res, err := transport.RoundTrip(newRequest(t, "POST", "https://"+s.addr+"/", io.MultiReader(strings.NewReader("x"))))
				if err != nil {
					t.Error(protocol, err)
					return
				}
				defer res.Body.Close()
				if body, err := io.ReadAll(res.Body); !strings.HasSuffix(string(body), " x") || err != nil {
					t.Error(protocol, string(body), err)
				}
			})
		}
		wg.Wait()
	}
}

// TestTransportTLS: the server's name is the URL's and not the Host's, the client's certificate is sent, and sessions are
// resumed.
func TestTransportTLS(t *testing.T) {
	for _, protocol := range []string{http1, http2} {
		for _, upgrade := range []bool{false, true} {
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				fmt.Fprintf(w, "%s %s %d %v", r.Host, r.TLS.ServerName, len(r.TLS.PeerCertificates), r.TLS.DidResume)
			}))
			s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
			s.EnableHTTP2 = protocol == http2
			s.StartTLS()
			t.Cleanup(s.Close)
			transport := newTransport(t, &gateway.TransportOptions{TLS: &tls.Config{
				RootCAs: rootsOf(s), Certificates: s.TLS.Certificates, ClientSessionCache: tls.NewLRUClientSessionCache(10)}})
			_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
			for n := range 3 {
				r := newRequest(t, "GET", "https://localhost:"+port+"/", nil)
				r.Host = "other.example"
				if upgrade {
					r.Header.Set("Connection", "Upgrade")
					r.Header.Set("Upgrade", "x")
				}
				r.URL.Host = "127.0.0.1:" + port
				res, err := transport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if want := fmt.Sprintf("other.example  1 %v", n > 0); string(body) != want {
					t.Errorf("%s, upgrade %v: got %q, want %q", protocol, upgrade, body, want)
				}
			}
		}
	}
}
