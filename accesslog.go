package gateway

import (
	"log/slog"
	"net/http"
	"strings"
)

// accessLog writes one line for each request; see Observe for its attributes.
type accessLog struct {
	logger *slog.Logger             // nil means no access log
	quiet  func(*http.Request) bool // reports whether a request gets no line; nil means never
}

// write writes the line for the exchange that s summarizes.
func (l *accessLog) write(ex *exchange, rw *responseWriter, r *http.Request, s *summary) {
	if l.logger == nil {
		return
	}
	ex.mu.Lock()
	remarks := ex.remarks
	ex.mu.Unlock()
	level := slog.LevelInfo
	switch {
	case isFailure(s.outcome):
		level = slog.LevelError
	case s.status >= 500, len(remarks) > 0:
		level = slog.LevelWarn
	}
	if !l.logger.Enabled(r.Context(), level) || l.quiet != nil && l.quiet(r) {
		return
	}
	ex.mu.Lock()
	traceID, identity, sent, written, tunnel := ex.traceID(), ex.identity, ex.forwarded, rw.written, ex.tunnel
	ex.mu.Unlock()
	if tunnel != nil {
		written += tunnel.sent
	}
	_, client := clientText(r)
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("method", bounded(r.Method)),
		slog.String("host", bounded(r.Host)),
		slog.String("path", bounded(r.URL.Path)),
		slog.String("route", s.routeName),
		slog.Int("status", s.status),
		slog.String("outcome", s.outcome.String()),
		slog.Duration("duration", s.duration),
		slog.Int64("bytes", written),
		slog.String("client", client),
		slog.String("trace_id", traceID),
	)
	if tunnel != nil {
		attrs = append(attrs, slog.Int64("bytes_in", tunnel.received))
	}
	if identity != nil {
		attrs = append(attrs, slog.String("subject", bounded(identity.Subject)))
	}
	if sent.upstream != "" {
		attrs = append(attrs, slog.String("upstream", sent.upstream))
	}
	if sent.attempts > 0 {
		attrs = append(attrs, slog.String("target", sent.target.Redacted()), slog.Int("attempts", sent.attempts))
	}
	if s.err != nil {
		attrs = append(attrs, slog.String("error", bounded(causeText(s.err))))
	}
	if len(remarks) > 0 {
		attrs = append(attrs, slog.String("remarks", strings.ToValidUTF8(strings.Join(remarks, "; "), "\uFFFD")))
	}
	l.logger.LogAttrs(r.Context(), level, "request", attrs...)
}

// bounded truncates a string whose length a client chooses.
func bounded(s string) string {
	const longest = 512
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}
