package gatewayredis

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// leased returns n gateways with one limit and a lease each.
func leased(n, lease int, build func(opts *Options) *Limiter) []*Limiter {
	opts := patient()
	opts.Lease = lease
	var all []*Limiter
	for range n {
		all = append(all, build(opts))
	}
	return all
}

// TestLeaseExcess: eight gateways let pass what one limit does, and at most their leases more. The most is reached when
// each has a lease that is nearly unspent, and Redis has the whole burst again.
func TestLeaseExcess(t *testing.T) {
	t.Parallel()
	const count, lease, rate, burst = 8, 20, 2000, 200
	client := redistest.Start(t).Client()
	all := leased(count, lease, func(opts *Options) *Limiter { return NewTokenBucket(client, rate, burst, opts) })
	for round := range 3 {
		for _, l := range all {
			mustTake(t, l)
		}
		<-time.After(100 * time.Millisecond) // the burst is there again
		passed, took := takeAll(t, all)
		most := burst + count*lease + rate*took.Seconds()
		if least := burst + count*(lease-1); passed < least || float64(passed) > most+1 {
			t.Errorf("round %d: %d pass in %v, want %d to %.0f", round, passed, took, least, most)
		}
		t.Logf("round %d: %d pass in %v; without leases at most %.0f", round, passed, took, burst+rate*took.Seconds())
		<-time.After(100 * time.Millisecond)
	}
}

// takeAll takes from all gateways at once, until each has been refused.
func takeAll(t *testing.T, all []*Limiter) (passed int, took time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for _, l := range all {
		for range 4 {
			wg.Go(func() {
				n := 0
				for mustTake(t, l).OK {
					n++
				}
				mu.Lock()
				passed += n
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	return passed, time.Since(began)
}

// TestLeaseExcessInAnyInterval: the same under a random load, in every interval of it.
func TestLeaseExcessInAnyInterval(t *testing.T) {
	t.Parallel()
	const count, lease, rate, burst = 8, 10, 1000, 50
	client := redistest.Start(t).Client()
	all := leased(count, lease, func(opts *Options) *Limiter { return NewTokenBucket(client, rate, burst, opts) })
	type grant struct{ from, to time.Duration } // when it was asked for and had
	var mu sync.Mutex
	var grants []grant
	var wg sync.WaitGroup
	began := time.Now()
	for i, l := range all {
		wg.Go(func() {
			var own []grant
			for j := 0; time.Since(began) < time.Second; j++ {
				from := time.Since(began)
				if mustTake(t, l).OK {
					own = append(own, grant{from, time.Since(began)})
				}
				if j%(3+i) == 0 {
					<-time.After(time.Millisecond)
				}
			}
			mu.Lock()
			grants = append(grants, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.SortFunc(grants, func(a, b grant) int { return int(a.from - b.from) })
	for i := range grants {
		for j := i; j < len(grants); j += 7 {
			if grants[j].to < grants[i].from {
				continue
			}
			within := 0
			for k := i; k <= j; k++ {
				if grants[k].to <= grants[j].to {
					within++
				}
			}
			took := grants[j].to - grants[i].from
			if most := burst + count*lease + rate*took.Seconds() + 1; float64(within) > most {
				t.Fatalf("%d pass in %v, want at most %.0f", within, took, most)
			}
			if j > i+500 {
				break
			}
		}
	}
	if least := rate / 2; len(grants) < least {
		t.Errorf("%d pass in a second, want at least %d", len(grants), least)
	}
	t.Logf("%d pass in a second", len(grants))
}

// TestLeasesOfWindows: in an aligned window, there is no excess.
func TestLeasesOfWindows(t *testing.T) {
	const count, lease, limit = 8, 10, 200
	client := redistest.Start(t).Client()
	for name, build := range map[string]func(*Options) *Limiter{
		"fixed":   func(opts *Options) *Limiter { return NewFixedWindow(client, limit, 24*time.Hour, opts) },
		"sliding": func(opts *Options) *Limiter { return NewSlidingWindow(client, limit, 24*time.Hour, opts) },
	} {
		all := leased(count, lease, build)
		for _, l := range all {
			mustTake(t, l)
		}
		passed, _ := takeAll(t, all)
		if passed += count; passed != limit {
			t.Errorf("%s: %d pass, want %d", name, passed, limit)
		}
	}
}

// TestLeaseOutlivesNoWindow: what was leased in a window is not spent in the next.
func TestLeaseOutlivesNoWindow(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	const window = 300 * time.Millisecond
	all := leased(2, 100, func(opts *Options) *Limiter { return NewFixedWindow(client, 100, window, opts) })
	for range 4 {
		d := mustTake(t, all[0])
		if !d.OK || d.Remaining != 99 {
			t.Errorf("the first in a window: %+v", d)
		}
		<-time.After(d.ResetAfter + 10*time.Millisecond)
	}
}

// calls returns how often scripts were run.
func calls(t *testing.T, client *redis.Client) int {
	t.Helper()
	info, err := client.Info(context.Background(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, m := range regexp.MustCompile(`cmdstat_evalsha:calls=(\d+)`).FindAllStringSubmatch(info, -1) {
		n, _ := strconv.Atoi(m[1])
		sum += n
	}
	return sum
}

// TestLeaseSparesRoundTrips: Redis is asked once for each lease, also by many at once, and not again while it refuses.
func TestLeaseSparesRoundTrips(t *testing.T) {
	client := redistest.Start(t).Client()
	l := leased(1, 50, func(opts *Options) *Limiter { return NewTokenBucket(client, 0.001, 1000, opts) })[0]
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				if d := mustTake(t, l); !d.OK {
					t.Errorf("%+v", d)
				}
			}
		})
	}
	wg.Wait()
	if n := calls(t, client); n != 1000/50 {
		t.Errorf("%d scripts for 1000 units, want %d", n, 1000/50)
	}
	for range 100 {
		if d := mustTake(t, l); d.OK || d.RetryAfter < 999*time.Second {
			t.Errorf("%+v, want a refusal", d)
		}
	}
	if n := calls(t, client); n > 1000/50+1 {
		t.Errorf("%d scripts for refusals", n-1000/50)
	}
	if err := l.Return(t.Context(), "k", 1, gateway.Decision{OK: true}); err != nil {
		t.Error(err)
	}
	if d := mustTake(t, l); !d.OK {
		t.Errorf("after a return: %+v", d)
	}
}

// TestLeaseComesBack: what is not spent in a second can be taken by another gateway, after the next call here.
func TestLeaseComesBack(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	ctx := t.Context()
	two := leased(2, 50, func(opts *Options) *Limiter { return NewTokenBucket(client, 0.001, 100, opts) })
	for key := range 3 {
		if d, err := two[0].Take(ctx, fmt.Sprint(key), 1); err != nil || !d.OK || d.Remaining != 99 {
			t.Fatalf("%+v, %v", d, err)
		}
		if d, err := two[1].Take(ctx, fmt.Sprint(key), 51); err != nil || d.OK || d.Remaining != 50 {
			t.Fatalf("while units are leased: %+v, %v", d, err)
		}
	}
	<-time.After(leaseTime)
	// One key is asked for again; the others are swept.
	if d, err := two[0].Take(ctx, "0", 1); err != nil || !d.OK || d.Remaining != 98 {
		t.Errorf("after the lease: %+v, %v", d, err)
	}
	two[0].leases.l.Take(ctx, "0", 60)
	for key := 1; key < 3; key++ {
		until(t, "the leased units", patience, func() bool {
			two[0].leases.sweep()
			d, err := two[1].Take(ctx, fmt.Sprint(key), 99)
			return err == nil && d.OK
		})
	}
	if d, err := two[1].Take(ctx, "1", 1); err != nil || d.OK {
		t.Errorf("more than there is: %+v, %v", d, err)
	}
}

// TestLeasesAreBounded: a flood of keys does not grow the table.
func TestLeasesAreBounded(t *testing.T) {
	client := redistest.Start(t).Client()
	l := leased(1, 10, func(opts *Options) *Limiter { return NewTokenBucket(client, 1, 100, opts) })[0]
	for i := range l.leases.shards {
		for j := range maxLeases / leaseShards {
			l.leases.shards[i].pools[poolKey{key: fmt.Sprint("busy", j)}] = &pool{until: 1 << 62}
		}
	}
	if d, err := l.Take(t.Context(), "new", 1); err != nil || !d.OK || d.Remaining != 99 {
		t.Errorf("%+v, %v", d, err)
	}
	held := 0
	for i := range l.leases.shards {
		held += len(l.leases.shards[i].pools)
	}
	if held > maxLeases {
		t.Errorf("%d keys are held", held)
	}
}

// TestLeasedSlots: the slots of a leaky bucket keep their times. No two gateways use the same, and one whose time has passed
// is not used.
func TestLeasedSlots(t *testing.T) {
	t.Parallel()
	client := redistest.Start(t).Client()
	const rate = 20
	const slot = time.Second / rate
	two := leased(2, 4, func(opts *Options) *Limiter { return NewLeakyBucket(client, rate, 39, opts) })
	began := time.Now()
	var slots []int // by number
	for i := range 12 {
		l := two[i/2%2]
		d := mustTake(t, l)
		at := time.Since(began) + d.Wait
		if !d.OK {
			t.Fatalf("take %d: %+v", i, d)
		}
		slots = append(slots, int((at+slot/2)/slot))
	}
	if want := []int{0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13}; !slices.Equal(slots, want) && time.Since(began) < slot/2 {
		t.Errorf("the slots are %v, want %v", slots, want)
	}
	<-time.After(14*slot - time.Since(began)) // two slots of the first are left, 10 and 11, and 14 and 15 of the second
	for i, want := range []int{16, 14} {
		before := time.Since(began)
		d := mustTake(t, two[i])
		after := time.Since(began)
		want = max(want, int(after/slot)) // or those have passed already
		earliest, latest := int((before+d.Wait+slot/2)/slot), int((after+d.Wait+slot/2)/slot)
		if !d.OK || latest < []int{16, 14}[i] || earliest > want+1 {
			t.Errorf("gateway %d: slot %d to %d, want %d: %+v", i, earliest, latest, want, d)
		}
	}
}
