package gateway

import (
	"net/http"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// The fields of most requests go from the client's header to the target as lines of HTTP/1.1: without a header of
// their own, which costs a map of a dozen entries and a slice for each field. Meanwhile the outgoing request has the
// client's header. So nobody may read its fields, except those that are the same in both: the other code of an attempt
// reads Content-Type, Grpc-Timeout and Idempotency-Key. Where somebody else may look, as a Balancer of the user's does,
// or where another transport sends the request, the method header makes the outgoing header.

// headerLines is the fields of an outgoing request, in a pooled buffer.
type headerLines struct{ b []byte }

var headerLinesPool = sync.Pool{New: func() any { return &headerLines{make([]byte, 0, 4<<10)} }}

// maxKeptLines is the size of the largest buffer that goes back to the pool.
const maxKeptLines = 64 << 10

func (l *headerLines) release() {
	if l != nil && cap(l.b) <= maxKeptLines {
		headerLinesPool.Put(l)
	}
}

// sendsLines reports whether requests through p can be sent as lines, as far as p's options decide.
func (p *proxy) sendsLines() bool {
	o := &p.opts
	u, ok := p.to.(*Upstream)
	return ok && u.sendsLines() && o.Rewrite == nil && o.ModifyResponse == nil && !o.RewriteLocation &&
		len(o.RequestFields.Set) == 0 && len(o.RequestFields.Add) == 0
}

// sendsLines reports whether u sends a request by HTTP/1.1, and nobody who gets it on the way reads its fields.
func (u *Upstream) sendsLines() bool {
	switch u.opts.Balancer.(type) {
	case *leastPending, *roundRobin:
		return u.direct != nil && u.opts.Retry.HedgeAfter <= 0
	}
	return false
}

// linesWorthwhile reports whether u probably has no target that speaks HTTP/2.
func (u *Upstream) linesWorthwhile() bool {
	targets := u.pool.choice().targets
	return len(targets) > 0 && (targets[0].URL.Scheme == "http" || targets[0].URL.Scheme == schemeUnix)
}

// setFields makes the fields that are sent: the lines, or the header of out. It returns the error of a request that is
// refused.
func (f *forwarding) setFields(out *http.Request) (err error) {
	if f.asLines && f.in.Header != nil && len(f.in.Trailer) == 0 && f.to.(*Upstream).linesWorthwhile() && !trace.SpanFromContext(f.in.Context()).IsRecording() {
		lines := headerLinesPool.Get().(*headerLines)
		var ok bool
		if lines.b, ok, err = f.appendLines(lines.b[:0]); ok {
			f.lines, out.Header = lines, f.in.Header
			return nil
		}
		lines.release()
		if err != nil {
			return err
		}
	}
	out.Header, err = f.header()
	return err
}

// appendLines appends the fields that are sent, with the rules of the method header. ok is false for a request that
// needs a header: its fields Connection, Expect, TE or Upgrade mean something.
func (f *forwarding) appendLines(b []byte) (_ []byte, ok bool, err error) {
	for name, values := range f.in.Header {
		switch {
		case needsHeader(name, values):
			return b, false, nil
		case httpfield.IsHopByHop(name) || isFraming(name) || f.owned.has(name, f.ownedHere):
			continue
		case isMalformed(name, values):
			return b, false, malformedField(name)
		}
		for _, value := range values {
			b = httpfield.AppendLine(b, name, value)
		}
	}
	w := fieldWriter{in: f.in, prefix: f.prefix, lines: b}
	err = f.owned.write(&w)
	return w.lines, err == nil, err
}

// needsHeader reports whether a field of the client's is more than a line for the target. net/http's server sets names
// in canonical form, but another middleware may have set any.
func needsHeader(name string, values []string) bool {
	switch len(name) {
	case len("Te"):
		return name == "Te"
	case len("Host"):
		return strings.EqualFold(name, "Host")
	case len("Expect"):
		return strings.EqualFold(name, "Expect")
	case len("Upgrade"):
		return strings.EqualFold(name, "Upgrade")
	case len("Connection"): // and User-Agent
		switch {
		case name == "Connection":
			return len(values) != 1 || !strings.EqualFold(values[0], "keep-alive")
		case name == "User-Agent":
			return len(values) == 0 || values[0] == ""
		}
		return strings.EqualFold(name, "Connection")
	}
	return false
}

// sentLines is the hook Lines of a forwarding.
func sentLines(f any) []byte { return f.(*forwarding).lines.b }

// linesOf returns the forwarding whose request is sent as lines, or nil if it has a header.
func (c directCall) linesOf() *forwarding {
	if c.hooks == nil || c.hooks.Lines == nil {
		return nil
	}
	return c.arg.(*forwarding)
}

// header returns the header of r, an outgoing request. If it was to be sent as lines, the header is made now.
func (c directCall) header(r *http.Request) http.Header {
	f := c.linesOf()
	if f == nil {
		return r.Header
	}
	if f.made == nil {
		f.made, _ = f.header() // which has no error: appendLines has checked the same
		if f.made != nil && len(f.made["User-Agent"]) == 0 {
			f.made["User-Agent"] = noField
		}
	}
	return f.made
}
