// Arena is a page to teach with: rate limits, a circuit breaker and the router, to be played with in a browser.
// What it shows is the library at work, and no simulation: bursts pass real limiters, calls a real circuit, and
// the rules that a visitor writes become a real Router.
//
//	go run ./examples/arena    # and open the URL that it prints
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed-96248d0c/gateway"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8090", "where the arena listens")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	if err := run(ctx, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "arena:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (choose another address with -addr)", err)
	}
	fmt.Printf("Arena: http://%s/\n", l.Addr())
	srv := &http.Server{Handler: newArena(ctx)}
	return gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l})
}
