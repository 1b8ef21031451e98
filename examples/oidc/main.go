// Oidc runs a resource server that has no login of its own behind a gateway, against a real OpenID provider
// that takes a new signing key every few seconds, all in one process on loopback. Clients send requests as
// fast as they can, each always with a fresh token; halfway the provider is away for a while; and a thief who
// copies every signing key goes on signing after it was withdrawn. A table says what came of it. The exit
// code is 0 when no valid token was refused, and the thief's were in the end.
//
//	go run ./examples/oidc
//	go run ./examples/oidc -ahead 0s -min-interval 5s            # valid tokens are refused: keys are published too late
//	go run ./examples/oidc -min-interval 0s -ahead 22s -for 30s  # NewOIDC, which asks every 10s at most
//	go run ./examples/oidc -zitadel                              # a provider that is not ours
//
// With -zitadel, the provider is the example server of github.com/zitadel/oidc/v3. A user logs in there by the code flow,
// and the gateway gets all that the provider issues: JSON Web Tokens and opaque tokens on one Authorization field, ID
// tokens and refresh tokens, which it refuses, and tokens of keys that were rotated. See zitadel.go.
//
// # How far ahead a provider has to publish its keys
//
// The gateway asks for the key set when three quarters of the answer's max-age (or of JWKSOptions.MaxAge) are
// over, and when a token names a key that it does not know, but never sooner than MinInterval after the last
// time: otherwise anybody could make it ask without end by sending nonsense. Call the longer of the two the
// period: MinInterval, where max-age is as small as here.
//
//   - A token whose key the gateway does not know waits at most 1s for MinInterval to pass. So a provider has
//     to publish a key MinInterval - 1s before its first use: 9s for NewOIDC, whose MinInterval is 10s, and
//     not at all ahead where MinInterval is at most 1s.
//   - Where the key set is sometimes out of reach for a time T, it is the period + MinInterval + T. Meanwhile
//     the last good set serves, also for tokens that the gateway has never seen, and an unknown key's get 503.
//   - A key must stay published until the last token that it signed has expired.
//   - A withdrawn key is believed for one period more, or until the key set is within reach again, and it is a
//     request that makes the gateway ask. Who withdraws keys because they were stolen wants a small MaxAge.
//
// Providers in the field publish their keys days ahead, and then the defaults are right. Those options matter
// that say how often is asked: MinInterval and MaxAge of JWKSOptions, and the provider's Cache-Control.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	p := plan{tokenLife: 3 * time.Second, maxAge: time.Second}
	flag.DurationVar(&p.length, "for", 10*time.Second, "how long the clients send requests")
	flag.DurationVar(&p.down, "down", 2*time.Second, "how long the provider is away meanwhile")
	flag.DurationVar(&p.rotate, "rotate", 2*time.Second, "how often the provider takes a new key")
	flag.DurationVar(&p.ahead, "ahead", 4*time.Second, "how long before its use a key is published")
	flag.DurationVar(&p.minInterval, "min-interval", 500*time.Millisecond, "the gateway's JWKSOptions.MinInterval; 0 takes NewOIDC, which has 10s")
	flag.IntVar(&p.clients, "clients", 8, "how many clients there are")
	zitadel := flag.Bool("zitadel", false, "log in at a provider that is not ours")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "oidc: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	p.tokenLife = max(p.tokenLife, p.down+time.Second) // so that there are valid tokens all the time
	if err := p.check(); err != nil {
		fmt.Fprintln(os.Stderr, "oidc:", err)
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := func() error { return run(ctx, p, os.Stdout) }
	if *zitadel {
		slog.SetDefault(slog.New(slog.DiscardHandler)) // that provider writes a line for each request
		start = func() error { return runForeign(ctx, os.Stdout) }
	}
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "oidc:", err)
		os.Exit(1)
	}
}
