package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Part is one branch of an aggregate.
//
// A part is well when it answers 2xx with one JSON value in UTF-8. 204 No Content is null. Everything else
// is a failure: another status, a redirect too; a body that is not JSON, is cut off or is larger than
// MaxBytes; a Pick that leads nowhere.
type Part struct {
	// Name is the part's member in the answer. It must be UTF-8 and no other part's; "" and "errors" panic
	// at setup.
	Name string

	// From is asked: an *Upstream, a HandlerTransport, or another RoundTripper such as
	// http.DefaultTransport. One that ignores its request's context is waited for.
	From http.RoundTripper

	// Path is what From is asked for with GET: "/users/{id}/list?n=10&after={user.last}". {id} is a path
	// value of the route; {user.last} is a field of the part user, as it is after Pick or of its Default,
	// and may go deeper ({user.address.city}, {user.emails.0}). Each is percent-encoded as one segment or
	// one query value. An empty one, null, ".", "..", an object or a list fails the part, and so does one
	// that would bring a dot segment, a backslash or NUL into the path behind an encoded slash. A part whose
	// field is missing because the other part failed fails as that one did.
	//
	// Where From is a plain RoundTripper, Path is an absolute URL whose scheme and host have no braces:
	// "http://10.0.0.1/x".
	Path string

	// Request makes the request instead of Path, for other methods and bodies. It runs on the part's own
	// goroutine; in must not be changed, carries the part's context, and its body can be read by one part
	// alone. The part's context, the gateway's own fields and the passed Headers that it has not set are put
	// on what it returns. An *Error from it is answered as it is when the part is required.
	Request func(in *http.Request) (*http.Request, error)

	// Optional: its failure leaves Default and is named in "errors"; else the whole fails.
	Optional bool

	// Default is the member of an optional part that failed; nil: null. It panics at setup when it is not
	// JSON or the part is not Optional.
	Default json.RawMessage

	// NotFoundNull: a 404 is null and no failure.
	NotFoundNull bool

	// Timeout is for this part, from the moment that it is asked; 0 means AggregateOptions.Timeout, which
	// also ends a longer one. Its expiry is OutcomeTimeout.
	Timeout time.Duration

	// Pick is an RFC 6901 pointer into its body; "" means all of it. It leads nowhere where an object on the
	// way has the name twice.
	Pick string
}

// AggregateOptions bound an aggregate and say what goes in and out. A negative number panics at setup.
type AggregateOptions struct {
	Timeout       time.Duration     // for the whole; 0 means 5s
	MaxBytes      int64             // a part's body, decompressed; 0 means 1 MiB
	MaxTotalBytes int64             // all parts' bodies; 0 means 16 MiB
	MaxInFlight   int               // parts at once in one aggregate; 0 means all
	Headers       []string          // request fields passed to the parts besides the gateway's own; nil: Accept-Language, Authorization; see Aggregate
	Identity      map[string]string // as in ProxyOptions, for every part
	Merge         bool              // objects' members side by side instead of under Name; see Aggregate
	ServerTiming  bool              // tell each part's time in Server-Timing
}

// Aggregate asks every part at once, those that need another's field as soon as that arrives, and stitches
// their JSON into one object in the order of parts, byte for byte: order, big numbers and escapes stay as
// sent, only the blanks around a part's value go.
//
// All well: 200. An optional part missing: 200 with "errors", an array of {name, status, outcome}, and
// Cache-Control: no-store. A required part missing: a problem; its 401 (with WWW-Authenticate), 403, 404,
// 410 or 429 (with Retry-After) pass through as the status, all else is 502, 503 or 504 by its outcome, and
// the other parts are cancelled without counting against anyone; only when a half-open circuit refused it, those
// under way are waited for, since one may be the circuit's probe. The status in "errors" is the one that the
// whole would have had, and the outcome is an Outcome's String; "ok" is that of a part which answered with
// one of the five. A client that leaves cancels all parts.
//
// With Merge, the members of parts that are objects stand side by side. Of two alike, from two parts, the
// earlier part's stands; two alike in one part are left as they are; "errors" is always the aggregate's own.
// What is no object stays under its Name. An object of more than 10,000 members fails its part, for their
// names are kept while the answer is written, about 100 bytes each.
//
// Each part's request has the fields that the gateway sets as Proxy does (X-Forwarded-*, trace, identity),
// those of Headers, and Accept: application/json. Never passed, named or not: what the gateway sets itself,
// in any spelling; fields for one connection; and Accept-Encoding, Range, If-*, Expect, Host and Content-*,
// which are about another request than the part's. By default every part is shown the client's
// Authorization: with parts that are not your own, set Headers. Fields of the parts' answers are not passed
// on.
//
// An aggregate keeps the parts' bodies until it is answered, so at most MaxTotalBytes and about a quarter
// more. It runs a goroutine for each part in flight, and none outlives its request. A panic in Request or
// in a RoundTripper goes on up from the handler, with its stack; HandlerTransport makes it an error.
//
// It panics at setup on a Part or an option that can never work: no parts, a name that is empty, "errors"
// or used twice, no From, a bad Path, Pick, Default or field name, a field of an unknown part, and a cycle of
// parts that need one another. The parts are copied. The handler is safe for concurrent use if every From is.
func Aggregate(parts []Part, opts *AggregateOptions) http.Handler {
	a := &aggregate{}
	if opts != nil {
		a.opts = *opts
	}
	a.setOptions()
	if len(parts) == 0 {
		panic("gateway: Aggregate: no parts")
	}
	index := make(map[string]int, len(parts))
	for i, p := range parts {
		if _, twice := index[p.Name]; twice {
			panic(fmt.Sprintf("gateway: Aggregate: two parts named %q", p.Name))
		}
		index[p.Name] = i
	}
	a.parts = make([]part, len(parts))
	for i, p := range parts {
		if err := a.parts[i].set(p, index); err != nil {
			panic(fmt.Sprintf("gateway: Aggregate: part %q: %v", p.Name, err))
		}
	}
	for i := range a.parts {
		for _, j := range a.parts[i].needs {
			a.parts[j].neededBy = append(a.parts[j].neededBy, i)
		}
	}
	a.refuseCycles()
	return a
}

// maxMergedMembers bounds the names that Merge must remember of one part.
const maxMergedMembers = 10_000

type aggregate struct {
	parts   []part
	opts    AggregateOptions
	headers []string // canonical, without what is never passed
	own     *ownedFields
}

func (a *aggregate) setOptions() {
	o := &a.opts
	if o.Timeout < 0 || o.MaxBytes < 0 || o.MaxTotalBytes < 0 || o.MaxInFlight < 0 {
		panic("gateway: Aggregate: negative option")
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 20
	}
	if o.MaxTotalBytes == 0 {
		o.MaxTotalBytes = 16 << 20
	}
	if o.Headers == nil {
		o.Headers = []string{"Accept-Language", "Authorization"}
	}
	a.own = newOwnedFields("Aggregate", o.Identity)
	for _, name := range o.Headers {
		if !httpfield.IsToken(name) {
			panic(fmt.Sprintf("gateway: Aggregate: %q is no field name", name))
		}
		if name = http.CanonicalHeaderKey(name); !a.own.has(name, "") && !neverPassed(name) {
			a.headers = append(a.headers, name)
		}
	}
}

// neverPassed reports whether a client's field has no meaning on a part's request.
func neverPassed(name string) bool {
	switch name {
	case "Accept-Encoding", "Expect", "Host", "Range":
		return true
	}
	return httpfield.IsHopByHop(name) || strings.HasPrefix(name, "If-") || strings.HasPrefix(name, "Content-")
}

// refuseCycles panics unless the parts can be asked one after the other.
func (a *aggregate) refuseCycles() {
	asked := make([]bool, len(a.parts))
	for range a.parts {
		for i, p := range a.parts {
			asked[i] = asked[i] || !slices.ContainsFunc(p.needs, func(j int) bool { return !asked[j] })
		}
	}
	var stuck []string
	for i, ok := range asked {
		if !ok {
			stuck = append(stuck, strconv.Quote(a.parts[i].Name))
		}
	}
	if stuck != nil {
		panic("gateway: Aggregate: a cycle: each needs a field of another: " + strings.Join(stuck, ", "))
	}
}

// part is a Part made ready.
type part struct {
	Part
	quoted   []byte    // Name as a JSON string
	metric   string    // Name as a token, for Server-Timing
	upstream *Upstream // From, when it is one
	local    bool      // From is a HandlerTransport
	path     *urlpath.Template
	fixed    *url.URL // the URL, when path has no holes
	pointer  []string // Pick
	needs    []int    // the parts whose fields path takes
	neededBy []int
}

func (p *part) set(from Part, index map[string]int) error {
	p.Part = from
	switch {
	case p.Name == "" || !utf8.ValidString(p.Name):
		return errors.New("a name is not empty and UTF-8")
	case p.Name == "errors":
		return errors.New("the name is the aggregate's own")
	case p.From == nil:
		return errors.New("no From")
	case (p.Path == "") == (p.Request == nil):
		return errors.New("one of Path and Request must be set")
	case p.Timeout < 0:
		return errors.New("negative Timeout")
	case p.Default != nil && !p.Optional:
		return errors.New("a Default without Optional is never used")
	}
	p.quoted, _ = json.Marshal(p.Name)
	p.metric = httpfield.ToToken(p.Name)
	p.Default = jsonNull
	if from.Default != nil {
		text, ok := jsonText(slices.Clone(from.Default))
		if !ok {
			return errors.New("the Default is not JSON")
		}
		p.Default = text
	}
	var err error
	if p.pointer, err = parsePointer(p.Pick); err != nil {
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
		return errors.New("its Path must be an absolute URL, for From is a plain transport")
	}
	if (p.upstream != nil || p.local) && absolute {
		return errors.New("its Path must begin with a slash, for the host is not its to say")
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

// gathering is one request's parts on their way. What a part has come to is written by its goroutine and
// read by others only after its number has come through ended.
type gathering struct {
	*aggregate
	ex          *exchange
	in          *http.Request
	ctx         context.Context
	traceHeader string
	header      http.Header  // of every part's request
	total       atomic.Int64 // bytes of bodies
	ended       chan int
	came        []partAnswer
	over        bool // a required part has failed: no other is asked
}

// partAnswer is what a part has come to.
type partAnswer struct {
	value    []byte // what stands in the answer
	failed   *partFailure
	took     time.Duration
	panicked any

	// The handler's goroutine alone uses these.
	asked, known bool
	waitsFor     int // parts that it needs
}

// partFailure is why a part is missing.
type partFailure struct {
	outcome Outcome
	err     *Error // as it is answered when the part is required
}

func (a *aggregate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex, rw, r := enter(w, r)
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.Timeout)
	defer cancel()
	g := &gathering{
		aggregate: a,
		ex:        ex,
		in:        r,
		ctx:       ctx,
		ended:     make(chan int, len(a.parts)),
		came:      make([]partAnswer, len(a.parts)),
	}
	if err := g.setHeader(); err != nil {
		refuse(rw, r, err)
		return
	}
	failed := g.gather(cancel)
	if a.opts.ServerTiming {
		g.tellTimes(rw.Header())
	}
	switch {
	case failed == nil && !g.cutShort():
		g.stitch(rw)
	case leftEarly(r.Context()):
		WriteError(rw, r, fmt.Errorf("gateway: Aggregate: %w", context.Canceled))
	default:
		ex.note(failed.outcome, failed.err)
		WriteError(rw, r, failed.err)
	}
}

// setHeader gathers the fields that every part's request has.
func (g *gathering) setHeader() error {
	g.ex.mu.Lock()
	g.traceHeader = g.ex.traceHeader
	g.ex.mu.Unlock()
	g.header = make(http.Header, len(g.headers)+10)
	g.header["Accept"] = []string{"application/json"}
	for _, name := range g.headers {
		if values := g.in.Header[name]; len(values) > 0 && !g.owns(name) {
			g.header[name] = values
		}
	}
	return g.own.write(g.header, g.in)
}

// owns reports whether the gateway itself writes the field name on the parts' requests.
func (g *gathering) owns(name string) bool {
	return g.own.has(name, g.traceHeader)
}

// gather asks the parts, each as soon as what it needs is there, until all have ended or a required one
// has failed, which it returns. No part runs any more when it returns.
func (g *gathering) gather(cancel context.CancelFunc) (failed *partFailure) {
	for i := range g.parts {
		g.came[i].waitsFor = len(g.parts[i].needs)
	}
	for running := g.ask(0); running > 0; running = g.ask(running) {
		i := <-g.ended
		running--
		c := &g.came[i]
		c.known = true
		for _, j := range g.parts[i].neededBy {
			g.came[j].waitsFor--
		}
		if c.failed != nil && g.parts[i].Optional {
			g.ex.remark("part "+g.parts[i].Name+" "+c.failed.outcome.String(), c.failed.err)
		}
		if c.panicked == nil && (c.failed == nil || g.parts[i].Optional) {
			continue
		}
		if failed == nil {
			failed = c.failed
		}
		g.over = true
		if c.panicked != nil || !isProbing(c.failed.err) {
			cancel()
		}
	}
	for i := range g.came {
		if v := g.came[i].panicked; v != nil {
			panic(v)
		}
	}
	return failed
}

// isProbing reports whether err is the refusal of a circuit all of whose probes are under way. One of them may be
// another part of the same aggregate: to cancel that would keep the circuit from ever closing.
func isProbing(err error) bool {
	var no *refusal
	return errors.As(err, &no) && no.until.IsZero()
}

// ask starts the parts that can be asked, in their order, and returns how many run. When all is cancelled
// it starts none.
func (g *gathering) ask(running int) int {
	if g.over || leftEarly(g.ctx) {
		return running
	}
	for i := range g.parts {
		if g.opts.MaxInFlight > 0 && running == g.opts.MaxInFlight {
			break
		}
		if c := &g.came[i]; !c.asked && c.waitsFor == 0 {
			c.asked = true
			running++
			go g.run(i)
		}
	}
	return running
}

// cutShort reports whether the client left before all parts were there.
func (g *gathering) cutShort() bool {
	if !leftEarly(g.in.Context()) {
		return false
	}
	for i := range g.came {
		if c := &g.came[i]; !c.known || c.failed != nil {
			return true
		}
	}
	return false
}

// run asks one part and tells what it has come to.
func (g *gathering) run(i int) {
	p, c := &g.parts[i], &g.came[i]
	returned := false
	defer func() {
		if !returned {
			switch v := recover(); v {
			case nil:
				c.panicked = "gateway: Aggregate: runtime.Goexit in a part"
			case http.ErrAbortHandler:
				c.panicked = v
			default:
				c.panicked = fmt.Sprintf("%v [part %q]\n\n%s", v, p.Name, debug.Stack())
			}
		}
		g.ended <- i
	}()

	ctx := g.ctx
	if p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.Timeout)
		defer cancel()
	}
	began := time.Now()
	c.value, c.failed = g.fetch(ctx, p)
	c.took = time.Since(began)
	if c.failed != nil {
		c.value = p.Default
	}
	returned = true
}

// fetch gets the part's value.
func (g *gathering) fetch(ctx context.Context, p *part) ([]byte, *partFailure) {
	if err := ctx.Err(); err != nil {
		return nil, p.fail(result{err: err})
	}
	req, failed := g.request(ctx, p)
	if failed != nil {
		return nil, failed
	}
	res, err := p.From.RoundTrip(req)
	if err == nil && res == nil {
		err = errors.New("neither a response nor an error")
	}
	if err != nil {
		return nil, p.fail(result{err: partError(req, err), gone: leftEarly(ctx)})
	}
	if res.Body == nil {
		res.Body = http.NoBody
	}

	switch code := res.StatusCode; {
	case code == http.StatusNoContent, code == http.StatusNotFound && p.NotFoundNull:
		readRest(res)
		return jsonNull, nil
	case code < 200 || code > 299:
		readRest(res)
		return nil, p.refused(res)
	}
	body, err := g.read(res)
	res.Body.Close() // also one that is too large and may be endless
	if err != nil {
		tooLarge := errors.Is(err, errPartTooLarge)
		return nil, p.fail(result{err: partError(req, err), began: !tooLarge, gone: leftEarly(ctx)})
	}
	value, ok := jsonText(body)
	if !ok {
		err = errors.New("the body is not JSON")
	} else if len(p.pointer) > 0 {
		value, err = jsonAt(value, p.pointer)
	}
	if err != nil {
		g.total.Add(-int64(len(body)))
		return nil, p.fail(result{status: res.StatusCode, err: fmt.Errorf("%w: %w", ErrBadGateway, err)})
	}
	if g.opts.Merge && value[0] == '{' && !fewMembers(value) {
		return nil, p.fail(result{err: fmt.Errorf("%w: more than %d members", ErrBadGateway, maxMergedMembers)})
	}
	return value, nil
}

// request makes the part's request.
func (g *gathering) request(ctx context.Context, p *part) (*http.Request, *partFailure) {
	header := g.header
	if !p.local { // a HandlerTransport makes a record and a copy of the fields itself
		ctx = g.ex.part(ctx)
		header = header.Clone()
	}
	if p.Request == nil {
		target, failed := g.target(p)
		if failed != nil {
			return nil, failed
		}
		req := (&http.Request{
			Method:     http.MethodGet,
			URL:        target,
			Proto:      "HTTP/1.1",
			ProtoMajor: 1,
			ProtoMinor: 1,
			Header:     header,
		}).WithContext(ctx)
		p.place(req, g.in)
		return req, nil
	}

	req, err := p.Request(g.in.WithContext(ctx))
	if err == nil && (req == nil || req.URL == nil) {
		err = errors.New("no request was made, or one without URL")
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
		if g.owns(name) || httpfield.IsHopByHop(name) || name == "Accept-Encoding" {
			delete(h, name)
		}
	}
	for name, values := range header {
		if _, ok := h[name]; !ok {
			h[name] = values
		}
	}
	req.Header = h
	p.place(req, g.in)
	return req, nil
}

// place says from where and to whom the request is.
func (p *part) place(req, in *http.Request) {
	switch {
	case p.upstream != nil:
		req.Host = "" // the target's
	case p.local:
		req.Host, req.RemoteAddr, req.TLS = in.Host, in.RemoteAddr, in.TLS
	}
}

// target fills the holes of the part's Path.
func (g *gathering) target(p *part) (*url.URL, *partFailure) {
	if p.fixed != nil {
		link := *p.fixed
		return &link, nil
	}
	var needed *partAnswer // the part whose failure leaves the hole empty
	target, err := p.path.Expand(func(hole *urlpath.Hole) (string, error) {
		if hole.Field == nil {
			return g.in.PathValue(hole.Name), nil
		}
		from := &g.came[hole.Ref]
		v, err := jsonAt(from.value, hole.Field)
		text, ok := "", false
		if err == nil {
			if text, ok = jsonScalar(v); !ok {
				err = errors.New("an object or a list")
			}
		}
		if from.failed != nil && text == "" {
			needed = from
		}
		return text, err
	})
	var link *url.URL
	if err == nil {
		link, err = url.Parse(target)
	}
	switch {
	case err == nil:
		return link, nil
	case needed != nil:
		f := *needed.failed
		e := *f.err
		e.Err = fmt.Errorf("gateway: part %q: %w: %w", p.Name, err, e.Err)
		f.err = &e
		return nil, &f
	}
	return nil, p.fail(result{err: fmt.Errorf("%w: %w", ErrBadGateway, err)})
}

var errPartTooLarge = fmt.Errorf("%w: body too large", ErrBadGateway)

// read reads a body within the bounds of one and of all.
func (g *gathering) read(res *http.Response) ([]byte, error) {
	if res.ContentLength > g.opts.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes", errPartTooLarge, res.ContentLength)
	}
	// No more than a start is taken on the upstream's word.
	b := make([]byte, 0, 1+min(max(res.ContentLength, 511), 32<<10))
	for {
		n, err := res.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		all := g.total.Add(int64(n))
		if err == io.EOF && int64(len(b)) <= g.opts.MaxBytes && all <= g.opts.MaxTotalBytes {
			return b, nil
		}
		switch {
		case int64(len(b)) > g.opts.MaxBytes:
			err = fmt.Errorf("%w: more than %d bytes", errPartTooLarge, g.opts.MaxBytes)
		case all > g.opts.MaxTotalBytes:
			err = fmt.Errorf("%w: more than %d bytes with the others", errPartTooLarge, g.opts.MaxTotalBytes)
		}
		if err != nil {
			g.total.Add(-int64(len(b)))
			return nil, err
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, 1)
		}
	}
}

// partError is attemptError for transports of any kind: a cancel that was not ours is a failure.
func partError(req *http.Request, err error) error {
	if errors.Is(err, context.Canceled) && req.Context().Err() == nil {
		err = hideCanceled{err}
	}
	return attemptError(req, err)
}

// fail makes a failure of how the part ended.
func (p *part) fail(e result) *partFailure {
	f := &partFailure{outcome: e.outcome(), err: &Error{Header: make(http.Header)}}
	said := finish(e.err)
	var own *Error
	switch {
	case p.Request != nil && errors.As(e.err, &own):
		*f.err = *said
	case said.Status < 500 && said.Status != statusClientClosed:
		f.err.Status = said.Status // the client's fault, by the word of this process
	default:
		f.err.Status = statusOf(f.outcome)
	}
	for _, name := range []string{"Retry-After", "Www-Authenticate"} {
		if values, ok := said.Header[name]; ok {
			f.err.Header[name] = values
		}
	}
	f.err.Err = fmt.Errorf("gateway: part %q: %w", p.Name, e.err)
	return f
}

// refused makes a failure of an answer that is none of the good ones.
func (p *part) refused(res *http.Response) *partFailure {
	code := res.StatusCode
	said := fmt.Errorf("answered %d", code)
	f := &partFailure{err: &Error{Header: make(http.Header), Err: fmt.Errorf("gateway: part %q: %w", p.Name, said)}}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone, http.StatusTooManyRequests:
		f.outcome = result{status: code}.outcome()
		f.err.Status = code
	default:
		f.outcome = result{err: fmt.Errorf("%w: %w", ErrBadGateway, said)}.outcome()
		// A gateway that runs inside the handler knows better: a refusal, a timeout.
		if body, ok := res.Body.(handlerBody); ok && code >= 500 {
			if o, noted := body.noted(); noted && o != OutcomeOK {
				f.outcome = o
			}
		}
		f.err.Status = statusOf(f.outcome)
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

// statusOf is the status that answers for a part which ended with o.
func statusOf(o Outcome) int {
	switch o {
	case OutcomeRejected:
		return http.StatusServiceUnavailable
	case OutcomeTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// tellTimes writes the time of each part that has ended (W3C Server Timing).
func (g *gathering) tellTimes(h http.Header) {
	var b []byte
	for i := range g.came {
		c := &g.came[i]
		if !c.known {
			continue
		}
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, g.parts[i].metric...)
		b = append(b, ";dur="...)
		b = httpfield.AppendDecimal(b, float64(c.took)/float64(time.Millisecond))
	}
	if len(b) > 0 {
		h.Add("Server-Timing", string(b))
	}
}
