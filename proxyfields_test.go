package gateway_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestProxyForwardedFields(t *testing.T) {
	seen := make(chan http.Header, 1)
	backend := func(w http.ResponseWriter, r *http.Request) { seen <- r.Header }
	ask := func(f *front) http.Header {
		t.Helper()
		r, _ := http.NewRequest("GET", f.URL, nil)
		r.Host = "shop.example"
		r.Header = http.Header{
			"X-Forwarded-For": {"6.6.6.6", "1.2.3.4"}, "X-Forwarded-Host": {"evil.example"}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Port": {"1"}, "Forwarded": {"for=6.6.6.6"}, "X-Real-Ip": {"6.6.6.6"},
			"X_forwarded_for": {"6.6.6.6"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			"X-Trace-Id": {"0af7651916cd43dd8448eb211c80319c"}, "Client-Cert": {":AA==:"}, "X-Other": {"stays"},
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		h := <-seen
		if got := res.Header.Get("X-Trace-Id"); len(got) != 32 || got != h.Get("X-Trace-Id") || !strings.Contains(h.Get("Traceparent"), got) || got == "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("trace: client %q, backend %q and %q", got, h.Get("X-Trace-Id"), h.Get("Traceparent"))
		}
		return h
	}
	check := func(h http.Header, want map[string]string) {
		t.Helper()
		for name, value := range want {
			if got := strings.Join(h.Values(name), "|"); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		}
		if _, ok := h["X_forwarded_for"]; ok {
			t.Error("an alias came through")
		}
	}
	t.Run("nobody is believed", func(t *testing.T) {
		check(ask(newFront(t, nil, backend)), map[string]string{
			"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "",
			"Forwarded": "", "X-Real-Ip": "127.0.0.1", "Client-Cert": "", "X-Other": "stays",
		})
	})
	t.Run("the peer is believed", func(t *testing.T) {
		check(ask(newFront(t, nil, backend, gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("127.0.0.0/8")))), map[string]string{
			"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 127.0.0.1", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "1",
			"Forwarded": "", "X-Real-Ip": "1.2.3.4", "Client-Cert": "", "X-Other": "stays",
		})
	})
}

func TestProxyRemovesHopByHop(t *testing.T) {
	seen := make(chan http.Header, 1)
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.Header().Set("X-End", "1")
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers, deflate\r\nProxy-Connection: x\r\nProxy-Authorization: Basic x\r\nX-End: 1\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	h := <-seen
	for _, name := range []string{"Connection", "X-Mine", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization"} {
		if h.Get(name) != "" {
			t.Errorf("backend got %s", name)
		}
		if res.Header.Get(name) != "" {
			t.Errorf("client got %s", name)
		}
	}
	if h.Get("X-End") != "1" || h.Get("Te") != "trailers" || res.Header.Get("X-End") != "1" || res.Header.Get("X-Hop") != "" || res.Header.Get("Proxy-Authenticate") != "" {
		t.Errorf("backend got %v, client %v", h, res.Header)
	}
	if got, ok := h["User-Agent"]; ok {
		t.Errorf("the proxy named itself %q", got)
	}
}

// TestForwardHopByHop asks what of a request's and an answer's fields stays on its hop.
func TestForwardHopByHop(t *testing.T) {
	seen := make(chan http.Header, 1)
	var answer string
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		for {
			head, err := readHead(br)
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Errorf("the target got %q: %v", head, err)
			}
			seen <- r.Header
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"+answer+"\r\n")
		}
	})
	for _, tt := range []struct {
		name string
		send string // the fields, each line ended
		gone []string
		stay map[string]string
	}{
		{"the known ones", "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authenticate: x\r\nProxy-Authorization: x\r\nTrailer: X-T\r\nUpgrade: websocket\r\nHTTP2-Settings: AA\r\nProxy: http://evil.example\r\n",
			[]string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Trailer", "Upgrade", "Http2-Settings", "Proxy"}, nil},
		{"named", "Connection: X-One, X-Two\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n", []string{"Connection", "X-One", "X-Two"}, map[string]string{"X-Three": "3"}},
		{"in other case", "Connection: x-ONE\r\nX-One: 1\r\n", []string{"X-One"}, nil},
		{"empty elements", "Connection: ,, ,X-One,\r\nX-One: 1\r\n", []string{"X-One"}, nil},
		{"blanks", "Connection: \t X-One \t,\tX-Two\t\r\nX-One: 1\r\nX-Two: 1\r\n", []string{"X-One", "X-Two"}, nil},
		{"several lines", "Connection: \r\nConnection: X-One\r\nconnection: X-Two\r\nX-One: 1\r\nX-Two: 1\r\n", []string{"X-One", "X-Two"}, nil},
		{"close", "Connection: close, X-One\r\nX-One: 1\r\n", []string{"X-One", "Connection"}, nil},
		{"its several values", "Connection: X-One\r\nX-One: 1\r\nX-One: 2\r\n", []string{"X-One"}, nil},
		{"a part of a name", "Connection: X-On\r\nX-One: 1\r\n", nil, map[string]string{"X-One": "1"}},
		{"TE", "Connection: TE\r\nTE: trailers\r\n", []string{"Connection"}, map[string]string{"Te": "trailers"}},
		{"TE among others", "Connection: TE, close\r\nTE: foo\r\nTE: bar, Trailers\r\n", []string{"Connection"}, map[string]string{"Te": "trailers"}},
		{"TE without trailers", "TE: deflate;q=0.5\r\n", []string{"Te"}, nil},
		{"an upgrade that Connection does not name", "Connection: keep-alive\r\nUpgrade: echo\r\n", []string{"Upgrade"}, nil},
		{"a user agent", "User-Agent: me\r\n", nil, map[string]string{"User-Agent": "me"}},
		{"no user agent", "", []string{"User-Agent"}, nil},
		{"a user agent that Connection names", "Connection: User-Agent\r\nUser-Agent: me\r\n", []string{"User-Agent"}, nil},
		{"what the gateway writes", "Connection: X-Forwarded-For, X-Forwarded-Host, X-Trace-ID, Traceparent\r\n", nil, map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer = tt.send // the target answers with the same fields
			conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.send+"\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			h := <-seen
			for _, name := range tt.gone {
				if got, ok := h[name]; ok {
					t.Errorf("the target saw %s: %q", name, got)
				}
				if got, ok := res.Header[name]; ok && name != "User-Agent" && tt.name != "close" { // net/http hides a Connection that says close
					t.Errorf("the client saw %s: %q", name, got)
				}
			}
			for name, value := range tt.stay {
				if got := strings.Join(h[name], "|"); got != value {
					t.Errorf("the target saw %s: %q, want %q", name, got, value)
				}
			}
			for _, name := range []string{"X-Trace-Id", "Traceparent"} {
				if len(h[name]) != 1 {
					t.Errorf("the target saw %s: %q", name, h[name])
				}
			}
		})
	}
}

// TestForwardManyNamed: a Connection field with as many names as fit, beside as many fields as fit, costs no
// more than both together.
func TestForwardManyNamed(t *testing.T) {
	var got int
	p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		got = len(r.Header)
		return answered(r, 200, http.NoBody), nil
	}), &gateway.ProxyOptions{MaxFieldBytes: -1})
	r := httptest.NewRequest("GET", "/", nil)
	for n := range 50_000 {
		r.Header.Set(fmt.Sprint("X-", n), "1")
	}
	r.Header.Set("Connection", strings.Repeat("a,", 200_000)+"X-7")
	p.ServeHTTP(httptest.NewRecorder(), r)
	if got < 49_999 || got > 50_010 || r.Header.Get("X-7") != "1" {
		t.Errorf("%d fields went on; In has X-7 %q", got, r.Header.Get("X-7"))
	}
}

// TestForwardLeavesTheRequestAlone: what Proxy and Rewrite change is the outgoing request alone.
func TestForwardLeavesTheRequestAlone(t *testing.T) {
	link, _ := url.Parse("http://target.example/base")
	var out *http.Request
	p := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
		out = r
		return nil, errors.New("enough")
	}), &gateway.ProxyOptions{StripPrefix: "/api", Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(link)
		pr.Out.Header["X-Multi"][0] = "changed"
		pr.Out.Header["X-Multi"] = append(pr.Out.Header["X-Multi"][:1], "more")
		pr.Out.Header.Set("X-New", "1")
		pr.Out.Header.Del("User-Agent")
	}})
	r := httptest.NewRequest("GET", "/api/x?a=1", nil)
	r.Header = http.Header{"X-Multi": {"a", "b"}, "User-Agent": {"me"}, "Connection": {"X-Multi-Not"}}
	before, url := r.Header.Clone(), *r.URL
	p.ServeHTTP(httptest.NewRecorder(), r)
	if !maps.EqualFunc(before, r.Header, slices.Equal) || url != *r.URL {
		t.Errorf("changed to %v %v", r.URL, r.Header)
	}
	if out.URL.String() != "http://target.example/base/x?a=1" || out.Header.Get("X-New") != "1" ||
		!slices.Equal(out.Header["X-Multi"], []string{"changed", "more"}) || len(out.Header["User-Agent"]) != 1 || out.Header.Get("User-Agent") != "" {
		t.Errorf("sent %v %v", out.URL, out.Header)
	}
	if out.Body != nil {
		t.Error("a request without a body got one")
	}

	// A request that no server made lacks what a server's has.
	for _, r := range []*http.Request{
		{Method: "GET", URL: &url, Proto: "HTTP/1.0", ProtoMajor: 1},
		{Method: "GET", URL: &url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: nil, ContentLength: 5, Header: http.Header{"X-Multi": {"1"}}},
		{Method: "GET", URL: &url, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(strings.NewReader("x")), Header: http.Header{"X-Multi": {"1"}}},
	} {
		if r.Header == nil {
			r.Header = http.Header{"X-Multi": nil}
			func() {
				defer func() { recover() }() // Rewrite's own
				gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, 200, http.NoBody), nil }), nil).ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: &url})
			}()
		} else {
			p.ServeHTTP(httptest.NewRecorder(), r)
			if out.Body != nil || out.ContentLength != 0 {
				t.Errorf("sent %v of %d bytes", out.Body, out.ContentLength)
			}
		}
	}
}
