package gateway_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

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
		{Name: "third", From: plain(seen(&third)), Path: "/"},
		{Name: "made", From: plain(seen(&made)), Request: func(in *http.Request) (*http.Request, error) {
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
