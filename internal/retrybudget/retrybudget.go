// Package retrybudget keeps retries from multiplying the load of a service that is already down. It follows
// the retry budget of Twitter's Finagle: requests earn a share of a retry each, and time earns a few, so that
// a service with little traffic has retries too.
package retrybudget

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of a Budget.
const (
	PerSecond   = 3   // retries that each second earns; a new budget has as many
	floorSaved  = 30  // most retries of these that can be saved: those of ten seconds
	earnedSaved = 500 // most retries earned by requests that can be saved
)

// Budget counts the retries that may be made. It is safe for concurrent use.
type Budget struct {
	share float64
	floor *rate.Limiter // retries earned by the passing of time

	mu     sync.Mutex
	earned float64 // retries earned by requests
}

// New returns a budget in which each request earns share of a retry; with 0.2, five requests earn one. If
// share is not positive, requests earn nothing.
func New(share float64) *Budget {
	b := &Budget{share: share, floor: rate.NewLimiter(PerSecond, floorSaved)}
	b.floor.AllowN(time.Now(), floorSaved-PerSecond) // a limiter starts full
	return b
}

// Earn adds the share of one request.
func (b *Budget) Earn() {
	if b.share <= 0 {
		return
	}
	b.mu.Lock()
	b.earned = min(earnedSaved, b.earned+b.share)
	b.mu.Unlock()
}

// Spend takes one retry from the budget and reports whether there was one.
func (b *Budget) Spend() bool {
	b.mu.Lock()
	earned := b.earned >= 1
	if earned {
		b.earned--
	}
	b.mu.Unlock()
	return earned || b.floor.Allow()
}
