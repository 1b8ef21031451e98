package gateway

import (
	"bufio"
	"bytes"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestLinesAreTheHeader compares the two ways in which the fields of a request are made, for a request that passes the
// same middleware. Which way is taken must make no difference to the target.
func TestLinesAreTheHeader(t *testing.T) {
	if *standard {
		t.Skip("net/http's transport takes no lines")
	}
	identify := AuthenticatorFunc(func(r *http.Request) (*Identity, error) {
		return &Identity{Subject: "alice", Issuer: "https://id.example", Claims: map[string]any{"email": r.Header.Get("X-Claim")}}, nil
	})
	gateway := []Middleware{Observe(nil), Auth(identify, nil)}
	behind := []Middleware{TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24")), Observe(nil)}
	trusted := func(field string) []Middleware {
		return []Middleware{TrustProxies(field, netip.MustParsePrefix("192.0.2.0/24"))}
	}
	traced := func(field string) []Middleware {
		return []Middleware{Observe(&ObserveOptions{TraceHeader: field}), Auth(identify, nil)}
	}
	usual := http.Header{"Accept": {"application/json"}, "Cookie": {"a=b", "c=d"}, "User-Agent": {"test"}, "Authorization": {"Bearer x"},
		"X-Padded": {"  x\t"}, "Connection": {"keep-alive"}, "Keep-Alive": {"timeout=5"}}
	with := func(more http.Header) http.Header {
		h := usual.Clone()
		maps.Copy(h, more)
		return h
	}
	forged := http.Header{"X_user_id": {"eve"}, "X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Host": {"evil.example"}, "X-Forwarded-User": {"eve"},
		"Forwarded": {"for=1.2.3.4"}, "Traceparent": {"00-1-2-3"}, "X-Trace-Id": {"forged"}, "Proxy": {"x"}, "Transfer_encoding": {"chunked"},
		"X-Forwarded-Prefix": {"/outer/", "/two"}, "X-Forwarded-Proto": {"https"}}
	for _, tt := range []struct {
		name   string
		mw     []Middleware
		opts   ProxyOptions
		header http.Header
		lines  bool // the request can be sent as lines
	}{
		{"no middleware", nil, ProxyOptions{}, usual, true},
		{"a gateway", gateway, ProxyOptions{}, usual, true},
		{"no User-Agent", gateway, ProxyOptions{}, http.Header{"Accept": {"*/*"}}, true},
		{"no fields", gateway, ProxyOptions{}, http.Header{}, true},
		{"no header", nil, ProxyOptions{}, nil, false},
		{"forged fields", gateway, ProxyOptions{}, with(forged), true},
		{"a trusted proxy", behind, ProxyOptions{}, with(forged), true},
		{"a trusted proxy with Forwarded", trusted("Forwarded"), ProxyOptions{StripPrefix: "/api"}, with(forged), true},
		{"a trusted proxy with a field of its own", trusted("CF-Connecting-IP"), ProxyOptions{},
			with(http.Header{"Cf-Connecting-Ip": {"198.51.100.7"}, "Cf_connecting_ip": {"1.2.3.4"}}), true},
		{"a trusted proxy with X-Real-IP", trusted("X-Real-IP"), ProxyOptions{}, with(http.Header{"X-Real-Ip": {"198.51.100.7"}}), false},
		{"a trusted proxy with an identity field", trusted("X-Email"), ProxyOptions{Identity: map[string]string{"X-Email": "email"}},
			with(http.Header{"X-Email": {"198.51.100.7"}, "X-Claim": {"a@b"}}), false},
		{"a trusted proxy with Host", trusted("Host"), ProxyOptions{}, usual, false},
		{"a field with the trace id", traced("X-Request-ID"), ProxyOptions{}, with(http.Header{"X_request_id": {"forged"}}), true},
		{"an identity field with the trace id", traced("X-Email"), ProxyOptions{Identity: map[string]string{"X-Email": "email"}},
			with(http.Header{"X-Claim": {"a@b"}}), false},
		{"the trace id in the trusted proxy's field", append(trusted("CF-Connecting-IP"), traced("cf-connecting-ip")...), ProxyOptions{},
			with(http.Header{"Cf-Connecting-Ip": {"198.51.100.7"}}), false},
		{"X-Real-IP with the trace id", traced("X-Real-IP"), ProxyOptions{}, usual, false},
		{"Content-Length with the trace id", traced("Content-Length"), ProxyOptions{}, usual, false},
		{"Expect with the trace id", traced("Expect"), ProxyOptions{}, usual, false},
		{"a field that an attempt reads, with the trace id", traced("Idempotency-Key"), ProxyOptions{}, usual, false},
		{"names by another middleware", gateway, ProxyOptions{}, with(http.Header{"x-odd": {"a"}, "x_USER-id": {"eve"}, "te": {"trailers"}, "keep-alive": {"x"},
			"content-LENGTH": {"7"}, "TRAILER": {"x"}}), true},
		{"User-Agent by another middleware", gateway, ProxyOptions{}, http.Header{"user-agent": {"other"}}, true},
		{"values of all kinds", gateway, ProxyOptions{}, with(http.Header{"X-None": {}, "X-Nil": nil, "X-Empty": {""}, "X-Blank": {" \t "}, "X-Obs": {"\xe9\xff"},
			"X-Utf8": {"é"}, "X-Tab": {"a\tb"}, "X-Many": {"b", "a", ""}}), true},
		{"a prefix", gateway, ProxyOptions{StripPrefix: "/api"}, with(forged), true},
		{"a prefix behind a trusted proxy", behind, ProxyOptions{StripPrefix: "/api"}, with(forged), true},
		{"another identity", gateway, ProxyOptions{Identity: map[string]string{"X-Issuer": "iss", "X-Email": "email"}}, with(http.Header{"X-Claim": {"a@b"}}), true},
		{"a field is dropped", gateway, ProxyOptions{RequestFields: FieldEdits{Drop: []string{"Cookie"}}}, usual, true},
		{"a field is dropped that an attempt reads", gateway, ProxyOptions{RequestFields: FieldEdits{Drop: []string{"Idempotency-Key"}}}, usual, false},
		{"an alias is dropped of a field that an attempt reads", gateway, ProxyOptions{RequestFields: FieldEdits{Drop: []string{"grpc_timeout"}}}, usual, false},
		{"an identity field that an attempt reads", gateway, ProxyOptions{Identity: map[string]string{"X-Idempotency-Key": "sub"}}, usual, false},
		{"a claim that is no value", gateway, ProxyOptions{Identity: map[string]string{"X-Email": "email"}}, with(http.Header{"X-Claim": {"a\nb"}}), false},
		{"a malformed value", nil, ProxyOptions{}, with(http.Header{"X-Bad": {"a\rb"}}), false},
		{"a malformed name", nil, ProxyOptions{}, with(http.Header{"X Bad": {"a"}}), false},
		{"Connection names a field", nil, ProxyOptions{}, with(http.Header{"Connection": {"Cookie"}}), false},
		{"Connection: close", nil, ProxyOptions{}, with(http.Header{"Connection": {"close"}, "Close": {"x"}}), false},
		{"TE", nil, ProxyOptions{}, with(http.Header{"Te": {"trailers"}}), false},
		{"Upgrade", nil, ProxyOptions{}, with(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}), false},
		{"Expect", nil, ProxyOptions{}, with(http.Header{"Expect": {"100-continue"}}), false},
		{"Expect by another middleware", nil, ProxyOptions{}, with(http.Header{"expect": {"100-continue"}}), false},
		{"Host", nil, ProxyOptions{}, with(http.Header{"host": {"other.example"}}), false},
		{"an empty User-Agent", nil, ProxyOptions{}, with(http.Header{"User-Agent": {""}}), false},
		{"fields are added", gateway, ProxyOptions{RequestFields: FieldEdits{Add: map[string]string{"X-A": "b"}}}, usual, false},
		{"Rewrite", gateway, ProxyOptions{Rewrite: func(*httputil.ProxyRequest) {}}, usual, false},
		{"ModifyResponse", gateway, ProxyOptions{ModifyResponse: func(*http.Response) error { return nil }}, usual, false},
		{"RewriteLocation", gateway, ProxyOptions{RewriteLocation: true}, usual, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Proxy(NewUpstream("u", MustTargets("http://10.0.0.1"), nil), &tt.opts).(*proxy)
			compared := false
			h := Chain(tt.mw...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				compared = true
				ex, rw, r := enter(w, r)
				f := &forwarding{proxy: p, ex: ex, w: rw, in: r, ownedHere: ex.ownedHere()}
				var out http.Request
				err := f.setFields(&out)
				if got := f.lines != nil; got != tt.lines {
					t.Fatalf("sent as lines: %v, want %v", got, tt.lines)
				}
				want, wantErr := f.header()
				if (err == nil) != (wantErr == nil) {
					t.Fatalf("error %v, and %v with a header", err, wantErr)
				}
				if !tt.lines {
					return
				}
				got, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(f.lines.b, "\r\n"...)))).ReadMIMEHeader()
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(http.Header(got), onTheWire(want)) {
					t.Errorf("lines:\n%v\nheader:\n%v", got, want)
				}
			}))
			r := httptest.NewRequest("GET", "http://gw.example/api/x", nil)
			r.Header = tt.header
			h.ServeHTTP(httptest.NewRecorder(), r)
			if !compared {
				t.Error("the request did not get so far")
			}
		})
	}
}

// TestLinesAreTheHeaderOfAnyRequest is TestLinesAreTheHeader with fields at random.
func TestLinesAreTheHeaderOfAnyRequest(t *testing.T) {
	if *standard {
		t.Skip("net/http's transport takes no lines")
	}
	names := []string{
		"Accept", "accept", "Cookie", "X-User-Id", "X_User_Id", "x.user.id", "X-USER-ID", "X-User-Idx", "X-Forwarded-For", "x-forwarded-host", "X_Forwarded_Proto",
		"X-Forwarded-User", "X-Forwarded-Prefix", "Forwarded", "X-Real-Ip", "X-Real_ip", "X-Trace-Id", "Traceparent", "Tracestate", "Client-Cert", "Connection", "connection",
		"Keep-Alive", "keep-alive", "Te", "te", "Trailer", "trailer", "Transfer-Encoding", "transfer_encoding", "Content-Length", "content-length", "Upgrade", "upgrade",
		"Http2-Settings", "Proxy", "Proxy-Authorization", "Expect", "expect", "Host", "host", "User-Agent", "user-agent", "Via", "Date", "Content-Type", "Grpc-Timeout",
		"Idempotency-Key", "X-Dropped", "x_dropped", "X Bad", "", "X-É", "Cf-Connecting-Ip",
	}
	values := []string{"", "a", " a ", "\ta", "a\tb", "é", "\xff", "keep-alive", "Keep-Alive", "close", "upgrade", "trailers", "100-continue", "chunked", "7", "1.2.3.4",
		"\"for=\"", "X-User-Id", "a\x00", "a\nb", "\r", "\x7f", strings.Repeat("x", 9000)}
	random := rand.New(rand.NewPCG(1, 2))
	identify := AuthenticatorFunc(func(r *http.Request) (*Identity, error) { return &Identity{Subject: "alice"}, nil })
	chains := [][]Middleware{
		nil, {Auth(identify, nil)}, {Observe(nil), Auth(identify, nil)}, {Observe(&ObserveOptions{TraceHeader: "X-Dropped-Not"})},
		{TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24"))}, {TrustProxies("Forwarded", netip.MustParsePrefix("192.0.2.0/24"))},
		{TrustProxies("CF-Connecting-IP", netip.MustParsePrefix("192.0.2.0/24")), Observe(nil)}, {TrustProxies("X-Real-IP", netip.MustParsePrefix("192.0.2.0/24"))},
	}
	up := NewUpstream("u", MustTargets("http://10.0.0.1"), nil)
	proxies := []*proxy{
		Proxy(up, nil).(*proxy), Proxy(up, &ProxyOptions{StripPrefix: "/api"}).(*proxy),
		Proxy(up, &ProxyOptions{RequestFields: FieldEdits{Drop: []string{"X-Dropped"}}, Identity: map[string]string{"X-Mail": "sub"}}).(*proxy),
	}
	asLines := 0
	for range 4000 {
		r := httptest.NewRequest("GET", "http://gw.example/api/x", nil)
		for range random.IntN(5) {
			name := names[random.IntN(len(names))]
			for range 1 + random.IntN(2)*random.IntN(3) {
				r.Header[name] = append(r.Header[name], values[random.IntN(len(values))])
			}
		}
		p := proxies[random.IntN(len(proxies))]
		Chain(chains[random.IntN(len(chains))]...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			f := &forwarding{proxy: p, ex: ex, w: rw, in: r, ownedHere: ex.ownedHere()}
			var out http.Request
			err := f.setFields(&out)
			want, wantErr := f.header()
			if wantErr == nil { // gate is called for a request through a trusted proxy
				_, wantErr = gate(&http.Request{URL: r.URL, Header: want})
			}
			if f.lines != nil && wantErr != nil || f.lines == nil && err != nil && wantErr == nil {
				t.Fatalf("%.200q: error %v, and %v with a header", r.Header, err, wantErr)
			}
			if f.lines == nil {
				return
			}
			asLines++
			var got, header []string
			for line := range strings.SplitSeq(strings.TrimSuffix(string(f.lines.b), "\r\n"), "\r\n") {
				got = append(got, line)
			}
			for name, values := range want {
				for _, value := range values {
					header = append(header, name+": "+textproto.TrimString(value))
				}
			}
			slices.Sort(got)
			slices.Sort(header)
			if !slices.Equal(got, header) {
				t.Fatalf("%q\nlines\n%q\nheader\n%q", r.Header, got, header)
			}
			for name := range want { // which internal/h1 gives a meaning
				switch http.CanonicalHeaderKey(name) {
				case "Host", "Connection", "Expect", "Trailer", "Content-Length", "Transfer-Encoding":
					t.Fatalf("%q is sent as lines", name)
				}
			}
		})).ServeHTTP(httptest.NewRecorder(), r)
	}
	if asLines < 1000 {
		t.Errorf("only %d requests were sent as lines", asLines)
	}
}

// onTheWire is a header as its reader gets it.
func onTheWire(h http.Header) http.Header {
	wire := make(http.Header)
	for name, values := range h {
		name = http.CanonicalHeaderKey(name)
		for _, value := range values {
			wire[name] = append(wire[name], textproto.TrimString(value))
		}
	}
	return wire
}

// TestWhoReadsFieldsGetsTheHeader is about a Balancer of the user's, which must see what is sent.
func TestWhoReadsFieldsGetsTheHeader(t *testing.T) {
	if *standard {
		t.Skip("net/http's transport takes no lines")
	}
	for _, tt := range []struct {
		name string
		opts UpstreamOptions
		want bool
	}{
		{"the default", UpstreamOptions{}, true},
		{"RoundRobin", UpstreamOptions{Balancer: RoundRobin()}, true},
		{"HashBy", UpstreamOptions{Balancer: HashBy(KeyByIP)}, false},
		{"another transport", UpstreamOptions{Transport: http.DefaultTransport}, false},
		{"hedging", UpstreamOptions{Retry: RetryOptions{Attempts: 2, HedgeAfter: 1}}, false},
	} {
		if got := NewUpstream("u", MustTargets("http://10.0.0.1"), &tt.opts).sendsLines(); got != tt.want {
			t.Errorf("%s: sent as lines: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestLinesNeedHTTP1 sends requests to a pool whose second target speaks HTTP/2 and whose third closes the connection.
// Each request is made as lines, and a header is made when the target is known.
func TestLinesNeedHTTP1(t *testing.T) {
	var mu sync.Mutex
	got := make(map[string]http.Header)
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got[r.Proto] = r.Header
	})
	plain := httptest.NewServer(backend)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(backend)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	dead := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	dead.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer dead.Close()

	tr := NewTransport(&TransportOptions{TLS: secure.Client().Transport.(*http.Transport).TLSClientConfig})
	defer tr.(*transport).CloseIdleConnections()
	u := NewUpstream("u", MustTargets(plain.URL, secure.URL, dead.URL), &UpstreamOptions{
		Transport: tr, Balancer: RoundRobin(), Retry: RetryOptions{Attempts: 3, Backoff: -1}, Health: HealthOptions{Unhealthy: -1},
	})
	h := Observe(nil)(Proxy(u, nil))
	for range 6 {
		r := httptest.NewRequest("GET", "http://gw.example/x", nil)
		r.Header = http.Header{"Accept": {"text/plain"}, "X-User-Id": {"eve"}, "Keep-Alive": {"1"}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 200 {
			t.Fatalf("status %d", w.Code)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		h := got[proto]
		if h.Get("Accept") != "text/plain" || h.Get("X-Forwarded-Host") != "gw.example" || h.Get("X-Trace-Id") == "" {
			t.Errorf("over %s, the target got %v", proto, h)
		}
		for _, name := range []string{"X-User-Id", "Keep-Alive", "User-Agent"} {
			if h[name] != nil {
				t.Errorf("over %s, the target got %s", proto, name)
			}
		}
	}
}

// TestTakenFieldsAreTheHeader compares the two ways in which the fields of a response reach the client: from a list, and
// from a Header, which ResponseFields need. Which way is taken must make no difference to the client.
func TestTakenFieldsAreTheHeader(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	usual := "Content-Type: text/plain\r\nDate: Tue, 24 Nov 2026 12:00:00 GMT\r\nContent-Length: 2\r\n"
	for _, tt := range []struct {
		name, answer string
		taken        bool
	}{
		{"the usual", head + usual + "\r\nok", true},
		{"no Content-Type", head + "Content-Length: 2\r\n\r\nok", true},
		{"no body", head + "Content-Length: 0\r\n\r\n", true},
		{"no length", head + "X-A: b\r\n\r\nok", true},
		{"no fields", head + "\r\nok", false},
		{"other spellings", "HTTP/1.1 404 Not Found\r\ncontent-TYPE: a/b\r\ncontent-length: 2\r\nx_user_id: a\r\n\r\nok", true},
		{"a field repeated", head + usual + "Set-Cookie: a=b\r\nset-cookie: c=d\r\nVary: a\r\nVary: b\r\n\r\nok", true},
		{"fields that are set already", head + usual + "X-Outer: target\r\nX-Outer: twice\r\nX-Off: a\r\nRatelimit: x\r\n\r\nok", true},
		{"the trace id", head + usual + "X-Trace-Id: forged\r\nx_trace_id: forged\r\nX.Trace.Id: forged\r\n\r\nok", true},
		{"hop-by-hop fields", head + usual + "Keep-Alive: timeout=5\r\nProxy-Connection: a\r\nUpgrade: h2c\r\nTe: a\r\nProxy: b\r\nProxy-Authenticate: c\r\n\r\nok", true},
		{"Connection: keep-alive", head + usual + "Connection: Keep-Alive\r\nKeep-Alive: 5\r\n\r\nok", true},
		{"Connection: close", head + usual + "Connection: close\r\nClose: 5\r\n\r\nok", false},
		{"Connection names a field", head + usual + "Connection: X-A\r\nX-A: b\r\n\r\nok", false},
		{"Connection twice", head + usual + "Connection: keep-alive\r\nConnection: X-A, x-trace-id\r\nX-A: b\r\n\r\nok", false},
		{"empty values", head + usual + "X-A:\r\nX-B: \r\n\r\nok", true},
		{"a continued field", head + usual + "X-A: b\r\n c\r\n\r\nok", true},
		{"a space in a name", head + usual + "X A: b\r\nConnection : X-B\r\nX-B: c\r\n\r\nok", true},
		{"lines with LF", head + usual + "X-A: b\n\nok", true},
		{"12 fields", head + usual + strings.Repeat("X-A: b\r\n", 9) + "\r\nok", true},
		{"13 fields", head + usual + strings.Repeat("X-A: b\r\n", 10) + "\r\nok", false},
		{"a length with zeros", head + "Content-Length: 0002\r\n\r\nok", false},
		{"a length of zeros", head + "Content-Length: 00\r\n\r\n", false},
		{"the same length twice", head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", false},
		{"two lengths", head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", false},
		{"an empty length", head + "Content-Length:\r\n\r\nok", false},
		{"a length that is no number", head + "Content-Length: +2\r\n\r\nok", false},
		{"chunks", head + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", false},
		{"chunks and a length", head + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false},
		{"announced trailers", head + "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", false},
		{"Trailer without chunks", head + usual + "Trailer: X-Sum\r\n\r\nok", false},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n" + usual + "\r\nok", false},
		{"gRPC", head + "Content-Type: application/grpc\r\nGrpc-Status: 14\r\nContent-Length: 0\r\n\r\n", false},
		{"events", head + "Content-Type: Text/Event-Stream; charset=utf-8\r\nContent-Length: 2\r\n\r\nok", false},
		{"204", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", true},
		{"304", "HTTP/1.1 304 Not Modified\r\nEtag: x\r\nContent-Length: 5\r\n\r\n", true},
		{"a malformed field", head + usual + "X-A: b\x00\r\n\r\nok", false},
		{"a line without colon", head + usual + "X-A\r\n\r\nok", false},
		{"a status that is retried", "HTTP/1.1 503 Service Unavailable\r\nX-First: 1\r\nContent-Length: 2\r\n\r\nno", true},
		{"101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The target sends a 503 first, which is retried.
			first := "HTTP/1.1 503 Service Unavailable\r\nX-First: 1\r\nContent-Length: 2\r\n\r\nno"
			to := MustTargets("http://" + answerInTurn(t, first, tt.answer))
			taken := 0
			answer := func(opts *ProxyOptions) *httptest.ResponseRecorder {
				tr := NewTransport(nil)
				defer tr.(*transport).CloseIdleConnections()
				u := NewUpstream("u", to, &UpstreamOptions{
					Transport: tr, Retry: RetryOptions{Attempts: 2, Backoff: -1}, Health: HealthOptions{Unhealthy: -1},
				})
				proxied := Proxy(u, opts).(*proxy)
				outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header()["X-Outer"] = []string{"gateway"}
					w.Header()["X-Off"] = nil
					proxied.ServeHTTP(w, r)
				})
				w := httptest.NewRecorder()
				h := Chain(Observe(nil), RateLimit(NewTokenBucket(1e9, 1e9, nil), KeyByIP, nil))(outer)
				h.ServeHTTP(w, httptest.NewRequest("GET", "http://gw.example/x", nil))
				return w
			}
			defer func(hook func(any, []string, []string) bool) { lineHooks.Fields = hook }(lineHooks.Fields)
			lineHooks.Fields = func(f any, names, values []string) bool {
				took := takeFields(f, names, values)
				if took {
					taken++
				}
				return took
			}
			got := answer(nil)
			if taken != 1 && taken != 2 || taken == 2 != tt.taken {
				t.Errorf("taken %d times, the answer: want %v", taken, tt.taken)
			}
			lineHooks.Fields = func(f any, names, values []string) bool {
				if takeFields(f, names, values) {
					t.Error("taken although ResponseFields need the Header")
				}
				return false
			}
			want := answer(&ProxyOptions{ResponseFields: FieldEdits{Drop: []string{"X-Never"}}})
			if trace := got.Header()["X-Trace-Id"]; len(trace) != 1 || trace[0] == "forged" {
				t.Errorf("X-Trace-Id: %q", trace)
			}
			for _, w := range []*httptest.ResponseRecorder{got, want} {
				w.Header().Del("X-Trace-Id")
				if i := strings.Index(w.Body.String(), `"trace_id"`); i >= 0 {
					w.Body.Truncate(i)
				}
			}
			if got.Code != want.Code || !reflect.DeepEqual(got.Header(), want.Header()) || got.Body.String() != want.Body.String() {
				t.Errorf("got  %d %q %q\nwant %d %q %q", got.Code, got.Header(), got.Body, want.Code, want.Header(), want.Body)
			}
		})
	}
}

// answerInTurn serves the answers one after the other, and then again, each on a connection of its own.
func answerInTurn(t *testing.T, answers ...string) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, answers[n%len(answers)])
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}
