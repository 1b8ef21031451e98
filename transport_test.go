package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestTransportH2C(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	tr := newTransport(t, nil)
	for scheme, proto := range map[string]string{"http": "HTTP/1.1", "h2c": "HTTP/2.0"} {
		targets := gateway.MustTargets(strings.Replace(s.URL, "http", scheme, 1))
		u := gateway.NewUpstream("u", targets, &gateway.UpstreamOptions{Transport: tr})
		rec := recorded(gateway.Proxy(u, nil), nil)
		if rec.Body.String() != proto {
			t.Errorf("%s: %d %q, want %q", scheme, rec.Code, rec.Body, proto)
		}
	}
}

// silence is a TCP proxy before a target that can fall silent: it then reads nothing and writes nothing, and connections
// stay open.
type silence struct {
	target string
	mu     sync.Mutex
	silent bool
	conns  []net.Conn
}

// silentFrom returns the address of a proxy before target.
func silentFrom(t *testing.T, target string) (addr string, s *silence) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &silence{target: target}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", target)
			if err != nil {
				conn.Close()
				continue
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn, behind)
			s.silent = false // a new connection is heard
			first := len(s.conns)
			s.mu.Unlock()
			wg.Go(func() { s.pass(behind, conn, first) })
			wg.Go(func() { s.pass(conn, behind, first) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for _, conn := range s.conns {
			conn.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String(), s
}

// pass copies src to dst while the proxy is not silent.
func (s *silence) pass(dst, src net.Conn, of int) {
	buf := make([]byte, 4<<10)
	for {
		n, err := src.Read(buf)
		s.mu.Lock()
		silent := s.silent || len(s.conns) > of // an earlier connection stays silent
		s.mu.Unlock()
		if silent {
			return // and leaves both connections open
		}
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			dst.Close()
			return
		}
	}
}

func (s *silence) fall() {
	s.mu.Lock()
	s.silent = true
	s.mu.Unlock()
}

// TestTransportPing: a connection of HTTP/2 to a target that fell silent is given up, and the next request finds another.
// Without pings, every later request would use the same connection and fail.
func TestTransportPing(t *testing.T) {
	for _, protocol := range []string{http2, h2c} {
		for _, ping := range []time.Duration{200 * time.Millisecond, -1} {
			t.Run(fmt.Sprint(protocol, " ", ping), func(t *testing.T) {
				s := serveProtocol(t, protocol, text("ok"))
				addr, proxy := silentFrom(t, s.Listener.Addr().String())
				o := gateway.TransportOptions{Ping: ping}
				link := "h2c://" + addr
				if protocol == http2 {
					link, o.TLS = "https://"+addr, &tls.Config{RootCAs: rootsOf(s)}
				}
				tr := newTransport(t, &o)
				ask := func(within time.Duration) error {
					ctx, cancel := context.WithTimeout(t.Context(), within)
					defer cancel()
					res, err := tr.RoundTrip(newRequest(t, "GET", link, nil).WithContext(ctx))
					if err == nil {
						res.Body.Close()
					}
					return err
				}
				if err := ask(patience); err != nil {
					t.Fatal(err)
				}
				proxy.fall()
				if ping < 0 {
					for range 3 {
						if err := ask(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("without pings: %v", err)
						}
					}
					return
				}
				if err := ask(patience); err == nil || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("on the silent connection: %v", err)
				}
				if err := ask(patience); err != nil {
					t.Errorf("on the next: %v", err)
				}
			})
		}
	}
}

// TestTransportTooManyPings: a gRPC server forbids pings while its streams are silent. It cuts the first silent stream,
// which says nothing about the server. Later connections send no pings, and their streams stay.
func TestTransportTooManyPings(t *testing.T) {
	if flag.Lookup("standard").Value.String() == "true" {
		t.Skip("net/http's transport does not learn which targets forbid pings")
	}
	pings := make(chan bool, 10)
	target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		io.CopyN(io.Discard, br, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
		conn.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS
		for {
			var frame [9]byte
			if _, err := io.ReadFull(br, frame[:]); err != nil {
				return
			}
			io.CopyN(io.Discard, br, int64(frame[1])<<8|int64(frame[2]))
			switch kind := frame[3]; kind {
			case 1: // HEADERS: answered with :status 200, and then nothing
				conn.Write(append([]byte{0, 0, 1, 1, 4}, append(frame[5:9:9], 0x88)...))
			case 6: // PING: GOAWAY with ENHANCE_YOUR_CALM
				pings <- true
				text := "too_many_pings"
				conn.Write(append([]byte{0, 0, byte(8 + len(text)), 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11}, text...))
				return
			}
		}
	})
	const ping = 150 * time.Millisecond
	circuit := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	up := gateway.NewUpstream("u", gateway.MustTargets(strings.Replace(target, "http", "h2c", 1)), &gateway.UpstreamOptions{
		Transport: newTransport(t, &gateway.TransportOptions{Ping: ping}),
		Circuit:   circuit, Health: gateway.HealthOptions{Unhealthy: 1, MaxEjected: 1},
	})
	read := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		res, err := up.RoundTrip(newRequest(t, "GET", "http://x/", nil).WithContext(ctx))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if err := read(patience); !errors.Is(err, gateway.ErrOverloaded) {
		t.Errorf("the first stream: %v", err)
	}
	if err := read(6 * ping); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second stream: %v", err)
	}
	if len(pings) != 1 {
		t.Errorf("%d pings", len(pings))
	}
	if s := up.Status()[0]; !s.Healthy || circuit.State() != gateway.CircuitClosed {
		t.Errorf("healthy %v, circuit %v", s.Healthy, circuit.State())
	}
}

// TestTransportTranslatesHosts: the host of a target may have letters beyond ASCII. IDNA has an ASCII form for them, in
// which the host is looked up and sent. Those of this one are wide forms of ASCII letters, and so it is localhost.
func TestTransportTranslatesHosts(t *testing.T) {
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	up := gateway.NewUpstream("u", gateway.MustTargets("http://\uff4c\uff4fcalhost:"+port), &gateway.UpstreamOptions{Transport: newTransport(t, nil)})
	for range 2 {
		if rec := recorded(gateway.Proxy(up, nil), nil); rec.Code != 200 || !strings.HasPrefix(rec.Body.String(), "xn--") {
			t.Errorf("got %d, %q", rec.Code, rec.Body)
		}
	}
}
