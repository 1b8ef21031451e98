package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/rawjson"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Part is one request of an aggregate, and one member of its answer.
//
// A part succeeds when its answer is 204 No Content, which becomes null, or another 2xx with one JSON value
// in UTF-8 that nests at most 10,000 deep. Its Content-Type does not matter. Anything else is a failure:
// another status, including a redirect and 206 Partial Content; a body that is not JSON, begins with a byte
// order mark, is cut off or is larger than MaxBytes; a Content-Encoding, since the request accepts none;
// and a Pick that finds no value.
type Part struct {
	// Name is the name of the part's member in the answer. It must be valid UTF-8 and unique among the parts,
	// and must not be "" or "errors".
	Name string

	// From sends the part's request: an *Upstream, a HandlerTransport, or another RoundTripper such as
	// http.DefaultTransport. It is required. A RoundTripper that ignores its request's context delays the
	// whole answer until it returns.
	From http.RoundTripper

	// Path is the path and query of a GET request: "/users/{id}/list?n=10&after={user.last}". {id} is a path
	// value of the route. {user.last} is the field last of the value of the part named user (after its Pick,
	// before its Shape) or, when that part failed, of its Default. A field may be nested:
	// {user.address.city}, {user.emails.0}. Each value is percent-encoded as one path segment or one query
	// value.
	//
	// The part fails when a value is empty, null, ".", "..", an object or an array. It also fails when the
	// decoded path would have a dot segment, a backslash or NUL because of the value. When a field is missing
	// because the other part failed, this part fails with the other part's outcome and status.
	//
	// If From is neither an *Upstream nor a HandlerTransport, Path is an absolute URL, such as
	// "http://10.0.0.1/x". Its scheme and host have no braces.
	Path string

	// Request builds the part's request, for other methods than GET and for bodies. Set either Request or
	// Path. Request runs on the part's own goroutine. in is the incoming request with the part's context. It
	// must not be modified, and only one part can read its body.
	//
	// Aggregate adds to the returned request the part's context, the fields that the gateway itself sets, and
	// those of AggregateOptions.Headers that are not set. It removes trailers without a value, and trailers
	// whose name is a field that the gateway itself sets. If Request returns an *Error and the part is
	// required, that error is the answer.
	Request func(in *http.Request) (*http.Request, error)

	// Optional means that the aggregate succeeds even when this part fails: the answer then has Default in
	// the part's place, and lists the part in "errors". If a part that is not optional fails, so does the
	// aggregate.
	Optional bool

	// Default is the value of an optional part that failed. Nil means null. It must be valid JSON, and is
	// allowed only if Optional is set.
	Default json.RawMessage

	// NotFoundNull makes a 404 a success, with the value null.
	NotFoundNull bool

	// Timeout limits the time of this part, from the start of its request to the end of its body. 0 means no
	// limit other than AggregateOptions.Timeout, which applies in any case. A part that exceeds it fails with
	// OutcomeTimeout.
	Timeout time.Duration

	// Pick is a JSON Pointer (RFC 6901) to the part's value in the body. "" means the whole body. It finds no
	// value if an object on the way has two members of the name.
	Pick string

	// Shape selects and renames parts of the value, after Pick. It does not apply to Default. If the value
	// with its new names is larger than MaxBytes, the part fails.
	Shape Shape
}

// part is a Part after setup.
type part struct {
	Part
	member   []byte        // Name as a JSON string
	metric   string        // Name as a token, for Server-Timing
	fallback rawjson.Value // the value if the part fails: Default, or null
	pointer  rawjson.Pointer
	shape    *rawjson.Projection // nil if the value is not changed

	upstream *Upstream // From, if it is an Upstream; otherwise nil
	local    bool      // From is a HandlerTransport

	path     *urlpath.Template
	fixed    *url.URL // the URL, if path has no holes; otherwise nil
	needs    []int    // the parts whose fields path uses
	neededBy []int    // the parts whose paths use fields of this part
}

var jsonNull = rawjson.Value("null")

// set checks from and prepares the part. index maps a part's name to its number.
func (p *part) set(from Part, index map[string]int) error {
	p.Part = from
	switch {
	case p.Name == "" || !utf8.ValidString(p.Name):
		return errors.New("the Name is empty or not UTF-8")
	case p.Name == "errors":
		return errors.New("the name is reserved for the aggregate")
	case p.From == nil:
		return errors.New("no From")
	case (p.Path == "") == (p.Request == nil):
		return errors.New("set one of Path and Request")
	case p.Timeout < 0:
		return errors.New("negative Timeout")
	case p.Default != nil && !p.Optional:
		return errors.New("a Default without Optional is never used")
	}
	p.member, _ = json.Marshal(p.Name)
	p.metric = httpfield.ToToken(p.Name)
	p.fallback = jsonNull
	if from.Default != nil {
		var ok bool
		if p.fallback, ok = rawjson.Parse(slices.Clone(from.Default)); !ok {
			return errors.New("the Default is not JSON")
		}
	}
	var err error
	if p.pointer, err = rawjson.ParsePointer(p.Pick); err != nil {
		return err
	}
	if p.shape, err = p.Shape.compile(); err != nil {
		return err
	}
	p.upstream, _ = p.From.(*Upstream)
	_, p.local = p.From.(*handlerTransport)
	if p.Path == "" {
		return nil
	}
	return p.setPath(index)
}

func (p *part) setPath(index map[string]int) error {
	absolute := p.Path[0] != '/'
	if _, plain := p.From.(*http.Transport); plain && !absolute {
		return errors.New("the Path must be an absolute URL, because From is a plain transport")
	}
	if (p.upstream != nil || p.local) && absolute {
		return errors.New("the Path must begin with a slash, because From sets the host")
	}
	var err error
	if p.path, err = urlpath.ParseTemplate(p.Path, urlpath.Syntax{Origin: true, Query: true, Fields: true}); err != nil {
		return fmt.Errorf("path %q: %w", p.Path, err)
	}
	for _, hole := range p.path.Holes() {
		if hole.Field == nil {
			continue
		}
		j, ok := index[hole.Name]
		hole.Ref = j
		if !ok {
			return fmt.Errorf("path %q: no part is named %q", p.Path, hole.Name)
		}
		if !slices.Contains(p.needs, j) {
			p.needs = append(p.needs, j)
		}
	}
	if len(p.path.Holes()) == 0 {
		target, err := p.path.Expand(nil)
		if err != nil {
			return err
		}
		p.fixed, err = url.Parse(target)
		return err
	}
	return nil
}

// partFailure is the result of a part that failed.
type partFailure struct {
	outcome Outcome
	err     *Error // the answer when the part is required
}

// ask sends the part's request and stores the part's value in answer.
func (p *part) ask(ctx context.Context, f *fanout, answer *partAnswer) *partFailure {
	if err := ctx.Err(); err != nil {
		return p.fail(result{err: err})
	}
	req, failure := p.request(ctx, f)
	if failure != nil {
		return failure
	}
	if f.tracer != nil {
		span := trace.SpanFromContext(ctx)
		method := cmp.Or(req.Method, http.MethodGet)
		span.SetName(telemetry.SpanMethod(method))
		span.SetAttributes(attribute.String("http.request.method", telemetry.Method(method)))
	}
	res, err := p.send(f, req)
	if err == nil && res == nil {
		err = errors.New("neither a response nor an error")
	}
	if err != nil {
		return p.fail(result{err: partError(req, err), gone: leftEarly(ctx)})
	}
	if res.Body == nil {
		res.Body = http.NoBody
	}
	answer.status = res.StatusCode
	answer.caching, answer.vary = httpfield.CachingOf(res.Header, time.Now), res.Header["Vary"]

	switch code := res.StatusCode; {
	case code == http.StatusNoContent, code == http.StatusNotFound && p.NotFoundNull:
		readRest(res)
		answer.value, answer.source = jsonNull, jsonNull
		return nil
	case code < 200 || code > 299, code == http.StatusPartialContent:
		readRest(res)
		return p.failStatus(res)
	case isEncoded(res.Header):
		res.Body.Close()
		return p.fail(result{status: code, err: fmt.Errorf("%w: a body in the coding %s, which was not asked for",
			ErrBadGateway, truncate(res.Header.Get("Content-Encoding")))})
	}
	body, err := f.read(res)
	res.Body.Close() // needed if the body is too large: it may be endless
	if err != nil {
		tooLarge := errors.Is(err, errPartTooLarge)
		return p.fail(result{err: partError(req, err), began: !tooLarge, gone: leftEarly(ctx)})
	}
	if err := p.setValue(f, body, answer); err != nil {
		f.total.Add(-int64(len(body)))
		return p.fail(result{status: res.StatusCode, err: fmt.Errorf("%w: %w", ErrBadGateway, err)})
	}
	return nil
}

// send sends the part's request. If all parts have the same fields, setHeader has checked them, and an
// Upstream need not call gate for each part.
func (p *part) send(f *fanout, req *http.Request) (*http.Response, error) {
	if p.upstream != nil && p.Request == nil && f.passed {
		return p.upstream.roundTrip(req, directCall{})
	}
	return p.From.RoundTrip(req)
}

// setValue stores the part's value, which it takes from a body by Pick and Shape.
func (p *part) setValue(f *fanout, body []byte, answer *partAnswer) error {
	var err error
	if p.shape != nil && len(p.pointer) == 0 && len(p.neededBy) == 0 {
		if answer.value, err = p.project(f, body); err != nil { // parses and reshapes in one pass
			return err
		}
	} else {
		value, ok := rawjson.Parse(body)
		if !ok {
			return errors.New("the body is not JSON")
		}
		if len(p.pointer) > 0 {
			if value, err = value.At(p.pointer); err != nil {
				return err
			}
		}
		answer.value, answer.source = value, value
		if p.shape != nil {
			if answer.value, err = p.project(f, value); err != nil {
				return err
			}
		}
	}
	if f.opts.Merge && answer.value.IsObject() && !fewMembers(answer.value) {
		return fmt.Errorf("more than %d members", maxMergedMembers)
	}
	return nil
}

// project applies the part's Shape to a JSON text.
func (p *part) project(f *fanout, text []byte) (rawjson.Value, error) {
	value, err := p.shape.Start().Append(make([]byte, 0, len(text)/4+64), text, true)
	if err != nil {
		return nil, fmt.Errorf("the body is not JSON: %w", err)
	}
	if int64(len(value)) > f.opts.MaxBytes {
		return nil, fmt.Errorf("more than %d bytes after Shape", f.opts.MaxBytes)
	}
	return value, nil
}

// partRequest holds the request of a part with a Path and its URL, in one allocation.
type partRequest struct {
	request http.Request
	url     url.URL
}

// getRequest is the template of the requests of parts with a Path.
var getRequest = &http.Request{Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}

// partRecord is a partRequest and its record, in one allocation.
type partRecord struct {
	partRequest
	exchange exchange
}

// request makes the part's request.
func (p *part) request(ctx context.Context, f *fanout) (*http.Request, *partFailure) {
	var made *partRequest
	if p.local { // HandlerTransport makes its own record and copies the fields
		made = new(partRequest)
	} else {
		m := new(partRecord)
		f.ex.initPart(&m.exchange, ctx)
		made, ctx = &m.partRequest, &m.exchange
	}
	header := f.partHeader(p, ctx)
	if p.Request != nil {
		return p.customRequest(ctx, f, header)
	}
	if failure := p.setTarget(f, &made.url); failure != nil {
		return nil, failure
	}
	req := &made.request
	*req = *getRequest.WithContext(ctx)
	req.URL, req.Header = &made.url, header
	p.address(req, f.in)
	return req, nil
}

// partHeader returns the fields of a part's request. ctx has the part's span. The map is a copy if the fields
// differ from those of other parts, or if the RoundTripper is foreign code, which may modify it.
func (f *fanout) partHeader(p *part, ctx context.Context) http.Header {
	third := !p.local && p.upstream == nil // a RoundTripper that is not this package's
	if !third && f.tracer == nil {
		return f.header
	}
	header := make(http.Header, len(f.header)+1) // faster than maps.Clone for a few fields
	for name, values := range f.header {
		if !third || !f.restrictAuth || name != "Authorization" {
			header[name] = values
		}
	}
	if f.tracer != nil {
		header[fieldTraceparent] = []string{telemetry.FormatTraceparent(trace.SpanContextFromContext(ctx))}
	}
	return header
}

// customRequest makes the part's request with Part.Request. header is what partHeader returned.
func (p *part) customRequest(ctx context.Context, f *fanout, header http.Header) (*http.Request, *partFailure) {
	req, err := p.Request(f.in.WithContext(ctx))
	if err == nil && (req == nil || req.URL == nil) {
		err = errors.New("no request, or one without URL, from Part.Request")
	}
	if err != nil {
		return nil, p.fail(result{err: err, gone: leftEarly(ctx)})
	}
	req = req.WithContext(ctx)
	link := *req.URL
	req.URL = &link
	req.RequestURI = ""
	req.Close = false
	h := req.Header.Clone()
	if h == nil {
		h = make(http.Header)
	}
	for name := range h {
		if f.owns(name) || httpfield.IsHopByHop(name) || isFraming(name) || name == "Accept-Encoding" {
			delete(h, name)
		}
	}
	for name, values := range header {
		if _, ok := h[name]; !ok {
			h[name] = values
		}
	}
	req.Header = h
	req.Trailer = f.trailer(req.Trailer)
	p.address(req, f.in)
	return req, nil
}

// trailer returns the trailers of a part's request: a copy of those in given that have values now and that
// the gateway does not own. If given is the map of the client's request, net/http may add values to it later.
func (f *fanout) trailer(given http.Header) http.Header {
	var sent http.Header
	for name, values := range given {
		if len(values) == 0 || !f.own.allowTrailer(name, f.ownedHere) {
			continue
		}
		if sent == nil {
			sent = make(http.Header)
		}
		sent[name] = values
	}
	return sent
}

// address sets Host, and for a HandlerTransport also RemoteAddr and TLS of the client.
func (p *part) address(req, in *http.Request) {
	switch {
	case p.upstream != nil:
		req.Host = "" // the Upstream sends the target's host
	case p.local:
		req.Host, req.RemoteAddr, req.TLS = in.Host, in.RemoteAddr, in.TLS
	}
}

// setTarget sets u to the part's Path with its holes filled.
func (p *part) setTarget(f *fanout, u *url.URL) *partFailure {
	if p.fixed != nil {
		*u = *p.fixed
		return nil
	}
	var cause *partFailure // the failure of another part that left a hole empty
	target, err := p.path.Expand(func(hole *urlpath.Hole) (string, error) {
		if hole.Field == nil {
			return f.in.PathValue(hole.Name), nil
		}
		from := &f.answers[hole.Ref]
		text, err := fieldText(from.source, hole.Field)
		if from.failure != nil && text == "" {
			cause = from.failure
		}
		return text, err
	})
	if err == nil {
		var parsed *url.URL
		if parsed, err = url.Parse(target); err == nil {
			*u = *parsed
			return nil
		}
	}
	if cause != nil {
		failure, answer := *cause, *cause.err
		answer.Err = fmt.Errorf("gateway: part %q: %w: %w", p.Name, err, answer.Err)
		failure.err = &answer
		return &failure
	}
	return p.fail(result{err: fmt.Errorf("%w: %w", ErrBadGateway, err)})
}

// fieldText returns a field of a part's value as text for a URL, not yet escaped.
func fieldText(v rawjson.Value, field []string) (string, error) {
	v, err := v.At(field)
	if err != nil {
		return "", err
	}
	text, ok := v.Scalar()
	if !ok {
		return "", errors.New("an object or an array")
	}
	return text, nil
}

var errPartTooLarge = fmt.Errorf("%w: body too large", ErrBadGateway)

// read reads a part's body, limited by MaxBytes and MaxTotalBytes.
func (f *fanout) read(res *http.Response) ([]byte, error) {
	if res.ContentLength > f.opts.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes", errPartTooLarge, res.ContentLength)
	}
	// At most 32 KiB are allocated for a declared length before that much has arrived.
	b := make([]byte, 0, 1+min(max(res.ContentLength, 511), 32<<10))
	for {
		n, err := res.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		all := f.total.Add(int64(n))
		if err == io.EOF && int64(len(b)) <= f.opts.MaxBytes && all <= f.opts.MaxTotalBytes {
			return b, nil
		}
		switch {
		case int64(len(b)) > f.opts.MaxBytes:
			err = fmt.Errorf("%w: more than %d bytes", errPartTooLarge, f.opts.MaxBytes)
		case all > f.opts.MaxTotalBytes:
			err = fmt.Errorf("%w: more than %d bytes together with the other parts", errPartTooLarge, f.opts.MaxTotalBytes)
		}
		if err != nil {
			f.total.Add(-int64(len(b)))
			return nil, err
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, max(1, int(res.ContentLength)+1-len(b)))
		}
	}
}

// fail returns the failure of a part that ended with r.
func (p *part) fail(r result) *partFailure {
	f := &partFailure{outcome: r.outcome(), err: &Error{Header: make(http.Header)}}
	answer := finish(r.err)
	var own *Error
	switch {
	case p.Request != nil && errors.As(r.err, &own):
		*f.err = *answer
	case answer.Status < 500 && answer.Status != statusClientClosed:
		f.err.Status = answer.Status // this process refused the part's request as the client's error
	default:
		f.err.Status = partStatus(f.outcome)
	}
	for _, name := range []string{"Retry-After", "Www-Authenticate"} {
		if values, ok := answer.Header[name]; ok {
			f.err.Header[name] = values
		}
	}
	f.err.Err = fmt.Errorf("gateway: part %q: %w", p.Name, r.err)
	return f
}

// failStatus returns the failure of a part whose response has another status than 2xx.
func (p *part) failStatus(res *http.Response) *partFailure {
	code := res.StatusCode
	f := &partFailure{err: &Error{Header: make(http.Header), Err: fmt.Errorf("gateway: part %q: answered %d", p.Name, code)}}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusTooManyRequests:
		f.outcome = result{status: code}.outcome()
		f.err.Status = code
	default:
		f.outcome = partOutcome(res)
		f.err.Status = partStatus(f.outcome)
	}
	switch f.err.Status {
	case http.StatusUnauthorized:
		if challenges := res.Header["Www-Authenticate"]; len(challenges) > 0 {
			f.err.Header["Www-Authenticate"] = slices.Clone(challenges)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if wait := res.Header.Get("Retry-After"); wait != "" {
			f.err.Header["Retry-After"] = []string{wait}
		}
	}
	return f
}
