// Tableflip replaces a gateway's binary without losing a request, by github.com/cloudflare/tableflip. On
// SIGHUP the binary is started anew and inherits the listener. When the new process is ready, the old one
// stops to accept and drains. If the new one does not start, the old one goes on.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloudflare/tableflip"

	"github.com/seed-96248d0c/gateway"
)

// run serves h on addr until ctx ends or another process has taken over.
func run(ctx context.Context, addr string, h http.Handler, out io.Writer) error {
	upgrader, err := tableflip.New(tableflip.Options{}) // with a PIDFile for systemd
	if err != nil {
		return err
	}
	defer upgrader.Stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		for range hangup {
			if err := upgrader.Upgrade(); err != nil {
				log.Print("the upgrade failed, this process goes on: ", err)
			}
		}
	}()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		<-upgrader.Exit()
		stop()
	}()

	l, err := upgrader.Listen("tcp", addr) // inherited, if there is a process to inherit from
	if err != nil {
		return err
	}
	if err := upgrader.Ready(); err != nil { // connections wait in the listener until Serve accepts them
		return err
	}
	fmt.Fprintln(out, os.Getpid(), l.Addr())
	return gateway.Serve(ctx, &http.Server{Handler: h}, &gateway.ServeOptions{Listener: l})
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	if err := run(ctx, "127.0.0.1:8080", gateway.Proxy(backend, nil), os.Stdout); err != nil {
		log.Fatal(err)
	}
}
