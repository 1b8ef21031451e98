package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/trace"
)

// Extract returns the span of the caller and its tracestate, as the request's header names them.
//
// The field traceparent comes first; its SpanContext is remote. Without a valid one, the field traceHeader is read:
// 32 hex digits of a trace id. That field has no span id, so the SpanContext gets a new one and is not remote. The
// zero SpanContext means that the header names no span. A field that occurs twice is ignored.
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

// ParseTraceparent parses the value of a traceparent field (W3C Trace Context, section 3.2). The result is remote. It
// is the zero SpanContext when s is malformed. Of a version after 00, it reads the part that version 00 defines.
func ParseTraceparent(s string) trace.SpanContext {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" ||
		s[:2] == "00" && len(s) != 55 || len(s) > 55 && s[55] != '-' {
		return trace.SpanContext{}
	}
	_, okVersion := hexByte(s[0], s[1])
	flags, okFlags := hexByte(s[53], s[54])
	id, errID := trace.TraceIDFromHex(s[3:35])
	span, errSpan := trace.SpanIDFromHex(s[36:52])
	if !okVersion || !okFlags || errID != nil || errSpan != nil {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags) & trace.FlagsSampled, Remote: true,
	})
}

// hexByte decodes two hex digits. The specification allows lower case only.
func hexByte(high, low byte) (b byte, ok bool) {
	h, okHigh := hexDigit(high)
	l, okLow := hexDigit(low)
	return h<<4 | l, okHigh && okLow
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
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

// NewSpanContext returns random ids, marked as sampled. It serves where no SDK makes ids.
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
