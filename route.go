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
}

// Router matches requests by host and path as http.ServeMux does, then by method, then by predicates. The
// zero value is ready for use. Register all routes before it serves; after that it is safe for concurrent
// use. To change routes later, build another Router and hand it to a Live.
//
// Of the routes that match a request, the first in this order takes it. The order is the Kubernetes Gateway
// API's:
//
//  1. A route with the request's host precedes one without a host.
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
//     dot segment may be encoded, or stand beside an encoded slash.
//   - 308 for a path with a run of slashes, to the path without it, and for a path that lacks only its
//     trailing slash, to the path with it. Method and query are kept.
//   - 405 with Allow when only the method does not match, or 204 with Allow when that method is OPTIONS.
//   - 404 otherwise.
//
// A handler finds the pattern in Request.Pattern and the wildcards' values by Request.PathValue, as under
// ServeMux.
type Router struct {
	use    []Middleware
	tree   routing.Tree
	routes []*registered     // by the tree's numbers, which are in the order of registration
	named  map[string]string // where each predicate's function is in the source, by name

	once     sync.Once
	unrouted http.Handler // Use's middleware around the answer to a request that no route takes
}

// registered is a Route made ready.
type registered struct {
	Route
	handler http.Handler // with all middleware around it
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
	if r.Handler == nil {
		refuse("has no handler")
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
	_, err = rt.tree.Add(routing.Route{Pattern: pattern, Predicates: predicates(r.Match), Location: location})
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
		code := sourceOf(m.Func)
		if named, ok := rt.named[m.Name]; ok && named != code {
			return m.Name
		}
		if rt.named == nil {
			rt.named = make(map[string]string)
		}
		rt.named[m.Name] = code
	}
	return ""
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

// uniqueMatches returns the first of the predicates of each name.
func uniqueMatches(matches []Match) (unique []Match) {
	for _, m := range matches {
		if !slices.ContainsFunc(unique, func(o Match) bool { return o.Name == m.Name }) {
			unique = append(unique, m)
		}
	}
	return unique
}

// predicates returns the matches as the tree has them.
func predicates(matches []Match) (list []routing.Predicate) {
	for _, m := range matches {
		list = append(list, routing.Predicate{Name: m.Name, Kind: m.kind, Holds: m.Func})
	}
	return list
}

// compose returns h inside mw. It panics when a middleware returns nil.
func compose(caller string, mw []Middleware, h http.Handler) http.Handler {
	if h = Chain(mw...)(h); h == nil {
		panic("gateway: " + caller + ": a middleware returned nil")
	}
	return h
}

// callerLocation returns the file:line from which this package was called.
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
	if d.Status != http.StatusOK {
		ex, rw, r := enter(w, r)
		ex.mu.Lock()
		ex.unrouted = &unrouted{d}
		ex.mu.Unlock()
		rt.once.Do(func() { rt.unrouted = compose("Router", rt.use, http.HandlerFunc(serveUnrouted)) })
		rt.unrouted.ServeHTTP(rw, r)
		return
	}
	// As in ServeMux, these are set on the request that came in, so that outer handlers can read them
	// afterwards.
	route := rt.routes[d.Route]
	r.Pattern = route.Pattern
	for name, value := range s.PathValues() {
		r.SetPathValue(name, value)
	}
	ex, rw, r := enter(w, r)
	ex.routed(route.Name, route.Pattern)
	route.handler.ServeHTTP(rw, r)
}

// routed records the route, unless an outer Router has recorded one.
func (ex *exchange) routed(name, pattern string) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if ex.pattern == "" {
			ex.route, ex.pattern = name, pattern
		}
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
