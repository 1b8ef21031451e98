package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

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

// TestUpstreamCountsBodies checks the outcome that the balancer and the circuit get when an attempt ends.
func TestUpstreamCountsBodies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		end    error // of the body, after its one byte
		leaves bool  // the caller, when the answer has begun
		read   bool  // the body, before it is closed
		want   gateway.Outcome
		opens  bool // the circuit
	}{
		{"whole", io.EOF, false, true, gateway.OutcomeOK, false},
		{"closed early", io.EOF, false, false, gateway.OutcomeOK, false},
		{"cut", io.ErrUnexpectedEOF, false, true, gateway.OutcomeAborted, true},
		{"caller left", context.Canceled, true, true, gateway.OutcomeClientCanceled, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var reported []gateway.Outcome
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
			u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
				Circuit: c,
				Balancer: pick(func(gateway.Outcome) func(gateway.Outcome) {
					return func(o gateway.Outcome) { reported = append(reported, o) }
				}),
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if tt.leaves {
						cancel()
					}
					return answered(r, 200, &brokenBody{strings.NewReader("x"), tt.end}), nil
				}),
			})
			res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			if len(reported) > 0 {
				t.Errorf("reported before the end: %v", reported)
			}
			if tt.read {
				io.ReadAll(res.Body)
			}
			res.Body.Close()
			res.Body.Close()
			if len(reported) != 1 || reported[0] != tt.want {
				t.Errorf("reported %v, want %v", reported, tt.want)
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

// A proxied WebSocket is closed while another goroutine reads from it. The error of that read is no failure.
func TestUpstreamClosedWhileRead(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	reading, failed := make(chan bool), make(chan bool)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
		Circuit: c,
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return upgraded(r, &slowConn{reading: reading, failed: failed, closed: make(chan bool)}), nil
		}),
	})
	res, err := u.RoundTrip(offersUpgrade(httptest.NewRequest("GET", "/", nil)))
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

// slowConn is a connection whose Close makes Read fail, and returns after Read has.
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

// pick is a Balancer that picks the first target. The function returns done.
type pick func(gateway.Outcome) func(gateway.Outcome)

func (p pick) Pick(*http.Request, []gateway.Target) (int, func(gateway.Outcome)) { return 0, p(0) }

func TestUpstreamSurvivesAPanic(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
	reported := -1
	u := gateway.NewUpstream("u", gateway.MustTargets("http://x"), &gateway.UpstreamOptions{
		Circuit:   c,
		Balancer:  pick(func(gateway.Outcome) func(gateway.Outcome) { return func(o gateway.Outcome) { reported = int(o) } }),
		Transport: roundTrip(func(*http.Request) (*http.Response, error) { panic("bug") }),
	})
	if panicOf(func() { u.RoundTrip(httptest.NewRequest("GET", "/", nil)) }) != "bug" {
		t.Error("the panic was swallowed")
	}
	if reported != int(gateway.OutcomeInternal) || c.State() != gateway.CircuitClosed {
		t.Errorf("reported %d, circuit %v", reported, c.State())
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
		// Closing the body early cancels the attempt.
		res, err = u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		synctest.Wait()
	})
}

// TestDeadPooledConnection uses a target that resets every connection after reading its second request.
func TestDeadPooledConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]int{} // how often each request was received
	read := func(br *bufio.Reader) error {
		r, err := http.ReadRequest(br)
		if err != nil {
			return err
		}
		mu.Lock()
		seen[r.Header.Get("X-Id")]++
		mu.Unlock()
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				br := bufio.NewReader(c)
				if read(br) == nil {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					read(br)
					c.(*net.TCPConn).SetLinger(0)
				}
			})
		}
	})
	transport := gateway.NewTransportUnderTest(nil)
	t.Cleanup(func() {
		transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		l.Close()
		conns.Wait()
	})
	f := new(front)
	f.start(t, gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets("http://"+l.Addr().String()), &gateway.UpstreamOptions{Transport: transport}), nil))
	n := 0
	ask := func(method, body string) (string, int) {
		n++
		id := fmt.Sprint(n)
		r, _ := http.NewRequest(method, f.URL, strings.NewReader(body))
		r.Header.Set("X-Id", id)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return id, res.StatusCode
	}
	resent := 0
	for _, tt := range []struct{ method, body string }{
		{"GET", ""}, {"HEAD", ""}, {"OPTIONS", ""}, {"DELETE", ""}, {"GET", "body"}, {"PUT", "small"}, {"PUT", strings.Repeat("x", 60_000)},
	} {
		for range 4 {
			id, status := ask(tt.method, tt.body)
			if status != 200 {
				t.Errorf("%s with %d bytes: %d", tt.method, len(tt.body), status)
			}
			mu.Lock()
			resent += seen[id] - 1
			mu.Unlock()
		}
	}
	if resent < 7 {
		t.Errorf("only %d requests met a dead connection", resent)
	}
	// A POST may have been processed, and the PUT's body is too large to be kept: neither is sent twice.
	for _, tt := range []struct{ method, body string }{{"POST", "x"}, {"PUT", strings.Repeat("x", 100_000)}} {
		failed := 0
		for range 10 {
			id, status := ask(tt.method, tt.body)
			if status == 502 {
				failed++
			}
			mu.Lock()
			if seen[id] > 1 {
				t.Errorf("%s was sent %d times", tt.method, seen[id])
			}
			mu.Unlock()
		}
		if failed == 0 {
			t.Errorf("no %s met a dead connection", tt.method)
		}
	}
}

// TestUpstreamHeadersAsTimeRunsOut: headers that arrive just as the time runs out are a timeout, for their body is
// canceled already. The body is closed and nothing stays pending.
func TestUpstreamHeadersAsTimeRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := &closable{Reader: strings.NewReader("late")}
		var outcomes []gateway.Outcome
		u := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1"), &gateway.UpstreamOptions{
			Timeout: time.Second,
			Balancer: pick(func(gateway.Outcome) func(gateway.Outcome) {
				return func(o gateway.Outcome) { outcomes = append(outcomes, o) }
			}),
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done() // and yet the transport returns the response
				return answered(r, 200, body), nil
			}),
		})
		res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		if res != nil || !errors.Is(err, gateway.ErrTimeout) {
			t.Errorf("got %v, %v", res, err)
		}
		if !body.closed {
			t.Error("the body is open")
		}
		if len(outcomes) != 1 || outcomes[0] != gateway.OutcomeTimeout {
			t.Errorf("the attempt ended as %v", outcomes)
		}
	})
}

// TestAttemptSpanVersion: an attempt's span has the version of HTTP that the target answered with.
func TestAttemptSpanVersion(t *testing.T) {
	for behind, want := range map[string]string{http1: "1.1", http2: "2", h2c: "2"} {
		t.Run(behind, func(t *testing.T) {
			tel := new(gatewaytest.Telemetry)
			up := newTarget(t, behind, httptest.NewUnstartedServer(http.NotFoundHandler()), gateway.TransportOptions{}, gateway.UpstreamOptions{})
			ask := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})(gateway.Proxy(up, nil))
			ask.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			spans := tel.Spans()
			if len(spans) != 2 {
				t.Fatalf("%d spans", len(spans))
			}
			if v, _ := spans[0].Attributes.Value("network.protocol.version"); v.AsString() != want {
				t.Errorf("got %q, want %q", v.AsString(), want)
			}
		})
	}
}
