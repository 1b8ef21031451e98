// Cluster runs three gateways that share one limit and the news of a circuit through Redis. It starts a redis-server from
// the PATH, the gateways and a backend, all on loopback:
//
//	go run ./examples/cluster          # serves until Ctrl-C, and prints what to try
//	go run ./examples/cluster -check   # tries it all by itself, and kills Redis meanwhile
//
// One gateway is newGateway in gateway.go. In production each runs on a machine of its own; here they are in one process,
// but share nothing except Redis.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	checkOnly := flag.Bool("check", false, "try everything, print a table, and end")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "cluster: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	run := serve
	if *checkOnly {
		run = check
	}
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// serve runs everything until ctx ends.
func serve(ctx context.Context, out io.Writer) error {
	s, err := start(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer s.close()
	fmt.Fprintf(out, "Three gateways let each user pass %d times a minute, all together.\n\n", perMinute)
	fmt.Fprintf(out, "# ask them in turn: ten pass, then 429 with Retry-After\n")
	fmt.Fprintf(out, "for i in 1 2 3 4; do for gw in %s %s %s; do curl -si -H 'X-User: alice' $gw/hello | head -1; done; done\n\n",
		s.gateways[0].url, s.gateways[1].url, s.gateways[2].url)
	fmt.Fprintf(out, "# kill Redis, and ask again as another user: each gateway has a share of the limit\nkill -9 %d\n\n", s.redis.pid())
	fmt.Fprintf(out, "# break the backend: three failures at one gateway open the circuit of all\ncurl -X POST %s/break\n\n", s.backend.url)
	<-ctx.Done()
	return nil
}
