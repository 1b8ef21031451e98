package gateway_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// parentOf returns the traceparent of what is done on behalf of sc.
func parentOf(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + sc.TraceFlags().String()
}

// spanning is a middleware that starts a span, as otelhttp does. It stores it in last.
func spanning(tel *gatewaytest.Telemetry, last *trace.SpanContext, opts ...trace.SpanStartOption) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, span := tel.Tracer("").Start(r.Context(), "between", opts...)
			defer span.End()
			*last = span.SpanContext()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// TestTraceOfTheContext holds that whoever sends a request continues the span that is in its context, also when no
// Observe is there, and that no client's traceparent takes its place.
func TestTraceOfTheContext(t *testing.T) {
	var got http.Header
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header; io.WriteString(w, "1") }))
	up := gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil)
	senders := map[string]http.Handler{
		"Proxy": gateway.Proxy(up, nil),
		"Proxy with Rewrite": gateway.Proxy(up, &gateway.ProxyOptions{Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.Header.Set("X-Rewritten", "1")
		}}),
		"Proxy to a plain RoundTripper": gateway.Proxy(http.DefaultTransport, &gateway.ProxyOptions{Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", backend.Listener.Addr().String()
		}}),
		"Aggregate":                         gateway.Aggregate([]gateway.Part{{Name: "a", From: up, Path: "/"}}, nil),
		"Aggregate to a plain RoundTripper": gateway.Aggregate([]gateway.Part{{Name: "a", From: http.DefaultTransport, Path: backend.URL}}, nil),
		"Aggregate to a Proxy in a handler": gateway.Aggregate([]gateway.Part{{Name: "a", From: gateway.HandlerTransport(gateway.Proxy(up, nil)), Path: "/"}}, nil),
		"a handler with a client over an Upstream": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			req, _ := http.NewRequestWithContext(r.Context(), "GET", "http://users/", nil)
			res, err := (&http.Client{Transport: up}).Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if req.Header.Get("Traceparent") != "" {
				t.Error("the caller's request was changed")
			}
		}),
	}
	tel := new(gatewaytest.Telemetry)
	var outside, between trace.SpanContext
	otelhttp := spanning(tel, &outside)
	child := spanning(tel, &between)
	root := spanning(tel, &between, trace.WithNewRoot())
	remote := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Remote: true})
	state, _ := trace.ParseTraceState("vendor=1")
	unsampled := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			outside = remote.WithTraceState(state)
			next.ServeHTTP(w, r.WithContext(trace.ContextWithRemoteSpanContext(r.Context(), outside)))
		})
	}
	observe := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel})
	trusting := gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel, TrustTrace: func(*http.Request) bool { return true }})
	untraced := gateway.Observe(&gateway.ObserveOptions{Meter: tel})

	for sender, h := range senders {
		for _, tt := range []struct {
			name   string
			mw     gateway.Middleware
			parent string // what the backend gets: the span "outside" or "between", a new span in the "trace of outside" or in the answer's "trace id", or nothing
			state  string
		}{
			{"nothing", gateway.Chain(), "", ""},
			{"a span outside", otelhttp, "outside", ""},
			{"a span and a middleware of ours", gateway.Chain(otelhttp, gateway.TrustProxies("Forwarded")), "outside", ""},
			{"a span in a middleware of ours", gateway.Chain(gateway.TrustProxies("Forwarded"), otelhttp), "outside", ""},
			{"one that is not sampled, with a tracestate", unsampled, "outside", "vendor=1"},
			{"a child of Observe's", gateway.Chain(observe, child), "between", ""},
			{"a trace of its own in Observe", gateway.Chain(observe, root), "trace id", ""},
			{"Observe alone", observe, "trace id", ""},
			{"Observe without a tracer", untraced, "trace id", ""},
			{"Observe in a span", gateway.Chain(otelhttp, observe), "trace of outside", ""},
			{"a trusting Observe in a span", gateway.Chain(otelhttp, trusting), "trace of outside", ""},
			{"Observe without a tracer in a span", gateway.Chain(otelhttp, untraced), "outside", ""},
		} {
			t.Run(sender+"/"+tt.name, func(t *testing.T) {
				got, outside, between = nil, trace.SpanContext{}, trace.SpanContext{}
				r := httptest.NewRequest("GET", "/", nil)
				r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
				r.Header["Trace_parent"] = []string{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
				r.Header.Set("Tracestate", "evil=1")
				rec := recorded(tt.mw(h), r)
				if rec.Code != 200 || got == nil {
					t.Fatalf("answered %d %s", rec.Code, rec.Body)
				}
				parent := got.Get("Traceparent")
				for _, s := range tel.Spans() { // an attempt, and around it a part of an aggregate, have spans of their own
					if s.Kind == trace.SpanKindClient && parentOf(s.Context) == parent {
						parent = parentOf(s.Parent)
					}
				}
				want := map[string]string{
					"": "", "outside": parentOf(outside), "between": parentOf(between),
					"trace of outside": "00-" + outside.TraceID().String(), "trace id": "00-" + rec.Header().Get("X-Trace-Id"),
				}[tt.parent]
				if strings.HasPrefix(tt.parent, "trace") && len(parent) == 55 {
					parent = parent[:35]
				}
				if parent != want || got.Get("Tracestate") != tt.state || got["Trace_parent"] != nil {
					t.Errorf("the backend got %q %q %q, want %q %q", got.Get("Traceparent"), got.Get("Tracestate"), got["Trace_parent"], want, tt.state)
				}
			})
		}
	}
}

// TestObserveInASpan: the span that a foreign middleware started is the parent of Observe's, and has already dealt with
// the caller's.
func TestObserveInASpan(t *testing.T) {
	for _, trust := range []bool{false, true} {
		tel := new(gatewaytest.Telemetry)
		var outside trace.SpanContext
		h := gateway.Chain(spanning(tel, &outside), gateway.Observe(&gateway.ObserveOptions{
			Tracer: tel, Meter: tel, TrustTrace: func(*http.Request) bool { return trust },
		}))(text("ok"))
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		rec := recorded(h, r)
		s := tel.Spans()[0]
		if !s.Parent.Equal(outside) || len(s.Links) != 0 || rec.Header().Get("X-Trace-Id") != outside.TraceID().String() {
			t.Errorf("trust %v: parent %v, want %v; links %v; trace id %s", trust, s.Parent, outside, s.Links, rec.Header().Get("X-Trace-Id"))
		}
	}
}

// TestRewriteHasTheLastWordOnTheTrace: what Rewrite removes stays removed, also when an Upstream sends the request.
func TestRewriteHasTheLastWordOnTheTrace(t *testing.T) {
	var got http.Header
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header }))
	up := gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil)
	var outside trace.SpanContext
	h := spanning(new(gatewaytest.Telemetry), &outside)(gateway.Proxy(up, &gateway.ProxyOptions{Rewrite: func(pr *httputil.ProxyRequest) {
		pr.Out.Header.Del("Traceparent")
	}}))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if got == nil || got["Traceparent"] != nil {
		t.Errorf("the backend got %v", got)
	}

	// A client of an Upstream that writes its own keeps it.
	req, _ := http.NewRequestWithContext(trace.ContextWithSpanContext(context.Background(), outside), "GET", "/", nil)
	req.Header.Set("Traceparent", "mine")
	res, err := up.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got.Get("Traceparent") != "mine" {
		t.Errorf("the backend got %v", got)
	}
}

// TestObserveInAHandlerTransport: a request of this process belongs to the trace of the one around it, with an SDK and
// without.
func TestObserveInAHandlerTransport(t *testing.T) {
	for _, traced := range []bool{false, true} {
		opts := &gateway.ObserveOptions{Meter: new(gatewaytest.Telemetry)}
		if traced {
			opts.Tracer = new(gatewaytest.Telemetry)
		}
		var got http.Header
		backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = r.Header; io.WriteString(w, "1") }))
		inner := gateway.Observe(opts)(gateway.Proxy(gateway.NewUpstream("x", gateway.MustTargets(backend.URL), nil), nil))
		h := gateway.Observe(opts)(gateway.Aggregate([]gateway.Part{{Name: "a", From: gateway.HandlerTransport(inner), Path: "/"}}, nil))
		rec := recorded(h, nil)
		id := rec.Header().Get("X-Trace-Id")
		if len(id) != 32 || got.Get("X-Trace-Id") != id || got.Get("Traceparent")[3:35] != id {
			t.Errorf("traced %v: trace id %q, the backend got %q and %q", traced, id, got.Get("X-Trace-Id"), got.Get("Traceparent"))
		}
	}
}

// TestTargetsCannotSetTheTraceID: the trace id that a client gets is the gateway's, in every kind of response.
func TestTargetsCannotSetTheTraceID(t *testing.T) {
	const evil = "X-Trace-ID: evil\r\nX_Trace_Id: evil\r\n"
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		head, err := readHead(br)
		switch {
		case err != nil:
		case strings.Contains(head, "Upgrade: own"):
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n"+evil+"\r\n")
		default:
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"+evil+"\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"+
				"Trailer: X-Trace-ID\r\n"+evil+"\r\n2\r\nhi\r\n0\r\nX-End: 1\r\n"+evil+"\r\n")
		}
	})
	for _, tt := range []struct{ fields, want string }{
		{"Connection: Upgrade\r\nUpgrade: own\r\n", " 101 "},
		{"Connection: close\r\n", "X-End: 1"},
	} {
		conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.fields+"\r\n")
		answer, _ := io.ReadAll(conn)
		if got := string(answer); !strings.Contains(got, tt.want) || strings.Contains(got, "evil") || strings.Count(got, "X-Trace-Id: ") != 1 {
			t.Errorf("got %q", got)
		}
	}
}
