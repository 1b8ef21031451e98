package routing

import (
	"iter"
	"net/http"

	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Search is the search for the route of one request. The zero value is ready for use, once.
type Search struct {
	req    *http.Request
	method string
	path   urlpath.Path
	slash  bool // search for path with a slash added
	raw    bool // path has empty segments or backslashes, which only a Raw route can take

	assumed Kind // predicates of this kind are taken to hold; none with Other

	route *route // the first that matches in every way
	exact bool   // its pattern does not end in a trailing slash or a {name...}, or that matches nothing

	other   *route // the route that some servers would choose, if the path is refused because of it
	slashes bool   // a host that was searched has a pattern, other than "/", that ends in a slash

	// survey goes on after the first match, to the last route whose path matches.
	survey bool
	surveyResult
}

// surveyResult is what a survey finds.
type surveyResult struct {
	allow []string  // methods of the routes that match but for their method
	trace bool      // fill tried
	tried []attempt // in order
}

// attempt is a route whose path matches, and the result of trying it.
type attempt struct {
	route  *route
	method bool   // its method matches
	failed string // the first predicate that does not hold; "" when all hold
}

// Other returns the pattern of the route that some servers would choose, if the path is refused because of
// it, and otherwise "". It must not be shown to clients.
func (s *Search) Other() string {
	if s.other == nil {
		return ""
	}
	return s.other.Pattern.text
}

// PathValues yields the names and values of the named wildcards of the route that was found. Values are
// decoded.
func (s *Search) PathValues() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		if s.route == nil {
			return
		}
		for i := range s.route.wildcards {
			if w := &s.route.wildcards[i]; !yield(w.name, s.value(w)) {
				return
			}
		}
	}
}

func (s *Search) value(w *wildcard) string {
	if w.rest {
		return s.path.Rest(w.at)
	}
	return s.path.Segment(w.at)
}

// in searches the tree first and then the trees after it.
func (s *Search) in(t *hosts, first *hostTree) {
	for h := first; h != nil; h = t.next(h) {
		s.slashes = s.slashes || h.slashes
		if s.walk(&h.root, 0) {
			return
		}
	}
}

// walk searches n for the rest of the path, from segment i. It reports whether the search has ended.
func (s *Search) walk(n *node, i int) bool {
	if i == s.path.Len && !s.slash && !s.path.TrailingSlash {
		return s.match(n.end, true)
	}
	if i >= s.path.Len { // only a slash is left
		return s.match(n.slash, true) || s.match(n.rest, true)
	}
	if len(n.literals) > 0 {
		if c := n.literal(s.path.Segment(i)); c != nil && s.walk(c, i+1) {
			return true
		}
	}
	if n.wild != nil && !(s.raw && s.path.Segment(i) == "") && s.walk(n.wild, i+1) {
		return true
	}
	return s.match(n.rest, false)
}

// match compares the methods and predicates of routes whose path matches. It reports whether the search has
// ended.
func (s *Search) match(routes pathRoutes, exact bool) bool {
	for i := range routes {
		g := &routes[i]
		covers := coversMethod(g.method, s.method)
		switch {
		case !covers && !s.survey:
		case !s.survey && len(g.routes[0].Predicates) == 0: // nothing to ask
			s.route, s.exact = g.routes[0], exact
			return true
		case g.index != nil && !s.trace && s.assumed == Other:
			if s.tryIndexed(g, covers, exact) {
				return true
			}
		default:
			for _, rt := range g.routes {
				if s.attempt(rt, covers, exact) {
					return true
				}
			}
		}
	}
	return false
}

// attempt compares the predicates of one route. It reports whether the search has ended.
func (s *Search) attempt(rt *route, covers, exact bool) bool {
	failed := rt.failed(s.req, s.assumed)
	if covers && failed == "" && s.route == nil {
		s.route, s.exact = rt, exact
		if !s.survey {
			return true
		}
	}
	if !covers && failed == "" {
		s.allow = append(s.allow, rt.Pattern.method)
	}
	if s.trace {
		s.tried = append(s.tried, attempt{rt, covers, failed})
	}
	return false
}
