package gateway_test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestClientAddr(t *testing.T) {
	trust := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("::ffff:192.168.0.0/112")}
	for _, tt := range []struct {
		name, remote string
		xff, fwd     []string
		plain, want  string // without and with TrustProxies
		one          string // the value of CF-Connecting-IP, where that is the field
	}{
		{name: "no proxy", remote: "203.0.113.9:1234", plain: "203.0.113.9", want: "203.0.113.9"},
		{name: "IPv6 with port", remote: "[2001:db8::1]:1234", plain: "2001:db8::1", want: "2001:db8::1"},
		{name: "IPv6 with zone", remote: "[fe80::1%eth0]:1", plain: "fe80::1", want: "fe80::1"},
		{name: "IPv4 in IPv6", remote: "[::ffff:203.0.113.9]:1", plain: "203.0.113.9", want: "203.0.113.9"},
		{name: "Unix socket", remote: "@", plain: "invalid IP", want: "invalid IP"},
		{name: "not a proxy of ours", remote: "203.0.113.9:1", xff: []string{"1.2.3.4"}, plain: "203.0.113.9", want: "203.0.113.9"},
		{name: "one proxy", remote: "10.0.0.1:1", xff: []string{"1.2.3.4"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "the leftmost is the client's word", remote: "10.0.0.1:1", xff: []string{"6.6.6.6, 1.2.3.4"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "two proxies", remote: "10.0.0.1:1", xff: []string{"6.6.6.6, 1.2.3.4, 10.0.0.2"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "two lines", remote: "10.0.0.1:1", xff: []string{"6.6.6.6, 1.2.3.4", " 10.0.0.2"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "all trusted", remote: "10.0.0.1:1", xff: []string{"10.0.0.3, 10.0.0.2"}, plain: "10.0.0.1", want: "10.0.0.3"},
		{name: "garbage ends the walk", remote: "10.0.0.1:1", xff: []string{"1.2.3.4, unknown, 10.0.0.2"}, plain: "10.0.0.1", want: "10.0.0.2"},
		{name: "empty", remote: "10.0.0.1:1", xff: []string{""}, plain: "10.0.0.1", want: "10.0.0.1"},
		{name: "with ports", remote: "10.0.0.1:1", xff: []string{"1.2.3.4:5678"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "IPv6 client", remote: "[fd00::1]:1", xff: []string{"2001:db8::7, [fd00::2]:99"}, plain: "fd00::1", want: "2001:db8::7"},
		{name: "mapped prefix", remote: "192.168.1.1:1", xff: []string{"1.2.3.4"}, plain: "192.168.1.1", want: "1.2.3.4"},
		{name: "Forwarded", remote: "10.0.0.1:1", fwd: []string{`for=6.6.6.6, for="[2001:db8::7]:47";proto=https;by="a,b", For=10.0.0.2`}, plain: "10.0.0.1", want: "2001:db8::7"},
		{name: "Forwarded with a hidden node", remote: "10.0.0.1:1", fwd: []string{`for=1.2.3.4, for=_hidden`}, plain: "10.0.0.1", want: "10.0.0.1"},
		{name: "Forwarded with a host that names an address", remote: "10.0.0.1:1", fwd: []string{`proto=http;host="a;for=6.6.6.6;b";for=1.2.3.4`}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "Forwarded with quotes in quotes", remote: "10.0.0.1:1", fwd: []string{`for=6.6.6.6, host="a\",for=6.6.6.6;b=\"c\\";for=1.2.3.4`}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "the other list does not count", remote: "10.0.0.1:1", xff: []string{"1.2.3.4"}, fwd: []string{"for=6.6.6.6"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "one address", remote: "10.0.0.1:1", one: "1.2.3.4", xff: []string{"6.6.6.6"}, fwd: []string{"for=6.6.6.6"}, plain: "10.0.0.1", want: "1.2.3.4"},
		{name: "one address that is none", remote: "10.0.0.1:1", one: "me", xff: []string{"6.6.6.6"}, plain: "10.0.0.1", want: "10.0.0.1"},
		{name: "a list where one address is expected", remote: "10.0.0.1:1", one: "1.2.3.4, 6.6.6.6", plain: "10.0.0.1", want: "10.0.0.1"},
		{name: "one address from anybody", remote: "203.0.113.9:1", one: "6.6.6.6", plain: "203.0.113.9", want: "203.0.113.9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.remote
			r.Header["X-Forwarded-For"] = tt.xff
			r.Header["Forwarded"] = tt.fwd
			field := "X-Forwarded-For"
			switch {
			case tt.one != "":
				field = "cf-connecting-ip"
				r.Header.Set(field, tt.one)
			case tt.xff == nil && tt.fwd != nil:
				field = "forwarded"
			}
			if got := gateway.ClientAddr(r).String(); got != tt.plain {
				t.Errorf("trusting nobody: %s, want %s", got, tt.plain)
			}
			gateway.TrustProxies(field, trust...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := gateway.ClientAddr(r).String(); got != tt.want {
					t.Errorf("trusting: %s, want %s", got, tt.want)
				}
			})).ServeHTTP(httptest.NewRecorder(), r)
		})
	}
}

// TestForwardedAlone: behind a balancer that writes Forwarded, a client's own X-Forwarded-* counts for nothing, and the
// backend is told what the balancer saw.
func TestForwardedAlone(t *testing.T) {
	saw := make(chan http.Header, 1)
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) { saw <- r.Header },
		gateway.TrustProxies("Forwarded", netip.MustParsePrefix("127.0.0.0/8")))
	for _, tt := range []struct {
		name, send string
		want       map[string]string
	}{
		{"a client's own fields", "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nForwarded: for=1.2.3.4", map[string]string{
			"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Real-Ip": "1.2.3.4", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example", "Forwarded": "for=1.2.3.4, for=127.0.0.1"}},
		{"proto and host", `Forwarded: for=6.6.6.6;proto=gopher;host=evil.example, for=1.2.3.4;proto=HTTPS;host="a.example:8443"`, map[string]string{
			"X-Forwarded-For": "1.2.3.4, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example:8443"}},
		{"a host that is none", `Forwarded: for=1.2.3.4;host="a b";proto=gopher`, map[string]string{
			"X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example"}},
		{"nothing", "X-Forwarded-For: 6.6.6.6", map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "Forwarded": ""}},
	} {
		conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: shop.example\r\n"+tt.send+"\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", tt.name, res, err)
		}
		h := <-saw
		for field, want := range tt.want {
			if got := strings.Join(h[field], "|"); got != want {
				t.Errorf("%s: %s is %q, want %q", tt.name, field, got, want)
			}
		}
	}
}

// TestAddressFieldIsOwned: the field in which trusted proxies name the client reaches no backend from anybody else.
func TestAddressFieldIsOwned(t *testing.T) {
	saw := make(chan http.Header, 1)
	for _, tt := range []struct{ name, prefix, field, want string }{
		{"from a proxy", "127.0.0.0/8", "CF-Connecting-IP", "1.2.3.4"},
		{"from anybody", "10.0.0.0/8", "CF-Connecting-IP", ""},
		{"by an alias", "127.0.0.0/8", "CF_Connecting_IP", ""},
	} {
		f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) { saw <- r.Header },
			gateway.TrustProxies("CF-Connecting-IP", netip.MustParsePrefix(tt.prefix)))
		conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.field+": 1.2.3.4\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", tt.name, res, err)
		}
		got := ""
		for name, values := range <-saw {
			if fold(name) == fold(tt.field) {
				got += strings.Join(values, "|")
			}
		}
		if got != tt.want {
			t.Errorf("%s: the backend saw %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestTrustedUnixSocket: whoever connects by a Unix socket is trusted, so that those behind it are told apart.
func TestTrustedUnixSocket(t *testing.T) {
	saw := make(chan [2]string, 1)
	h := gateway.TrustProxies("X-Forwarded-For")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, _ := gateway.KeyByIP(r)
		saw <- [2]string{gateway.ClientAddr(r).String(), key}
	}))
	path := t.TempDir() + "/gateway.sock"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	for _, addr := range []string{"1.2.3.4", "2001:db8::7"} {
		req, _ := http.NewRequest("GET", "http://x/", nil)
		req.Header.Set("X-Forwarded-For", "6.6.6.6, "+addr)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := <-saw; got[0] != addr || !strings.HasPrefix(got[1], addr[:7]) {
			t.Errorf("behind the socket: %q, want %s", got, addr)
		}
	}
}

func TestTrustProxiesRefusesNonsense(t *testing.T) {
	for _, tt := range []struct {
		field  string
		prefix []netip.Prefix
	}{
		{"", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		{"a b", nil},
		{"Connection", nil},
		{"X-Forwarded-For", []netip.Prefix{{}}},
		{"X-Forwarded-For", []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/8")}}, // meant is 10.0.0.0/8
	} {
		if panicOf(func() { gateway.TrustProxies(tt.field, tt.prefix...) }) == "" {
			t.Errorf("%q, %v: no panic", tt.field, tt.prefix)
		}
	}
}

// TestAllowAndDenyAddrs asks both about each address. An address is allowed by one and refused by the other, but a
// request without an address is refused by both.
func TestAllowAndDenyAddrs(t *testing.T) {
	list := []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("::ffff:198.51.100.0/120"), netip.PrefixFrom(netip.MustParseAddr("203.0.113.77"), 24), // not masked
	}
	proxies := netip.MustParsePrefix("172.16.0.0/12")
	for _, tt := range []struct {
		name, remote, xff string
		allow, deny       int
	}{
		{"inside", "10.1.2.3:1", "", 200, 403},
		{"the first", "10.1.0.0:1", "", 200, 403},
		{"the last", "10.1.255.255:1", "", 200, 403},
		{"just before", "10.0.255.255:1", "", 403, 200},
		{"just after", "10.2.0.0:1", "", 403, 200},
		{"one address", "192.0.2.7:1", "", 200, 403},
		{"its neighbour", "192.0.2.8:1", "", 403, 200},
		{"IPv6", "[2001:db8::1]:1", "", 200, 403},
		{"IPv6 with a zone", "[2001:db8::1%eth0]:1", "", 200, 403},
		{"other IPv6", "[2001:db9::1]:1", "", 403, 200},
		{"IPv4 in IPv6", "[::ffff:10.1.2.3]:1", "", 200, 403},
		{"a mapped prefix", "198.51.100.9:1", "", 200, 403},
		{"a prefix with more bits set", "203.0.113.1:1", "", 200, 403},
		{"a client's own claim", "10.2.0.0:1", "10.1.2.3", 403, 200},
		{"behind a proxy", "172.16.0.1:1", "10.1.2.3", 200, 403},
		{"behind a proxy, others", "172.16.0.1:1", "10.1.2.3, 10.2.0.0", 403, 200},
		{"no address", "@", "", 403, 403},
		{"no address, empty", "", "", 403, 403},
		{"garbage", "10.1.2.3.4:1", "", 403, 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = tt.remote
			if tt.xff != "" {
				r.Header.Set("X-Forwarded-For", tt.xff)
			}
			for _, filter := range []struct {
				mw   gateway.Middleware
				want int
			}{{gateway.AllowAddrs(list...), tt.allow}, {gateway.DenyAddrs(list...), tt.deny}} {
				ran := false
				j, observe := observed()
				h := gateway.Chain(observe, gateway.TrustProxies("X-Forwarded-For", proxies), filter.mw)(http.HandlerFunc(
					func(http.ResponseWriter, *http.Request) { ran = true }))
				res := recorded(h, r).Result()
				if res.StatusCode != filter.want || ran != (filter.want == 200) {
					t.Errorf("status %d, want %d; the handler ran: %t", res.StatusCode, filter.want, ran)
				}
				line := j.next(t)
				if filter.want == 403 {
					if p := readProblem(t, res); p.Detail != "" {
						t.Errorf("the client is told %q", p.Detail)
					}
					if line["outcome"] != "rejected" || !strings.Contains(line["error"], "Addrs") {
						t.Errorf("log line %v", line)
					}
				}
			}
		})
	}
}

// TestNoAddrs: an empty list allows nobody, and denies nobody who has an address. The lists are the middleware's own.
func TestNoAddrs(t *testing.T) {
	if got := ask(gateway.AllowAddrs()(silent), "GET", "/").StatusCode; got != 403 {
		t.Errorf("AllowAddrs of nothing: %d", got)
	}
	if got := ask(gateway.DenyAddrs()(silent), "GET", "/").StatusCode; got != 200 {
		t.Errorf("DenyAddrs of nothing: %d", got)
	}
	list := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} // the address of httptest.NewRequest
	deny := gateway.DenyAddrs(list...)(silent)
	list[0] = netip.MustParsePrefix("192.0.2.2/32")
	if got := ask(deny, "GET", "/").StatusCode; got != 403 {
		t.Errorf("after a change of the caller's list: %d", got)
	}
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.0.0.0/8")} {
		for _, filter := range []func(...netip.Prefix) gateway.Middleware{gateway.AllowAddrs, gateway.DenyAddrs} {
			if panicOf(func() { filter(p) }) == "" {
				t.Errorf("%v: no panic", p)
			}
		}
	}
}
