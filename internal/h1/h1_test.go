package h1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
)

// serve accepts connections and calls handle for each in a goroutine of its own. n counts the connections
// from 0. All end with the test.
func serve(t testing.TB, handle func(n int, c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, handle)
	return l.Addr().String()
}

func serveOn(t testing.TB, l net.Listener, handle func(n int, c net.Conn)) {
	t.Helper()
	conns, done := make(chan net.Conn, 10000), make(chan struct{})
	running := make(chan struct{}, 10000)
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			running <- struct{}{}
			go func() {
				defer func() { <-running }()
				defer c.Close()
				handle(n, c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		close(conns)
		for c := range conns {
			c.Close()
		}
		for range cap(running) {
			running <- struct{}{}
		}
	})
}

// answerAll returns a handler that answers each request on a connection with the same bytes.
func answerAll(answer string) func(int, net.Conn) {
	return func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}
}

func newTransport(t testing.TB, opts *Options) *Transport {
	tr := New(opts)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// ask makes a round trip and returns the response and its body.
func ask(t testing.TB, rt http.RoundTripper, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res, string(body)
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"

func TestRoundTrip(t *testing.T) {
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, nil)
	for range 3 {
		if res, body := ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
	for range 3 {
		if res, body := ask(t, tr, newRequest(t, "POST", "http://"+addr+"/", strings.NewReader("hello"))); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
	for range 3 {
		big := io.LimitReader(zeros{}, 1<<20)
		if res, body := ask(t, tr, newRequest(t, "POST", "http://"+addr+"/", big)); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
}

// RoundTrip calls the hooks of an httptrace.ClientTrace in the context.
func TestClientTrace(t *testing.T) {
	for _, secure := range []bool{false, true} {
		answer := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + okAnswer
		url, opts := "", &Options{}
		if secure {
			url, opts.TLS = serveTLS(t, nil, answerAll(answer))
		} else {
			url = "http://" + serve(t, answerAll(answer)) + "/"
		}
		tr := newTransport(t, opts)
		for i, want := range []string{
			"GetConn,ConnectStart,ConnectDone,TLSStart,TLSDone,GotConn new,WroteHeaders,WroteRequest,FirstByte,100,1xx 100,1xx 103",
			"GetConn,GotConn reused idle,WroteHeaders,WroteRequest,FirstByte,100,1xx 100,1xx 103",
		} {
			if !secure {
				want = strings.ReplaceAll(want, "TLSStart,TLSDone,", "")
			}
			var calls []string
			note := func(s string) { calls = append(calls, s) }
			trace := &httptrace.ClientTrace{
				GetConn: func(hostPort string) {
					if !strings.Contains(url, hostPort) {
						t.Error(hostPort)
					}
					note("GetConn")
				},
				GotConn: func(info httptrace.GotConnInfo) {
					if _, ok := info.Conn.(*tls.Conn); ok != secure || info.Conn.RemoteAddr() == nil {
						t.Error(info.Conn)
					}
					switch info.IdleTime = 0; info {
					case httptrace.GotConnInfo{Conn: info.Conn}:
						note("GotConn new")
					case httptrace.GotConnInfo{Conn: info.Conn, Reused: true, WasIdle: true}:
						note("GotConn reused idle")
					}
				},
				ConnectStart:         func(string, string) { note("ConnectStart") },
				ConnectDone:          func(string, string, error) { note("ConnectDone") },
				TLSHandshakeStart:    func() { note("TLSStart") },
				TLSHandshakeDone:     func(tls.ConnectionState, error) { note("TLSDone") },
				WroteHeaders:         func() { note("WroteHeaders") },
				WroteRequest:         func(info httptrace.WroteRequestInfo) { note("WroteRequest") },
				GotFirstResponseByte: func() { note("FirstByte") },
				Got100Continue:       func() { note("100") },
				Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
					note(fmt.Sprint("1xx ", code))
					return nil
				},
			}
			req := newRequest(t, "GET", url, nil)
			ask(t, tr, req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
			if got := strings.Join(calls, ","); got != want {
				t.Errorf("request %d:\n got %s\nwant %s", i, got, want)
			}
		}
	}
}

// A round trip wraps the errors of its connection.
func TestConnectionErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name string
		conn net.Conn
	}{
		{"read", &brokenConn{Conn: &memoryConn{}, read: broken}},
		{"write", &brokenConn{Conn: &memoryConn{}, write: broken}},
		{"read in the header", &brokenConn{Conn: &memoryConn{data: []byte("HTTP/1.1"), step: 100}, then: broken}},
	} {
		tr := New(&Options{Dial: func(context.Context, string, string) (net.Conn, error) { return tt.conn, nil }})
		if _, err := tr.RoundTrip(newRequest(t, "GET", "http://a/", nil)); !errors.Is(err, broken) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !tt.conn.(*brokenConn).closed {
			t.Errorf("%s: not closed", tt.name)
		}
	}
}

type brokenConn struct {
	net.Conn
	read, then, write error
	closed            bool
}

func (c *brokenConn) Read(p []byte) (int, error) {
	if c.read != nil {
		return 0, c.read
	}
	n, err := c.Conn.Read(p)
	if err == io.EOF && c.then != nil {
		err = c.then
	}
	return n, err
}

func (c *brokenConn) Write(p []byte) (int, error) {
	if c.write != nil {
		return 0, c.write
	}
	return len(p), nil
}

func (c *brokenConn) Close() error { c.closed = true; return nil }

// A round trip makes four allocations, and one more for a body whose type wraps a reader. net/http makes ten
// times as many.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	answer := benchAnswer(100)
	addr := serve(t, func(_ int, c net.Conn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
	tr := newTransport(t, nil)
	req := newRequest(t, "GET", "http://"+addr+"/users/7?fields=name", nil)
	req.Header.Set("User-Agent", "x")
	round := func(rt http.RoundTripper) float64 {
		return testing.AllocsPerRun(200, func() {
			res, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		})
	}
	std := &http.Transport{DisableCompression: true}
	defer std.CloseIdleConnections()
	own, theirs := round(tr), round(std)
	if own > 6 || own > 0.6*theirs {
		t.Errorf("%v allocations, net/http %v", own, theirs)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
