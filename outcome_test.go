package gateway_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// What the gateway could not decide is nobody's refusal and no upstream's failure. An operator must see it.
func TestUnavailable(t *testing.T) {
	badKey := func(*http.Request) (string, error) { return "", &gateway.Error{Status: 503} }
	for _, tt := range []struct {
		name    string
		mw      gateway.Middleware
		status  int
		outcome string
		kind    string // error.type
		level   slog.Level
	}{
		{"key set away", gateway.Auth(fixedAuthenticator(nil, &gateway.Error{Status: 503}), nil), 503, "unavailable", "503", slog.LevelError},
		{"key source fails", gateway.Auth(fixedAuthenticator(nil, errors.New("x")), nil), 500, "unavailable", "500", slog.LevelError},
		{"bad credentials", gateway.Auth(fixedAuthenticator(nil, gateway.ErrUnauthenticated), nil), 401, "rejected", "", slog.LevelInfo},
		{"limiter errs", gateway.RateLimit(brokenLimiter{}, gateway.KeyByIP, nil), 503, "unavailable", "503", slog.LevelError},
		{"key errs", gateway.RateLimit(gateway.NewTokenBucket(1, 1, nil), badKey, nil), 503, "unavailable", "503", slog.LevelError},
		{"limiter errs open", gateway.RateLimit(brokenLimiter{}, gateway.KeyByIP, &gateway.RateLimitOptions{FailOpen: true}), 200, "ok", "", slog.LevelWarn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1, IsFailure: func(o gateway.Outcome, _ int) bool { return o != gateway.OutcomeOK }})
			tel, log := new(gatewaytest.Telemetry), make(journal, 1)
			h := gateway.Chain(
				gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel, Logger: log.logger()}),
				gateway.Breaker(c, nil),
				tt.mw,
			)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			w := recorded(h, nil)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
			if line := <-log; line["outcome"] != tt.outcome || line["level"] != tt.level.String() {
				t.Errorf("logged %v, want %q at %v", line, tt.outcome, tt.level)
			}
			attrs := tel.Spans()[0].Attributes
			if got, _ := attrs.Value("error.type"); got.AsString() != tt.kind {
				t.Errorf("error.type %q, want %q", got.AsString(), tt.kind)
			}
			if c.State() != gateway.CircuitClosed {
				t.Error("the circuit is open")
			}
		})
	}
}

// An aggregate's part that could not decide makes the aggregate's answer 503, not 502.
func TestUnavailablePart(t *testing.T) {
	part := gateway.Auth(gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
		return nil, &gateway.Error{Status: 503}
	}), nil)(http.NotFoundHandler())
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	w := httptest.NewRecorder()
	h := gateway.Breaker(c, nil)(gateway.Aggregate([]gateway.Part{{Name: "a", From: gateway.HandlerTransport(part), Path: "/"}}, nil))
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 503 || c.State() != gateway.CircuitClosed {
		t.Errorf("status %d, circuit %v", w.Code, c.State())
	}
}

// A refund is due when a request could not be decided, as when it was refused.
func TestUnavailableIsRefunded(t *testing.T) {
	limiter := gateway.NewTokenBucket(1e-9, 1, nil)
	h := gateway.Chain(
		gateway.RateLimit(limiter, gateway.KeyByIP, &gateway.RateLimitOptions{Refund: true}),
		gateway.RateLimit(brokenLimiter{}, gateway.KeyByIP, nil),
	)(http.NotFoundHandler())
	for range 3 {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil)); w.Code != 503 {
			t.Errorf("status %d", w.Code)
		}
	}
}

// Which statuses count against a circuit and against a target.
func TestStatusesThatCount(t *testing.T) {
	for _, tt := range []struct {
		status         int
		opens, ejected bool
	}{
		{200, false, false}, {404, false, false}, {429, false, false},
		{500, true, false}, {501, false, false}, {502, true, true}, {503, true, true}, {504, true, true},
		{505, false, false}, {507, true, false}, {599, true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			upstream, breaker := gateway.NewCircuit("u", nil), gateway.NewCircuit("b", nil)
			u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
				Circuit: upstream, Health: gateway.HealthOptions{MaxEjected: 1},
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, tt.status, http.NoBody), nil }),
			})
			h := gateway.Breaker(breaker, nil)(gateway.Proxy(u, nil))
			for range 12 {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			}
			h = gateway.Proxy(u, nil)
			for range 12 {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			}
			for _, c := range []*gateway.Circuit{upstream, breaker} {
				if got := c.State() == gateway.CircuitOpen; got != tt.opens {
					t.Errorf("%d: circuit %s is %v", tt.status, c.Name(), c.State())
				}
			}
			out := 0
			for _, s := range u.Status() {
				if !s.Healthy {
					out++
				}
			}
			if (out > 0) != tt.ejected {
				t.Errorf("%d: %s", tt.status, states(u))
			}
		})
	}
}

func TestIsFailurePanics(t *testing.T) {
	logged := captureDefaultLog(t)
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{IsFailure: func(gateway.Outcome, int) bool { panic("judge") }})
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Circuit:   c,
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, 200, http.NoBody), nil }),
	})
	w := recorded(gateway.Proxy(u, nil), nil)
	if w.Code != 200 || u.Status()[0].Pending != 0 || c.State() != gateway.CircuitClosed {
		t.Errorf("status %d, %+v, circuit %v", w.Code, u.Status()[0], c.State())
	}
	if got := strings.Count(logged.String(), "IsFailure panicked"); got != 1 {
		t.Errorf("logged %d times: %s", got, logged)
	}
}

// A client whose body fails after the response has begun blames nobody but itself: neither circuit nor target.
func TestBodyThatFailsAfterTheResponseBegan(t *testing.T) {
	for _, protocol := range []string{http1, h2c} {
		t.Run(protocol, func(t *testing.T) {
			target := serveProtocol(t, protocol, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				io.WriteString(w, "begun")
				w.(http.Flusher).Flush()
				io.Copy(w, r.Body)
			}))
			scheme := "http"
			if protocol == h2c {
				scheme = "h2c"
			}
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 3})
			u := gateway.NewUpstream("u", gateway.MustTargets(scheme+"://"+target.Listener.Addr().String()), &gateway.UpstreamOptions{
				Circuit: c, Health: gateway.HealthOptions{MaxEjected: 1},
			})
			j, observe := observed()
			front := serve(t, observe(gateway.Proxy(u, nil)))
			for range 6 {
				conn := raw(t, front, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
				buf := make([]byte, 1)
				for last := byte(0); last != 'n'; last = buf[0] { // until "begun" has come
					if _, err := conn.Read(buf); err != nil {
						t.Fatal(err)
					}
				}
				io.WriteString(conn, "zz\r\n")
				io.Copy(io.Discard, conn)
				line := j.next(t)
				if line["outcome"] != "rejected" && line["outcome"] != "client_canceled" {
					t.Errorf("logged %v", line)
				}
			}
			if got := u.Status()[0]; !got.Healthy || c.State() != gateway.CircuitClosed {
				t.Errorf("%+v, circuit %v", got, c.State())
			}
		})
	}
}
