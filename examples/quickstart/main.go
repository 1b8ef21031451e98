// Quickstart runs a whole gateway and all that it needs in one process on loopback: an identity provider,
// the backends of a streaming service, and the gateway before them.
//
//	go run ./examples/quickstart          # serves until Ctrl-C, and prints what to try
//	go run ./examples/quickstart -check   # tries it all by itself, on ports of its own
//
// The gateway itself is newGateway in gateway.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/seed-96248d0c/gateway"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "where the gateway listens")
	ops := flag.String("ops", "127.0.0.1:9464", "where its console and its metrics are served")
	checkOnly := flag.Bool("check", false, "try everything on free ports, print a table, and end")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	var err error
	if *checkOnly {
		err = check(ctx, os.Stdout)
	} else {
		err = serve(ctx, *addr, *ops, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// serve runs everything until ctx ends.
func serve(ctx context.Context, addr, ops string, out io.Writer) error {
	s, err := start(addr, ops, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.help(out); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { fmt.Fprintln(out, "\nDraining. Once more kills.") })
	if err := s.serve(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "Stopped.")
	return nil
}

// stack is all that runs in this process.
type stack struct {
	idp      *identityProvider
	backends map[string]*backend
	handler  http.Handler // the gateway
	listener net.Listener // its
	gateway  string       // its URL
	ops      string       // URL of the server for operators: /console/ and /metrics
	meter    *metric.MeterProvider
	servers  []*http.Server // all but the gateway's
}

// start starts everything but the gateway, whose port it takes already.
func start(addr, opsAddr string, log *slog.Logger) (s *stack, err error) {
	s = &stack{backends: newBackends()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.listener, err = net.Listen("tcp", addr); err != nil {
		return s, fmt.Errorf("the gateway cannot listen: %w (choose another address with -addr)", err)
	}
	s.gateway = urlOf(s.listener)

	// A registry of its own, so that the page shows the gateway and nothing else.
	registry := prometheus.NewRegistry()
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry))
	if err != nil {
		return s, err
	}
	s.meter = metric.NewMeterProvider(metric.WithReader(exporter))

	if s.idp, err = newIdentityProvider(); err != nil {
		return s, err
	}
	if s.idp.url, err = s.listen("127.0.0.1:0", s.idp); err != nil {
		return s, err
	}
	for _, b := range s.backends {
		if b.url, err = s.listen("127.0.0.1:0", b); err != nil {
			return s, err
		}
	}
	var console http.Handler
	s.handler, console, err = newGateway(settings{
		issuer:   s.idp.url,
		keySet:   s.idp.url + "/.well-known/jwks.json",
		audience: audience,
		backends: func(name string) string { return s.backends[name].url },
		log:      log,
		meter:    s.meter,
	})
	if err != nil {
		return s, err
	}
	// Operators have a listener of their own, which clients of the gateway cannot reach.
	mux := http.NewServeMux()
	mux.Handle("/console/", http.StripPrefix("/console", console))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if s.ops, err = s.listen(opsAddr, mux); err != nil {
		return s, fmt.Errorf("the console and the metrics cannot listen: %w (choose another address with -ops)", err)
	}
	return s, nil
}

// serve runs the gateway until ctx ends and its requests are drained.
func (s *stack) serve(ctx context.Context) error {
	srv := &http.Server{Handler: s.handler, ReadHeaderTimeout: 5 * time.Second}
	return gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: s.listener, Drain: 15 * time.Second})
}

// listen serves h on addr until close, and returns its URL.
func (s *stack) listen(addr string, h http.Handler) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	s.servers = append(s.servers, srv)
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "quickstart:", err)
		}
	}()
	return urlOf(l), nil
}

func (s *stack) close() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	for _, srv := range s.servers {
		_ = srv.Close()
	}
	if s.meter != nil {
		_ = s.meter.Shutdown(context.Background())
	}
}

// urlOf is where a client on this machine finds l.
func urlOf(l net.Listener) string {
	a := l.Addr().(*net.TCPAddr)
	if a.IP.IsUnspecified() {
		return fmt.Sprintf("http://localhost:%d", a.Port)
	}
	return "http://" + a.String()
}

// help prints what to try. The token, which is good for hours, is long: it is exported once, so that the
// commands are short.
func (s *stack) help(out io.Writer) error {
	token, err := s.idp.token(s.idp.claims("alice", "pay"))
	if err != nil {
		return err
	}
	const auth = ` -H "Authorization: Bearer $TOKEN"`
	payments := s.backends["payments"].url
	fmt.Fprintf(out, "Console: %s/console/\n\n# Paste this first: alice's token.\nexport TOKEN=%s\n\n", s.ops, token)
	for _, try := range []struct{ what, curl string }{
		{"one user; \"told\" is what the backend gets, whatever you send", "-i " + s.gateway + "/users/7" + auth},
		{"the same without a token: 401", "-i " + s.gateway + "/users/7"},
		{"pay: five at once, then one every two seconds, else 429", "-i -X POST " + s.gateway + "/checkout" + auth},
		{"break payments: three failures open the circuit, which answers 503", "-X POST " + payments + "/break"},
		{"heal payments: the circuit tries again after two seconds", "-X POST " + payments + "/heal"},
		{"the home page: five answers joined into one", s.gateway + "/homepage" + auth},
		{"the same for a phone", s.gateway + "/mobile/homepage" + auth},
		{"a slow one: press Ctrl-C meanwhile, and it still gets its answer", "-i '" + s.gateway + "/users/7?wait=5s'" + auth},
		{"the metrics, in Prometheus' format", s.ops + "/metrics"},
	} {
		fmt.Fprintf(out, "# %s\ncurl %s\n", try.what, try.curl)
	}
	fmt.Fprintf(out, "\nThe gateway listens on %s. Its access log follows; Ctrl-C drains and stops.\n\n", s.gateway)
	return nil
}
