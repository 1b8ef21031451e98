package h1

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// serveTLS is like serve, over TLS. It returns a URL and a configuration for clients.
func serveTLS(t testing.TB, protos []string, handle func(n int, c net.Conn)) (string, *tls.Config) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS() // for its certificate
	config := srv.TLS.Clone()
	client := srv.Client().Transport.(*http.Transport).TLSClientConfig
	srv.Close()
	config.NextProtos = protos
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, tls.NewListener(l, config), handle)
	return "https://" + l.Addr().String() + "/", client
}

// A TLS 1.3 server may send session tickets at any time: the connection is still reused. After close_notify
// or application data it is not.
func TestIdleConnectionsOverTLS(t *testing.T) {
	for _, tt := range []struct {
		name   string
		then   func(c *tls.Conn)
		reused bool
	}{
		{"quiet", func(*tls.Conn) {}, true},
		{"close_notify", func(c *tls.Conn) { c.CloseWrite() }, false},
		{"bytes", func(c *tls.Conn) { io.WriteString(c, "x") }, false},
		{"closed", func(c *tls.Conn) { c.NetConn().Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, done := make(chan bool), make(chan bool)
			url, config := serveTLS(t, []string{"h2", "http/1.1"}, func(_ int, c net.Conn) {
				br := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					io.WriteString(c, okAnswer)
					<-next
					tt.then(c.(*tls.Conn))
					done <- true
				}
			})
			tr := newTransport(t, &Options{TLS: config})
			for i := range 3 {
				reused, body := askReused(t, tr, newRequest(t, "PATCH", url, nil))
				if body != "ok" || reused != (tt.reused && i > 0) {
					t.Error(reused, body)
				}
				next <- true
				<-done
				if !tt.reused {
					key, _ := keyOf("https", url[len("https://"):len(url)-1])
					waitUntilReadable(t, tr.hosts[key].idle[0].wire.Conn)
				}
			}
		})
	}
}

// Over TLS, a body that ends with the connection is complete only after close_notify. Otherwise it may have
// been cut off.
func TestStreamOverTLS(t *testing.T) {
	for _, farewell := range []bool{false, true} {
		url, config := serveTLS(t, nil, func(_ int, c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhello")
			if farewell {
				c.(*tls.Conn).CloseWrite()
			}
			c.(*tls.Conn).NetConn().Close()
		})
		res, err := newTransport(t, &Options{TLS: config}).RoundTrip(newRequest(t, "GET", url, nil))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if string(body) != "hello" || farewell && err != nil || !farewell && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(farewell, string(body), err)
		}
		res.Body.Close()
	}
}

// A target may pause in the middle of a TLS record for so long that the watcher starts.
func TestSlowRecordsOverTLS(t *testing.T) {
	url, config := serveTLS(t, nil, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, okAnswer[:20])
			timer := time.NewTimer(3 * watchAfter)
			<-timer.C
			io.WriteString(c, okAnswer[20:])
		}
	})
	tr := newTransport(t, &Options{TLS: config})
	for i := range 3 {
		if reused, body := askReused(t, tr, newRequest(t, "GET", url, nil)); body != "ok" || reused != (i > 0) {
			t.Error(reused, body)
		}
	}
}

func TestUntrustedTLS(t *testing.T) {
	url, _ := serveTLS(t, nil, answerAll(okAnswer))
	tr := newTransport(t, nil)
	_, err := tr.RoundTrip(newRequest(t, "GET", url, nil))
	var cert *tls.CertificateVerificationError
	if !errors.As(err, &cert) || len(tr.hosts) != 0 {
		t.Error(err)
	}
}

func TestNegotiate(t *testing.T) {
	for _, tt := range []struct {
		server []string
		want   string
	}{
		{nil, "http/1.1"}, {[]string{"http/1.1"}, "http/1.1"}, {[]string{"h2", "http/1.1"}, "h2"}, {[]string{"h2"}, "h2"},
	} {
		url, config := serveTLS(t, tt.server, answerAll(okAnswer))
		tr := newTransport(t, &Options{TLS: config, Offer: []string{"h2", "http/1.1"}, MaxPerHost: 1})
		target := url[len("https://") : len(url)-1]
		for range 2 {
			proto, c, err := tr.Negotiate(t.Context(), target)
			if err != nil || proto != tt.want || (c != nil) != (tt.want == "h2") {
				t.Error(proto, c, err)
			}
			if c != nil {
				c.Close()
			}
		}
		if tt.want == "http/1.1" { // the transport has kept the connection
			if reused, body := askReused(t, tr, newRequest(t, "GET", url, nil)); body != "ok" || !reused {
				t.Error(reused, body)
			}
		}
	}
}

// If the target chooses another protocol, the request can be sent with that protocol on the same connection.
func TestOtherProtocol(t *testing.T) {
	url, config := serveTLS(t, []string{"h2", "http/1.1"}, answerAll(okAnswer))
	tr := newTransport(t, &Options{TLS: config, Offer: []string{"h2", "http/1.1"}, MaxPerHost: 1})
	streamed := &closeCounter{Reader: iotest.OneByteReader(strings.NewReader("hello"))}
	for name, body := range map[string]io.Reader{"none": nil, "inline": strings.NewReader("hello"), "streamed": streamed} {
		req := newRequest(t, "POST", url, body)
		_, err := tr.RoundTrip(req)
		var other *OtherProtocol
		if !errors.As(err, &other) || other.Protocol != "h2" || other.Conn == nil || other.Request == nil {
			t.Fatal(name, err)
		}
		other.Conn.Close()
		want := "hello"
		if body == nil {
			want = ""
			if other.Request.Body != nil {
				t.Error("a body where there was none")
			}
		} else if got, err := io.ReadAll(other.Request.Body); string(got) != want || err != nil {
			t.Errorf("%s: body %q, %v", name, got, err)
		}
		if other.Request.Context() != req.Context() || other.Request.ContentLength != req.ContentLength {
			t.Error(name, other.Request)
		}
	}
	if streamed.closed.Load() != 0 {
		t.Error("the body was closed")
	}
	if len(tr.hosts) != 0 {
		t.Error(tr.hosts)
	}
}
