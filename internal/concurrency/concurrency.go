// Package concurrency computes, from the latency of requests, how many requests a server can serve at the
// same time.
//
// The limit follows the gradient of the latency, as in Netflix's concurrency-limits (Gradient2Limit) and in Envoy's
// adaptive concurrency filter. Each window of samples compares its latency with the base, the latency without a queue:
//
//	gradient = tolerance * base / latency, between 1/2 and 1
//	limit    = limit * gradient + limit/10
//
// While the latency is near the base, the limit grows, provided that it was reached. When requests queue in
// the server, the limit falls until the latency is about 1.5 times that without a queue. Two things differ
// from those models. A window's latency is the geometric mean, so that a single slow request has little
// effect. The base is measured again in a probe, in which the limit is cut to about half until the old
// requests have ended. The alternatives are worse: a base that is a long average rises during a steady overload, and a base
// that is the minimum of all latencies stays too low when a server becomes slower. There is a probe every 30
// windows, and whenever the limit has fallen by half: then either the server has lost capacity, or the base
// is out of date. If the latency in the probe is far above the base, the limit is halved again, until that no longer
// helps: a server that has lost nine tenths of its capacity still has a queue with half of the requests. A probe
// costs little, because about half of the limit keeps the server almost busy.
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

	// Logarithms of latencies. A probe goes on with half of the limit while its latency is more than twice the base,
	// and less than 0.8 of that of the step before.
	stepRise = 0.7
	stepGain = 0.2
)

// Limit is the adaptive limit. Make it with New. It is not safe for concurrent use.
type Limit struct {
	min, max float64
	limit    float64
	base     float64 // logarithm of the latency without a queue; NaN before the first window
	slow     bool    // the limit has been too high once, so that it no longer doubles quickly

	epoch   uint32 // of the requests that the window counts
	windows int    // since the last probe
	probing bool
	deep    bool    // the next probe goes further down, because the last one has brought the base down
	before  float64 // the limit before the probe
	probed  float64 // logarithm of the latency of the step before, in a probe of several steps; otherwise NaN
	highest float64 // the highest limit since the last probe

	count   int
	sum     float64 // of logarithms
	reached bool    // the limit, in this window
}

// New returns a Limit between least and most, which begins at 20.
func New(least, most int) *Limit {
	l := &Limit{min: float64(least), max: float64(most), base: math.NaN(), probed: math.NaN(), deep: true}
	l.limit = l.clamp(20)
	return l
}

func (l *Limit) clamp(x float64) float64 { return min(max(x, l.min), l.max) }

// Limit returns how many requests may run at the same time.
func (l *Limit) Limit() int { return int(l.limit) }

// Started records the start of a request. running is the number of requests that run then. The caller passes the mark
// that it returns to Ended.
func (l *Limit) Started(running int) (epoch uint32) {
	if running >= int(l.limit) {
		l.reached = true
	}
	return l.epoch
}

// Ended records the end of a request and how long it took. The caller leaves out requests whose latency shows nothing
// about the server: refusals, and failures that were fast.
func (l *Limit) Ended(epoch uint32, took time.Duration) {
	if epoch != l.epoch {
		return // it began before the probe, among more requests than now
	}
	l.sum += math.Log(float64(max(took, 1)))
	if l.count++; l.count < max(leastCount, int(l.limit)) {
		return
	}
	latency, reached := l.sum/float64(l.count), l.reached
	l.count, l.sum, l.reached = 0, 0, false
	l.window(latency, reached)
}

// Slower reports whether a latency is above the base. A request that failed, or whose client left, counts only if it is
// slower: it would have taken even longer.
func (l *Limit) Slower(took time.Duration) bool {
	return l.base == l.base && math.Log(float64(max(took, 1))) > l.base
}

func (l *Limit) window(latency float64, reached bool) {
	if l.base != l.base { // the first
		l.base = latency
	}
	if l.probing {
		if latency > l.base+stepRise && l.limit > l.min && !(latency >= l.probed-stepGain) {
			// Has the server become slower, or do requests still queue in it? Half of them would tell.
			l.probed = latency
			l.limit = l.clamp(math.Floor(l.limit / 2))
			l.epoch++
			return
		}
		l.probed = math.NaN()
		// A base that was too large, as when the limit was far too large at first, is brought down in steps.
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
		// It must be below what the server can serve, or requests queue in the probe as well. The limit is at most
		// 1.56 times that, tolerance/0.9, if the base is right, and a little more where it is small.
		share := 0.6
		if l.deep || l.limit < 16 {
			share = 0.5
		}
		l.limit = l.clamp(math.Floor(l.limit * share))
		l.epoch++
	}
}
