package gateway

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
)

// Balancer picks a target. Pick is called with healthy targets only, at least one, and must be safe for
// concurrent use. done is called once, when the exchange ends; it may be nil.
type Balancer interface {
	Pick(r *http.Request, targets []Target) (index int, done func(Outcome))
}

// RoundRobin picks the targets in turn, by weight, with the turns of a heavy one spread over the round
// (the smooth weighted round-robin of nginx). It keeps about 30 bytes a target.
func RoundRobin() Balancer { return &roundRobin{} }

type roundRobin struct {
	mu     sync.Mutex
	credit map[*url.URL]int // what each target has saved up
}

func (b *roundRobin) Pick(_ *http.Request, targets []Target) (int, func(Outcome)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.credit == nil || len(b.credit) > 2*len(targets)+64 {
		b.credit = make(map[*url.URL]int, len(targets)) // forget targets that are gone
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

// LeastPending picks two targets by chance and of these the one with fewer requests in flight for its
// weight (the power of two choices; Mitzenmacher, IEEE TPDS 12(10), 2001). It keeps about 140 bytes a target.
func LeastPending() Balancer { return &leastPending{} }

type leastPending struct {
	loads sync.Map // *url.URL to *load
	known atomic.Int64
}

// load is what one target has in flight.
type load struct {
	pending atomic.Int64
	done    func(Outcome) // made once, not once a request
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
		// Compares pending/weight without dividing. At rest the first choice stands, and it was by weight.
		if other.pending.Load()*int64(max(1, targets[i].Weight)) < l.pending.Load()*int64(max(1, targets[j].Weight)) {
			i, l = j, other
		}
	}
	l.pending.Add(1)
	return i, l.done
}

// byWeight picks a target by chance, each as often as its weight says.
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

func (b *leastPending) load(targets []Target, i int) *load {
	if l, ok := b.loads.Load(targets[i].URL); ok {
		return l.(*load)
	}
	if b.known.Load() > int64(2*len(targets)+64) {
		b.forget(targets)
	}
	l := &load{}
	l.done = func(Outcome) { l.pending.Add(-1) }
	if stands, ok := b.loads.LoadOrStore(targets[i].URL, l); ok {
		return stands.(*load)
	}
	b.known.Add(1)
	return l
}

// forget drops targets that are gone.
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

// HashBy sends each key to a target of its own, by weighted rendezvous (Thaler and Ravishankar 1998; the
// weights after Schindelhauer and Schomaker, 2005): a target that is lost moves only its own keys, one that
// comes takes its share from all. Gateways with the same targets agree. It remembers nothing; each pick
// hashes every target. A request without a key (the KeyFunc errs) goes to one by chance. A nil key panics.
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
	for i, t := range targets {
		h := fnv.New64a()
		_, _ = h.Write([]byte(key))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(t.URL.Scheme + "://" + t.URL.Host + t.URL.Path))
		// In (0, 1), evenly.
		u := (float64(mix(h.Sum64())>>11) + 0.5) / (1 << 53)
		if score := -float64(max(1, t.Weight)) / math.Log(u); score > most {
			best, most = i, score
		}
	}
	return best, nil
}

// mix spreads what FNV leaves close together (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
