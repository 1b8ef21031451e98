package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/seed-96248d0c/gateway"
)

// TestReplayWhileAnEarlierAttemptReads retries while the transport still reads the body for the first attempt. A
// RoundTripper may do so after it has returned.
func TestReplayWhileAnEarlierAttemptReads(t *testing.T) {
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
		attempts := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1, Budget: 100},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if attempts++; attempts == 1 {
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
					t.Errorf("the second attempt read %d bytes, %v", len(body), err)
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

// TestReplayOfALateRead answers the second attempt before the body has ended, while a read of the first attempt is
// still under way. The bytes of that read belong to the second attempt.
func TestReplayOfALateRead(t *testing.T) {
	in, out := io.Pipe()
	begun := make(chan bool)
	source := io.MultiReader(strings.NewReader("01234"), &notice{in, begun})
	attempts := 0
	got := make(chan string, 1)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			begin := make([]byte, 5)
			io.ReadFull(r.Body, begin)
			if attempts++; attempts == 1 {
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
		t.Errorf("the second attempt read %s", got)
	}
	res.Body.Close()
}

// notice closes begun when it is first read.
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

// TestNoRetryOfABrokenBody uses a request whose own body fails, on a connection from the pool. That is not a dead
// connection.
func TestNoRetryOfABrokenBody(t *testing.T) {
	attempts := 0
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Retry: gateway.RetryOptions{Attempts: 3, Backoff: -1},
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			attempts++
			httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: true})
			_, err := io.ReadAll(r.Body)
			return nil, err
		}),
	})
	broken := io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF))
	_, err := u.RoundTrip(httptest.NewRequest("PUT", "/", broken))
	if !errors.Is(err, io.ErrUnexpectedEOF) || attempts != 1 {
		t.Errorf("%d attempts, %v", attempts, err)
	}
}

// TestReplayHasTrailersOfItsOwn lets the transport go on sending the first attempt, with its trailers, during the
// second one.
func TestReplayHasTrailersOfItsOwn(t *testing.T) {
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
		attempts := 0
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
			Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				if attempts++; attempts == 1 {
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
					t.Errorf("the second attempt sent %q, %v, %v", body, err, r.Trailer)
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
