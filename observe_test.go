package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestObserveMeasures(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Meter: tel, Tracer: tel}))
	rt.Handle("GET /users/{id}", text("user"))
	rt.Handle("POST shop.example/fail", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(503)
	}))
	rt.Handle("GET /away", gateway.Proxy(gateway.NewUpstream("away", nil, nil), nil))
	rt.Handle("GET /panic", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic("bug") }))
	ask := func(method, url string) {
		defer func() { recover() }()
		rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, url, nil))
	}
	for n := range 3 {
		ask("GET", fmt.Sprintf("/users/%d", n))
	}
	ask("POST", "http://shop.example/fail")
	ask("GET", "/panic")
	ask("GET", "/away")
	for n := range 50 {
		ask(fmt.Sprintf("M%d", n), "/users/1") // no label of its own
	}
	ask("GET", "/nowhere")

	base := func(method, route, name string, status int, outcome string, more ...attribute.KeyValue) attribute.Set {
		attrs := append([]attribute.KeyValue{
			attribute.String("http.request.method", method), attribute.String("url.scheme", "http"),
			attribute.String("network.protocol.version", "1.1"), attribute.Int("http.response.status_code", status),
			attribute.String("gateway.outcome", outcome),
		}, more...)
		if route != "" {
			attrs = append(attrs, attribute.String("http.route", route), attribute.String("gateway.route", name))
		}
		return attribute.NewSet(attrs...)
	}
	got := tel.Series("http.server.request.duration")
	for _, tt := range []struct {
		name  string
		set   attribute.Set
		count int
	}{
		{"route", base("GET", "/users/{id}", "GET /users/{id}", 200, "ok"), 3},
		{"answer of a failing handler", base("POST", "/fail", "POST shop.example/fail", 503, "upstream_error", attribute.String("error.type", "503")), 1},
		{"panic", base("GET", "/panic", "GET /panic", 500, "internal", attribute.String("error.type", "internal")), 1},
		{"refused with a 5xx", base("GET", "/away", "GET /away", 503, "rejected", attribute.String("error.type", "503")), 1},
		{"unknown methods", base("_OTHER", "", "", 405, "rejected"), 50},
		{"no route", base("GET", "", "", 404, "rejected"), 1},
	} {
		i := slices.IndexFunc(got, func(s gatewaytest.Series) bool { return s.Attributes.Equals(&tt.set) })
		if i < 0 {
			t.Errorf("%s: not measured", tt.name)
			continue
		}
		if s := got[i]; s.Count != tt.count || s.Unit != "s" || s.Scope != "github.com/seed-96248d0c/gateway" ||
			len(s.Bounds) != 14 || s.Bounds[0] != 0.005 || s.Bounds[13] != 10 {
			t.Errorf("%s: got %+v, want count %d", tt.name, s, tt.count)
		}
		got = slices.Delete(got, i, i+1)
	}
	for _, s := range got {
		t.Errorf("more than expected: %v", s.Attributes.Encoded(attribute.DefaultEncoder()))
	}
}

func TestObserveSpans(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	var rt gateway.Router
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel}))
	var inside trace.SpanContext
	rt.Handle("GET /users/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside = trace.SpanContextFromContext(r.Context())
		gateway.WriteError(w, r, fmt.Errorf("%w: secret cause", gateway.ErrBadGateway))
	}))
	rec := recorded(&rt, httptest.NewRequest("GET", "/users/7", nil))
	spans := tel.Spans()
	if len(spans) != 1 {
		t.Fatalf("%d spans", len(spans))
	}
	s := spans[0]
	if s.Name != "GET /users/{id}" || s.Kind != trace.SpanKindServer || s.Status != codes.Error || s.Parent.IsValid() {
		t.Errorf("got %q %v %v %v", s.Name, s.Kind, s.Status, s.Parent)
	}
	if s.Context.SpanID() != inside.SpanID() || rec.Header().Get("X-Trace-Id") != s.Context.TraceID().String() {
		t.Errorf("span %v, inside %v, answer %q", s.Context, inside, rec.Header().Get("X-Trace-Id"))
	}
	for key, want := range map[attribute.Key]string{
		"http.request.method": "GET", "http.route": "/users/{id}", "http.response.status_code": "502", "url.path": "/users/7",
		"url.scheme": "http", "network.protocol.version": "1.1", "gateway.outcome": "upstream_error", "error.type": "502",
		"client.address": "192.0.2.1",
	} {
		if got, _ := s.Attributes.Value(key); got.String() != want {
			t.Errorf("%s: %q, want %q", key, got.String(), want)
		}
	}
	if len(s.Errors) != 1 || !strings.Contains(s.Errors[0].Error(), "secret cause") {
		t.Errorf("errors %v", s.Errors)
	}
}

func TestObserveSpansOfTheStrange(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	h := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway.WriteError(w, r, fmt.Errorf("%w: no %s", gateway.ErrBadGateway, r.URL.Path))
	}))
	r := httptest.NewRequest("BREW", "/%ff", nil)
	r.RemoteAddr = "@"
	h.ServeHTTP(httptest.NewRecorder(), r)
	s := tel.Spans()[0]
	if s.Name != "HTTP" {
		t.Errorf("name %q", s.Name)
	}
	if got, _ := s.Attributes.Value("http.request.method_original"); got.AsString() != "BREW" {
		t.Errorf("attributes %v", s.Attributes.ToSlice())
	}
	for _, a := range s.Attributes.ToSlice() {
		if !utf8.ValidString(a.Value.String()) || a.Key == "client.address" {
			t.Errorf("%s=%q", a.Key, a.Value.String())
		}
	}
	if len(s.Errors) != 1 || !utf8.ValidString(s.Errors[0].Error()) {
		t.Errorf("errors %q", s.Errors)
	}
}

func TestObserveTraceOfTheCaller(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, tt := range []struct {
		name      string
		header    http.Header
		trust     bool
		continued bool
		linked    bool
	}{
		{"none", nil, true, false, false},
		{"trusted", http.Header{"Traceparent": {"00-" + id + "-" + span + "-01"}}, true, true, false},
		{"not sampled", http.Header{"Traceparent": {"00-" + id + "-" + span + "-00"}}, true, true, false},
		{"a later version", http.Header{"Traceparent": {"01-" + id + "-" + span + "-01-more"}}, true, true, false},
		{"untrusted", http.Header{"Traceparent": {"00-" + id + "-" + span + "-01"}}, false, false, true},
		{"upper case", http.Header{"Traceparent": {"00-" + strings.ToUpper(id) + "-" + span + "-01"}}, true, false, false},
		{"version 00 with more", http.Header{"Traceparent": {"00-" + id + "-" + span + "-01-x"}}, true, false, false},
		{"version ff", http.Header{"Traceparent": {"ff-" + id + "-" + span + "-01"}}, true, false, false},
		{"zero trace", http.Header{"Traceparent": {"00-00000000000000000000000000000000-" + span + "-01"}}, true, false, false},
		{"zero span", http.Header{"Traceparent": {"00-" + id + "-0000000000000000-01"}}, true, false, false},
		{"two", http.Header{"Traceparent": {"00-" + id + "-" + span + "-01", "00-" + id + "-" + span + "-01"}}, true, false, false},
		{"short", http.Header{"Traceparent": {"00-" + id}}, true, false, false},
		{"trace header trusted", http.Header{"X-Trace-Id": {id}}, true, true, false},
		{"trace header untrusted", http.Header{"X-Trace-Id": {id}}, false, false, false},
		{"trace header malformed", http.Header{"X-Trace-Id": {"../../etc/passwd\n0af7651916cd43"}}, true, false, false},
	} {
		for _, traced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/traced %v", tt.name, traced), func(t *testing.T) {
				tel := new(gatewaytest.Telemetry)
				opts := &gateway.ObserveOptions{Meter: tel}
				if traced {
					opts.Tracer = tel
				}
				if tt.trust {
					opts.TrustTrace = func(*http.Request) bool { return true }
				}
				var seen http.Header
				backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen = r.Header }))
				h := gateway.Observe(opts)(gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil))
				r := httptest.NewRequest("GET", "/", nil)
				for name, values := range tt.header {
					r.Header[name] = values
				}
				r.Header.Set("Tracestate", "vendor=1")
				rec := recorded(h, r)
				got := rec.Header().Get("X-Trace-Id")
				if len(got) != 32 || strings.Trim(got, "0123456789abcdef") != "" {
					t.Fatalf("trace id %q", got)
				}
				if (got == id) != tt.continued {
					t.Errorf("trace id %q", got)
				}
				if seen.Get("X-Trace-Id") != got || !strings.HasPrefix(seen.Get("Traceparent"), "00-"+got+"-") {
					t.Errorf("backend got %q and %q", seen.Get("X-Trace-Id"), seen.Get("Traceparent"))
				}
				wantState := ""
				if tt.continued && tt.header.Get("Traceparent") != "" {
					wantState = "vendor=1"
				}
				if seen.Get("Tracestate") != wantState {
					t.Errorf("tracestate %q, want %q", seen.Get("Tracestate"), wantState)
				}
				spans := tel.Spans()
				switch unsampled := strings.HasSuffix(tt.header.Get("Traceparent"), "-00"); {
				case !traced || unsampled:
					if len(spans) != 0 {
						t.Errorf("spans %+v", spans)
					}
				case len(spans) != 2 || (len(spans[1].Links) == 1) != tt.linked || spans[1].Parent.IsValid() != tt.continued:
					t.Errorf("spans %+v", spans) // the attempt's, and then the server's
				case tt.continued && tt.header.Get("Traceparent") != "" && spans[1].Parent.SpanID().String() != span:
					t.Errorf("parent %v", spans[1].Parent)
				case !spans[0].Parent.Equal(spans[1].Context) || seen.Get("Traceparent") != parentOf(spans[0].Context):
					t.Errorf("attempt's span %v below %v, the backend got %q", spans[0].Context, spans[0].Parent, seen.Get("Traceparent"))
				}
			})
		}
	}
}

func TestObserveTwice(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	j := make(journal, 10)
	observe := gateway.Observe(&gateway.ObserveOptions{Meter: tel, Tracer: tel, Logger: j.logger()})
	observe(observe(text("once"))).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if len(j) != 1 || len(tel.Spans()) != 1 {
		t.Errorf("%d lines, %d spans", len(j), len(tel.Spans()))
	}
	if s := tel.Series("http.server.request.duration"); len(s) != 1 || s[0].Count != 1 {
		t.Errorf("measured %+v", s)
	}
}

// TestObserveInsideObserve holds that an inner Observe changes nothing of what the outer one does: where a ReportOnly is
// reported, and the trace id's field.
func TestObserveInsideObserve(t *testing.T) {
	elsewhere := captureDefaultLog(t)
	j := make(journal, 10)
	logging := &gateway.ObserveOptions{Logger: j.logger()}
	silentOne := &gateway.ObserveOptions{TraceHeader: "X-Other"}
	report := gateway.Auth(fixedAuthenticator(nil, gateway.ErrNoCredentials), &gateway.AuthOptions{ReportOnly: true})
	for _, tt := range []struct {
		name         string
		outer, inner *gateway.ObserveOptions
		lines        int  // of the outer one's log
		warned       bool // by the default logger
		header       string
	}{
		{"the outer one logs", logging, silentOne, 1, false, "X-Trace-Id"},
		{"the inner one would log", silentOne, logging, 0, true, "X-Other"},
	} {
		before := len(elsewhere.String())
		rec := recorded(gateway.Chain(gateway.Observe(tt.outer), gateway.Observe(tt.inner), report)(text("ok")), nil)
		if len(j) != tt.lines || (len(elsewhere.String()) > before) != tt.warned {
			t.Errorf("%s: %d lines, and elsewhere %q", tt.name, len(j), elsewhere)
		}
		if both := len(rec.Header()["X-Trace-Id"]) + len(rec.Header()["X-Other"]); both != 1 || rec.Header().Get(tt.header) == "" {
			t.Errorf("%s: fields %v", tt.name, rec.Header())
		}
		for len(j) > 0 {
			<-j
		}
	}
}

// TestObserveUnderForeignMiddleware holds that Observe sees what is decided inside, also when it is not the
// first that a request meets and somebody else's wrapper and context stand between.
func TestObserveUnderForeignMiddleware(t *testing.T) {
	tel := new(gatewaytest.Telemetry)
	j := make(journal, 10)
	type key struct{}
	between := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(foreign{w}, r.WithContext(context.WithValue(r.Context(), key{}, 1)))
		})
	}
	mux := http.NewServeMux()
	mux.Handle("GET /users/{id}", gateway.Chain(between, gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
		w.WriteHeader(e.Status)
	}), between)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !trace.SpanContextFromContext(r.Context()).IsValid() || gateway.TraceID(r.Context()) == "" || r.PathValue("id") != "7" {
			t.Error("something is lost")
		}
		gateway.WriteError(w, r, gateway.ErrForbidden)
	})))
	h := gateway.Chain(gateway.TrustProxies("X-Forwarded-For"), between, gateway.Observe(&gateway.ObserveOptions{Meter: tel, Tracer: tel, Logger: j.logger()}))(mux)
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/users/7", nil))
	if line := j.next(t); line["status"] != "403" || line["outcome"] != "rejected" || line["route"] != "GET /users/{id}" {
		t.Errorf("logged %v", line)
	}
}

// The handler that http.TimeoutHandler has given up goes on with the request.
func TestObserveLooksAtNoRequestOfAnother(t *testing.T) {
	mux := http.NewServeMux()
	held := make(chan bool)
	mux.HandleFunc("GET /x", func(http.ResponseWriter, *http.Request) { <-held })
	defer close(held)
	h := gateway.Observe(nil)(http.TimeoutHandler(gateway.Timeout(time.Hour)(mux), 10*time.Millisecond, ""))
	rec := recorded(h, httptest.NewRequest("GET", "/x", nil)) // the race detector judges
	if rec.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d", rec.Code)
	}
}

func TestObservePanicsAtSetup(t *testing.T) {
	if got := panicOf(func() { gateway.Observe(&gateway.ObserveOptions{TraceHeader: "X Trace"}) }); !strings.HasPrefix(got, "gateway: Observe: ") {
		t.Errorf("panicked with %q", got)
	}
}

// With providers that do nothing, Observe allocates the record, the span's context, the traceparent and a span.
func TestObserveAllocations(t *testing.T) {
	h := gateway.Observe(&gateway.ObserveOptions{Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider()})(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := discardWriter{make(http.Header)}, httptest.NewRequest("GET", "/", nil)
	if allocs := testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }); allocs > 4 {
		t.Errorf("%v allocations", allocs)
	}
}

// The events of circuits and limits are on the spans, and an attempt below a span that is not recorded has none.
func TestAttemptSpans(t *testing.T) {
	var sent string
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			sent = r.Header.Get("Traceparent")
			return answered(r, 200, http.NoBody), nil
		}),
	})
	tel := new(gatewaytest.Telemetry)
	open := gateway.NewCircuit("c", nil)
	open.Trip(time.Hour)
	trust := func(*http.Request) bool { return true }
	observe := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel, TrustTrace: trust})
	unsampled := httptest.NewRequest("GET", "/", nil)
	unsampled.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
	recorded(observe(gateway.Proxy(u, nil)), unsampled)
	if spans := tel.Spans(); len(spans) != 0 || !strings.HasPrefix(sent, "00-0af7651916cd43dd8448eb211c80319c-") || !strings.HasSuffix(sent, "-00") {
		t.Errorf("spans %v, the target got %q", spans, sent)
	}
	recorded(observe(gateway.Breaker(open, nil)(gateway.Proxy(u, nil))), httptest.NewRequest("GET", "/", nil))
	spans := tel.Spans()
	if len(spans) != 1 || len(spans[0].Events) != 1 || spans[0].Events[0].Name != "gateway.circuit.refused" {
		t.Errorf("spans %+v", spans)
	}
}
