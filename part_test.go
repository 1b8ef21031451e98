package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func TestAggregateHeaders(t *testing.T) {
	const alias = "x.user.id"
	incoming := http.Header{
		"Accept-Language": {"de", "en"}, "Authorization": {"Bearer x"}, "Cookie": {"a=b"}, "Accept-Encoding": {"gzip"}, "X-Plan": {"gold"},
		"If-None-Match": {"*"}, "Range": {"bytes=0-1"}, "X-User-Id": {"root"}, "X_user_id": {"root"}, "X-Forwarded-For": {"6.6.6.6"},
		"Connection": {"keep-alive"}, "Content-Type": {"text/plain"}, "Accept": {"text/html"}, "X-Trace": {"forged"}, "X_trace": {"forged"},
	}
	for _, c := range []struct {
		name    string
		headers []string
		want    map[string]string // "" means none
	}{
		{"default", nil, map[string]string{"Accept-Language": "de,en", "Authorization": "Bearer x", "Cookie": "", "Accept-Encoding": "", "If-None-Match": "", "Range": "",
			"X-User-Id": "ann", "X_user_id": "", "X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "example.com", "Connection": "", "Accept": "application/json", "Content-Type": ""}},
		{"none", []string{}, map[string]string{"Accept-Language": "", "Authorization": "", "X-User-Id": "ann"}},
		{"named", []string{"cookie", "x-plan", "accept"}, map[string]string{"Cookie": "a=b", "X-Plan": "gold", "Authorization": "", "Accept": "text/html"}},
		{"named in vain", []string{"X-User-ID", "X_User_ID", "X-Forwarded-For", "Accept-Encoding", "If-None-Match", "Range", "Connection", "Content-Type", "X-Trace", "x_trace"},
			map[string]string{"X-User-Id": "ann", "X_user_id": "", "X-Forwarded-For": "192.0.2.1", "Accept-Encoding": "", "If-None-Match": "", "Range": "", "Connection": "", "Content-Type": "", "X-Trace": "id", "X_trace": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var byPath, byRequest http.Header
			h := gateway.Aggregate([]gateway.Part{
				{Name: "path", From: recordHeader(&byPath), Path: "/"},
				{Name: "request", From: recordHeader(&byRequest), Request: func(in *http.Request) (*http.Request, error) {
					out, err := http.NewRequest("POST", "/x?y", strings.NewReader("body"))
					out.Header.Set("X-User-Id", "forged")
					out.Header[alias] = []string{"forged"}
					out.Header.Set("Accept-Encoding", "br")
					out.Header.Set("Upgrade", "h2c")
					out.Header.Set("X-Own", "1")
					return out, err
				}},
			}, &gateway.AggregateOptions{Headers: c.headers})
			var trace string
			h = gateway.Observe(&gateway.ObserveOptions{TraceHeader: "X-Trace"})(http.HandlerFunc(func(inner http.Handler) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					trace = gateway.TraceID(r.Context())
					inner.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: "ann"})))
				}
			}(h)))
			r := httptest.NewRequest("GET", "/", nil)
			r.Header = incoming.Clone()
			w := recorded(h, r)
			if w.Code != 200 || !strings.HasPrefix(w.Body.String(), `{"path":"GET / example.com ","request":"POST /x?y example.com body"`) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			for from, got := range map[string]http.Header{"path": byPath, "request": byRequest} {
				for name, want := range c.want {
					if want == "id" {
						want = trace
					}
					if v := strings.Join(got[name], ","); v != want {
						t.Errorf("%s: %s: got %q, want %q", from, name, v, want)
					}
				}
			}
			if byRequest.Get("X-Own") != "1" || has(byRequest, alias) || byRequest.Get("Upgrade") != "" {
				t.Errorf("request: %v", byRequest)
			}
			for name, values := range incoming {
				if fmt.Sprint(r.Header[name]) != fmt.Sprint(values) {
					t.Errorf("the incoming %s was changed", name)
				}
			}
		})
	}

	var own http.Header
	h := gateway.Aggregate([]gateway.Part{{Name: "a", From: recordHeader(&own), Path: "/"}}, &gateway.AggregateOptions{
		Identity: map[string]string{"X-Account": "sub"}, Headers: []string{"X-Account", "x_account"},
	})
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Account", "forged")
	r.Header["X_account"] = []string{"forged"}
	recorded(h, r)
	if own["X-Account"] != nil || own["X_account"] != nil {
		t.Errorf("Identity: %v", own)
	}
}

func TestAggregateRequestErrors(t *testing.T) {
	refuses := &gateway.Error{Status: 422, Detail: "no such cursor", Header: http.Header{"X-Why": {"cursor"}}}
	for _, c := range []struct {
		name   string
		f      func(*http.Request) (*http.Request, error)
		status int
		detail string
	}{
		{"own error", func(*http.Request) (*http.Request, error) { return nil, refuses }, 422, "no such cursor"},
		{"any error", func(*http.Request) (*http.Request, error) { return nil, errors.New("secret") }, 502, ""},
		{"nothing", func(*http.Request) (*http.Request, error) { return nil, nil }, 502, ""},
		{"no URL", func(*http.Request) (*http.Request, error) { return &http.Request{}, nil }, 502, ""},
		{"too large a body", func(in *http.Request) (*http.Request, error) {
			_, err := io.ReadAll(http.MaxBytesReader(nil, in.Body, 1))
			return nil, err
		}, 413, ""},
		{"the request itself", func(in *http.Request) (*http.Request, error) { return in, nil }, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gateway.Aggregate([]gateway.Part{{Name: "a", From: echoes, Request: c.f}}, nil)
			w := recorded(h, httptest.NewRequest("POST", "/in", strings.NewReader("body")))
			if w.Code != c.status {
				t.Fatalf("got %d %s", w.Code, w.Body)
			}
			if c.status == 200 {
				return
			}
			if p := readProblem(t, w.Result()); p.Detail != c.detail || strings.Contains(w.Body.String(), "secret") {
				t.Errorf("got %s", w.Body)
			}
		})
	}
}

// The target of an Upstream's part is told its own name, whatever the client called the gateway.
func TestAggregateRequestToUpstream(t *testing.T) {
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%q", r.Method+" "+r.RequestURI+" "+r.Host+" "+r.Header.Get("X-Forwarded-Host")+" "+string(body))
	}))
	users := gateway.NewUpstream("users", gateway.MustTargets(backend.URL), nil)
	h := gateway.Aggregate([]gateway.Part{
		{Name: "a", From: users, Request: func(in *http.Request) (*http.Request, error) { return in.Clone(in.Context()), nil }},
		{Name: "b", From: users, Path: "/b%2F?c"},
	}, nil)
	got := recorded(h, httptest.NewRequest("PUT", "/in?q", strings.NewReader("body"))).Body.String()
	host := strings.TrimPrefix(backend.URL, "http://")
	if want := `{"a":"PUT /in?q ` + host + ` example.com body","b":"GET /b%2F?c ` + host + ` example.com "}` + "\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

// TestAggregateTrailers: a part's request carries no forged trailer.
func TestAggregateTrailers(t *testing.T) {
	var got string
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		showTrailers(rec, r)
		got = rec.Body.String()
		io.WriteString(w, "1")
	}))
	for name, copied := range map[string]func(in *http.Request) *http.Request{
		"a shallow copy": func(in *http.Request) *http.Request { return in },
		"a clone":        func(in *http.Request) *http.Request { return in.Clone(in.Context()) },
		"own ones": func(in *http.Request) *http.Request {
			out := in.Clone(in.Context())
			out.Trailer = http.Header{"X-User-Id": {"root"}, "X-Own": {"1"}}
			return out
		},
	} {
		h := gateway.Aggregate([]gateway.Part{{Name: "a",
			From: gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil),
			Request: func(in *http.Request) (*http.Request, error) {
				return copied(in), nil
			}}}, nil)
		srv := httptest.NewServer(h)
		defer srv.Close()
		trailersOf(t, srv.Listener.Addr().String(), "X-End, X-User-ID", http.Header{"X-User-ID": {"root"}, "x_user_id": {"root"}, "X-End": {"1"}})
		if strings.Contains(got, "root") || strings.Contains(got, "body") || (name == "own ones") != strings.Contains(got, "X-Own=1") {
			t.Errorf("%s: the backend got %q", name, got)
		}
	}
}

// TestAggregateAuthorization: the client's Authorization goes to what is known to be the gateway's own.
func TestAggregateAuthorization(t *testing.T) {
	const token = "Bearer secret"
	var own, local, third, made http.Header
	keep := func(to *http.Header) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { *to = r.Header; io.WriteString(w, "1") })
	}
	backend := serve(t, keep(&own))
	plain := func(to http.RoundTripper) http.RoundTripper { return roundTrip(to.RoundTrip) }
	parts := []gateway.Part{
		{Name: "own", From: gateway.NewUpstream("own", gateway.MustTargets(backend.URL), nil), Path: "/"},
		{Name: "local", From: gateway.HandlerTransport(keep(&local)), Path: "/"},
		{Name: "third", From: plain(recordHeader(&third)), Path: "/"},
		{Name: "made", From: plain(recordHeader(&made)), Request: func(in *http.Request) (*http.Request, error) {
			return http.NewRequest("GET", "/", nil)
		}},
	}
	for _, tt := range []struct {
		name  string
		opts  *gateway.AggregateOptions
		ours  string
		third string
	}{
		{"default", nil, token, ""},
		{"named", &gateway.AggregateOptions{Headers: []string{"authorization"}}, token, token},
		{"none", &gateway.AggregateOptions{Headers: []string{}}, "", ""},
		{"written as identity", &gateway.AggregateOptions{Identity: map[string]string{"Authorization": "sub"}}, "ann", "ann"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", token)
		r.Header.Set("Accept-Language", "de")
		if w := recorded(withIdentity(&gateway.Identity{Subject: "ann"})(gateway.Aggregate(parts, tt.opts)), r); w.Code != 200 {
			t.Fatalf("%s: %d %s", tt.name, w.Code, w.Body)
		}
		for part, h := range map[string]http.Header{"own": own, "local": local, "third": third, "made": made} {
			want := tt.ours
			if part == "third" || part == "made" {
				want = tt.third
			}
			if got := h.Get("Authorization"); got != want {
				t.Errorf("%s: %s got Authorization %q, want %q", tt.name, part, got, want)
			}
			if language := h.Get("Accept-Language"); (language == "de") != (tt.opts == nil || tt.opts.Headers == nil) {
				t.Errorf("%s: %s got Accept-Language %q", tt.name, part, language)
			}
		}
	}
}
