package h1

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// One request can be sent several times, also concurrently.
func TestRequestIsUsedAgain(t *testing.T) {
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, nil)
	req := newRequest(t, "GET", "http://"+addr+"/", nil)
	for i := range 3 {
		if reused, body := askReused(t, tr, req); reused != (i > 0) || body != "ok" {
			t.Error(reused, body)
		}
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			for range 20 {
				ask(t, tr, req)
			}
		})
	}
	all.Wait()
}

// The header of a request is sent before its streamed body has any data.
func TestHeaderGoesAheadOfBody(t *testing.T) {
	for _, length := range []int64{5, -1} {
		arrived := make(chan bool)
		addr := serve(t, func(_ int, c net.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				t.Error(err)
				return
			}
			close(arrived)
			if body, err := io.ReadAll(req.Body); string(body) != "hello" || err != nil {
				t.Error(string(body), err)
			}
			io.WriteString(c, okAnswer)
		})
		r, w := io.Pipe()
		go func() {
			<-arrived
			io.WriteString(w, "hello")
			w.Close()
		}()
		req := newRequest(t, "POST", "http://"+addr+"/", r)
		req.ContentLength = length
		ask(t, newTransport(t, nil), req)
	}
}

// An unexpected 100 Continue is skipped with every kind of body, and the connection is reused.
func TestUnaskedContinue(t *testing.T) {
	addr := serve(t, answerAll("HTTP/1.1 100 Continue\r\n\r\n"+okAnswer))
	tr := newTransport(t, nil)
	for i := range 6 {
		var body io.Reader = strings.NewReader("hello")
		if i%2 == 0 {
			body = hiddenReader{body}
		}
		if reused, got := askReused(t, tr, newRequest(t, "POST", "http://"+addr+"/", body)); reused != (i > 0) || got != "ok" {
			t.Error(i, reused, got)
		}
	}
}

// A response without a body makes its connection idle at once, whether the body is closed or not.
func TestEmptyResponsesNeedNoClose(t *testing.T) {
	for _, tt := range []struct{ method, answer string }{
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"},
		{"HEAD", chunkedHead},
	} {
		addr := serve(t, answerAll(tt.answer))
		tr := newTransport(t, nil)
		for i := range 3 {
			var g got
			res, err := tr.Do(newRequest(t, tt.method, "http://"+addr+"/", nil), Deadline{}, gotHooks, &g)
			if err != nil {
				t.Fatal(err)
			}
			if res.Body != http.NoBody || g.conns[0].Reused != (i > 0) {
				t.Errorf("%s, %q: body %T, reused %v", tt.method, tt.answer, res.Body, g.conns[0].Reused)
			}
		}
	}
}

// An idle connection does not keep the contexts and bodies of earlier requests from being garbage collected.
func TestIdleConnectionKeepsNoRequest(t *testing.T) {
	addr := serve(t, func(n int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if req.Header.Get("Slow") != "" { // so that it gets a watcher
				<-time.After(3 * watchAfter)
			}
			io.WriteString(c, okAnswer)
		}
	})
	tr := newTransport(t, &Options{MaxPerHost: 1})
	const requests = 20
	var live atomic.Int32
	live.Store(requests)
	func() {
		var all sync.WaitGroup
		for i := range requests {
			all.Go(func() {
				type key struct{}
				value := new([64]byte)
				runtime.AddCleanup(value, func(live *atomic.Int32) { live.Add(-1) }, &live)
				ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, value))
				defer cancel()
				var body io.Reader = strings.NewReader("hello")
				if i%2 == 0 {
					body = hiddenReader{body}
				}
				req := newRequest(t, "POST", "http://"+addr+"/", body).WithContext(ctx)
				if i%5 == 0 {
					req.Header.Set("Slow", "1")
				}
				ask(t, tr, req)
			})
		}
		all.Wait()
	}()
	for end := time.Now().Add(10 * time.Second); live.Load() > 0; runtime.Gosched() {
		if runtime.GC(); time.Now().After(end) {
			t.Fatalf("%d of %d contexts are still there", live.Load(), requests)
		}
	}
	if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); !reused {
		t.Error("there was no idle connection")
	}
}

// If the server closes the connection while the body is sent, the round trip ends and the body is closed
// once.
func TestServerAbortsDuringBody(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		go io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	tr := newTransport(t, nil)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 10 {
				const length = 6 << 20
				body := &closeSignal{Reader: io.LimitReader(zeros{}, length), closed: make(chan bool)}
				req := newRequest(t, "POST", srv.URL, body)
				req.ContentLength = length
				if res, err := tr.RoundTrip(req); err == nil {
					t.Error(res.Status)
					res.Body.Close()
				}
				<-body.closed
			}
		})
	}
	all.Wait()
}

// closeSignal closes a channel on Close, and so panics on a second Close.
type closeSignal struct {
	io.Reader
	closed chan bool
}

func (c *closeSignal) Close() error { close(c.closed); return nil }

// The endless response of one request is the body of another request. The end of their context ends both.
func TestAnswerIsBodyOfAnother(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			io.Copy(io.Discard, r.Body)
			return
		}
		io.Copy(w, zeros{})
	}))
	defer srv.Close()
	tr := newTransport(t, nil)
	defer tr.CloseIdleConnections()
	cause := errors.New("left")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
	defer cancel()
	res, err := tr.RoundTrip(newRequest(t, "GET", srv.URL, nil).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.RoundTrip(newRequest(t, "PUT", srv.URL, res.Body).WithContext(ctx)); !errors.Is(err, cause) {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err == nil { // at the latest after what is in its buffer
		t.Error("the answer ended well")
	}
}

// The context of Dial has the values of the request's context.
func TestDialGetsTheContext(t *testing.T) {
	type key struct{}
	dialed := errors.New("dialed")
	tr := New(&Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ctx.Value(key{}) != "value" || network != "tcp" || addr != "a:80" {
			t.Error(ctx.Value(key{}), network, addr)
		}
		return nil, dialed
	}})
	req := newRequest(t, "GET", "http://a/", nil)
	if _, err := tr.RoundTrip(req.WithContext(context.WithValue(req.Context(), key{}, "value"))); !errors.Is(err, dialed) {
		t.Error(err)
	}
}

// A negative MaxIdlePerHost keeps no connection.
func TestNoIdleConnections(t *testing.T) {
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, &Options{MaxIdlePerHost: -1})
	for range 3 {
		if reused, _ := askReused(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); reused || len(tr.hosts) != 0 {
			t.Error(reused, len(tr.hosts))
		}
	}
}

// A handshake that fails is reported to the hook, with the error of the round trip.
func TestFailedHandshakeIsReported(t *testing.T) {
	url, _ := serveTLS(t, nil, answerAll(okAnswer))
	var started bool
	var reported error
	hooks := &Hooks{
		TLSHandshakeStart: func(any) { started = true },
		TLSHandshakeDone:  func(_ any, _ tls.ConnectionState, err error) { reported = err },
		GotConn:           gotHooks.GotConn,
	}
	var g got
	_, err := newTransport(t, nil).Do(newRequest(t, "GET", url, nil), Deadline{}, hooks, &g)
	if !started || reported == nil || !errors.Is(err, reported) || len(g.conns) != 0 {
		t.Error(started, reported, err, g.conns)
	}
}

// hangingConn is a connection whose Close blocks.
type hangingConn struct {
	net.Conn
	release chan bool
}

func (c hangingConn) Close() error { <-c.release; return c.Conn.Close() }

// An expired connection whose Close blocks does not delay other requests.
func TestHangingCloseHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial, release := pipes(answerAll(okAnswer)), make(chan bool)
		tr := New(&Options{IdleTimeout: time.Second, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			return hangingConn{c, release}, err
		}})
		ask(t, tr, newRequest(t, "GET", "http://a/", nil))
		time.Sleep(2 * time.Second)
		synctest.Wait() // the sweep hangs
		start := time.Now()
		if reused, body := askReused(t, tr, newRequest(t, "GET", "http://a/", nil)); reused || body != "ok" || time.Since(start) != 0 {
			t.Error(reused, body, time.Since(start))
		}
		close(release)
		tr.CloseIdleConnections()
		if synctest.Wait(); len(tr.hosts) != 0 {
			t.Error("hosts are left")
		}
	})
}
