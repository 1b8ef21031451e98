package bench

import (
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/sony/gobreaker/v2"

	"github.com/seed-96248d0c/gateway"
)

// BenchmarkCircuit asks a circuit and tells it that all went well, and is refused by an open one. Each opens after five
// failures in a row. "rate" counts over ten seconds as well, where the peer can.
func BenchmarkCircuit(b *testing.B) {
	bare := func() *gobreaker.TwoStepCircuitBreaker[any] {
		return gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
			Timeout:     time.Hour,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 5 },
		})
	}
	rolling := gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Interval: 10 * time.Second, BucketPeriod: time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.ConsecutiveFailures >= 5 || c.Requests >= 20 && c.TotalFailures*2 >= c.Requests
		},
	})
	ours := func(opts *gateway.CircuitOptions) func() bool {
		c := gateway.NewCircuit("c", opts)
		return func() bool {
			done, err := c.Allow()
			if err != nil {
				return false
			}
			done(gateway.OutcomeOK, 200)
			return true
		}
	}
	two := func(c *gobreaker.TwoStepCircuitBreaker[any]) func() bool {
		return func() bool {
			done, err := c.Allow()
			if err != nil {
				return false
			}
			done(nil)
			return true
		}
	}
	failsafe := func(c circuitbreaker.CircuitBreaker[any]) func() bool {
		return func() bool {
			if !c.TryAcquirePermit() {
				return false
			}
			c.RecordSuccess()
			return true
		}
	}
	tripped := gateway.NewCircuit("c", nil)
	tripped.Trip(time.Hour)
	opened := bare()
	for range 5 {
		done, err := opened.Allow()
		if err != nil {
			b.Fatal(err)
		}
		done(gateway.ErrBadGateway)
	}
	shut := circuitbreaker.NewBuilder[any]().WithDelay(time.Hour).Build()
	shut.Open()
	for _, peer := range []struct {
		name string
		ask  func() bool
		want bool
	}{
		{"closed/gateway", ours(nil), true},
		{"closed/gobreaker", two(bare()), true},
		{"closed/failsafe-go", failsafe(circuitbreaker.NewBuilder[any]().WithFailureThreshold(5).Build()), true},
		{"rate/gateway", ours(&gateway.CircuitOptions{Ratio: 0.5}), true},
		{"rate/gobreaker", two(rolling), true},
		{"rate/failsafe-go", failsafe(circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build()), true},
		{"open/gateway", func() bool { _, err := tripped.Allow(); return err == nil }, false},
		{"open/gobreaker", two(opened), false},
		{"open/failsafe-go", failsafe(shut), false},
	} {
		b.Run(peer.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if peer.ask() != peer.want {
					b.Fatal("the circuit has another state")
				}
			}
		})
	}
}
