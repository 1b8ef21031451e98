package gateway_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// TestGateFields: how many bytes of fields a Proxy takes.
func TestGateFields(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limit  int
		host   string
		fields http.Header
		status int
	}{
		{"none", 0, "x", nil, 200},
		{"the default's last", 0, "x", http.Header{"A": {strings.Repeat("a", 64<<10-4-1-9)}}, 200},
		{"above the default", 0, "x", http.Header{"A": {strings.Repeat("a", 64<<10-4-1-8)}}, 431},
		{"in many fields", 0, "x", http.Header{"A": strings.Split(strings.Repeat("a", 11_000), "")}, 431},
		{"without a limit", -1, "x", http.Header{"A": {strings.Repeat("a", 1<<20)}}, 200},
		{"names count", 20, "x", http.Header{"Abcdef": {"a"}}, 200},
		{"names count, above", 20, "x", http.Header{"Abcdefg": {"a"}}, 431},
		{"the Host counts", 20, "example.com", http.Header{"A": {"a"}}, 431},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
				return answered(r, 200, http.NoBody), nil
			}), &gateway.ProxyOptions{MaxFieldBytes: tt.limit})
			r := httptest.NewRequest("GET", "/", nil)
			r.Host = tt.host
			maps.Copy(r.Header, tt.fields)
			rec := recorded(p, r)
			if rec.Code != tt.status {
				t.Errorf("got %d, want %d", rec.Code, tt.status)
			}
		})
	}
}

// TestGateUpstream: what no transport would send is refused before one is asked, for whoever uses an Upstream.
func TestGateUpstream(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *http.Request)
	}{
		{"method", func(r *http.Request) { r.Method = "GE T" }},
		{"no header", func(r *http.Request) { r.Header = nil }},
		{"field name", func(r *http.Request) { r.Header["a b"] = []string{"x"} }},
		{"field value", func(r *http.Request) { r.Header["A"] = []string{"x\r\ny"} }},
		{"trailer name", func(r *http.Request) { r.Trailer = http.Header{"a b": nil} }},
		{"trailer that frames", func(r *http.Request) { r.Trailer = http.Header{"Content-Length": nil} }},
		{"host", func(r *http.Request) { r.Host = "a b" }},
		{"length without a body", func(r *http.Request) { r.ContentLength = 5 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := false
			circuit := gateway.NewCircuit("c", nil)
			up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{
				Circuit: circuit,
				Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					asked = true
					return answered(r, 200, http.NoBody), nil
				}),
			})
			for range 6 {
				r := newRequest(t, "GET", "http://x/", nil)
				tt.change(r)
				_, err := up.RoundTrip(r)
				var e *gateway.Error
				if !errors.As(err, &e) || e.Status != 400 {
					t.Fatalf("got %v", err)
				}
			}
			if asked || circuit.State() != gateway.CircuitClosed {
				t.Errorf("asked: %v, circuit: %v", asked, circuit.State())
			}
		})
	}
}

// TestGateShortage: a process that has no file descriptors left says nothing about its targets.
func TestGateShortage(t *testing.T) {
	circuit := gateway.NewCircuit("c", nil)
	up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{
		Circuit: circuit,
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("socket: %w", syscall.EMFILE)}
		}),
	})
	for range 6 {
		if _, err := up.RoundTrip(newRequest(t, "GET", "http://x/", nil)); !errors.Is(err, gateway.ErrOverloaded) {
			t.Fatalf("got %v", err)
		}
	}
	if circuit.State() != gateway.CircuitClosed {
		t.Errorf("the circuit is %v", circuit.State())
	}
}

// TestGateFraming: a transport gets the length of a body and its trailers in one place only.
func TestGateFraming(t *testing.T) {
	seen := make(chan *http.Request, 1)
	record := roundTrip(func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		seen <- r
		if err != nil || string(body) != "hello" {
			t.Errorf("body %q, %v", body, err)
		}
		return answered(r, 200, http.NoBody), nil
	})
	check := func(t *testing.T, length int64) {
		t.Helper()
		r := <-seen
		for _, name := range []string{"Content-Length", "Transfer-Encoding", "Trailer"} {
			if v, ok := r.Header[name]; ok {
				t.Errorf("the transport got %s: %q", name, v)
			}
		}
		if r.ContentLength != length {
			t.Errorf("the transport got the length %d, want %d", r.ContentLength, length)
		}
	}
	for _, to := range []http.RoundTripper{
		record,
		gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{Transport: record}),
	} {
		for protocol, fields := range map[string][]string{
			http1: {"Content-Length: 5", "X: y"},
			http2: {"content-length: 5", "trailer: x-sum"},
		} {
			t.Run(fmt.Sprintf("%s to %T", protocol, to), func(t *testing.T) {
				c := rawClient{request: rawRequest{method: "POST", path: "/", fields: fields, body: "hello", whole: true}}
				if protocol == http2 {
					c.request.trailer = []string{"x-sum: 1"}
				}
				c.run(t, protocol, serveProtocol(t, map[string]string{http1: http1, http2: h2c}[protocol], gateway.Proxy(to, nil)))
				check(t, map[string]int64{http1: 5, http2: -1}[protocol])
			})
		}
	}
	t.Run("without a Proxy", func(t *testing.T) {
		up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{Transport: record})
		r := newRequest(t, "POST", "http://x/", strings.NewReader("hello"))
		r.Header = http.Header{"Content-Length": {"7"}, "Trailer": {"a"}, "transfer-encoding": {"gzip"}, "Kept": {"1"}}
		if _, err := up.RoundTrip(r); err != nil {
			t.Fatal(err)
		}
		if len(r.Header) != 4 {
			t.Errorf("the caller's header is now %v", r.Header)
		}
		check(t, 5)
	})
}

// upgradeTarget answers an upgrade to the protocol that was asked for and then sends back what it reads. Other
// requests get 426.
func upgradeTarget(w http.ResponseWriter, r *http.Request) {
	protocol := r.Header.Get("Upgrade")
	if protocol == "" {
		w.Header().Set("X-Seen", fmt.Sprint(r.Proto, r.Header["Connection"], r.Header["Upgrade"]))
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // over HTTP/2
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	io.Copy(conn, rw)
}

// TestUpgradeTowards: an upgrade reaches a target that could speak HTTP/2 over TLS, over HTTP/1.1. A target that
// speaks HTTP/2 alone gets a plain request.
func TestUpgradeTowards(t *testing.T) {
	for _, tt := range []struct {
		behind string
		status int
	}{{http1, 101}, {http2, 101}, {h2c, 426}} {
		for _, protocol := range []string{"websocket", "SPDY/3.1"} {
			t.Run(tt.behind+" "+protocol, func(t *testing.T) {
				w := newWay(t, http1, tt.behind, nil, upgradeTarget)
				// A connection of HTTP/2 to the target is there already.
				w.do(t, newRequest(t, "GET", w.url, nil))
				if line := w.journal.next(t); line["status"] != "426" {
					t.Fatalf("without an upgrade: %v", line)
				}
				conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
				br := bufio.NewReader(conn)
				res, err := http.ReadResponse(br, nil)
				if err != nil || res.StatusCode != tt.status {
					t.Fatalf("got %v, %v; want %d", res, err, tt.status)
				}
				if tt.status != 101 {
					if got := res.Header.Get("X-Seen"); got != "HTTP/2.0[] []" {
						t.Errorf("the target saw %q", got)
					}
					return
				}
				io.WriteString(conn, "hello")
				got := make([]byte, 5)
				if _, err := io.ReadFull(br, got); err != nil || string(got) != "hello" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
}

// TestUpgradeForeignTransport: a transport that is not ours may refuse an upgrade. That is no failure of the target.
func TestUpgradeForeignTransport(t *testing.T) {
	s := serveProtocol(t, http2, http.HandlerFunc(upgradeTarget))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: rootsOf(s)}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	circuit := gateway.NewCircuit("c", nil)
	up := gateway.NewUpstream("u", gateway.MustTargets(s.URL), &gateway.UpstreamOptions{Transport: transport, Circuit: circuit})
	w := newWayTo(t, http1, up, nil)
	for range 6 {
		r := newRequest(t, "GET", w.url, nil)
		r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}
		w.do(t, r)
		if line := w.journal.next(t); line["status"] != "400" || line["outcome"] != "rejected" {
			t.Fatalf("logged %v", line)
		}
	}
	if circuit.State() != gateway.CircuitClosed {
		t.Errorf("the circuit is %v", circuit.State())
	}
}

// TestGateTargetsLimit: what an HTTP/2 target has announced as too large is not sent to it.
func TestGateTargetsLimit(t *testing.T) {
	for _, behind := range []string{http2, h2c} {
		t.Run(behind, func(t *testing.T) {
			s := httptest.NewUnstartedServer(text("ok"))
			s.Config.MaxHeaderBytes = 4 << 10
			circuit := gateway.NewCircuit("c", nil)
			w := newWayTo(t, http1, newTarget(t, behind, s, gateway.TransportOptions{}, gateway.UpstreamOptions{Circuit: circuit}), nil)
			w.do(t, newRequest(t, "GET", w.url, nil)) // the target's settings have arrived
			w.journal.next(t)
			for range 6 {
				r := newRequest(t, "GET", w.url, nil)
				r.Header.Set("A", strings.Repeat("a", 20<<10))
				if res := w.do(t, r); res.StatusCode != 431 {
					t.Fatalf("got %d", res.StatusCode)
				}
				if line := w.journal.next(t); line["outcome"] != "rejected" {
					t.Errorf("logged %v", line)
				}
			}
			if circuit.State() != gateway.CircuitClosed {
				t.Errorf("the circuit is %v", circuit.State())
			}
		})
	}
}

// TestProxyRefusesFirst: what no transport could send is refused before any RoundTripper is asked, whoever has set it.
func TestProxyRefusesFirst(t *testing.T) {
	for _, tt := range []struct {
		name, method string
		header       http.Header
		rewritten    http.Header
	}{
		{"method", "GE T", nil, nil},
		{"name of a field", "GET", http.Header{"A B": {"x"}}, nil},
		{"value of a field", "GET", http.Header{"A": {"x\r\ny: z"}}, nil},
		{"name of a field that Rewrite sets", "GET", nil, http.Header{"A B": {"x"}}},
		{"value of a field that Rewrite sets", "GET", nil, http.Header{"A": {"x\n"}}},
	} {
		asked := false
		rec := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Method = tt.method
		maps.Copy(r.Header, tt.header)
		var o gateway.ProxyOptions
		if tt.rewritten != nil {
			o.Rewrite = func(pr *httputil.ProxyRequest) { maps.Copy(pr.Out.Header, tt.rewritten) }
		}
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			asked = true
			return answered(r, 200, http.NoBody), nil
		}), &o).ServeHTTP(rec, r)
		if asked || rec.Code != 400 {
			t.Errorf("%s: status %d, asked %v", tt.name, rec.Code, asked)
		}
	}
}

// TestProxyDropsMalformedTrailers: the server of net/http lets a name through that is no token.
func TestProxyDropsMalformedTrailers(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := serveProtocol(t, http1, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer
	}))
	front := serveProtocol(t, http1, gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil), nil))
	conn := raw(t, front, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: a b, C\r\n\r\n1\r\na\r\n0\r\nC: d\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	if trailer := fmt.Sprint(<-got); trailer != "map[C:[d]]" {
		t.Errorf("trailers %s", trailer)
	}
}
