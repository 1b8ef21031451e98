package gateway

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/http"
)

// Branch is one of the handlers between which Split chooses.
type Branch struct {
	Name    string // added to the route's name for logs, as "checkout/canary"; "" adds nothing
	Weight  int    // share among the branches' sum, at most 1,000,000; 0 takes no requests
	Handler http.Handler
}

// Split sends each request to one branch, by weight: canaries and A/B tests.
//
// With a key, the same key always takes the same branch while weights stand, in every process; when
// weights change, only as many keys change branch as must, if the order of branches stays and they are
// two. A request for which key returns an error is refused with it. A nil key means chance.
//
// It panics without branches, on a nil Handler, on a Weight out of bounds, and when the weights sum up to 0.
func Split(key KeyFunc, branches ...Branch) http.Handler {
	s := &split{key: key, branches: make([]splitBranch, len(branches))}
	for i, b := range branches {
		if b.Handler == nil {
			panic(fmt.Sprintf("gateway: Split: branch %d (%q) has no handler", i, b.Name))
		}
		if b.Weight < 0 || b.Weight > maxWeight {
			panic(fmt.Sprintf("gateway: Split: branch %d (%q) has a weight out of bounds", i, b.Name))
		}
		s.total += uint64(b.Weight)
		s.branches[i] = splitBranch{Branch: b, below: s.total}
	}
	if s.total == 0 {
		panic("gateway: Split: no branch with a weight")
	}
	return s
}

type split struct {
	key      KeyFunc
	branches []splitBranch
	total    uint64
}

type splitBranch struct {
	Branch
	below uint64 // the sum of weights up to this one
}

func (s *split) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var point uint64
	if s.key == nil {
		point = rand.Uint64N(s.total)
	} else {
		key, err := s.key(r)
		if err != nil {
			refuse(w, r, err)
			return
		}
		point, _ = bits.Mul64(spread(key), s.total) // the hash's place in [0, total)
	}
	for i := range s.branches {
		if b := &s.branches[i]; point < b.below {
			if b.Name != "" {
				exchangeFrom(r.Context()).branched(b.Name)
			}
			b.Handler.ServeHTTP(w, r)
			return
		}
	}
}

// branched adds the branch that was chosen to the route's name.
func (ex *exchange) branched(name string) {
	for ; ex != nil; ex = ex.whole {
		ex.mu.Lock()
		if ex.route == "" && ex.req != nil {
			ex.route = ex.req.Pattern
		}
		if ex.route != "" {
			ex.route += "/"
		}
		ex.route += name
		ex.mu.Unlock()
	}
}

// spread hashes s to 64 bits, the same in every process: FNV-1a, whose weak high bits are then mixed by
// the finalizer of MurmurHash3.
func spread(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
