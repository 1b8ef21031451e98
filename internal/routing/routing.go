// Package routing finds the route for a request. A Tree holds the patterns and predicates of routes. It
// identifies a route by its number, in the order in which routes were added. Decide returns the number of the
// route for a request or, if no route matches, the status of the answer. Survey makes the same decision and
// explains it.
//
// The package depends on requests, but not on handlers or responses.
package routing

import (
	"fmt"
	"iter"
	"net/http"
	"slices"
)

// Route describes a route to a Tree.
type Route struct {
	Pattern    *Pattern
	Predicates []Predicate // all must hold; names are unique
	Raw        bool        // what {name...} or a trailing slash takes may have empty segments and backslashes
	Location   string      // file:line of the registration, for error texts
}

// Predicate is a condition on a request. Two predicates with one name are the same condition.
type Predicate struct {
	Name  string
	Kind  Kind
	Holds func(*http.Request) bool

	// If Field is set, Holds reports whether one line of that header field equals Value. Such routes are
	// found by an index instead of one by one.
	Field, Value string
}

// Kind is what the order of routes counts: a route with more Header predicates precedes one with fewer, and
// then one with more Query predicates.
type Kind uint8

const (
	Other Kind = iota
	Header
	Query
)

// Tree holds routes. The zero value is empty and ready for use. It is safe for concurrent use once it is
// built.
type Tree struct {
	routes []*route // by number
	hosts  hosts
	raw    bool // there is a Raw route
}

// route is a Route prepared for searching.
type route struct {
	Route
	number           int
	headers, queries int // number of predicates
	wildcards        []wildcard
}

// wildcard is a named wildcard of a pattern.
type wildcard struct {
	name string
	at   int // the number of its segment
	rest bool
}

func newRoute(r Route, number int) *route {
	rt := &route{Route: r, number: number}
	for _, p := range r.Predicates {
		switch p.Kind {
		case Header:
			rt.headers++
		case Query:
			rt.queries++
		}
	}
	for i, s := range r.Pattern.segments {
		if s.kind >= wildSegment && s.text != "" {
			rt.wildcards = append(rt.wildcards, wildcard{name: s.text, at: i, rest: s.kind == restSegment})
		}
	}
	return rt
}

// failed returns the name of the first predicate that does not hold, or "" when all hold. Predicates of the
// kind assumed are not asked.
func (rt *route) failed(r *http.Request, assumed Kind) string {
	for i := range rt.Predicates {
		if p := &rt.Predicates[i]; (assumed == Other || p.Kind != assumed) && !p.Holds(r) {
			return p.Name
		}
	}
	return ""
}

// covers reports whether rt's predicates accept every request that other's accept: each of rt's is one of
// other's.
func (rt *route) covers(other *route) bool {
	for _, p := range rt.Predicates {
		if !slices.ContainsFunc(other.Predicates, func(o Predicate) bool { return o.Name == p.Name }) {
			return false
		}
	}
	return true
}

// Add puts a route into the tree and returns its number: 0 for the first, then 1, and so on. The error says
// why the route conflicts with another one; its text continues a sentence whose subject is the route. The
// tree is then unchanged.
func (t *Tree) Add(r Route) (number int, err error) {
	rt := newRoute(r, len(t.routes))
	host := t.hosts.of(r.Pattern.host)
	if err := host.check(rt); err != nil {
		return 0, err
	}
	t.hosts.put(r.Pattern.host, host)
	host.add(rt)
	t.routes = append(t.routes, rt)
	t.raw = t.raw || r.Raw
	return rt.number, nil
}

// check returns an error when rt conflicts with a route of the tree, or when one of them takes all of its
// requests.
func (t *hostTree) check(rt *route) error {
	if other := t.conflict(rt); other != nil {
		a, b := rt.Pattern, other.Pattern
		return fmt.Errorf(`conflicts with pattern %q (registered at %s): both match some paths, like %q, but neither is more specific.
%[1]q matches %[4]q, but %[5]q does not.
%[5]q matches %[6]q, but %[1]q does not`, b.text, other.Location, samePath(a, b), onlyPath(b, a), a.text, onlyPath(a, b))
	}
	other := t.samePaths(rt.Pattern).covering(rt)
	switch {
	case other == nil:
		return nil
	case rt.covers(other):
		return fmt.Errorf("matches the same requests as pattern %q (registered at %s)", other.Pattern.text, other.Location)
	}
	return fmt.Errorf("can never match: pattern %q (registered at %s) is tried before it and takes every such request; "+
		"register that one later", other.Pattern.text, other.Location)
}

// All yields the numbers of the routes by precedence: of two routes that match the same request, the one that
// takes it comes first. Routes of a host come before those of a wildcard, and those before the ones without a
// host. Hosts are in alphabetical order, wildcards from the longest to the shortest.
func (t *Tree) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		number := func(rt *route) bool { return yield(rt.number) }
		for host := range t.hosts.all() {
			if !host.root.all(number) {
				return
			}
		}
	}
}
