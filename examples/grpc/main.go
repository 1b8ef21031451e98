// Grpc runs a gRPC server behind a gateway, and a gRPC client before it, all in one process on loopback, without
// TLS: unary calls, streams of the server and both ways, metadata, status with details, deadlines, cancelled
// calls, refusals, health, and what happens to an open stream when the gateway drains.
//
//	go run ./examples/grpc
//
// The gateway itself is newGateway and newServer, with status.go; the rest shows what they do.
package main

import (
	"context"
	"crypto/sha256"
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

	"github.com/seed-96248d0c/gateway"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// newGateway lets everybody ask how the server is, and asks for a key where there is work to do.
func newGateway(target string, transport http.RoundTripper, keys map[string]string, log *slog.Logger) http.Handler {
	upstream := gateway.NewUpstream("words", gateway.MustTargets(target), &gateway.UpstreamOptions{
		Transport: transport,
		// A stream may have nothing to say for long, and then its headers wait as well. What ends a call is the
		// client's own deadline, if it has one.
		Timeout: -1,
	})
	// A stream of the client is one request body, however long: what is limited is each message, by the server.
	proxy := gateway.Proxy(upstream, &gateway.ProxyOptions{MaxBodyBytes: -1})

	hashed := make(map[[sha256.Size]byte]*gateway.Identity, len(keys))
	for key, subject := range keys {
		hashed[sha256.Sum256([]byte(key))] = &gateway.Identity{Subject: subject}
	}
	auth := gateway.Auth(gateway.APIKeys("x-api-key", func(_ context.Context, key [sha256.Size]byte) (*gateway.Identity, error) {
		return hashed[key], nil
	}), nil)

	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Logger: log}), statusErrors, deadlines)
	rt.Handle("POST /"+service+"/{method}", proxy, auth)
	rt.Handle("POST /"+grpc_health_v1.Health_ServiceDesc.ServiceName+"/{method}", proxy)
	return &rt
}

// newServer speaks HTTP/2 without TLS, and HTTP/1.1 beside it. With TLS it would need nothing: there HTTP/2 is
// on by default.
func newServer(h http.Handler) *http.Server {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// run shows everything. Its error says what was not as it must be.
func run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()

	back, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w := &words{ended: make(chan error, 1)}
	server := grpc.NewServer()
	server.RegisterService(&description, w)
	state := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	go func() { _ = server.Serve(back) }()
	defer server.Stop()

	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	transport := gateway.NewTransport(nil)
	defer (&http.Client{Transport: transport}).CloseIdleConnections()
	srv := newServer(newGateway("h2c://"+back.Addr().String(), transport, map[string]string{"secret": "alice"}, log))
	draining := make(chan struct{})
	srv.RegisterOnShutdown(func() { close(draining) })
	serving, drain := context.WithCancel(ctx)
	defer drain()
	served := make(chan error, 1)
	go func() {
		served <- gateway.Serve(serving, srv, &gateway.ServeOptions{Listener: front, Drain: 10 * time.Second})
	}()

	conn, err := grpc.NewClient(front.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		defer conn.Close()
		c := &client{conn: conn, words: w, health: state, drain: func() { drain(); <-draining }}
		err = c.tryAll(ctx, out)
	}
	drain()
	if err := errors.Join(err, <-served); err != nil {
		return err
	}
	fmt.Fprintln(out, "All of it went through the gateway, which has drained and stopped.")
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "grpc:", err)
		os.Exit(1)
	}
}
