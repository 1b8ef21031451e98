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

// Explanation is what ServeHTTP would do with a request, and why.
type Explanation struct {
	Route      *Route   // nil when no route matched
	Status     int      // 200 for a route; otherwise 204, 308, 400, 404 or 405, as ServeHTTP would answer
	Reason     string   // what is wrong with the path; with 400
	Location   string   // where the client is sent; with 308
	Allow      []string // the methods that the path has; with 204 and 405
	PathValues map[string]string
	Candidates []Candidate // in the order in which they are tried
}

// Candidate is a route and why it was not taken, if it was not.
type Candidate struct {
	Route   Route
	Matched bool   // this route is taken
	Reason  string // "path", "method", "host" or the predicate's name; "precedence" when an earlier route is taken
}

// Explain returns the route that r would take, the path values, and why each other candidate would not be
// taken. It makes the decision of ServeHTTP, by the same code, and does not change r.
//
// Candidates has every route: first those whose path matches, in the order in which they are tried, and then
// the others by precedence. It is empty when the request is refused or redirected because its path is not
// clean, since no route is tried then.
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

// String returns a table for people: the answer, the path values and the candidates. The candidate that is
// taken is marked with "+". Those that lost on host or path are counted and not listed.
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
