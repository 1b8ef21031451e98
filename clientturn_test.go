package gateway_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// TestBlameCutWhileStalled: a target that breaks off its response while its client has still to send is not to blame. It
// is where the client has sent everything.
func TestBlameCutWhileStalled(t *testing.T) {
	target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
			<-time.After(100 * time.Millisecond)
		}
	})
	for body, want := range map[string]gateway.CircuitState{"a": gateway.CircuitClosed, "ab": gateway.CircuitOpen} {
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
		up := gateway.NewUpstream("u", gateway.MustTargets(target), &gateway.UpstreamOptions{Circuit: c})
		front := serveProtocol(t, http1, gateway.Proxy(up, nil))
		conn := raw(t, front, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"+body)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(res.Body); string(got) != "ab" || err == nil {
			t.Errorf("%q sent: read %q, %v", body, got, err)
		}
		if c.State() != want {
			t.Errorf("%q sent: the circuit is %v", body, c.State())
		}
	}
}

// TestBodyTimeoutOfAStream: a body without a length may pause once its answer has begun.
func TestBodyTimeoutOfAStream(t *testing.T) {
	const limit = 100 * time.Millisecond
	backend := serveProtocol(t, h2c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		io.Copy(w, r.Body)
	}))
	up := gateway.NewUpstream("u", gateway.MustTargets("h2c://"+backend.Listener.Addr().String()), nil)
	front := serveProtocol(t, http2, gateway.Proxy(up, &gateway.ProxyOptions{BodyTimeout: limit}))
	body, w := io.Pipe()
	res, err := front.Client().Do(newRequest(t, "POST", front.URL, body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-time.After(3 * limit)
	io.WriteString(w, "late")
	w.Close()
	if got, err := io.ReadAll(res.Body); string(got) != "late" || err != nil {
		t.Errorf("echoed %q, %v", got, err)
	}
}

// TestCanceledUpload: when other code cancels the request's context, an upload that stalls ends.
func TestCanceledUpload(t *testing.T) {
	backend := serveProtocol(t, http1, http.HandlerFunc(readAll))
	returned := make(chan bool)
	h := gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil), nil)
	front := serveProtocol(t, http1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(returned)
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		time.AfterFunc(50*time.Millisecond, cancel)
		h.ServeHTTP(w, r.WithContext(ctx))
	}))
	raw(t, front, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	select {
	case <-returned:
	case <-time.After(5 * time.Second):
		t.Error("the handler waits for the client")
	}
}

// TestProxyRefusesMalformedFields: a field that a middleware has set and that no transport could send is refused before
// any RoundTripper is asked.
func TestProxyRefusesMalformedFields(t *testing.T) {
	for _, header := range []http.Header{{"A B": {"x"}}, {"A": {"x\r\ny: z"}}} {
		asked := false
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = header
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			asked = true
			return answered(r, 200, http.NoBody), nil
		}), nil).ServeHTTP(rec, r)
		if asked || rec.Code != 400 {
			t.Errorf("%q: status %d, asked %v", header, rec.Code, asked)
		}
	}
}

// deadlines is a writer that counts the read deadlines that are set.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetReadDeadline(time.Time) error { d.set++; return nil }

// TestRefusalKeepsTheServersDeadline: before a refusal, the time for the rest of the body is bounded, unless the server has
// a ReadTimeout: that is never extended.
func TestRefusalKeepsTheServersDeadline(t *testing.T) {
	for limit, want := range map[time.Duration]int{0: 1, time.Second: 0} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		ctx := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{ReadTimeout: limit})
		r := httptest.NewRequestWithContext(ctx, "POST", "/", strings.NewReader("abc"))
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			io.CopyN(io.Discard, r.Body, 1)
			return nil, io.ErrUnexpectedEOF
		}), nil).ServeHTTP(w, r)
		if w.Code != 502 || w.set != want {
			t.Errorf("ReadTimeout %v: status %d, %d deadlines", limit, w.Code, w.set)
		}
	}
}
