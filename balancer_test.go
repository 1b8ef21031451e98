package gateway_test

import (
	"fmt"
	"math"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

func weighted(weights ...int) []gateway.Target {
	var targets []gateway.Target
	for i, w := range weights {
		targets = append(targets, gateway.Target{URL: &url.URL{Scheme: "http", Host: fmt.Sprint(i)}, Weight: w})
	}
	return targets
}

func TestRoundRobin(t *testing.T) {
	b := gateway.RoundRobin()
	targets := weighted(5, 1, 0)
	var order strings.Builder
	for range 14 {
		i, done := b.Pick(nil, targets)
		if done != nil {
			done(gateway.OutcomeOK)
		}
		fmt.Fprint(&order, i)
	}
	if got := order.String(); got != "00102000010200" {
		t.Errorf("order %s, want nginx's", got)
	}
	for range 300 {
		b.Pick(nil, weighted(1, 1, 1)) // targets that come and go are forgotten, and trouble nobody
	}
	counts := map[int]int{}
	for range 70 {
		i, _ := b.Pick(nil, targets)
		counts[i]++
	}
	if counts[0] != 50 || counts[1] != 10 {
		t.Errorf("after others came and went: %v", counts)
	}
}

func TestLeastPending(t *testing.T) {
	t.Run("fewest win", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(1, 1)
		var counts [2]int
		for range 100 {
			i, _ := b.Pick(nil, targets) // none ever ends
			counts[i]++
		}
		if math.Abs(float64(counts[0]-counts[1])) > 2 {
			t.Errorf("pending %v", counts)
		}
	})
	t.Run("by weight at rest", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(3, 1)
		var counts [2]int
		for range 10_000 {
			i, done := b.Pick(nil, targets)
			counts[i]++
			done(gateway.OutcomeOK)
		}
		if share := float64(counts[0]) / 10_000; share < 0.7 || share > 0.8 {
			t.Errorf("share %v, want 0.75", share)
		}
	})
	t.Run("by weight under load", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(3, 1)
		var counts [2]int
		for range 400 {
			i, _ := b.Pick(nil, targets)
			counts[i]++
		}
		if counts[0] < 290 || counts[0] > 310 {
			t.Errorf("pending %v, want 300 and 100", counts)
		}
	})
	t.Run("one", func(t *testing.T) {
		b := gateway.LeastPending()
		if i, done := b.Pick(nil, weighted(1)); i != 0 || done == nil {
			t.Errorf("picked %d", i)
		}
	})
	t.Run("at once", func(t *testing.T) {
		b := gateway.LeastPending()
		targets := weighted(1, 2, 3)
		var pending [3]atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					i, done := b.Pick(nil, targets)
					pending[i].Add(1)
					pending[i].Add(-1)
					done(gateway.OutcomeOK)
					b.Pick(nil, weighted(1, 1)) // targets come and go
				}
			})
		}
		wg.Wait()
	})
}

func TestHashBy(t *testing.T) {
	b := gateway.HashBy(gateway.KeyByHeader("X-Key"))
	where := func(targets []gateway.Target, key string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Key", key)
		i, done := b.Pick(r, targets)
		if done != nil {
			done(gateway.OutcomeOK)
		}
		return targets[i].URL.Host
	}
	all := weighted(1, 1, 2, 1)
	const keys = 20_000
	before := map[string]string{}
	counts := map[string]int{}
	for i := range keys {
		key := fmt.Sprint("key-", i)
		before[key] = where(all, key)
		counts[before[key]]++
	}
	for host, share := range map[string]float64{"0": 0.2, "1": 0.2, "2": 0.4, "3": 0.2} {
		if got := float64(counts[host]) / keys; got < share-0.02 || got > share+0.02 {
			t.Errorf("target %s has %.3f of the keys, want %.2f", host, got, share)
		}
	}
	lost := append(append([]gateway.Target{}, all[:1]...), all[2:]...) // without 1
	for key, host := range before {
		after := where(lost, key)
		if host != "1" && after != host {
			t.Fatalf("%s moved from %s to %s", key, host, after)
		}
	}
	// Without a key, the target is random.
	got := map[int]bool{}
	for range 100 {
		i, _ := b.Pick(httptest.NewRequest("GET", "/", nil), all)
		got[i] = true
	}
	if len(got) < 3 {
		t.Errorf("requests without a key went to %v", got)
	}
}
