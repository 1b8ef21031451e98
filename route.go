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

// Route is a handler with the conditions that a request must meet to reach it.
type Route struct {
	Name       string       // name in logs, metrics and Explain; "" means Pattern
	Pattern    string       // [METHOD ][HOST]/[PATH] as for http.ServeMux, with {name}, {name...}, {$}; HOST may be *.example.com
	Match      []Match      // predicates, all of which must hold
	Handler    http.Handler // required
	Middleware []Middleware // wraps Handler, inside the middleware of Router.Use; the first is outermost

	// RawRest allows empty segments and backslashes in the part of the path that {name...} or a trailing
	// slash matches, and forwards them unchanged. It is for paths that contain object keys or URLs:
	// "/fetch/{url...}" then matches "/fetch/https://host//x". Dot segments are refused in that part as well,
	// including those between backslashes. The usual rules hold for the rest of the path. If another route
	// matches the path without its empty segments, the path is redirected as usual.
	RawRest bool
}

// Router matches requests to routes: by host and path as http.ServeMux does, then by method, then by
// predicates. The zero value is ready for use. Register all routes before it serves. After that it is safe
// for concurrent use. To change routes later, build another Router and pass it to Live.Store.
//
// If several routes match a request, the first in this order is used. It is the order of the Kubernetes
// Gateway API:
//
//  1. A route with the request's host, then the longest wildcard host, then no host. The wildcard
//     "*.example.com" matches all names below example.com, at any depth, but not example.com itself.
//  2. The more specific path: a literal segment, then {name}, then {name...} or a trailing slash.
//  3. A route with the request's method, then for HEAD one with GET, then one without a method.
//  4. More header predicates.
//  5. More query predicates.
//  6. The route that was registered first.
//
// A route that fails on method or a predicate does not end the search: the next candidate is tried. So,
// unlike in ServeMux, "GET /" and "/foo" do not conflict: a GET of "/foo" goes to "/foo", whose path is more
// specific.
//
// Hosts are compared without regard to case, port and a final dot. A path is split into segments before they
// are decoded, so "%2F" does not separate segments.
//
// The Router itself answers a request that no route matches, inside the middleware of Use:
//
//   - 400 for a path that servers interpret differently: with a backslash, NUL, or a dot segment. Dot
//     segments are refused also when they are encoded or next to an encoded slash. Route.RawRest allows
//     backslashes.
//   - 400 for a path that a backend could take for the path of another route, by dropping its parameters
//     (";x"), decoding its encoded slashes, or trimming dots and spaces from the end of its segments. For
//     example, with the routes "/" and "/admin/", the paths "/admin;x/y", "/admin%2Fy" and "/admin./y" are
//     answered with 400, and "/a;x" is forwarded unchanged, since "/a" has the same route. Literal segments
//     of the route's pattern are not checked.
//   - 308 for a path with repeated slashes, to the path with single slashes, and for a path that lacks only a
//     trailing slash, to the path with it. Method and query are kept.
//   - 405 with Allow if only the method does not match, or 204 with Allow if that method is OPTIONS. With the
//     routes "POST /pay" and "/", the request "post /pay" also gets 405, because some servers treat it as a
//     POST.
//   - 404 otherwise.
//
// Middleware on one route, such as Auth, is not enough for a backend that interprets paths more freely: one
// that ignores case, decodes twice ("%252F"), accepts overlong UTF-8, or takes one letter for another. For
// such a backend, put the middleware on every route that leads to it.
//
// A CORS preflight passes the middleware of the route that the announced request would match. So CORS
// middleware, such as github.com/rs/cors, works in Use, in With and on a single route. Put it before Auth,
// because a preflight has no credentials. A preflight that no middleware answers goes to the route for
// OPTIONS, if there is one, or is answered by the Router.
//
// As with ServeMux, a handler gets the pattern from Request.Pattern and the values of wildcards from
// Request.PathValue.
type Router struct {
	use    []Middleware
	tree   routing.Tree
	routes []*registered                       // by the tree's numbers, which are in the order of registration
	named  map[string]func(*http.Request) bool // each predicate's function, by name

	once     sync.Once
	unrouted http.Handler // serveUnrouted inside the middleware of Use
}

// registered is a Route with its composed handlers.
type registered struct {
	Route
	handler http.Handler // Route.Handler inside all middleware

	once      sync.Once
	preflight preflightHandlers
}

// Use adds middleware around every route, and around the answers of the Router itself, such as 404 and 405.
// The first is outermost. Use panics after Handle or Add, and on a nil middleware.
func (rt *Router) Use(mw ...Middleware) {
	if len(rt.routes) > 0 {
		panic("gateway: Router.Use: called after Handle or Add")
	}
	rt.use = append(rt.use, checkMiddleware("Router.Use", mw)...)
}

// Handle registers a route. mw wraps h, inside the middleware of Use. Handle panics when the pattern is
// malformed, when the paths of two routes overlap and neither is more specific, and when another route has
// the same host, path, method and predicates. The panic's text has the file:line of both registrations. "GET
// /" and "/foo" do not conflict.
func (rt *Router) Handle(pattern string, h http.Handler, mw ...Middleware) {
	rt.register("Router.Handle", Route{Pattern: pattern, Handler: h, Middleware: mw})
}

// Add registers a route and panics as Handle does. It also panics when the route can never be reached,
// because another with the same host, path and method is tried first and matches every request that this one
// matches.
func (rt *Router) Add(r Route) { rt.register("Router.Add", r) }

// With returns a group of routes that share more middleware, inside that of Use. For example, all routes that
// need authentication are a group. With panics on a nil middleware.
func (rt *Router) With(mw ...Middleware) *Group {
	return &Group{router: rt, mw: checkMiddleware("Router.With", mw)}
}

// Group registers routes that share middleware in a Router. Make a Group with Router.With.
type Group struct {
	router *Router
	mw     []Middleware
}

// With returns a group with more middleware, inside that of g. It panics on a nil middleware.
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
	if name := rt.conflictingMatch(r.Match); name != "" {
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

// conflictingMatch returns the name of a predicate for which this Router already has another function, or ""
// if there is none. It compares functions by their place in the source: a function that returns Matches, such
// as MatchHeader, returns a Func from the same place for each Match with the same name. Code pointers would
// not do: if the compiler inlines MatchHeader, its inner function has several copies.
func (rt *Router) conflictingMatch(matches []Match) string {
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

// sameSource reports whether two functions are from the same place in the source.
func sameSource(f, g func(*http.Request) bool) bool {
	return reflect.ValueOf(f).Pointer() == reflect.ValueOf(g).Pointer() || sourceOf(f) == sourceOf(g)
}

// sourceOf returns the file:line of f, or its name if it is a method value.
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
	// Usually the caller is the frame after callerLocation, register and Add, so only that one is read.
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

// Routes yields the routes by precedence: of two routes that match the same request, the one that is used
// comes first. Routes with a host come before those without one, and hosts are in alphabetical order. Name is
// always set, and Middleware includes that of groups. The slices must not be modified.
func (rt *Router) Routes() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for n := range rt.tree.All() {
			if !yield(rt.routes[n].Route) {
				return
			}
		}
	}
}

// ServeHTTP calls the handler of the route that matches the request. The route is determined before the
// middleware of Use runs, so that this middleware can use RoutePattern.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, w, r := rt.handler(w, r)
	if h != nil {
		h.ServeHTTP(w, r)
	}
}

// handler returns the handler of the matching route, and its arguments. It returns nil if it has answered the
// request itself. It does not call the handler, so that its large variables are not on the stack while the
// handler runs.
func (rt *Router) handler(w http.ResponseWriter, r *http.Request) (http.Handler, http.ResponseWriter, *http.Request) {
	var s routing.Search
	d := rt.tree.Decide(r, &s)
	if r.Method == http.MethodOptions && rt.servePreflight(w, r, d, &s) {
		return nil, w, r
	}
	if d.Status != http.StatusOK {
		rt.once.Do(func() { rt.unrouted = compose("Router", rt.use, http.HandlerFunc(serveUnrouted)) })
		serveAnswer(w, r, rt.unrouted, &unrouted{d})
		return nil, w, r
	}
	route := rt.routes[d.Route]
	rw, r := route.takes(w, r, &s)
	return route.handler, rw, r
}

// takes records that r goes to the route. s has the path values.
func (route *registered) takes(w http.ResponseWriter, r *http.Request, s *routing.Search) (*responseWriter, *http.Request) {
	// As in ServeMux, these are set on the incoming request, so that outer handlers can read them afterwards.
	r.Pattern = route.Pattern
	for name, value := range s.PathValues() {
		r.SetPathValue(name, value)
	}
	ex, rw, r := enter(w, r)
	ex.routed(route.Name, route.Pattern, route.RawRest)
	return rw, r
}

// servePreflight passes r, an OPTIONS request, to the middleware of the route that the announced request
// would match, if r is a CORS preflight. It reports whether it did. d is the decision about r itself.
func (rt *Router) servePreflight(w http.ResponseWriter, r *http.Request, d routing.Decision, s *routing.Search) bool {
	methods := r.Header["Access-Control-Request-Method"]
	if len(methods) != 1 || len(r.Header["Origin"]) == 0 {
		return false
	}
	taken := d.Status == http.StatusOK
	if taken && rt.tree.IsFor(d.Route, http.MethodOptions) {
		return false // there is a route for OPTIONS
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

// preflightHandlers are the handlers of a route for CORS preflights.
type preflightHandlers struct {
	outer http.Handler // serveUnrouted inside all middleware
	own   http.Handler // the route's handler inside its own middleware; called inside the outer of another route
}

// preflights returns the route's handlers for preflights. The first call makes them.
func (route *registered) preflights(rt *Router) *preflightHandlers {
	route.once.Do(func() {
		route.preflight.outer = compose("Router", rt.use, compose("Router", route.Middleware, http.HandlerFunc(serveUnrouted)))
		route.preflight.own = compose("Router", route.Middleware, route.Handler)
	})
	return &route.preflight
}

// serveAnswer passes r to h, which is serveUnrouted inside middleware. If the middleware does not answer r,
// serveUnrouted passes it to answer.
func serveAnswer(w http.ResponseWriter, r *http.Request, h, answer http.Handler) {
	ex, rw, r := enter(w, r)
	ex.mu.Lock()
	ex.unrouted = answer
	ex.mu.Unlock()
	h.ServeHTTP(rw, r)
}

// routed records the route, unless an outer Router has recorded one. It also records whether the route has
// RawRest.
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

// serveUnrouted answers a request with the handler that serveAnswer stored in the record.
func serveUnrouted(w http.ResponseWriter, r *http.Request) {
	var answer http.Handler
	if ex := exchangeFrom(r.Context()); ex != nil { // nil if a middleware has replaced the context
		ex.mu.Lock()
		answer = ex.unrouted
		ex.mu.Unlock()
	}
	if answer == nil {
		answer = new(unrouted)
	}
	answer.ServeHTTP(w, r)
}

// unrouted answers a request that no route matches. The zero value answers 404.
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

// RoutePattern returns the pattern of the route that matched the request, or "" if there is none. Middleware
// outside the Router gets the pattern only after its next handler has returned, and only if a middleware of
// this package is outside the Router as well. With nested Routers, it is the pattern of the outermost one.
// Under another mux that sets Request.Pattern, it is that pattern.
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

// Live is a handler that passes requests to another one, which can be replaced while it serves: build a new
// Router and Store it. Requests in flight finish on the old one. To keep the state of limiters, circuits and
// upstreams, use the same values in the new Router. The zero value answers 503. A Live is safe for concurrent
// use and must not be copied.
type Live struct {
	current atomic.Pointer[http.Handler]
}

// Store makes h the handler of all further requests. With a nil h, they are answered with 503.
func (l *Live) Store(h http.Handler) {
	if h == nil {
		l.current.Store(nil)
		return
	}
	l.current.Store(&h)
}

// Load returns the current handler, or nil if there is none.
func (l *Live) Load() http.Handler {
	if h := l.current.Load(); h != nil {
		return *h
	}
	return nil
}

// ServeHTTP calls the current handler.
func (l *Live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := l.current.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	refuse(w, r, &Error{Status: http.StatusServiceUnavailable})
}
