package gateway_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestAggregateShape(t *testing.T) {
	const user = `{"id":"u/7","name":{"first":"Ann"},"mail":"a@b","n": 12345678901234567890.10 }`
	for _, tt := range []struct {
		name string
		part gateway.Part
		want string
	}{
		{"only", gateway.Part{Shape: gateway.Shape{Only: []string{"name.first", "n"}}}, `{"name":{"first":"Ann"},"n":12345678901234567890.10}`},
		{"drop and rename", gateway.Part{Shape: gateway.Shape{Drop: []string{"mail", "id"}, Rename: map[string]string{"name": "who"}}}, `{"who":{"first":"Ann"},"n":12345678901234567890.10}`},
		{"after Pick", gateway.Part{Pick: "/name", Shape: gateway.Shape{Rename: map[string]string{"first": "f"}}}, `{"f":"Ann"}`},
		{"not of a scalar", gateway.Part{Pick: "/mail", Shape: gateway.Shape{Drop: []string{"x"}}}, `"a@b"`},
		{"the zero value", gateway.Part{}, user},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, chained := range []bool{false, true} { // the field that another part takes is that before Shape
				tt.part.Name, tt.part.From, tt.part.Path = "user", answersJSON(200, " "+user+"\n"), "/"
				parts := []gateway.Part{tt.part}
				want := `{"user":` + tt.want
				if chained && tt.part.Pick == "" {
					parts = append(parts, gateway.Part{Name: "orders", From: echoes, Path: "/{user.id}"})
					want += `,"orders":"/u%2F7"`
				}
				if got := recorded(gateway.Aggregate(parts, nil), nil).Body.String(); got != want+"}\n" {
					t.Errorf("got %swant %s", got, want)
				}
			}
		})
	}
	t.Run("not of Default", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(500, ""), Path: "/", Optional: true,
			Default: json.RawMessage(`{"x":1}`), Shape: gateway.Shape{Only: []string{}}}}, nil)
		if got := recorded(h, nil).Body.String(); !strings.HasPrefix(got, `{"a":{"x":1},"errors"`) {
			t.Errorf("got %s", got)
		}
	})
	t.Run("before Merge", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{
			{Name: "a", From: answersJSON(200, `{"x":1,"y":2}`), Path: "/", Shape: gateway.Shape{Drop: []string{"x"}}},
			{Name: "b", From: answersJSON(200, `{"x":3,"y":4}`), Path: "/", Shape: gateway.Shape{Rename: map[string]string{"y": "z"}}},
		}, &gateway.AggregateOptions{Merge: true})
		if got := recorded(h, nil).Body.String(); got != `{"y":2,"x":3,"z":4}`+"\n" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("bad bodies", func(t *testing.T) {
		for _, body := range []string{"", "<", `{"x":1`, `{"x":NaN}`, `{}{}`, `{"` + strings.Repeat("x", 70_000) + `":1}`, `{"x":[` + strings.Repeat("1,", 50) + `1]}`} {
			h := gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(200, body), Path: "/", Optional: true,
				Shape: gateway.Shape{Rename: map[string]string{"x.*.y": "z", "x": strings.Repeat("long", 100)}}}}, &gateway.AggregateOptions{MaxBytes: 100_000, MaxTotalBytes: 200_000})
			want := `{"a":null,"errors":[{"name":"a","status":502,"outcome":"upstream_error"}]}` + "\n"
			if strings.HasPrefix(body, `{"x":[`) {
				want = `{"a":{"` + strings.Repeat("long", 100) + body[3:] + "}\n"
			}
			if got := recorded(h, nil).Body.String(); got != want {
				t.Errorf("%.40q: got %s", body, got)
			}
		}
	})
	t.Run("larger than MaxBytes", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(200, `[`+strings.Repeat(`{"x":1},`, 100)+`{}]`), Path: "/",
			Shape: gateway.Shape{Rename: map[string]string{"*.x": "longer"}}}}, &gateway.AggregateOptions{MaxBytes: 1000})
		if w := recorded(h, nil); w.Code != 502 {
			t.Errorf("got %d %.100s", w.Code, w.Body)
		}
	})
	if v := panicOf(func() {
		gateway.Aggregate([]gateway.Part{{Name: "a", From: echoes, Path: "/", Shape: gateway.Shape{Only: []string{"x."}}}}, nil)
	}); v != `gateway: Aggregate: part "a": Shape: path "x.": an empty segment` {
		t.Errorf("got %q", v)
	}
}

// answersWith returns a RoundTripper whose answers have the fields h.
func answersWith(status int, body string, h http.Header) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) { return answeredText(r, status, body, h.Clone()), nil })
}

// manyNames returns a list of n field names.
func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "x-%d,", i)
	}
	return b.String()
}

func TestAggregateCaching(t *testing.T) {
	with := func(pairs ...string) gateway.Part {
		return gateway.Part{From: answersWith(200, "1", fields(pairs...)), Path: "/", Optional: true}
	}
	gone := gateway.Part{From: answersWith(404, "", fields("Cache-Control", "max-age=1")), Path: "/", NotFoundNull: true}
	failed := gateway.Part{From: answersWith(500, "", nil), Path: "/", Optional: true}
	id := withIdentity(&gateway.Identity{Subject: "ann"})
	none := func(h http.Handler) http.Handler { return h }
	outside := func(name, value string) gateway.Middleware {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set(name, value); next.ServeHTTP(w, r) })
		}
	}
	for _, tt := range []struct {
		name          string
		parts         []gateway.Part
		outside       gateway.Middleware
		control, vary string
	}{
		{"silent", []gateway.Part{with(), with()}, none, "", ""},
		{"the strictest", []gateway.Part{with("Cache-Control", "public, max-age=60", "Vary", "Accept-Language, X-Plan"), with("Cache-Control", "max-age=5, must-revalidate", "Vary", "x-plan", "Vary", "Origin")},
			none, "max-age=5, must-revalidate", "Accept-Language, X-Plan, Origin"},
		{"one is silent", []gateway.Part{with("Cache-Control", "public, max-age=60"), with()}, none, "max-age=0", ""},
		{"a 404 that is a null", []gateway.Part{with("Cache-Control", "max-age=60"), gone}, none, "max-age=1", ""},
		{"of a caller", []gateway.Part{with("Cache-Control", "max-age=60")}, id, "private, max-age=60", ""},
		{"of a caller, public", []gateway.Part{with("Cache-Control", "max-age=60, public")}, id, "public, max-age=60", ""},
		{"one failed", []gateway.Part{with("Cache-Control", "max-age=60", "Vary", "Origin"), failed}, none, "no-store", "Origin"},
		{"varies by what no cache sees", []gateway.Part{with("Vary", "X-User-ID")}, none, "", "*"},
		{"varies by an alias of it", []gateway.Part{with("Vary", "x_user_id"), with("Vary", "Origin")}, none, "", "*"},
		{"varies by all", []gateway.Part{with("Vary", "Origin"), with("Vary", "*")}, none, "", "*"},
		{"varies by too many", []gateway.Part{with("Vary", strings.Repeat("a,", 200_000)+"b"), with("Vary", manyNames(1000))}, none, "", "*"},
		{"malformed Vary", []gateway.Part{with("Vary", "a b")}, none, "", "*"},
		{"Vary from outside", []gateway.Part{with("Vary", "Origin, Cookie")}, outside("Vary", "origin"), "", "origin|Cookie"},
		{"Cache-Control from outside", []gateway.Part{with("Cache-Control", "public, max-age=60")}, outside("Cache-Control", "no-store"), "no-store", ""},
		{"Cache-Control from outside alone", []gateway.Part{with()}, outside("Cache-Control", "max-age=7"), "max-age=0", ""},
		{"nothing else", []gateway.Part{with("Set-Cookie", "a=b", "ETag", `"x"`, "Connection", "X-A", "X-A", "1", "Last-Modified", "x", "Content-Language", "de", "Trailer", "X")}, none, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.parts {
				tt.parts[i].Name = string(rune('a' + i))
			}
			h := recorded(tt.outside(gateway.Aggregate(tt.parts, nil)), nil).Header()
			if got := strings.Join(h["Cache-Control"], "|"); got != tt.control {
				t.Errorf("Cache-Control %q, want %q", got, tt.control)
			}
			if got := strings.Join(h["Vary"], "|"); got != tt.vary {
				t.Errorf("Vary %q, want %q", got, tt.vary)
			}
			for name := range h {
				switch name {
				case "Cache-Control", "Vary", "Content-Type", "Content-Length":
				default:
					t.Errorf("%s: %q", name, h[name])
				}
			}
		})
	}
}

// TestAggregateSpans: each part has a client span with its own traceparent, which is the parent of what the part starts.
func TestAggregateSpans(t *testing.T) {
	told := make(map[string]string)
	keep := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			told[name] = r.Header.Get("Traceparent")
			if name == "fails" {
				w.WriteHeader(503)
			}
			io.WriteString(w, "1")
		})
	}
	var telemetry gatewaytest.Telemetry
	observe := gateway.Observe(&gateway.ObserveOptions{Tracer: &telemetry})
	backend := serve(t, keep("upstream"))
	h := observe(gateway.Aggregate([]gateway.Part{
		{Name: "upstream", From: gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil), Path: "/"},
		{Name: "local", From: gateway.HandlerTransport(observe(keep("local"))), Path: "/{upstream.x}", Optional: true}, // never asked
		{Name: "router", From: gateway.HandlerTransport(observe(keep("router"))), Request: func(in *http.Request) (*http.Request, error) {
			return http.NewRequestWithContext(in.Context(), "POST", "/", nil)
		}},
		{Name: "fails", From: gateway.HandlerTransport(keep("fails")), Path: "/", Optional: true},
	}, &gateway.AggregateOptions{MaxInFlight: 1}))
	if w := recorded(h, nil); w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	spans := make(map[string]gatewaytest.Span)
	var server, inner, attempt gatewaytest.Span
	for _, s := range telemetry.Spans() {
		part, _ := s.Attributes.Value("gateway.part")
		name := part.AsString()
		switch {
		case name != "":
			spans[name] = s
		case s.Kind == trace.SpanKindClient:
			attempt = s // of the Upstream, which has told its own id
		case s.Parent.IsValid():
			inner = s
		default:
			server = s
		}
	}
	for name, want := range map[string]string{"upstream": "GET", "local": "GET", "router": "POST", "fails": "GET"} {
		s := spans[name]
		if s.Name != want || s.Kind != trace.SpanKindClient || s.Parent.SpanID() != server.Context.SpanID() {
			t.Errorf("%s: %+v", name, s)
		}
		id := s.Context.SpanID().String()
		if name == "upstream" {
			if attempt.Parent.SpanID() != s.Context.SpanID() {
				t.Errorf("the attempt's span is below %v", attempt.Parent)
			}
			id = attempt.Context.SpanID().String()
		}
		if name != "local" && !strings.Contains(told[name], id) {
			t.Errorf("%s was told %q, want %s", name, told[name], id)
		}
		kind, _ := s.Attributes.Value("error.type")
		status, _ := s.Attributes.Value("http.response.status_code")
		got := fmt.Sprint(kind.AsString(), " ", status.AsInt64(), " ", s.Status)
		if want := map[string]string{"upstream": " 200 Unset", "local": "upstream_error 0 Error", "router": " 200 Unset", "fails": "503 503 Error"}[name]; got != want {
			t.Errorf("%s: error.type, status and state %q, want %q", name, got, want)
		}
	}
	if inner.Parent.SpanID() != spans["router"].Context.SpanID() || inner.Kind != trace.SpanKindServer {
		t.Errorf("the Observe within: %+v", inner)
	}
}

// TestAggregateCodings: a part in a coding, or a part of a body, was not asked for.
func TestAggregateCodings(t *testing.T) {
	for name, from := range map[string]http.RoundTripper{
		"gzip":          answersWith(200, "{}", fields("Content-Encoding", "gzip")),
		"several":       answersWith(200, "{}", fields("Content-Encoding", "identity, br")),
		"206":           answersWith(206, "{}", fields("Content-Range", "bytes 0-1/9")),
		"205":           answersWith(205, "", nil),
		"null":          answersWith(200, "null", nil),
		"identity":      answersWith(200, "null", fields("Content-Encoding", "identity")),
		"wrong type":    answersWith(200, "null", fields("Content-Type", "text/html")),
		"204 with body": answersWith(204, "{}", nil),
	} {
		w := recorded(gateway.Aggregate([]gateway.Part{{Name: "a", From: from, Path: "/", Optional: true}}, nil), nil)
		want := `{"a":null}` + "\n"
		switch name {
		case "gzip", "several", "206", "205":
			want = `{"a":null,"errors":[{"name":"a","status":502,"outcome":"upstream_error"}]}` + "\n"
		}
		if w.Body.String() != want {
			t.Errorf("%s: got %s", name, w.Body)
		}
	}

	// net/http's transport asks for gzip by itself and decompresses; the limit is that of the text.
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("asked for %q", r.Header["Accept-Encoding"])
		}
		w.Header().Set("Content-Encoding", "gzip")
		zipped(w, `"`+strings.Repeat("x", 5000)+`"`)
	}))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for limit, code := range map[int64]int{5002: 200, 5001: 502} {
		h := gateway.Aggregate([]gateway.Part{{Name: "a", From: transport, Path: backend.URL}}, &gateway.AggregateOptions{MaxBytes: limit})
		if w := recorded(h, httptest.NewRequest("GET", "/", nil)); w.Code != code {
			t.Errorf("MaxBytes %d: got %d", limit, w.Code)
		}
	}
}
