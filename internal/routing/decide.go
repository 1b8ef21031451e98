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
//  1. a route for r's host precedes one without a host;
//  2. the more specific path: a literal segment precedes {name}, which precedes {name...} and a trailing slash;
//  3. r's method; for HEAD then GET; then no method;
//  4. more Header predicates;
//  5. more Query predicates;
//  6. the route that was added first.
//
// A route that matches the path and fails on method or predicates does not end the search: the next one is
// tried.
//
// s must be new. It holds the path values afterwards. It is an argument, and not part of the result, so that
// it stays on the caller's stack.
func (t *Tree) Decide(r *http.Request, s *Search) Decision {
	s.req, s.method = r, r.Method
	if s.method == "" {
		s.method = http.MethodGet // as in net/http's client
	}
	p := &s.path
	p.Set(r.URL)
	host := t.hostOf(r)
	first := host
	if first == nil {
		first = &t.anyHost
	}
	if r.URL.Path == "" && (r.Method == http.MethodConnect || r.URL.Opaque != "") {
		return Decision{Status: http.StatusNotFound} // no path at all, not even an empty one
	}
	if !p.Escaped && !s.survey {
		// A path that a pattern spells out is known to be clean: patterns are.
		if end := first.fixed[p.Text]; end != nil && s.try(*end, true) {
			return Decision{Status: http.StatusOK, Route: s.route.number}
		}
	}
	if d := s.checkPath(); d.Status != 0 {
		return d
	}

	if !s.in(host) {
		s.in(&t.anyHost)
	}
	if !s.exact && !p.TrailingSlash && (first.slashes || t.anyHost.slashes) && t.matchesWithSlash(s, host) {
		return redirect(r, urlpath.Escaped(r.URL)+"/")
	}
	if s.route != nil {
		return Decision{Status: http.StatusOK, Route: s.route.number}
	}
	allow := t.otherMethods(s, host)
	switch {
	case len(allow) == 0:
		return Decision{Status: http.StatusNotFound}
	case r.Method == http.MethodOptions:
		return Decision{Status: http.StatusNoContent, Allow: strings.Join(allow, ", ")}
	}
	return Decision{Status: http.StatusMethodNotAllowed, Allow: strings.Join(allow, ", ")}
}

// hostOf returns the routes of the request's host, or nil when it has none of its own.
func (t *Tree) hostOf(r *http.Request) *hostTree {
	if len(t.hosts) == 0 {
		return nil
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	return t.hosts[canonicalHost(host)]
}

// checkPath splits the path and decides about a path that is answered for its form. The Status is 0 for all
// others.
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
			return Decision{Status: http.StatusBadRequest, Reason: what}
		}
	}
	switch {
	case !p.Doubled:
		return Decision{}
	case r.Method == http.MethodConnect:
		return Decision{Status: http.StatusBadRequest, Reason: "an empty segment"}
	}
	return redirect(r, urlpath.Collapse(urlpath.Escaped(r.URL)))
}

// matchesWithSlash reports whether a route that spells out the trailing slash would take the request if its
// path had one.
func (t *Tree) matchesWithSlash(of *Search, host *hostTree) bool {
	s := Search{req: of.req, method: of.method, path: of.path, slash: true}
	if !s.in(host) {
		s.in(&t.anyHost)
	}
	return s.exact
}

// otherMethods returns the methods with which the request would be taken, or redirected to its path with a
// trailing slash.
func (t *Tree) otherMethods(of *Search, host *hostTree) []string {
	s := Search{req: of.req, method: of.method, path: of.path, survey: true}
	for _, s.slash = range []bool{false, !s.path.TrailingSlash} {
		s.in(host)
		s.in(&t.anyHost)
	}
	if len(s.allow) == 0 {
		return nil
	}
	if slices.Contains(s.allow, http.MethodGet) {
		s.allow = append(s.allow, http.MethodHead)
	}
	s.allow = append(s.allow, http.MethodOptions)
	slices.Sort(s.allow)
	return slices.Compact(s.allow)
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
	if d.Status == http.StatusBadRequest || s.path.Doubled {
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
	host := t.hostOf(r)
	for n := range t.All() {
		if tried[n] {
			continue
		}
		v := Verdict{Route: n, Reason: "path"}
		if own := t.routes[n].Pattern.host; own != "" && t.hosts[own] != host {
			v.Reason = "host"
		}
		verdicts = append(verdicts, v)
	}
	return d, verdicts
}
