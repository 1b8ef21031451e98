package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func answered(r *http.Request, status int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: body, Request: r, ContentLength: -1}
}

func TestParseTargets(t *testing.T) {
	for raw, ok := range map[string]bool{
		"http://10.0.0.1:80": true, "https://a.example/base": true, "h2c://[::1]:50051": true,
		"10.0.0.1:80": false, "ftp://x": false, "http://": false, "http://u:p@x": false, "http://x?q": false, "http://x#f": false,
		"http:x": false, "": false, "http://x/%zz": false, "//x": false,
	} {
		targets, err := gateway.ParseTargets(raw)
		if (err == nil) != ok {
			t.Errorf("%q: %v", raw, err)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "gateway: ParseTargets: ") || strings.Contains(err.Error(), ":p@")) {
			t.Errorf("%q: %v", raw, err)
		}
		if ok && (len(targets) != 1 || targets[0].URL.String() != raw) {
			t.Errorf("%q: %v", raw, targets)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("MustTargets took it")
		}
	}()
	gateway.MustTargets("ftp://x")
}

func TestUpstreamSends(t *testing.T) {
	var got *http.Request
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r
		return answered(r, 200, http.NoBody), nil
	})
	for target, want := range map[string]string{
		"http://t.example":         "http://t.example/a%2Fb?q=1",
		"https://t.example:1/":     "https://t.example:1/a%2Fb?q=1",
		"http://t.example/base":    "http://t.example/base/a%2Fb?q=1",
		"http://t.example/b%2Fc/":  "http://t.example/b%2Fc/a%2Fb?q=1",
		"h2c://t.example/x y/%7Bz": "h2c://t.example/x%20y/%7Bz/a%2Fb?q=1",
	} {
		u := gateway.NewUpstream("u", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport})
		r := httptest.NewRequest("GET", "/a%2Fb?q=1", nil)
		r.Host = ""
		before := *r.URL
		res, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got.URL.String() != want || got.Host != "" {
			t.Errorf("to %s: sent %s, Host %q, want %s", target, got.URL, got.Host, want)
		}
		if *r.URL != before || got == r {
			t.Errorf("the request was changed: %v", r.URL)
		}
	}
	if n := gateway.NewUpstream("users", nil, nil).Name(); n != "users" {
		t.Errorf("name %q", n)
	}
}

func TestUpstreamErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		fail := func(err error) roundTrip {
			return func(*http.Request) (*http.Response, error) { return nil, err }
		}
		for _, tt := range []struct {
			name      string
			transport http.RoundTripper
			ctx       func() (context.Context, context.CancelFunc)
			want      error
			counts    bool // against the circuit
		}{
			{"refused", fail(errors.New("dial")), nil, gateway.ErrBadGateway, true},
			{"hung", hang, nil, gateway.ErrTimeout, true},
			{"slow dial", fail(&url.Error{Err: context.DeadlineExceeded}), nil, gateway.ErrTimeout, true},
			{"caller leaves", hang, func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(context.Background())
				time.AfterFunc(time.Millisecond, cancel)
				return ctx, cancel
			}, context.Canceled, false},
			{"caller's time runs out", hang, func() (context.Context, context.CancelFunc) {
				return context.WithTimeout(context.Background(), time.Millisecond)
			}, gateway.ErrTimeout, true},
			{"body of the request too large", fail(&http.MaxBytesError{}), nil, gateway.ErrBodyTooLarge, false},
			{"body of the request malformed", fail(&gateway.Error{Status: 400}), nil, &gateway.Error{}, false},
		} {
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
			u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{Transport: tt.transport, Circuit: c, Timeout: time.Second})
			ctx, cancel := context.Background(), context.CancelFunc(func() {})
			if tt.ctx != nil {
				ctx, cancel = tt.ctx()
			}
			_, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			cancel()
			var own *gateway.Error
			if !errors.Is(err, tt.want) && !(errors.As(tt.want, &own) && errors.As(err, &own)) {
				t.Errorf("%s: %v", tt.name, err)
			}
			if tt.want == gateway.ErrTimeout && errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v is a cancel too", tt.name, err)
			}
			if got := c.State() == gateway.CircuitOpen; got != tt.counts {
				t.Errorf("%s: circuit %v", tt.name, c.State())
			}
		}
		if _, err := gateway.NewUpstream("u", nil, nil).RoundTrip(httptest.NewRequest("GET", "/", nil)); !errors.Is(err, gateway.ErrNoTarget) {
			t.Errorf("without targets: %v", err)
		}
	})
}

func TestUpstreamCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked, status = 0, 500
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2, OpenFor: time.Minute})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{Circuit: c, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			return answered(r, status, http.NoBody), nil
		})})
		ask := func() error {
			res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
			if err == nil {
				res.Body.Close()
			}
			return err
		}
		ask()
		ask()
		if err := ask(); !errors.Is(err, gateway.ErrCircuitOpen) || asked != 2 {
			t.Errorf("%v after %d", err, asked)
		}
		rec := httptest.NewRecorder()
		gateway.Proxy(u, nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Code != 503 || rec.Header().Get("Retry-After") != "60" {
			t.Errorf("got %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
		}
		time.Sleep(time.Minute)
		status = 200
		if err := ask(); err != nil || c.State() != gateway.CircuitClosed {
			t.Errorf("%v, %v", err, c.State())
		}
	})
}

// brokenBody yields some bytes and then err.
type brokenBody struct {
	r   io.Reader
	err error
}

func (b *brokenBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func (b *brokenBody) Close() error { return nil }

// TestUpstreamCountsBodies holds how an attempt ends, by what its balancer and its circuit are told.
func TestUpstreamCountsBodies(t *testing.T) {
	for _, tt := range []struct {
		name    string
		body    func(cancel func()) io.ReadCloser
		read    bool
		want    gateway.Outcome
		opens   bool
		started int
	}{
		{"whole", func(func()) io.ReadCloser { return io.NopCloser(strings.NewReader("x")) }, true, gateway.OutcomeOK, false, 200},
		{"closed early", func(func()) io.ReadCloser { return io.NopCloser(strings.NewReader("x")) }, false, gateway.OutcomeOK, false, 200},
		{"cut", func(func()) io.ReadCloser {
			return &brokenBody{strings.NewReader("x"), io.ErrUnexpectedEOF}
		}, true, gateway.OutcomeAborted, true, 200},
		{"caller left", func(cancel func()) io.ReadCloser {
			cancel()
			return &brokenBody{strings.NewReader("x"), context.Canceled}
		}, true, gateway.OutcomeClientCanceled, false, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var told []gateway.Outcome
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
			u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
				Circuit:  c,
				Balancer: pick(func(gateway.Outcome) func(gateway.Outcome) { return func(o gateway.Outcome) { told = append(told, o) } }),
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					return answered(r, tt.started, tt.body(cancel)), nil
				}),
			})
			res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			if len(told) > 0 {
				t.Errorf("told before the end: %v", told)
			}
			if tt.read {
				io.ReadAll(res.Body)
			}
			res.Body.Close()
			res.Body.Close()
			if len(told) != 1 || told[0] != tt.want {
				t.Errorf("told %v, want %v", told, tt.want)
			}
			if got := c.State() == gateway.CircuitOpen; got != tt.opens {
				t.Errorf("circuit %v", c.State())
			}
		})
	}
}

func TestUpstreamMeasures(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	u := gateway.NewUpstream("u", gateway.MustTargets("https://t.example"), &gateway.UpstreamOptions{
		Meter:     tel,
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, 503, http.NoBody), nil }),
	})
	res, err := u.RoundTrip(httptest.NewRequest("PUT", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	want := attribute.NewSet(
		attribute.String("http.request.method", "PUT"),
		attribute.String("gateway.upstream.name", "u"),
		attribute.String("gateway.outcome", "upstream_error"),
		attribute.String("server.address", "t.example"),
		attribute.Int("server.port", 443),
		attribute.Int("http.response.status_code", 503),
		attribute.String("error.type", "503"),
	)
	if got := tel.Series("http.client.request.duration"); len(got) != 1 || got[0].Unit != "s" || got[0].Count != 1 || !got[0].Attributes.Equals(&want) {
		t.Errorf("measured %+v", got)
	}
}

func TestUpstreamStreamOutlastsItsCallersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b"), &gateway.UpstreamOptions{
			Circuit: c,
			Health:  gateway.HealthOptions{Unhealthy: 1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				body, w := io.Pipe()
				context.AfterFunc(r.Context(), func() { w.CloseWithError(r.Context().Err()) })
				return answered(r, 200, body), nil
			}),
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		res, err := u.RoundTrip(httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		res.Body.Close()
		if got := states(u); got != "a b" || c.State() != gateway.CircuitClosed {
			t.Errorf("targets %s, circuit %v", got, c.State())
		}
	})
}

// A proxied WebSocket is closed while another goroutine reads from it.
func TestUpstreamClosedWhileRead(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	reading, failed := make(chan bool), make(chan bool)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
		Circuit: c,
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return answered(r, 101, &slowConn{reading: reading, failed: failed, closed: make(chan bool)}), nil
		}),
	})
	res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(failed)
		_, _ = res.Body.Read(make([]byte, 1))
	}()
	<-reading
	res.Body.Close()
	if c.State() != gateway.CircuitClosed {
		t.Error("the caller's own Close counted as a failure")
	}
}

// slowConn is a connection whose Close returns when the Read that it ended has.
type slowConn struct{ reading, failed, closed chan bool }

func (c *slowConn) Read([]byte) (int, error) {
	close(c.reading)
	<-c.closed
	return 0, net.ErrClosed
}
func (c *slowConn) Write(p []byte) (int, error) { return len(p), nil }
func (c *slowConn) Close() error {
	close(c.closed)
	<-c.failed
	return nil
}

// pick is a Balancer that picks the first and hands out done.
type pick func(gateway.Outcome) func(gateway.Outcome)

func (p pick) Pick(*http.Request, []gateway.Target) (int, func(gateway.Outcome)) { return 0, p(0) }

func TestUpstreamSurvivesAPanic(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	told := -1
	u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
		Circuit:   c,
		Balancer:  pick(func(gateway.Outcome) func(gateway.Outcome) { return func(o gateway.Outcome) { told = int(o) } }),
		Transport: roundTrip(func(*http.Request) (*http.Response, error) { panic("bug") }),
	})
	func() {
		defer func() {
			if recover() != "bug" {
				t.Error("the panic was swallowed")
			}
		}()
		u.RoundTrip(httptest.NewRequest("GET", "/", nil))
	}()
	if told != int(gateway.OutcomeInternal) || c.State() != gateway.CircuitClosed {
		t.Errorf("told %d, circuit %v", told, c.State())
	}
}

func TestUpstreamTimeoutIsToHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
			Timeout: time.Second,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				ctx := r.Context()
				pr, pw := io.Pipe()
				go func() {
					select {
					case <-time.After(time.Minute): // a slow body
						io.WriteString(pw, "late")
						pw.Close()
					case <-ctx.Done():
						pw.CloseWithError(ctx.Err())
					}
				}()
				return answered(r, 200, pr), nil
			}),
		})
		res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "late" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
		// A caller that closes early ends the rest.
		res, err = u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		synctest.Wait()
	})
}

func weighted(weights ...int) []gateway.Target {
	var targets []gateway.Target
	for i, w := range weights {
		targets = append(targets, gateway.Target{URL: &url.URL{Scheme: "http", Host: fmt.Sprint(i)}, Weight: w})
	}
	return targets
}

func TestRoundRobin(t *testing.T) {
	b := gateway.RoundRobin()
	targets := weighted(5, 1, 0)
	var order strings.Builder
	for range 14 {
		i, done := b.Pick(nil, targets)
		if done != nil {
			done(gateway.OutcomeOK)
		}
		fmt.Fprint(&order, i)
	}
	if got := order.String(); got != "00102000010200" {
		t.Errorf("order %s, want nginx's", got)
	}
	for range 300 {
		b.Pick(nil, weighted(1, 1, 1)) // targets that come and go are forgotten, and trouble nobody
	}
	counts := map[int]int{}
	for range 70 {
		i, _ := b.Pick(nil, targets)
		counts[i]++
	}
	if counts[0] != 50 || counts[1] != 10 {
		t.Errorf("after others came and went: %v", counts)
	}
}

func TestLeastPending(t *testing.T) {
	t.Run("fewest win", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(1, 1)
		var counts [2]int
		for range 100 {
			i, _ := b.Pick(nil, targets) // none ever ends
			counts[i]++
		}
		if math.Abs(float64(counts[0]-counts[1])) > 2 {
			t.Errorf("pending %v", counts)
		}
	})
	t.Run("by weight at rest", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(3, 1)
		var counts [2]int
		for range 10_000 {
			i, done := b.Pick(nil, targets)
			counts[i]++
			done(gateway.OutcomeOK)
		}
		if share := float64(counts[0]) / 10_000; share < 0.7 || share > 0.8 {
			t.Errorf("share %v, want 0.75", share)
		}
	})
	t.Run("by weight under load", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(3, 1)
		var counts [2]int
		for range 400 {
			i, _ := b.Pick(nil, targets)
			counts[i]++
		}
		if counts[0] < 290 || counts[0] > 310 {
			t.Errorf("pending %v, want 300 and 100", counts)
		}
	})
	t.Run("one", func(t *testing.T) {
		b := gateway.LeastPending()
		if i, done := b.Pick(nil, weighted(1)); i != 0 || done == nil {
			t.Errorf("picked %d", i)
		}
	})
	t.Run("at once", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(1, 2, 3)
		var pending [3]atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					i, done := b.Pick(nil, targets)
					pending[i].Add(1)
					pending[i].Add(-1)
					done(gateway.OutcomeOK)
					b.Pick(nil, weighted(1, 1)) // targets come and go
				}
			})
		}
		wg.Wait()
	})
}

func TestNewUpstreamPanics(t *testing.T) {
	for name, targets := range map[string][]gateway.Target{
		"nil URL":         {{}},
		"no host":         {{URL: &url.URL{Scheme: "http"}}},
		"scheme":          {{URL: &url.URL{Scheme: "ws", Host: "x"}}},
		"negative weight": {{URL: &url.URL{Scheme: "http", Host: "x"}, Weight: -1}},
	} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.HasPrefix(got, "gateway: NewUpstream: ") {
					t.Errorf("%s: recovered %q", name, got)
				}
			}()
			gateway.NewUpstream("u", targets, nil)
		}()
	}
}

func TestTransportH2C(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	tr := gateway.NewTransport(nil)
	t.Cleanup(tr.(interface{ CloseIdleConnections() }).CloseIdleConnections)
	for scheme, proto := range map[string]string{"http": "HTTP/1.1", "h2c": "HTTP/2.0"} {
		targets := gateway.MustTargets(strings.Replace(s.URL, "http", scheme, 1))
		u := gateway.NewUpstream("u", targets, &gateway.UpstreamOptions{Transport: tr})
		rec := httptest.NewRecorder()
		gateway.Proxy(u, nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if rec.Body.String() != proto {
			t.Errorf("%s: %d %q, want %q", scheme, rec.Code, rec.Body, proto)
		}
	}
}
