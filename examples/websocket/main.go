// Websocket runs an echo server that speaks WebSocket behind a gateway, and a client before it, all in one
// process on loopback: text, binary, a large message, ping, closes from both ends, a page of another site that is
// refused, a limit on new connections, and what happens to open connections when the gateway drains.
//
//	go run ./examples/websocket
//
// The gateway itself is newGateway; the rest shows what it does.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"github.com/seed-96248d0c/gateway"
)

// newGateway limits how often one address may connect, not what it sends once it has.
func newGateway(echo string, connects gateway.Limiter, log *slog.Logger) http.Handler {
	upstream := gateway.NewUpstream("echo", gateway.MustTargets(echo), nil)
	var rt gateway.Router
	rt.Use(
		gateway.Observe(&gateway.ObserveOptions{Logger: log}),
		gateway.RateLimit(connects, gateway.KeyByIP, nil),
	)
	// A WebSocket server compares a browser's Origin with the Host: let it see the one that the browser asked for.
	rt.Handle("GET /echo", gateway.Proxy(upstream, &gateway.ProxyOptions{PreserveHost: true}))
	return &rt
}

// mostMessage is the largest message that either end takes.
const mostMessage = 4 << 20

// backend sends every message back, and closes with its own status when it is told to.
type backend struct {
	closed chan websocket.StatusCode // with what each connection ended
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(mostMessage)
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			b.closed <- websocket.CloseStatus(err)
			return
		}
		if string(message) == "go away" {
			b.closed <- 4001
			_ = conn.Close(4001, "as you wish")
			return
		}
		if conn.Write(r.Context(), kind, message) != nil {
			b.closed <- -1
			return
		}
	}
}

// burst is how many connections an address may open at once: as many as the demonstration needs.
const burst = 5

// run shows everything. Its error says what was not as it must be.
func run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	echo := &backend{closed: make(chan websocket.StatusCode, burst)}
	echoAt, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	echoServer := &http.Server{Handler: echo, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = echoServer.Serve(echoAt) }()
	defer echoServer.Close()

	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	connects := gateway.NewTokenBucket(0.001, burst, nil)
	srv := &http.Server{
		Handler:           newGateway("http://"+echoAt.Addr().String(), connects, log),
		ReadHeaderTimeout: 5 * time.Second,
	}
	serving, drain := context.WithCancel(ctx)
	defer drain()
	served := make(chan error, 1)
	go func() {
		served <- gateway.Serve(serving, srv, &gateway.ServeOptions{Listener: front, Drain: 10 * time.Second})
	}()

	d := &demo{url: "http://" + front.Addr().String() + "/echo", echo: echo, drain: drain, served: served}
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"messages", d.messages},
		{"client closes", d.clientCloses},
		{"server closes", d.serverCloses},
		{"another site's page", d.otherSite},
		{"drain", d.drained},
	} {
		said, err := step.do(ctx)
		if err != nil {
			drain()
			<-served
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(out, "%-20s %s\n", step.name, said)
	}
	fmt.Fprintln(out, "All of it went through the gateway, and nothing is left open.")
	return nil
}

// demo is the client.
type demo struct {
	url    string
	echo   *backend
	drain  func()       // makes the gateway stop
	served <-chan error // tells that it has
}

func (d *demo) dial(ctx context.Context) (*websocket.Conn, error) {
	conn, _, err := websocket.Dial(ctx, d.url, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {d.url}}})
	if err != nil {
		return nil, err
	}
	conn.SetReadLimit(mostMessage)
	return conn, nil
}

func (d *demo) messages(ctx context.Context) (string, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.CloseNow()
	for _, m := range []struct {
		kind websocket.MessageType
		data []byte
	}{
		{websocket.MessageText, []byte("grüß Gott")},
		{websocket.MessageBinary, []byte{0, 0x88, 2, 0xff}}, // looks like a close frame, and is none
		{websocket.MessageText, nil},
		{websocket.MessageBinary, bytes.Repeat([]byte("0123456789abcdef"), 3<<16)}, // 3 MiB
	} {
		if err := echoed(ctx, conn, m.kind, m.data); err != nil {
			return "", err
		}
	}
	// A pong is noticed by a reader alone.
	reading := conn.CloseRead(ctx)
	if err := conn.Ping(ctx); err != nil {
		return "", fmt.Errorf("ping: %w", err)
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		return "", err
	}
	<-reading.Done()
	return "text, binary, an empty and one of 3 MiB came back; a ping got its pong", d.backendSaw(ctx, websocket.StatusNormalClosure)
}

func echoed(ctx context.Context, conn *websocket.Conn, kind websocket.MessageType, data []byte) error {
	// Both at once: a message that fits into no buffer comes back while it is still being sent.
	sent := make(chan error, 1)
	go func() { sent <- conn.Write(ctx, kind, data) }()
	gotKind, got, err := conn.Read(ctx)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if gotKind != kind || !bytes.Equal(got, data) {
		return fmt.Errorf("%v of %d bytes came back as %v of %d", kind, len(data), gotKind, len(got))
	}
	return nil
}

func (d *demo) clientCloses(ctx context.Context) (string, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.CloseNow()
	if err := conn.Close(4000, "done here"); err != nil { // waits for the other end's close
		return "", err
	}
	return "the server sees its status 4000", d.backendSaw(ctx, 4000)
}

func (d *demo) serverCloses(ctx context.Context) (string, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte("go away")); err != nil {
		return "", err
	}
	_, _, err = conn.Read(ctx)
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != 4001 || closed.Reason != "as you wish" {
		return "", fmt.Errorf("no close with 4001: %v", err)
	}
	return "the client sees its status 4001 and its reason", d.backendSaw(ctx, 4001)
}

func (d *demo) otherSite(ctx context.Context) (string, error) {
	_, res, err := websocket.Dial(ctx, d.url, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://evil.example"}}})
	if err == nil || res == nil || res.StatusCode != http.StatusForbidden {
		return "", fmt.Errorf("not refused with 403: %v", err)
	}
	return "refused with 403 by the server, which is shown the Host that the browser asked", nil
}

// drained is last: the gateway is gone after it.
func (d *demo) drained(ctx context.Context) (string, error) {
	conn, err := d.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.CloseNow()
	if err := echoed(ctx, conn, websocket.MessageText, []byte("still here")); err != nil {
		return "", err
	}
	_, res, err := websocket.Dial(ctx, d.url, nil)
	if err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests {
		return "", fmt.Errorf("connection %d not refused with 429: %v", burst+1, err)
	}
	if err := echoed(ctx, conn, websocket.MessageText, []byte("what is open stays open")); err != nil {
		return "", err
	}

	d.drain()
	_, _, err = conn.Read(ctx)
	if code := websocket.CloseStatus(err); code != websocket.StatusGoingAway {
		return "", fmt.Errorf("the client saw no close with 1001: %v", err)
	}
	if err := d.backendSaw(ctx, websocket.StatusGoingAway); err != nil {
		return "", err
	}
	if err := <-d.served; err != nil {
		return "", err
	}
	return fmt.Sprintf("connection %d gets 429; when the gateway stops, both ends of the open one get a close with 1001", burst+1), nil
}

// backendSaw waits for the end of the connection at the server.
func (d *demo) backendSaw(ctx context.Context, want websocket.StatusCode) error {
	select {
	case got := <-d.echo.closed:
		if got != want {
			return fmt.Errorf("the server saw a close with %d instead of %d", got, want)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the server saw no close: %w", context.Cause(ctx))
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "websocket:", err)
		os.Exit(1)
	}
}
