package gateway

import (
	"net/http"
	"slices"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// The fields of most requests are sent as header lines: Proxy writes the lines of HTTP/1.1 directly from the
// client's header. It does not make an outgoing http.Header, which would cost a map of a dozen entries and a
// slice for each field.
//
// Until such a request is sent, its Header is the client's. So no code may read a field of it that differs in
// the outgoing request. The code of an attempt reads only those in readFields, which are the same in both. If
// other code may read the header, such as a user's Balancer, or if another transport sends the request, the
// method header makes the outgoing header.

// headerLines holds the fields of an outgoing request as lines, in a pooled buffer.
type headerLines struct{ b []byte }

var headerLinesPool = sync.Pool{New: func() any { return &headerLines{make([]byte, 0, 4<<10)} }}

// maxKeptLines is the size of the largest buffer that is returned to the pool.
const maxKeptLines = 64 << 10

func (l *headerLines) release() {
	if l != nil && cap(l.b) <= maxKeptLines {
		headerLinesPool.Put(l)
	}
}

// sendsLines reports whether the options of p permit sending requests as lines.
func (p *proxy) sendsLines() bool {
	o := &p.opts
	u, ok := p.to.(*Upstream)
	return ok && u.sendsLines() && o.Rewrite == nil && o.ModifyResponse == nil && !o.RewriteLocation &&
		len(o.RequestFields.Set) == 0 && len(o.RequestFields.Add) == 0 && !slices.ContainsFunc(readFields, p.owned.names.Has)
}

// readFields are the fields of an outgoing request that the code of an attempt or internal/h1 reads.
var readFields = []string{"Content-Type", "Grpc-Timeout", "Idempotency-Key", "X-Idempotency-Key"}

// writesOnce reports whether no field is written twice. In a header, the second value replaces the first, but as
// lines both would be sent. A field is written twice only if its name was passed to Observe or TrustProxies and
// Proxy writes it as well.
func (f *forwarding) writesOnce() bool {
	trace, addr := f.ownedHere.trace, f.ownedHere.addr
	return (trace == "" || trace == "X-Trace-Id" || f.isOrdinary(trace) && !httpfield.SameName(trace, addr)) &&
		(addr == "" || addr == fieldXForwardedFor || addr == fieldForwarded || f.isOrdinary(addr))
}

// isOrdinary reports whether a field with that name has a meaning only for the target.
func (f *forwarding) isOrdinary(name string) bool {
	return !f.owned.names.Has(name) && httpfield.AllowedInTrailer(name) &&
		!slices.ContainsFunc(readFields, func(read string) bool { return httpfield.SameName(read, name) })
}

// sendsLines reports whether u permits sending requests as lines: its transport is this package's, and its
// balancer does not read the request's fields.
func (u *Upstream) sendsLines() bool {
	switch u.opts.Balancer.(type) {
	case *leastPending, *roundRobin:
		return u.direct != nil && u.opts.Retry.HedgeAfter <= 0
	}
	return false
}

// linesWorthwhile reports whether the targets of u probably speak HTTP/1.1, by the scheme of the first one.
func (u *Upstream) linesWorthwhile() bool {
	targets := u.pool.choice().targets
	return len(targets) > 0 && (targets[0].URL.Scheme == "http" || targets[0].URL.Scheme == schemeUnix)
}

// setFields makes the fields of the outgoing request: the lines, or the header of out. An error means that
// the request is refused.
func (f *forwarding) setFields(out *http.Request) (err error) {
	if f.asLines && f.in.Header != nil && len(f.in.Trailer) == 0 && f.writesOnce() && f.to.(*Upstream).linesWorthwhile() &&
		!trace.SpanFromContext(f.in.Context()).IsRecording() {
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

// appendLines appends the fields of the outgoing request, by the same rules as the method header. ok is false
// if the request needs a header, because of its fields Connection, Expect, TE or Upgrade.
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

// needsHeader reports whether a field of the client is not simply copied to the target. net/http's server
// sets canonical names, but a middleware may have set others.
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

// sentLines is the hook h1.Hooks.Lines. f is a forwarding.
func sentLines(f any) []byte { return f.(*forwarding).lines.b }

// answerFields are the fields of a response whose Header was not made: they go directly into the header of the
// ResponseWriter.
type answerFields struct{ names, fieldValues []string }

// areOf reports whether res has these fields.
func (a *answerFields) areOf(res *http.Response) bool { return res.Header == nil && a.names != nil }

// takeFields is the hook h1.Hooks.Fields. arg is a forwarding. It takes the fields of a response whose Header
// no code reads or modifies before answerHeader. checkResponse modifies a Content-Length with leading zeros, and
// several functions read the Content-Type of gRPC and of server-sent events.
func takeFields(arg any, names, values []string) bool {
	f := arg.(*forwarding)
	if len(f.responseFields.removed) > 0 || len(f.responseFields.add) > 0 {
		return false
	}
	for i, name := range names {
		switch value := values[i]; name {
		case "Content-Length":
			if value[0] == '0' && len(value) > 1 {
				return false
			}
		case "Content-Type":
			if strings.HasPrefix(value, "application/grpc") || isEventStream(value) {
				return false
			}
		}
	}
	f.answerFields = answerFields{names, values}
	return true
}

// linesOf returns the forwarding whose request is sent as lines, or nil if it has a header.
func (c directCall) linesOf() *forwarding {
	if c.hooks == nil || c.hooks.Lines == nil {
		return nil
	}
	return c.arg.(*forwarding)
}

// header returns the outgoing header of r. If r was to be sent as lines, it makes the header now.
func (c directCall) header(r *http.Request) http.Header {
	f := c.linesOf()
	if f == nil {
		return r.Header
	}
	if f.made == nil {
		f.made, _ = f.header() // returns no error, because appendLines has made the same checks
		if f.made != nil && len(f.made["User-Agent"]) == 0 {
			f.made["User-Agent"] = noField
		}
	}
	return f.made
}
