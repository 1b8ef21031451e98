package gateway

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/seed-96248d0c/gateway/internal/routing"
)

// Route is a handler and the conditions on the requests that reach it.
type Route struct {
	Name       string  // for logs and Explain; "" means Pattern. The attribute http.route stays the path template
	Pattern    string  // in ServeMux syntax: [METHOD ][HOST]/[PATH], {name}, {name...}, {$}
	Match      []Match // all must hold
	Handler    http.Handler
	Middleware []Middleware // inside Router.Use's; the first is outermost

	// RawRest allows empty segments and backslashes in what {name...} or a trailing slash takes, which goes on as
	// it came: object keys, or URLs in paths. For example, "/fetch/{url...}" then takes "/fetch/https://host//x".
	// Dot segments are refused all the same, those between backslashes too. The rest of the path keeps all rules.
	// A path that another route would take without its empty segments is redirected as usual.
	RawRest bool
}

// Router matches requests by host and path as http.ServeMux does, then by method, then by predicates. The
// zero value is ready for use. Register all routes before it serves; after that it is safe for concurrent
// use. To change routes later, build another Router and hand it to a Live.
//
// Of the routes that match a request, the first in this order takes it. The order is the Kubernetes Gateway
// API's:
//
//  1. A route with the request's host precedes one with a wildcard host such as "*.example.com", which takes every
//     name below example.com, at any depth, but not example.com itself. Of these the longest precedes. A route
//     without a host comes last.
//  2. The more specific path: a literal segment precedes {name}, which precedes {name...} or a trailing slash.
//  3. The request's method; for HEAD then GET; then no method.
//  4. More header predicates.
//  5. More query predicates.
//  6. The route that was registered first.
//
// A route that fails on method or a predicate does not end the search: the next candidate is tried. So,
// unlike in ServeMux, "GET /" can stand beside "/foo": a GET of "/foo" goes to "/foo", whose path is more
// specific.
//
// Hosts match without regard to case, port and a final dot. The path is matched segment by segment. Each
// segment is decoded on its own, so "%2F" is part of its segment.
//
// The Router itself answers what no route takes, inside Use's middleware:
//
//   - 400 for a path that servers read in different ways: one with a backslash, NUL or a dot segment. The
//     dot segment may be encoded, or stand beside an encoded slash. Route.RawRest allows backslashes.
//   - 400 for a path that would take a different route if its parameters (";x") were dropped, its encoded slashes
//     decoded, or the dots and blanks at the end of its segments cut. Beside "/" and "/admin/", "/admin;x/y",
//     "/admin%2Fy" and "/admin./y" get 400. Where the route stays the same, as that of "/a;x" does here, the
//     path goes on as it came. Segments that the route's pattern spells out are not read anew.
//   - 308 for a path with a run of slashes, to the path without it, and for a path that lacks only its
//     trailing slash, to the path with it. Method and query are kept.
//   - 405 with Allow when only the method does not match, or 204 with Allow when that method is OPTIONS.
//   - 404 otherwise.
//
// A guard on a route cannot protect a backend from readings that go further: one that ignores the case of paths,
// decodes them twice ("%252F"), accepts overlong UTF-8, or takes one letter for another. Such a backend needs the
// guard on all that is forwarded to it.
//
// A CORS preflight passes the middleware of the route that the request to come would take, so that CORS
// middleware such as github.com/rs/cors works in Use, in With and on a single route. Put it before Auth: a
// preflight has no credentials. A preflight that no middleware answers goes to the route that takes OPTIONS, or
// gets the Router's answer.
//
// A handler finds the pattern in Request.Pattern and the wildcards' values by Request.PathValue, as under
// ServeMux.
type Router struct {
	use    []Middleware
	tree   routing.Tree
	routes []*registered                       // by the tree's numbers, which are in the order of registration
	named  map[string]func(*http.Request) bool // each predicate's function, by name

	once     sync.Once
	unrouted http.Handler // Use's middleware around the answer to a request that no route takes
}

// registered is a Route made ready.
type registered struct {
	Route
	handler http.Handler // with all middleware around it

	once      sync.Once
	preflight preflightHandlers
}

// Use adds middleware around every route, and around what the Router answers itself: 404, 405 and the others.
// The first is outermost. It panics after Handle or Add, and on a nil middleware.
func (rt *Router) Use(mw ...Middleware) {
	if len(rt.routes) > 0 {
		panic("gateway: Router.Use: called after Handle or Add")
	}
	rt.use = append(rt.use, checkMiddleware("Router.Use", mw)...)
}

// Handle registers a route. It panics when the pattern is malformed, when the paths of two routes overlap and
// neither is more specific, and when another route has the same host, path, method and predicates. The
// panic's text has file:line of both registrations. "GET /" beside "/foo" is no conflict.
func (rt *Router) Handle(pattern string, h http.Handler, mw ...Middleware) {
	rt.register("Router.Handle", Route{Pattern: pattern, Handler: h, Middleware: mw})
}

// Add registers a route, as Handle does. It also panics when the route can never match, because one with the
// same host, path and method is tried before it and takes every request that its predicates accept.
func (rt *Router) Add(r Route) { rt.register("Router.Add", r) }

// With returns a group of routes that share more middleware, inside Use's: the public routes, or the
// authenticated ones. It panics on a nil middleware.
func (rt *Router) With(mw ...Middleware) *Group {
	return &Group{router: rt, mw: checkMiddleware("Router.With", mw)}
}

// Group registers routes that share middleware. Router.With makes it, and the routes are that Router's.
type Group struct {
	router *Router
	mw     []Middleware
}

// With returns a group that adds middleware inside this group's.
func (g *Group) With(mw ...Middleware) *Group {
	return &Group{router: g.router, mw: slices.Concat(g.mw, checkMiddleware("Group.With", mw))}
}

// Handle registers a route as Router.Handle does. mw is inside the group's middleware.
func (g *Group) Handle(pattern string, h http.Handler, mw ...Middleware) {
	g.router.register("Group.Handle", Route{Pattern: pattern, Handler: h, Middleware: slices.Concat(g.mw, mw)})
}

// Add registers a route as Router.Add does. The route's Middleware is inside the group's.
func (g *Group) Add(r Route) {
	r.Middleware = slices.Concat(g.mw, r.Middleware)
	g.router.register("Group.Add", r)
}

// checkMiddleware returns a copy of mw. It panics when one is nil.
func checkMiddleware(caller string, mw []Middleware) []Middleware {
	for _, m := range mw {
		if m == nil {
			panic("gateway: " + caller + ": nil middleware")
		}
	}
	return slices.Clone(mw)
}

func (rt *Router) register(caller string, r Route) {
	location := callerLocation()
	refuse := func(reason string) {
		panic(fmt.Sprintf("gateway: %s: pattern %q (registered at %s) %s", caller, r.Pattern, location, reason))
	}
	pattern, err := routing.Parse(r.Pattern)
	if err != nil {
		refuse("is malformed: " + err.Error())
	}
	if isNilHandler(r.Handler) {
		refuse("has no handler")
	}
	if r.RawRest && !pattern.HasRest() {
		refuse("has RawRest, but neither {name...} nor a trailing slash")
	}
	r.Middleware = checkMiddleware(caller, r.Middleware)
	if r.Name == "" {
		r.Name = r.Pattern
	}
	if slices.ContainsFunc(r.Match, func(m Match) bool { return m.Name == "" || m.Func == nil }) {
		refuse("has a predicate without name or function")
	}
	if name := rt.twoOfOneName(r.Match); name != "" {
		refuse("has a predicate named " + strconv.Quote(name) + ", as has another predicate with a different function")
	}
	r.Match = uniqueMatches(r.Match)
	handler := compose(caller, rt.use, compose(caller, r.Middleware, r.Handler))
	_, err = rt.tree.Add(routing.Route{Pattern: pattern, Predicates: predicates(r.Match), Raw: r.RawRest, Location: location})
	if err != nil {
		refuse(err.Error())
	}
	rt.routes = append(rt.routes, &registered{Route: r, handler: handler})
}

// twoOfOneName returns the name of a predicate that an earlier one of this Router has, with another function, and ""
// when there is none. Functions are compared by their place in the source: a function that returns Matches, such as
// MatchHeader, makes the same one each time that it gives the same name. (Its code will not do: where the compiler
// inlines the outer function, the inner one has several copies.)
func (rt *Router) twoOfOneName(matches []Match) string {
	for _, m := range matches {
		if named, ok := rt.named[m.Name]; ok && !sameSource(named, m.Func) {
			return m.Name
		}
		if rt.named == nil {
			rt.named = make(map[string]func(*http.Request) bool)
		}
		rt.named[m.Name] = m.Func
	}
	return ""
}

// sameSource reports whether two functions are in one place in the source.
func sameSource(f, g func(*http.Request) bool) bool {
	return reflect.ValueOf(f).Pointer() == reflect.ValueOf(g).Pointer() || sourceOf(f) == sourceOf(g)
}

// sourceOf returns where f is in the source, or its name when it is a method's.
func sourceOf(f func(*http.Request) bool) string {
	code := runtime.FuncForPC(reflect.ValueOf(f).Pointer())
	file, line := code.FileLine(code.Entry())
	if file == "<autogenerated>" {
		return code.Name()
	}
	return file + ":" + strconv.Itoa(line)
}

// isNilHandler reports whether h is nil or a nil function, such as http.HandlerFunc(nil).
func isNilHandler(h http.Handler) bool {
	if h == nil {
		return true
	}
	v := reflect.ValueOf(h)
	return v.Kind() == reflect.Func && v.IsNil()
}

// compose returns h inside mw. It panics when a middleware returns nil.
func compose(caller string, mw []Middleware, h http.Handler) http.Handler {
	if h = Chain(mw...)(h); isNilHandler(h) {
		panic("gateway: " + caller + ": a middleware returned nil")
	}
	return h
}

// callerLocation returns the file:line from which this package was called.
func callerLocation() string {
	var pcs [16]uintptr
	// In general, the caller stands behind callerLocation, register and Add, and nothing more is looked at.
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs[:1])])
	if f, _ := frames.Next(); !strings.HasPrefix(f.Function, ownPackage) || strings.HasSuffix(f.File, "_test.go") {
		return f.File + ":" + strconv.Itoa(f.Line)
	}
	frames = runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
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

// ownPackage is the prefix of the names of this package's functions.
var ownPackage = func() string {
	pc, _, _, _ := runtime.Caller(0)
	name := runtime.FuncForPC(pc).Name()
	dir := strings.LastIndexByte(name, '/') + 1
	return name[:dir+strings.IndexByte(name[dir:], '.')+1]
}()

// Routes yields the routes by precedence: of two routes that match the same request, the one that takes it
// comes first. Routes of a host come before those without one, and hosts are in alphabetical order. Name is
// always set, and Middleware includes the groups'. The slices must not be changed.
func (rt *Router) Routes() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for n := range rt.tree.All() {
			if !yield(rt.routes[n].Route) {
				return
			}
		}
	}
}

// ServeHTTP hands the request to the route that matches it. The route is found before Use's middleware runs,
// so that the middleware sees it.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var s routing.Search
	d := rt.tree.Decide(r, &s)
	if r.Method == http.MethodOptions && rt.servePreflight(w, r, d, &s) {
		return
	}
	if d.Status != http.StatusOK {
		rt.once.Do(func() { rt.unrouted = compose("Router", rt.use, http.HandlerFunc(serveUnrouted)) })
		serveAnswer(w, r, rt.unrouted, &unrouted{d})
		return
	}
	route := rt.routes[d.Route]
	rw, r := route.takes(w, r, &s)
	route.handler.ServeHTTP(rw, r)
}

// takes records that the route takes r. s has found it.
func (route *registered) takes(w http.ResponseWriter, r *http.Request, s *routing.Search) (*responseWriter, *http.Request) {
	// As in ServeMux, these are set on the request that came in, so that outer handlers can read them
	// afterwards.
	r.Pattern = route.Pattern
	for name, value := range s.PathValues() {
		r.SetPathValue(name, value)
	}
	ex, rw, r := enter(w, r)
	ex.routed(route.Name, route.Pattern, route.RawRest)
	return rw, r
}

// servePreflight handles r, an OPTIONS request for which the decision is d, if it is a CORS preflight: it hands r
// to the middleware of the route that the request to come would take. It reports whether it did.
func (rt *Router) servePreflight(w http.ResponseWriter, r *http.Request, d routing.Decision, s *routing.Search) bool {
	methods := r.Header["Access-Control-Request-Method"]
	if len(methods) != 1 || len(r.Header["Origin"]) == 0 {
		return false
	}
	taken := d.Status == http.StatusOK
	if taken && rt.tree.IsFor(d.Route, http.MethodOptions) {
		return false // that route was made for it
	}
	n, ok := rt.tree.Preflight(r, methods[0])
	if !ok || taken && n == d.Route {
		return false
	}
	var answer http.Handler = &unrouted{d}
	if taken {
		answer = rt.routes[d.Route].preflights(rt).own
		w, r = rt.routes[d.Route].takes(w, r, s)
	}
	serveAnswer(w, r, rt.routes[n].preflights(rt).outer, answer)
	return true
}

// preflightHandlers are what a route has for CORS preflights.
type preflightHandlers struct {
	outer http.Handler // all middleware around serveUnrouted
	own   http.Handler // the route's handler with its own middleware; it answers inside another route's outer
}

// preflights returns the handlers, which are made when they are first needed.
func (route *registered) preflights(rt *Router) *preflightHandlers {
	route.once.Do(func() {
		route.preflight.outer = compose("Router", rt.use, compose("Router", route.Middleware, http.HandlerFunc(serveUnrouted)))
		route.preflight.own = compose("Router", route.Middleware, route.Handler)
	})
	return &route.preflight
}

// serveAnswer hands r to h, which is serveUnrouted inside middleware. What the middleware does not answer, answer
// does.
func serveAnswer(w http.ResponseWriter, r *http.Request, h, answer http.Handler) {
	ex, rw, r := enter(w, r)
	ex.mu.Lock()
	ex.unrouted = answer
	ex.mu.Unlock()
	h.ServeHTTP(rw, r)
}

// routed records the route, unless an outer Router has recorded one, and whether the path may be raw.
func (ex *exchange) routed(name, pattern string, rawRest bool) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if ex.pattern == "" {
			ex.route, ex.pattern = name, pattern
		}
		ex.rawRest = rawRest
		ex.mu.Unlock()
	}
}

// serveUnrouted answers a request that no route takes with the answer that the Router left in the record.
func serveUnrouted(w http.ResponseWriter, r *http.Request) {
	var answer http.Handler
	if ex := exchangeFrom(r.Context()); ex != nil { // nil when a middleware has replaced the context
		ex.mu.Lock()
		answer = ex.unrouted
		ex.mu.Unlock()
	}
	if answer == nil {
		answer = new(unrouted)
	}
	answer.ServeHTTP(w, r)
}

// unrouted answers a request that no route takes. The zero value answers 404.
type unrouted struct{ routing.Decision }

func (u *unrouted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch u.Status {
	case http.StatusNoContent:
		if u.Allow != "" {
			w.Header().Set("Allow", u.Allow)
		}
		w.WriteHeader(u.Status)
	case http.StatusPermanentRedirect:
		w.Header().Set("Location", u.Location)
		w.WriteHeader(u.Status)
	case http.StatusMethodNotAllowed:
		refuse(w, r, &Error{Status: u.Status, Header: http.Header{"Allow": {u.Allow}}, Err: ErrNoRoute})
	case http.StatusBadRequest:
		refuse(w, r, &Error{Status: u.Status, Detail: "The path has " + u.Reason + ".", Err: ErrNoRoute})
	default:
		refuse(w, r, ErrNoRoute)
	}
}

// RoutePattern returns the pattern of the route that took the request, or "" when there is none. Middleware
// outside the Router gets it after next has returned, and only when a middleware of this package is outside
// the Router too. Where Routers nest, it is the outermost one's. Under a foreign mux that sets
// Request.Pattern, it is that one.
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

// Live is a handler that can be replaced while it serves: build a new Router and Store it. Requests in flight
// finish on the old one. Limiters, circuits and upstreams are the caller's values, so their state survives
// when the new Router uses them. The zero value answers 503. It is safe for concurrent use.
type Live struct {
	current atomic.Pointer[http.Handler]
}

// Store makes h the handler of every request from now on. After a nil h, the answer is 503 again.
func (l *Live) Store(h http.Handler) {
	if h == nil {
		l.current.Store(nil)
		return
	}
	l.current.Store(&h)
}

// Load returns the handler that was stored last, or nil when there is none.
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
