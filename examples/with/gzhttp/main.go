// Gzhttp compresses answers by github.com/klauspost/compress/gzhttp. It stands inside Observe, which so
// counts the bytes that are sent, and around Proxy, whose streams stay streams: each event is compressed and
// flushed by itself.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/klauspost/compress/gzhttp"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(backend http.RoundTripper) (http.Handler, error) {
	wrap, err := gzhttp.NewWrapper(
		gzhttp.MinSize(1024), // smaller answers are sent as they are
		gzhttp.SuffixETag("-gzip"),
	)
	if err != nil {
		return nil, err
	}
	compress := func(next http.Handler) http.Handler { return wrap(next) }
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), compress)
	rt.Handle("/", gateway.Proxy(backend, nil))
	return &rt, nil
}

func main() {
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	h, err := newHandler(backend)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: h}, nil))
}
