package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// socketDir returns a directory for sockets. That of t.TempDir may be too long for the path of one.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serveSocket runs h on a Unix socket, and counts its connections.
func serveSocket(t *testing.T, path string, h http.Handler) (s *httptest.Server, conns *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conns = new(atomic.Int32)
	s = &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}}}
	s.Start()
	t.Cleanup(s.Close)
	return s, conns
}

// TestSocketTarget sends requests of several kinds to a Unix socket.
func TestSocketTarget(t *testing.T) {
	for _, name := range []string{"app.sock", "A b%ä.sock"} {
		path := filepath.Join(socketDir(t), name)
		_, conns := serveSocket(t, path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/moved":
				w.Header().Set("Location", "http://localhost/there")
				w.WriteHeader(302)
				return
			case "/switch":
				conn, brw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				line, _ := brw.ReadString('\n')
				io.WriteString(conn, line)
				return
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Host, body)
		}))
		tel := new(gatewaytest.Telemetry)
		target := "unix://" + strings.NewReplacer("%", "%25", " ", "%20", "ä", "%C3%A4").Replace(path)
		up := gateway.NewUpstream("app", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: newTransport(t, nil), Meter: tel})
		for _, tt := range []struct {
			name, request, body string
			opts                *gateway.ProxyOptions
			want                string // in the answer
		}{
			{"GET", "GET /a%2Fb?q=1 HTTP/1.1\r\n", "", nil, "\r\n\r\nGET /a%2Fb?q=1 localhost "},
			{"the client's Host", "GET / HTTP/1.1\r\n", "", &gateway.ProxyOptions{PreserveHost: true}, "\r\n\r\nGET / gw.example "},
			{"an absolute URL", "GET unix:///etc/other.sock HTTP/1.1\r\n", "", nil, "\r\n\r\nGET /etc/other.sock localhost "},
			{"POST", "POST / HTTP/1.1\r\nContent-Length: 4\r\n", "body", nil, "\r\n\r\nPOST / localhost body"},
			{"a redirect", "GET /moved HTTP/1.1\r\n", "", &gateway.ProxyOptions{RewriteLocation: true}, "Location: http://gw.example/there\r\n"},
			{"an upgrade", "GET /switch HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n", "body\n", nil, "\r\n\r\nbody\n"},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				j, observe := observed()
				s := serve(t, observe(gateway.Proxy(up, tt.opts)))
				if !strings.Contains(tt.request, "Connection") {
					tt.request += "Connection: close\r\n"
				}
				conn := raw(t, s, tt.request+"Host: gw.example\r\n\r\n"+tt.body)
				got, err := io.ReadAll(conn)
				conn.Close()
				if err != nil || !strings.Contains(string(got), tt.want) {
					t.Errorf("%v, answer %q, want %q", err, got, tt.want)
				}
				if line := j.next(t); line["target"] != target || line["outcome"] != "ok" {
					t.Errorf("log line %v", line)
				}
			})
		}
		if got := conns.Load(); got > 2 { // the upgrade keeps one
			t.Errorf("%d connections", got)
		}
		series := tel.Series("http.client.request.duration")
		for _, s := range series {
			if addr, _ := s.Attributes.Value("server.address"); addr.AsString() != path || s.Attributes.HasValue("server.port") {
				t.Errorf("attributes %v", s.Attributes)
			}
		}
		if len(series) == 0 {
			t.Error("no metrics")
		}
	}
}

// TestSocketTargetsAreApart: two sockets, and a TCP target, do not share connections. A socket that a new
// server has taken over is found at once, also by a request that met a dead connection.
func TestSocketTargetsAreApart(t *testing.T) {
	dir := socketDir(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "A")
	first, conns := serveSocket(t, a, text("a"))
	serveSocket(t, b, text("b"))
	tcp := serve(t, text("tcp"))
	transport := newTransport(t, nil)
	answer := func(target string) string {
		t.Helper()
		up := gateway.NewUpstream("app", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
		return recorded(gateway.Proxy(up, nil), nil).Body.String()
	}
	for range 3 {
		if got := answer("unix://"+a) + " " + answer("unix://"+b) + " " + answer(tcp.URL); got != "a b tcp" {
			t.Errorf("got %s", got)
		}
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
	first.Close()
	serveSocket(t, a, text("new"))
	if got := answer("unix://" + a); got != "new" {
		t.Errorf("after the server has changed: %q", got)
	}
}

// TestSocketHealth probes sockets. One is not there, and one is there but nobody listens.
func TestSocketHealth(t *testing.T) {
	dir := socketDir(t)
	hosts := make(chan string, 100)
	serveSocket(t, filepath.Join(dir, "good"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hosts <- r.Host + r.URL.Path }))
	l, err := net.Listen("unix", filepath.Join(dir, "dead"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	up := gateway.NewUpstream("app", gateway.MustTargets("unix://"+dir+"/good", "unix://"+dir+"/dead", "unix://"+dir+"/none"), &gateway.UpstreamOptions{
		Transport: newTransport(t, nil), Retry: gateway.RetryOptions{Attempts: 2},
		Health: gateway.HealthOptions{Path: "/up", Interval: time.Millisecond, Unhealthy: 1},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { up.CheckHealth(ctx) })
	for range 3 {
		if got := <-hosts; got != "localhost/up" {
			t.Errorf("probed as %s", got)
		}
	}
	cancel()
	wg.Wait()
	status := up.Status()
	if !status[0].Healthy || status[1].Healthy || status[2].Healthy || !strings.Contains(status[2].Reason, "none") {
		t.Errorf("status %+v", status)
	}
	for range 10 {
		if got := recorded(gateway.Proxy(up, nil), nil).Code; got != 200 {
			t.Errorf("status %d", got)
		}
	}
}

// TestSocketAway: a socket that is not there is a failed upstream, of which the client learns nothing.
func TestSocketAway(t *testing.T) {
	j, observe := observed()
	up := gateway.NewUpstream("app", gateway.MustTargets("unix:///run/gateway-test/none.sock"), &gateway.UpstreamOptions{Transport: newTransport(t, nil)})
	rec := recorded(observe(gateway.Proxy(up, nil)), nil)
	if rec.Code != 502 || strings.Contains(rec.Body.String(), "sock") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if line := j.next(t); line["outcome"] != "upstream_error" || line["target"] != "unix:///run/gateway-test/none.sock" {
		t.Errorf("log line %v", line)
	}
}

// TestSocketByNetHTTP teaches the scheme to a transport of net/http, as NewTransport's documentation
// says, and sends a request by NewTransport alone.
func TestSocketByNetHTTP(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	serveSocket(t, path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	own := gateway.NewTransport(nil)
	t.Cleanup(own.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	standard := new(http.Transport)
	standard.RegisterProtocol("unix", own)
	up := gateway.NewUpstream("app", gateway.MustTargets("unix://"+path), &gateway.UpstreamOptions{Transport: standard})
	if rec := recorded(gateway.Proxy(up, nil), nil); rec.Code != 200 || rec.Body.String() != "localhost" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	r := newRequest(t, "GET", "/", nil)
	r.URL.Scheme, r.URL.Host = "unix", path
	res, err := own.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := bodyOf(t, res); got != "localhost" {
		t.Errorf("Host %s", got)
	}
	r.URL.Host = "relative"
	if _, err := own.RoundTrip(r); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a relative path: %v", err)
	}
}
