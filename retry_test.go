package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
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
		name   string
		method string
		opts   gateway.RetryOptions
		header http.Header
		body   string
		steps  []step
		want   step // an error that the last has, or a status
		tries  int
	}{
		{name: "none by default", steps: []step{503, 200}, want: 503, tries: 1},
		{name: "status", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503, 502, 200}, want: 200, tries: 3},
		{name: "attempts are counted in all", opts: gateway.RetryOptions{Attempts: 2}, steps: []step{503, 503, 200}, want: 503, tries: 2},
		{name: "500 is not among the statuses", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{500, 200}, want: 500, tries: 1},
		{name: "own statuses", opts: gateway.RetryOptions{Attempts: 3, Statuses: []int{500}}, steps: []step{500, 503}, want: 503, tries: 2},
		{name: "no statuses", opts: gateway.RetryOptions{Attempts: 3, Statuses: []int{}}, steps: []step{503}, want: 503, tries: 1},
		{name: "reset", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.ErrUnexpectedEOF, 200}, want: 200, tries: 2},
		{name: "timeout", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{context.DeadlineExceeded, 200}, want: 200, tries: 2},
		{name: "POST after a reset", method: "POST", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.ErrUnexpectedEOF}, want: gateway.ErrBadGateway, tries: 1},
		{name: "POST after a status", method: "POST", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503}, want: 503, tries: 1},
		{name: "POST that was never sent", method: "POST", body: "x", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{errDial, 200}, want: 200, tries: 2},
		{name: "PATCH after a reset", method: "PATCH", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, tries: 1},
		{name: "PUT with body", method: "PUT", body: "hello", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{io.EOF, 503, 200}, want: 200, tries: 3},
		{name: "PUT with a body too large", method: "PUT", body: strings.Repeat("x", 100), opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: 99}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, tries: 1},
		{name: "PUT with a body just small enough", method: "PUT", body: strings.Repeat("x", 99), opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: 99}, steps: []step{io.EOF, 200}, want: 200, tries: 2},
		{name: "PUT with nothing kept", method: "PUT", body: "x", opts: gateway.RetryOptions{Attempts: 3, MaxBodyBytes: -1}, steps: []step{io.EOF}, want: gateway.ErrBadGateway, tries: 1},
		{name: "upgrade", header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"x"}}, opts: gateway.RetryOptions{Attempts: 3}, steps: []step{503}, want: 503, tries: 1},
		{name: "the request's own body fails", method: "PUT", body: "x", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{&http.MaxBytesError{}}, want: gateway.ErrBodyTooLarge, tries: 1},
		{name: "cancelled", opts: gateway.RetryOptions{Attempts: 3}, steps: []step{context.Canceled}, want: gateway.ErrBadGateway, tries: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a", "http://b", "http://c"), &gateway.UpstreamOptions{
					Retry: tt.opts,
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						i := min(tries, len(tt.steps)-1)
						tries++
						if r.Body != nil {
							body, err := io.ReadAll(r.Body)
							r.Body.Close()
							if err != nil || string(body) != tt.body {
								t.Errorf("try %d sent %q, %v", tries, body, err)
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
					tt.want, tt.tries = context.Canceled, 1
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
				if tries != tt.tries {
					t.Errorf("%d tries, want %d", tries, tt.tries)
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
		tries := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				tries++
				return nil, io.EOF
			}),
		})
		for range 1000 {
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		}
		if tries < 1190 || tries > 1210 {
			t.Errorf("%d tries of 1000 requests", tries)
		}
		tries = 0
		time.Sleep(10 * time.Second)
		for range 10 {
			u.RoundTrip(httptest.NewRequest("GET", "/", nil))
		}
		if tries != 30 { // the floor: 30 retries saved up, 20 wanted
			t.Errorf("%d tries of 10 requests", tries)
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
		tries := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry:     gateway.RetryOptions{Attempts: 5},
			Circuit:   gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2}),
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) { tries++; return nil, io.EOF }),
		})
		if _, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil)); !errors.Is(err, gateway.ErrBadGateway) || tries != 2 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}

func TestRetryDoesNotWaitForTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if tries++; tries > 1 {
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
	tries := 0
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if tries++; tries < 3 {
				return nil, io.EOF
			}
			return answered(r, 200, http.NoBody), nil
		}),
	})
	gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})(gateway.Proxy(u, nil)).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	spans := tel.Spans()
	if len(spans) != 1 || spans[0].Kind != trace.SpanKindServer {
		t.Fatalf("spans %v", spans)
	}
	if n, _ := spans[0].Attributes.Value("http.request.resend_count"); n.AsInt64() != 2 {
		t.Errorf("attributes %v", spans[0].Attributes.ToSlice())
	}
}

// TestReplayWhileTheOldIsRead retries while the transport still reads the body for the attempt before, which
// a RoundTripper may do after it has returned.
func TestReplayWhileTheOldIsRead(t *testing.T) {
	const size = 20_000
	want := bytes.Repeat([]byte("0123456789"), size/10)
	for range 50 {
		in, out := io.Pipe()
		go func() {
			for rest := want; len(rest) > 0; rest = rest[min(7, len(rest)):] {
				out.Write(rest[:min(7, len(rest))])
			}
			out.Close()
		}()
		var old sync.WaitGroup
		tries := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1, Budget: 100},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if tries++; tries == 1 {
					started := make(chan bool)
					old.Go(func() {
						io.CopyN(io.Discard, r.Body, 1000)
						close(started)
						io.Copy(io.Discard, r.Body)
						r.Body.Close()
					})
					<-started
					return nil, io.EOF
				}
				body, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil || !bytes.Equal(body, want) {
					t.Errorf("the second try read %d bytes, %v", len(body), err)
				}
				return answered(r, 200, http.NoBody), nil
			}),
		})
		r := httptest.NewRequest("PUT", "/", in)
		res, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		old.Wait()
		if _, err := in.Read(make([]byte, 1)); err != io.ErrClosedPipe {
			t.Errorf("the body was not closed: %v", err)
		}
	}
}

// TestDeadPooledConnection has the target reset every connection on its second request, after having read it.
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
	transport := gateway.NewTransport(nil)
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
	// A POST may have been done, and PUT's body is too large to be kept: neither is sent twice.
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

// TestReplayOfWhatTheOldRead has the target of the second try answer before the body has ended, while a read
// of the first try is still under way: what that brings is the second's.
func TestReplayOfWhatTheOldRead(t *testing.T) {
	in, out := io.Pipe()
	begun := make(chan bool)
	source := io.MultiReader(strings.NewReader("01234"), &notice{in, begun})
	tries := 0
	got := make(chan string, 1)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			begin := make([]byte, 5)
			io.ReadFull(r.Body, begin)
			if tries++; tries == 1 {
				go r.Body.Read(make([]byte, 100))
				<-begun
				r.Body.Close()
				return answered(r, 503, http.NoBody), nil
			}
			go func() {
				rest, err := io.ReadAll(r.Body)
				got <- fmt.Sprintf("%s%s, %v", begin, rest, err)
			}()
			return answered(r, 200, http.NoBody), nil
		}),
	})
	res, err := u.RoundTrip(httptest.NewRequestWithContext(t.Context(), "PUT", "/", source))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(out, "567")
	io.WriteString(out, "89")
	out.Close()
	if got := <-got; got != "0123456789, <nil>" {
		t.Errorf("the second try read %s", got)
	}
	res.Body.Close()
}

// notice closes begun with the first read of it.
type notice struct {
	io.Reader
	begun chan bool
}

func (n *notice) Read(p []byte) (int, error) {
	if n.begun != nil {
		close(n.begun)
		n.begun = nil
	}
	return n.Reader.Read(p)
}

// TestNoRetryOfABrokenBody has the request's own body fail on a connection from the pool, which is not what a
// dead connection is.
func TestNoRetryOfABrokenBody(t *testing.T) {
	tries := 0
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			tries++
			httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: true})
			_, err := io.ReadAll(r.Body)
			return nil, err
		}),
	})
	broken := io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF))
	_, err := u.RoundTrip(httptest.NewRequest("PUT", "/", broken))
	if !errors.Is(err, io.ErrUnexpectedEOF) || tries != 1 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

// TestRetryHasTrailersOfItsOwn lets the transport go on sending the first try, trailers and all, while the
// second is made.
func TestRetryHasTrailersOfItsOwn(t *testing.T) {
	for range 50 {
		in, out := io.Pipe()
		trailer := http.Header{"X-Sum": nil}
		source := readerFunc(func(p []byte) (int, error) {
			n, err := in.Read(p)
			if err == io.EOF {
				trailer["X-Sum"] = []string{"7"}
			}
			return n, err
		})
		var old sync.WaitGroup
		tries := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if tries++; tries == 1 {
					io.ReadFull(r.Body, make([]byte, 2))
					old.Go(func() { io.Copy(io.Discard, r.Body); r.Body.Close() })
					return answered(r, 503, http.NoBody), nil
				}
				go func() {
					io.WriteString(out, "cd")
					out.Close()
				}()
				for name := range r.Trailer { // as when the names are announced
					_ = name
				}
				body, err := io.ReadAll(r.Body)
				r.Body.Close()
				if string(body) != "abcd" || err != nil || r.Trailer.Get("X-Sum") != "7" {
					t.Errorf("the second try sent %q, %v, %v", body, err, r.Trailer)
				}
				return answered(r, 200, http.NoBody), nil
			}),
		})
		go io.WriteString(out, "ab")
		r := httptest.NewRequest("PUT", "/", io.NopCloser(source))
		r.Trailer = trailer
		res, err := u.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		old.Wait()
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
