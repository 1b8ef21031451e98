package gateway

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// routeTree holds the routes of one host. Its levels are the segments of the path; walking it depth
// first, literals before wildcards before what takes all that is left, meets the routes that match a path
// from the most specific to the least, because two patterns of which neither is more specific are refused.
//
// Method and predicates are asked at the end of a path, so a path that is more specific wins whatever
// the method, and one that has no route for the method leaves the request to the next.
type routeTree struct {
	root routeNode

	// fixed finds the end of a path without wildcards at once. A request for one of these needs no
	// look at the tree, nor at its path's cleanliness, for patterns are clean.
	fixed map[string]*routeEnd

	// slashes: some pattern other than "/" ends in a slash, so a path without one may be redirected.
	slashes bool
}

// routeNode is a place between segments.
type routeNode struct {
	literals []literalChild // in order of registration
	index    map[string]*routeNode
	wild     *routeNode // behind {name}
	end      routeEnd   // the path ends here
	slash    routeEnd   // it ends here, with a slash: {$}
	rest     routeEnd   // anything may follow
	varied   bool       // a wildcard stands somewhere below
}

type literalChild struct {
	text string
	node *routeNode
}

// routeEnd holds the routes of patterns that match the same paths, by precedence. Methods of which none
// takes another's requests are in alphabetical order.
type routeEnd []routeSlot

type routeSlot struct {
	method string
	route  *routeEntry
}

// manyLiterals is from how many children on a map finds one sooner than a look at each.
const manyLiterals = 8

func (n *routeNode) literal(text string) *routeNode {
	if n.index != nil {
		return n.index[text]
	}
	for i := range n.literals {
		if n.literals[i].text == text {
			return n.literals[i].node
		}
	}
	return nil
}

// sameAs returns the routes whose patterns match the same paths as p.
func (t *routeTree) sameAs(p *pathPattern) routeEnd {
	n := &t.root
	for _, s := range p.segments {
		switch s.kind {
		case literalSegment:
			n = n.literal(s.text)
		case wildSegment:
			n = n.wild
		case slashSegment:
			return n.slash
		case restSegment:
			return n.rest
		}
		if n == nil {
			return nil
		}
	}
	return n.end
}

// add puts a route in, which must not conflict with another.
func (t *routeTree) add(rt *routeEntry) {
	segments := rt.pattern.segments
	lastWild := -1
	for i, s := range segments {
		if s.kind >= wildSegment {
			lastWild = i
		}
	}
	n := &t.root
	last := segments[len(segments)-1]
	for i, s := range segments[:len(segments)-1] {
		n.varied = n.varied || i <= lastWild
		n = n.grow(s)
	}
	n.varied = n.varied || last.kind >= wildSegment
	var end *routeEnd
	switch last.kind {
	case slashSegment:
		end = &n.slash
	case restSegment:
		end = &n.rest
	default:
		n = n.grow(last)
		end = &n.end
	}
	end.add(rt)

	if (last.kind == slashSegment || last.kind == restSegment) && len(segments) > 1 {
		t.slashes = true
	}
	if key, ok := rt.pattern.fixedPath(); ok {
		if t.fixed == nil {
			t.fixed = make(map[string]*routeEnd)
		}
		t.fixed[key] = end
	}
}

// grow returns the node behind s, a literal or a wildcard for one segment.
func (n *routeNode) grow(s pathSegment) *routeNode {
	if s.kind == wildSegment {
		if n.wild == nil {
			n.wild = new(routeNode)
		}
		return n.wild
	}
	if c := n.literal(s.text); c != nil {
		return c
	}
	c := new(routeNode)
	n.literals = append(n.literals, literalChild{s.text, c})
	switch {
	case n.index != nil:
		n.index[s.text] = c
	case len(n.literals) > manyLiterals:
		n.index = make(map[string]*routeNode, 2*manyLiterals)
		for _, l := range n.literals {
			n.index[l.text] = l.node
		}
	}
	return c
}

// fixedPath returns the one path that p matches, decoded, if it is one and needs no encoded slash.
func (p *pathPattern) fixedPath() (string, bool) {
	var b strings.Builder
	for _, s := range p.segments {
		if s.kind >= wildSegment || strings.IndexByte(s.text, '/') >= 0 {
			return "", false
		}
		b.WriteByte('/')
		b.WriteString(s.text)
	}
	return b.String(), true
}

func (e *routeEnd) add(rt *routeEntry) {
	*e = append(*e, routeSlot{rt.pattern.method, rt})
	slices.SortFunc(*e, func(a, b routeSlot) int {
		switch {
		case a.method != b.method:
			return cmp.Or(cmp.Compare(methodRank(a.method), methodRank(b.method)), cmp.Compare(a.method, b.method))
		case a.route.precedes(b.route):
			return -1
		}
		return 1
	})
}

// methodRank puts HEAD before GET, which takes it too, and those before every method.
func methodRank(method string) int {
	switch method {
	case http.MethodHead:
		return 0
	case "":
		return 2
	}
	return 1
}

// all yields the routes by precedence: of two that match the same request, the one that is taken first.
func (n *routeNode) all(yield func(*routeEntry) bool) bool {
	if !n.end.all(yield) || !n.slash.all(yield) {
		return false
	}
	for _, l := range n.literals {
		if !l.node.all(yield) {
			return false
		}
	}
	return (n.wild == nil || n.wild.all(yield)) && n.rest.all(yield)
}

func (e routeEnd) all(yield func(*routeEntry) bool) bool {
	for _, slot := range e {
		if !yield(slot.route) {
			return false
		}
	}
	return true
}

// conflict looks for a route that matches some of the paths that rt's pattern matches, and some of its
// methods, while neither pattern is more specific: more in one segment and less in another.
func (t *routeTree) conflict(rt *routeEntry) *routeEntry {
	return t.root.conflict(rt.pattern, rt.pattern.segments, false, false)
}

// conflict follows all that match a common path. wider says that p has been more general than the way to
// n somewhere, narrower that it has been more specific.
func (n *routeNode) conflict(p *pathPattern, segments []pathSegment, wider, narrower bool) *routeEntry {
	if wider && !narrower && !n.varied {
		return nil // nothing below can be more general than p
	}
	if len(segments) == 0 {
		return n.end.overlap(p, wider, narrower)
	}
	// What takes all that is left is more general than any other end.
	s := segments[0]
	if found := n.rest.overlap(p, wider, narrower || s.kind != restSegment); found != nil {
		return found
	}
	switch s.kind {
	case literalSegment:
		if c := n.literal(s.text); c != nil {
			if found := c.conflict(p, segments[1:], wider, narrower); found != nil {
				return found
			}
		}
		if n.wild != nil {
			return n.wild.conflict(p, segments[1:], wider, true)
		}
	case slashSegment:
		return n.slash.overlap(p, wider, narrower)
	case wildSegment:
		for _, l := range n.literals {
			if found := l.node.conflict(p, segments[1:], true, narrower); found != nil {
				return found
			}
		}
		if n.wild != nil {
			return n.wild.conflict(p, segments[1:], wider, narrower)
		}
	case restSegment:
		// p takes all below; in conflict is what p was more specific than before.
		if narrower {
			var found *routeEntry
			below := func(rt *routeEntry) bool {
				if !disjointMethods(p.method, rt.pattern.method) {
					found = rt
				}
				return found == nil
			}
			// Not n.end, which is a path without the slash, nor n.rest, which has been asked.
			_ = n.slash.all(below) && n.wild.allBelow(below)
			for i := 0; found == nil && i < len(n.literals); i++ {
				n.literals[i].node.all(below)
			}
			return found
		}
	}
	return nil
}

func (n *routeNode) allBelow(yield func(*routeEntry) bool) bool { return n == nil || n.all(yield) }

// overlap returns a route of e that shares a method with p, if the way here went both ways.
func (e routeEnd) overlap(p *pathPattern, wider, narrower bool) *routeEntry {
	if wider && narrower {
		for _, slot := range e {
			if !disjointMethods(p.method, slot.method) {
				return slot.route
			}
		}
	}
	return nil
}

// routeSearch is a walk through trees for one request, and what came of it.
type routeSearch struct {
	req    *http.Request
	method string
	path   urlpath.Path
	slash  bool // look for path with a slash added

	route *routeEntry // the first that matches in every way
	exact bool        // its pattern left nothing of the path to a trailing slash or {name...}

	// survey goes on after the first, to the last route whose path matches.
	survey bool
	allow  []string       // methods of the routes that match but for the method
	trace  bool           // fill tried
	tried  []routeVerdict // in order
}

// routeVerdict says why a route whose path matches was not taken, if it was not.
type routeVerdict struct {
	route  *routeEntry
	method bool   // whether its method matches
	failed string // the first predicate that does not hold; "" when all do
}

// in walks the tree and reports whether to stop there.
func (s *routeSearch) in(t *routeTree) bool { return t != nil && s.walk(&t.root, 0) }

// walk goes on behind n, with what is left of the path from its segment i.
func (s *routeSearch) walk(n *routeNode, i int) bool {
	if i == s.path.Len && !s.slash && !s.path.TrailingSlash {
		return s.try(n.end, true)
	}
	if i >= s.path.Len { // a slash and no more
		return s.try(n.slash, true) || s.try(n.rest, true)
	}
	if len(n.literals) > 0 {
		if c := n.literal(s.path.Segment(i)); c != nil && s.walk(c, i+1) {
			return true
		}
	}
	return n.wild != nil && s.walk(n.wild, i+1) || s.try(n.rest, false)
}

// try asks the routes at the end of a path for method and predicates, and reports whether to stop.
func (s *routeSearch) try(end routeEnd, exact bool) bool {
	for i := range end {
		rt, covers := end[i].route, coversMethod(end[i].method, s.method)
		if !covers && !s.survey {
			continue
		}
		failed := rt.failed(s.req)
		if covers && failed == "" && s.route == nil {
			s.route, s.exact = rt, exact
			if !s.survey {
				return true
			}
		}
		if !covers && failed == "" {
			s.allow = append(s.allow, end[i].method)
		}
		if s.trace {
			s.tried = append(s.tried, routeVerdict{rt, covers, failed})
		}
	}
	return false
}
