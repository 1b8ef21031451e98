package gateway_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// grpcTarget answers calls with a status of gRPC: alone, or in the trailers after a message.
func grpcTarget(t *testing.T, status string, trailersOnly bool) *gateway.Upstream {
	t.Helper()
	s := serveProtocol(t, h2c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc+proto")
		if trailersOnly {
			w.Header().Set("Grpc-Status", status)
			return
		}
		io.WriteString(w, "\x00\x00\x00\x00\x00")
		w.(http.Flusher).Flush()
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
	}))
	return gateway.NewUpstream("u", gateway.MustTargets("h2c://"+s.Listener.Addr().String()), &gateway.UpstreamOptions{
		Circuit: gateway.NewCircuit("c", nil), Health: gateway.HealthOptions{MaxEjected: 1},
	})
}

// The status of a gRPC call decides its outcome, for log, circuit and health, wherever it stands.
func TestGRPCStatus(t *testing.T) {
	for _, tt := range []struct {
		status         string
		timeout        string // Grpc-Timeout
		outcome        string
		opens, ejected bool
	}{
		{"0", "", "ok", false, false},
		{"1", "", "ok", false, false},
		{"2", "", "upstream_error", true, false},
		{"3", "", "ok", false, false},
		{"4", "", "upstream_error", true, true},
		{"4", "50m", "client_canceled", false, false},
		{"5", "", "ok", false, false},
		{"7", "", "ok", false, false},
		{"8", "", "ok", false, false},
		{"12", "", "upstream_error", false, false},
		{"13", "", "upstream_error", false, false}, // any client can have it: see TestGRPCMalformed in examples/grpc
		{"14", "", "upstream_error", true, true},
		{"14", "1H", "upstream_error", true, true},
		{"15", "", "upstream_error", true, false},
		{"16", "", "ok", false, false},
		{"99", "", "upstream_error", true, false},
		{"x", "", "upstream_error", true, false},
	} {
		for _, only := range []bool{true, false} {
			t.Run(tt.status+tt.timeout+", alone "+strconv.FormatBool(only), func(t *testing.T) {
				breaker := gateway.NewCircuit("b", nil)
				u := grpcTarget(t, tt.status, only)
				j, observe := observed()
				ask := func(h http.Handler) {
					front := serveProtocol(t, http2, h)
					for range 5 {
						req, _ := http.NewRequestWithContext(t.Context(), "POST", front.URL+"/svc/M", http.NoBody)
						req.Header.Set("Content-Type", "application/grpc+proto")
						req.Header.Set("Te", "trailers")
						if tt.timeout != "" {
							req.Header.Set("Grpc-Timeout", tt.timeout)
						}
						res, err := front.Client().Do(req)
						if err != nil {
							t.Fatal(err)
						}
						io.Copy(io.Discard, res.Body)
						res.Body.Close()
						got := res.Trailer.Get("Grpc-Status")
						if only {
							got = res.Header.Get("Grpc-Status")
						}
						if got != tt.status && breaker.State() == gateway.CircuitClosed {
							t.Errorf("the client got status %q", got)
						}
					}
				}
				ask(observe(gateway.Proxy(u, nil)))
				for range 5 {
					if line := j.next(t); line["outcome"] != tt.outcome {
						t.Fatalf("logged %v", line)
					}
				}
				if got := u.Status()[0]; got.Healthy == tt.ejected {
					t.Errorf("%+v", got)
				}
				if tt.opens != (openCircuit(u)) {
					t.Errorf("the upstream's circuit: open %v", !tt.opens)
				}
				ask(gateway.Breaker(breaker, nil)(gateway.Proxy(grpcTarget(t, tt.status, only), nil)))
				if got := breaker.State() == gateway.CircuitOpen; got != tt.opens {
					t.Errorf("the Breaker's circuit: open %v", got)
				}
			})
		}
	}
}

// openCircuit reports whether u's circuit refuses.
func openCircuit(u *gateway.Upstream) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, "POST", "/svc/M", http.NoBody)
	res, err := u.RoundTrip(r)
	if err != nil {
		return true
	}
	res.Body.Close()
	return false
}

// An answer without messages can be retried; one that has begun cannot.
func TestGRPCRetry(t *testing.T) {
	for _, tt := range []struct {
		name     string
		opts     gateway.RetryOptions
		status   string
		timeout  string
		begun    bool
		attempts int
	}{
		{"not declared", gateway.RetryOptions{Attempts: 3}, "14", "", false, 1},
		{"unavailable", gateway.RetryOptions{Attempts: 3, GRPC: true}, "14", "", false, 3},
		{"begun", gateway.RetryOptions{Attempts: 3, GRPC: true}, "14", "", true, 1},
		{"internal", gateway.RetryOptions{Attempts: 3, GRPC: true}, "13", "", false, 1},
		{"internal among the statuses", gateway.RetryOptions{Attempts: 3, GRPC: true, Statuses: []int{500}}, "13", "", false, 3},
		{"the client's deadline", gateway.RetryOptions{Attempts: 3, GRPC: true}, "4", "1m", false, 1},
		{"not found", gateway.RetryOptions{Attempts: 3, GRPC: true}, "5", "", false, 1},
	} {
		attempts := 0
		tt.opts.Backoff = -1
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: tt.opts,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				attempts++
				res := answered(r, 200, http.NoBody)
				res.Header = http.Header{"Content-Type": {"application/grpc"}}
				if tt.begun {
					res.Trailer = http.Header{"Grpc-Status": {tt.status}}
				} else {
					res.Header["Grpc-Status"] = []string{tt.status}
				}
				return res, nil
			}),
		})
		r := httptest.NewRequest("POST", "/svc/M", nil)
		r.Header.Set("Content-Type", "application/grpc")
		if tt.timeout != "" {
			r.Header.Set("Grpc-Timeout", tt.timeout)
		}
		res, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if attempts != tt.attempts {
			t.Errorf("%s: %d attempts, want %d", tt.name, attempts, tt.attempts)
		}
	}
}

// A target that cuts off every response is ejected: the header of each is a success that does not stand.
func TestAbortsEject(t *testing.T) {
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Health: gateway.HealthOptions{MaxEjected: 1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return answered(r, 200, &brokenBody{http.NoBody, io.ErrUnexpectedEOF}), nil
		}),
	})
	for range 3 {
		res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	if got := u.Status()[0].Reason; got != "ejected: 3 failures in a row, the last: aborted" {
		t.Errorf("reason %q", got)
	}
}
