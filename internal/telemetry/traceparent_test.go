package telemetry

import (
	"net/http"
	"strings"
	"testing"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
	sampled = "00-" + traceID + "-" + spanID + "-01"
)

func TestParseTraceparent(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string // want is the traceparent of the result; "" when it is invalid
	}{
		{"sampled", sampled, sampled},
		{"not sampled", sampled[:53] + "00", sampled[:53] + "00"},
		{"flags that are unknown", sampled[:53] + "ff", sampled},
		{"a later version", "01" + sampled[2:], sampled},
		{"a later version with more", "cc" + sampled[2:] + "-more", sampled},
		{"a later version with more, joined", "cc" + sampled[2:] + "more", ""},
		{"version 00 with more", sampled + "-more", ""},
		{"version ff", "ff" + sampled[2:], ""},
		{"a version in upper case", "0A" + sampled[2:], ""},
		{"a version that is no number", "0x" + sampled[2:], ""},
		{"a trace id in upper case", "00-" + strings.ToUpper(traceID) + "-" + spanID + "-01", ""},
		{"flags in upper case", sampled[:53] + "0A", ""},
		{"flags that are no number", sampled[:53] + "g1", ""},
		{"zero trace id", "00-" + strings.Repeat("0", 32) + "-" + spanID + "-01", ""},
		{"zero span id", "00-" + traceID + "-" + strings.Repeat("0", 16) + "-01", ""},
		{"another separator", strings.ReplaceAll(sampled, "-", "_"), ""},
		{"short", sampled[:54], ""},
		{"empty", "", ""},
	} {
		sc := ParseTraceparent(tt.in)
		got := ""
		if sc.IsValid() {
			got = FormatTraceparent(sc)
		}
		if got != tt.want || sc.IsRemote() != (tt.want != "") {
			t.Errorf("%s: %q, remote %v, want %q", tt.name, got, sc.IsRemote(), tt.want)
		}
	}
}

func TestExtract(t *testing.T) {
	for _, tt := range []struct {
		name    string
		header  http.Header
		traceID string
		remote  bool
		state   string
	}{
		{"nothing", nil, "", false, ""},
		{"traceparent", http.Header{"Traceparent": {sampled}, "Tracestate": {"a=1", "b=2"}}, traceID, true, "a=1,b=2"},
		{"two", http.Header{"Traceparent": {sampled, sampled}, "Tracestate": {"a=1"}}, "", false, ""},
		{"the trace header", http.Header{"X-Trace-Id": {traceID}, "Tracestate": {"a=1"}}, traceID, false, ""},
		{"traceparent comes first", http.Header{"Traceparent": {sampled}, "X-Trace-Id": {strings.Repeat("1", 32)}}, traceID, true, ""},
		{"malformed, so the trace header", http.Header{"Traceparent": {"x"}, "X-Trace-Id": {traceID}}, traceID, false, ""},
		{"the trace header is short", http.Header{"X-Trace-Id": {traceID[1:]}}, "", false, ""},
		{"the trace header is no number", http.Header{"X-Trace-Id": {"x" + traceID[1:]}}, "", false, ""},
		{"the trace header, twice", http.Header{"X-Trace-Id": {traceID, traceID}}, "", false, ""},
	} {
		sc, state := Extract(tt.header, "X-Trace-Id")
		if sc.IsValid() != (tt.traceID != "") || sc.IsValid() && sc.TraceID().String() != tt.traceID ||
			sc.IsRemote() != tt.remote || state != tt.state {
			t.Errorf("%s: %v, tracestate %q", tt.name, sc, state)
		}
	}
}

func TestNewSpanContext(t *testing.T) {
	a, b := NewSpanContext(), NewSpanContext()
	if !a.IsValid() || !a.IsSampled() || a.IsRemote() || a.TraceID() == b.TraceID() || a.SpanID() == b.SpanID() {
		t.Errorf("got %v and %v", a, b)
	}
}

// What parses must come out again as version 00 has it.
func FuzzParseTraceparent(f *testing.F) {
	for _, seed := range []string{sampled, "cc" + sampled[2:] + "-more", sampled[:54], "ff" + sampled[2:]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sc := ParseTraceparent(s)
		if !sc.IsValid() {
			return
		}
		out := FormatTraceparent(sc)
		if out[:53] != "00"+s[2:53] || !ParseTraceparent(out).Equal(sc) {
			t.Errorf("%q became %q", s, out)
		}
	})
}

func TestPartsOfTraceparent(t *testing.T) {
	const a, b = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-11111111111111111111111111111111-2222222222222222-00"
	if trace, span := TraceIDOf(a), SpanIDOf(a); trace != "0af7651916cd43dd8448eb211c80319c" || span != "b7ad6b7169203331" {
		t.Errorf("trace %s, span %s", trace, span)
	}
	if trace, span := TraceIDOf(""), SpanIDOf(""); trace != "" || span != "" {
		t.Errorf("of nothing: trace %q, span %q", trace, span)
	}
	if got := WithSpanOf(a, b); got != "00-0af7651916cd43dd8448eb211c80319c-2222222222222222-01" {
		t.Error(got)
	}
}
