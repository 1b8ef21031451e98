package gateway_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

var errDial = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}

func TestRetry(t *testing.T) {
	type step any // an error, or a status
	for _, tt := range []struct {
		name     string
		method   string
		opts     gateway.RetryOptions
		header   http.Header
		body     string
		steps    []step
		want     step // an error that the last has, or a status
		attempts int
	}{
		{name: "none by default", steps: []step{503, 200}, want: 503, attempts: 1},
		{name: "status", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503, 502, 200}, want: 200, attempts: 3},
		{name: "attempts are counted in all", opts: gateway.RetryOptions{Attempts: 2}, steps: []step{503, 503, 200}, want: 503, attempts: 2},
		{name: "500 is not among the statuses", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{500, 200}, want: 500, attempts: 1},
		{name: "own statuses", opts: gateway.RetryOptions{Attempts: 3, Statuses: []int{500}}, steps: []step{500, 503}, want: 503, attempts: 2},
		{name: "no statuses", opts: gateway.RetryOptions{Attempts: 3, Statuses: []int{}}, steps: []step{503}, want: 503, attempts: 1},
		{name: "reset", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.ErrUnexpectedEOF, 200}, want: 200, attempts: 2},
		{name: "timeout", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{context.DeadlineExceeded, 200}, want: 200, attempts: 2},
		{name: "POST after a reset", method: "POST", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.ErrUnexpectedEOF}, want: gateway.ErrBadGateway, attempts: 1},
		{name: "POST after a status", method: "POST", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503}, want: 503, attempts: 1},
		{name: "POST that was never sent", method: "POST", body: "x", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{errDial, 200}, want: 200, attempts: 2},
		{name: "PATCH after a reset", method: "PATCH", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, attempts: 1},
		{name: "PUT with body", method: "PUT", body: "hello", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.EOF, 503, 200}, want: 200, attempts: 3},
		{name: "PUT with a body too large", method: "PUT", body: strings.Repeat("x", 100), opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: 99}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, attempts: 1},
		{name: "PUT with a body just small enough", method: "PUT", body: strings.Repeat("x", 99), opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: 99}, steps: []step{io.EOF, 200}, want: 200, attempts: 2},
		{name: "PUT with nothing kept", method: "PUT", body: "x", opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: -1}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, attempts: 1},
		{name: "upgrade", header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"x"}}, opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503}, want: 503, attempts: 1},
		{name: "the request's own body fails", method: "PUT", body: "x", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{&http.MaxBytesError{}}, want: gateway.ErrBodyTooLarge, attempts: 1},
		{name: "cancelled", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{context.Canceled}, want: gateway.ErrBadGateway, attempts: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				attempts := 0
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
					Retry: tt.opts,
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						i := min(attempts, len(tt.steps)-1)
						attempts++
						if r.Body != nil {
							body, err := io.ReadAll(r.Body)
							r.Body.Close()
							if err != nil || string(body) != tt.body {
								t.Errorf("attempt %d sent %q, %v", attempts, body, err)
							}
						}
						if err, ok := tt.steps[i].(error); ok {
							return nil, err
						}
						return answered(r, tt.steps[i].(int), io.NopCloser(strings.NewReader("answer"))), nil
					}),
				})
				var body io.ReadCloser
				if tt.body != "" {
					body = io.NopCloser(strings.NewReader(tt.body))
				}
				r := httptest.NewRequest(tt.method, "/", nil)
				r.Body = body
				if tt.header != nil {
					r.Header = tt.header
				}
				if tt.name == "cancelled" {
					tt.want, tt.attempts = context.Canceled, 1
				}
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if tt.name == "cancelled" {
					cancel()
				}
				res, err := u.RoundTrip(r.WithContext(ctx))
				if want, ok := tt.want.(error); ok {
					if !errors.Is(err, want) {
						t.Errorf("got %v, want %v", err, want)
					}
				} else if err != nil || res.StatusCode != tt.want.(int) {
					t.Errorf("got %v, %v, want %v", res, err, tt.want)
				} else {
					if got, _ := io.ReadAll(res.Body); string(got) != "answer" {
						t.Errorf("body %q", got)
					}
					res.Body.Close()
				}
				if attempts != tt.attempts {
					t.Errorf("%d attempts, want %d", attempts, tt.attempts)
				}
				for _, s := range u.Status() {
					if s.Pending != 0 {
						t.Errorf("%d pending", s.Pending)
					}
				}
			})
		})
	}
}

func TestRetryGoesElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := map[string]int{}
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 4},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				asked[r.URL.Host]++
				return nil, io.EOF
			}),
		})
		u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if len(asked) != 3 {
			t.Errorf("asked %v", asked)
		}
	})
}

func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				attempts++
				return nil, io.EOF
			}),
		})
		for range 1000 {
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		}
		if attempts < 1190 || attempts > 1210 {
			t.Errorf("%d attempts of 1000 requests", attempts)
		}
		attempts = 0
		time.Sleep(10 * time.Second)
		for range 10 {
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		}
		if attempts != 30 { // the floor: 30 retries saved up, 20 wanted
			t.Errorf("%d attempts of 10 requests", attempts)
		}
	})
}

func TestRetryBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		longest := time.Duration(0)
		for range 50 {
			u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
				Retry:     gateway.RetryOptions{Attempts: 4, Backoff: 100 * time.Millisecond, Budget: 10},
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return nil, io.EOF }),
			})
			start := time.Now()
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			longest = max(longest, time.Since(start))
		}
		if longest <= 300*time.Millisecond || longest > 700*time.Millisecond {
			t.Errorf("the longest of 50 took %v; the pauses are up to 100, 200 and 400ms", longest)
		}
		// A client that leaves ends a pause.
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry:     gateway.RetryOptions{Attempts: 4, Backoff: time.Hour},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return nil, io.EOF }),
		})
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Millisecond, cancel)
		start := time.Now()
		if _, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) && time.Since(start) > time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestRetryAsksTheCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry:     gateway.RetryOptions{Attempts: 5},
			Circuit:   gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2}),
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) { attempts++; return nil, io.EOF }),
		})
		if _, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); !errors.Is(err, gateway.ErrBadGateway) || attempts != 2 {
			t.Errorf("%v after %d attempts", err, attempts)
		}
	})
}

func TestRetryDoesNotWaitForTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if attempts++; attempts > 1 {
					return answered(r, 200, http.NoBody), nil
				}
				body, w := io.Pipe()
				context.AfterFunc(r.Context(), func() { w.CloseWithError(r.Context().Err()) })
				return answered(r, 503, body), nil
			}),
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		res, err := u.RoundTrip(httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if err != nil || res.StatusCode != 200 || time.Since(start) > time.Second {
			t.Errorf("%v, %v after %v", res, err, time.Since(start))
		}
	})
}

func TestRetryIsOnTheSpan(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	attempts := 0
	var sent []string
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			sent = append(sent, r.Header.Get("Traceparent"))
			if attempts++; attempts < 3 {
				return nil, io.EOF
			}
			return answered(r, 200, http.NoBody), nil
		}),
	})
	gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})(gateway.Proxy(u, nil)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	spans := tel.Spans() // those of the attempts, and then the server's
	if len(spans) != 4 || spans[3].Kind != trace.SpanKindServer {
		t.Fatalf("spans %v", spans)
	}
	for i, resends := range []int64{0, 1, 2, 2} {
		if n, _ := spans[i].Attributes.Value("http.request.resend_count"); n.AsInt64() != resends {
			t.Errorf("span %d: attributes %v", i, spans[i].Attributes.ToSlice())
		}
	}
	for i, s := range spans[:3] {
		if s.Kind != trace.SpanKindClient || !s.Parent.Equal(spans[3].Context) || parentOf(s.Context) != sent[i] {
			t.Errorf("attempt %d: %v span %v below %v, the target got %s", i, s.Kind, s.Context, s.Parent, sent[i])
		}
	}
}

// A circuit inside retries, as UpstreamOptions.Circuit is, counts attempts. One outside, as Breaker's is, counts
// requests, and a request that a retry saved is a success.
func TestRetryInsideAndOutsideACircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		inner, outer := gateway.NewCircuit("inner", &gateway.CircuitOptions{Failures: 3}), gateway.NewCircuit("outer", &gateway.CircuitOptions{Failures: 1})
		saved := true
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1, Budget: 10}, Circuit: inner,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if attempts++; saved && attempts%3 == 0 {
					return answered(r, 200, http.NoBody), nil
				}
				return answered(r, 503, http.NoBody), nil
			}),
		})
		h := gateway.Breaker(outer, nil)(gateway.Proxy(u, nil))
		for range 5 {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		}
		if attempts != 15 || outer.State() != gateway.CircuitClosed || inner.State() != gateway.CircuitClosed {
			t.Errorf("requests that retries saved: %d attempts, outside %v, inside %v", attempts, outer.State(), inner.State())
		}
		saved = false
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		if attempts != 18 || outer.State() != gateway.CircuitOpen || inner.State() != gateway.CircuitOpen {
			t.Errorf("one that failed: %d attempts, outside %v, inside %v", attempts, outer.State(), inner.State())
		}
	})
}
