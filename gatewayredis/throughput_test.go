package gatewayredis

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// TestLoadThroughput compares a limiter with what redis-benchmark gets out of the same Redis with the same script, on
// as many keys. Rounds are interleaved. It is part of the long loads, and says figures only:
//
//	go test -run LoadThroughput -v -load 10s ./gatewayredis
func TestLoadThroughput(t *testing.T) {
	if !long() {
		t.Skip("without -load 10s")
	}
	program, err := exec.LookPath("redis-benchmark")
	if err != nil {
		t.Skip("redis-benchmark is not in the PATH")
	}
	s := redistest.Start(t)
	client := s.ClientWith(redis.Options{PoolSize: 64})
	build := func(lease int) *Limiter {
		return NewTokenBucket(client, 1e9, 1<<40, &Options{Timeout: time.Second, Lease: lease})
	}
	plain, leased := build(0), build(100)
	mustTake(t, plain)
	const keys, clients = 1000, 64
	each := *loadTime / 5
	var byPlain, byLease []float64
	for round := range 5 {
		reference := benchmark(t, program, s.Addr, plain, keys, clients)
		unleased := perSecond(t, plain, each, keys, clients)
		withLease := perSecond(t, leased, each, keys, clients)
		byPlain = append(byPlain, unleased/reference)
		byLease = append(byLease, withLease/unleased)
		t.Logf("round %d: redis-benchmark %.0f/s; limiter %.0f/s, %.2f of it; with leases of 100 %.0f/s, %.1f times that", round,
			reference, unleased, unleased/reference, withLease, withLease/unleased)
	}
	slices.Sort(byPlain)
	slices.Sort(byLease)
	t.Logf("medians: %.2f of redis-benchmark; leases of 100: %.1f times as many", byPlain[2], byLease[2])
	if byPlain[2] < 0.7 || byLease[2] < 20 {
		t.Error("want 0.70 and 20")
	}
}

// benchmark runs redis-benchmark with l's script and returns its calls a second.
func benchmark(t *testing.T, program, addr string, l *Limiter, keys, clients int) float64 {
	t.Helper()
	host, port, _ := cutAddr(addr)
	out, err := exec.Command(program, "-h", host, "-p", port, "-c", strconv.Itoa(clients), "-n", "150000", "-r", strconv.Itoa(keys), "-q",
		"evalsha", l.script.sha, "1", l.prefix+"{bench:__rand_int__}", "take", "1", l.limit, l.rate).CombinedOutput()
	m := regexp.MustCompile(`([0-9.]+) requests per second`).FindAllSubmatch(out, -1)
	if err != nil || len(m) == 0 {
		t.Fatalf("%v: %s", err, out)
	}
	f, _ := strconv.ParseFloat(string(m[len(m)-1][1]), 64)
	return f
}

func cutAddr(addr string) (host, port string, err error) {
	_, err = fmt.Sscanf(addr, "127.0.0.1:%s", &port)
	return "127.0.0.1", port, err
}

// perSecond returns how many decisions a second clients get that take from random keys.
func perSecond(t *testing.T, l *Limiter, d time.Duration, keys, clients int) float64 {
	t.Helper()
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("bench:%012d", i)
	}
	var total atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	stop := began.Add(d)
	for c := range clients {
		wg.Go(func() {
			n, i := 0, c
			for {
				if n%64 == 0 && time.Now().After(stop) {
					break
				}
				i = (i*1103515245 + 12345) & 0x7fffffff
				decision, err := l.Take(context.Background(), names[(i>>8)%keys], 1)
				if err != nil || !decision.OK || !splitsToRedis(decision) {
					t.Errorf("%+v, %v", decision, err)
					break
				}
				n++
			}
			total.Add(int64(n))
		})
	}
	wg.Wait()
	return float64(total.Load()) / time.Since(began).Seconds()
}
