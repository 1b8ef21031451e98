package gateway_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// unfit are responses that cannot be passed on, to a request without Upgrade. Over HTTP/2, or with a RoundTripper of
// one's own, they arrive.
var unfit = []struct {
	name   string
	status int
	header http.Header
}{
	{"two lengths", 200, http.Header{"Content-Length": {"1", "2"}}},
	{"two equal lengths", 200, http.Header{"Content-Length": {"1", "1"}}},
	{"a list of lengths", 200, http.Header{"Content-Length": {"1, 1"}}},
	{"a negative length", 200, http.Header{"Content-Length": {"-1"}}},
	{"a length with a sign", 200, http.Header{"Content-Length": {"+5"}}},
	{"an empty length", 200, http.Header{"Content-Length": {""}}},
	{"status 0", 0, http.Header{}},
	{"status 99", 99, http.Header{}},
	{"status 100", 100, http.Header{}},
	{"status 1000", 1000, http.Header{}},
	{"status -200", -200, http.Header{}},
	{"101 unasked", 101, http.Header{}},
	{"101 unasked, to something", 101, http.Header{"Connection": {"upgrade"}, "Upgrade": {"x"}}},
}

// TestForwardNotFromTarget: the client gets 502 for a response that is unfit, whatever RoundTripper it comes from.
func TestForwardNotFromTarget(t *testing.T) {
	for _, tt := range unfit {
		body := &closable{Reader: strings.NewReader("x")}
		rec := httptest.NewRecorder()
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			res := answered(r, tt.status, body)
			res.Header = tt.header
			return res, nil
		}), nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Code != 502 || !body.closed {
			t.Errorf("%s: %d, closed %v", tt.name, rec.Code, body.closed)
		}
	}
}

// TestUpstreamNotFromTarget: an Upstream counts an unfit response as a failure of the target, as the log of the exchange
// does.
func TestUpstreamNotFromTarget(t *testing.T) {
	for _, tt := range unfit {
		body := &closable{Reader: strings.NewReader("x")}
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Circuit: c,
			Health:  gateway.HealthOptions{Unhealthy: 1, MaxEjected: 1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				res := answered(r, tt.status, body)
				res.Header = tt.header
				return res, nil
			}),
		})
		_, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		status := u.Status()[0]
		if !errors.Is(err, gateway.ErrBadGateway) || !body.closed || status.Pending != 0 {
			t.Errorf("%s: %v, closed %v, %d pending", tt.name, err, body.closed, status.Pending)
		}
		if c.State() != gateway.CircuitOpen || status.Healthy {
			t.Errorf("%s: circuit %v, healthy %v", tt.name, c.State(), status.Healthy)
		}
	}
}
