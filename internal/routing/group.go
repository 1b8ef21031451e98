package routing

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// pathRoutes holds the routes whose patterns match the same paths, by precedence. Methods of which neither
// covers the other are in alphabetical order.
type pathRoutes []group

// group holds the routes of one path with the same method and the same number of Header and Query
// predicates. So the one that was added first precedes.
type group struct {
	method           string
	headers, queries int
	routes           []*route
	index            *index // nil while there are few routes
}

// compare returns a negative number when the routes of g precede those of other.
func (g *group) compare(other *group) int {
	return cmp.Or(
		cmp.Compare(methodRank(g.method), methodRank(other.method)), strings.Compare(g.method, other.method),
		cmp.Compare(other.headers, g.headers), cmp.Compare(other.queries, g.queries))
}

// methodRank puts HEAD before GET, which covers it, and both before a pattern without a method.
func methodRank(method string) int {
	switch method {
	case http.MethodHead:
		return 0
	case "":
		return 2
	}
	return 1
}

func (routes *pathRoutes) add(rt *route) {
	of := group{method: rt.Pattern.method, headers: rt.headers, queries: rt.queries}
	i, found := slices.BinarySearchFunc(*routes, of, func(g, of group) int { return g.compare(&of) })
	if !found {
		*routes = slices.Insert(*routes, i, of)
	}
	g := &(*routes)[i]
	g.routes = append(g.routes, rt)
	switch {
	case g.index != nil:
		g.index.add(rt)
	case len(g.routes) > maxScan:
		g.index = newIndex()
		for _, rt := range g.routes {
			g.index.add(rt)
		}
	}
}

// covering returns a route that is tried before rt, with the same method, and accepts every request that rt
// accepts. It returns nil when there is none. rt is not among the routes yet.
func (routes pathRoutes) covering(rt *route) *route {
	of := group{method: rt.Pattern.method, headers: rt.headers, queries: rt.queries}
	for i := range routes {
		g := &routes[i]
		if g.method != of.method || g.compare(&of) > 0 {
			continue
		}
		if g.index != nil {
			if other := g.index.covering(rt); other != nil {
				return other
			}
			continue
		}
		for _, other := range g.routes {
			if other.covers(rt) {
				return other
			}
		}
	}
	return nil
}

func (routes pathRoutes) all(yield func(*route) bool) bool {
	for i := range routes {
		for _, rt := range routes[i].routes {
			if !yield(rt) {
				return false
			}
		}
	}
	return true
}

// index finds routes of a group without testing each of them.
type index struct {
	// fields finds the routes by one of their predicates that a header field has a certain value: by name of
	// the field, then by value. Each route is in one list. The lists are in the order of the group.
	fields map[string]map[string][]*route
	others []*route // routes without such a predicate

	// names finds each route by the name of one of its predicates, or "" when it has none.
	names map[string][]*route
}

func newIndex() *index {
	return &index{fields: make(map[string]map[string][]*route), names: make(map[string][]*route)}
}

// add puts rt into the lists. Of several predicates it takes the one that fewest routes have so far.
func (x *index) add(rt *route) {
	var literal *Predicate
	name, fewest, rarest := "", -1, -1
	for i := range rt.Predicates {
		p := &rt.Predicates[i]
		if n := len(x.names[p.Name]); rarest < 0 || n < rarest {
			name, rarest = p.Name, n
		}
		if p.Field == "" {
			continue
		}
		if n := len(x.fields[p.Field][p.Value]); fewest < 0 || n < fewest {
			literal, fewest = p, n
		}
	}
	x.names[name] = append(x.names[name], rt)
	if literal == nil {
		x.others = append(x.others, rt)
		return
	}
	values := x.fields[literal.Field]
	if values == nil {
		values = make(map[string][]*route)
		x.fields[literal.Field] = values
	}
	values[literal.Value] = append(values[literal.Value], rt)
}

func (x *index) covering(rt *route) *route {
	for _, other := range x.names[""] {
		return other // it has no predicates
	}
	for _, p := range rt.Predicates {
		for _, other := range x.names[p.Name] {
			if other.covers(rt) {
				return other
			}
		}
	}
	return nil
}

// candidates appends to lists the lists of the routes that may accept a request with these fields. No list is
// appended twice.
func (x *index) candidates(lists [][]*route, h http.Header) [][]*route {
	if len(x.others) > 0 {
		lists = append(lists, x.others)
	}
	if len(h) < len(x.fields) {
		for field, lines := range h {
			lists = appendLists(lists, x.fields[field], lines)
		}
	} else {
		for field, values := range x.fields {
			lists = appendLists(lists, values, h[field])
		}
	}
	if len(lists) > 1 { // a field with the same value on many lines must not multiply the work
		slices.SortFunc(lists, func(a, b []*route) int { return a[0].number - b[0].number })
		lists = slices.CompactFunc(lists, func(a, b []*route) bool { return a[0] == b[0] })
	}
	return lists
}

func appendLists(lists [][]*route, values map[string][]*route, lines []string) [][]*route {
	if len(values) > 0 {
		for _, line := range lines {
			if list := values[line]; len(list) > 0 {
				lists = append(lists, list)
			}
		}
	}
	return lists
}

// maxMerge is the number of lists up to which the search for the lowest number is faster than sorting.
const maxMerge = 8

// tryIndexed is Search.match for a group with an index.
func (s *Search) tryIndexed(g *group, covers, exact bool) bool {
	var space [4][]*route
	lists := g.index.candidates(space[:0], s.req.Header)
	if len(lists) > maxMerge {
		joined := slices.Concat(lists...)
		slices.SortFunc(joined, func(a, b *route) int { return a.number - b.number })
		lists = append(lists[:0], joined)
	}
	for {
		first := -1
		for i, list := range lists {
			if len(list) > 0 && (first < 0 || list[0].number < lists[first][0].number) {
				first = i
			}
		}
		if first < 0 {
			return false
		}
		rt := lists[first][0]
		lists[first] = lists[first][1:]
		if s.attempt(rt, covers, exact) {
			return true
		}
	}
}
