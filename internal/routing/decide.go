package routing

import (
	"net/http"
	"slices"
	"strings"

	"github.com/seed-96248d0c/gateway/internal/urlpath"
)

// Decision is what is to be done with a request: hand it to a route, or answer it.
type Decision struct {
	Status   int    // 200 for a route; 204, 308, 400, 404 or 405 when there is none
	Route    int    // the number of the route; with 200
	Reason   string // what is wrong with the path, such as "a dot segment"; with 400
	Allow    string // the value of the field Allow; with 405, and with 204 unless the request is for "*"
	Location string // with 308
}

// Decide finds the route for r. Among the routes that match, it takes the first by these rules:
//
//  1. a route for r's host, then for the longest matching wildcard host, and so on, then one without a host;
//  2. the more specific path: a literal segment precedes {name}, and {name} precedes {name...} and a trailing
//     slash;
//  3. a pattern with r's method, then, for HEAD, one with GET, then one without a method;
//  4. more Header predicates;
//  5. more Query predicates;
//  6. the route that was added first.
//
// A route that matches the path and fails on method or predicates does not end the search: the next one is
// tried.
//
// Only a Raw route matches a path with empty segments or backslashes. No route matches a path that some
// servers read as the path of another route: see otherReading. No route matches a method in lower case if
// the same method in upper case has another route.
//
// s must be new. It holds the path values afterwards. It is an argument, and not part of the result, so that
// it stays on the caller's stack.
func (t *Tree) Decide(r *http.Request, s *Search) Decision {
	method := r.Method
	if method == "" {
		method = http.MethodGet // as in net/http's client
	}
	d := t.decide(r, method, s)
	if d.Status != http.StatusOK || !hasSmallLetter(method) {
		return d
	}
	capital := strings.ToUpper(method)
	switch other := t.decide(r, capital, new(Search)); {
	case other.Status == http.StatusBadRequest:
		return other
	case other.Status != d.Status, other.Route != d.Route:
		return Decision{Status: http.StatusMethodNotAllowed, Allow: capital}
	}
	return d
}

// hasSmallLetter reports whether s has a letter from a to z. Methods are case-sensitive, but some servers
// accept "post" as POST.
func hasSmallLetter(s string) bool {
	for i := range len(s) {
		if 'a' <= s[i] && s[i] <= 'z' {
			return true
		}
	}
	return false
}

// Preflight returns the number of the route for the request that a CORS preflight announces. If no route
// matches because of Header predicates, they are assumed to hold: a preflight does not carry the fields of
// the announced request.
func (t *Tree) Preflight(r *http.Request, method string) (route int, ok bool) {
	for _, assumed := range []Kind{Other, Header} {
		s := Search{assumed: assumed}
		if d := t.decide(r, method, &s); d.Status == http.StatusOK {
			return d.Route, true
		}
	}
	return 0, false
}

// IsFor reports whether the pattern of a route has this method.
func (t *Tree) IsFor(route int, method string) bool { return t.routes[route].Pattern.method == method }

func (t *Tree) decide(r *http.Request, method string, s *Search) Decision {
	s.req, s.method = r, method
	p := &s.path
	p.Set(r.URL)
	first := t.hosts.first(r)
	if r.URL.Path == "" && (r.Method == http.MethodConnect || r.URL.Opaque != "") {
		return Decision{Status: http.StatusNotFound} // no path at all, not even an empty one
	}
	if !p.Escaped && !s.survey {
		// A path that a pattern spells out is known to be clean: patterns are.
		if end := first.fixed[p.Text]; end != nil && s.match(*end, true) {
			return Decision{Status: http.StatusOK, Route: s.route.number}
		}
	}
	unclean := s.checkPath()
	if unclean.Status != 0 && !(s.raw && t.raw) {
		return unclean
	}
	s.in(&t.hosts, first)
	switch {
	case s.raw:
		if s.route == nil || !s.route.takesRaw(p) {
			return unclean
		}
	case !s.exact && !p.TrailingSlash && s.slashes && t.withSlash(s, first) != nil:
		return redirect(r, urlpath.Escaped(r.URL)+"/")
	}
	if s.route != nil {
		if how, other := t.otherReading(s, first); other != nil {
			if how == 0 {
				return unclean
			}
			s.other = other
			return Decision{Status: http.StatusBadRequest, Reason: how.String() + " that leads some servers to another route"}
		}
		return Decision{Status: http.StatusOK, Route: s.route.number}
	}
	allow := t.otherMethods(s, first)
	switch {
	case len(allow) == 0:
		return Decision{Status: http.StatusNotFound}
	case r.Method == http.MethodOptions:
		return Decision{Status: http.StatusNoContent, Allow: allow}
	}
	return Decision{Status: http.StatusMethodNotAllowed, Allow: allow}
}

// checkPath splits the path and decides about a path that is answered for its form. The Status is 0 for all
// others. It sets s.raw when a Raw route may take the path all the same.
func (s *Search) checkPath() Decision {
	r, p := s.req, &s.path
	if p.Text[0] != '/' {
		if p.Text == "*" && r.Method == http.MethodOptions {
			return Decision{Status: http.StatusNoContent}
		}
		return Decision{Status: http.StatusBadRequest, Reason: "no slash at its beginning"}
	}
	p.Split()
	if p.Dotted || p.Escaped || strings.IndexByte(p.Text, '\\') >= 0 || strings.IndexByte(p.Text, 0) >= 0 {
		if what := urlpath.Ambiguity(r.URL.Path); what != "" {
			s.raw = urlpath.RawAmbiguity(r.URL.Path) == ""
			return Decision{Status: http.StatusBadRequest, Reason: what}
		}
	}
	if !p.Doubled {
		return Decision{}
	}
	s.raw = true
	if r.Method == http.MethodConnect {
		return Decision{Status: http.StatusBadRequest, Reason: "an empty segment"}
	}
	return redirect(r, urlpath.Collapse(urlpath.Escaped(r.URL)))
}

// takesRaw reports whether all empty segments and backslashes of p are in the part that rt's last wildcard
// matches. rt matches p.
func (rt *route) takesRaw(p *urlpath.Path) bool {
	rest := len(rt.Pattern.segments) - 1
	if !rt.Raw || rt.Pattern.segments[rest].kind != restSegment {
		return false
	}
	for i := range rest {
		if s := p.Segment(i); s == "" || strings.IndexByte(s, '\\') >= 0 {
			return false
		}
	}
	return true
}

// otherReading returns a route other than s.route that a lenient server would choose for the path, and how
// that server reads the path. For example, "/x;a/admin" may be read as "/x/admin". Literal segments of the
// pattern of s.route are not read differently. It returns nil if there is no such route.
func (t *Tree) otherReading(s *Search, first *hostTree) (urlpath.Reading, *route) {
	found := s.path.Readings()
	if found == 0 && !s.path.Doubled {
		return 0, nil
	}
	if !s.raw {
		found &^= urlpath.Backslashes
	}
	segments := s.route.Pattern.segments
	spelled := func(i int) bool { return i < len(segments) && segments[i].kind == literalSegment }
	for how := range found + 1 { // every combination of readings
		if how&^found != 0 || how == 0 && !s.path.Doubled {
			continue
		}
		other := Search{req: s.req, method: s.method, assumed: s.assumed, path: s.path.Read(how, spelled)}
		other.in(&t.hosts, first)
		if !other.exact && !other.path.TrailingSlash && other.slashes {
			if rt := t.withSlash(&other, first); rt != nil {
				other.route = rt
			}
		}
		if other.route != nil && other.route != s.route {
			return how, other.route
		}
	}
	return 0, nil
}

// withSlash returns the route that spells out the trailing slash and would take the request if its path had
// one, or nil when there is none.
func (t *Tree) withSlash(of *Search, first *hostTree) *route {
	s := Search{req: of.req, method: of.method, path: of.path, assumed: of.assumed, slash: true}
	s.in(&t.hosts, first)
	if !s.exact {
		return nil
	}
	return s.route
}

// otherMethods returns the methods with which the request would be taken, or redirected to its path with a
// trailing slash, as the value of Allow.
func (t *Tree) otherMethods(of *Search, first *hostTree) string {
	s := Search{req: of.req, method: of.method, path: of.path, survey: true}
	for _, s.slash = range []bool{false, !s.path.TrailingSlash} {
		s.in(&t.hosts, first)
	}
	if len(s.allow) == 0 {
		return ""
	}
	if slices.Contains(s.allow, http.MethodGet) {
		s.allow = append(s.allow, http.MethodHead)
	}
	s.allow = append(s.allow, http.MethodOptions)
	slices.Sort(s.allow)
	return strings.Join(slices.Compact(s.allow), ", ")
}

// redirect answers with path, which begins with one slash and so is on this site. An outer handler may have
// removed a prefix from the request's path, as http.StripPrefix does; the client needs it, so it is put back.
func redirect(r *http.Request, path string) Decision {
	asked, _, _ := strings.Cut(r.RequestURI, "?")
	prefix, ok := strings.CutSuffix(asked, urlpath.Escaped(r.URL))
	if ok && strings.HasPrefix(prefix, "/") && urlpath.Ambiguity(urlpath.Unescape(prefix)) == "" {
		path = urlpath.Collapse(urlpath.Escape(prefix) + path)
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		path += "?" + r.URL.RawQuery
	}
	return Decision{Status: http.StatusPermanentRedirect, Location: path}
}

// Verdict is a route and why it was not taken, if it was not.
type Verdict struct {
	Route  int
	Taken  bool
	Reason string // "method", "precedence", "path", "host" or the name of a predicate; "" for the route that is taken
}

// Survey makes Decide's decision, by the same code, and returns a verdict on every route. Those whose path
// matches come first, in the order in which they are tried, and then the others by precedence. There is no
// verdict when the request is refused or redirected because its path is not clean, since no route is tried
// then.
func (t *Tree) Survey(r *http.Request, s *Search) (Decision, []Verdict) {
	s.survey, s.trace = true, true
	d := t.Decide(r, s)
	if d.Status == http.StatusBadRequest || d.Status == http.StatusPermanentRedirect && s.path.Doubled {
		return d, nil
	}
	verdicts := make([]Verdict, 0, len(t.routes))
	tried := make([]bool, len(t.routes))
	for _, a := range s.tried {
		tried[a.route.number] = true
		v := Verdict{Route: a.route.number, Taken: a.route == s.route && d.Status == http.StatusOK}
		switch {
		case v.Taken:
		case !a.method:
			v.Reason = "method"
		case a.failed != "":
			v.Reason = a.failed
		default:
			v.Reason = "precedence"
		}
		verdicts = append(verdicts, v)
	}
	searched := make(map[*hostTree]bool)
	for h := t.hosts.first(r); h != nil; h = t.hosts.next(h) {
		searched[h] = true
	}
	for n := range t.All() {
		if tried[n] {
			continue
		}
		v := Verdict{Route: n, Reason: "path"}
		if !searched[t.hosts.of(t.routes[n].Pattern.host)] {
			v.Reason = "host"
		}
		verdicts = append(verdicts, v)
	}
	return d, verdicts
}
