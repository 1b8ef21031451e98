package gateway

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Route is a handler and what a request must be to reach it.
type Route struct {
	Name       string  // for logs and Explain; "" means Pattern. http.route stays the path template
	Pattern    string  // ServeMux syntax: [METHOD ][HOST]/[PATH], {name}, {name...}, {$}
	Match      []Match // all must hold
	Handler    http.Handler
	Middleware []Middleware // inside Router.Use's, first outermost
}

// Router matches by host and path as net/http.ServeMux does, then by method, then by predicates. The
// zero value is usable. It is safe for concurrent use once built: register every route before it
// serves, and to change routes later, build another Router and hand it to a Live.
//
// Of the routes that match a request it takes the first by this order, which is the Kubernetes Gateway
// API's:
//
//  1. one with the request's host before one without a host;
//  2. the more specific path: a literal segment before {name}, before {name...} or a trailing slash;
//  3. the request's method; for HEAD then GET; then no method;
//  4. most header predicates;
//  5. most query predicates;
//  6. registered first.
//
// What loses on method or predicates leaves the request to the next. So unlike in ServeMux, "GET /" can
// stand beside "/foo", which takes all of its path.
//
// Hosts match without regard to case, port and a final dot. The path is matched segment by segment, each
// decoded for itself, so "%2F" is part of its segment. A path that servers read differently from each
// other gets 400: one with a dot segment, encoded or not, beside an encoded slash too, with a backslash or
// NUL. A row of slashes gets 308 to the path without, method and query kept, and so does a path that
// lacks only its final slash. When only the method does not match, the answer is 405 with Allow, or for
// OPTIONS 204 with Allow; otherwise it is 404. All of these are given inside Use's middleware.
//
// A handler finds the pattern in Request.Pattern and wildcards by Request.PathValue, as under ServeMux.
type Router struct {
	use     []Middleware
	entries []*routeEntry // in order of registration
	anyHost routeTree
	hosts   map[string]*routeTree

	once   sync.Once
	answer http.Handler // Use's middleware around what no route answers
}

// routeEntry is a registered route.
type routeEntry struct {
	handler http.Handler // with all middleware around it
	params  []routeParam
	Route
	pattern          *pathPattern
	headers, queries int // predicates
	order            int
	location         string // file:line of its registration
}

// routeParam is a named wildcard of a pattern.
type routeParam struct {
	name string
	at   int // segments before it
	rest bool
}

// precedes reports whether e is asked before other, whose host, path and method are the same.
func (e *routeEntry) precedes(other *routeEntry) bool {
	switch {
	case e.headers != other.headers:
		return e.headers > other.headers
	case e.queries != other.queries:
		return e.queries > other.queries
	}
	return e.order < other.order
}

// failed returns the name of the first predicate that does not hold; "" when all do.
func (e *routeEntry) failed(r *http.Request) string {
	for i := range e.Match {
		if !e.Match[i].Func(r) {
			return e.Match[i].Name
		}
	}
	return ""
}

// covers reports whether every request that other's predicates let through is let through by e's.
func (e *routeEntry) covers(other *routeEntry) bool {
	for _, m := range e.Match {
		if !slices.ContainsFunc(other.Match, func(o Match) bool { return o.Name == m.Name }) {
			return false
		}
	}
	return true
}

// setPathValues gives r the wildcards' values. The path is one that e's pattern matches.
func (e *routeEntry) setPathValues(r *http.Request, path *urlpath.Path) {
	for i := range e.params {
		if p := &e.params[i]; p.rest {
			r.SetPathValue(p.name, path.Rest(p.at))
		} else {
			r.SetPathValue(p.name, path.Segment(p.at))
		}
	}
}

// Use adds middleware around every route and around what the Router answers itself: 404, 405 and the
// others. The first is outermost. It panics after Handle or Add, and on a nil middleware.
func (rt *Router) Use(mw ...Middleware) {
	if len(rt.entries) > 0 {
		panic("gateway: Router.Use: called after Handle or Add")
	}
	rt.use = append(rt.use, checkMiddleware("Router.Use", mw)...)
}

// Handle registers a route. It panics, with both registrations' file:line, when the pattern is malformed,
// when the paths of two routes overlap without one being more specific, or when host, path, method and
// predicates are another's. "GET /" beside "/foo" is no collision.
func (rt *Router) Handle(pattern string, h http.Handler, mw ...Middleware) {
	rt.register("Router.Handle", Route{Pattern: pattern, Handler: h, Middleware: mw})
}

// Add registers a route, as Handle does. It also panics when a route can never match, because one with
// the same host, path and method that is asked before it takes every request that its predicates let
// through.
func (rt *Router) Add(r Route) { rt.register("Router.Add", r) }

// With returns a group of routes that share more middleware, inside Use's: the public ones, the
// authenticated ones. It panics on a nil middleware.
func (rt *Router) With(mw ...Middleware) *Group {
	return &Group{router: rt, mw: checkMiddleware("Router.With", mw)}
}

// Group registers routes in its Router, which made it by With.
type Group struct {
	router *Router
	mw     []Middleware
}

// With returns a group whose middleware stands inside this one's.
func (g *Group) With(mw ...Middleware) *Group {
	return &Group{router: g.router, mw: slices.Concat(g.mw, checkMiddleware("Group.With", mw))}
}

// Handle registers a route as Router.Handle does; mw stands inside the group's middleware.
func (g *Group) Handle(pattern string, h http.Handler, mw ...Middleware) {
	g.router.register("Group.Handle", Route{Pattern: pattern, Handler: h, Middleware: slices.Concat(g.mw, mw)})
}

// Add registers a route as Router.Add does; its Middleware stands inside the group's.
func (g *Group) Add(r Route) {
	r.Middleware = slices.Concat(g.mw, r.Middleware)
	g.router.register("Group.Add", r)
}

func checkMiddleware(caller string, mw []Middleware) []Middleware {
	for _, m := range mw {
		if m == nil {
			panic("gateway: " + caller + ": nil middleware")
		}
	}
	return slices.Clone(mw)
}

func (rt *Router) register(caller string, r Route) {
	e := &routeEntry{Route: r, order: len(rt.entries), location: callerLocation()}
	fail := func(format string, args ...any) {
		panic(fmt.Sprintf("gateway: %s: pattern %q (registered at %s) ", caller, r.Pattern, e.location) +
			fmt.Sprintf(format, args...))
	}
	var err error
	if e.pattern, err = parsePattern(r.Pattern); err != nil {
		fail("is malformed: %v", err)
	}
	if r.Handler == nil {
		fail("has no handler")
	}
	e.Middleware = checkMiddleware(caller, r.Middleware)
	if e.Name == "" {
		e.Name = r.Pattern
	}
	e.Match = nil
	for _, m := range r.Match {
		if m.Name == "" || m.Func == nil {
			fail("has a predicate without name or function")
		}
		if slices.ContainsFunc(e.Match, func(o Match) bool { return o.Name == m.Name }) {
			continue
		}
		e.Match = append(e.Match, m)
		switch m.kind {
		case matchHeader:
			e.headers++
		case matchQuery:
			e.queries++
		}
	}
	for i, s := range e.pattern.segments {
		if s.kind >= wildSegment && s.text != "" {
			e.params = append(e.params, routeParam{name: s.text, at: i, rest: s.kind == restSegment})
		}
	}

	tree := &rt.anyHost
	if host := e.pattern.host; host != "" {
		if tree = rt.hosts[host]; tree == nil {
			tree = new(routeTree)
		}
	}
	if other := tree.conflict(e); other != nil {
		fail(`conflicts with pattern %q (registered at %s): both match some paths, like %q, but neither is more specific.
%[1]q matches %[4]q, but %[5]q does not.
%[5]q matches %[6]q, but %[1]q does not.`,
			other.Pattern, other.location, samePath(e.pattern, other.pattern),
			onlyPath(other.pattern, e.pattern), e.Pattern, onlyPath(e.pattern, other.pattern))
	}
	for _, slot := range tree.sameAs(e.pattern) {
		other := slot.route
		switch {
		case slot.method != e.pattern.method:
		case other.precedes(e) && other.covers(e) && e.covers(other):
			fail("matches the same requests as pattern %q (registered at %s)", other.Pattern, other.location)
		case other.precedes(e) && other.covers(e):
			fail("can never match: pattern %q (registered at %s) comes before it and takes every such request; register that one later",
				other.Pattern, other.location)
		}
	}

	e.handler = compose(caller, rt.use, compose(caller, e.Middleware, r.Handler))
	if host := e.pattern.host; host != "" {
		if rt.hosts == nil {
			rt.hosts = make(map[string]*routeTree)
		}
		rt.hosts[host] = tree
	}
	tree.add(e)
	rt.entries = append(rt.entries, e)
}

func compose(caller string, mw []Middleware, h http.Handler) http.Handler {
	if h = Chain(mw...)(h); h == nil {
		panic("gateway: " + caller + ": a middleware returned nil")
	}
	return h
}

// callerLocation is the file:line from which this package was called.
func callerLocation() string {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, ownPackage) || strings.HasSuffix(f.File, "_test.go") {
			return f.File + ":" + strconv.Itoa(f.Line)
		}
		if !more {
			return "unknown location"
		}
	}
}

// ownPackage begins the name of every function of this package.
var ownPackage = func() string {
	pc, _, _, _ := runtime.Caller(0)
	name := runtime.FuncForPC(pc).Name()
	dir := strings.LastIndexByte(name, '/') + 1
	return name[:dir+strings.IndexByte(name[dir:], '.')+1]
}()

// Routes yields the routes by precedence: of two that match the same request, the one that is taken comes
// first. Those of a host come before those without, hosts in alphabetical order. Name is filled in, and
// Middleware holds the groups' too. The slices are not to be changed.
func (rt *Router) Routes() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		rt.all(func(e *routeEntry) bool { return yield(e.Route) })
	}
}

func (rt *Router) all(yield func(*routeEntry) bool) {
	for _, host := range slices.Sorted(maps.Keys(rt.hosts)) {
		if !rt.hosts[host].root.all(yield) {
			return
		}
	}
	rt.anyHost.root.all(yield)
}

// ServeHTTP hands the request to the route that matches it. The match is made before Use's middleware
// runs, so that this knows the route.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := routeSearch{req: r, method: r.Method}
	if a := rt.decide(&s); a.status != http.StatusOK {
		ex, rw, r := enter(w, r)
		answer := a // on the heap only when it is needed
		ex.mu.Lock()
		ex.unrouted = &answer
		ex.mu.Unlock()
		rt.once.Do(func() { rt.answer = compose("Router", rt.use, http.HandlerFunc(answerUnrouted)) })
		rt.answer.ServeHTTP(rw, r)
		return
	}
	// As ServeMux does, on the request that came: what stands outside may look at it afterwards.
	route := s.route
	r.Pattern = route.Pattern
	route.setPathValues(r, &s.path)
	ex, rw, r := enter(w, r)
	ex.routed(route.Name, route.Pattern)
	route.handler.ServeHTTP(rw, r)
}

// routed notes the route, if no Router outside has.
func (ex *exchange) routed(name, pattern string) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if ex.pattern == "" {
			ex.route, ex.pattern = name, pattern
		}
		ex.mu.Unlock()
	}
}

// routeAnswer is what is to be done with a request: to hand it to its route, or to answer it.
type routeAnswer struct {
	status   int    // 200 for a route, or 204, 308, 400, 404, 405
	reason   string // of a 400
	allow    string // of 204 and 405
	location string // of a 308
}

// decide is the one place where a request finds its route, for ServeHTTP and Explain alike. The route is in
// s when the status is 200.
func (rt *Router) decide(s *routeSearch) routeAnswer {
	r, p := s.req, &s.path
	p.Set(r.URL)
	if s.method == "" {
		s.method = http.MethodGet // as in net/http's client
	}
	host := rt.hostTree(r)
	first := host
	if first == nil {
		first = &rt.anyHost
	}
	switch {
	case r.URL.Path == "" && (r.Method == http.MethodConnect || r.URL.Opaque != ""):
		return routeAnswer{status: http.StatusNotFound} // no path at all, not even an empty one
	case p.Escaped || s.survey:
	default:
		// A path that a pattern spells out needs no look at its cleanliness.
		if end := first.fixed[p.Text]; end != nil && s.try(*end, true) {
			return routeAnswer{status: http.StatusOK}
		}
	}

	if p.Text[0] != '/' {
		if p.Text == "*" && r.Method == http.MethodOptions {
			return routeAnswer{status: http.StatusNoContent}
		}
		return badPath("no slash at its beginning")
	}
	p.Split()
	if p.Dotted || p.Escaped || strings.IndexByte(p.Text, '\\') >= 0 || strings.IndexByte(p.Text, 0) >= 0 {
		if what := urlpath.Ambiguity(r.URL.Path); what != "" {
			return badPath(what)
		}
	}
	if p.Doubled {
		if r.Method == http.MethodConnect {
			return badPath("an empty segment")
		}
		return redirect(r, urlpath.Collapse(urlpath.Escaped(r.URL)))
	}

	if !s.in(host) {
		s.in(&rt.anyHost)
	}
	if !s.exact && !p.TrailingSlash && (first.slashes || rt.anyHost.slashes) {
		slashed := routeSearch{req: r, method: s.method, path: *p, slash: true}
		if !slashed.in(host) {
			slashed.in(&rt.anyHost)
		}
		if slashed.exact {
			return redirect(r, urlpath.Escaped(r.URL)+"/")
		}
	}
	if s.route != nil {
		return routeAnswer{status: http.StatusOK}
	}

	// Would another method do?
	allow := rt.otherMethods(s, host)
	switch {
	case len(allow) == 0:
		return routeAnswer{status: http.StatusNotFound}
	case r.Method == http.MethodOptions:
		return routeAnswer{status: http.StatusNoContent, allow: strings.Join(allow, ", ")}
	}
	return routeAnswer{status: http.StatusMethodNotAllowed, allow: strings.Join(allow, ", ")}
}

// hostTree returns the routes of the request's host; nil when it has none of its own.
func (rt *Router) hostTree(r *http.Request) *routeTree {
	if len(rt.hosts) == 0 {
		return nil
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	return rt.hosts[canonicalHost(host)]
}

// otherMethods lists the methods with which the request that was looked for would be taken, or redirected
// for its final slash.
func (rt *Router) otherMethods(of *routeSearch, host *routeTree) []string {
	s := routeSearch{req: of.req, method: of.method, path: of.path, survey: true}
	for _, s.slash = range []bool{false, !s.path.TrailingSlash} {
		s.in(host)
		s.in(&rt.anyHost)
	}
	if len(s.allow) == 0 {
		return nil
	}
	if slices.Contains(s.allow, http.MethodGet) {
		s.allow = append(s.allow, http.MethodHead)
	}
	s.allow = append(s.allow, http.MethodOptions)
	slices.Sort(s.allow)
	return slices.Compact(s.allow)
}

func badPath(what string) routeAnswer {
	return routeAnswer{status: http.StatusBadRequest, reason: "The path has " + what + "."}
}

// redirect answers with path, which begins with one slash and so is on this site. Where something outside
// has taken a prefix off the path, as http.StripPrefix does, the client needs it.
func redirect(r *http.Request, path string) routeAnswer {
	asked, _, _ := strings.Cut(r.RequestURI, "?")
	if prefix, ok := strings.CutSuffix(asked, urlpath.Escaped(r.URL)); ok && strings.HasPrefix(prefix, "/") && urlpath.Ambiguity(urlpath.Unescape(prefix)) == "" {
		path = urlpath.Collapse(urlpath.Escape(prefix) + path)
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		path += "?" + r.URL.RawQuery
	}
	return routeAnswer{status: http.StatusPermanentRedirect, location: path}
}

// answerUnrouted answers a request that no route takes with the answer that the Router left in the record.
func answerUnrouted(w http.ResponseWriter, r *http.Request) {
	var answer http.Handler = new(routeAnswer)
	if ex := exchangeFrom(r.Context()); ex != nil { // else a middleware replaced the context
		ex.mu.Lock()
		if ex.unrouted != nil {
			answer = ex.unrouted
		}
		ex.mu.Unlock()
	}
	answer.ServeHTTP(w, r)
}

// ServeHTTP answers a request that has no route.
func (a *routeAnswer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch a.status {
	case http.StatusNoContent:
		if a.allow != "" {
			w.Header().Set("Allow", a.allow)
		}
		w.WriteHeader(a.status)
	case http.StatusPermanentRedirect:
		w.Header().Set("Location", a.location)
		w.WriteHeader(a.status)
	case http.StatusMethodNotAllowed:
		refuse(w, r, &Error{Status: a.status, Header: http.Header{"Allow": {a.allow}}, Err: ErrNoRoute})
	case http.StatusBadRequest:
		refuse(w, r, &Error{Status: a.status, Detail: a.reason, Err: ErrNoRoute})
	default:
		refuse(w, r, ErrNoRoute)
	}
}

// Explanation is what ServeHTTP would do with a request, and why.
type Explanation struct {
	Route      *Route // nil when none matched
	Status     int    // 200, or 204, 308, 400, 404, 405 as ServeHTTP would answer
	PathValues map[string]string
	Candidates []Candidate // in the order tried
}

// Candidate is a route and why it was not taken, if it was not.
type Candidate struct {
	Route   Route
	Matched bool
	Reason  string // "path", "method", "host", or the predicate's name; "precedence" when it only came too late
}

// Explain says which route r would take, the path values, and why each other candidate lost. It makes
// the decision that ServeHTTP makes, by the same code, and changes nothing in r. Candidates has every
// route: those whose path matches in the order tried, then the others by precedence. Of a path that is
// refused or redirected for its form none was tried.
func (rt *Router) Explain(r *http.Request) Explanation {
	s := routeSearch{req: r, method: r.Method, survey: true, trace: true}
	x := Explanation{Status: rt.decide(&s).status}
	if x.Status == http.StatusOK {
		route := s.route.Route
		x.Route = &route
		if len(s.route.params) > 0 {
			var values http.Request
			s.route.setPathValues(&values, &s.path)
			x.PathValues = make(map[string]string, len(s.route.params))
			for _, p := range s.route.params {
				x.PathValues[p.name] = values.PathValue(p.name)
			}
		}
	}
	if x.Status == http.StatusBadRequest || s.path.Doubled {
		return x
	}
	tried := make(map[*routeEntry]bool, len(s.tried))
	for _, v := range s.tried {
		tried[v.route] = true
		c := Candidate{Route: v.route.Route, Matched: v.route == s.route && x.Route != nil}
		switch {
		case c.Matched:
		case !v.method:
			c.Reason = "method"
		case v.failed != "":
			c.Reason = v.failed
		default:
			c.Reason = "precedence"
		}
		x.Candidates = append(x.Candidates, c)
	}
	host := rt.hostTree(r)
	rt.all(func(e *routeEntry) bool {
		if tried[e] {
			return true
		}
		c := Candidate{Route: e.Route, Reason: "path"}
		if e.pattern.host != "" && rt.hosts[e.pattern.host] != host {
			c.Reason = "host"
		}
		x.Candidates = append(x.Candidates, c)
		return true
	})
	return x
}

// String is a table for people: what would be answered, the path values, and the candidates, of which the
// one with "+" is taken.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", x.Status, http.StatusText(x.Status))
	if x.Route != nil {
		fmt.Fprintf(&b, ": %s", x.Route.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(x.PathValues)) {
		fmt.Fprintf(&b, ", %s=%q", name, x.PathValues[name])
	}
	b.WriteByte('\n')
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range x.Candidates {
		sign, reason := "-", c.Reason
		if c.Matched {
			sign, reason = "+", "taken"
		}
		fmt.Fprintf(table, "%s %s\t%s\t%s\n", sign, c.Route.Name, c.Route.Pattern, reason)
	}
	_ = table.Flush()
	return b.String()
}

// RoutePattern returns the matched pattern; to middleware outside the Router after next has returned,
// when a middleware of this package stands outside it. The outermost Router's where Routers nest; under a
// foreign mux that sets it, r.Pattern. "" when there is none.
func RoutePattern(ctx context.Context) string {
	for ex := exchangeFrom(ctx); ex != nil; ex = ex.whole {
		ex.mu.Lock()
		pattern := ex.pattern
		if pattern == "" && ex.req != nil && !ex.detached {
			pattern = ex.req.Pattern
		}
		ex.mu.Unlock()
		if pattern != "" {
			return pattern
		}
	}
	return ""
}

// Live is a handler that can be replaced while it serves: build a new Router, Store it; requests
// in flight finish on the old one. Limiters, circuits and upstreams are the caller's values, so
// their state survives a swap. The zero value answers 503. It is safe for concurrent use.
type Live struct {
	current atomic.Pointer[http.Handler]
}

// Store makes h the handler of every request from now on; nil answers 503 again.
func (l *Live) Store(h http.Handler) {
	if h == nil {
		l.current.Store(nil)
		return
	}
	l.current.Store(&h)
}

// Load returns the handler that was stored last; nil when there is none.
func (l *Live) Load() http.Handler {
	if h := l.current.Load(); h != nil {
		return *h
	}
	return nil
}

// ServeHTTP hands the request to the handler that was stored last.
func (l *Live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := l.current.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	refuse(w, r, &Error{Status: http.StatusServiceUnavailable})
}
