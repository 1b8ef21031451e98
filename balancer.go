package gateway

import (
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"

	"github.com/seed-96248d0c/gateway/internal/strhash"
)

// Balancer picks the target of each attempt. Pick returns the index of one of targets, of which there is at
// least one. They are the healthy targets or, when none is healthy, all of them. The Upstream calls done
// once, with the outcome of the attempt, when the attempt has ended. done may be nil. Pick and done must be
// safe for concurrent use.
type Balancer interface {
	Pick(r *http.Request, targets []Target) (index int, done func(Outcome))
}

// RoundRobin returns a Balancer that picks the targets in turn, by weight. It spreads the turns of a target
// with a large weight, as nginx's smooth weighted round-robin does: with weights 5, 1 and 1, the order is a a
// b a c a a. It needs about 30 bytes for each target.
func RoundRobin() Balancer { return &roundRobin{} }

type roundRobin struct {
	mu sync.Mutex
	// In each turn, the credit of every target grows by its weight. The target with the most credit is
	// picked, and pays the sum of all weights.
	credit map[*url.URL]int
}

func (b *roundRobin) Pick(_ *http.Request, targets []Target) (int, func(Outcome)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.credit == nil || len(b.credit) > 2*len(targets)+64 {
		b.credit = make(map[*url.URL]int, len(targets)) // drops targets that were removed
	}
	best, most, total := 0, 0, 0
	for i, t := range targets {
		weight := max(1, t.Weight)
		total += weight
		credit := b.credit[t.URL] + weight
		b.credit[t.URL] = credit
		if i == 0 || credit > most {
			best, most = i, credit
		}
	}
	b.credit[targets[best].URL] -= total
	return best, nil
}

// LeastPending returns a Balancer that draws two targets at random, by weight, and picks the one with fewer
// requests in flight per weight (the power of two choices; Mitzenmacher, IEEE TPDS 12(10), 2001). It needs
// about 140 bytes for each target.
func LeastPending() Balancer { return &leastPending{} }

type leastPending struct {
	loads sync.Map     // *url.URL to *load
	known atomic.Int64 // number of loads
}

// load counts the requests in flight to one target.
type load struct {
	pending atomic.Int64
	done    func(Outcome) // subtracts one; made once, so that a request allocates no closure
}

func (b *leastPending) Pick(_ *http.Request, targets []Target) (int, func(Outcome)) {
	i := byWeight(targets)
	l := b.load(targets, i)
	if n := len(targets); n > 1 {
		j := byWeight(targets)
		if j == i {
			j = (i + 1 + rand.IntN(n-1)) % n
		}
		other := b.load(targets, j)
		// This compares pending/weight without a division. If neither target has requests in flight, the
		// first one is picked, which was drawn by weight.
		if other.pending.Load()*int64(max(1, targets[i].Weight)) < l.pending.Load()*int64(max(1, targets[j].Weight)) {
			i, l = j, other
		}
	}
	l.pending.Add(1)
	return i, l.done
}

// byWeight draws a target at random, with a probability in proportion to its weight.
func byWeight(targets []Target) int {
	total := 0
	for _, t := range targets {
		total += max(1, t.Weight)
	}
	n := rand.IntN(total)
	for i, t := range targets {
		if n -= max(1, t.Weight); n < 0 {
			return i
		}
	}
	return 0
}

// load returns the load of targets[i], which it creates for a new target.
func (b *leastPending) load(targets []Target, i int) *load {
	if l, ok := b.loads.Load(targets[i].URL); ok {
		return l.(*load)
	}
	if b.known.Load() > int64(2*len(targets)+64) {
		b.forget(targets)
	}
	l := &load{}
	l.done = func(Outcome) { l.pending.Add(-1) }
	if existing, ok := b.loads.LoadOrStore(targets[i].URL, l); ok {
		return existing.(*load)
	}
	b.known.Add(1)
	return l
}

// forget drops the loads of targets that were removed.
func (b *leastPending) forget(targets []Target) {
	stay := make(map[*url.URL]bool, len(targets))
	for _, t := range targets {
		stay[t.URL] = true
	}
	b.loads.Range(func(key, _ any) bool {
		if !stay[key.(*url.URL)] {
			b.loads.Delete(key)
			b.known.Add(-1)
		}
		return true
	})
}

// HashBy returns a Balancer that sends requests with equal keys to the same target. It uses weighted
// rendezvous hashing (Thaler and Ravishankar, 1998; weights by Schindelhauer and Schomaker, 2005). When a
// target is removed, only its keys move. When a target is added, it takes over its share of the keys from all
// others. Gateways with the same targets make the same choice. The Balancer keeps no state, and each pick
// hashes every target. A request for which key returns an error goes to a random target. HashBy panics on a
// nil key.
func HashBy(key KeyFunc) Balancer {
	if key == nil {
		panic("gateway: HashBy: nil KeyFunc")
	}
	return hashBy{key}
}

type hashBy struct{ key KeyFunc }

func (b hashBy) Pick(r *http.Request, targets []Target) (int, func(Outcome)) {
	key, err := b.key(r)
	if err != nil {
		return byWeight(targets), nil
	}
	best, most := 0, math.Inf(-1)
	ofKey := strhash.New().Add(key).Add("\x00")
	for i, t := range targets {
		h := ofKey.Add(t.URL.Scheme).Add("://").Add(t.URL.Host).Add(t.URL.Path)
		// Uniform in (0, 1), both ends excluded.
		u := (float64(h.SplitMix()>>11) + 0.5) / (1 << 53)
		if score := -float64(max(1, t.Weight)) / math.Log(u); score > most {
			best, most = i, score
		}
	}
	return best, nil
}
