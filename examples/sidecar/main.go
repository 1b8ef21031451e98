// Sidecar is the mesh half of the pattern. Two services speak plain HTTP on loopback, each with this library
// as its sidecar: what comes in from another host, and what goes out to one, passes it. Sidecars speak mTLS
// with certificates that are replaced while they run, retry, and tell who calls. A gateway lets in those
// outside.
//
//	client → gateway ⇒ orders' sidecar → orders → orders' sidecar ⇒ stock's sidecar → stock      (⇒ is mTLS)
//
//	go run ./examples/sidecar          # serves until Ctrl-C, and prints what to try
//	go run ./examples/sidecar -check   # tries it all by itself
//
// In earnest each sidecar is a process beside its service. Here all are in one. The sidecar is in sidecar.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/internal/certs"
)

func main() {
	checkOnly := flag.Bool("check", false, "try everything, print a table, and end")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	run := serve
	if *checkOnly {
		run = check
	}
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sidecar:", err)
		os.Exit(1)
	}
}

// serve runs everything until ctx ends.
func serve(ctx context.Context, out io.Writer) error {
	s, err := start(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "curl -i -H 'X-API-Key: key of alice' %s/orders/7\n", s.gateway)
	<-ctx.Done()
	return s.close()
}

// stack is all that runs in this process.
type stack struct {
	authority *certs.Authority
	dir       string // of certificates
	gateway   string // its URL
	orders    string // of its sidecar, for other hosts
	stock     string
	failures  atomic.Int32 // of the stock service to come
	hosts     map[string]mesh
	stop      context.CancelFunc
	ended     []<-chan error
}

// start starts the hosts from the last to the first. The name of a log line's hop is in its attribute hop.
func start(ctx context.Context, logger *slog.Logger) (s *stack, err error) {
	s = new(stack)
	ctx, s.stop = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.authority, err = certs.NewAuthority("mesh"); err != nil {
		return s, err
	}
	if s.dir, err = os.MkdirTemp("", "sidecar"); err != nil {
		return s, err
	}
	hosts := make(map[string]mesh)
	s.hosts = hosts
	for _, name := range []string{"gateway", "orders", "stock"} {
		files, err := issue(s.authority, s.dir, name)
		if err != nil {
			return s, err
		}
		if hosts[name], err = newMesh(files, s.authority.Pool()); err != nil {
			return s, err
		}
	}
	hop := func(name string) *slog.Logger { return logger.With("hop", name) }

	stock, err := s.listen(ctx, &http.Server{Handler: newStock(&s.failures)})
	if err != nil {
		return s, err
	}
	s.stock, err = s.listen(ctx, &http.Server{
		Handler: inbound(stock, hop("stock in"), "orders"), TLSConfig: hosts["stock"].server(), ErrorLog: quiet(),
	})
	if err != nil {
		return s, err
	}
	out, err := s.listen(ctx, &http.Server{Handler: outbound(hosts["orders"].upstream("stock", s.stock), hop("orders out"))})
	if err != nil {
		return s, err
	}
	orders, err := s.listen(ctx, &http.Server{Handler: newOrders(out)})
	if err != nil {
		return s, err
	}
	s.orders, err = s.listen(ctx, &http.Server{
		Handler: inbound(orders, hop("orders in"), "gateway"), TLSConfig: hosts["orders"].server(), ErrorLog: quiet(),
	})
	if err != nil {
		return s, err
	}
	s.gateway, err = s.listen(ctx, &http.Server{
		Handler: newGateway(hosts["gateway"].upstream("orders", s.orders), hop("gateway")),
	})
	return s, err
}

// listen serves on loopback until ctx ends, and returns the URL.
func (s *stack) listen(ctx context.Context, srv *http.Server) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	scheme := "http://"
	if srv.TLSConfig != nil {
		scheme = "https://"
	}
	ended := make(chan error, 1)
	go func() { ended <- gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l}) }()
	s.ended = append(s.ended, ended)
	return scheme + l.Addr().String(), nil
}

// close drains and stops all.
func (s *stack) close() error {
	s.stop()
	http.DefaultClient.CloseIdleConnections() // of orders
	var errs []error
	for _, ended := range s.ended {
		errs = append(errs, <-ended)
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// quiet is for handshakes that fail as they must.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
