package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// plan is what happens in a run.
type plan struct {
	length      time.Duration // how long the clients send requests
	down        time.Duration // how long the provider is away meanwhile
	rotate      time.Duration // how long a key is used
	ahead       time.Duration // how long before its use it is published
	tokenLife   time.Duration // from a token's issue to its expiry
	maxAge      time.Duration // in the key set's Cache-Control, whole seconds
	minInterval time.Duration // the gateway's; 0 takes NewOIDC
	clients     int
}

func (p plan) check() error {
	switch {
	case p.length <= 0 || p.rotate <= 0 || p.clients <= 0:
		return errors.New("-for, -rotate and -clients must be positive")
	case p.down < 0 || p.ahead < 0 || p.minInterval < 0:
		return errors.New("-down, -ahead and -min-interval must not be negative")
	}
	return nil
}

// keep is how long a key stays published after its use: until its last token has expired.
func (p plan) keep() time.Duration { return p.tokenLife }

// period is after how long the gateway asks for the key set again.
func (p plan) period() time.Duration {
	if p.minInterval == 0 {
		return max(10*time.Second, p.maxAge*3/4) // as NewOIDC has it
	}
	return max(p.minInterval, p.maxAge*3/4)
}

// run runs everything and prints the table. Its error says that something was not as it must be.
func run(ctx context.Context, p plan, out io.Writer) error {
	issuer := &provider{plan: p, made: make(map[int]*ecdsa.PrivateKey)}
	var close func()
	var err error
	if issuer.url, close, err = listen(issuer); err != nil {
		return err
	}
	defer close()
	resource, close, err := listen(http.HandlerFunc(notes))
	if err != nil {
		return err
	}
	defer close()
	issuer.start = time.Now()
	handler, err := newGateway(ctx, issuer.url, p.minInterval, resource)
	if err != nil {
		return err
	}
	front, close, err := listen(handler)
	if err != nil {
		return err
	}
	defer close()

	transport := &http.Transport{MaxIdleConnsPerHost: 2 * p.clients}
	defer transport.CloseIdleConnections()
	l := &load{provider: issuer, notes: front + "/notes", http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	l.run(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l.print(out)
	return l.verdict(out)
}

// listen serves h on a free port of this machine.
func listen(h http.Handler) (address string, close func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "oidc:", err)
		}
	}()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}
