package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A hedged request's second copy of the body is not kept longer than the first: until the response header.
func TestHedgeBodyIsFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		u := NewUpstream("u", MustTargets("http://a", "http://b"), &UpstreamOptions{
			Retry: RetryOptions{Attempts: 2, HedgeAfter: time.Second},
			Transport: insideTransport(func(r *http.Request) (*http.Response, error) {
				_, _ = io.Copy(io.Discard, r.Body)
				if asked.Add(1) == 1 {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("ok")), Request: r}, nil
			}),
		})
		res, err := u.RoundTrip(httptest.NewRequest("PUT", "/", strings.NewReader(strings.Repeat("x", 60<<10))))
		if err != nil || asked.Load() != 2 {
			t.Fatalf("%v, asked %d", err, asked.Load())
		}
		defer res.Body.Close()
		if kept := &res.Body.(*attempt).body.kept; kept.Len() != 0 {
			t.Errorf("%d bytes are kept", kept.Len())
		}
	})
}

type insideTransport func(*http.Request) (*http.Response, error)

func (f insideTransport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
