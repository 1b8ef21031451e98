package routing

import "strings"

// conflict returns a route that matches some of the paths and methods of rt while neither pattern is more
// specific: rt's is more specific in one segment and less in another. It returns nil when there is none.
//
// Example: "/{x}/b" and "/a/{x}" both match "/a/b". The first is wider in its first segment and narrower in
// its second.
func (t *hostTree) conflict(rt *route) *route {
	return t.root.conflict(rt.Pattern, rt.Pattern.segments, false, false)
}

// conflict follows all patterns that share a path with p. segments is what is left of p at n. On the way to
// n, wider means that p was more general than the tree in some segment, and narrower that p was more
// specific.
func (n *node) conflict(p *Pattern, segments []segment, wider, narrower bool) *route {
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
		if narrower { // p is wider than all below, and was narrower before
			return n.belowWithMethod(p)
		}
	}
	return nil
}

// belowWithMethod returns a route of a path that begins at n with a slash and shares a method with p. The
// routes of n.end are for a path without that slash, and those of n.rest have been compared already.
func (n *node) belowWithMethod(p *Pattern) (found *route) {
	next := func(rt *route) bool {
		if !disjointMethods(p.method, rt.Pattern.method) {
			found = rt
		}
		return found == nil
	}
	if !n.slash.all(next) || n.wild != nil && !n.wild.all(next) {
		return found
	}
	for _, l := range n.literals {
		if !l.node.all(next) {
			break
		}
	}
	return found
}

// overlap returns a route that shares a method with p, if p is wider in one segment and narrower in another.
func (routes pathRoutes) overlap(p *Pattern, wider, narrower bool) *route {
	if wider && narrower {
		for i := range routes {
			if !disjointMethods(p.method, routes[i].method) {
				return routes[i].routes[0]
			}
		}
	}
	return nil
}

// samePath returns a path that both patterns match. There must be one. It is an example for an error's text.
func samePath(a, b *Pattern) string {
	var out strings.Builder
	for i := 0; i < len(a.segments) || i < len(b.segments); i++ {
		switch {
		case i >= len(a.segments):
			writeExample(&out, b.segments[i])
		case i >= len(b.segments), a.segments[i].kind < b.segments[i].kind:
			writeExample(&out, a.segments[i])
		default:
			writeExample(&out, b.segments[i])
		}
	}
	return out.String()
}

// onlyPath returns a path that a matches and b does not. There must be one. It is an example for an error's
// text.
func onlyPath(a, b *Pattern) string {
	var out strings.Builder
	for i, s := range a.segments {
		var other segment
		if i < len(b.segments) {
			other = b.segments[i]
		}
		switch {
		case s.kind == wildSegment && other.kind == literalSegment && other.text == s.text:
			s.text += "x"
		case s.kind == restSegment && other.kind == slashSegment && s.text == "":
			s = segment{kind: literalSegment, text: "x"}
		case s.kind == restSegment && other.kind != slashSegment:
			s.text = ""
		}
		out.WriteByte('/')
		out.WriteString(s.text)
	}
	return out.String()
}

func writeExample(out *strings.Builder, s segment) {
	out.WriteByte('/')
	if s.kind == literalSegment || s.kind == wildSegment {
		out.WriteString(s.text)
	}
}
