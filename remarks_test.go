package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// TestRemarksAreLogged holds that what goes wrong behind an answer that does not show it is in the log.
func TestRemarksAreLogged(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    http.Handler
		want string
	}{
		{"an optional part", gateway.Aggregate([]gateway.Part{
			{Name: "ads", From: gateway.HandlerTransport(text("<html>")), Path: "/", Optional: true},
		}, nil), "part ads upstream_error: "},
		{"a limiter that fails open", gateway.RateLimit(brokenLimiter{}, gateway.KeyByIP, &gateway.RateLimitOptions{Name: "shared", FailOpen: true})(text("ok")),
			"ratelimit shared, open would refuse: gateway: rate limiter: store away"},
		{"a limit that reports only", gateway.RateLimit(gateway.NewFixedWindow(1, time.Hour, nil), gateway.KeyByIP, &gateway.RateLimitOptions{
			Name: "new", ReportOnly: true, Cost: func(*http.Request) int { return 2 },
		})(text("ok")), `ratelimit new would refuse: gateway: rate limited: policy "new"`},
	} {
		j, observe := observed()
		rec := recorded(observe(tt.h), nil)
		if line := j.next(t); rec.Code != 200 || line["level"] != "WARN" || !strings.HasPrefix(line["remarks"], tt.want) {
			t.Errorf("%s: %d, logged %v", tt.name, rec.Code, line)
		}
	}
}

type brokenLimiter struct{}

func (brokenLimiter) Take(context.Context, string, int) (gateway.Decision, error) {
	return gateway.Decision{}, errors.New("store away")
}

// TestAggregateLetsACircuitClose has two required parts ask one upstream whose circuit lets one probe through:
// the part that is refused must not take the other, which is the probe, with it.
func TestAggregateLetsACircuitClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		status := 500
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1, OpenFor: time.Second})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{Circuit: c, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			select {
			case <-time.After(5 * time.Millisecond):
				return answered(r, status, io.NopCloser(strings.NewReader("1"))), nil
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		})})
		h := gateway.Aggregate([]gateway.Part{{Name: "a", From: u, Path: "/a"}, {Name: "b", From: u, Path: "/b"}}, nil)
		ask := func() int {
			rec := recorded(h, nil)
			return rec.Code
		}
		ask()
		if c.State() != gateway.CircuitOpen {
			t.Fatalf("circuit %v", c.State())
		}
		status = 200
		time.Sleep(2 * time.Second)
		ask() // one part probes, the other is refused
		if code := ask(); code != 200 || c.State() != gateway.CircuitClosed {
			t.Errorf("got %d, circuit %v", code, c.State())
		}
	})
}

// TestRemarksAreBounded: a client chooses no more than 512 bytes of a remark.
func TestRemarksAreBounded(t *testing.T) {
	refuse := gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		return nil, fmt.Errorf("%w: key %q", gateway.ErrUnauthenticated, r.Header.Get("X-Key"))
	})
	j, observe := observed()
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Key", strings.Repeat("k", 10_000))
	recorded(observe(gateway.Auth(refuse, &gateway.AuthOptions{ReportOnly: true})(text("ok"))), r)
	if got := j.next(t)["remarks"]; len(got) < 512 || len(got) > 600 {
		t.Errorf("%d bytes: %.100s", len(got), got)
	}
}
