package gatewayredis

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
)

// sharer is a gateway that shares a circuit.
type sharer struct {
	*gateway.Circuit
	stop func()
}

func share(t *testing.T, client redis.UniversalClient, openFor time.Duration) *sharer {
	t.Helper()
	c := gateway.NewCircuit("payments", &gateway.CircuitOptions{Failures: 1, OpenFor: openFor})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := ShareCircuits(ctx, client, gateway.NewCircuit("other", nil), c); err != context.Canceled {
			t.Errorf("ShareCircuits: %v", err)
		}
	})
	s := &sharer{c, func() { cancel(); wg.Wait() }}
	t.Cleanup(s.stop)
	return s
}

// fail opens the circuit by its own count.
func (s *sharer) fail(t *testing.T) {
	t.Helper()
	done, err := s.Allow()
	if err != nil {
		t.Fatal(err)
	}
	done(gateway.OutcomeTimeout, 0)
	if s.State() != gateway.CircuitOpen {
		t.Fatal("the circuit is not open")
	}
}

// subscribed waits for so many subscriptions.
func subscribed(t *testing.T, client redis.UniversalClient, n int64) {
	t.Helper()
	until(t, "subscriptions", patience, func() bool {
		m, err := client.PubSubNumSub(t.Context(), circuitsChannel).Result()
		return err == nil && m[circuitsChannel] == n
	})
}

// TestShareCircuits: one opens by its own count, the others follow for as long, and nobody echoes.
func TestShareCircuits(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	client := s.Client()
	watch := client.Subscribe(t.Context(), circuitsChannel)
	defer watch.Close()
	const openFor = 2 * time.Second // in which all hear of it
	var all []*sharer
	for range 4 {
		all = append(all, share(t, s.Client(), openFor))
	}
	subscribed(t, client, 5)
	all[0].fail(t)
	until := func(want gateway.CircuitState, within time.Duration) {
		t.Helper()
		until(t, want.String(), within, func() bool {
			for _, s := range all {
				if s.State() != want {
					return false
				}
			}
			return true
		})
	}
	until(gateway.CircuitOpen, patience)
	for i, s := range all[1:] {
		c := s.Changes()
		if len(c) != 1 || !c[0].Tripped || c[0].Until.Sub(c[0].At) > openFor {
			t.Errorf("circuit %d: %+v", i+1, c)
		}
	}
	until(gateway.CircuitHalfOpen, openFor+slack)
	all[3].fail(t) // its probe
	until(gateway.CircuitOpen, patience)

	got := 0
	for {
		m, err := watch.ReceiveTimeout(t.Context(), 500*time.Millisecond)
		if err != nil {
			break
		}
		if _, ok := m.(*redis.Message); ok {
			got++
		}
	}
	if got != 2 {
		t.Errorf("%d messages for 2 openings", got)
	}
}

// TestNewsOfCircuits: what is old, foreign or nonsense trips nothing, and nothing trips for longer than it was open.
func TestNewsOfCircuits(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	client := s.Client()
	now, err := client.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	news := func(after, lasts time.Duration, name string) string {
		b, _ := json.Marshal(circuitNews{"another", name, now.Add(after).UnixMicro(), lasts.Microseconds()})
		return string(b)
	}
	const year = 365 * 24 * time.Hour
	for _, tt := range []struct {
		name, message string
		least, most   time.Duration // that it is open; 0: closed
	}{
		{"fresh", news(time.Minute, time.Minute, "payments"), 50 * time.Second, time.Minute},
		{"held up", news(20*time.Second, time.Minute, "payments"), 10 * time.Second, 20 * time.Second},
		{"old", news(-time.Microsecond, time.Minute, "payments"), 0, 0},
		{"very old", news(-year, time.Minute, "payments"), 0, 0},
		{"of a clock that went back", news(year, time.Minute, "payments"), 50 * time.Second, time.Minute},
		{"for ever", news(year, year, "payments"), 59 * time.Minute, time.Hour},
		{"for less than nothing", news(time.Minute, -1, "payments"), 0, 0},
		{"overflow", `{"circuit":"payments","until":9223372036854775807,"for":9223372036854775807}`, 59 * time.Minute, time.Hour},
		{"underflow", `{"circuit":"payments","until":-9223372036854775808,"for":9223372036854775807}`, 0, 0},
		{"of another circuit", news(time.Minute, time.Minute, "users"), 0, 0},
		{"no JSON", "payments", 0, 0},
		{"wrong types", `{"circuit":"payments","until":"x","for":1}`, 0, 0},
		{"empty", "", 0, 0},
		{"long", news(time.Minute, time.Minute, "payments") + strings.Repeat(" ", 2000), 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := share(t, client, time.Second)
			subscribed(t, client, 1)
			client.Publish(t.Context(), circuitsChannel, tt.message)
			if tt.most > 0 {
				until(t, "open", patience, func() bool { return g.State() == gateway.CircuitOpen })
				c := g.Changes()[0]
				if d := c.Until.Sub(c.At); d < tt.least || d > tt.most+time.Millisecond {
					t.Errorf("open for %v, want %v to %v", d, tt.least, tt.most)
				}
			} else {
				client.Publish(t.Context(), circuitsChannel, news(time.Minute, time.Minute, "other"))
				<-time.After(50 * time.Millisecond)
				if g.State() != gateway.CircuitClosed {
					t.Errorf("%s", g.State())
				}
			}
			g.stop()
			subscribed(t, client, 0)
		})
	}
}

// TestShareCircuitsOutlivesOutages: a gateway that is cut off decides alone, publishes when Redis is back what still
// lasts, and hears the others again.
func TestShareCircuitsOutlivesOutages(t *testing.T) {
	for _, tt := range []struct {
		name          string
		breaks, heals func(*redistest.Server)
	}{
		{"killed", (*redistest.Server).Kill, (*redistest.Server).Restart},
		{"stopped", (*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			a, b := share(t, s.Client(), time.Minute), share(t, s.Client(), time.Minute)
			subscribed(t, s.Client(), 2)
			tt.breaks(s)
			a.fail(t)
			<-time.After(300 * time.Millisecond)
			if b.State() != gateway.CircuitClosed {
				t.Error("news without Redis")
			}
			tt.heals(s)
			until(t, "the other's opening", patience, func() bool { return b.State() == gateway.CircuitOpen })
			if c := b.Changes()[0]; c.Until.Sub(c.At) > time.Minute-300*time.Millisecond {
				t.Errorf("open for %v, which is longer than the first", c.Until.Sub(c.At))
			}
		})
	}
}
