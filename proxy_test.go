package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// journal is a slog.Handler that hands each line on as a map.
type journal chan map[string]string

func (j journal) Enabled(context.Context, slog.Level) bool { return true }
func (j journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j journal) WithGroup(string) slog.Handler            { return j }
func (j journal) Handle(_ context.Context, r slog.Record) error {
	line := map[string]string{"message": r.Message, "level": r.Level.String()}
	r.Attrs(func(a slog.Attr) bool { line[a.Key] = a.Value.String(); return true })
	j <- line
	return nil
}

// next returns the line of the next request that ends.
func (j journal) next(t *testing.T) map[string]string {
	t.Helper()
	select {
	case line := <-j:
		return line
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was logged")
		return nil
	}
}

func observed() (journal, gateway.Middleware) {
	j := make(journal, 100)
	return j, gateway.Observe(&gateway.ObserveOptions{Logger: slog.New(j)})
}

// front is a gateway of one Proxy, observed, before a backend.
type front struct {
	*httptest.Server
	journal journal
	backend *httptest.Server
}

func newFront(t *testing.T, opts *gateway.ProxyOptions, backend http.HandlerFunc, mw ...gateway.Middleware) *front {
	t.Helper()
	f := &front{backend: serve(t, backend)}
	f.start(t, gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(f.backend.URL), nil), opts), mw...)
	return f
}

func (f *front) start(t *testing.T, h http.Handler, mw ...gateway.Middleware) {
	t.Helper()
	var observe gateway.Middleware
	f.journal, observe = observed()
	f.Server = serve(t, gateway.Chain(append([]gateway.Middleware{observe}, mw...)...)(h))
}

// raw sends bytes as they are and returns the connection.
func raw(t *testing.T, s *httptest.Server, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestProxyForwards(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", r.Method+" "+r.RequestURI+" "+r.Host)
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.WriteHeader(201)
		w.Write(body)
	})
	res, err := http.Post(f.URL+"/a%2Fb/c%20d?x=1&y=%20", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 201 || string(body) != "hello" {
		t.Errorf("got %d %q", res.StatusCode, body)
	}
	if got, want := res.Header.Get("X-Seen"), "POST /a%2Fb/c%20d?x=1&y=%20 "+f.backend.Listener.Addr().String(); got != want {
		t.Errorf("backend saw %q, want %q", got, want)
	}
	if got := res.Header.Values("Set-Cookie"); len(got) != 2 {
		t.Errorf("cookies: %v", got)
	}
	if line := f.journal.next(t); line["outcome"] != "ok" || line["status"] != "201" || line["bytes"] != "5" {
		t.Errorf("logged %v", line)
	}
}

func TestProxyForwardedFields(t *testing.T) {
	seen := make(chan http.Header, 1)
	backend := func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }
	ask := func(f *front) http.Header {
		t.Helper()
		r, _ := http.NewRequest("GET", f.URL, nil)
		r.Host = "shop.example"
		r.Header = http.Header{
			"X-Forwarded-For": {"6.6.6.6", "1.2.3.4"}, "X-Forwarded-Host": {"evil.example"}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Port": {"1"}, "Forwarded": {"for=6.6.6.6"}, "X-Real-Ip": {"6.6.6.6"},
			"X_forwarded_for": {"6.6.6.6"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			"X-Trace-Id": {"0af7651916cd43dd8448eb211c80319c"}, "Client-Cert": {":AA==:"}, "X-Other": {"stays"},
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		h := <-seen
		if got := res.Header.Get("X-Trace-Id"); len(got) != 32 || got != h.Get("X-Trace-Id") || !strings.Contains(h.Get("Traceparent"), got) || got == "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("trace: client %q, backend %q and %q", got, h.Get("X-Trace-Id"), h.Get("Traceparent"))
		}
		return h
	}
	check := func(h http.Header, want map[string]string) {
		t.Helper()
		for name, value := range want {
			if got := strings.Join(h.Values(name), "|"); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		if _, ok := h["X_forwarded_for"]; ok {
			t.Error("an alias came through")
		}
	}
	t.Run("nobody is believed", func(t *testing.T) {
		check(ask(newFront(t, nil, backend)), map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "",
			"Forwarded": "", "X-Real-Ip": "127.0.0.1", "Client-Cert": "", "X-Other": "stays",
		})
	})
	t.Run("the peer is believed", func(t *testing.T) {
		check(ask(newFront(t, nil, backend, gateway.TrustProxies(netip.MustParsePrefix("127.0.0.0/8")))), map[string]string{
			"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 127.0.0.1", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "1",
			"Forwarded": "for=6.6.6.6, for=127.0.0.1", "X-Real-Ip": "1.2.3.4", "Client-Cert": "", "X-Other": "stays",
		})
	})
}

func TestProxyRemovesHopByHop(t *testing.T) {
	seen := make(chan http.Header, 1)
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.Header().Set("X-End", "1")
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers, deflate\r\nProxy-Connection: x\r\nProxy-Authorization: Basic x\r\nX-End: 1\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	h := <-seen
	for _, name := range []string{"Connection", "X-Mine", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization"} {
		if h.Get(name) != "" {
			t.Errorf("backend got %s", name)
		}
		if res.Header.Get(name) != "" {
			t.Errorf("client got %s", name)
		}
	}
	if h.Get("X-End") != "1" || h.Get("Te") != "trailers" || res.Header.Get("X-End") != "1" || res.Header.Get("X-Hop") != "" || res.Header.Get("Proxy-Authenticate") != "" {
		t.Errorf("backend got %v, client %v", h, res.Header)
	}
	if got, ok := h["User-Agent"]; ok {
		t.Errorf("the proxy named itself %q", got)
	}
}

func TestProxyPath(t *testing.T) {
	for _, tt := range []struct {
		name    string
		opts    gateway.ProxyOptions
		pattern string
		ask     string
		want    string // "": refused
	}{
		{"as it is", gateway.ProxyOptions{}, "/", "/a/b?q=1", "/base/a/b?q=1"},
		{"prefix", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/api/a%2Fb", "/base/a%2Fb"},
		{"prefix with slash", gateway.ProxyOptions{StripPrefix: "/api/"}, "/", "/api/a", "/base/a"},
		{"prefix alone", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/api", "/base/"},
		{"prefix of a segment", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/apis", ""},
		{"no prefix", gateway.ProxyOptions{StripPrefix: "/api"}, "/", "/x", ""},
		{"template", gateway.ProxyOptions{Path: "/v2/users/{id}/x%2Fy"}, "/users/{id}", "/users/7", "/base/v2/users/7/x%2Fy"},
		{"template escapes", gateway.ProxyOptions{Path: "/u/{id}"}, "/users/{id}", "/users/a%2Fb%3Fc%20d", "/base/u/a%2Fb%3Fc%20d"},
		{"template rest", gateway.ProxyOptions{Path: "/f/{p...}"}, "/files/{p...}", "/files/a/b%20c", "/base/f/a/b%20c"},
		{"query is cleaned", gateway.ProxyOptions{}, "/", "/?a=1;b=2&c=3&d=%zz", "/base/?c=3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := make(chan string, 1)
			backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen <- r.RequestURI }))
			mux := http.NewServeMux()
			mux.Handle(tt.pattern, gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL+"/base/"), nil), &tt.opts))
			s := serve(t, mux)
			res := get(t, s.URL+tt.ask)
			if tt.want == "" {
				if p := readProblem(t, res); p.Status != 404 {
					t.Errorf("got %+v", p)
				}
				return
			}
			if res.StatusCode != 200 {
				t.Fatalf("got %d", res.StatusCode)
			}
			if got := <-seen; got != tt.want {
				t.Errorf("backend saw %s, want %s", got, tt.want)
			}
		})
	}
}

func TestProxyHostAndRewrite(t *testing.T) {
	seen := make(chan *http.Request, 1)
	backend := func(w http.ResponseWriter, r *http.Request) { seen <- r }
	f := newFront(t, &gateway.ProxyOptions{PreserveHost: true}, backend)
	get(t, strings.Replace(f.URL, "127.0.0.1", "localhost", 1))
	if r := <-seen; !strings.HasPrefix(r.Host, "localhost:") {
		t.Errorf("host %s", r.Host)
	}
	b := serve(t, http.HandlerFunc(backend))
	link, _ := url.Parse(b.URL)
	f.start(t, gateway.Proxy(http.DefaultTransport, &gateway.ProxyOptions{Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(link)
		pr.Out.Header.Set("X-Forwarded-Host", "rewritten")
		if pr.In.Header.Get("X-Forwarded-Host") != "" {
			t.Error("In was changed")
		}
	}}))
	get(t, f.URL+"/x")
	if r := <-seen; r.URL.Path != "/x" || r.Header.Get("X-Forwarded-Host") != "rewritten" || r.Host != link.Host {
		t.Errorf("got %v %v", r.URL, r.Header)
	}
}

func TestProxyModifyResponse(t *testing.T) {
	backend := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }
	f := newFront(t, &gateway.ProxyOptions{ModifyResponse: func(res *http.Response) error {
		if res.Request.URL.Path == "/bad" {
			return errors.New("secret")
		}
		res.Header.Set("X-Modified", "1")
		return nil
	}}, backend)
	if res := get(t, f.URL+"/"); res.Header.Get("X-Modified") != "1" {
		t.Errorf("got %v", res.Header)
	}
	if p := readProblem(t, get(t, f.URL+"/bad")); p.Status != 502 {
		t.Errorf("got %+v", p)
	}
}

func TestProxyBodyLimit(t *testing.T) {
	backend := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			w.Write(body)
		}
	}
	f := newFront(t, &gateway.ProxyOptions{MaxBodyBytes: 10}, backend)
	for _, tt := range []struct {
		name string
		body io.Reader
		want int
	}{
		{"at the limit", strings.NewReader("0123456789"), 200},
		{"announced", strings.NewReader("0123456789x"), 413},
		{"found while streaming", io.MultiReader(strings.NewReader("0123456789"), strings.NewReader("x")), 413},
		{"found late", io.LimitReader(neverEnds{}, 1<<20), 413},
		{"streaming at the limit", io.MultiReader(strings.NewReader("01234"), strings.NewReader("56789")), 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := http.Post(f.URL, "text/plain", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != tt.want {
				t.Fatalf("got %d, want %d", res.StatusCode, tt.want)
			}
			line := f.journal.next(t)
			if tt.want == 413 {
				if p := readProblem(t, res); p.TraceID == "" {
					t.Errorf("got %+v", p)
				}
				if line["outcome"] != "rejected" {
					t.Errorf("logged %v", line)
				}
			}
		})
	}
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) { return len(p), nil }

func TestProxyStreams(t *testing.T) {
	for name, contentType := range map[string]string{"events": "text/event-stream; charset=utf-8", "unknown length": "application/octet-stream"} {
		t.Run(name, func(t *testing.T) {
			next := make(chan string)
			f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", contentType)
				w.(http.Flusher).Flush()
				for s := range next {
					io.WriteString(w, s)
					w.(http.Flusher).Flush()
				}
			})
			// The header comes before the first piece.
			res := get(t, f.URL)
			buf := make([]byte, 10)
			for _, s := range []string{"one", "two"} {
				next <- s
				if n, err := io.ReadAtLeast(res.Body, buf, len(s)); err != nil || string(buf[:n]) != s {
					t.Errorf("got %q, %v", buf[:n], err)
				}
			}
			close(next)
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}
		})
	}
}

func TestProxyTrailers(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Announced")
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum")+r.Trailer.Get("X-User-Id"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	})
	r, _ := http.NewRequest("POST", f.URL, io.MultiReader(strings.NewReader("x")))
	r.Trailer = http.Header{"X-Sum": {"1"}, "X-User-Id": {"mallory"}}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "body" || res.Trailer.Get("X-Announced") != "1" || res.Trailer.Get("X-Late") != "2" {
		t.Errorf("got %q and %v", body, res.Trailer)
	}
}

func TestProxyInformational(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("X-Final", "1")
		w.WriteHeader(http.StatusTeapot)
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	all, _ := io.ReadAll(conn)
	first, final, _ := strings.Cut(string(all), "\r\n\r\n")
	if !strings.HasPrefix(first, "HTTP/1.1 103") || !strings.Contains(first, "Link: </style.css>") || strings.Contains(first, "X-Trace-Id") {
		t.Errorf("first: %q", first)
	}
	if !strings.HasPrefix(final, "HTTP/1.1 418") || !strings.Contains(final, "X-Final: 1") || !strings.Contains(final, "X-Trace-Id:") || strings.Contains(final, "Link") {
		t.Errorf("final: %q", final)
	}
	if line := f.journal.next(t); line["status"] != "418" {
		t.Errorf("logged %v", line)
	}
}

func TestProxyEarlyAnswer(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
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
	r, _ := http.NewRequest("POST", f.URL, in)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	// The answer has begun, the body has not.
	for _, s := range []string{"ping", "pong"} {
		io.WriteString(out, s)
		buf := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != s {
			t.Fatalf("got %q, %v", buf, err)
		}
	}
	out.Close()
}

func TestProxyUpgrade(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" || r.Header.Get("Connection") != "Upgrade" {
			w.WriteHeader(400)
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, rw)
		io.WriteString(conn, "bye") // after the client's half is closed
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello")
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" {
		t.Fatalf("got %v, %v", res, err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(br, buf); err != nil || string(buf) != "hello" {
		t.Errorf("got %q, %v", buf, err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if rest, _ := io.ReadAll(br); string(rest) != "bye" {
		t.Errorf("got %q", rest)
	}
	if line := f.journal.next(t); line["status"] != "101" || line["outcome"] != "ok" {
		t.Errorf("logged %v", line)
	}
	res = get(t, f.URL)
	if res.StatusCode != 400 {
		t.Errorf("without an upgrade: %d", res.StatusCode)
	}
}

func TestProxyUpgradeToAnotherProtocol(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
		conn.Close()
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := readProblem(t, res); p.Status != 502 {
		t.Errorf("got %+v", p)
	}
}

// TestProxyFailures breaks the target and the client in every way, and asks for the answer and for what
// was logged.
func TestProxyFailures(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // a port where nobody listens
	if err != nil {
		t.Fatal(err)
	}
	deaf.Close()
	refused := "http://" + deaf.Addr().String()

	release := make(chan bool)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			select {
			case <-r.Context().Done():
			case <-release:
			}
		case "/reset":
			panic(http.ErrAbortHandler)
		case "/garbage":
			conn, _, _ := w.(http.Hijacker).Hijack()
			io.WriteString(conn, "I am no HTTP server\r\n\r\n")
			conn.Close()
		case "/midbody":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/500":
			w.WriteHeader(500)
		case "/endless":
			w.Header().Set("Content-Type", "text/event-stream")
			for r.Context().Err() == nil {
				io.WriteString(w, "data: x\n\n")
				w.(http.Flusher).Flush()
			}
		}
	}))
	t.Cleanup(func() { close(release) })

	proxy := func(target string) http.Handler {
		return gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(target), &gateway.UpstreamOptions{Timeout: 50 * time.Millisecond}), nil)
	}
	patient := gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil), nil)
	for _, tt := range []struct {
		name    string
		handler http.Handler
		path    string
		status  int
		outcome string
		level   string
	}{
		{"dead", proxy(refused), "/", 502, "upstream_error", "ERROR"},
		{"hung", proxy(backend.URL), "/hang", 504, "timeout", "ERROR"},
		{"reset", proxy(backend.URL), "/reset", 502, "upstream_error", "ERROR"},
		{"garbage", proxy(backend.URL), "/garbage", 502, "upstream_error", "ERROR"},
		{"its own 500", proxy(backend.URL), "/500", 500, "upstream_error", "ERROR"},
		{"no targets", gateway.Proxy(gateway.NewUpstream("empty", nil, nil), nil), "/", 503, "rejected", "WARN"},
		{"time out around it", gateway.Timeout(30 * time.Millisecond)(patient), "/hang", 504, "timeout", "ERROR"},
		{"dies in mid-body", proxy(backend.URL), "/midbody", 200, "aborted", "ERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f front
			f.start(t, tt.handler)
			res := get(t, f.URL+tt.path)
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d", res.StatusCode, tt.status)
			}
			switch tt.path {
			case "/midbody":
				if body, err := io.ReadAll(res.Body); err == nil || string(body) != "half" {
					t.Errorf("got %q, %v; want an abort", body, err)
				}
			case "/500":
			default:
				p := readProblem(t, res)
				if p.TraceID == "" || strings.Contains(fmt.Sprint(p), "127.0.0.1") {
					t.Errorf("got %+v", p)
				}
			}
			line := f.journal.next(t)
			if line["outcome"] != tt.outcome || line["level"] != tt.level || line["status"] != fmt.Sprint(tt.status) {
				t.Errorf("logged %v", line)
			}
			if tt.status >= 502 && line["cause"] == "" {
				t.Errorf("no cause logged: %v", line)
			}
			if len(f.journal) > 0 {
				t.Errorf("logged twice: %v", <-f.journal)
			}
		})
	}
	t.Run("client leaves", func(t *testing.T) {
		for _, path := range []string{"/hang", "/endless"} {
			var f front
			f.start(t, patient)
			ctx, cancel := context.WithCancel(context.Background())
			r, _ := http.NewRequestWithContext(ctx, "GET", f.URL+path, nil)
			if path == "/hang" {
				time.AfterFunc(20*time.Millisecond, cancel)
			}
			res, err := http.DefaultClient.Do(r)
			if err == nil {
				io.ReadFull(res.Body, make([]byte, 100))
				cancel()
				res.Body.Close()
			}
			cancel()
			line := f.journal.next(t)
			if line["outcome"] != "client_canceled" || line["status"] != "499" || line["level"] != "INFO" {
				t.Errorf("%s: logged %v", path, line)
			}
		}
	})
	t.Run("client leaves in mid-request", func(t *testing.T) {
		var f front
		f.start(t, patient)
		conn := raw(t, f.Server, "POST /hang HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
		time.AfterFunc(20*time.Millisecond, func() { conn.Close() })
		if line := f.journal.next(t); line["outcome"] != "client_canceled" {
			t.Errorf("logged %v", line)
		}
	})
	t.Run("malformed request body", func(t *testing.T) {
		var f front
		f.start(t, patient)
		conn := raw(t, f.Server, "POST /hang HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := readProblem(t, res); p.Status != 400 {
			t.Errorf("got %+v", p)
		}
		if line := f.journal.next(t); line["outcome"] != "rejected" {
			t.Errorf("logged %v", line)
		}
	})
}

func TestPanicsGoOnUp(t *testing.T) {
	j, observe := observed()
	for _, tt := range []struct {
		value   any
		outcome string
	}{{http.ErrAbortHandler, "aborted"}, {"a bug", "internal"}} {
		h := observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(tt.value) }))
		func() {
			defer func() {
				if got := recover(); got != tt.value {
					t.Errorf("recovered %v, want %v", got, tt.value)
				}
			}()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}()
		if line := j.next(t); line["outcome"] != tt.outcome || line["level"] != "ERROR" || line["status"] != "500" {
			t.Errorf("logged %v", line)
		}
	}
}

func TestProxyPanicsAtSetup(t *testing.T) {
	up := gateway.NewUpstream("x", nil, nil)
	for name, f := range map[string]func(){
		"nil":           func() { gateway.Proxy(nil, nil) },
		"prefix":        func() { gateway.Proxy(up, &gateway.ProxyOptions{StripPrefix: "api"}) },
		"path":          func() { gateway.Proxy(up, &gateway.ProxyOptions{Path: "x"}) },
		"open brace":    func() { gateway.Proxy(up, &gateway.ProxyOptions{Path: "/{x"}) },
		"close brace":   func() { gateway.Proxy(up, &gateway.ProxyOptions{Path: "/x}"}) },
		"query in path": func() { gateway.Proxy(up, &gateway.ProxyOptions{Path: "/x?y"}) },
		"field":         func() { gateway.Proxy(up, &gateway.ProxyOptions{Identity: map[string]string{"X User": "sub"}}) },
		"claim":         func() { gateway.Proxy(up, &gateway.ProxyOptions{Identity: map[string]string{"X-User": ""}}) },
	} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.HasPrefix(got, "gateway: Proxy: ") {
					t.Errorf("%s: recovered %q", name, got)
				}
			}()
			f()
		}()
	}
}

func TestProxyManyAtOnce(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(slices.Concat([]byte(r.Header.Get("X-N")+" "), body))
	})
	done := make(chan error, 50)
	for n := range 50 {
		go func() {
			id := fmt.Sprint(n)
			r, _ := http.NewRequest("POST", f.URL, strings.NewReader(id))
			r.Header.Set("X-N", id)
			res, err := http.DefaultClient.Do(r)
			if err == nil {
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if string(body) != id+" "+id {
					err = fmt.Errorf("request %s got %q", id, body)
				}
			}
			done <- err
		}()
	}
	for range 50 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestProxyUnreadBodies holds that a connection can be used again after a body that nobody read, whether the
// target answered early or there was none to ask.
func TestProxyUnreadBodies(t *testing.T) {
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "early") }))
	for name, u := range map[string]*gateway.Upstream{
		"early answer": gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil),
		"no target":    gateway.NewUpstream("u", nil, nil),
		"dead target":  gateway.NewUpstream("u", gateway.MustTargets("http://127.0.0.1:1"), nil),
	} {
		t.Run(name, func(t *testing.T) {
			crashed := make(chan string, 10)
			s := httptest.NewUnstartedServer(gateway.Proxy(u, nil))
			s.Config.ErrorLog = log.New(writerFunc(func(p []byte) (int, error) { crashed <- string(p); return len(p), nil }), "", 0)
			s.Start()
			t.Cleanup(s.Close)
			body := strings.Repeat("x", 1000)
			conn := raw(t, s, "")
			br := bufio.NewReader(conn)
			for range 20 {
				fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.Close {
					t.Fatal("the connection was closed")
				}
			}
			if len(crashed) > 0 {
				t.Errorf("the server logged %s", <-crashed)
			}
		})
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
