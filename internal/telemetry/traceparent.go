package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/hexdigit"
)

// Extract returns the span of the caller and its tracestate, as the request's header names them.
//
// The field traceparent comes first; its SpanContext is remote. Without a valid one, the field traceHeader is
// read: 32 hex digits of a trace id. That field has no span id, so the SpanContext gets a new one and is not
// remote. The zero SpanContext means that the header names no span. A field that occurs twice is ignored.
func Extract(h http.Header, traceHeader string) (sc trace.SpanContext, tracestate string) {
	if lines := h["Traceparent"]; len(lines) == 1 {
		if sc := ParseTraceparent(lines[0]); sc.IsValid() {
			return sc, strings.Join(h["Tracestate"], ",")
		}
	}
	if lines := h[traceHeader]; len(lines) == 1 && len(lines[0]) == 32 {
		if id, err := trace.TraceIDFromHex(lines[0]); err == nil {
			return trace.NewSpanContext(trace.SpanContextConfig{
				TraceID: id, SpanID: newSpanID(), TraceFlags: trace.FlagsSampled,
			}), ""
		}
	}
	return trace.SpanContext{}, ""
}

// ParseTraceparent parses the value of a traceparent field (W3C Trace Context, section 3.2). The result is
// remote. It is the zero SpanContext when s is malformed. Of a version after 00, it reads the part that
// version 00 defines.
func ParseTraceparent(s string) trace.SpanContext {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" ||
		s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return trace.SpanContext{}
	}
	flags, _ := hexdigit.Pair(s[53:55])
	id, errID := trace.TraceIDFromHex(s[3:35])
	span, errSpan := trace.SpanIDFromHex(s[36:52])
	if !hexdigit.IsLower(s[:2]) || !hexdigit.IsLower(s[53:55]) || errID != nil || errSpan != nil {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags) & trace.FlagsSampled, Remote: true,
	})
}

// FormatTraceparent returns the traceparent field of sc, in version 00.
func FormatTraceparent(sc trace.SpanContext) string {
	var b [55]byte
	id, span := sc.TraceID(), sc.SpanID()
	copy(b[:], "00-")
	hex.Encode(b[3:], id[:])
	b[35] = '-'
	hex.Encode(b[36:], span[:])
	b[52] = '-'
	hex.Encode(b[53:], []byte{byte(sc.TraceFlags())})
	return string(b[:])
}

// TraceIDOf returns the trace id in a traceparent that FormatTraceparent has returned, as 32 hex digits. For
// "" it returns "".
func TraceIDOf(traceparent string) string {
	if traceparent == "" {
		return ""
	}
	return traceparent[3:35]
}

// SpanIDOf is like TraceIDOf, for the span id, 16 hex digits.
func SpanIDOf(traceparent string) string {
	if traceparent == "" {
		return ""
	}
	return traceparent[36:52]
}

// WithSpanOf returns traceparent with the span id of other. FormatTraceparent has returned both.
func WithSpanOf(traceparent, other string) string {
	return traceparent[:36] + SpanIDOf(other) + traceparent[52:]
}

// NewSpanContext returns a sampled SpanContext with random ids, for use without an SDK.
func NewSpanContext() trace.SpanContext {
	var id trace.TraceID
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64()|1) // never all zero
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: newSpanID(), TraceFlags: trace.FlagsSampled})
}

func newSpanID() (id trace.SpanID) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1)
	return id
}
