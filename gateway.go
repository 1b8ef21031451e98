// Package gateway holds composable net/http middleware and a Router from which a service builds its own API
// gateway. A complete example:
//
//	keys, err := gateway.NewJWKS("https://id.example/.well-known/jwks.json", nil)
//	if err != nil {
//		log.Fatal(err)
//	}
//	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: "https://id.example", Audience: "api", Algorithms: []string{"RS256"}})
//
//	users := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1:80", "http://10.0.0.2:80"), nil)
//	payments := gateway.NewUpstream("payments", gateway.MustTargets("http://10.0.0.5:80"), &gateway.UpstreamOptions{
//		Timeout: 2 * time.Second,
//		Circuit: gateway.NewCircuit("payments", nil),
//	})
//
//	var rt gateway.Router
//	rt.Use(
//		gateway.Observe(&gateway.ObserveOptions{Logger: slog.Default()}),
//		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
//		gateway.Auth(tokens, nil),
//		gateway.RateLimit(gateway.NewTokenBucket(10, 20, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
//	)
//	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil))
//	rt.Handle("POST /checkout", gateway.Proxy(payments, nil), gateway.RequireScopes("pay"))
//	rt.Handle("GET /home", gateway.Aggregate([]gateway.Part{
//		{Name: "user", From: users, Path: "/me"},
//		{Name: "orders", From: payments, Path: "/orders?user={user.id}", Optional: true, Timeout: 300 * time.Millisecond},
//	}, nil))
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
//	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
//	srv := &http.Server{Addr: ":8080", Handler: &rt, ReadHeaderTimeout: 5 * time.Second}
//	if err := gateway.Serve(ctx, srv, nil); err != nil {
//		log.Fatal(err)
//	}
//
// Each middleware also works alone, around any http.Handler and under any router:
//
//	mux.Handle("POST /checkout", gateway.Chain(
//		gateway.Auth(tokens, nil),
//		gateway.RateLimit(perUser, gateway.KeyBySubject, nil),
//		gateway.Breaker(circuit, nil),
//	)(checkout))
//
// A value that keeps state, such as a [MemoryLimiter], a [Circuit] or an [Upstream], is built by the caller
// and can be shared: requests on different routes that pass the same limiter spend the same allowances. Every
// refusal is written by [WriteError] as application/problem+json (RFC 9457). Every exchange ends with one
// [Outcome], which circuits, metrics and the access log all use. A trailing pointer to options may be nil:
// that selects the defaults. Options are copied. A setup function panics on an invalid Go value. A function
// that reads a URL, a file or the network returns an error instead.
package gateway

import (
	"context"
	"net/http"
	"time"
)

// Middleware wraps a handler. It is an alias of the function type, so that chi, alice and other libraries
// accept a Middleware without conversion, and Chain accepts theirs.
type Middleware = func(http.Handler) http.Handler

// Chain composes middleware. The first is outermost. Without arguments, the result returns its handler
// unchanged. Chain panics if a middleware is nil.
func Chain(mw ...Middleware) Middleware {
	mw = checkMiddleware("Chain", mw)
	return func(next http.Handler) http.Handler {
		for i := len(mw) - 1; i >= 0; i-- {
			next = mw[i](next)
		}
		return next
	}
}

// Timeout limits the time of the handler inside it to d, from the request to the end of the response. When d
// has passed, the request's context ends, and the client gets 504 if nothing has been written. A response
// that has begun is cut off. To limit only the time to the response header, use UpstreamOptions.Timeout.
//
// If the handler is reading the request's body when d has passed, the client was too slow: the read fails at
// once, and the client gets 408 instead of 504. Over HTTP/1.1 its connection is then closed.
//
// The client also gets 408 when an Upstream inside spent more than half of the time waiting for the body.
// Neither a target nor a Breaker inside counts that as a failure. Nor do they count a timeout as a failure if
// the request reached them when more than half of the time was over. For example, with d = 2s, a request that
// waits 1.2s for its authentication and then times out counts against no target.
//
// Timeout buffers nothing and starts no goroutine, so it waits for a handler that ignores its context. It
// panics if d is not positive.
func Timeout(d time.Duration) Middleware {
	if d <= 0 {
		panic("gateway: Timeout: duration is not positive")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			ctx, cancel := withLimit(r.Context(), d)
			defer cancel()
			limited := r.WithContext(ctx)
			body := newClientBody(ctx, rw, r, 0)
			if body != nil {
				limited.Body = body
				defer body.release()
			}
			ex.derived(limited)
			next.ServeHTTP(rw, limited)
			switch {
			case rw.started():
			case body.refuseSlow(rw, r):
			case ctx.Err() == context.DeadlineExceeded && r.Context().Err() == nil:
				WriteError(rw, r, ErrTimeout)
			}
		})
	}
}
