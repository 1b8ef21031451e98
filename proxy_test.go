package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

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

// TestProxyFailures breaks the target and the client in every way, and asks for the answer and for what
// was logged.
func TestProxyFailures(t *testing.T) {
	const refused = "http://127.0.0.1:1" // a port where nobody listens
	release := make(chan bool)
	var arrived atomic.Value // a func that is called when a request for /hang is here
	arrived.Store(func() {})
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			arrived.Load().(func())()
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
		return gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(target), nil), nil)
	}
	patient := proxy(backend.URL)
	hasty := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{Timeout: 50 * time.Millisecond})
	for _, tt := range []struct {
		name    string
		handler http.Handler
		path    string
		status  int
		outcome string
		level   string
	}{
		{"dead", proxy(refused), "/", 502, "upstream_error", "ERROR"},
		{"hung", gateway.Proxy(hasty, nil), "/hang", 504, "timeout", "ERROR"},
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
			if tt.status >= 502 && line["error"] == "" {
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
				arrived.Store(func() { cancel() })
			}
			res, err := http.DefaultClient.Do(r)
			if err == nil {
				io.ReadFull(res.Body, make([]byte, 100))
				cancel()
				res.Body.Close()
			}
			cancel()
			arrived.Store(func() {})
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
		if got := panicValue(func() { recorded(h, nil) }); got != tt.value {
			t.Errorf("panicked with %v, want %v", got, tt.value)
		}
		if line := j.next(t); line["outcome"] != tt.outcome || line["level"] != "ERROR" || line["status"] != "500" {
			t.Errorf("logged %v", line)
		}
	}
}

func TestProxyPanicsAtSetup(t *testing.T) {
	up := gateway.NewUpstream("x", nil, nil)
	for name, opts := range map[string]gateway.ProxyOptions{
		"prefix":        {StripPrefix: "api"},
		"path":          {Path: "x"},
		"open brace":    {Path: "/{x"},
		"close brace":   {Path: "/x}"},
		"query in path": {Path: "/x?y"},
		"field":         {Identity: map[string]string{"X User": "sub"}},
		"claim":         {Identity: map[string]string{"X-User": ""}},
	} {
		if got := panicOf(func() { gateway.Proxy(up, &opts) }); !strings.HasPrefix(got, "gateway: Proxy: ") {
			t.Errorf("%s: panicked with %q", name, got)
		}
	}
	if got := panicOf(func() { gateway.Proxy(nil, nil) }); !strings.HasPrefix(got, "gateway: Proxy: ") {
		t.Errorf("nil: panicked with %q", got)
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
		p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
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
	p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		return answered(r, 200, io.NopCloser(strings.NewReader("hi"))), nil
	}), nil)
	rec := httptest.NewRecorder()
	p.ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Body.String() != "hi" {
		t.Errorf("got %q", rec.Body)
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
			h := observe(gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
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
			case <-time.After(patience):
				t.Fatal("the target was not told that the client left")
			}
		})
	}
	t.Run("a panic", func(t *testing.T) {
		j, observe := observed()
		h := observe(gateway.Proxy(http.DefaultTransport, &gateway.ProxyOptions{Rewrite: func(*httputil.ProxyRequest) { panic("a bug") }}))
		if v := panicOf(func() { recorded(h, httptest.NewRequest("POST", "/", strings.NewReader("x"))) }); v != "a bug" {
			t.Errorf("panicked with %q", v)
		}
		if line := j.next(t); line["outcome"] != "internal" {
			t.Errorf("logged %v", line)
		}
	})
}
