package gateway

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway/internal/rolling"
)

// Stats collects RED figures (rate, errors, duration) of each route in this process, for tests and status
// pages. Set ObserveOptions.Stats to it. The zero value is ready for use. Several Observes may share one
// Stats.
//
// A Stats is safe for concurrent use. Counting a request takes no lock, except for the first request of a
// route. A route needs at most 24 KB. At most 1,024 routes are counted separately; the requests of all others
// are counted together, under the name "(other)". A Stats must not be copied after first use.
type Stats struct {
	routes atomic.Pointer[map[string]*routeCounts] // replaced as a whole, never modified
	mu     sync.Mutex                              // held while routes is replaced
}

// RouteStats holds the figures of one route.
type RouteStats struct {
	Route    string            // the route's name or, without one, its pattern; "" for requests that no route matched
	Requests int64             // number of requests that have ended
	Outcomes map[Outcome]int64 // their number by outcome, without outcomes that never occurred

	// The fields below are about the last 10 seconds, with a precision of half a second.

	Rate          float64       // requests per second
	ErrorRate     float64       // share of requests with OutcomeTimeout, OutcomeUpstreamError or OutcomeAborted; 0 without requests
	P50, P95, P99 time.Duration // percentiles of the duration, within 1/16; an upgraded connection counts up to the switch of protocols
}

const (
	statsWindow  = 10 * time.Second
	maxStats     = 1024      // number of routes that are counted separately
	statsOthers  = "(other)" // name of the counts for all other routes
	outcomeCount = int(OutcomeUnavailable) + 1
)

// routeCounts counts the requests of one route.
type routeCounts struct {
	outcomes [outcomeCount]atomic.Int64
	recent   *rolling.Durations
}

// Routes returns the figures of each route that has had a request, sorted by name.
func (s *Stats) Routes() []RouteStats {
	routes := s.routes.Load()
	if routes == nil {
		return nil
	}
	now := time.Now()
	all := make([]RouteStats, 0, len(*routes))
	for name, counts := range *routes {
		all = append(all, counts.stats(name, now))
	}
	slices.SortFunc(all, func(a, b RouteStats) int { return cmp.Compare(a.Route, b.Route) })
	return all
}

// record counts a request of a route that ended at now.
func (s *Stats) record(route string, o Outcome, now time.Time, took time.Duration) {
	counts := s.find(route, now)
	counts.outcomes[o].Add(1)
	counts.recent.Add(now, took, isUpstreamFailure(o))
}

// find returns the counts of a route.
func (s *Stats) find(route string, now time.Time) *routeCounts {
	if counts, _, _ := s.lookup(route); counts != nil {
		return counts
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	counts, route, routes := s.lookup(route)
	if counts != nil {
		return counts
	}
	counts = &routeCounts{recent: rolling.NewDurations(now, statsWindow)}
	grown := make(map[string]*routeCounts, len(routes)+1)
	maps.Copy(grown, routes)
	grown[route] = counts
	s.routes.Store(&grown)
	return counts
}

// lookup returns the counts of a route, or nil if there are none yet. name is the name under which they are
// kept: route, or statsOthers if there are too many routes.
func (s *Stats) lookup(route string) (counts *routeCounts, name string, routes map[string]*routeCounts) {
	p := s.routes.Load()
	if p == nil {
		return nil, route, nil
	}
	counts = (*p)[route]
	if counts == nil && len(*p) >= maxStats {
		route = statsOthers
		counts = (*p)[route]
	}
	return counts, route, *p
}

func (c *routeCounts) stats(route string, now time.Time) RouteStats {
	s := RouteStats{Route: route, Outcomes: make(map[Outcome]int64)}
	for o := range c.outcomes {
		if n := c.outcomes[o].Load(); n > 0 {
			s.Outcomes[Outcome(o)] = n
			s.Requests += n
		}
	}
	recent := c.recent.Summary(now)
	if recent.Count > 0 {
		s.Rate = float64(recent.Count) / recent.Over.Seconds()
		s.ErrorRate = float64(recent.Failed) / float64(recent.Count)
	}
	s.P50, s.P95, s.P99 = recent.Quantile(0.50), recent.Quantile(0.95), recent.Quantile(0.99)
	return s
}
