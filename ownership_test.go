package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// holding reads r on another goroutine, as a middleware may that logs or audits. wait ends when it has read.
func holding(r *http.Request) (wait func()) {
	done := make(chan bool)
	go func() {
		defer close(done)
		for range 100 {
			for name, values := range r.Header {
				_ = name + fmt.Sprint(values)
			}
			_ = r.Context().Value("nothing has this key")
			_ = trace.SpanContextFromContext(r.Context())
		}
	}()
	return func() { <-done }
}

// holder is a foreign middleware that keeps reading its request while what is inside runs, and checks that its fields
// stay what they were.
func holder(t *testing.T) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			before, ctx := fmt.Sprint(r.Header), r.Context()
			span := trace.SpanContextFromContext(ctx)
			wait := holding(r)
			next.ServeHTTP(w, r)
			wait()
			if after := fmt.Sprint(r.Header); after != before {
				t.Errorf("the fields were changed from %s to %s", before, after)
			}
			if got := trace.SpanContextFromContext(ctx); !got.Equal(span) {
				t.Errorf("the span in the context was changed from %v to %v", span, got)
			}
		})
	}
}

// TestNobodyChangesARequestThatOthersHold runs this package's middleware inside one that still reads its request. Most
// of its verdict is the race detector's.
func TestNobodyChangesARequestThatOthersHold(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	user := func(subject string) gateway.Middleware {
		return gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: subject}, nil), nil)
	}
	observe := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})
	errorsAsText := gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) { w.WriteHeader(e.Status) })
	shadow := func() (gateway.Middleware, func()) {
		ran := make(chan bool, 1)
		return gateway.Mirror(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			holding(r)()
			ran <- true
		}), nil), func() { <-ran }
	}
	var held func()
	holdingAuth := gateway.Auth(gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		held = holding(r)
		return &gateway.Identity{Subject: "ann"}, nil
	}), nil)
	holdingObserve := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel, TrustTrace: func(r *http.Request) bool {
		held = holding(r)
		return true
	}})
	hold := holder(t)
	for _, tt := range []struct {
		name   string
		mw     []gateway.Middleware
		mirror bool // mirrors in front of the last
	}{
		{"Auth", []gateway.Middleware{hold, user("ann")}, false},
		{"Auth in Auth", []gateway.Middleware{user("ann"), hold, user("bob")}, false},
		{"Auth in Observe", []gateway.Middleware{observe, hold, user("ann")}, false},
		{"Auth in Observe and WithIdentity", []gateway.Middleware{observe, withIdentity(&gateway.Identity{Subject: "ann"}), hold, user("bob")}, false},
		{"an Authenticator that holds the request", []gateway.Middleware{holdingAuth}, false},
		{"an Authenticator that holds the request, in Observe", []gateway.Middleware{observe, holdingAuth}, false},
		{"Observe", []gateway.Middleware{hold, observe}, false},
		{"Observe in HandleErrors", []gateway.Middleware{errorsAsText, hold, observe}, false},
		{"Observe in Auth", []gateway.Middleware{user("ann"), hold, observe}, false},
		{"a TrustTrace that holds the request", []gateway.Middleware{holdingObserve}, false},
		{"a TrustTrace that holds the request, in HandleErrors", []gateway.Middleware{errorsAsText, holdingObserve}, false},
		{"Observe in Mirror", []gateway.Middleware{errorsAsText, observe}, true},
		{"Auth in Mirror", []gateway.Middleware{errorsAsText, user("ann")}, true},
		{"Auth in Mirror in Auth", []gateway.Middleware{user("ann"), user("bob")}, true},
	} {
		for _, body := range []string{"", "body"} {
			t.Run(tt.name+"/"+body, func(t *testing.T) {
				held = func() {}
				mw, wait := slices.Clone(tt.mw), func() {}
				if tt.mirror {
					var mirror gateway.Middleware
					mirror, wait = shadow()
					mw = slices.Insert(mw, len(mw)-1, mirror)
				}
				spanInside, subjectInside := false, ""
				h := gateway.Chain(mw...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					spanInside = trace.SpanContextFromContext(r.Context()).IsValid()
					subjectInside = r.Header.Get("X-User-ID")
				}))
				r := httptest.NewRequest("POST", "/", strings.NewReader(body))
				r.Header = http.Header{"X-User-Id": {"mallory"}, "A": {"1"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
				h.ServeHTTP(httptest.NewRecorder(), r)
				held()
				wait()
				if observes := strings.Contains(tt.name, "Observe") || strings.Contains(tt.name, "TrustTrace"); observes != spanInside {
					t.Errorf("a span inside: %v", spanInside)
				}
				if strings.Contains(tt.name, "Auth") && subjectInside != "ann" && subjectInside != "bob" {
					t.Errorf("subject %q", subjectInside)
				}
			})
		}
	}
}

// TestRewriteMayShareAHeader: Proxy adds nothing to a map that Rewrite has taken from elsewhere.
func TestRewriteMayShareAHeader(t *testing.T) {
	shared := http.Header{"X-Shared": {"1"}}
	for name, take := range map[string]func(*httputil.ProxyRequest){
		"In's":    func(pr *httputil.ProxyRequest) { pr.Out.Header = pr.In.Header },
		"its own": func(pr *httputil.ProxyRequest) { pr.Out.Header = shared },
		"none":    func(pr *httputil.ProxyRequest) { pr.Out.Header = nil },
		"a request": func(pr *httputil.ProxyRequest) {
			pr.Out = &http.Request{Method: "GET", URL: pr.Out.URL, Header: shared}
		},
	} {
		var got http.Header
		h := holder(t)(gateway.Proxy(recordHeader(&got), &gateway.ProxyOptions{Rewrite: take}))
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Client", "1")
		if rec := recorded(h, r); rec.Code != 200 || got == nil {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
		if len(shared) != 1 {
			t.Errorf("%s: Rewrite's map was changed to %v", name, shared)
		}
	}
}

// TestAuthTrailersWithoutABody: a request whose trailers were announced and that has no body keeps having none.
func TestAuthTrailersWithoutABody(t *testing.T) {
	h := gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: "ann"}, nil), nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody || len(r.Trailer) != 0 {
			t.Errorf("body %v, trailers %v", r.Body, r.Trailer)
		}
	}))
	r := httptest.NewRequest("GET", "/", http.NoBody)
	r.Trailer = http.Header{"X-User-Id": nil}
	recorded(h, r)
}

// trailersOf sends a request with trailers over HTTP/1.1, of which the names in announced stand in Trailer, and returns
// the body of the answer.
func trailersOf(t *testing.T, addr string, announced string, trailers http.Header) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var b strings.Builder
	b.WriteString("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n")
	if announced != "" {
		b.WriteString("Trailer: " + announced + "\r\n")
	}
	b.WriteString("\r\n2\r\nhi\r\n0\r\n")
	for name, values := range trailers {
		for _, value := range values {
			b.WriteString(name + ": " + value + "\r\n")
		}
	}
	b.WriteString("\r\n")
	io.WriteString(conn, b.String())
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%d %q %v", res.StatusCode, body, err)
	}
	return string(body)
}

// showTrailers answers with the trailers of the request, before its body was read and after.
func showTrailers(w http.ResponseWriter, r *http.Request) {
	show := func(h http.Header) string {
		var all []string
		for name, values := range h {
			all = append(all, name+"="+strings.Join(values, "+"))
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	before := show(r.Trailer)
	body, err := io.ReadAll(r.Body)
	if err != nil || string(body) != "hi" {
		before += fmt.Sprintf(" body %q %v", body, err)
	}
	fmt.Fprintf(w, "%s|%s", before, show(r.Trailer))
}

// TestAuthRemovesForgedTrailers: a client's trailer of a field that the gateway owns reaches no handler inside Auth.
func TestAuthRemovesForgedTrailers(t *testing.T) {
	handler := http.HandlerFunc(showTrailers)
	optional := gateway.Auth(fixedAuthenticator(nil, gateway.ErrNoCredentials), &gateway.AuthOptions{Optional: true})
	known := gateway.Auth(fixedAuthenticator(&gateway.Identity{Subject: "ann"}, nil), nil)
	backend := serve(t, handler)
	proxy := gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil)
	through := func(h http.Handler) http.Handler {
		return gateway.Proxy(gateway.HandlerTransport(h), nil)
	}
	forged := http.Header{"X-User-ID": {"root"}, "x_user_id": {"root"}, "X.User.Id": {"root"}, "X-Forwarded-For": {"6.6.6.6"}, "X-End": {"1", "2"}}
	readFirst := func(next http.Handler) http.Handler { // a foreign middleware that buffers
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			next.ServeHTTP(w, r)
		})
	}
	for name, h := range map[string]http.Handler{
		"anonymous":           optional(handler),
		"authenticated":       known(handler),
		"in Observe":          gateway.Chain(gateway.Observe(nil), known)(handler),
		"twice":               gateway.Chain(optional, known)(handler),
		"to Proxy":            known(proxy),
		"in HandlerTransport": through(optional(handler)),
		"read before":         gateway.Chain(readFirst, known)(handler),
	} {
		srv := httptest.NewServer(h)
		defer srv.Close()
		addr := srv.Listener.Addr().String()
		const announced = "X-End=|X-End=1+2"
		end := func(s string) string { return strings.ReplaceAll(s, "X-End=1+2|", "X-End=|") } // read before: the values are there at once
		if got := end(trailersOf(t, addr, "X-End, X-User-ID, x_user_id, X.User.Id", forged)); got != announced {
			t.Errorf("%s, announced: %q", name, got)
		}
		if got := end(trailersOf(t, addr, "X-End", forged)); got != announced {
			t.Errorf("%s, one announced: %q", name, got)
		}
		if got := trailersOf(t, addr, "X-User-ID", http.Header{"X-User-ID": {"root"}}); got != "|" {
			t.Errorf("%s, forged alone: %q", name, got)
		}
		if got := trailersOf(t, addr, "", http.Header{"X-User-ID": {"root"}}); got != "|" {
			t.Errorf("%s, not announced: %q", name, got)
		}
	}

	// A server may give each connection's requests a context with an identity. Then the request that the server itself
	// fills arrives with a record.
	srv := httptest.NewUnstartedServer(optional(handler))
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return gateway.WithIdentity(ctx, nil)
	}
	srv.Start()
	defer srv.Close()
	if got := trailersOf(t, srv.Listener.Addr().String(), "", forged); strings.Contains(got, "root") {
		t.Errorf("a record of the connection: %q", got)
	}

	// HTTP/2.
	srv = httptest.NewUnstartedServer(gateway.Chain(gateway.Observe(nil), optional)(handler))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}}
	r, err := http.NewRequest("POST", srv.URL, io.MultiReader(strings.NewReader("hi")))
	if err != nil {
		t.Fatal(err)
	}
	r.Trailer = http.Header{"X-End": {"1", "2"}, "X-User-Id": {"root"}, "X_user_id": {"root"}}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.ProtoMajor != 2 || string(body) != "X-End=|X-End=1+2" {
		t.Errorf("HTTP/%d: %q", res.ProtoMajor, body)
	}
}

// TestUserFieldIsAlwaysOwned: no spelling of X-User-ID reaches a backend from a client, whatever Identity names.
func TestUserFieldIsAlwaysOwned(t *testing.T) {
	ann := &gateway.Identity{Subject: "ann", Claims: map[string]any{"email": "ann@shop.example"}}
	email := map[string]string{"X-Email": "email"}
	var got http.Header
	for name, h := range map[string]http.Handler{
		"Proxy": gateway.Proxy(recordHeader(&got), &gateway.ProxyOptions{Identity: email}),
		"Aggregate": gateway.Aggregate([]gateway.Part{{Name: "a", From: recordHeader(&got), Path: "/"}},
			&gateway.AggregateOptions{Identity: email, Headers: []string{"X-User-ID", "x_user_id", "X.User.ID"}}),
		"Aggregate's Request": gateway.Aggregate([]gateway.Part{{Name: "a", From: recordHeader(&got), Request: func(in *http.Request) (*http.Request, error) {
			return in.Clone(in.Context()), nil
		}}}, &gateway.AggregateOptions{Identity: email}),
		"Proxy without Identity": gateway.Proxy(recordHeader(&got), &gateway.ProxyOptions{Identity: map[string]string{}}),
	} {
		for _, id := range []*gateway.Identity{nil, ann} {
			r := httptest.NewRequest("GET", "/", nil)
			for _, alias := range aliases("X-User-ID") {
				r.Header[http.CanonicalHeaderKey(alias)] = []string{"root"}
			}
			for _, alias := range aliases("X-Email") {
				r.Header[http.CanonicalHeaderKey(alias)] = []string{"root@shop.example"}
			}
			recorded(withIdentity(id)(h), r)
			for field, values := range got {
				if fold(field) == "xuserid" || fold(field) == "xemail" && (id == nil || len(values) != 1 || values[0] != "ann@shop.example") {
					if name != "Proxy without Identity" || fold(field) == "xuserid" {
						t.Errorf("%s, %v: the backend got %s: %q", name, id, field, values)
					}
				}
			}
			if id != nil && strings.HasPrefix(name, "Aggregate") && got.Get("X-Email") != "ann@shop.example" {
				t.Errorf("%s: no identity: %v", name, got)
			}
		}
	}

	// Who wants an alias to be written gets that one alone.
	h := gateway.Proxy(recordHeader(&got), &gateway.ProxyOptions{Identity: map[string]string{"X_User_ID": "sub"}})
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-User-ID", "root")
	recorded(withIdentity(ann)(h), r)
	if got.Get("X_User_ID") != "ann" || got.Get("X-User-ID") != "" {
		t.Errorf("an alias: %v", got)
	}
}

// TestAuthenticatorReadsTheBody: an Authenticator that checks a signature of the body can put the body back.
func TestAuthenticatorReadsTheBody(t *testing.T) {
	signed := gateway.Auth(gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "hi" {
			return nil, gateway.ErrUnauthenticated
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		return &gateway.Identity{Subject: "ann"}, nil
	}), nil)
	for name, mw := range map[string]gateway.Middleware{"alone": signed, "in Observe": gateway.Chain(gateway.Observe(nil), signed)} {
		srv := serve(t, mw(http.HandlerFunc(showTrailers)))
		if got := trailersOf(t, srv.Listener.Addr().String(), "X-End, X-User-ID", http.Header{"X-User-ID": {"root"}, "X-End": {"1"}}); got != "X-End=1|X-End=1" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
