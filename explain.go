package gateway

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/seed-96248d0c/gateway/internal/routing"
)

// Explanation describes what Router.ServeHTTP would do with a request, and why.
type Explanation struct {
	Route      *Route   // nil when no route matched
	Status     int      // 200 for a route; otherwise 204, 308, 400, 404 or 405, as ServeHTTP would answer
	Reason     string   // for 400: what is wrong with the path
	Location   string   // for 308: the redirect's target
	Allow      []string // for 204 and 405: the methods that the path has
	PathValues map[string]string
	Candidates []Candidate // the routes in the order in which they are tried; see Explain
}

// Candidate is a route of the Router and, unless the request goes to it, the reason why not.
type Candidate struct {
	Route   Route
	Matched bool   // the request goes to this route
	Reason  string // otherwise: "path", "method", "host" or the failed predicate's name; "precedence" if an earlier route is used
}

// Explain returns the route that r would reach, the path values, and the reason why each other route would
// not be used. It uses the code of ServeHTTP, and does not change r.
//
// Candidates has every route: first those whose path matches, in the order in which they are tried, and then
// the others by precedence. It is empty if the request is refused or redirected because its path is not
// clean, since then no route is tried.
func (rt *Router) Explain(r *http.Request) Explanation {
	var s routing.Search
	d, verdicts := rt.tree.Survey(r, &s)
	x := Explanation{Status: d.Status, Reason: d.Reason, Location: d.Location}
	if other := s.Other(); other != "" {
		x.Reason += fmt.Sprintf(" (%q)", other)
	}
	if d.Allow != "" {
		x.Allow = strings.Split(d.Allow, ", ")
	}
	if d.Status == http.StatusOK {
		route := rt.routes[d.Route].Route
		x.Route = &route
		for name, value := range s.PathValues() {
			if x.PathValues == nil {
				x.PathValues = make(map[string]string)
			}
			x.PathValues[name] = value
		}
	}
	for _, v := range verdicts {
		x.Candidates = append(x.Candidates, Candidate{Route: rt.routes[v.Route].Route, Matched: v.Taken, Reason: v.Reason})
	}
	return x
}

// String returns a table for people: the answer, the path values and the candidates. The route that is used
// is marked with "+". Candidates that failed on host or path are counted and not listed.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", x.Status, http.StatusText(x.Status))
	if x.Route != nil {
		fmt.Fprintf(&b, ": %s", x.Route.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(x.PathValues)) {
		fmt.Fprintf(&b, ", %s=%q", name, x.PathValues[name])
	}
	switch {
	case x.Reason != "":
		fmt.Fprintf(&b, ": the path has %s", x.Reason)
	case x.Location != "":
		fmt.Fprintf(&b, ": to %s", x.Location)
	case x.Allow != nil:
		fmt.Fprintf(&b, ": allowed are %s", strings.Join(x.Allow, ", "))
	}
	b.WriteByte('\n')
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	byPath, byHost := 0, 0
	for _, c := range x.Candidates {
		switch c.Reason {
		case "path":
			byPath++
			continue
		case "host":
			byHost++
			continue
		}
		sign, reason := "-", c.Reason
		if c.Matched {
			sign, reason = "+", "taken"
		}
		fmt.Fprintf(table, "%s %s\t%s\t%s\n", sign, c.Route.Name, c.Route.Pattern, reason)
	}
	_ = table.Flush()
	if byPath > 0 {
		fmt.Fprintf(&b, "%d of another path\n", byPath)
	}
	if byHost > 0 {
		fmt.Fprintf(&b, "%d of another host\n", byHost)
	}
	return b.String()
}
