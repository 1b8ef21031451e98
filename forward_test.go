package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// The protocols that a hop may have.
const (
	http1 = "http1" // HTTP/1.1
	http2 = "http2" // HTTP/2 over TLS
	h2c   = "h2c"   // HTTP/2 without TLS
)

// serveProtocol runs h on a real listener that speaks protocol.
func serveProtocol(t *testing.T, protocol string, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	switch protocol {
	case http2:
		s.EnableHTTP2 = true
		s.StartTLS()
	case h2c:
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	default:
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// clientOf returns a client for s that uses nothing but protocol.
func clientOf(t *testing.T, protocol string, s *httptest.Server) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	switch protocol {
	case http2:
		transport.Protocols.SetHTTP2(true)
		transport.TLSClientConfig = &tls.Config{RootCAs: rootsOf(s)}
	case h2c:
		transport.Protocols.SetUnencryptedHTTP2(true)
	default:
		transport.Protocols.SetHTTP1(true)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

// way is a client, a gateway of one Proxy, observed, and a target.
type way struct {
	*http.Client
	url     string
	journal journal
	server  *httptest.Server
}

// newWay speaks one protocol before the gateway and one behind it.
func newWay(t *testing.T, before, behind string, opts *gateway.ProxyOptions, target http.HandlerFunc) *way {
	t.Helper()
	s := serveProtocol(t, behind, target)
	link := s.URL
	var o gateway.TransportOptions
	switch behind {
	case http2:
		o.TLS = &tls.Config{RootCAs: rootsOf(s)}
	case h2c:
		link = "h2c" + strings.TrimPrefix(link, "http")
	}
	transport := gateway.NewTransport(&o)
	t.Cleanup(transport.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	up := gateway.NewUpstream("target", gateway.MustTargets(link), &gateway.UpstreamOptions{Transport: transport})
	return newWayTo(t, before, up, opts)
}

func newWayTo(t *testing.T, before string, to http.RoundTripper, opts *gateway.ProxyOptions) *way {
	t.Helper()
	j, observe := observed()
	s := serveProtocol(t, before, observe(gateway.Proxy(to, opts)))
	return &way{Client: clientOf(t, before, s), url: s.URL, journal: j, server: s}
}

// do sends a request and fails the test when it gets no answer.
func (w *way) do(t *testing.T, r *http.Request) *http.Response {
	t.Helper()
	res, err := w.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// plainTarget is a target that speaks TCP. answer is called for each connection, in turn or at once, and
// closes it by returning.
func plainTarget(t *testing.T, answer func(conn net.Conn, br *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				answer(conn, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

// readHead reads a request or a response up to the empty line, as it came.
func readHead(br *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// toPlain is a gateway before a plainTarget.
func toPlain(t *testing.T, opts *gateway.ProxyOptions, answer func(conn net.Conn, br *bufio.Reader)) *way {
	t.Helper()
	transport := gateway.NewTransport(nil)
	t.Cleanup(transport.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	up := gateway.NewUpstream("target", gateway.MustTargets(plainTarget(t, answer)), &gateway.UpstreamOptions{Transport: transport})
	return newWayTo(t, http1, up, opts)
}

// TestForwardProtocols sends the same things over every pair of protocols.
func TestForwardProtocols(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http1, http2}, {http1, h2c}, {http2, http1}, {http2, http2}, {h2c, h2c}} {
		before, behind := pair[0], pair[1]
		t.Run(before+" to "+behind, func(t *testing.T) {
			gone := make(chan bool, 1)
			w := newWay(t, before, behind, nil, func(w http.ResponseWriter, r *http.Request) {
				if want := map[string]int{http1: 1, http2: 2, h2c: 2}[behind]; r.ProtoMajor != want {
					t.Errorf("the target was asked over %s", r.Proto)
				}
				h := w.Header()
				switch r.URL.Path {
				case "/echo":
					http.NewResponseController(w).EnableFullDuplex()
					h.Set("Trailer", "X-Announced")
					h["X-Multi"] = []string{"z", "a", "z"}
					h.Set("Date", "Mon, 01 Jan 2024 00:00:00 GMT")
					h.Set("Server", "target")
					h.Set("Content-Type", "text/x")
					w.WriteHeader(203)
					n, err := io.Copy(w, r.Body)
					h.Set("X-Announced", fmt.Sprint(n, err))
					h.Set(http.TrailerPrefix+"X-Unannounced", r.Trailer.Get("X-Sum"))
				case "/empty":
					io.Copy(io.Discard, r.Body)
					h.Set("Trailer", "X-Announced")
					h.Set("X-Seen", fmt.Sprint(r.ContentLength))
					w.WriteHeader(200)
					h.Set("X-Announced", "1"+r.Trailer.Get("X-Sum"))
				case "/late":
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
					h.Set(http.TrailerPrefix+"X-Unannounced", "1")
				case "/length":
					h.Set("Content-Length", "5")
					h.Set("Etag", `"e"`)
					switch r.URL.RawQuery {
					case "304":
						w.WriteHeader(304)
						return
					case "204":
						h.Del("Content-Length")
						w.WriteHeader(204)
						return
					}
					if r.Method != "HEAD" {
						io.WriteString(w, "12345")
					}
				case "/typeless":
					h["Content-Type"] = nil
					io.WriteString(w, "<html>")
				case "/abort":
					io.WriteString(w, "half")
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				case "/short":
					h.Set("Content-Length", "100")
					io.WriteString(w, "half")
				case "/wait":
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					gone <- true
				case "/huge":
					h.Set("X-Size", fmt.Sprint(len(r.Header.Get("X-Huge"))))
					h.Set("X-Huge", strings.Repeat("b", 200<<10))
				}
			})

			t.Run("body and trailers", func(t *testing.T) {
				r := newRequest(t, "POST", w.url+"/echo", io.MultiReader(strings.NewReader(strings.Repeat("x", 100<<10))))
				r.Trailer = http.Header{"X-Sum": {"7"}}
				res := w.do(t, r)
				if _, ok := res.Trailer["X-Announced"]; !ok {
					t.Errorf("announced: %v", res.Trailer)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || len(body) != 100<<10 || res.StatusCode != 203 {
					t.Errorf("got %d, %d bytes, %v", res.StatusCode, len(body), err)
				}
				if res.Trailer.Get("X-Announced") != "102400 <nil>" || res.Trailer.Get("X-Unannounced") != "7" {
					t.Errorf("trailers %v", res.Trailer)
				}
				if !slices.Equal(res.Header["X-Multi"], []string{"z", "a", "z"}) || len(res.Header["Date"]) != 1 ||
					res.Header.Get("Date") != "Mon, 01 Jan 2024 00:00:00 GMT" || res.Header.Get("Server") != "target" {
					t.Errorf("got %v", res.Header)
				}
			})
			t.Run("trailers without a body", func(t *testing.T) {
				r := newRequest(t, "POST", w.url+"/empty", io.MultiReader())
				r.Trailer = http.Header{"X-Sum": {"2"}}
				res := w.do(t, r)
				body, err := io.ReadAll(res.Body)
				if err != nil || len(body) > 0 || res.Trailer.Get("X-Announced") != "12" {
					t.Errorf("got %q, %v, %v", body, err, res.Trailer)
				}
				res = w.do(t, newRequest(t, "GET", w.url+"/late", nil))
				io.Copy(io.Discard, res.Body)
				if res.Trailer.Get("X-Unannounced") != "1" {
					t.Errorf("got %v", res.Trailer)
				}
			})
			t.Run("no body", func(t *testing.T) {
				for _, method := range []string{"GET", "POST", "DELETE"} {
					res := w.do(t, newRequest(t, method, w.url+"/empty", nil))
					if got := res.Header.Get("X-Seen"); got != "0" {
						t.Errorf("%s: the target saw a length of %s", method, got)
					}
				}
			})
			t.Run("lengths", func(t *testing.T) {
				for _, tt := range []struct {
					method, query string
					status        int
					length        string
				}{
					{"GET", "", 200, "5"}, {"HEAD", "", 200, "5"}, {"HEAD", "304", 304, ""}, {"GET", "204", 204, ""},
				} {
					res := w.do(t, newRequest(t, tt.method, w.url+"/length?"+tt.query, nil))
					body, err := io.ReadAll(res.Body)
					if res.StatusCode != tt.status || tt.status != 304 && res.Header.Get("Content-Length") != tt.length || // net/http drops a 304's
						res.Header.Get("Etag") != `"e"` || err != nil || (string(body) == "12345") != (tt.method == "GET" && tt.status == 200) {
						t.Errorf("%s ?%s: %d, %v, %q, %v", tt.method, tt.query, res.StatusCode, res.Header, body, err)
					}
				}
			})
			t.Run("no type is guessed", func(t *testing.T) {
				res := w.do(t, newRequest(t, "GET", w.url+"/typeless", nil))
				if got, ok := res.Header["Content-Type"]; ok {
					t.Errorf("got %q", got)
				}
			})
			t.Run("huge fields", func(t *testing.T) {
				r := newRequest(t, "GET", w.url+"/huge", nil)
				r.Header.Set("X-Huge", strings.Repeat("a", 200<<10))
				res := w.do(t, r)
				if res.Header.Get("X-Size") != "204800" || len(res.Header.Get("X-Huge")) != 200<<10 {
					t.Errorf("the target saw %s, the client %d", res.Header.Get("X-Size"), len(res.Header.Get("X-Huge")))
				}
			})
			for _, path := range []string{"/abort", "/short"} {
				t.Run("the target stops in mid-body"+path, func(t *testing.T) {
					for len(w.journal) > 0 {
						<-w.journal
					}
					res := w.do(t, newRequest(t, "GET", w.url+path, nil))
					body, err := io.ReadAll(res.Body)
					if err == nil || string(body) != "half" {
						t.Errorf("got %q, %v; want an abort", body, err)
					}
					if line := w.journal.next(t); line["outcome"] != "aborted" {
						t.Errorf("logged %v", line)
					}
				})
			}
			t.Run("the client leaves", func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				w.do(t, newRequest(t, "GET", w.url+"/wait", nil).WithContext(ctx))
				cancel()
				select {
				case <-gone:
				case <-time.After(10 * time.Second):
					t.Fatal("the target was not told")
				}
				if line := w.journal.next(t); line["outcome"] != "client_canceled" {
					t.Errorf("logged %v", line)
				}
			})
		})
	}
}

// TestForwardClientStopsInMidBody: the client leaves while it sends. That is its own doing over any protocol.
func TestForwardClientStopsInMidBody(t *testing.T) {
	for _, before := range []string{http1, http2, h2c} {
		t.Run(before, func(t *testing.T) {
			begun, gone := make(chan bool), make(chan error, 1)
			w := newWay(t, before, http1, nil, func(w http.ResponseWriter, r *http.Request) {
				io.ReadFull(r.Body, make([]byte, 4))
				begun <- true
				_, err := io.Copy(io.Discard, r.Body)
				gone <- err
			})
			in, out := io.Pipe()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() {
				io.WriteString(out, "half")
				<-begun
				cancel()
				out.CloseWithError(context.Canceled)
			}()
			if res, err := w.Do(newRequest(t, "POST", w.url, in).WithContext(ctx)); err == nil {
				res.Body.Close()
				t.Errorf("got %d", res.StatusCode)
			}
			if err := <-gone; err == nil {
				t.Error("the target took half a body for a whole one")
			}
			if line := w.journal.next(t); line["outcome"] != "client_canceled" || line["status"] != "499" {
				t.Errorf("logged %v", line)
			}
		})
	}
}

// TestForwardDuplex: answers begin while bodies are still on their way, and may end before them.
func TestForwardDuplex(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http2, http2}, {h2c, h2c}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			w := newWay(t, pair[0], pair[1], nil, func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				if r.URL.Path == "/early" {
					return
				}
				buf := make([]byte, 4)
				for {
					if _, err := io.ReadFull(r.Body, buf); err != nil {
						return
					}
					w.Write(buf)
					w.(http.Flusher).Flush()
				}
			})
			in, out := io.Pipe()
			res := w.do(t, newRequest(t, "POST", w.url+"/echo", in))
			for _, s := range []string{"ping", "pong"} {
				io.WriteString(out, s)
				buf := make([]byte, 4)
				if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != s {
					t.Fatalf("got %q, %v", buf, err)
				}
			}
			out.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}

			in, out = io.Pipe()
			defer out.Close()
			res = w.do(t, newRequest(t, "POST", w.url+"/early", in))
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("early: %q, %v", rest, err)
			}
			in.CloseWithError(errors.New("enough"))
		})
	}
}

// TestForwardUnreadBodies: a target that answers without reading the body spoils neither connection for the
// next request.
func TestForwardUnreadBodies(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			body, _ := io.ReadAll(r.Body)
			w.Write(body)
			return
		}
		io.WriteString(w, "unread")
	})
	for n := range 20 {
		size := 10 << (n % 18)
		path, want := "/read", strings.Repeat(string(rune('a'+n)), size)
		body := want
		if n%2 == 0 {
			path, want = "/", "unread"
		}
		res := w.do(t, newRequest(t, "POST", w.url+path, strings.NewReader(body)))
		got, err := io.ReadAll(res.Body)
		if err != nil || string(got) != want {
			t.Errorf("request %d of %d bytes: %.20q, %v", n, size, got, err)
		}
	}
}

// TestForwardUnreadBodyIsNoRequest: a target answers before the body is here, and what comes of it later is not
// taken for a request, though it looks like one.
func TestForwardUnreadBodyIsNoRequest(t *testing.T) {
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, ask := range map[string][2]string{
		"length":           {fmt.Sprintf("Content-Length: %d\r\n\r\nhalf", 4+len(inner)), inner},
		"chunks":           {"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner)},
		"within a chunk":   {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\nhalf", 4+len(inner)), inner + "\r\n0\r\n\r\n"},
		"the chunk's size": {"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n" + fmt.Sprintf("%x", len(inner)), "\r\n" + inner + "\r\n0\r\n\r\n"},
	} {
		for _, status := range []string{"200 x\r\nContent-Length: 2\r\n\r\nok", "200 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "204 x\r\n\r\n"} {
			t.Run(name+"/"+status[:3], func(t *testing.T) {
				w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
					head, err := readHead(br)
					if err != nil {
						return
					}
					if strings.Contains(head, "smuggled") {
						t.Error("the body was taken for a request")
					}
					if name != "within a chunk" { // net/http holds it until it is whole
						br.ReadString('f') // the body has begun
					}
					io.WriteString(conn, "HTTP/1.1 "+status)
					io.Copy(io.Discard, br)
				})
				conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\n"+ask[0])
				br := bufio.NewReader(conn)
				res, err := http.ReadResponse(br, nil)
				if err != nil || !res.Close {
					t.Fatalf("got %v, %v", res, err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Error(err)
				}
				io.WriteString(conn, ask[1])
				conn.(*net.TCPConn).CloseWrite()
				if rest, _ := io.ReadAll(br); len(rest) > 0 {
					t.Errorf("and then %q", rest)
				}
			})
		}
	}
}

// TestForwardAbortReachesASender: an answer that breaks off is seen by a client that has not sent its body and
// will not.
func TestForwardAbortReachesASender(t *testing.T) {
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		readHead(br)
		br.ReadString('f')
		io.WriteString(conn, "HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nhalf")
	})
	for _, framing := range []string{"Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		br := bufio.NewReader(raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\n"+framing))
		if _, err := readHead(br); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(br)
		var slow net.Error
		if string(rest) != "half" || errors.As(err, &slow) && slow.Timeout() {
			t.Errorf("got %q, %v", rest, err)
		}
		if line := w.journal.next(t); line["outcome"] != "aborted" {
			t.Errorf("logged %v", line)
		}
	}
}

// TestForwardAbortsWhileSending: the answer breaks off while the client still sends, many times at once.
func TestForwardAbortsWhileSending(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				r := newRequest(t, "POST", w.url, io.LimitReader(neverEnds{}, 2<<20))
				r.ContentLength = 2 << 20
				if res, err := w.Do(r); err == nil {
					if _, err := io.Copy(io.Discard, res.Body); err == nil {
						t.Error("half an answer came as a whole one")
					}
					res.Body.Close()
				}
			}
		})
	}
	wg.Wait()
}

// TestForwardHopByHop asks what of a request's and an answer's fields stays on its hop.
func TestForwardHopByHop(t *testing.T) {
	seen := make(chan http.Header, 1)
	var answer string
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Errorf("the target got %q: %v", head, err)
			}
			seen <- r.Header
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"+answer+"\r\n")
		}
	})
	for _, tt := range []struct {
		name string
		send string // the fields, each line ended
		gone []string
		stay map[string]string
	}{
		{"the known ones", "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authenticate: x\r\nProxy-Authorization: x\r\nTrailer: X-T\r\nUpgrade: websocket\r\nHTTP2-Settings: AA\r\nProxy: http://evil.example\r\n",
			[]string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Trailer", "Upgrade", "Http2-Settings", "Proxy"}, nil},
		{"named", "Connection: X-One, X-Two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n", []string{"Connection", "X-One", "X-Two"}, map[string]string{"X-Three": "3"}},
		{"in other case", "Connection: x-ONE\r\nX-One: 1\r\n", []string{"X-One"}, nil},
		{"empty elements", "Connection: ,, ,X-One,\r\nX-One: 1\r\n", []string{"X-One"}, nil},
		{"blanks", "Connection: \t X-One \t,\tX-Two\t\r\nX-One: 1\r\nX-Two: 1\r\n", []string{"X-One", "X-Two"}, nil},
		{"several lines", "Connection: \r\nConnection: X-One\r\nconnection: X-Two\r\nX-One: 1\r\nX-Two: 1\r\n", []string{"X-One", "X-Two"}, nil},
		{"close", "Connection: close, X-One\r\nX-One: 1\r\n", []string{"X-One", "Connection"}, nil},
		{"its several values", "Connection: X-One\r\nX-One: 1\r\nX-One: 2\r\n", []string{"X-One"}, nil},
		{"a part of a name", "Connection: X-On\r\nX-One: 1\r\n", nil, map[string]string{"X-One": "1"}},
		{"TE", "Connection: TE\r\nTE: trailers\r\n", []string{"Connection"}, map[string]string{"Te": "trailers"}},
		{"TE among others", "Connection: TE, close\r\nTE: foo\r\nTE: bar, Trailers\r\n", []string{"Connection"}, map[string]string{"Te": "trailers"}},
		{"TE without trailers", "TE: deflate;q=0.5\r\n", []string{"Te"}, nil},
		{"an upgrade that Connection does not name", "Connection: keep-alive\r\nUpgrade: echo\r\n", []string{"Upgrade"}, nil},
		{"a user agent", "User-Agent: me\r\n", nil, map[string]string{"User-Agent": "me"}},
		{"no user agent", "", []string{"User-Agent"}, nil},
		{"a user agent that Connection names", "Connection: User-Agent\r\nUser-Agent: me\r\n", []string{"User-Agent"}, nil},
		{"what the gateway writes", "Connection: X-Forwarded-For, X-Forwarded-Host, X-Trace-ID, Traceparent\r\n", nil, map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer = tt.send // the target answers with the same fields
			conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.send+"\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			h := <-seen
			for _, name := range tt.gone {
				if got, ok := h[name]; ok {
					t.Errorf("the target saw %s: %q", name, got)
				}
				if got, ok := res.Header[name]; ok && name != "User-Agent" && tt.name != "close" { // net/http hides a Connection that says close
					t.Errorf("the client saw %s: %q", name, got)
				}
			}
			for name, value := range tt.stay {
				if got := strings.Join(h[name], "|"); got != value {
					t.Errorf("the target saw %s: %q, want %q", name, got, value)
				}
			}
			for _, name := range []string{"X-Trace-Id", "Traceparent"} {
				if len(h[name]) != 1 {
					t.Errorf("the target saw %s: %q", name, h[name])
				}
			}
		})
	}
}

// TestForwardManyNamed: a Connection field with as many names as fit, beside as many fields as fit, costs no
// more than both together.
func TestForwardManyNamed(t *testing.T) {
	var got int
	p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
		got = len(r.Header)
		return answered(r, 200, http.NoBody), nil
	}), nil)
	r := httptest.NewRequest("GET", "/", nil)
	for n := range 50_000 {
		r.Header.Set(fmt.Sprint("X-", n), "1")
	}
	r.Header.Set("Connection", strings.Repeat("a,", 200_000)+"X-7")
	p.ServeHTTP(httptest.NewRecorder(), r)
	if got < 49_999 || got > 50_010 || r.Header.Get("X-7") != "1" {
		t.Errorf("%d fields went on; In has X-7 %q", got, r.Header.Get("X-7"))
	}
}

// TestForwardLeavesTheRequestAlone: what Proxy and Rewrite change is the outgoing request alone.
func TestForwardLeavesTheRequestAlone(t *testing.T) {
	link, _ := url.Parse("http://target.example/base")
	var out *http.Request
	p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
		out = r
		return nil, errors.New("enough")
	}), &gateway.ProxyOptions{StripPrefix: "/api", Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(link)
		pr.Out.Header["X-Multi"][0] = "changed"
		pr.Out.Header["X-Multi"] = append(pr.Out.Header["X-Multi"][:1], "more")
		pr.Out.Header.Set("X-New", "1")
		pr.Out.Header.Del("User-Agent")
	}})
	r := httptest.NewRequest("GET", "/api/x?a=1", nil)
	r.Header = http.Header{"X-Multi": {"a", "b"}, "User-Agent": {"me"}, "Connection": {"X-Multi-Not"}}
	before, url := r.Header.Clone(), *r.URL
	p.ServeHTTP(httptest.NewRecorder(), r)
	if !maps.EqualFunc(before, r.Header, slices.Equal) || url != *r.URL {
		t.Errorf("changed to %v %v", r.URL, r.Header)
	}
	if out.URL.String() != "http://target.example/base/x?a=1" || out.Header.Get("X-New") != "1" ||
		!slices.Equal(out.Header["X-Multi"], []string{"changed", "more"}) || len(out.Header["User-Agent"]) != 1 || out.Header.Get("User-Agent") != "" {
		t.Errorf("sent %v %v", out.URL, out.Header)
	}
	if out.Body != nil {
		t.Error("a request without a body got one")
	}

	// A request that no server made lacks what a server's has.
	for _, r := range []*http.Request{
		{Method: "GET", URL: &url, Proto: "HTTP/1.0", ProtoMajor: 1},
		{Method: "GET", URL: &url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: nil, ContentLength: 5, Header: http.Header{"X-Multi": {"1"}}},
		{Method: "GET", URL: &url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(strings.NewReader("x")), Header: http.Header{"X-Multi": {"1"}}},
	} {
		if r.Header == nil {
			r.Header = http.Header{"X-Multi": nil}
			func() {
				defer func() { recover() }() // Rewrite's own
				gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) { return answered(r, 200, http.NoBody), nil }), nil).ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: &url})
			}()
		} else {
			p.ServeHTTP(httptest.NewRecorder(), r)
			if out.Body != nil || out.ContentLength != 0 {
				t.Errorf("sent %v of %d bytes", out.Body, out.ContentLength)
			}
		}
	}
}

// TestForwardNowhere: an absolute URL says nothing about where a request goes.
func TestForwardNowhere(t *testing.T) {
	var got *url.URL
	p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
		got = r.URL
		return answered(r, 200, http.NoBody), nil
	}), nil)
	r := httptest.NewRequest("GET", "http://user:pass@evil.example/x?a=1", nil)
	p.ServeHTTP(httptest.NewRecorder(), r)
	if got.String() != "/x?a=1" {
		t.Errorf("sent to %s", got)
	}
}

func TestForwardQuery(t *testing.T) {
	w := newWay(t, http2, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Query", r.URL.RawQuery)
		w.Header().Set("X-Uri", r.RequestURI)
	})
	for _, tt := range []struct{ query, want string }{
		{"", ""}, {"a=1&b=2", "a=1&b=2"}, {"b=2&a=1&b=1", "b=2&a=1&b=1"}, {"a=%41%2f&b=+", "a=%41%2f&b=+"},
		{"a", "a"}, {"a=1&&b", "a=1&&b"}, {"a=?/:@[]!$'()*,", "a=?/:@[]!$'()*,"},
		{"a=1&a=2;b=3", "a=1"}, {"a=1&a=%zz&b=3", "a=1&b=3"}, {"a=%zz", ""}, {"a=%", ""}, {"a=%2", ""},
		{strings.Repeat("a=1&", 10_000) + "a=1", ""},
		{`a="<>\^` + "`{|}", "a=%22%3C%3E%5C%5E%60%7B%7C%7D"}, {"a=\xc3\xa4", "a=%C3%A4"}, {"a=#b", "a=%23b"},
		{"a= HTTP/1.0", "a=%20HTTP/1.0"},
	} {
		r := newRequest(t, "GET", w.url, nil)
		r.URL.RawQuery = tt.query
		res := w.do(t, r)
		if got := res.Header.Get("X-Query"); res.StatusCode != 200 || got != tt.want {
			t.Errorf("%.40q: %d, the target saw %q, want %q", tt.query, res.StatusCode, got, tt.want)
		}
	}
}

// TestForwardNoDotSegments: whatever mux stands before a Proxy, no path goes on that is another behind it.
func TestForwardNoDotSegments(t *testing.T) {
	seen := make(chan string, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RequestURI }))
	up := gateway.NewUpstream("x", gateway.MustTargets(backend.URL+"/base"), nil)
	j, observe := observed()
	for name, h := range map[string]http.Handler{
		"bare":     gateway.Proxy(up, nil),
		"prefix":   http.StripPrefix("/api", gateway.Proxy(up, nil)),
		"own":      gateway.Proxy(up, &gateway.ProxyOptions{StripPrefix: "/api"}),
		"template": gateway.Proxy(up, &gateway.ProxyOptions{Path: "/fixed"}),
	} {
		s := serve(t, observe(h))
		for _, path := range []string{
			"/api/..", "/api/../admin", "/api/%2e%2e/admin", "/api/.%2E/admin", "/api/./x", "/api/x/..%2fadmin", "/api/..%2Fadmin",
			"/api/%2e%2e%2fadmin", "/api/x%2f..%2fadmin", "/api/..;/admin", "/api/..;a=b/admin", "/api/%2e%2e;/x", `/api/..\admin`, "/api/x%5c..%5cadmin",
			"/api/x%00", "/api/x\\y",
		} {
			conn := raw(t, s, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if p := readProblem(t, res); p.Status != 400 {
				t.Errorf("%s: %s: %+v", name, path, p)
			}
			if line := j.next(t); line["outcome"] != "rejected" || line["cause"] == "" {
				t.Errorf("%s: %s: logged %v", name, path, line)
			}
		}
		for _, path := range []string{"/api/...", "/api/.x", "/api/x..", "/api/..x", "/api/x;y", "/api/%2e%2e%2e"} {
			get(t, s.URL+path)
			j.next(t)
			want := "/base" + path
			switch name {
			case "prefix", "own":
				want = "/base" + strings.TrimPrefix(path, "/api")
			case "template":
				want = "/base/fixed"
			}
			if got := <-seen; got != want {
				t.Errorf("%s: the target saw %s, want %s", name, got, want)
			}
		}
		select {
		case got := <-seen:
			t.Errorf("%s: the target saw %s", name, got)
		default:
		}
	}
}

// TestForwardPathValues: a path value makes no segment that is none of its own.
func TestForwardPathValues(t *testing.T) {
	var got string
	p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
		got = r.URL.EscapedPath()
		return answered(r, 200, http.NoBody), nil
	}), &gateway.ProxyOptions{Path: "/v/{one}/{rest...}"})
	for _, tt := range []struct{ one, rest, want string }{
		{"a", "b/c", "/v/a/b/c"}, {"a/b", "", "/v/a%2Fb/"}, {"a?b", "c#d", "/v/a%3Fb/c%23d"}, {"ä", "", "/v/%C3%A4/"},
		{"..", "", ""}, {".", "", ""}, {"a", "../b", ""}, {"a", "b/..", ""}, {"a/../b", "", ""}, {"..;x", "", ""}, {"a\\b", "", ""}, {"a\x00", "", ""},
	} {
		got = ""
		r := httptest.NewRequest("GET", "/x", nil)
		r.SetPathValue("one", tt.one)
		r.SetPathValue("rest", tt.rest)
		rec := httptest.NewRecorder()
		p.ServeHTTP(rec, r)
		if got != tt.want || (rec.Code == 400) != (tt.want == "") {
			t.Errorf("%q, %q: %d, sent %q, want %q", tt.one, tt.rest, rec.Code, got, tt.want)
		}
	}
}

// flushes counts them, below a wrapper that has but Unwrap.
type flushes struct {
	http.ResponseWriter
	n int
}

func (f *flushes) Flush() { f.n++ }

type unwrapping struct{ http.ResponseWriter }

func (u unwrapping) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// TestForwardFlush: what streams is flushed at once, and what has a length is not.
func TestForwardFlush(t *testing.T) {
	for _, tt := range []struct {
		name   string
		length int64
		ct     string
		method string
		want   bool
	}{
		{"a length", 2, "", "GET", false},
		{"no length", -1, "", "GET", true},
		{"no length of HEAD", -1, "", "HEAD", false},
		{"events", 2, "text/event-stream", "GET", true},
		{"events with parameters", 2, "text/event-stream;charset=utf-8", "GET", true},
		{"events in other case", 2, "Text/Event-Stream ; a=b", "GET", true},
		{"other text", 2, "text/event-streams", "GET", false},
		{"no type at all", 2, "text/", "GET", false},
	} {
		p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
			res := answered(r, 200, io.NopCloser(strings.NewReader("hi")))
			res.ContentLength = tt.length
			if tt.ct != "" {
				res.Header.Set("Content-Type", tt.ct)
			}
			return res, nil
		}), nil)
		f := &flushes{ResponseWriter: httptest.NewRecorder()}
		p.ServeHTTP(unwrapping{f}, httptest.NewRequest(tt.method, "/", nil))
		if (f.n > 0) != tt.want {
			t.Errorf("%s: %d flushes", tt.name, f.n)
		}
	}
	// A writer that cannot flush is no reason to fail.
	p := gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
		return answered(r, 200, io.NopCloser(strings.NewReader("hi"))), nil
	}), nil)
	rec := httptest.NewRecorder()
	p.ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Body.String() != "hi" {
		t.Errorf("got %q", rec.Body)
	}
}

// TestForwardExpectContinue: a client that waits to be asked for its body is asked when the target asks.
func TestForwardExpectContinue(t *testing.T) {
	const ask = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	for _, tt := range []struct {
		name   string
		answer string // of the target, to the header alone
		want   string // status line that the client gets
	}{
		{"refused", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 403 Forbidden\r\n"},
		{"refused without a body", "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 417 Expectation Failed\r\n"},
		{"refused and closed", "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 401 Unauthorized\r\n"},
		{"redirected", "HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 307 Temporary Redirect\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rest := make(chan string, 1)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				head, _ := readHead(br)
				if !strings.Contains(head, "\r\nExpect: 100-continue\r\n") {
					t.Errorf("the target got %q", head)
				}
				io.WriteString(conn, tt.answer)
				more, _ := io.ReadAll(br)
				rest <- string(more)
			})
			conn := raw(t, w.server, ask)
			br := bufio.NewReader(conn)
			head, err := readHead(br)
			conn.(*net.TCPConn).CloseWrite() // as a client does that sees the connection closing
			if err != nil || !strings.HasPrefix(head, tt.want) || !strings.Contains(head, "\r\nConnection: close\r\n") {
				t.Errorf("got %q, %v", head, err)
			}
			if more := <-rest; more != "" {
				t.Errorf("the target got a body that it had refused: %q", more)
			}
			if more, err := io.ReadAll(br); err != nil || strings.Contains(string(more), "HTTP") {
				t.Errorf("and then %q, %v", more, err)
			}
			if line := w.journal.next(t); line["outcome"] != "ok" {
				t.Errorf("logged %v", line)
			}
		})
	}
	t.Run("wanted", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, 5)
			io.ReadFull(br, body)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", body)
		})
		conn := raw(t, w.server, ask)
		br := bufio.NewReader(conn)
		for _, want := range []string{"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"} {
			if head, err := readHead(br); err != nil || head != want {
				t.Fatalf("got %q, %v", head, err)
			}
		}
		io.WriteString(conn, "hello")
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" || res.Close {
			t.Errorf("got %q, %v, close %v", body, err, res.Close)
		}
	})
	for name, second := range map[string]string{
		"refused, then wanted elsewhere":   "HTTP/1.1 100 Continue\r\n\r\n",
		"refused, then a target is silent": "",
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			link := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				if conns.Add(1) == 1 {
					io.WriteString(conn, "HTTP/1.1 503 Not now\r\nContent-Length: 0\r\n\r\n")
					if more, _ := io.ReadAll(br); len(more) > 0 {
						t.Errorf("the target got a body that it had refused: %q", more)
					}
					return
				}
				io.WriteString(conn, second)
				body := make([]byte, 5)
				io.ReadFull(br, body)
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n%s", body)
			})
			w := newWayTo(t, http1, gateway.NewUpstream("target", gateway.MustTargets(link), &gateway.UpstreamOptions{
				Transport: &http.Transport{ExpectContinueTimeout: 300 * time.Millisecond},
				Retry:     gateway.RetryOptions{Attempts: 2, Backoff: time.Microsecond},
			}), nil)
			conn := raw(t, w.server, strings.Replace(ask, "POST", "PUT", 1))
			br := bufio.NewReader(conn)
			if head, err := readHead(br); err != nil || head != "HTTP/1.1 100 Continue\r\n\r\n" {
				t.Fatalf("got %q, %v", head, err)
			}
			io.WriteString(conn, "hello")
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("got %v, %v", res, err)
			}
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" {
				t.Errorf("got %q, %v", body, err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		w := newWayTo(t, http1, gateway.NewUpstream("dead", gateway.MustTargets("http://127.0.0.1:1"), nil), nil)
		res, err := http.ReadResponse(bufio.NewReader(raw(t, w.server, ask)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := readProblem(t, res); p.Status != 502 || !res.Close {
			t.Errorf("got %+v, close %v", p, res.Close)
		}
	})
	t.Run("too large", func(t *testing.T) {
		w := toPlain(t, &gateway.ProxyOptions{MaxBodyBytes: 4}, func(conn net.Conn, br *bufio.Reader) { t.Error("the target was asked") })
		res, err := http.ReadResponse(bufio.NewReader(raw(t, w.server, ask)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := readProblem(t, res); p.Status != 413 || !res.Close {
			t.Errorf("got %+v, close %v", p, res.Close)
		}
	})
}

// TestForwardInformational: 1xx go on as they come and leave the final answer alone.
func TestForwardInformational(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http2, http2}, {http1, h2c}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			w := newWay(t, pair[0], pair[1], nil, func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h["Link"] = []string{"</a>", "</b>"}
				w.WriteHeader(http.StatusEarlyHints)
				h.Add("Link", "</c>")
				w.WriteHeader(http.StatusProcessing)
				h.Del("Link")
				w.WriteHeader(150)
				h.Set("X-Final", "1")
				io.WriteString(w, "hello")
			})
			var got []string
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				got = append(got, fmt.Sprint(code, h["Link"], len(h["X-Trace-Id"])))
				return nil
			}}
			r := newRequest(t, "GET", w.url, nil)
			res := w.do(t, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
			body, err := io.ReadAll(res.Body)
			if want := []string{"103 [</a> </b>] 0", "102 [</a> </b> </c>] 0", "150 [] 0"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if err != nil || string(body) != "hello" || res.Header.Get("X-Final") != "1" || len(res.Header["Link"]) > 0 || res.Header.Get("X-Trace-Id") == "" {
				t.Errorf("got %v, %q, %v", res.Header, body, err)
			}
		})
	}
	t.Run("hop-by-hop", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
		})
		br := bufio.NewReader(raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		if head, err := readHead(br); err != nil || head != "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" {
			t.Errorf("got %q, %v", head, err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			for {
				if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					return
				}
			}
		})
		res := w.do(t, newRequest(t, "GET", w.url, nil))
		if p := readProblem(t, res); p.Status != 502 {
			t.Errorf("got %+v", p)
		}
		if line := w.journal.next(t); line["outcome"] != "upstream_error" {
			t.Errorf("logged %v", line)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		// The client leaves at the first 1xx, while more of them come. Those must touch nothing any more.
		w := newWayTo(t, http1, gateway.NewUpstream("flood", gateway.MustTargets(plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			for range 20 {
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
			}
		})), nil), nil)
		ctx, cancel := context.WithCancel(context.Background())
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { cancel(); return nil }}
		r := newRequest(t, "GET", w.url, nil)
		if res, err := w.Do(r.WithContext(httptrace.WithClientTrace(ctx, trace))); err == nil {
			res.Body.Close()
		}
		w.journal.next(t)
	})
}

// TestForwardHTTP10: a client of HTTP/1.0 gets neither chunks nor 1xx, and upgrades nothing.
func TestForwardHTTP10(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			t.Error("an upgrade from HTTP/1.0 came through")
		}
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-T")
		io.WriteString(w, "one")
		w.(http.Flusher).Flush()
		io.WriteString(w, "two")
		w.Header().Set("X-T", "1")
	})
	all, err := io.ReadAll(raw(t, w.server, "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"))
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	if err != nil || body != "onetwo" || !strings.HasPrefix(head, "HTTP/1.0 200 OK\r\n") && !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") ||
		strings.Contains(head, "chunked") || strings.Contains(head, "Trailer") {
		t.Errorf("got %q, %v", all, err)
	}
	// Without a Host there is none to tell.
	conn := raw(t, w.server, "GET / HTTP/1.0\r\nHost:\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
		t.Errorf("got %v, %v", res, err)
	}
}

// TestForwardModifyResponse: what it may do, and what comes of its mistakes.
func TestForwardModifyResponse(t *testing.T) {
	body := &closable{Reader: strings.NewReader("hello")}
	for _, tt := range []struct {
		name    string
		modify  func(*http.Response) error
		status  int
		body    string
		outcome string
		panics  any
	}{
		{"status", func(res *http.Response) error { res.StatusCode++; return nil }, 201, "hello", "ok", nil},
		{"body", func(res *http.Response) error {
			res.Body = io.NopCloser(strings.NewReader("changed"))
			res.Header.Set("Content-Length", "7")
			return nil
		}, 200, "changed", "ok", nil},
		{"body without its length", func(res *http.Response) error { res.Body = io.NopCloser(strings.NewReader("changed")); return nil }, 200, "", "internal", http.ErrAbortHandler},
		{"to 204", func(res *http.Response) error { res.StatusCode = 204; res.Header.Del("Content-Length"); return nil }, 204, "", "ok", nil},
		{"an error", func(*http.Response) error { return errors.New("secret") }, 502, "", "upstream_error", nil},
		{"an error of ours", func(*http.Response) error { return &gateway.Error{Status: 418} }, 418, "", "rejected", nil},
		{"a panic", func(*http.Response) error { panic("a bug") }, 500, "", "internal", "a bug"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body.Reader, body.closed = strings.NewReader("hello"), false
			j, observe := observed()
			h := observe(gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
				res := answered(r, 200, body)
				res.Header.Set("Content-Length", "5")
				res.ContentLength = 5
				return res, nil
			}), &gateway.ProxyOptions{ModifyResponse: tt.modify}))
			panicked := make(chan any, 1)
			s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					v := recover()
					panicked <- v
					if v != nil {
						panic(http.ErrAbortHandler)
					}
				}()
				h.ServeHTTP(w, r)
			}))
			res, err := http.Get(s.URL)
			if err == nil {
				defer res.Body.Close()
				got, err := io.ReadAll(res.Body)
				if tt.panics != nil {
					if err == nil {
						t.Errorf("got %d %q; want an abort", res.StatusCode, got)
					}
				} else if res.StatusCode != tt.status || tt.body != "" && string(got) != tt.body || strings.Contains(string(got), "secret") {
					t.Errorf("got %d %q", res.StatusCode, got)
				}
			} else if tt.panics == nil {
				t.Fatal(err)
			}
			if v := <-panicked; v != tt.panics {
				t.Errorf("panicked with %v, want %v", v, tt.panics)
			}
			if !body.closed {
				t.Error("the target's body is still open")
			}
			if line := j.next(t); line["outcome"] != tt.outcome {
				t.Errorf("logged %v", line)
			}
		})
	}
}

type closable struct {
	io.Reader
	closed bool
}

func (c *closable) Close() error { c.closed = true; return nil }

// TestForwardRewrite: Out may be another request altogether; it ends when the client leaves all the same.
func TestForwardRewrite(t *testing.T) {
	gone := make(chan bool, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			w.WriteHeader(http.StatusEarlyHints)
			<-r.Context().Done()
			gone <- true
			return
		}
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL, len(r.Header["User-Agent"]))
	}))
	for name, makeOut := range map[string]func(pr *httputil.ProxyRequest) *http.Request{
		"from nothing": func(pr *httputil.ProxyRequest) *http.Request {
			r, _ := http.NewRequest("PUT", backend.URL+pr.In.URL.Path, nil)
			return r
		},
		"from In": func(pr *httputil.ProxyRequest) *http.Request {
			r, _ := http.NewRequestWithContext(pr.In.Context(), "PUT", backend.URL+pr.In.URL.Path, nil)
			return r
		},
		"from Out": func(pr *httputil.ProxyRequest) *http.Request {
			type key struct{}
			r := pr.Out.WithContext(context.WithValue(pr.Out.Context(), key{}, 1))
			r.Method = "PUT"
			r.URL, _ = url.Parse(backend.URL + pr.In.URL.Path)
			return r
		},
		"without fields": func(pr *httputil.ProxyRequest) *http.Request {
			r, _ := http.NewRequest("PUT", backend.URL+pr.In.URL.Path, nil)
			r.Header = nil
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWayTo(t, http1, http.DefaultTransport, &gateway.ProxyOptions{Rewrite: func(pr *httputil.ProxyRequest) {
				pr.Out = makeOut(pr)
				if pr.Out.Header != nil {
					pr.Out.Header.Del("User-Agent")
				}
			}})
			var hints int
			hinted := make(chan bool, 2)
			trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; hinted <- true; return nil }}
			r := newRequest(t, "GET", w.url+"/x", nil)
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
			res := w.do(t, r)
			body, _ := io.ReadAll(res.Body)
			if string(body) != "PUT /x 0" || hints != 1 {
				t.Errorf("got %q and %d hints", body, hints)
			}
			<-hinted
			ctx, cancel := context.WithCancel(r.Context())
			context.AfterFunc(ctx, func() {})
			go func() { <-hinted; cancel() }()
			r.URL.Path = "/hang"
			if res, err := w.Do(r.WithContext(ctx)); err == nil {
				res.Body.Close()
			}
			select {
			case <-gone:
			case <-time.After(10 * time.Second):
				t.Fatal("the target was not told that the client left")
			}
		})
	}
	t.Run("a panic", func(t *testing.T) {
		j, observe := observed()
		h := observe(gateway.Proxy(http.DefaultTransport, &gateway.ProxyOptions{Rewrite: func(*httputil.ProxyRequest) { panic("a bug") }}))
		func() {
			defer func() {
				if v := recover(); v != "a bug" {
					t.Errorf("recovered %v", v)
				}
			}()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", strings.NewReader("x")))
		}()
		if line := j.next(t); line["outcome"] != "internal" {
			t.Errorf("logged %v", line)
		}
	})
}

// TestForwardNotFromTarget: what an HTTP/2 target, or a RoundTripper of one's own, can say that HTTP/1.1 cannot.
func TestForwardNotFromTarget(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*http.Response)
	}{
		{"two lengths", func(res *http.Response) { res.Header["Content-Length"] = []string{"1", "2"} }},
		{"two equal lengths", func(res *http.Response) { res.Header["Content-Length"] = []string{"1", "1"} }},
		{"a list of lengths", func(res *http.Response) { res.Header["Content-Length"] = []string{"1, 1"} }},
		{"a negative length", func(res *http.Response) { res.Header["Content-Length"] = []string{"-1"} }},
		{"an empty length", func(res *http.Response) { res.Header["Content-Length"] = []string{""} }},
		{"status 0", func(res *http.Response) { res.StatusCode = 0 }},
		{"status 99", func(res *http.Response) { res.StatusCode = 99 }},
		{"status 100", func(res *http.Response) { res.StatusCode = 100 }},
		{"status 1000", func(res *http.Response) { res.StatusCode = 1000 }},
		{"status -200", func(res *http.Response) { res.StatusCode = -200 }},
		{"101 unasked", func(res *http.Response) { res.StatusCode = 101 }},
		{"101 unasked, to something", func(res *http.Response) {
			res.StatusCode = 101
			res.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}
		}},
	} {
		body := &closable{Reader: strings.NewReader("x")}
		rec := httptest.NewRecorder()
		gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
			res := answered(r, 200, body)
			tt.change(res)
			return res, nil
		}), nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Code != 502 || !body.closed {
			t.Errorf("%s: %d, closed %v", tt.name, rec.Code, body.closed)
		}
	}
}

// TestForwardUpgradeOffers: which protocols a target is asked for, and which answers of its are believed.
func TestForwardUpgradeOffers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ask    string // fields, and what follows the head
		want   string // Upgrade field that the target sees
		answer string // of the target
		status int    // that the client sees
	}{
		{"one", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 101},
		{"in other case", "Connection: foo, uPGRADE\r\nUpgrade: WebSocket\r\n\r\n", "WebSocket", "101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 101},
		{"several", "Connection: Upgrade\r\nUpgrade: one/1 ,\ttwo\r\n\r\n", "one/1, two", "101 x\r\nConnection: upgrade\r\nUpgrade: two\r\n\r\n", 101},
		{"several lines", "Connection: close\r\nConnection: Upgrade\r\nUpgrade: one\r\nUpgrade: two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: one\r\n\r\n", 101},
		{"another", "Connection: Upgrade\r\nUpgrade: one, two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: three\r\n\r\n", 502},
		{"both at once", "Connection: Upgrade\r\nUpgrade: one, two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: one, two\r\n\r\n", 502},
		{"to HTTP all the same", "Connection: Upgrade\r\nUpgrade: one, h2c\r\n\r\n", "one", "101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 502},
		{"to nothing", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\n\r\n", 502},
		{"to an empty name", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade:\r\n\r\n", 502},
		{"to no ASCII", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade: ech\xc3\xb6\r\n\r\n", 502},
		{"unasked", "\r\n", "", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 502},
		{"unasked and to nothing", "\r\n", "", "101 x\r\n\r\n", 502},
		{"not named in Connection", "Upgrade: echo\r\n\r\n", "", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 502},
		{"refused", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "426 x\r\nContent-Length: 0\r\n\r\n", 426},
		{"ignored", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2 by another name", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2 in other case", "Connection: Upgrade\r\nUpgrade: H2C\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"with a body", "Connection: Upgrade\r\nUpgrade: echo\r\nContent-Length: 2\r\n\r\nhi", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"with a chunked body", "Connection: Upgrade\r\nUpgrade: echo\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"no ASCII", "Connection: Upgrade\r\nUpgrade: ech\xc3\xb6\r\n\r\n", "-", "", 400},
		{"no ASCII, second", "Connection: Upgrade\r\nUpgrade: echo\r\nUpgrade: \xff\r\n\r\n", "-", "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen, closed := make(chan string, 1), make(chan bool, 1)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				head, _ := readHead(br)
				r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
				if err != nil {
					t.Errorf("the target got %q: %v", head, err)
					return
				}
				if got := strings.Join(r.Header["Connection"], "|"); got != "" && got != "Upgrade" {
					t.Errorf("the target saw Connection: %q", got)
				}
				seen <- strings.Join(r.Header["Upgrade"], "|")
				io.WriteString(conn, "HTTP/1.1 "+tt.answer)
				io.Copy(io.Discard, br)
				closed <- true
			})
			conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.ask)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode != tt.status {
				t.Fatalf("got %v, %v", res, err)
			}
			if tt.want != "-" {
				if got := <-seen; got != tt.want {
					t.Errorf("the target saw Upgrade: %q, want %q", got, tt.want)
				}
			}
			if tt.status == 502 {
				<-closed // while the client's connection is still there
				if p := readProblem(t, res); p.Status != 502 {
					t.Errorf("got %+v", p)
				}
			}
			conn.Close()
			if tt.status == 101 {
				<-closed
			}
			w.journal.next(t)
		})
	}
}

// TestForwardUpgraded: what becomes of two connections that are one.
func TestForwardUpgraded(t *testing.T) {
	const ask = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
	const agree = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: Echo\r\nX-Stay: 1\r\n\r\n"
	type end struct {
		*net.TCPConn
		br *bufio.Reader
	}
	says := func(t *testing.T, e end, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(e.br, got); err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	ends := func(t *testing.T, e end) {
		t.Helper()
		if rest, err := io.ReadAll(e.br); err != nil || len(rest) > 0 {
			t.Errorf("read %q, %v; want the end", rest, err)
		}
	}
	for name, play := range map[string]func(t *testing.T, client, target end){
		"the target closes its half": func(t *testing.T, client, target end) {
			io.WriteString(target, "bye")
			target.CloseWrite()
			says(t, client, "bye")
			ends(t, client)
			io.WriteString(client, "still here")
			says(t, target, "still here")
			client.Close()
			ends(t, target)
		},
		"the client closes its half": func(t *testing.T, client, target end) {
			io.WriteString(client, "bye")
			client.CloseWrite()
			says(t, target, "bye")
			ends(t, target)
			io.WriteString(target, "still here")
			says(t, client, "still here")
			target.Close()
			ends(t, client)
		},
		"the client leaves": func(t *testing.T, client, target end) {
			client.SetLinger(0)
			client.Close()
			if _, err := io.Copy(io.Discard, target.br); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		},
		"the target leaves": func(t *testing.T, client, target end) {
			target.SetLinger(0)
			target.Close()
			if _, err := io.Copy(io.Discard, client.br); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		},
		"much both ways": func(t *testing.T, client, target end) {
			const size = 1 << 20
			var wg sync.WaitGroup
			for _, pair := range [][2]end{{client, target}, {target, client}} {
				wg.Go(func() {
					io.CopyN(pair[0], neverEnds{}, size)
					pair[0].CloseWrite()
				})
				wg.Go(func() {
					if n, err := io.Copy(io.Discard, pair[1].br); n != size || err != nil {
						t.Errorf("%d bytes came, %v", n, err)
					}
				})
			}
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			targets := make(chan end)
			done := make(chan bool)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				io.WriteString(conn, agree+"at once")
				targets <- end{conn.(*net.TCPConn), br}
				<-done
			})
			conn := raw(t, w.server, ask+"early")
			client := end{conn.(*net.TCPConn), bufio.NewReader(conn)}
			head, err := readHead(client.br)
			want := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Echo\r\nX-Stay: 1\r\nX-Trace-Id: "
			if err != nil || !strings.HasPrefix(head, want) {
				t.Fatalf("got %q, %v", head, err)
			}
			target := <-targets
			says(t, client, "at once")
			says(t, target, "early")
			play(t, client, target)
			close(done)
			conn.Close()
			if line := w.journal.next(t); line["status"] != "101" || line["outcome"] != "ok" {
				t.Errorf("logged %v", line)
			}
		})
	}

	t.Run("the context ends", func(t *testing.T) {
		link := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, agree)
			io.Copy(io.Discard, br)
		})
		ctx, cancel := context.WithCancel(context.Background())
		p := gateway.Proxy(gateway.NewUpstream("target", gateway.MustTargets(link), nil), nil)
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.ServeHTTP(w, r.WithContext(ctx))
		}))
		br := bufio.NewReader(raw(t, s, ask))
		if head, err := readHead(br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
			t.Fatalf("got %q, %v", head, err)
		}
		cancel()
		if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
			t.Errorf("got %q, %v", rest, err)
		}
	})
	t.Run("over TLS", func(t *testing.T) {
		// The target would speak HTTP/2, in which there is no upgrade.
		w := newWay(t, http1, http2, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(101)
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("%s: %v", r.Proto, err)
				return
			}
			defer conn.Close()
			io.Copy(conn, buf)
		})
		conn := raw(t, w.server, strings.Replace(ask, "echo", "websocket", 1)+"hello")
		client := end{conn.(*net.TCPConn), bufio.NewReader(conn)}
		if head, err := readHead(client.br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
			t.Fatalf("got %q, %v", head, err)
		}
		says(t, client, "hello")
		client.CloseWrite()
		ends(t, client)
	})
	t.Run("an upgrade over HTTP/2 is none", func(t *testing.T) {
		w := newWay(t, http2, http1, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Seen", r.Header.Get("Upgrade"))
		})
		r := newRequest(t, "GET", w.url, nil)
		if res := w.do(t, r); res.StatusCode != 200 || res.Header.Get("X-Seen") != "" {
			t.Errorf("got %d %v", res.StatusCode, res.Header)
		}
	})
}

// wire is the body of a 101, without a way to close half of it.
type wire struct {
	io.ReadWriter
	closed chan bool
}

func (w wire) Close() error {
	select {
	case w.closed <- true:
	default:
	}
	return nil
}

// TestForwardUpgradeFails: whatever goes wrong after the target agreed, its connection is closed.
func TestForwardUpgradeFails(t *testing.T) {
	ask := func(modify func(*http.Response) error, body io.ReadCloser, w http.ResponseWriter) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}
		gateway.Proxy(tripper(func(r *http.Request) (*http.Response, error) {
			res := answered(r, 101, body)
			res.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}
			return res, nil
		}), &gateway.ProxyOptions{ModifyResponse: modify}).ServeHTTP(w, r)
	}
	pipe := func() wire { return wire{struct{ io.ReadWriter }{}, make(chan bool, 1)} }
	for name, tt := range map[string]struct {
		modify func(*http.Response) error
		status int
	}{
		"the client's connection cannot be had": {nil, 500},
		"ModifyResponse says no":                {func(*http.Response) error { return errors.New("no") }, 502},
		"ModifyResponse takes the connection away": {func(res *http.Response) error {
			res.Body = http.NoBody
			return nil
		}, 502},
	} {
		body, rec := pipe(), httptest.NewRecorder()
		ask(tt.modify, body, rec)
		if len(body.closed) != 1 || rec.Code != tt.status {
			t.Errorf("%s: closed %d times, %d", name, len(body.closed), rec.Code)
		}
	}
	t.Run("a panic", func(t *testing.T) {
		body := pipe()
		defer func() {
			if v := recover(); v != "a bug" || len(body.closed) != 1 {
				t.Errorf("recovered %v, closed %d times", v, len(body.closed))
			}
		}()
		ask(func(*http.Response) error { panic("a bug") }, body, httptest.NewRecorder())
	})
	t.Run("no connection", func(t *testing.T) {
		body, rec := &closable{}, httptest.NewRecorder()
		ask(nil, body, rec)
		if !body.closed || rec.Code != 502 {
			t.Errorf("closed %v, %d", body.closed, rec.Code)
		}
	})
	t.Run("reading fails", func(t *testing.T) {
		// After the connection is in other hands nothing is written by way of the ResponseWriter.
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		defer far.Close()
		w := &hijackable{ResponseRecorder: httptest.NewRecorder(), conn: near}
		body := wire{struct {
			io.Reader
			io.Writer
		}{io.MultiReader(), io.Discard}, make(chan bool, 1)}
		arrived := pipe()
		ask(func(res *http.Response) error {
			res.Body = body
			return nil
		}, arrived, w)
		if len(body.closed) != 1 || len(arrived.closed) != 1 || w.wrote {
			t.Errorf("closed %d and %d times, wrote %v", len(body.closed), len(arrived.closed), w.wrote)
		}
	})
}

// hijackable notes what is written past the connection that it gave away.
type hijackable struct {
	*httptest.ResponseRecorder
	conn  net.Conn
	wrote bool
}

func (h *hijackable) WriteHeader(code int) { h.wrote = true }
func (h *hijackable) Write(p []byte) (int, error) {
	h.wrote = true
	return len(p), nil
}
func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// TestForwardLengthAndTrailers: HTTP/2 can announce both, HTTP/1.1 cannot; the trailers are what counts.
func TestForwardLengthAndTrailers(t *testing.T) {
	w := newWay(t, http1, h2c, nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Length", "5")
		w.Header().Set("Trailer", "X-Sum, Authorization, Set-Cookie")
		w.Write(body)
		for _, name := range []string{"X-Sum", "Authorization", "Set-Cookie"} {
			w.Header().Set(name, "1"+r.Trailer.Get(name))
		}
	})
	r := newRequest(t, "POST", w.url, io.MultiReader(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-Sum": {"7"}, "Authorization": {"Basic x"}, "X-Forwarded-For": {"6.6.6.6"}, "Cookie": {"a=b"}}
	res := w.do(t, r)
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" || res.ContentLength != -1 {
		t.Errorf("got %q of %d, %v", body, res.ContentLength, err)
	}
	if len(res.Trailer) != 1 || res.Trailer.Get("X-Sum") != "17" {
		t.Errorf("trailers %v", res.Trailer)
	}

	// And the other way.
	w = newWay(t, h2c, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprint(w, string(body), err, r.Trailer)
	})
	r = newRequest(t, "POST", w.url, strings.NewReader("hello"))
	r.Trailer = http.Header{"X-Sum": {"7"}}
	res = w.do(t, r)
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello<nil> map[X-Sum:[7]]" {
		t.Errorf("got %q, %v", body, err)
	}
}

// TestForwardTrailersOfTheClient, raw: announced or not, they go on; none that stands for something else does.
func TestForwardTrailersOfTheClient(t *testing.T) {
	got := make(chan string, 1)
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		head, _ := readHead(br)
		var rest strings.Builder
		for {
			line, err := br.ReadString('\n')
			rest.WriteString(line)
			if err != nil || strings.HasSuffix(rest.String(), "\r\n\r\n") {
				break
			}
		}
		got <- head[strings.LastIndex(head, "\r\nTrailer:")+1:] + rest.String()
		io.WriteString(conn, "HTTP/1.1 204 x\r\n\r\n")
	})
	conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Told, X-User-Id, x_user_id\r\n\r\n"+
		"2\r\nhi\r\n0\r\nX-Told: 1\r\nX-Untold: 2\r\nX-User-Id: mallory\r\nx_user_id: mallory\r\nX.User.ID: mallory\r\nX-Forwarded-For: 6.6.6.6\r\n"+
		"Authorization: x\r\nCookie: a=b\r\nHost: evil\r\nContent-Length: 100\r\nConnection: close\r\nIf-Match: x\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 204 {
		t.Fatalf("got %v, %v", res, err)
	}
	if g := <-got; !strings.Contains(g, "\nTrailer: X-Told\r\n") || !strings.HasSuffix(g, "2\r\nhi\r\n0\r\nX-Told: 1\r\nX-Untold: 2\r\n\r\n") {
		t.Errorf("the target got %q", g)
	}
}

// TestForwardModifyResponseSaysNoEarly has the client wait for the answer in the middle of its body.
func TestForwardModifyResponseSaysNoEarly(t *testing.T) {
	opts := &gateway.ProxyOptions{ModifyResponse: func(*http.Response) error { return errors.New("no") }}
	w := toPlain(t, opts, func(conn net.Conn, br *bufio.Reader) {
		readHead(br)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, br)
	})
	conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nhi")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := readProblem(t, res); p.Status != 502 || !res.Close {
		t.Errorf("got %+v, close %v", p, res.Close)
	}
}
