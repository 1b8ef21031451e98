package h1

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// wireServer answers each request with okAnswer and sends the request's bytes to got.
func wireServer(t testing.TB) (addr string, got chan string) {
	got = make(chan string, 100)
	addr = serve(t, func(_ int, c net.Conn) {
		var raw bytes.Buffer
		br := bufio.NewReaderSize(io.TeeReader(c, &raw), 1<<20)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				got <- "broken: " + raw.String()
				return
			}
			got <- raw.String()
			raw.Reset()
			if _, err := io.WriteString(c, okAnswer); err != nil {
				return
			}
		}
	})
	return addr, got
}

// sorted sorts the fields of a request after Host, which are sent in no particular order.
func sorted(raw string) string {
	head, body, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	slices.Sort(lines[2:])
	return strings.Join(lines, "\n") + "\n\n" + strings.ReplaceAll(body, "\r", "")
}

// hiddenReader hides the type of a reader. It returns io.EOF only after the last bytes, not with them.
type hiddenReader struct{ r io.Reader }

func (h hiddenReader) Read(p []byte) (int, error) { return h.r.Read(p) }

func TestWhatIsSent(t *testing.T) {
	addr, got := wireServer(t)
	for _, tt := range []struct {
		name   string
		method string
		url    url.URL
		host   string
		header http.Header
		body   io.Reader
		length int64
		close  bool
		trail  http.Header
		want   string
	}{
		{name: "plain", method: "GET", url: url.URL{Path: "/a/b"}, want: "GET /a/b HTTP/1.1\nHost: ADDR\n\n"},
		{name: "no method, no path", want: "GET / HTTP/1.1\nHost: ADDR\n\n"},
		{name: "query", url: url.URL{Path: "/a", RawQuery: "b=c%20d&e"}, want: "GET /a?b=c%20d&e HTTP/1.1\nHost: ADDR\n\n"},
		{name: "empty query", url: url.URL{Path: "/a", ForceQuery: true}, want: "GET /a? HTTP/1.1\nHost: ADDR\n\n"},
		{name: "escaped", url: url.URL{Path: "/a/b c", RawPath: "/a%2Fb"}, want: "GET /a/b%20c HTTP/1.1\nHost: ADDR\n\n"},
		{name: "escaped slash", url: url.URL{Path: "/a/b", RawPath: "/a%2Fb"}, want: "GET /a%2Fb HTTP/1.1\nHost: ADDR\n\n"},
		{name: "opaque", url: url.URL{Opaque: "/raw//%7a"}, want: "GET /raw//%7a HTTP/1.1\nHost: ADDR\n\n"},
		{name: "absolute", url: url.URL{Opaque: "//other/x"}, want: "GET http://other/x HTTP/1.1\nHost: ADDR\n\n"},
		{name: "asterisk", method: "OPTIONS", url: url.URL{Path: "*"}, want: "OPTIONS * HTTP/1.1\nHost: ADDR\n\n"},
		{name: "host", host: "shop.example", want: "GET / HTTP/1.1\nHost: shop.example\n\n"},
		{name: "zone", host: "[fe80::1%25en0]:80", want: "GET / HTTP/1.1\nHost: [fe80::1]:80\n\n"},
		{name: "fields", header: http.Header{"A": {"1", " 2 "}, "x-lower": {""}, "User-Agent": {"ua"}, "Host": {"no"}},
			want: "GET / HTTP/1.1\nHost: ADDR\nA: 1\nA: 2\nUser-Agent: ua\nx-lower: \n\n"},
		{name: "no user agent", header: http.Header{"User-Agent": {""}}, want: "GET / HTTP/1.1\nHost: ADDR\n\n"},
		{name: "fields that frame", header: http.Header{"content-length": {"7"}, "TRANSFER-ENCODING": {"chunked"}, "Trailer": {"x"}, "host": {"y"}},
			want: "GET / HTTP/1.1\nHost: ADDR\n\n"},
		{name: "close", close: true, want: "GET / HTTP/1.1\nHost: ADDR\nConnection: close\n\n"},
		{name: "close twice", close: true, header: http.Header{"Connection": {"close"}}, want: "GET / HTTP/1.1\nHost: ADDR\nConnection: close\n\n"},
		{name: "post of nothing", method: "POST", want: "POST / HTTP/1.1\nHost: ADDR\nContent-Length: 0\n\n"},
		{name: "delete of nothing", method: "DELETE", want: "DELETE / HTTP/1.1\nHost: ADDR\n\n"},
		{name: "no body", method: "POST", body: http.NoBody, want: "POST / HTTP/1.1\nHost: ADDR\nContent-Length: 0\n\n"},
		{name: "in memory", method: "POST", body: strings.NewReader("hello"), length: 5, want: "POST / HTTP/1.1\nHost: ADDR\nContent-Length: 5\n\nhello"},
		{name: "known length", method: "PUT", body: hiddenReader{strings.NewReader("hello")}, length: 5, want: "PUT / HTTP/1.1\nHost: ADDR\nContent-Length: 5\n\nhello"},
		{name: "unknown length", method: "POST", body: hiddenReader{strings.NewReader("hello")}, length: -1,
			want: "POST / HTTP/1.1\nHost: ADDR\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n"},
		{name: "length 0 with a body", method: "POST", body: hiddenReader{strings.NewReader("hello, hello, hello")},
			want: "POST / HTTP/1.1\nHost: ADDR\nTransfer-Encoding: chunked\n\n13\nhello, hello, hello\n0\n\n"},
		{name: "trailer", method: "POST", body: hiddenReader{strings.NewReader("x")}, length: -1, trail: http.Header{"B": {"2"}, "A": {"1"}},
			want: "POST / HTTP/1.1\nHost: ADDR\nTrailer: A, B\nTransfer-Encoding: chunked\n\n1\nx\n0\nA: 1\nB: 2\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.url.Scheme, tt.url.Host = "http", addr
			req := &http.Request{Method: tt.method, URL: &tt.url, Host: tt.host, Header: tt.header, ContentLength: tt.length, Close: tt.close, Trailer: tt.trail}
			if tt.body != nil {
				req.Body = io.NopCloser(tt.body)
			}
			if tt.body == http.NoBody {
				req.Body = http.NoBody
			}
			if tt.header == nil {
				req.Header = http.Header{}
			}
			ask(t, newTransport(t, nil), req.WithContext(t.Context()))
			want := strings.ReplaceAll(tt.want, "ADDR", addr)
			if raw := sorted(<-got); raw != want {
				t.Errorf("got  %q\nwant %q", raw, want)
			}
		})
	}
}

// FuzzRequest checks that a server parses each request that was sent as exactly one request, equal to the
// original. Refused requests are skipped.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/a", "b=c", "shop.example", "X-A", "b", "")
	f.Add("POST", "//a b", "%zz", "[::1]:80", "content-length", "7", "hello")
	f.Add("M-SEARCH", "*", "a\r\nX: y", "a:b", "Transfer-Encoding", "chunked", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n")
	f.Add("PUT", "", "", "", "Connection", "close\r\n", "x")
	f.Fuzz(func(t *testing.T, method, path, query, hostHeader, name, value, body string) {
		sent := &keptConn{}
		tr := New(&Options{IdleTimeout: -1, Dial: func(context.Context, string, string) (net.Conn, error) { return sent, nil }})
		req := &http.Request{Method: method, Host: hostHeader, URL: &url.URL{Scheme: "http", Host: "a.example", Path: path, RawQuery: query},
			Header: http.Header{name: {value}}, ContentLength: int64(len(body))}
		if body != "" {
			req.Body = io.NopCloser(strings.NewReader(body))
		}
		if _, err := tr.RoundTrip(req); errors.Is(err, ErrInvalidRequest) {
			if sent.b.Len() > 0 {
				t.Fatalf("sent %q", sent.b.String())
			}
			return
		}
		raw := sent.b.String()
		if strings.Contains(path, "%") || !strings.HasPrefix(path, "/") || strings.ContainsAny(query, "#") {
			return // net/http's parser and url.URL differ on what is a URL
		}
		br := bufio.NewReader(strings.NewReader(raw))
		got, err := http.ReadRequest(br)
		if err != nil {
			if strings.Contains(err.Error(), "invalid URL") || strings.Contains(err.Error(), "parse ") || strings.Contains(err.Error(), "malformed Host") {
				return
			}
			t.Fatalf("%v: %q", err, raw)
		}
		b, err := io.ReadAll(got.Body)
		if err != nil || string(b) != body || got.Method != cmp.Or(method, "GET") || got.URL.RawQuery != query {
			t.Fatalf("%v, read %q from %q", err, b, raw)
		}
		if rest, _ := io.ReadAll(br); len(rest) > 0 {
			t.Fatalf("%q is left of %q", rest, raw)
		}
		for field := range got.Header {
			if !strings.EqualFold(field, name) && field != "Content-Length" {
				t.Fatalf("field %q in %q", field, raw)
			}
		}
	})
}

// keptConn records what is written. Its Read returns io.EOF.
type keptConn struct {
	memoryConn
	b bytes.Buffer
}

func (c *keptConn) Write(p []byte) (int, error) { return c.b.Write(p) }

// closeCounter counts the calls of Close.
type closeCounter struct {
	io.Reader
	closed atomic.Int32
}

func (c *closeCounter) Close() error { c.closed.Add(1); return nil }

func TestInvalidRequestsAreNotSent(t *testing.T) {
	dialed := errors.New("dialed")
	for _, tt := range []struct {
		name string
		edit func(*http.Request)
	}{
		{"no URL", func(r *http.Request) { r.URL = nil }},
		{"no header", func(r *http.Request) { r.Header = nil }},
		{"scheme", func(r *http.Request) { r.URL.Scheme = "ftp" }},
		{"no host", func(r *http.Request) { r.URL.Host = "" }},
		{"blank in the host", func(r *http.Request) { r.URL.Host = "a b" }},
		{"letters in the port", func(r *http.Request) { r.URL.Host = "a:http" }},
		{"line in Host", func(r *http.Request) { r.Host = "a\r\nX: y" }},
		{"slash in Host", func(r *http.Request) { r.Host = "a/b" }},
		{"beyond ASCII in Host", func(r *http.Request) { r.Host = "b\xc3\xbccher.example" }},
		{"method", func(r *http.Request) { r.Method = "GET /x HTTP/1.1\r\nA:" }},
		{"CONNECT", func(r *http.Request) { r.Method = "CONNECT" }},
		{"line in the query", func(r *http.Request) { r.URL.RawQuery = "a\r\nX: y" }},
		{"blank in the query", func(r *http.Request) { r.URL.RawQuery = "a HTTP/1.1" }},
		{"NUL in the opaque URL", func(r *http.Request) { r.URL.Opaque = "/a\x00" }},
		{"field name", func(r *http.Request) { r.Header["A b"] = []string{"1"} }},
		{"no field name", func(r *http.Request) { r.Header[""] = []string{"1"} }},
		{"line in the field name", func(r *http.Request) { r.Header["A: b\r\nC"] = []string{"1"} }},
		{"field name without values", func(r *http.Request) { r.Header["A b"] = nil }},
		{"line in the value", func(r *http.Request) { r.Header["A"] = []string{"1\r\nX: y"} }},
		{"LF in the value", func(r *http.Request) { r.Header["A"] = []string{"1\nX: y"} }},
		{"NUL in the value", func(r *http.Request) { r.Header["A"] = []string{"\x00"} }},
		{"value of a field that is left out", func(r *http.Request) { r.Header["Content-Length"] = []string{"\r\n"} }},
		{"trailer name", func(r *http.Request) { r.ContentLength = -1; r.Trailer = http.Header{"A b": nil} }},
		{"trailer that frames", func(r *http.Request) { r.ContentLength = -1; r.Trailer = http.Header{"content-length": nil} }},
		{"length without a body", func(r *http.Request) { r.Body = nil; r.ContentLength = 3 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := newTransport(t, &Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) { return nil, dialed }})
			body := &closeCounter{Reader: strings.NewReader("hello")}
			req := newRequest(t, "POST", "http://a.example/", body)
			req.Body, req.ContentLength = body, 5
			tt.edit(req)
			hadBody := req.Body != nil
			_, err := tr.RoundTrip(req)
			if !errors.Is(err, ErrInvalidRequest) || errors.Is(err, dialed) {
				t.Error(err)
			}
			if hadBody && body.closed.Load() != 1 {
				t.Errorf("the body was closed %d times", body.closed.Load())
			}
		})
	}
}

// A failed dial closes the body once.
func TestFailedDialClosesBody(t *testing.T) {
	dialed := errors.New("dialed")
	tr := newTransport(t, &Options{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dialed }})
	for _, length := range []int64{5, -1} {
		body := &closeCounter{Reader: strings.NewReader("hello")}
		req := newRequest(t, "POST", "http://a.example/", body)
		req.ContentLength = length
		if _, err := tr.RoundTrip(req); !errors.Is(err, dialed) || body.closed.Load() != 1 {
			t.Error(err, body.closed.Load())
		}
	}
	if len(tr.hosts) != 0 {
		t.Error("hosts are left", len(tr.hosts))
	}
}

// A body that fails, or is longer or shorter than its Content-Length, is an error. The target never
// receives a complete request.
func TestWrongBodies(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name   string
		length int64
		body   string
		end    error
	}{
		{"shorter", 10, "hello", io.EOF},
		{"longer", 3, "hello", io.EOF},
		{"empty", 3, "", io.EOF},
		{"broken", 10, "hello", broken},
		{"broken chunks", -1, "hello", broken},
		{"broken at once", -1, "", broken},
	} {
		for _, inline := range []int{0, 100} {
			t.Run(tt.name, func(t *testing.T) {
				addr, got := wireServer(t)
				tr := newTransport(t, &Options{InlineBody: inline})
				body := &closeCounter{Reader: io.MultiReader(strings.NewReader(tt.body), errorReader{tt.end})}
				req := newRequest(t, "POST", "http://"+addr+"/", body)
				req.ContentLength = tt.length
				_, err := tr.RoundTrip(req)
				if !errors.Is(err, ErrRequestBody) || tt.end != io.EOF && !errors.Is(err, tt.end) {
					t.Error(err)
				}
				tr.CloseIdleConnections()
				if inline > 0 && tt.length > 0 {
					if len(tr.hosts) != 0 {
						t.Error("a connection was opened")
					}
				} else if raw := <-got; !strings.HasPrefix(raw, "broken: ") && tt.name != "longer" {
					t.Errorf("the target got %q", raw)
				}
			})
		}
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// The values of trailers may be set while the body is read. They are validated afterwards.
func TestTrailerIsFilledWhileBodyIsRead(t *testing.T) {
	addr, got := wireServer(t)
	tr := newTransport(t, nil)
	for _, tt := range []struct {
		value string
		err   error
	}{{"7", nil}, {"7\r\nX: y", ErrInvalidRequest}} {
		req := newRequest(t, "POST", "http://"+addr+"/", nil)
		req.ContentLength, req.Trailer = -1, http.Header{"X-Sum": nil}
		req.Body = io.NopCloser(io.MultiReader(strings.NewReader("hello"), readerFunc(func([]byte) (int, error) {
			req.Trailer.Set("X-Sum", tt.value)
			return 0, io.EOF
		})))
		res, err := tr.RoundTrip(req)
		if !errors.Is(err, tt.err) {
			t.Fatal(err)
		}
		raw := <-got
		if err == nil {
			io.Copy(io.Discard, res.Body)
			if !strings.HasSuffix(raw, "5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n") {
				t.Errorf("%q", raw)
			}
		} else if !strings.HasPrefix(raw, "broken: ") {
			t.Errorf("%q", raw)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// writeCounter counts the writes of a connection.
type writeCounter struct {
	net.Conn
	writes *atomic.Int32
}

func (c writeCounter) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

// A small body of known length is sent in the same write as the header.
func TestSmallBodyIsOneWrite(t *testing.T) {
	addr, got := wireServer(t)
	var writes atomic.Int32
	tr := newTransport(t, &Options{InlineBody: 4096, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		return writeCounter{c, &writes}, err
	}})
	for _, body := range []io.Reader{strings.NewReader("hello"), hiddenReader{strings.NewReader("hello")}} {
		writes.Store(0)
		req := newRequest(t, "POST", "http://"+addr+"/", body)
		req.ContentLength = 5
		ask(t, tr, req)
		if raw := <-got; writes.Load() != 1 || !strings.HasSuffix(raw, "\r\n\r\nhello") {
			t.Errorf("%d writes, %q", writes.Load(), raw)
		}
	}
}

// Each Read of the body is sent at once, as a chunk.
func TestChunksAreNotHeldBack(t *testing.T) {
	got := make(chan string)
	addr := serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		buf := make([]byte, 100)
		for {
			n, err := req.Body.Read(buf)
			if n > 0 {
				got <- string(buf[:n])
			}
			if err != nil {
				break
			}
		}
		io.WriteString(c, okAnswer)
	})
	r, w := io.Pipe()
	go func() {
		defer w.Close()
		for _, s := range []string{"a", "bc", "def"} {
			io.WriteString(w, s)
			if g := <-got; g != s {
				t.Errorf("got %q, want %q", g, s)
			}
		}
	}()
	ask(t, newTransport(t, nil), newRequest(t, "POST", "http://"+addr+"/", r))
}

// The request is not modified, and Response.Request is the same request.
func TestRequestIsLeftAlone(t *testing.T) {
	addr, got := wireServer(t)
	req := newRequest(t, "POST", "http://"+addr+"/", strings.NewReader("hello"))
	req.Header.Set("A", "b")
	before := *req
	res, _ := ask(t, newTransport(t, nil), req)
	<-got
	if res.Request != req || req.Method != before.Method || req.URL != before.URL || req.Body != before.Body || len(req.Header) != 1 {
		t.Error("the request was changed")
	}
}
