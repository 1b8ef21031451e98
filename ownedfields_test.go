package gateway_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// aliases are spellings that some server folds into name, and name itself.
func aliases(name string) []string {
	all := []string{name, "-" + name, name + "_", name + "-", "_." + name, strings.ReplaceAll(name, "-", ""), strings.ReplaceAll(name, "-", "--")}
	for _, separator := range "_.!~'|^*+`#$%&" {
		all = append(all, strings.ReplaceAll(name, "-", string(separator)))
		if i := strings.Index(name, "-"); i >= 0 {
			all = append(all, name[:i]+string(separator)+name[i+1:])
			i = strings.LastIndex(name, "-")
			all = append(all, name[:i]+string(separator)+name[i+1:])
		} else {
			all = append(all, name[:3]+string(separator)+name[3:])
		}
	}
	for _, a := range slices.Clone(all) {
		mixed := []byte(a)
		for i := range mixed {
			if c := mixed[i]; i%2 == 0 && 'a' <= c && c <= 'z' {
				mixed[i] = c - 'a' + 'A'
			} else if i%2 == 1 && 'A' <= c && c <= 'Z' {
				mixed[i] = c - 'A' + 'a'
			}
		}
		all = append(all, strings.ToLower(a), strings.ToUpper(a), string(mixed))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func fold(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return -1
	}, strings.ToLower(name))
}

// TestProxyFieldsCannotBeForged sends every field that the gateway owns in every spelling: as a field, as one
// that Connection names, and as a trailer, announced and not; on public and authenticated routes. What the
// backend sees is what the gateway wrote, once, or nothing.
func TestProxyFieldsCannotBeForged(t *testing.T) {
	type seen struct{ header, trailer http.Header }
	saw := make(chan seen, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		saw <- seen{r.Header, r.Trailer}
	}))
	up := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil)
	identity := map[string]string{"X-User-ID": "sub", "X-Tenant": "tenant", "Account": "account"}
	proxy := gateway.Proxy(up, &gateway.ProxyOptions{Identity: identity, ClientCert: true})
	observe := gateway.Observe(&gateway.ObserveOptions{TraceHeader: "X-Request-ID"})
	public := serve(t, observe(proxy))
	private := serve(t, gateway.Chain(observe, withIdentity(&gateway.Identity{Subject: "alice", Claims: map[string]any{"tenant": "acme"}}))(proxy))
	const anything = "*"
	for _, route := range []struct {
		name   string
		server *httptest.Server
		want   map[string]string // what the gateway writes; all else of what it owns is absent
	}{
		{"public", public, map[string]string{}},
		{"authenticated", private, map[string]string{"X-User-ID": "alice", "X-Tenant": "acme"}},
	} {
		route.want["X-Forwarded-For"], route.want["X-Real-IP"] = "127.0.0.1", "127.0.0.1"
		route.want["X-Forwarded-Host"], route.want["X-Forwarded-Proto"] = "shop.example", "http"
		route.want["X-Request-ID"], route.want["Traceparent"] = anything, anything
		for _, field := range []string{
			"X-User-ID", "X-Tenant", "Account",
			"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-User",
			"Forwarded", "X-Real-IP", "X-Trace-ID", "X-Request-ID", "Traceparent", "Tracestate", "Client-Cert", "Client-Cert-Chain",
		} {
			for spellings := range slices.Chunk(aliases(field), 60) { // net/http takes 4 KiB of trailers
				var lines, names strings.Builder
				for i, alias := range spellings {
					fmt.Fprintf(&lines, "%s: mallory%d\r\n", alias, i)
					fmt.Fprintf(&names, "%s, ", alias)
				}
				for way, request := range map[string]string{
					"field":              lines.String() + "\r\n",
					"Connection":         "Connection: " + names.String() + "\r\n" + lines.String() + "\r\n",
					"Connection's alone": "Connection: " + field + "\r\n" + lines.String() + "\r\n",
					"trailer":            "Transfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n2\r\nhi\r\n0\r\nX-End: 1\r\n" + lines.String() + "\r\n",
					"announced trailer":  "Transfer-Encoding: chunked\r\nTrailer: " + names.String() + "X-End\r\n\r\n2\r\nhi\r\n0\r\nX-End: 1\r\n" + lines.String() + "\r\n",
				} {
					conn := raw(t, route.server, "POST / HTTP/1.1\r\nHost: shop.example\r\n"+request)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil || res.StatusCode != 200 {
						t.Fatalf("%s: %s: %v, %v", field, way, res, err)
					}
					conn.Close()
					s := <-saw
					if strings.Contains(way, "trailer") && (len(s.trailer) != 1 || s.trailer.Get("X-End") != "1") {
						t.Errorf("%s on a %s route as a %s: trailers %v", field, route.name, way, s.trailer)
					}
					var got []string
					for name, values := range s.header {
						if fold(name) == fold(field) {
							got = append(got, values...)
						}
					}
					want := route.want[field]
					if forged := strings.Contains(strings.Join(got, ""), "mallory"); forged || want == anything && len(got) != 1 ||
						want != anything && strings.Join(got, "|") != want {
						t.Errorf("%s on a %s route as a %s: the backend saw %q, want %q", field, route.name, way, got, want)
					}
				}
			}
		}
	}
}

// TestProxyBelieves: behind a trusted proxy its own fields stand, and what a client got past it does not.
func TestProxyBelieves(t *testing.T) {
	saw := make(chan http.Header, 1)
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) { saw <- r.Header },
		gateway.TrustProxies("X-Forwarded-For", netip.MustParsePrefix("127.0.0.0/8")))
	for _, tt := range []struct{ name, send, field, want string }{
		{"X-Forwarded-For", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8, 9.9.9.9", "X-Forwarded-For", "1.2.3.4, 5.6.7.8, 9.9.9.9, 127.0.0.1"},
		{"none of it", "X-A: b", "X-Forwarded-For", "127.0.0.1"},
		{"its alias", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded_For: 6.6.6.6\r\nX-Forwarded-For-: 6.6.6.6", "X-Forwarded-For", "1.2.3.4, 127.0.0.1"},
		{"host", "X-Forwarded-Host: a.example", "X-Forwarded-Host", "a.example"},
		{"no host", "X-A: b", "X-Forwarded-Host", "shop.example"},
		{"host's alias", "X-Forwarded_Host: a.example\r\nX-Forwarded-Ho-st: b.example\r\nX-Forwarded-Host-: c.example", "X-Forwarded-Host", "shop.example"},
		{"proto", "X-Forwarded-Proto: https", "X-Forwarded-Proto", "https"},
		{"port", "X-Forwarded-Port: 443", "X-Forwarded-Port", "443"},
		{"user", "X-Forwarded-User: mallory\r\nX-Forwarded-Email: m@evil.example\r\nX-Forwarded-Groups: admin", "X-Forwarded-User", ""},
		{"groups", "X-Forwarded-Groups: admin", "X-Forwarded-Groups", ""},
		{"Forwarded, which this proxy does not write", "Forwarded: for=1.2.3.4;proto=https", "Forwarded", ""},
		{"Forwarded's alias", "For.warded: for=1.2.3.4", "Forwarded", ""},
		{"real", "X-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 6.6.6.6", "X-Real-Ip", "1.2.3.4"},
		{"a subject", "X-User-ID: mallory", "X-User-Id", ""},
	} {
		conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: shop.example\r\n"+tt.send+"\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
			t.Fatalf("%s: %v, %v", tt.name, res, err)
		}
		var got []string
		for name, values := range <-saw {
			if fold(name) == fold(tt.field) {
				got = append(got, values...)
			}
		}
		if strings.Join(got, "|") != tt.want {
			t.Errorf("%s: the backend saw %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestProxyIdentityClaims: a claim that is there but no field value refuses the request; one that is not there
// writes nothing.
func TestProxyIdentityClaims(t *testing.T) {
	saw := make(chan http.Header, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { saw <- r.Header }))
	up := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil)
	const refused = "\x00"
	for _, tt := range []struct {
		name  string
		claim any
		want  string
	}{
		{"text", "acme", "acme"}, {"number", json.Number("12345678901234567890"), "12345678901234567890"}, {"true", true, "true"}, {"false", false, "false"},
		{"list", []any{"a", "b"}, "a,b"}, {"strings", []string{"a", "b"}, "a,b"}, {"umlaut", "ä", "ä"},
		{"blank in a list", []any{"Domain Users", "b"}, "Domain%20Users,b"}, {"comma in a list", []string{"a,b", "c"}, "a%2Cb,c"},
		{"percent in a list", []any{"a%20b"}, "a%2520b"}, {"list with an empty one", []any{"a", ""}, "a"}, {"list with null", []any{nil, "a"}, "a"},
		{"list with a number", []any{"a", json.Number("1"), true}, "a,1,true"}, {"list with a line break", []string{"a", "b\r\nX-Role: admin"}, "a,b%0D%0AX-Role:%20admin"},
		{"umlaut in a list", []any{"ä", " "}, "%C3%A4,%20"}, {"no UTF-8 in a list", []any{"\xff"}, "%FF"},
		{"list of empty ones", []any{"", nil}, ""},
		{"absent", nil, ""}, {"empty", "", ""}, {"empty list", []any{}, ""}, {"no strings", []string{}, ""},
		{"CR LF", "a\r\nX-Role: admin", refused}, {"LF", "a\n", refused}, {"NUL", "a\x00", refused}, {"DEL", "a\x7f", refused}, {"tab", "a\tb", refused},
		{"blank before", " a", refused}, {"blank after", "a ", refused}, {"blank alone", " ", refused}, {"no-break space after", "a\u00a0", refused},
		{"no UTF-8", "a\xff", refused}, {"object", map[string]any{"a": "b"}, refused}, {"list with an object", []any{"a", map[string]any{"a": "b"}}, refused},
		{"list with a list", []any{"a", []any{"b"}}, refused},
	} {
		j, observe := observed()
		id := &gateway.Identity{Subject: "alice", Claims: map[string]any{"tenant": tt.claim}}
		s := serve(t, gateway.Chain(observe, withIdentity(id))(gateway.Proxy(up, &gateway.ProxyOptions{Identity: map[string]string{"X-Tenant": "tenant"}})))
		r := newRequest(t, "GET", s.URL, nil)
		r.Header.Set("X-Tenant", "mallory")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		line := j.next(t)
		if tt.want == refused {
			if p := readProblem(t, res); p.Status != 401 || res.Header.Get("WWW-Authenticate") == "" || strings.Contains(fmt.Sprint(p), "tenant") {
				t.Errorf("%s: got %+v", tt.name, p)
			}
			if line["outcome"] != "rejected" || !strings.Contains(line["error"], "tenant") || strings.Contains(line["error"], "admin") {
				t.Errorf("%s: logged %v", tt.name, line)
			}
			continue
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			t.Errorf("%s: refused with %d", tt.name, res.StatusCode)
			continue
		}
		if h := <-saw; strings.Join(h["X-Tenant"], "|") != tt.want || tt.want == "" && len(h["X-Tenant"]) > 0 {
			t.Errorf("%s: the backend saw %q", tt.name, h["X-Tenant"])
		}
	}
	select {
	case h := <-saw:
		t.Errorf("the backend was asked for one who was refused: %v", h)
	default:
	}

	// Somebody without a subject is nobody to the backend.
	s := serve(t, withIdentity(&gateway.Identity{Issuer: "https://id.example"})(gateway.Proxy(up, nil)))
	get(t, s.URL)
	if h := <-saw; len(h["X-User-Id"]) > 0 {
		t.Errorf("the backend saw %q", h["X-User-Id"])
	}
}

// TestProxyClientCert: the backend is told of a certificate that was verified, and of no other.
func TestProxyClientCert(t *testing.T) {
	ca := certificate(t, "ca", time.Now().Add(time.Hour), nil)
	leaf := certificate(t, "machine-1", time.Now().Add(time.Hour), &ca)
	self := certificate(t, "machine-1", time.Now().Add(time.Hour), nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	saw := make(chan http.Header, 1)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { saw <- r.Header }))
	up := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil)
	for _, tt := range []struct {
		name string
		auth tls.ClientAuthType
		cert *tls.Certificate
		opts *gateway.ProxyOptions
		want []byte
	}{
		{"verified", tls.VerifyClientCertIfGiven, &leaf, &gateway.ProxyOptions{ClientCert: true}, leaf.Certificate[0]},
		{"none", tls.VerifyClientCertIfGiven, nil, &gateway.ProxyOptions{ClientCert: true}, nil},
		{"not verified", tls.RequireAnyClientCert, &self, &gateway.ProxyOptions{ClientCert: true}, nil},
		{"not asked for", tls.VerifyClientCertIfGiven, &leaf, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(gateway.Proxy(up, tt.opts))
			s.TLS = &tls.Config{ClientAuth: tt.auth, ClientCAs: pool}
			s.StartTLS()
			defer s.Close()
			if tt.cert != nil {
				s.Client().Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
			}
			r := newRequest(t, "GET", s.URL, nil)
			r.Header.Set("Client-Cert", ":Zm9yZ2Vk:")
			r.Header["client_cert"] = []string{":Zm9yZ2Vk:"}
			r.Header.Set("Client-Cert-Chain", ":Zm9yZ2Vk:")
			res, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			h := <-saw
			var want []string
			if tt.want != nil {
				want = []string{":" + base64.StdEncoding.EncodeToString(tt.want) + ":"}
			}
			var got []string
			for name, values := range h {
				if strings.HasPrefix(fold(name), "clientcert") {
					got = append(got, values...)
				}
			}
			if !slices.Equal(got, want) || h.Get("X-Forwarded-Proto") != "https" {
				t.Errorf("the backend saw %q, want %q", got, want)
			}
		})
	}
}

func TestProxyFieldPanics(t *testing.T) {
	for name, identity := range map[string]map[string]string{
		"two spellings of one":   {"X-User-ID": "sub", "X_User_ID": "email"},
		"hop-by-hop":             {"Connection": "sub"},
		"framing":                {"Content-Length": "sub"},
		"host":                   {"Host": "sub"},
		"written anyway":         {"X-Forwarded-For": "sub"},
		"its alias":              {"X_Real_IP": "sub"},
		"the trace":              {"Traceparent": "sub"},
		"the certificate":        {"Client-Cert": "sub"},
		"no name":                {"": "sub"},
		"no claim":               {"X-User-ID": ""},
		"a name that is no name": {"X-User-ID\r\n": "sub"},
	} {
		if v := panicOf(func() {
			gateway.Proxy(gateway.NewUpstream("x", nil, nil), &gateway.ProxyOptions{Identity: identity})
		}); !strings.HasPrefix(v, "gateway: Proxy: identity field ") {
			t.Errorf("%s: panic %q", name, v)
		}
	}
	gateway.Proxy(gateway.NewUpstream("x", nil, nil), &gateway.ProxyOptions{Identity: map[string]string{"X-Forwarded-User": "sub", "Authorization": "token"}})
}

// TestProxyFramingHasNoAlias: a server that folds names gets no second opinion on where a body ends.
func TestProxyFramingHasNoAlias(t *testing.T) {
	saw := make(chan http.Header, 1)
	f := newFront(t, nil, func(_ http.ResponseWriter, r *http.Request) { saw <- r.Header })
	for _, field := range []string{"Content-Length", "Transfer-Encoding"} {
		var lines strings.Builder
		for _, alias := range aliases(field) {
			if !strings.EqualFold(alias, field) {
				fmt.Fprintf(&lines, "%s: chunked\r\n", alias)
			}
		}
		raw(t, f.Server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"+lines.String()+"\r\nhi")
		for name, values := range <-saw {
			if fold(name) == fold(field) && !(name == "Content-Length" && values[0] == "2") {
				t.Errorf("the backend saw %s: %q", name, values)
			}
		}
	}
}
