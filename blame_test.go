package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// blameRow is a request that says nothing about the target, though it may make a gateway think so.
type blameRow struct {
	name    string
	request rawRequest
	then    int
	only    string // the protocol before the gateway; "" means both
	behind  string // the protocol of the target; "" means all
	stalls  bool   // it outlasts the short limits of blameTimeout and blamePause
	failed  bool   // the outcome may be a failure: that of a request, not of the target
}

// blameTimeout is UpstreamOptions.Timeout, and blamePause ProxyOptions.BodyTimeout, for the rows that stall.
const (
	blameTimeout = 800 * time.Millisecond
	blamePause   = time.Second
)

var (
	upgradeFields = []string{"Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	grpcFields    = []string{"Content-Type: application/grpc", "Te: trailers"}
)

func with(fields []string, more ...string) []string { return slices.Concat(fields, more) }

// blameRows are sent six times each: more often than a default circuit allows failures, and a default health check.
var blameRows = []blameRow{
	// What a transport refuses to send.
	{name: "method that is no token", request: rawRequest{method: "GE T", path: "/", whole: true}},
	{name: "method of control bytes", request: rawRequest{method: "GET\x01", path: "/", whole: true}},
	{name: "CONNECT", request: rawRequest{method: "CONNECT", path: "/", whole: true}},
	{name: "PRI", request: rawRequest{method: "PRI", path: "/", whole: true}},
	{name: "asterisk", request: rawRequest{method: "OPTIONS", path: "*", whole: true}},
	{name: "trailer with a blank", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked", "Trailer: a b"}, body: "x", whole: true, trailer: []string{"a b: 1"}}},
	{name: "announced trailer with a blank", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked", "Trailer: a b"}, body: "x", whole: true}},
	{name: "trailer of control bytes", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked", "Trailer: X"}, body: "x", whole: true, trailer: []string{"X: \x01"}}},
	{name: "trailer that frames", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked", "Trailer: Content-Length"}, body: "x", whole: true, trailer: []string{"Content-Length: 5"}}},
	{name: "trailers beside a length", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 5", "Trailer: X"}, body: "hello", whole: true, trailer: []string{"X: 1"}}},
	{name: "large trailers", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked"}, body: "x", whole: true, trailer: []string{"X: " + strings.Repeat("a", 40<<10)}}},
	{name: "fields of 80 KiB", request: rawRequest{method: "GET", path: "/", fields: []string{"X: " + strings.Repeat("a", 80<<10)}, whole: true}},
	{name: "fields of 80 KiB in all", request: rawRequest{method: "GET", path: "/", fields: slices.Repeat([]string{"X: " + strings.Repeat("a", 1<<10)}, 80), whole: true}},
	// A target of HTTP/2 may answer these by GOAWAY, after which net/http leaves a request without an answer now and then.
	{name: "fields beyond the target's limit", request: rawRequest{method: "GET", path: "/", fields: []string{"X: " + strings.Repeat("a", 30<<10)}, whole: true}, stalls: true},
	{name: "path beyond the target's limit", request: rawRequest{method: "GET", path: "/" + strings.Repeat("a", 30<<10), whole: true}, stalls: true},
	{name: "field with a blank in its name", request: rawRequest{method: "GET", path: "/", fields: []string{"a b: c"}, whole: true}},
	{name: "field of control bytes", request: rawRequest{method: "GET", path: "/", fields: []string{"A: \x01"}, whole: true}},
	{name: "field of high bytes", request: rawRequest{method: "GET", path: "/", fields: []string{"A: \xff\xfe"}, whole: true}},
	{name: "Host with a blank", request: rawRequest{method: "GET", path: "/", host: "a b", whole: true}},
	{name: "Host with a comma", request: rawRequest{method: "GET", path: "/", host: "a,b", whole: true}},
	{name: "Host that is not ASCII", request: rawRequest{method: "GET", path: "/", host: "b\xc3\xbccher.example", whole: true}},
	{name: "Host that is no punycode", request: rawRequest{method: "GET", path: "/", host: "xn--a\xff", whole: true}},
	{name: "path with a blank", request: rawRequest{method: "GET", path: "/a b", whole: true}},
	{name: "path with NUL", request: rawRequest{method: "GET", path: "/%00", whole: true}},
	{name: "path with a line end", request: rawRequest{method: "GET", path: "/a%0d%0ab", whole: true}},
	{name: "path that is none", request: rawRequest{method: "GET", path: "a", whole: true}},
	{name: "query of odd bytes", request: rawRequest{method: "GET", path: "/?a=\x7f&b=%zz&c;d&\"", whole: true}},
	{name: "absolute target", request: rawRequest{method: "GET", path: "http://evil.example/", whole: true}},

	// Upgrades.
	{name: "WebSocket that the client drops", request: rawRequest{method: "GET", path: "/switch", fields: with(upgradeFields, "Upgrade: websocket"), whole: true}, then: thenLeaveInAnswer},
	{name: "SPDY that the client drops", request: rawRequest{method: "GET", path: "/switch", fields: with(upgradeFields, "Upgrade: SPDY/3.1"), whole: true}, then: thenLeaveInAnswer},
	{name: "upgrade that the client drops at once", request: rawRequest{method: "GET", path: "/switch", fields: with(upgradeFields, "Upgrade: websocket"), whole: true}, then: thenLeave},
	{name: "upgrade that the target refuses", request: rawRequest{method: "GET", path: "/status/426", fields: with(upgradeFields, "Upgrade: websocket"), whole: true}},
	{name: "upgrade that the target ignores", request: rawRequest{method: "GET", path: "/", fields: with(upgradeFields, "Upgrade: foo"), whole: true}},
	{name: "upgrade to HTTP/2", request: rawRequest{method: "GET", path: "/", fields: []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"}, whole: true}},
	{name: "upgrade with a body", request: rawRequest{method: "POST", path: "/switch", fields: []string{"Connection: Upgrade", "Upgrade: foo", "Content-Length: 5"}, body: "hello", whole: true}},

	// Bodies that do not come, or not as was said.
	{name: "stalled upload", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 10"}, body: "half"}, stalls: true},
	{name: "stalled upload of a long body", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 20000"}, body: "half"}, stalls: true},
	{name: "stalled upload in chunks", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked"}, body: "half"}, stalls: true},
	{name: "stalled upload of a PUT", request: rawRequest{method: "PUT", path: "/", fields: []string{"Content-Length: 10"}, body: "half"}, stalls: true},
	{name: "stalled upload of a long body by PUT", request: rawRequest{method: "PUT", path: "/", fields: []string{"Content-Length: 20000"}, body: "half"}, stalls: true},
	{name: "stalled upload to a target that answers at its end", request: rawRequest{method: "POST", path: "/early", fields: []string{"Content-Length: 10"}, body: "half"}, stalls: true},
	{name: "stalled upload of a long body to a target that answers at its end", request: rawRequest{method: "POST", path: "/early", fields: []string{"Content-Length: 20000"}, body: "half"}, stalls: true},
	{name: "upload without a byte", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 10"}}, stalls: true},
	{name: "upload of a long body without a byte", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 20000"}}, stalls: true},
	{name: "aborted upload", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 20000"}, body: "half"}, then: thenLeaveReached},
	{name: "aborted upload at once", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 10"}, body: "half"}, then: thenLeave},
	{name: "aborted upload of a long body at once", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 20000"}, body: "half"}, then: thenLeave},
	{name: "aborted upload in chunks", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked"}, body: "half"}, then: thenLeaveReached},
	{name: "aborted upload of a GET", request: rawRequest{method: "GET", path: "/", fields: []string{"Content-Length: 20000"}, body: "half"}, then: thenLeaveReached},
	{name: "body shorter than its length", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 10"}, body: "half", whole: true}, then: thenHalfClose, only: http1, stalls: true},
	{name: "body shorter than its length", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 10"}, body: "half", whole: true}, only: h2c},
	{name: "body longer than its length", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 2"}, body: "longer", whole: true}},
	{name: "body above the limit", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: 200000"}, body: strings.Repeat("a", 200_000), whole: true}},
	{name: "chunks above the limit", request: rawRequest{method: "POST", path: "/", fields: []string{"Transfer-Encoding: chunked"}, body: strings.Repeat("a", 200_000), whole: true}},
	{name: "malformed chunk", only: http1, request: rawRequest{raw: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nno number\r\n"}},
	{name: "malformed end of a chunk", only: http1, request: rawRequest{raw: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"}},
	{name: "malformed trailer", only: http1, request: rawRequest{raw: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nno colon\r\n\r\n"}},
	{name: "two lengths", only: http1, request: rawRequest{raw: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"}},
	{name: "length that is none", request: rawRequest{method: "POST", path: "/", fields: []string{"Content-Length: -5"}, body: "hello", whole: true}},
	{name: "unknown transfer coding", only: http1, request: rawRequest{raw: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"}},
	{name: "HTTP/1.0", only: http1, request: rawRequest{raw: "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello"}},
	{name: "Expect that is not followed", request: rawRequest{method: "POST", path: "/", fields: []string{"Expect: 100-continue", "Content-Length: 10"}}, stalls: true},
	{name: "Expect of a client that leaves", request: rawRequest{method: "POST", path: "/", fields: []string{"Expect: 100-continue", "Content-Length: 10"}}, then: thenLeaveReached},
	{name: "Expect of something else", request: rawRequest{method: "POST", path: "/", fields: []string{"Expect: a miracle", "Content-Length: 5"}, body: "hello", whole: true}},
	{name: "body of a HEAD", request: rawRequest{method: "HEAD", path: "/", fields: []string{"Content-Length: 5"}, body: "hello", whole: true}},
	{name: "TRACE with a body", request: rawRequest{method: "TRACE", path: "/", fields: []string{"Content-Length: 5"}, body: "hello", whole: true}},

	// Clients that leave.
	{name: "leaves while it waits", request: rawRequest{method: "GET", path: "/never", whole: true}, then: thenLeaveReached},
	{name: "leaves at once", request: rawRequest{method: "GET", path: "/", whole: true}, then: thenLeave},
	{name: "leaves in the answer", request: rawRequest{method: "GET", path: "/endless", whole: true}, then: thenLeaveInAnswer},
	{name: "leaves in the answer, with its body not sent", request: rawRequest{method: "POST", path: "/endless", fields: []string{"Content-Length: 20000"}, body: "half"}, then: thenLeaveInAnswer},
	{name: "leaves a conversation", request: rawRequest{method: "POST", path: "/echo", fields: []string{"Transfer-Encoding: chunked"}, body: "half"}, then: thenLeaveInAnswer},
	{name: "stalls with the answer begun", request: rawRequest{method: "POST", path: "/echo", fields: []string{"Content-Length: 20000"}, body: "half"}, stalls: true},

	// Deadlines that the client chose.
	{name: "gRPC deadline", request: rawRequest{method: "POST", path: "/deadline", fields: with(grpcFields, "Grpc-Timeout: 50m"), body: "\x00\x00\x00\x00\x00", whole: true}, only: h2c, behind: "HTTP/2"},
	{name: "gRPC deadline of a stream", request: rawRequest{method: "POST", path: "/deadline", fields: with(grpcFields, "Grpc-Timeout: 50m"), body: "\x00\x00\x00\x00\x00"}, only: h2c, behind: "HTTP/2", stalls: true},
	{name: "gRPC stream that the client resets", request: rawRequest{method: "POST", path: "/echo", fields: grpcFields, body: "\x00\x00\x00\x00\x00"}, then: thenLeaveInAnswer, only: h2c, behind: "HTTP/2"},

	// Answers that speak of the request.
	{name: "501", request: rawRequest{method: "BREW", path: "/status/501", whole: true}, failed: true},
	{name: "505", request: rawRequest{method: "GET", path: "/status/505", whole: true}, failed: true},
	{name: "400", request: rawRequest{method: "GET", path: "/status/400", whole: true}},
	{name: "408", request: rawRequest{method: "GET", path: "/status/408", whole: true}},
	{name: "431", request: rawRequest{method: "GET", path: "/status/431", whole: true}},
	{name: "499", request: rawRequest{method: "GET", path: "/status/499", whole: true}},
}

// blameTarget is a target in good health. It reports on reached that it has a request, if somebody asks.
func blameTarget(reached chan<- bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		go func() {
			select {
			case reached <- true:
			case <-r.Context().Done():
			}
		}()
		path := strings.TrimPrefix(r.URL.Path, "/second")
		status, isStatus := strings.CutPrefix(path, "/status/")
		switch {
		case isStatus:
			code, _ := strconv.Atoi(status)
			w.WriteHeader(code)
		case path == "/switch":
			upgradeTarget(w, r)
		case path == "/early":
			io.ReadFull(r.Body, make([]byte, 4))
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "early")
		case path == "/never":
			<-r.Context().Done()
		case path == "/endless":
			http.NewResponseController(w).EnableFullDuplex()
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("endless ", 1<<10)); err != nil {
					return
				}
				http.NewResponseController(w).Flush()
			}
		case path == "/echo":
			http.NewResponseController(w).EnableFullDuplex()
			http.NewResponseController(w).Flush()
			io.Copy(w, r.Body)
		case path == "/deadline": // as a gRPC server does when the call's time is over: it resets the stream
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		default:
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n)
		}
	}
}

// TestBlame: no client can make a target look sick. After six of each request, the circuit is closed and both targets are
// in. The first target gets nearly all of them.
func TestBlame(t *testing.T) {
	all := newCrowd(t)
	defer all.wait()
	for _, row := range blameRows {
		for _, before := range []string{http1, h2c} {
			for _, behind := range []string{http1, http2, h2c} {
				if row.only != "" && row.only != before || row.behind == "HTTP/2" && behind == http1 {
					continue
				}
				all.run(row.name+"/"+before+" to "+behind, func(t *testing.T) { row.run(t, before, behind) })
			}
		}
	}
}

func (row blameRow) run(t *testing.T, before, behind string) {
	reached := make(chan bool)
	target := httptest.NewUnstartedServer(blameTarget(reached))
	target.Config.MaxHeaderBytes = 8 << 10
	circuit := gateway.NewCircuit("target", nil)
	o, po := gateway.UpstreamOptions{Circuit: circuit}, gateway.ProxyOptions{MaxBodyBytes: 100_000}
	if row.stalls {
		o.Timeout, po.BodyTimeout = blameTimeout, blamePause
	}
	link, transport := startTarget(t, behind, target, gateway.TransportOptions{})
	o.Transport = transport
	up := gateway.NewUpstream("target", gateway.MustTargets(link), &o)
	first := up.Status()[0].Target.URL
	second := *first
	second.Path = "/second"
	up.SetTargets([]gateway.Target{{URL: first, Weight: 1_000_000}, {URL: &second}})

	if row.stalls {
		connect(t, link, transport)
	}

	var mu sync.Mutex
	outcomes := map[string]int{}
	observe := gateway.Observe(&gateway.ObserveOptions{Logger: logged(func(line map[string]string) {
		mu.Lock()
		defer mu.Unlock()
		outcomes[line["outcome"]+" "+line["status"]+" "+line["error"]]++
	})})
	h := observe(gateway.Proxy(up, &po))
	var serving atomic.Int32
	front := serveProtocol(t, before, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Add(-1)
		h.ServeHTTP(w, r)
	}))

	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() { rawClient{request: row.request, then: row.then, reached: reached}.run(t, before, front) })
		if row.then != thenRead {
			clients.Wait() // one after the other; those that wait for an answer may wait together
		}
	}
	clients.Wait()
	front.Close()
	// The server does not wait for upgraded connections and those of HTTP/2.
	pending := func() bool {
		return serving.Load() > 0 || slices.ContainsFunc(up.Status(), func(s gateway.TargetStatus) bool { return s.Pending > 0 })
	}
	for late := deadline(); pending() && time.Now().Before(late); {
		runtime.Gosched()
	}

	if circuit.State() != gateway.CircuitClosed {
		t.Errorf("the circuit is %v", circuit.State())
	}
	for _, s := range up.Status() {
		if !s.Healthy || s.Pending != 0 {
			t.Errorf("%v: healthy %v (%s), %d pending", s.Target.URL, s.Healthy, s.Reason, s.Pending)
		}
	}
	mu.Lock() // a request whose client left at once may begin even now
	defer mu.Unlock()
	for outcome, n := range outcomes {
		kind, _, _ := strings.Cut(outcome, " ")
		if !row.failed && !slices.Contains([]string{"ok", "rejected", "client_canceled"}, kind) {
			t.Errorf("%d times: %s", n, outcome)
		}
	}
	if t.Failed() {
		t.Logf("outcomes: %v", outcomes)
	}
}

// calmTransport fails as net/http does when an HTTP/2 target ends the connection or one request with ENHANCE_YOUR_CALM.
type calmTransport struct {
	text  string
	begun bool
}

func (c calmTransport) RoundTrip(*http.Request) (*http.Response, error) {
	err := errors.New(c.text)
	if !c.begun {
		return nil, err
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(iotest.ErrReader(err))}, nil
}

// TestBlameCalm: a client that cancels many requests makes an HTTP/2 target close the connection with ENHANCE_YOUR_CALM.
// The requests of others on that connection fail, but the target is not sick.
func TestBlameCalm(t *testing.T) {
	for _, text := range []string{
		`http2: server sent GOAWAY and closed the connection; LastStreamID=2551, ErrCode=ENHANCE_YOUR_CALM, debug=""`,
		"stream error: stream ID 7; ENHANCE_YOUR_CALM; received from peer",
	} {
		for _, begun := range []bool{false, true} {
			circuit := gateway.NewCircuit("target", nil)
			up := gateway.NewUpstream("target", gateway.MustTargets("h2c://x"), &gateway.UpstreamOptions{
				Circuit: circuit, Transport: calmTransport{text, begun}, Health: gateway.HealthOptions{MaxEjected: 1}})
			for range 6 {
				res, err := up.RoundTrip(newRequest(t, "GET", "http://x/", nil))
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				if !errors.Is(err, gateway.ErrOverloaded) {
					t.Errorf("%s: it ended with %v", text, err)
				}
			}
			if s := up.Status()[0]; circuit.State() != gateway.CircuitClosed || !s.Healthy || s.Pending != 0 {
				t.Errorf("%s: the circuit is %v; healthy %v (%s), %d pending", text, circuit.State(), s.Healthy, s.Reason, s.Pending)
			}
		}
	}
}
