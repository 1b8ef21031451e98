package gateway

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/http"

	"github.com/seed-96248d0c/gateway/internal/strhash"
)

// Branch is one of the handlers that Split chooses from.
type Branch struct {
	Name    string       // appended to the route's name in logs, as in "checkout/canary"; "" appends nothing
	Weight  int          // the branch gets the share Weight / sum of all weights; at most 1,000,000; 0 means no requests
	Handler http.Handler // required
}

// Split returns a handler that sends each request to one branch, in proportion to the weights. Use it for
// canary releases and A/B tests.
//
// Requests with the same key go to the same branch, in every process with the same weights. With two branches
// in the same order, a change of weights moves as few keys as possible. For example, from 95:5 to 80:20, no
// key leaves the second branch. When key returns an error, the request is refused with that error. With a nil
// key, each request goes to a random branch.
//
// The handler is safe for concurrent use if the branches are. Split panics without branches, on a nil
// Handler, on a Weight out of bounds, and when the sum of weights is 0.
func Split(key KeyFunc, branches ...Branch) http.Handler {
	s := &split{key: key, branches: make([]splitBranch, len(branches))}
	for i, b := range branches {
		if isNilHandler(b.Handler) {
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
	below uint64 // the sum of the weights of this branch and those before it
}

func (s *split) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var point uint64
	if s.key == nil {
		point = rand.Uint64N(s.total)
	} else {
		key, err := s.key(r)
		if err != nil {
			refuseUndecided(w, r, err)
			return
		}
		point, _ = bits.Mul64(strhash.New().Add(key).Murmur3(), s.total) // scales the hash to [0, total)
	}
	for i := range s.branches {
		if b := &s.branches[i]; point < b.below {
			if b.Name != "" {
				exchangeFrom(r.Context()).addBranch(b.Name)
			}
			b.Handler.ServeHTTP(w, r)
			return
		}
	}
}

// addBranch adds the name of the chosen branch to the route's name.
func (ex *exchange) addBranch(name string) {
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
