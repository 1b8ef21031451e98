package routing

import "strings"

// hostTree holds the routes of one host. The levels of the tree are the segments of the path. A walk goes
// depth first, and at each level tries literals, then wildcards, then a match of the whole rest. So it visits
// the routes that match a path from the most specific to the least. Two patterns that overlap are refused if
// neither is more specific.
//
// Methods and predicates are compared where a path ends. So the more specific path wins whatever the method,
// and a path that has no route for the method does not end the search.
type hostTree struct {
	name string // the host; ".example.com" for "*.example.com", "" for every host
	root node

	// fixed finds the routes of a path without wildcards at once. A request for one of these needs no walk,
	// nor a check that its path is clean, for patterns are clean.
	fixed map[string]*pathRoutes

	// slashes: a pattern other than "/" ends in a slash, so a path without one may have to be redirected.
	slashes bool
}

// node is a place between segments.
type node struct {
	literals []literalChild // in order of registration
	index    map[string]*node
	wild     *node      // behind {name}
	end      pathRoutes // the path ends here
	slash    pathRoutes // it ends here, with a slash: {$}
	rest     pathRoutes // anything may follow
	varied   bool       // there is a wildcard somewhere below
}

type literalChild struct {
	text string
	node *node
}

// maxScan is the number of children up to which a look at each is faster than a map.
const maxScan = 8

// literal returns the child for the literal segment text, or nil.
func (n *node) literal(text string) *node {
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

// samePaths returns the routes whose patterns match the same paths as p.
func (t *hostTree) samePaths(p *Pattern) pathRoutes {
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

// add puts rt into the tree. It must not conflict with another route.
func (t *hostTree) add(rt *route) {
	segments := rt.Pattern.segments
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
	var routes *pathRoutes
	switch last.kind {
	case slashSegment:
		routes = &n.slash
	case restSegment:
		routes = &n.rest
	default:
		n = n.grow(last)
		routes = &n.end
	}
	routes.add(rt)

	if (last.kind == slashSegment || last.kind == restSegment) && len(segments) > 1 {
		t.slashes = true
	}
	if path, ok := rt.Pattern.fixedPath(); ok {
		if t.fixed == nil {
			t.fixed = make(map[string]*pathRoutes)
		}
		t.fixed[path] = routes
	}
}

// grow returns the child for s, a literal or a wildcard for one segment. It creates the child if it does not
// exist.
func (n *node) grow(s segment) *node {
	if s.kind == wildSegment {
		if n.wild == nil {
			n.wild = new(node)
		}
		return n.wild
	}
	if c := n.literal(s.text); c != nil {
		return c
	}
	c := new(node)
	n.literals = append(n.literals, literalChild{s.text, c})
	switch {
	case n.index != nil:
		n.index[s.text] = c
	case len(n.literals) > maxScan:
		n.index = make(map[string]*node, 2*maxScan)
		for _, l := range n.literals {
			n.index[l.text] = l.node
		}
	}
	return c
}

// fixedPath returns the only path that p matches, decoded. ok is false when p matches several paths, or one
// with an encoded slash.
func (p *Pattern) fixedPath() (path string, ok bool) {
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

// all yields the routes at and below n by precedence. It reports whether yield wants more.
func (n *node) all(yield func(*route) bool) bool {
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
