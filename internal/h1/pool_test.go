package h1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// got records what the hooks of a request have seen.
type got struct{ conns []httptrace.GotConnInfo }

var gotHooks = &Hooks{GotConn: func(arg any, info httptrace.GotConnInfo) {
	g := arg.(*got)
	g.conns = append(g.conns, info)
}}

// askReused is like ask. It also reports whether the last connection that was tried was a reused one.
func askReused(t testing.TB, tr *Transport, req *http.Request) (reused bool, body string) {
	t.Helper()
	var g got
	res, err := tr.Do(req, Deadline{}, gotHooks, &g)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return g.conns[len(g.conns)-1].Reused, string(b)
}

func TestReuse(t *testing.T) {
	for _, tt := range []struct {
		name, method, answer, connection string
		close                            bool
		want                             bool
	}{
		{name: "length", answer: okAnswer, want: true},
		{name: "chunks", answer: chunkedHead + "2\r\nok\r\n0\r\n\r\n", want: true},
		{name: "empty", answer: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", want: true},
		{name: "204", answer: "HTTP/1.1 204 No Content\r\n\r\n", want: true},
		{name: "304", answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", want: true},
		{name: "HEAD", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", want: true},
		{name: "HEAD of chunks", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", want: true},
		{name: "HTTP/1.0 keep-alive", answer: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", want: true},
		{name: "HTTP/1.0", answer: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		{name: "response closes", answer: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"},
		{name: "request closes", answer: okAnswer, close: true},
		{name: "field closes", answer: okAnswer, connection: "x, Close"},
		{name: "a second answer", answer: okAnswer + okAnswer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := serve(t, answerAll(tt.answer))
			tr := newTransport(t, nil)
			for i := range 3 {
				req := newRequest(t, tt.method, "http://"+addr+"/", nil)
				req.Close = tt.close
				if tt.connection != "" {
					req.Header.Set("Connection", tt.connection)
				}
				if reused, _ := askReused(t, tr, req); reused != (tt.want && i > 0) {
					t.Errorf("request %d: reused %v", i, reused)
				}
			}
		})
	}
}

// Different spellings of one target share connections. Different schemes do not.
func TestTargetOfURL(t *testing.T) {
	for _, tt := range []struct {
		scheme, host string
		want         hostKey
		ok           bool
	}{
		{"http", "a", hostKey{false, "a:80"}, true},
		{"http", "A:80", hostKey{false, "a:80"}, true},
		{"http", "a:", hostKey{false, "a:80"}, true},
		{"https", "a", hostKey{true, "a:443"}, true},
		{"https", "a:8443", hostKey{true, "a:8443"}, true},
		{"http", "[::1]", hostKey{false, "[::1]:80"}, true},
		{"http", "[::1]:8080", hostKey{false, "[::1]:8080"}, true},
		{"http", "a:b", hostKey{}, false},
		{"http", "a\n", hostKey{}, false},
		{"http", "/run/a.sock", hostKey{}, false},
		{"unix", "/run/A.sock", hostKey{false, "/run/A.sock"}, true},
		{"unix", "/run/a b:c", hostKey{false, "/run/a b:c"}, true},
		{"unix", "run/a.sock", hostKey{}, false},
		{"unix", "", hostKey{}, false},
		{"unix", "/run/a\x00b", hostKey{}, false},
	} {
		if got, ok := keyOf(tt.scheme, tt.host); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%s %s: %v, %v", tt.scheme, tt.host, got, ok)
		}
	}
}

// The most recently used connection is reused first, and at most MaxIdlePerHost are kept.
func TestIdleConnectionsAreAStack(t *testing.T) {
	arrived, block := make(chan bool, 10), make(chan bool)
	addr := serve(t, func(n int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			arrived <- true
			<-block
			if _, err := io.WriteString(c, okAnswer); err != nil {
				return
			}
		}
	})
	tr := newTransport(t, &Options{MaxIdlePerHost: 3})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)) })
	}
	for range 5 {
		<-arrived
	}
	for range 5 {
		block <- true
	}
	all.Wait()
	h := tr.hosts[hostKey{false, addr}]
	if len(h.idle) != 3 || h.open != 3 {
		t.Fatalf("%d idle of %d", len(h.idle), h.open)
	}
	top := h.idle[2].wire.Conn
	var g got
	go func() { block <- true }()
	res, err := tr.Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
	if err != nil || g.conns[0].Conn != top {
		t.Fatal(err)
	}
	res.Body.Close()
	tr.CloseIdleConnections()
	if len(tr.hosts) != 0 {
		t.Error("hosts are left")
	}
}

// An idle connection that the target has closed is detected before a request is sent on it, so requests that
// must not be repeated succeed too.
func TestDeadIdleConnections(t *testing.T) {
	for _, last := range []string{"", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "x"} {
		closeNow, closed := make(chan bool), make(chan bool)
		addr := serve(t, func(_ int, c net.Conn) {
			br := bufio.NewReader(c)
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, okAnswer)
			<-closeNow
			io.WriteString(c, last)
			if last != "x" {
				c.Close()
			}
			closed <- true
			io.Copy(io.Discard, br)
		})
		tr := newTransport(t, nil)
		for range 3 {
			if reused, body := askReused(t, tr, newRequest(t, "PATCH", "http://"+addr+"/", nil)); reused || body != "ok" {
				t.Errorf("after %q: reused %v, %q", last, reused, body)
			}
			closeNow <- true
			<-closed
			waitUntilReadable(t, tr.hosts[hostKey{false, addr}].idle[0].wire.Conn)
		}
	}
}

// If a target answers before the request and again after it, the second response goes to no other request.
func TestAnswerBeforeTheRequest(t *testing.T) {
	addr := serve(t, func(_ int, c net.Conn) {
		io.WriteString(c, okAnswer)
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		}
	})
	tr := newTransport(t, &Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err == nil {
			waitUntilReadable(t, c)
			c.SetReadDeadline(time.Time{})
		}
		return c, err
	}})
	for range 20 {
		if reused, body := askReused(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); reused || body != "ok" {
			t.Error(reused, body)
		}
	}
}

// waitUntilReadable waits until data or the end of the connection has arrived.
func waitUntilReadable(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err != syscall.EAGAIN || n > 0
	})
	if err != nil {
		t.Fatal(err)
	}
}

// If a target sends bytes after its response, the connection is closed and no request sees them.
func TestBytesAfterTheAnswer(t *testing.T) {
	addr := serve(t, func(n int, c net.Conn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		io.WriteString(c, okAnswer+"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		io.Copy(io.Discard, br)
	})
	tr := newTransport(t, nil)
	for range 5 {
		if reused, body := askReused(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); reused || body != "ok" {
			t.Error(reused, body)
		}
	}
}

// flaky is a connection that fails once dead is set, although the probe finds it alive.
type flaky struct {
	net.Conn
	dead     *atomic.Bool
	writeErr bool
	written  int // bytes that a failing write accepts
}

func (f *flaky) Read(p []byte) (int, error) {
	if f.dead.Load() {
		return 0, syscall.ECONNRESET
	}
	return f.Conn.Read(p)
}

func (f *flaky) Write(p []byte) (int, error) {
	if f.dead.Load() && f.writeErr {
		return f.written, syscall.EPIPE
	}
	return f.Conn.Write(p)
}

func TestRetry(t *testing.T) {
	for _, tt := range []struct {
		name     string
		method   string
		header   string
		body     io.Reader
		getBody  bool
		writeErr bool // the dead connection takes nothing
		written  int
		want     bool
	}{
		{name: "GET", method: "GET", want: true},
		{name: "HEAD", method: "HEAD", want: true},
		{name: "OPTIONS", method: "OPTIONS", want: true},
		{name: "POST", method: "POST"},
		{name: "PUT", method: "PUT", want: true},
		{name: "DELETE", method: "DELETE", want: true},
		{name: "QUERY with a body that can be had again", method: "QUERY", body: hiddenReader{strings.NewReader("hello")}, getBody: true, want: true},
		{name: "PUT with a streamed body", method: "PUT", body: hiddenReader{strings.NewReader("hello")}},
		{name: "PATCH", method: "PATCH"},
		{name: "POST of which nothing was written", method: "POST", writeErr: true, want: true},
		{name: "POST of which a byte was written", method: "POST", writeErr: true, written: 1},
		{name: "POST with a key", method: "POST", header: "Idempotency-Key", want: true},
		{name: "POST with a key of old", method: "POST", header: "X-Idempotency-Key", want: true},
		{name: "POST with a key and a body in memory", method: "POST", header: "Idempotency-Key", body: strings.NewReader("hello"), want: true},
		{name: "POST with a body in memory", method: "POST", body: strings.NewReader("hello")},
		{name: "POST with a body in memory of which nothing was written", method: "POST", body: strings.NewReader("hello"), writeErr: true, want: true},
		{name: "GET with a streamed body", method: "GET", body: hiddenReader{strings.NewReader("hello")}},
		{name: "GET with a streamed body that was not begun", method: "GET", body: hiddenReader{strings.NewReader("hello")}, writeErr: true, want: true},
		{name: "POST with a streamed body that was not begun", method: "POST", body: hiddenReader{strings.NewReader("hello")}, writeErr: true, want: true},
		{name: "GET with a body that can be had again", method: "GET", body: hiddenReader{strings.NewReader("hello")}, getBody: true, want: true},
		{name: "POST with a body that can be had again", method: "POST", body: hiddenReader{strings.NewReader("hello")}, getBody: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, raws := wireServer(t)
			dead := []*atomic.Bool{new(atomic.Bool), new(atomic.Bool)}
			n := 0
			tr := newTransport(t, &Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				c, err := d.DialContext(ctx, network, addr)
				n++
				return &flaky{Conn: c, dead: dead[n-1], writeErr: tt.writeErr, written: tt.written}, err
			}})
			ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil))
			<-raws
			h := tr.hosts[hostKey{false, addr}]
			h.idle[0].wire.raw = nil
			// The probe before reuse succeeds, and the connection fails after it.
			probe := h.idle[0].wire.Conn
			h.idle[0].wire.Conn = &dyingConn{flaky: probe.(*flaky)}

			req := newRequest(t, tt.method, "http://"+addr+"/", tt.body)
			if req.Method == "HEAD" {
				req.Method = "OPTIONS" // wireServer answers with a body
			}
			if tt.header != "" {
				req.Header.Set(tt.header, "k")
			}
			if tt.body != nil {
				req.ContentLength = 5
			}
			if tt.getBody {
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("hello")), nil }
			}
			var g got
			res, err := tr.Do(req, Deadline{}, gotHooks, &g)
			if (err == nil) != tt.want {
				t.Fatal(err)
			}
			if err != nil {
				if len(g.conns) != 1 {
					t.Error("more than one attempt")
				}
				return
			}
			io.Copy(io.Discard, res.Body)
			if res.Request != req {
				t.Error("the response names another request")
			}
			raw := <-raws
			if strings.HasPrefix(raw, "broken: ") {
				raw = <-raws // that was the first connection
			}
			if tt.body != nil && !strings.HasSuffix(raw, "\r\n\r\nhello") {
				t.Errorf("%q", raw)
			}
			if len(g.conns) != 2 || !g.conns[0].Reused || g.conns[1].Reused {
				t.Error(g.conns)
			}
		})
	}
}

// dyingConn passes one probe and then fails.
type dyingConn struct {
	*flaky
	probed bool
}

func (d *dyingConn) Read(p []byte) (int, error) {
	if !d.probed {
		d.probed = true
		d.dead.Store(true)
		return 0, os.ErrDeadlineExceeded
	}
	return d.flaky.Read(p)
}

// A request that fails on a new connection is not retried.
func TestNoRetryOnNewConnection(t *testing.T) {
	addr := serve(t, func(_ int, c net.Conn) { http.ReadRequest(bufio.NewReader(c)) })
	var g got
	_, err := newTransport(t, nil).Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(g.conns) != 1 {
		t.Error(err, len(g.conns))
	}
}

// A request is not retried if the connection fails after the first byte of a response.
func TestNoRetryAfterFirstByte(t *testing.T) {
	addr := serve(t, afterWarm(func(c net.Conn, _ *bufio.Reader) { io.WriteString(c, okAnswer[:20]) }))
	tr := newTransport(t, nil)
	warm(t, tr, addr)
	var g got
	_, err := tr.Do(newRequest(t, "GET", "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(g.conns) != 1 || !g.conns[0].Reused {
		t.Error(err, g.conns)
	}
}

// Repeatable requests succeed although their target closes connections at random.
func TestSurprisingCloses(t *testing.T) {
	var count atomic.Int32
	addr := serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, okAnswer)
			if count.Add(1)%3 == 0 {
				return
			}
		}
	})
	tr := newTransport(t, nil)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			for range 100 {
				if _, body := ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); body != "ok" {
					t.Error(body)
				}
			}
		})
	}
	all.Wait()
}

func TestMaxPerHost(t *testing.T) {
	var open, most atomic.Int32
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, &Options{MaxPerHost: 3, MaxIdlePerHost: 2, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if n := open.Add(1); n > most.Load() {
			most.Store(n)
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		return &countedConn{Conn: c, open: &open}, err
	}})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for range 20 {
				req := newRequest(t, "GET", "http://"+addr+"/", nil)
				req.Close = i%5 == 0
				if _, body := ask(t, tr, req); body != "ok" {
					t.Error(body)
				}
			}
		})
	}
	all.Wait()
	ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil))
	h := tr.hosts[hostKey{false, addr}]
	if most.Load() != 3 || h.open > 3 || h.open != len(h.idle) || len(h.waiters) > 0 {
		t.Error(most.Load(), h.open, len(h.idle), len(h.waiters))
	}
}

// countedConn counts the open connections.
type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// pipes returns a Dial for a synctest bubble: each connection is a net.Pipe, with handle at the other end.
func pipes(handle func(n int, c net.Conn)) func(context.Context, string, string) (net.Conn, error) {
	var n atomic.Int32
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		i := int(n.Add(1)) - 1
		go func() {
			defer far.Close()
			handle(i, far)
		}()
		return near, nil
	}
}

// Waiting requests are served in order of arrival. A canceled one is skipped.
func TestWaitersAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		tr := New(&Options{MaxPerHost: 1, Dial: pipes(func(_ int, c net.Conn) {
			br := bufio.NewReader(c)
			for {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				<-release
				io.WriteString(c, okAnswer)
			}
		})})
		defer tr.CloseIdleConnections()
		order := make(chan int, 10)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("left")
		for i := range 5 {
			go func() {
				req := newRequest(t, "GET", "http://a/", nil)
				if i == 2 {
					_, err := tr.RoundTrip(req.WithContext(ctx))
					if !errors.Is(err, cause) {
						t.Error(err)
					}
					order <- -1
					return
				}
				ask(t, tr, req)
				order <- i
			}()
			synctest.Wait()
		}
		cancel(cause)
		for _, want := range []int{-1, 0, 1, 3, 4} {
			if want >= 0 {
				release <- true
			}
			if got := <-order; got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
	})
}

// A request that is canceled at the moment at which it receives a slot passes the slot on.
func TestSlotOfCanceledWaiterIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, dialing := errors.New("no dial"), make(chan bool)
		tr := New(&Options{MaxPerHost: 1, Dial: func(context.Context, string, string) (net.Conn, error) {
			dialing <- true
			return nil, dial
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				req := newRequest(t, "GET", "http://a/", nil)
				if i%2 == 1 {
					req = req.WithContext(ctx)
				}
				if _, err := tr.RoundTrip(req); !errors.Is(err, dial) && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		<-dialing
		go cancel()
		go func() {
			for range dialing {
			}
		}()
		all.Wait()
		close(dialing)
		if len(tr.hosts) != 0 {
			t.Error("hosts are left")
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		tr := New(&Options{IdleTimeout: time.Minute, Dial: pipes(func(_ int, c net.Conn) {
			open.Add(1)
			defer open.Add(-1)
			answerAll(okAnswer)(0, c)
		})})
		ask(t, tr, newRequest(t, "GET", "http://a/", nil))
		time.Sleep(40 * time.Second)
		ask(t, tr, newRequest(t, "GET", "http://b/", nil))
		if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://a/", nil)); !reused {
			t.Error("not used again after 40 s")
		}
		time.Sleep(59 * time.Second)
		if synctest.Wait(); open.Load() != 2 {
			t.Errorf("%d connections after 59 s", open.Load())
		}
		time.Sleep(8 * time.Second) // a sweep may come a tenth of the timeout late
		if synctest.Wait(); open.Load() != 0 || len(tr.hosts) != 0 || tr.sweeping {
			t.Errorf("%d connections and %d hosts after 67 s", open.Load(), len(tr.hosts))
		}
		// An expired connection is not reused, even before the sweep.
		ask(t, tr, newRequest(t, "GET", "http://a/", nil))
		tr.mu.Lock()
		tr.sweep.Stop()
		tr.mu.Unlock()
		time.Sleep(time.Minute)
		if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://a/", nil)); reused {
			t.Error("used again after a minute")
		}
		tr.CloseIdleConnections()
	})
}

// After CloseIdleConnections, a connection is closed when its exchange ends, until the next request.
func TestCloseIdleConnectionsInUse(t *testing.T) {
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, nil)
	res, err := tr.RoundTrip(newRequest(t, "GET", "http://"+addr+"/", nil))
	if err != nil {
		t.Fatal(err)
	}
	tr.CloseIdleConnections()
	io.Copy(io.Discard, res.Body)
	if len(tr.hosts) != 0 {
		t.Error("the connection was kept")
	}
	ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil))
	if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); !reused {
		t.Error("the connection was not kept")
	}
}

// With many concurrent requests, each receives its own response.
func TestAnswersAreNotMixedUp(t *testing.T) {
	addr := serve(t, func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			(&http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, TransferEncoding: []string{"chunked"},
				Body: io.NopCloser(strings.NewReader(req.URL.Path + string(body)))}).Write(c)
		}
	})
	tr := newTransport(t, &Options{InlineBody: 100})
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			for j := range 100 {
				path := "/" + strings.Repeat("a", i) + strings.Repeat("b", j)
				body := strings.Repeat("c", j*3)
				var r io.Reader = hiddenReader{strings.NewReader(body)}
				req := newRequest(t, "POST", "http://"+addr+path, r)
				if j%2 == 0 {
					req.ContentLength = int64(len(body))
				}
				if j%7 == 0 { // a request that leaves in the middle
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(j)*10*time.Microsecond)
					if res, err := tr.RoundTrip(req.WithContext(ctx)); err == nil {
						res.Body.Close()
					}
					cancel()
					continue
				}
				if _, got := ask(t, tr, req); got != path+body {
					t.Errorf("got %q, want %q", got, path+body)
				}
			}
		})
	}
	all.Wait()
}
