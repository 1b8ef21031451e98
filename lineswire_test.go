package gateway_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// inTurn is RoundRobin, as a Balancer of the user's, which might read the request's fields.
type inTurn struct{ gateway.Balancer }

// received is a request as a target got it.
type received struct {
	Method, Target, Host, Proto string
	Header, Trailer             http.Header
	Length                      int64
	Coding                      []string
	Body                        string
}

// echo answers with the request as it arrived.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	got := received{r.Method, r.RequestURI, r.Host, r.Proto, r.Header, r.Trailer, r.ContentLength, r.TransferEncoding, string(body)}
	json.NewEncoder(w).Encode(got)
}

// echoTarget starts a target that runs echo. It returns its URL, and the options of a transport for it.
func echoTarget(t *testing.T, protocol string) (string, *gateway.TransportOptions) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	to := &gateway.TransportOptions{}
	if protocol == "unix" {
		path := filepath.Join(t.TempDir(), "s")
		s.Listener.Close()
		s.Listener = must(net.Listen("unix", path))
		startServer(t, http1, s)
		return "unix://" + path, to
	}
	startServer(t, protocol, s)
	if protocol == http2 {
		to.TLS = &tls.Config{RootCAs: rootsOf(s)}
		return s.URL, to
	}
	return strings.Replace(s.URL, "http:", "h2c:", 1), to
}

// askEcho returns what the target got, without what differs in every request.
func askEcho(t *testing.T, w *way, r *http.Request) (got received) {
	res := w.do(t, r)
	if res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Traceparent", "X-Trace-Id", "X-Forwarded-Host"} {
		if len(got.Header[name]) != 1 {
			t.Errorf("%s: %q", name, got.Header[name])
		}
		delete(got.Header, name)
	}
	return got
}

// TestRetryWithAnotherProtocol sends requests whose first target breaks the connection off, to a second one with
// another protocol. It makes no difference whether the fields were first made as lines.
func TestRetryWithAnotherProtocol(t *testing.T) {
	var refused atomic.Int64
	broken := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.Copy(io.Discard, r.Body)
		refused.Add(1)
	})
	closed := "http://127.0.0.1:1"
	for _, behind := range []string{http2, h2c, "unix"} {
		link, to := echoTarget(t, behind)
		for _, before := range []string{http1, http2} {
			for _, first := range []string{broken, closed} {
				ways := [2]*way{}
				for i, b := range []gateway.Balancer{gateway.RoundRobin(), inTurn{gateway.RoundRobin()}} {
					ways[i] = newWayTo(t, before, gateway.NewUpstream("u", gateway.MustTargets(first, link), &gateway.UpstreamOptions{
						Balancer: b, Transport: newTransport(t, to), Retry: gateway.RetryOptions{Attempts: 2, Backoff: -1, Budget: 1}, Health: gateway.HealthOptions{Unhealthy: -1},
					}), nil)
				}
				for _, tt := range []struct {
					name, method string
					body         func() io.Reader
					header       http.Header
				}{
					{"GET", "GET", func() io.Reader { return nil }, http.Header{"Cookie": {"a=b", "c=d"}, "X-List": {"b", "a", "é"}}},
					{"TE", "GET", func() io.Reader { return nil }, http.Header{"Te": {"trailers"}}},
					{"no User-Agent", "GET", func() io.Reader { return nil }, http.Header{"User-Agent": nil, "X-Forwarded-For": {"1.2.3.4"}, "X_user_id": {"eve"}}},
					{"small", "PUT", func() io.Reader { return strings.NewReader("small") }, http.Header{"Content-Type": {"text/plain"}}},
					{"large", "PUT", func() io.Reader { return bytes.NewReader(make([]byte, 40<<10)) }, nil},
					{"chunked", "PUT", func() io.Reader { return io.MultiReader(strings.NewReader("in chunks")) }, http.Header{"X-Large": {strings.Repeat("x", 5000)}}},
					{"empty", "PUT", func() io.Reader { return nil }, nil},
				} {
					t.Run(fmt.Sprintf("%s/%v/%s/%s", behind, first == closed, before, tt.name), func(t *testing.T) {
						var got [2]received
						for n := range 4 { // every second request of a way begins with the first target
							r := newRequest(t, tt.method, ways[n%2].url+"/a%2Fb?c=d", tt.body())
							maps.Copy(r.Header, tt.header)
							got[n%2] = askEcho(t, ways[n%2], r)
						}
						if !reflect.DeepEqual(got[0], got[1]) {
							t.Errorf("as lines\n%+v\nas a header\n%+v", got[0], got[1])
						}
					})
				}
			}
		}
	}
	if refused.Load() == 0 {
		t.Error("the broken target was never asked")
	}
}
