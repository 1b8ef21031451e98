package gatewayredis

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// TestCluster: limits, leases and news of circuits on three masters, one of which is lost and found.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	client := c.Client()
	for _, kind := range kinds {
		gatewaytest.TestLimiter(t, gatewaytest.LimiterTest{
			New: func(_ *testing.T, limit int, window time.Duration) gateway.Limiter {
				return kind.redis(client, limit, window, patient())
			},
		})
	}
	a, b := share(t, client, time.Minute), share(t, c.Client(), time.Minute)
	until(t, "subscriptions", patience, func() bool {
		sum := int64(0)
		for _, n := range c.Nodes {
			m, err := n.Client().PubSubNumSub(t.Context(), circuitsChannel).Result()
			if err != nil {
				t.Fatal(err)
			}
			sum += m[circuitsChannel]
		}
		return sum == 2
	})
	a.fail(t)
	until(t, "the other's opening", patience, func() bool { return b.State() == gateway.CircuitOpen })

	l := NewFixedWindow(client, 1_000_000, 24*time.Hour, &Options{
		Timeout: testTimeout, Prefix: freshPrefix(), Logger: slog.New(slog.DiscardHandler),
	})
	all := func() (redis, other int) {
		for i := range 60 {
			began := time.Now()
			d, err := l.Take(context.Background(), fmt.Sprint("key", i), 1)
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > testTimeout+slack {
				t.Errorf("a decision takes %v", took)
			}
			if splitsToRedis(d) {
				redis++
			} else {
				other++
			}
		}
		return redis, other
	}
	until(t, "all decisions by Redis", patience, func() bool { _, other := all(); return other == 0 })
	for i, n := range c.Nodes {
		keys, err := n.Client().Keys(t.Context(), "*").Result()
		if err != nil || !strings.Contains(fmt.Sprint(keys), "{key") {
			t.Errorf("node %d has %q, %v", i, keys, err)
		}
	}
	c.Nodes[1].Pause()
	if redis, other := all(); other == 0 || redis == 0 {
		t.Errorf("without a node: %d decisions by Redis, %d by the fallback", redis, other)
	}
	c.Nodes[1].Resume()
	took := until(t, "all decisions by Redis", patience, func() bool { _, other := all(); return other == 0 })
	t.Logf("back after %v", took)

	// A replica takes over from a master that is lost for good.
	replica := c.AddReplica(c.Nodes[2])
	c.Nodes[2].Kill()
	if _, other := all(); other == 0 {
		t.Error("without a node, all decisions are Redis'")
	}
	replica.Takeover()
	took = until(t, "all decisions by Redis", patience, func() bool { _, other := all(); return other == 0 })
	t.Logf("back after %v", took)
}

// TestSentinel: a limiter finds the new master.
func TestSentinel(t *testing.T) {
	t.Parallel()
	master, client := redistest.StartSentinel(t)
	l := NewTokenBucket(client, 0.001, 1_000_000, &Options{Timeout: testTimeout, Logger: slog.New(slog.DiscardHandler)})
	until(t, "a decision by Redis", patience, func() bool { return splitsToRedis(mustTake(t, l)) })
	master.Kill()
	if d := mustTake(t, l); splitsToRedis(d) || !d.OK {
		t.Errorf("without a master: %+v", d)
	}
	took := until(t, "a decision by the new master", patience, func() bool { return splitsToRedis(mustTake(t, l)) })
	t.Logf("back after %v", took)
}
