// Package concurrency computes, from the latency of requests, how many requests a server can serve at the
// same time.
//
// The limit follows the gradient of the latency, as in Netflix's concurrency-limits (Gradient2Limit) and in
// Envoy's adaptive concurrency filter. Each window of samples compares its latency with the base, the latency
// without a queue:
//
//	gradient = tolerance * base / latency, between 1/2 and 1
//	limit    = limit * gradient + limit/10
//
// While the latency is near the base, the limit grows, provided that it was reached. When requests queue in
// the server, the limit falls until the latency is about 1.5 times the base. For example, with a base of 10ms
// and a limit of 100, a window of 28ms has the gradient 1/2: the limit becomes 60.
//
// Two things differ from those models. A window's latency is the geometric mean, so that a single slow
// request has little effect. And the base is measured again in a probe: the limit is cut to about half
// until the old requests have ended. The alternatives are worse. A long average as the base rises during a
// steady overload. The minimum of all latencies stays too low when a server becomes slower.
//
// There is a probe every 30 windows, and whenever the limit has fallen by half: then either the server has
// lost capacity, or the base is out of date. If the latency in the probe is far above the base, the limit is
// halved again, until that no longer helps: a server that has lost nine tenths of its capacity still has a
// queue with half of the requests. A probe costs little, because about half of the limit keeps the server
// almost busy.
//
// The package reads no clock: latencies are arguments.
package concurrency

import (
	"math"
	"time"
)

const (
	tolerance  = 1.4 // latency may be this many times the base before the limit falls
	leastCount = 20  // samples in a window
	probeEvery = 30  // windows

	// Differences of logarithms. A probe takes another step while its latency is above 2 times the base and
	// below 0.8 times that of the step before.
	stepRise = 0.7
	stepGain = 0.2
)

// Limit is the adaptive limit. Make it with New. It is not safe for concurrent use.
//
// Latencies are kept as natural logarithms, so that their mean is geometric.
type Limit struct {
	min, max float64
	limit    float64
	base     float64 // latency without a queue; NaN before the first window
	slow     bool    // the limit has been too high once, so that it no longer grows by half in each window
	epoch    uint32  // changes with each step of a probe; the window counts only requests of the current one
	window
	probe
}

// window is the current window of samples.
type window struct {
	count   int
	sum     float64 // of latencies
	reached bool    // as many requests ran as the limit allows
}

// probe is the state of the current probe and what decides on the next one.
type probe struct {
	probing bool
	before  float64 // the limit before the probe
	probed  float64 // latency of the step before, in a probe of several steps; otherwise NaN

	windows int     // since the last probe
	highest float64 // the highest limit since the last probe
	deep    bool    // the next probe cuts the limit further, because the last one has lowered the base
}

// New returns a Limit between least and most. It starts at 20, or at the nearer bound.
func New(least, most int) *Limit {
	l := &Limit{min: float64(least), max: float64(most), base: math.NaN(), probe: probe{probed: math.NaN(), deep: true}}
	l.limit = l.clamp(20)
	return l
}

// clamp returns the value between the bounds that is nearest to x.
func (l *Limit) clamp(x float64) float64 { return min(max(x, l.min), l.max) }

// Limit returns how many requests may run at the same time.
func (l *Limit) Limit() int { return int(l.limit) }

// Started records the start of a request. running is the number of requests that run now, including this one.
// The caller passes epoch to Ended.
func (l *Limit) Started(running int) (epoch uint32) {
	if running >= int(l.limit) {
		l.reached = true
	}
	return l.epoch
}

// Ended records the end of a request and its latency. The caller omits requests whose latency says nothing
// about the server: refusals and fast failures.
func (l *Limit) Ended(epoch uint32, latency time.Duration) {
	if epoch != l.epoch {
		return // the request started under another limit, before this step of the probe
	}
	l.sum += math.Log(float64(max(latency, 1)))
	if l.count++; l.count < max(leastCount, int(l.limit)) {
		return
	}
	mean, reached := l.sum/float64(l.count), l.reached
	l.window = window{}
	l.endWindow(mean, reached)
}

// Slower reports whether a latency is above the base. A request that failed or was canceled counts only if
// this is true: a complete answer would have taken even longer.
func (l *Limit) Slower(latency time.Duration) bool {
	return !math.IsNaN(l.base) && math.Log(float64(max(latency, 1))) > l.base
}

// endWindow adjusts the limit after a window with this mean latency. reached is that of the window.
func (l *Limit) endWindow(latency float64, reached bool) {
	if math.IsNaN(l.base) {
		l.base = latency
	}
	if l.probing {
		if latency > l.base+stepRise && l.limit > l.min && !(latency >= l.probed-stepGain) {
			// Either the server has become slower, or requests still queue in it. Half the limit shows which.
			l.probed = latency
			l.limit = l.clamp(math.Floor(l.limit / 2))
			l.epoch++
			return
		}
		l.probed = math.NaN()
		// If this probe has lowered the base, it may still be too high, for example after a start with far
		// too high a limit. The next probe then follows soon and cuts deeper.
		l.deep = latency < l.base-0.05
		if l.deep {
			l.windows = probeEvery - 3
		}
		l.probing, l.base = false, latency
		l.limit = l.clamp(l.before)
		l.highest = l.limit
		l.epoch++
		return
	}
	l.base = min(l.base, latency)
	gradient := min(max(tolerance*math.Exp(l.base-latency), 0.5), 1)
	switch {
	case gradient < 1:
		l.slow = true
		l.limit = l.clamp(l.limit*gradient + max(1, l.limit/10))
	case !reached:
	case !l.slow:
		l.limit = l.clamp(l.limit * 1.5)
	default:
		l.limit = l.clamp(l.limit + max(1, l.limit/10))
	}
	l.highest = max(l.highest, l.limit)
	l.windows++
	if l.slow && (l.windows >= probeEvery || l.limit <= l.highest/2) {
		l.windows, l.probing = 0, true
		l.before = l.limit
		// In the probe, the limit must be below the server's capacity, or requests queue in the probe too.
		// With a correct base, the limit before is at most 1.56 times the capacity (tolerance/0.9), and 0.6
		// of that is below it. A small limit may be further above: there the share is 0.5.
		share := 0.6
		if l.deep || l.limit < 16 {
			share = 0.5
		}
		l.limit = l.clamp(math.Floor(l.limit * share))
		l.epoch++
	}
}
