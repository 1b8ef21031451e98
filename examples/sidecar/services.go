package main

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// The two services know nothing of certificates, retries or this library. As in any mesh, a service that asks
// another passes on the fields of the trace and the user, as OpenTelemetry's instrumentation does for the
// trace.

// newOrders asks for the stock at a URL on this host.
func newOrders(stock string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		ask, err := http.NewRequestWithContext(r.Context(), "GET", stock+"/stock/cup", nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		ask.Header.Set("Traceparent", r.Header.Get("Traceparent"))
		ask.Header.Set("X-User-ID", r.Header.Get("X-User-ID"))
		res, err := http.DefaultClient.Do(ask)
		if err != nil {
			http.Error(w, "no stock", http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			http.Error(w, "no stock", http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "order %s, asked by %s; ", r.PathValue("id"), told(r))
		_, _ = io.Copy(w, res.Body)
	})
	return mux
}

// newStock answers 503 to as many requests as failures says.
func newStock(failures *atomic.Int32) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stock/{item}", func(w http.ResponseWriter, r *http.Request) {
		if failures.Add(-1) >= 0 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "stock 5, asked by %s", told(r))
	})
	return mux
}

// told is who asks, as the sidecar says.
func told(r *http.Request) string {
	return r.Header.Get("X-Caller") + " for " + r.Header.Get("X-User-ID")
}
