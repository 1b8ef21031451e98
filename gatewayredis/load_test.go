package gatewayredis

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// The loads take seconds or, with
//
//	go test -run Load -v -load 10s ./gatewayredis
//
// ten each, for the figures of bench/RESULTS.md.
var loadTime = flag.Duration("load", 400*time.Millisecond, "how long each load lasts")

const (
	loadGateways = 4
	loadClients  = 64 // of each gateway
	loadRate     = 1000
	loadBurst    = 200
)

// sample is one decision.
type sample struct {
	at   time.Duration // since the begin of the load
	took time.Duration
	ok   bool
}

// load takes from gateways with one limit until it is over. Each has a client of its own and so many goroutines, which
// pause for a millisecond after a refusal.
func load(t *testing.T, s *redistest.Server, opts *Options) (limiters []*Limiter, run func(d time.Duration) []sample) {
	for range loadGateways {
		o := *opts
		l := NewTokenBucket(s.ClientWith(redis.Options{}), loadRate, loadBurst, &o)
		mustTake(t, l)
		limiters = append(limiters, l)
	}
	return limiters, func(d time.Duration) []sample {
		var mu sync.Mutex
		var all []sample
		var wg sync.WaitGroup
		var failed atomic.Int64
		began := time.Now()
		for _, l := range limiters {
			for range loadClients {
				wg.Go(func() {
					var own []sample
					for {
						at := time.Since(began)
						if at >= d {
							break
						}
						decision, err := l.Take(context.Background(), "one", 1)
						if err != nil {
							failed.Add(1)
						}
						own = append(own, sample{at, time.Since(began) - at, decision.OK})
						if !decision.OK {
							<-time.After(time.Millisecond)
						}
					}
					mu.Lock()
					all = append(all, own...)
					mu.Unlock()
				})
			}
		}
		wg.Wait()
		if n := failed.Load(); n > 0 {
			t.Errorf("%d decisions fail", n)
		}
		return all
	}
}

// admitted returns how many decisions let pass.
func admitted(all []sample) (n int) {
	for _, s := range all {
		if s.ok {
			n++
		}
	}
	return n
}

// quantile returns the time of the slowest but for a share of those that began in an interval.
func quantile(all []sample, q float64, from, to time.Duration) time.Duration {
	var took []time.Duration
	for _, s := range all {
		if s.at >= from && s.at < to {
			took = append(took, s.took)
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(q*float64(len(took))))]
}

// TestLoad: one limit of 1,000 a second under four gateways of 64 clients each lets pass what it should.
func TestLoad(t *testing.T) {
	for _, lease := range []int{0, 10, 100} {
		t.Run(fmt.Sprint("lease ", lease), func(t *testing.T) {
			s := redistest.Start(t)
			opts := patient()
			opts.Lease = lease
			_, run := load(t, s, opts)
			all := run(*loadTime)
			got := admitted(all) + loadGateways
			took := lasted(all)
			bound := loadBurst + loadRate*took.Seconds()
			t.Logf("%d of %d decisions let pass in %v; the bound is %.0f: %+.2f %%; p50 %v, p99 %v", got, len(all), took, bound,
				(float64(got)/bound-1)*100, quantile(all, .5, 0, *loadTime), quantile(all, .99, 0, *loadTime))
			least := 0.99 * bound
			if !long() { // a slow machine may not ask often enough
				least = 0.5 * bound
			}
			if most := 1.01*bound + 1; float64(got) < least || float64(got) > most {
				t.Errorf("%d pass, want %.0f to %.0f", got, least, most)
			}
		})
	}
}

// long reports whether the loads are those for the figures.
func long() bool { return *loadTime >= 5*time.Second }

// lasted returns when the last decision was there.
func lasted(all []sample) (d time.Duration) {
	for _, s := range all {
		d = max(d, s.at+s.took)
	}
	return d
}

// TestLoadThroughOutages: under the same load, Redis is killed and started again, or stopped for a time. No decision
// fails or takes long, and there is always a limit.
func TestLoadThroughOutages(t *testing.T) {
	for _, tt := range []struct {
		name          string
		breaks, heals func(*redistest.Server)
	}{
		{"kill -9, then a new one", (*redistest.Server).Kill, (*redistest.Server).Restart},
		{"SIGSTOP", (*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		for _, lease := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s, lease %d", tt.name, lease), func(t *testing.T) {
				s := redistest.Start(t)
				opts := &Options{Prefix: freshPrefix(), Lease: lease, Logger: slog.New(slog.DiscardHandler)}
				limiters, run := load(t, s, opts)
				announced(t, limiters)
				outage := *loadTime / 2
				from := *loadTime / 4
				var broken, healed, back time.Duration
				var wg sync.WaitGroup
				began := time.Now()
				before := runtime.NumGoroutine()
				wg.Go(func() {
					<-time.After(from)
					tt.breaks(s)
					broken = time.Since(began)
					<-time.After(outage)
					tt.heals(s)
					healed = time.Since(began)
					back = until(t, "Redis for all", patience, func() bool { return !slices.ContainsFunc(limiters, isAway) })
				})
				all := run(*loadTime)
				wg.Wait()
				reportOutage(t, all, broken, healed, back)
				if now := runtime.NumGoroutine(); now > before+loadGateways*(maxOrphans+10) {
					t.Errorf("%d goroutines, %d before", now, before)
				}
			})
		}
	}
}

func isAway(l *Limiter) bool { return l.link.away.Load() != nil }

// announced waits until the gateways have seen each other.
func announced(t *testing.T, limiters []*Limiter) {
	t.Helper()
	for range 2 {
		for _, l := range limiters {
			until(t, "an announcement", patience, func() bool { return !l.roster.busy.Load() })
			l.roster.announced.Store(0)
			l.roster.announce()
		}
	}
	until(t, "four gateways", patience, func() bool {
		return !slices.ContainsFunc(limiters, func(l *Limiter) bool { return l.roster.known().count != loadGateways })
	})
}

func reportOutage(t *testing.T, all []sample, broken, healed, back time.Duration) {
	t.Helper()
	after := broken + 50*time.Millisecond + 20*time.Millisecond // the first timeout
	slowest := quantile(all, 1, 0, *loadTime)
	p99 := quantile(all, .99, after, healed)
	got := admitted(all) + loadGateways
	bound := loadBurst + loadRate*loadTime.Seconds()
	t.Logf("%d decisions, the slowest takes %v; without Redis from %v to %v: p50 %v, p99 %v; back after %v; %d pass, %.2f of the bound %.0f",
		len(all), slowest, broken.Round(time.Millisecond), healed.Round(time.Millisecond), quantile(all, .5, after, healed), p99,
		back, got, float64(got)/bound, bound)
	late := slack
	if long() {
		late = 300 * time.Millisecond
	}
	if back > time.Second+late-300*time.Millisecond {
		t.Errorf("Redis decides %v after it is back", back)
	}
	if slowest > 50*time.Millisecond+late {
		t.Errorf("a decision takes %v", slowest)
	}
	if limit := time.Millisecond; p99 > limit && long() {
		t.Errorf("p99 without Redis is %v", p99)
	}
	if float64(got) > 2*bound {
		t.Errorf("%d pass, want at most %.0f", got, 2*bound)
	}
}
