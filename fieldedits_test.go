package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// TestRequestFields: the target sees the edits and nothing of the client's under an alias, whatever the client sends.
func TestRequestFields(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edits gateway.FieldEdits
		send  string // lines of fields, and what follows the head
		want  string // fields of the target that begin with X- or are named here, sorted
	}{
		{"nothing", gateway.FieldEdits{}, "X-A: 1\r\n\r\n", "X-A: 1"},
		{"drop", gateway.FieldEdits{Drop: []string{"x-a", "Authorization", "User-Agent"}},
			"X-A: 1\r\nX-A: 2\r\nX-B: 3\r\nAuthorization: Basic eA==\r\nUser-Agent: me\r\n\r\n", "X-B: 3"},
		{"drop aliases", gateway.FieldEdits{Drop: []string{"X-A"}}, "X_A: 1\r\nx.a: 2\r\nX-AB: 3\r\n\r\n", "X-Ab: 3"},
		{"set", gateway.FieldEdits{Set: map[string]string{"X-A": "ours", "User-Agent": "gw"}},
			"X-A: 1\r\nX_A: 2\r\nUser-Agent: me\r\n\r\n", "User-Agent: gw, X-A: ours"},
		{"set, named by Connection", gateway.FieldEdits{Set: map[string]string{"X-A": "ours"}, Add: map[string]string{"X-B": "added"}},
			"Connection: X-A, X-B\r\nX-B: 1\r\n\r\n", "X-A: ours, X-B: added"},
		{"add", gateway.FieldEdits{Add: map[string]string{"x-a": "3"}}, "X-A: 1\r\nX-A: 2\r\n\r\n", "X-A: 1, X-A: 2, X-A: 3"},
		{"add to none", gateway.FieldEdits{Add: map[string]string{"X-A": "3"}}, "\r\n", "X-A: 3"},
		{"in this order", gateway.FieldEdits{Drop: []string{"X-A"}, Set: map[string]string{"X-A": "s"}, Add: map[string]string{"X-A": "a"}},
			"X-A: 1\r\n\r\n", "X-A: s, X-A: a"},
		{"trailers", gateway.FieldEdits{Drop: []string{"X-A"}, Set: map[string]string{"X-B": "s"}},
			"Transfer-Encoding: chunked\r\nTrailer: X-A, X_B, X-C\r\n\r\n0\r\nX-A: 1\r\nX_B: 2\r\nX-C: 3\r\n\r\n", "X-B: s, trailer X-C: 3"},
	} {
		for _, rewrite := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, Rewrite %t", tt.name, rewrite), func(t *testing.T) {
				opts := &gateway.ProxyOptions{RequestFields: tt.edits}
				if rewrite {
					opts.Rewrite = func(*httputil.ProxyRequest) {}
				}
				seen := make(chan string, 1)
				f := newFront(t, opts, func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					seen <- fieldsOf(r.Header, r.Trailer)
				})
				for range 2 {
					conn := raw(t, f.Server, "POST / HTTP/1.1\r\nHost: x\r\n"+tt.send)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil || res.StatusCode != 200 {
						t.Fatalf("got %v, %v", res, err)
					}
					if got := <-seen; got != tt.want {
						t.Errorf("the target saw %q, want %q", got, tt.want)
					}
				}
			})
		}
	}
}

// fieldsOf returns the fields in h and trailer that a test chose, sorted.
func fieldsOf(h, trailer http.Header) string {
	var fields []string
	for name, values := range h {
		if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" || name == "X-Trace-Id" {
			continue
		}
		if strings.HasPrefix(name, "X") || name == "Authorization" || name == "User-Agent" || name == "Server" {
			for _, v := range values {
				fields = append(fields, name+": "+v)
			}
		}
	}
	slices.SortStableFunc(fields, func(a, b string) int {
		return strings.Compare(a[:strings.IndexByte(a, ':')], b[:strings.IndexByte(b, ':')])
	})
	for name, values := range trailer {
		for _, v := range values {
			fields = append(fields, "trailer "+name+": "+v)
		}
	}
	return strings.Join(fields, ", ")
}

// TestResponseFields: the client sees the edits, in the header, in trailers, in a 103 and in a 101.
func TestResponseFields(t *testing.T) {
	edits := gateway.FieldEdits{Drop: []string{"server", "X-Debug"}, Set: map[string]string{"X-Set": "ours"}, Add: map[string]string{"X-Add": "more"}}
	opts := &gateway.ProxyOptions{ResponseFields: edits, ModifyResponse: func(res *http.Response) error {
		if got := res.Header["X-Set"]; len(got) != 1 || got[0] != "ours" {
			t.Errorf("ModifyResponse saw X-Set: %q", got)
		}
		return nil
	}}
	const fields = "Server: s\r\nX-Debug: 1\r\nX-Set: 2\r\nX-Add: 3\r\nX-Else: 4\r\n"
	for _, tt := range []struct{ name, ask, answer, want, early string }{
		{"header", "\r\n", "200 OK\r\n" + fields + "Content-Length: 0\r\n\r\n", "X-Add: 3, X-Add: more, X-Else: 4, X-Set: ours", ""},
		{"trailers", "TE: trailers\r\n\r\n", "200 OK\r\nTrailer: X-Debug, X-Set, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Debug: 1\r\nX-Set: 2\r\nX-Sum: 3\r\n\r\n",
			"X-Add: more, X-Set: ours, trailer X-Sum: 3", ""},
		{"trailers that were not announced", "TE: trailers\r\n\r\n", "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Debug: 1\r\nX-Set: 2\r\nX-Sum: 3\r\n\r\n",
			"X-Add: more, X-Set: ours, trailer X-Sum: 3", ""},
		{"informational", "\r\n", "103 Early Hints\r\n" + fields + "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "X-Add: more, X-Set: ours", "X-Add: 3, X-Else: 4"},
		{"upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" + fields + "\r\n",
			"X-Add: 3, X-Add: more, X-Else: 4, X-Set: ours", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := toPlain(t, opts, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				io.WriteString(conn, "HTTP/1.1 "+tt.answer)
			})
			br := bufio.NewReader(raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.ask))
			var early string
			for {
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode == 103 {
					early = fieldsOf(res.Header, nil)
					continue
				}
				if res.StatusCode == 200 {
					io.Copy(io.Discard, res.Body)
				}
				if got := fieldsOf(res.Header, res.Trailer); got != tt.want || early != tt.early {
					t.Errorf("the client saw %q after %q, want %q after %q", got, early, tt.want, tt.early)
				}
				return
			}
		})
	}
}

func TestFieldEditsPanic(t *testing.T) {
	for _, tt := range []struct {
		option, want string
		edits        gateway.FieldEdits
	}{
		{"request", "gateway writes", gateway.FieldEdits{Drop: []string{"X-User-ID"}}},
		{"request", "gateway writes", gateway.FieldEdits{Drop: []string{"x_email"}}}, // an alias of one in Identity
		{"request", "gateway writes", gateway.FieldEdits{Set: map[string]string{"X-Forwarded-Prefix": "/a"}}},
		{"request", "gateway writes", gateway.FieldEdits{Set: map[string]string{"X-Forwarded-User": "a"}}},
		{"request", "gateway writes", gateway.FieldEdits{Add: map[string]string{"x.real.ip": "a"}}},
		{"request", "gateway writes", gateway.FieldEdits{Set: map[string]string{"Traceparent": "a"}}},
		{"request", "connection", gateway.FieldEdits{Set: map[string]string{"connection": "close"}}},
		{"request", "connection", gateway.FieldEdits{Drop: []string{"Upgrade"}}},
		{"request", "message", gateway.FieldEdits{Drop: []string{"content-length"}}},
		{"request", "message", gateway.FieldEdits{Add: map[string]string{"Trailer": "X-A"}}},
		{"request", "PreserveHost", gateway.FieldEdits{Set: map[string]string{"Host": "a"}}},
		{"request", "not a field name", gateway.FieldEdits{Drop: []string{"a b"}}},
		{"request", "not a field name", gateway.FieldEdits{Drop: []string{""}}},
		{"request", "malformed value", gateway.FieldEdits{Set: map[string]string{"X-A": "a\r\nX-B: b"}}},
		{"request", "for one", gateway.FieldEdits{Set: map[string]string{"X-A": "1", "X_a": "2"}}},
		{"request", "for one", gateway.FieldEdits{Set: map[string]string{"X-A": "1", "x-a": "2"}}},
		{"response", "message", gateway.FieldEdits{Drop: []string{"Transfer-Encoding"}}},
		{"response", "connection", gateway.FieldEdits{Set: map[string]string{"Keep-Alive": "timeout=5"}}},
		{"response", "gateway writes", gateway.FieldEdits{Drop: []string{"X-Trace-ID"}}},
		{"response", "", gateway.FieldEdits{Drop: []string{"X-User-ID"}}}, // a backend may leak it
	} {
		t.Run(fmt.Sprintf("%s %v", tt.option, tt.edits), func(t *testing.T) {
			opts := &gateway.ProxyOptions{Identity: map[string]string{"X-Email": "email"}, RequestFields: tt.edits}
			if tt.option == "response" {
				opts.RequestFields, opts.ResponseFields = gateway.FieldEdits{}, tt.edits
			}
			got := panicOf(func() { gateway.Proxy(http.DefaultTransport, opts) })
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("panicked with %q, want %q", got, tt.want)
			}
		})
	}
}

// TestKeepQuery: what the target sees of a query, and what the log line tells of it.
func TestKeepQuery(t *testing.T) {
	for _, tt := range []struct {
		keep                 bool
		query, want, remarks string
	}{
		{false, "?b=2&a=1", "/p?b=2&a=1", ""},
		{false, "?b=2;x&a=1", "/p?a=1", "query: dropped 1 parameter"},
		{false, "?b=2;x&a=1&c=%zz", "/p?a=1", "query: dropped 2 parameters"},
		{false, "", "/p", ""},
		{true, "?b=2;x&a=1&c=%zz&d=|\"{é", "/p?b=2;x&a=1&c=%zz&d=|\"{é", ""},
		{true, "?", "/p?", ""},
		{true, "", "/p", ""},
	} {
		t.Run(fmt.Sprintf("%t %s", tt.keep, tt.query), func(t *testing.T) {
			f := newFront(t, &gateway.ProxyOptions{KeepQuery: tt.keep}, func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, r.RequestURI)
			})
			conn := raw(t, f.Server, "GET /p"+tt.query+" HTTP/1.1\r\nHost: x\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(res.Body); string(got) != tt.want {
				t.Errorf("the target saw %q, want %q", got, tt.want)
			}
			if line := f.journal.next(t); line["remarks"] != tt.remarks {
				t.Errorf("the remarks are %q, want %q", line["remarks"], tt.remarks)
			}
		})
	}
}

// TestForwardedPrefix: the target is told what was stripped, behind what trusted proxies stripped before.
func TestForwardedPrefix(t *testing.T) {
	for _, tt := range []struct {
		strip, path string
		trusted     bool
		sent        []string // by the client, or the trusted proxy
		want        string
	}{
		{"", "/api/x", false, nil, ""},
		{"", "/api/x", false, []string{"/evil"}, ""},
		{"", "/api/x", true, []string{"/lb"}, "/lb"},
		{"/api", "/api/x", false, nil, "/api"},
		{"/api/", "/api", false, []string{"/evil"}, "/api"},
		{"/api", "/api/x", true, nil, "/api"},
		{"/api", "/api/x", true, []string{"/lb"}, "/lb/api"},
		{"/api", "/api/x", true, []string{"/a/, /b", "/c"}, "/a/b/c/api"},
		{"/api/v1", "/api/v1/x", false, nil, "/api/v1"},
	} {
		t.Run(fmt.Sprintf("%q %v %q", tt.strip, tt.trusted, tt.sent), func(t *testing.T) {
			var got []string
			h := gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
				got = r.Header["X-Forwarded-Prefix"]
				return &http.Response{StatusCode: 204, Header: http.Header{}, Body: http.NoBody}, nil
			}), &gateway.ProxyOptions{StripPrefix: tt.strip})
			if tt.trusted {
				h = gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("192.0.2.0/24"))(h)
			}
			r := httptest.NewRequest("GET", tt.path, nil)
			r.Header["X-Forwarded-For"] = []string{"203.0.113.7"}
			r.Header["X-Forwarded-Prefix"] = tt.sent
			r.Header["X_forwarded_prefix"] = []string{"/evil"}
			h.ServeHTTP(httptest.NewRecorder(), r)
			if strings.Join(got, "|") != tt.want {
				t.Errorf("the target saw %q, want %q", got, tt.want)
			}
		})
	}
}
