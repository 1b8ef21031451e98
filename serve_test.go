package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// start runs gateway.Serve and returns its address, the way to stop it and what it returned.
func start(t *testing.T, srv *http.Server, opts *gateway.ServeOptions) (addr string, stop func(), done chan error) {
	t.Helper()
	if opts == nil {
		opts = &gateway.ServeOptions{}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Listener = l
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan error, 1)
	go func() { done <- gateway.Serve(ctx, srv, opts) }()
	t.Cleanup(func() { cancel(); srv.Close() })
	return l.Addr().String(), cancel, done
}

func TestServeDrainsRequests(t *testing.T) {
	entered, release := make(chan bool), make(chan bool)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- true
		<-release
		if r.Context().Err() != nil {
			t.Error("the request's context ended with Serve's")
		}
		io.WriteString(w, "whole")
	})}
	addr, stop, done := start(t, srv, nil)
	got := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + addr)
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		got <- string(body)
	}()
	<-entered
	stop()
	select {
	case err := <-done:
		t.Fatalf("returned with a request in flight: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if body := <-got; body != "whole" {
		t.Errorf("got %q", body)
	}
}

func TestServeClosesWhatIsLeft(t *testing.T) {
	entered, left := make(chan bool), make(chan bool)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upgrade" {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			rw.Flush()
			entered <- true
			io.Copy(io.Discard, conn)
			conn.Close()
			left <- true
			return
		}
		entered <- true
		<-r.Context().Done()
		left <- true
	})}
	addr, stop, done := start(t, srv, &gateway.ServeOptions{Drain: 20 * time.Millisecond})
	go func() {
		if res, err := http.Get("http://" + addr); err == nil {
			res.Body.Close()
		}
	}()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	<-entered
	<-entered
	stop()
	<-left
	<-left
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeWaitsForUpgradedConnections(t *testing.T) {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		go func() { // as WebSocket libraries may: the handler has returned
			io.WriteString(conn, "hello")
			io.Copy(conn, conn)
			conn.Close()
		}()
	})}
	addr, stop, done := start(t, srv, nil)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	echo := make([]byte, 1)
	if _, err := io.ReadFull(conn, make([]byte, len("hello"))); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case err := <-done:
		t.Fatalf("returned before the connection was closed: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, echo); err != nil {
		t.Errorf("the connection was cut: %v", err)
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeReady(t *testing.T) {
	srv := &http.Server{Handler: text("app")}
	addr, stop, done := start(t, srv, &gateway.ServeOptions{Ready: "/ready", Delay: 3 * time.Second})
	if res := get(t, "http://"+addr+"/ready"); res.StatusCode != 200 {
		t.Errorf("ready: %d", res.StatusCode)
	}
	if res := get(t, "http://"+addr+"/x"); res.StatusCode != 200 {
		t.Errorf("app: %d", res.StatusCode)
	}
	stop()
	// Within Delay it still serves, and says that it is going.
	if res := get(t, "http://"+addr+"/ready"); res.StatusCode != 503 {
		t.Errorf("after the end of the context: %d", res.StatusCode)
	}
	if res := get(t, "http://"+addr+"/x"); res.StatusCode != 200 {
		t.Errorf("app after the end of the context: %d", res.StatusCode)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServePortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = gateway.Serve(context.Background(), &http.Server{Addr: l.Addr().String()}, nil)
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v", err)
	}
}

func TestServeTLS(t *testing.T) {
	borrowed := httptest.NewUnstartedServer(nil) // for its certificate
	borrowed.StartTLS()
	defer borrowed.Close()
	srv := &http.Server{Handler: text("secret"), TLSConfig: &tls.Config{Certificates: borrowed.TLS.Certificates}}
	addr, stop, done := start(t, srv, nil)
	client := borrowed.Client()
	res, err := client.Get("https://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "secret" {
		t.Errorf("got %q", body)
	}
	client.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestServeSaysGoodbyeToWebSockets drains a gateway with a WebSocket through it: both ends are told, and
// nobody has to wait for the end of Drain.
func TestServeSaysGoodbyeToWebSockets(t *testing.T) {
	told := make(chan []byte, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.WriteString(conn, "\x81\x05hello")
		frame := make([]byte, 8)
		io.ReadFull(rw, frame)
		told <- frame
	}))
	proxy := gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil)
	addr, stop, done := start(t, &http.Server{Handler: proxy}, &gateway.ServeOptions{Drain: time.Hour})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(deadline())
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(conn)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
		t.Fatalf("got %v, %v", res, err)
	}
	hello := make([]byte, 7)
	if _, err := io.ReadFull(br, hello); err != nil || string(hello) != "\x81\x05hello" {
		t.Fatalf("got %q, %v", hello, err)
	}
	stop()
	goodbye := make([]byte, 4)
	if _, err := io.ReadFull(br, goodbye); err != nil || string(goodbye) != "\x88\x02\x03\xe9" {
		t.Errorf("client was sent % x, %v", goodbye, err)
	}
	if frame := <-told; frame[0] != 0x88 || frame[1] != 0x82 || frame[6]^frame[2] != 0x03 || frame[7]^frame[3] != 0xe9 {
		t.Errorf("backend was sent % x", frame)
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestServeWaitsForHandlersOfUpgrades: when the connection is closed, what stands around the Proxy still has to
// log it.
func TestServeWaitsForHandlersOfUpgrades(t *testing.T) {
	closed, logged := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
		close(closed)
		<-logged
	})}
	addr, stop, done := start(t, srv, nil)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	<-closed
	stop()
	select {
	case err := <-done:
		t.Errorf("returned before the handler: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(logged)
	if !t.Failed() {
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// TestServeCutIsNotTheClientsCancel: what Serve cuts off at the end of Drain is logged before Serve returns, and not as a
// client that left.
func TestServeCutIsNotTheClientsCancel(t *testing.T) {
	for _, tt := range []struct{ name, path, status string }{
		{"a stream", "/stream", "200"},
		{"an answer that has not begun", "/silent", "503"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entered := make(chan bool, 1)
			backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stream" {
					w.Write([]byte("begun"))
					w.(http.Flusher).Flush()
				}
				entered <- true
				<-r.Context().Done()
			}))
			journal, observe := observed()
			proxy := gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil)
			addr, stop, done := start(t, &http.Server{Handler: observe(proxy)}, &gateway.ServeOptions{Drain: 50 * time.Millisecond})
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "GET "+tt.path+" HTTP/1.1\r\nHost: x\r\n\r\n")
			<-entered
			if tt.path == "/stream" {
				conn.SetDeadline(deadline())
				if _, err := readHead(bufio.NewReader(conn)); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if err := <-done; err != nil {
				t.Errorf("Serve: %v", err)
			}
			select {
			case line := <-journal:
				if line["outcome"] != "rejected" || line["status"] != tt.status {
					t.Errorf("logged %v", line)
				}
			default:
				t.Error("Serve returned before the request was logged")
			}
		})
	}
}

// TestServeDelayEndsWithTheServer: nobody waits for the rest of Delay when the server has died.
func TestServeDelayEndsWithTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- gateway.Serve(ctx, &http.Server{}, &gateway.ServeOptions{Listener: l, Delay: time.Hour})
	}()
	stop()
	l.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(time.Until(deadline())):
		t.Error("Serve waits for the end of Delay")
	}
}

func TestServeDefaults(t *testing.T) {
	type limits struct {
		readHeader, idle time.Duration
		maxHeader        int
	}
	for _, tt := range []struct{ given, want limits }{
		{limits{}, limits{10 * time.Second, 2 * time.Minute, 64 << 10}},
		{limits{1, 2, 3}, limits{1, 2, 3}},
		{limits{-1, -1, 0}, limits{-1, -1, 64 << 10}},
	} {
		srv := &http.Server{ReadHeaderTimeout: tt.given.readHeader, IdleTimeout: tt.given.idle, MaxHeaderBytes: tt.given.maxHeader}
		ctx, stop := context.WithCancel(context.Background())
		stop()
		if err := gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: must(net.Listen("tcp", "127.0.0.1:0"))}); err != nil {
			t.Fatal(err)
		}
		if got := (limits{srv.ReadHeaderTimeout, srv.IdleTimeout, srv.MaxHeaderBytes}); got != tt.want {
			t.Errorf("%v became %v, want %v", tt.given, got, tt.want)
		}
	}
}

// TestServeSaysGoodbyePastAClientThatDoesNotRead: a WebSocket's backend is asked to leave although the bytes to its
// client are stuck.
func TestServeSaysGoodbyePastAClientThatDoesNotRead(t *testing.T) {
	stuck, goodbye := make(chan bool), make(chan []byte, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		frame := append([]byte{0x82, 126, 0xff, 0xff}, make([]byte, 0xffff)...)
		for conn.SetWriteDeadline(time.Now().Add(200*time.Millisecond)) == nil {
			if _, err := conn.Write(frame); err != nil {
				break // nobody takes any more
			}
		}
		close(stuck)
		answer := make([]byte, 8)
		io.ReadFull(rw, answer)
		goodbye <- answer
	}))
	proxy := gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil)
	addr, stop, done := start(t, &http.Server{Handler: proxy}, &gateway.ServeOptions{Drain: 2 * time.Second})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	<-stuck
	stop()
	select {
	case frame := <-goodbye:
		if frame[0] != 0x88 {
			t.Errorf("the backend was sent % x", frame)
		}
	case <-time.After(time.Until(deadline())):
		t.Error("the backend was not asked to leave")
	}
	conn.Close()
	<-done
}

// TestServeForgetsConnectionsClosedBeforeTheirHijack: a connection that is closed before a handler takes it over is
// not waited for.
func TestServeForgetsConnectionsClosedBeforeTheirHijack(t *testing.T) {
	type connKey struct{}
	hijacked := make(chan error, 1)
	srv := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(connKey{}).(net.Conn).Close()
			_, _, err := http.NewResponseController(w).Hijack()
			hijacked <- err
		}),
	}
	addr, stop, done := start(t, srv, &gateway.ServeOptions{Drain: time.Hour})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if err := <-hijacked; err != nil {
		t.Fatalf("Hijack: %v", err)
	}
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(time.Until(deadline())):
		t.Error("Serve waits for a connection that is closed")
	}
}
