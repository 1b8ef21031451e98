package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// decides returns an Upstream before a service that decides by h, and a channel with the questions.
func decides(t *testing.T, h http.HandlerFunc) (*gateway.Upstream, chan *http.Request) {
	t.Helper()
	asked := make(chan *http.Request, 100)
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		h(w, r)
	}))
	return gateway.NewUpstream("decider", gateway.MustTargets(s.URL), &gateway.UpstreamOptions{Transport: newTransport(t, nil)}), asked
}

// TestForwardAuthQuestion compares every field of the question.
func TestForwardAuthQuestion(t *testing.T) {
	up, asked := decides(t, silent)
	for _, tt := range []struct {
		name, request string
		opts          *gateway.ForwardAuthOptions
		target        string
		want          http.Header
	}{
		{"the defaults", "POST /a%2Fb?x=1&y HTTP/1.1\r\nAuthorization: Bearer t\r\nCookie: a=1\r\nAccept: text/html\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\nbody", nil, "/a%2Fb?x=1&y", http.Header{
			"Authorization": {"Bearer t"}, "Cookie": {"a=1"},
			"X-Forwarded-Method": {"POST"}, "X-Original-Method": {"POST"}, "X-Forwarded-Uri": {"/a%2Fb?x=1&y"}, "X-Original-Url": {"http://gw.example/a%2Fb?x=1&y"},
		}},
		{"a path of its own", "GET /x HTTP/1.1\r\nCookie: a=1\r\n\r\n", &gateway.ForwardAuthOptions{Path: "/check?app=1", Headers: []string{"accept", "X-Api-Key"}}, "/check?app=1", http.Header{
			"X-Forwarded-Method": {"GET"}, "X-Original-Method": {"GET"}, "X-Forwarded-Uri": {"/x"}, "X-Original-Url": {"http://gw.example/x"},
		}},
		{"named fields", "GET /x HTTP/1.1\r\nX_Api_Key: forged\r\nX-Api-Key: k\r\nX-Api-Key: l\r\nAccept: text/html\r\n\r\n", &gateway.ForwardAuthOptions{Headers: []string{"accept", "X-Api-Key"}}, "/x", http.Header{
			"Accept": {"text/html"}, "X-Api-Key": {"k", "l"},
			"X-Forwarded-Method": {"GET"}, "X-Original-Method": {"GET"}, "X-Forwarded-Uri": {"/x"}, "X-Original-Url": {"http://gw.example/x"},
		}},
		{"forged fields", "GET /x HTTP/1.1\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /public\r\nX-Forwarded-Host: other\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 10.0.0.1\r\nX-Original-URL: http://other/\r\n" +
			"X_Forwarded_Uri: /public\r\nX-Original-Method: OPTIONS\r\nX-Real-IP: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-User-ID: admin\r\nRemote-User: admin\r\nX-Forwarded-User: admin\r\nTrailer: X-Forwarded-Uri\r\n\r\n", nil, "/x", http.Header{
			"X-Forwarded-Method": {"GET"}, "X-Original-Method": {"GET"}, "X-Forwarded-Uri": {"/x"}, "X-Original-Url": {"http://gw.example/x"},
		}},
		{"a WebSocket", "GET /ws HTTP/1.1\r\nConnection: Upgrade, Cookie\r\nUpgrade: websocket\r\nCookie: a=1\r\nSec-WebSocket-Key: x\r\n\r\n", nil, "/ws", http.Header{
			"Cookie": {"a=1"}, "X-Forwarded-Method": {"GET"}, "X-Original-Method": {"GET"}, "X-Forwarded-Uri": {"/ws"}, "X-Original-Url": {"http://gw.example/ws"},
		}},
		{"an absolute URL", "DELETE http://gw.example/x HTTP/1.1\r\n\r\n", nil, "/x", http.Header{
			"X-Forwarded-Method": {"DELETE"}, "X-Original-Method": {"DELETE"}, "X-Forwarded-Uri": {"/x"}, "X-Original-Url": {"http://gw.example/x"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, gateway.ForwardAuth(up, tt.opts)(text("passed")))
			line, rest, _ := strings.Cut(tt.request, "\r\n")
			conn := raw(t, s, line+"\r\nHost: gw.example\r\n"+rest)
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || bodyOf(t, res) != "passed" {
				t.Fatal(res, err)
			}
			q := <-asked
			for name, value := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Real-Ip": "127.0.0.1", "X-Forwarded-Host": "gw.example", "X-Forwarded-Proto": "http"} {
				tt.want[name] = []string{value}
			}
			if !maps.EqualFunc(q.Header, tt.want, slices.Equal) {
				t.Errorf("asked with %v\nwant %v", q.Header, tt.want)
			}
			if q.Method != "GET" || q.RequestURI != tt.target || q.ContentLength != 0 || len(q.TransferEncoding) > 0 || q.Host == "gw.example" {
				t.Errorf("asked %s %s of %s, with a body of %d", q.Method, q.RequestURI, q.Host, q.ContentLength)
			}
		})
	}
	// A trusted proxy is believed.
	h := gateway.Chain(gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24")), gateway.ForwardAuth(up, nil))(silent)
	r := httptest.NewRequest("GET", "http://gw.internal/x", nil)
	r.Header = http.Header{"X-Forwarded-For": {"203.0.113.7"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"public.example"}, "X-Forwarded-Uri": {"/forged"}}
	recorded(h, r)
	if q := <-asked; q.Header.Get("X-Original-Url") != "https://public.example/x" || q.Header.Get("X-Forwarded-For") != "203.0.113.7, 192.0.2.1" || q.Header.Get("X-Forwarded-Uri") != "/x" {
		t.Errorf("behind a proxy: %v", q.Header)
	}
}

// TestForwardAuthAnswers gives every kind of answer. What passes is 200 with the body "passed".
func TestForwardAuthAnswers(t *testing.T) {
	long := strings.Repeat("x", 256<<10)
	for _, tt := range []struct {
		name, answer string // "": none
		status       int
		body         string
		outcome      string
		header       http.Header // in the client's answer
	}{
		{"200", "200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "passed", "ok", nil},
		{"204", "204 No Content\r\n\r\n", 200, "passed", "ok", nil},
		{"299", "299 Fine\r\nContent-Length: 0\r\n\r\n", 200, "passed", "ok", nil},
		{"200, a body without an end", "200 OK\r\nContent-Length: 1000000\r\n\r\nhello", 200, "passed", "ok", nil},
		{"cookies", "200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n", 200, "passed", "ok", http.Header{"Set-Cookie": {"a=1", "b=2", "own=1"}}},
		{"401", "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nSet-Cookie: a=1\r\nX-Other: y\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nlog in", 401, "log in", "rejected",
			http.Header{"Www-Authenticate": {`Basic realm="x"`}, "Set-Cookie": {"a=1"}, "X-Other": {"y"}, "Content-Type": {"text/plain"}, "Content-Length": {"6"}}},
		{"403, chunked", "403 Forbidden\r\nTransfer-Encoding: chunked\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n2\r\nno\r\n0\r\n\r\n", 403, "no", "rejected", http.Header{"X-Hop": nil, "Content-Length": {"2"}, "Content-Type": nil}},
		{"a login page", "302 Found\r\nLocation: https://login.example/?rd=x\r\nSet-Cookie: csrf=1\r\nContent-Length: 0\r\n\r\n", 302, "", "rejected", http.Header{"Location": {"https://login.example/?rd=x"}, "Set-Cookie": {"csrf=1"}}},
		{"303", "303 See Other\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", 303, "", "rejected", http.Header{"Location": {"/login"}}},
		{"a redirect to itself", "307 Temporary Redirect\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 307, "", "rejected", http.Header{"Location": {"/"}}},
		{"401, the longest body", "401 Unauthorized\r\nContent-Length: 262144\r\n\r\n" + long, 401, long, "rejected", nil},

		{"401, too long a body", "401 Unauthorized\r\nContent-Length: 262145\r\n\r\n" + long + "x", 503, "", "unavailable", nil},
		{"401, a body without an end", "401 Unauthorized\r\nContent-Length: 100\r\n\r\nlog in", 503, "", "unavailable", nil},
		{"304", "304 Not Modified\r\n\r\n", 503, "", "unavailable", nil},
		{"a redirect to nowhere", "302 Found\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"400", "400 Bad Request\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"404", "404 Not Found\r\nX-User-ID: admin\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", http.Header{"Set-Cookie": nil}},
		{"407", "407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"429", "429 Too Many Requests\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"500", "500 Internal Server Error\r\nContent-Length: 6\r\n\r\nsecret", 503, "", "unavailable", nil},
		{"101", "101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 503, "", "unavailable", nil},
		{"600", "600 What\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"garbage", "\x00\x01\x02 200 OK\r\n\r\n", 503, "", "unavailable", nil},
		{"half a header", "200 OK\r\nX-User-ID: adm", 503, "", "unavailable", nil},
		{"a malformed field", "200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"two subjects", "200 OK\r\nX-User-ID: ann\r\nX-User-ID: bob\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"large fields", "200 OK\r\nX-A: " + strings.Repeat("x", 64<<10) + "\r\nContent-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"10 MB of fields", "200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("x", 1000)+"\r\n", 10_000) + "Content-Length: 0\r\n\r\n", 503, "", "unavailable", nil},
		{"nothing", "", 503, "", "unavailable", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
				if _, err := readHead(br); err == nil && tt.answer != "" {
					io.WriteString(conn, "HTTP/1.1 "+tt.answer)
				}
			})
			up := gateway.NewUpstream("decider", gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: newTransport(t, nil)})
			j, observe := observed()
			ran := false
			h := gateway.Chain(observe, gateway.ForwardAuth(up, nil))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ran = true
				w.Header().Add("Set-Cookie", "own=1")
				io.WriteString(w, "passed")
			}))
			rec := recorded(h, httptest.NewRequest("GET", "/x", nil))
			if rec.Code != tt.status || ran != (tt.status == 200) || tt.status != 503 && rec.Body.String() != tt.body {
				t.Errorf("status %d, body %.80q; want %d, %.80q; the handler ran: %t", rec.Code, rec.Body, tt.status, tt.body, ran)
			}
			for name, want := range tt.header {
				if got := rec.Result().Header[name]; !slices.Equal(got, want) {
					t.Errorf("%s %q, want %q", name, got, want)
				}
			}
			line := j.next(t)
			if line["outcome"] != tt.outcome || tt.status != 200 && !strings.Contains(line["error"], "ForwardAuth") || line["target"] != "" {
				t.Errorf("log line %.500v", line)
			}
			if tt.status == 503 {
				readProblem(t, rec.Result())
				if strings.Contains(rec.Body.String(), "secret") {
					t.Errorf("body %q", rec.Body)
				}
			}
		})
	}
}

// TestForwardAuthSilence: a service that does not answer in time, that is not there, or whose circuit is
// open, lets nobody in. A client that leaves while it is asked was not refused.
func TestForwardAuthSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		slowBody := roundTrip(func(r *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			go func() { <-r.Context().Done(); pw.CloseWithError(r.Context().Err()) }()
			return answered(r, 401, pr), nil
		})
		for name, to := range map[string]http.RoundTripper{"header": hang, "body": slowBody} {
			j, observe := observed()
			began := time.Now()
			rec := recorded(gateway.Chain(observe, gateway.ForwardAuth(to, &gateway.ForwardAuthOptions{Path: "http://sso/"}))(text("passed")), nil)
			if took := time.Since(began); rec.Code != 503 || took != time.Second {
				t.Errorf("%s: status %d after %v", name, rec.Code, took)
			}
			if line := j.next(t); line["outcome"] != "unavailable" {
				t.Errorf("%s: log line %v", name, line)
			}
		}
	})
	up := gateway.NewUpstream("decider", nil, nil)
	if rec := recorded(gateway.ForwardAuth(up, nil)(text("passed")), nil); rec.Code != 503 {
		t.Errorf("without targets: %d", rec.Code)
	}
}

// TestForwardAuthAdmits looks at a request that passes, in a handler of this process and behind a Proxy:
// the service's fields are there, and the client's own are not, in any spelling.
func TestForwardAuthAdmits(t *testing.T) {
	for _, tt := range []struct {
		name     string
		opts     *gateway.ForwardAuthOptions
		answer   http.Header
		identity string            // subject and claims
		fields   map[string]string // behind the Proxy; "" means none
		owned    []string          // what a client cannot set, besides X-User-ID
	}{
		{"X-User-ID", nil, http.Header{"X-User-Id": {"ann"}, "Remote-User": {"bob"}}, "ann map[]", map[string]string{"X-User-Id": "ann", "Remote-User": ""}, []string{"Remote-User"}},
		{"Remote-User", nil, http.Header{"Remote-User": {"bob"}}, "bob map[]", map[string]string{"X-User-Id": "bob", "Remote-User": ""}, []string{"Remote-User"}},
		{"X-User-ID is empty", nil, http.Header{"X-User-Id": {""}, "Remote-User": {"bob"}}, "bob map[]", map[string]string{"X-User-Id": "bob"}, []string{"Remote-User"}},
		{"nobody", nil, nil, "", map[string]string{"X-User-Id": "", "Remote-User": ""}, []string{"Remote-User"}},
		{"claims", &gateway.ForwardAuthOptions{Identity: map[string]string{"sub": "Remote-User", "groups": "Remote-Groups", "scope": "X-Scope", "mail": "Remote-Email"}},
			http.Header{"Remote-User": {"bob"}, "Remote-Groups": {"a", "b"}, "X-Scope": {"read pay"}, "Remote-Email": {"b@x"}, "X-User-Id": {"forged"}},
			"bob map[groups:[a b] mail:b@x] [read pay]", map[string]string{"X-User-Id": "bob", "Remote-Email": "", "Remote-Groups": ""},
			[]string{"Remote-User", "Remote-Groups", "Remote-Email", "X-Scope"}},
		{"copied", &gateway.ForwardAuthOptions{Copy: []string{"Remote-Groups", "authorization"}}, http.Header{"X-User-Id": {"ann"}, "Remote-Groups": {"g"}, "Authorization": {"Bearer inner"}, "X-Not-Asked": {"1"}, "X-Forwarded-User": {"root"}, "Cookie": {"evil=1"}},
			"ann map[]", map[string]string{"X-User-Id": "ann", "Remote-Groups": "g", "Authorization": "Bearer inner", "X-Not-Asked": "", "X-Forwarded-User": "", "Cookie": "own=1"},
			[]string{"Remote-User", "Remote-Groups"}},
		{"to be copied, but absent", &gateway.ForwardAuthOptions{Copy: []string{"Remote-Groups"}}, http.Header{"X-User-Id": {"ann"}}, "ann map[]", map[string]string{"Remote-Groups": ""}, []string{"Remote-User", "Remote-Groups"}},
		{"no identity", &gateway.ForwardAuthOptions{Identity: map[string]string{}}, http.Header{"X-User-Id": {"ann"}, "Remote-User": {"bob"}}, "", map[string]string{"X-User-Id": ""}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up, _ := decides(t, func(w http.ResponseWriter, r *http.Request) { maps.Copy(w.Header(), tt.answer) })
			saw := make(chan http.Header, 1)
			backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				h := r.Header.Clone()
				for name, values := range r.Trailer {
					h["Trailer "+name] = values
				}
				saw <- h
			}))
			proxy := gateway.Proxy(gateway.NewUpstream("app", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{Transport: newTransport(t, nil)}), nil)
			local := make(chan http.Header, 1)
			identity := ""
			s := serve(t, gateway.ForwardAuth(up, tt.opts)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if id, ok := gateway.IdentityFrom(r.Context()); ok {
					identity = id.Subject + " " + fmt.Sprint(id.Claims)
					if id.Scopes != nil {
						identity += " " + fmt.Sprint(id.Scopes)
					}
				}
				local <- r.Header
				proxy.ServeHTTP(w, r)
			})))
			owned := append(slices.Clone(tt.owned), "X-User-ID")
			head := "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer outer\r\nCookie: own=1\r\n"
			head += "Connection: close, authorization, " + strings.Join(owned, ", ") + "\r\nTrailer: " + strings.Join(owned, ", ") + "\r\n"
			fields, trailers := "", ""
			for _, name := range owned {
				trailers += name + ": mallory\r\n" + strings.ReplaceAll(name, "-", "_") + ": mallory\r\n"
				for _, alias := range append(aliases(name), name) {
					fields += alias + ": mallory\r\n"
				}
			}
			conn := raw(t, s, head+fields+"\r\n0\r\n"+trailers+"\r\n")
			if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
				t.Fatal(res, err)
			}
			if identity != tt.identity {
				t.Errorf("identity %q, want %q", identity, tt.identity)
			}
			for where, h := range map[string]http.Header{"local": <-local, "backend": <-saw} {
				for name, want := range tt.fields {
					if got := strings.Join(h[name], "|"); got != want {
						t.Errorf("%s: %s %q, want %q", where, name, got, want)
					}
				}
				for name, values := range h {
					if slices.Contains(values, "mallory") {
						t.Errorf("%s: %s is forged", where, name)
					}
				}
			}
		})
	}
}

// TestForwardAuthOtherFields: fields that nobody has to own go on, and the request that outer handlers
// hold stays as it is.
func TestForwardAuthOtherFields(t *testing.T) {
	up, _ := decides(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Remote-Groups", "g") })
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = http.Header{"Accept": {"x"}, "Remote-Groups": {"own"}, "Connection": {"keep-alive, remote-groups"}}
	before := r.Header.Clone()
	var inside http.Header
	h := gateway.ForwardAuth(up, &gateway.ForwardAuthOptions{Copy: []string{"Remote-Groups"}})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inside = r.Header }))
	recorded(holder(t)(h), r)
	if !maps.EqualFunc(r.Header, before, slices.Equal) {
		t.Errorf("the client's request became %v", r.Header)
	}
	if want := (http.Header{"Accept": {"x"}, "Remote-Groups": {"g"}, "Connection": {"keep-alive"}}); !maps.EqualFunc(inside, want, slices.Equal) {
		t.Errorf("inside: %v", inside)
	}
}

// TestForwardAuthRefusesItself: what two servers could read differently is not asked about.
func TestForwardAuthRefusesItself(t *testing.T) {
	up, asked := decides(t, silent)
	h := gateway.ForwardAuth(up, nil)(text("passed"))
	two := httptest.NewRequest("GET", "/", nil)
	two.Header["Authorization"] = []string{"Bearer a", "Bearer b"}
	host := httptest.NewRequest("GET", "/", nil)
	host.Host = "a b"
	large := httptest.NewRequest("GET", "/", nil)
	large.Header.Set("Cookie", strings.Repeat("x", 2<<20))
	for name, r := range map[string]*http.Request{
		"dots": httptest.NewRequest("GET", "/public/..%2fadmin", nil), "backslash": httptest.NewRequest("GET", `/a%5cb`, nil),
		"no path": {Method: "OPTIONS", URL: must(httptest.NewRequest("GET", "/", nil).URL.Parse("*")), Host: "x"}, "two Authorization": two, "Host": host,
	} {
		if name == "no path" {
			r.URL.Path = "*"
		}
		if rec := recorded(h, r); rec.Code != 400 {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if len(asked) > 0 {
		t.Errorf("asked %d times", len(asked))
	}
	if rec := recorded(h, large); rec.Code == 200 || rec.Code == 503 && len(asked) > 0 {
		t.Errorf("a large cookie: %d", rec.Code)
	}
}

// TestForwardAuthUpgrade: a handshake is asked about without Upgrade, passes, and gets the service's
// refusal as it came. With a cookie and from a page of another origin it is refused, whatever the service
// says.
func TestForwardAuthUpgrade(t *testing.T) {
	up, _ := decides(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "good=1" {
			http.Redirect(w, r, "/login", http.StatusFound)
		}
		w.Header().Set("Set-Cookie", "renewed=1")
	})
	echo := func(w http.ResponseWriter, r *http.Request) {
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line, _ := brw.ReadString('\n')
		io.WriteString(conn, line)
	}
	for _, tt := range []struct {
		name, fields string
		origins      []string
		status       int
	}{
		{"own page", "Cookie: good=1\r\nOrigin: http://gw.example\r\n", nil, 101},
		{"no browser", "Cookie: good=1\r\n", nil, 101},
		{"without a session", "Origin: http://gw.example\r\n", nil, 302},
		{"another page", "Cookie: good=1\r\nOrigin: http://evil.example\r\n", nil, 403},
		{"an allowed page", "Cookie: good=1\r\nOrigin: http://app.example\r\n", []string{"http://app.example"}, 101},
	} {
		f := newFront(t, nil, echo, gateway.ForwardAuth(up, &gateway.ForwardAuthOptions{Path: "/check", Origins: tt.origins}))
		conn := raw(t, f.Server, "GET /ws HTTP/1.1\r\nHost: gw.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+tt.fields+"\r\nping\n")
		br := bufio.NewReader(conn)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != tt.status {
			t.Fatalf("%s: %v, %v, want %d", tt.name, res, err, tt.status)
		}
		if tt.status == 101 {
			if line, err := br.ReadString('\n'); line != "ping\n" {
				t.Errorf("%s: %q, %v", tt.name, line, err)
			}
		}
		conn.Close()
	}
	// CORS middleware outside answers preflights; a preflight that comes to ForwardAuth is asked about.
	h := gateway.ForwardAuth(up, nil)(text("passed"))
	if res := preflight(allowOrigin(h), "PUT", "/x"); res.StatusCode != 204 {
		t.Errorf("preflight: %d", res.StatusCode)
	}
	if res := preflight(h, "PUT", "/x"); res.StatusCode != 302 {
		t.Errorf("preflight without CORS middleware: %d", res.StatusCode)
	}
}

// TestForwardAuthHead: a client that asks with HEAD gets the header of a refusal, and its connection stays in use. The
// decider may be a handler of this process.
func TestForwardAuthHead(t *testing.T) {
	decider := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-Method") != "HEAD" || r.URL.Path != "/x" {
			t.Errorf("asked %v", r.Header)
		}
		http.Error(w, "log in", http.StatusUnauthorized)
	}))
	s := serve(t, gateway.ForwardAuth(decider, nil)(text("passed")))
	conn := raw(t, s, strings.Repeat("HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n", 2))
	br := bufio.NewReader(conn)
	for range 2 {
		head, err := readHead(br)
		if err != nil || !strings.HasPrefix(head, "HTTP/1.1 401 ") || !strings.Contains(head, "Content-Length: 7\r\n") {
			t.Errorf("%q, %v", head, err)
		}
	}
}

func TestForwardAuthPanics(t *testing.T) {
	up := gateway.NewUpstream("u", nil, nil)
	for name, o := range map[string]gateway.ForwardAuthOptions{
		"a relative path": {Path: "check"}, "a URL with a user": {Path: "http://u@x/"}, "another scheme": {Path: "ftp://x/"},
		"Connection": {Headers: []string{"Connection"}}, "Host": {Headers: []string{"Host"}}, "malformed": {Headers: []string{"a b"}},
		"X-Forwarded-For": {Headers: []string{"X-Forwarded-For"}}, "an alias": {Headers: []string{"x_forwarded_uri"}}, "another alias": {Headers: []string{"XForwardedHost"}}, "X-User-ID of the client": {Headers: []string{"X-User-ID"}},
		"copy traceparent": {Copy: []string{"Traceparent"}}, "X-Original-URL": {Headers: []string{"X-Original-URL"}},
		"Content-Length": {Copy: []string{"Content-Length"}}, "X-User-ID": {Copy: []string{"X_User_ID"}}, "Set-Cookie": {Copy: []string{"Set-Cookie"}},
		"twice": {Copy: []string{"Remote-Groups", "Remote_Groups"}}, "copy X-Forwarded-User": {Copy: []string{"X-Forwarded-User"}},
		"no sub": {Identity: map[string]string{"groups": "X-Groups"}}, "no name": {Identity: map[string]string{"sub": "a b"}}, "no claim": {Identity: map[string]string{"sub": "X", "": "Y"}},
		"origin": {Origins: []string{"app.example"}}, "timeout": {Timeout: -1},
	} {
		if got := panicOf(func() { gateway.ForwardAuth(up, &o) }); !strings.HasPrefix(got, "gateway: ForwardAuth: ") {
			t.Errorf("%s: panicked with %q", name, got)
		}
	}
	if panicOf(func() { gateway.ForwardAuth(nil, nil) }) == "" {
		t.Error("no panic for nil")
	}
}
