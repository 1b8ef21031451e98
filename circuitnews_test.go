package gateway_test

import (
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestCircuitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const closed, half, open = gateway.CircuitClosed, gateway.CircuitHalfOpen, gateway.CircuitOpen
		c := gateway.NewCircuit("payments", &gateway.CircuitOptions{OpenFor: 4 * time.Second})
		start := time.Now()
		var told []gateway.CircuitChange
		c.Watch(func(ch gateway.CircuitChange) { told = append(told, ch) })

		playCircuit(t, c, "wait:1s fffff wait:4s half-open f wait:4s s trip:1m trip:2m wait:2m half-open trip:3s")
		at := func(d time.Duration) time.Time { return start.Add(d) }
		want := []gateway.CircuitChange{
			{"payments", at(1 * time.Second), closed, open, at(5 * time.Second), false},
			{"payments", at(5 * time.Second), open, half, time.Time{}, false},
			{"payments", at(5 * time.Second), half, open, at(9 * time.Second), false},
			{"payments", at(9 * time.Second), open, half, time.Time{}, false},
			{"payments", at(9 * time.Second), half, closed, time.Time{}, false},
			{"payments", at(9 * time.Second), closed, open, at(69 * time.Second), true},
			{"payments", at(129 * time.Second), open, half, time.Time{}, false},
			{"payments", at(129 * time.Second), half, open, at(132 * time.Second), true},
		}
		if got := c.Changes(); !reflect.DeepEqual(got, want) {
			t.Errorf("Changes:\n%v\nwant:\n%v", got, want)
		}
		if !reflect.DeepEqual(told, want) {
			t.Errorf("told:\n%v\nwant:\n%v", told, want)
		}

		c.Changes()[0].Circuit = "another"
		if got := c.Changes()[0].Circuit; got != "payments" {
			t.Error("Changes is not a copy")
		}

		playCircuit(t, c, "wait:3s s "+strings.Repeat("fffff wait:4s s ", 20))
		got := c.Changes()
		if len(got) != 32 || !reflect.DeepEqual(got, told[len(told)-32:]) {
			t.Errorf("of %d changes, %d are kept, which are not the last 32", len(told), len(got))
		}
	})
}

func TestCircuitWatch(t *testing.T) {
	// An "up" is a call of playCircuit that makes two changes.
	const up, open = "wait:10s s ", "fffff "

	t.Run("stop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			var a, b int
			stopA := c.Watch(func(gateway.CircuitChange) { a++ })
			playCircuit(t, c, open)
			c.Watch(func(gateway.CircuitChange) { b++ })
			playCircuit(t, c, up)
			stopA()
			stopA()
			playCircuit(t, c, open)
			if a != 3 || b != 3 {
				t.Errorf("a was told %d, b %d; want 3 and 3", a, b)
			}
		})
	})
	t.Run("stop from inside, of itself and of another", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			var a, b int
			var stopA, stopB func()
			stopA = c.Watch(func(gateway.CircuitChange) { a++; stopA(); stopB() })
			stopB = c.Watch(func(gateway.CircuitChange) { b++ })
			playCircuit(t, c, open+up+open)
			if a != 1 || b != 0 {
				t.Errorf("a was told %d, b %d; want 1 and 0", a, b)
			}
		})
	})
	t.Run("calls back into the circuit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			var seen []string
			c.Watch(func(ch gateway.CircuitChange) {
				seen = append(seen, ch.To.String())
				c.Changes()
				c.Watch(func(gateway.CircuitChange) {})()
				if ch.To == gateway.CircuitHalfOpen {
					c.Trip(time.Minute) // a change, while this one is told
				}
				if _, err := c.Allow(); err == nil {
					t.Error("an open circuit let through")
				}
			})
			second := 0
			c.Watch(func(ch gateway.CircuitChange) {
				if second++; ch.To.String() != seen[len(seen)-1] {
					t.Error("a change overtook another")
				}
			})
			playCircuit(t, c, open+"wait:10s")
			c.State()
			if !slices.Equal(seen, []string{"open", "half-open", "open"}) || second != 3 {
				t.Errorf("told %v, the second watcher %d times", seen, second)
			}
		})
	})
	t.Run("a watcher begun inside is told of later changes only", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			var seen []gateway.CircuitState
			var once sync.Once
			c.Watch(func(ch gateway.CircuitChange) {
				once.Do(func() {
					time.Sleep(10 * time.Second)
					c.State() // the second change, queued
					c.Watch(func(ch gateway.CircuitChange) { seen = append(seen, ch.To) })
				})
			})
			playCircuit(t, c, open+"half-open s closed")
			if !slices.Equal(seen, []gateway.CircuitState{gateway.CircuitClosed}) {
				t.Errorf("told %v", seen)
			}
		})
	})
	t.Run("panics", func(t *testing.T) {
		logged := captureDefaultLog(t)
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			told := 0
			c.Watch(func(gateway.CircuitChange) { panic("oops") })
			c.Watch(func(gateway.CircuitChange) { told++ })
			playCircuit(t, c, open+up+open+"refused")
			if told != 4 {
				t.Errorf("the other watcher was told %d changes, want 4", told)
			}
		})
		if n := strings.Count(logged.String(), "circuit=c panic=oops"); n != 4 {
			t.Errorf("logged %d times: %s", n, logged.String())
		}
	})
	t.Run("exits its goroutine", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			told := 0
			stop := c.Watch(func(gateway.CircuitChange) { runtime.Goexit() })
			c.Watch(func(gateway.CircuitChange) { told++ })
			go c.Trip(time.Second)
			synctest.Wait()
			stop()
			playCircuit(t, c, "open wait:1s half-open s closed")
			if told != 2 {
				t.Errorf("the other watcher was told %d changes, want 2", told)
			}
		})
	})
	t.Run("blocks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := gateway.NewCircuit("c", nil)
			release := make(chan bool)
			var seen []gateway.CircuitChange
			c.Watch(func(ch gateway.CircuitChange) { <-release; seen = append(seen, ch) })
			go c.Trip(10 * time.Second)
			synctest.Wait()
			// The goroutine that opened the circuit is blocked in the watcher. No other goroutine is.
			playCircuit(t, c, strings.Repeat(up+open, 1000))
			close(release)
			synctest.Wait()
			if len(seen) != 1025 {
				t.Errorf("told %d changes, want the one that it was told and the last 1024", len(seen))
			}
			for i := 2; i < len(seen); i++ {
				if seen[i].From != seen[i-1].To {
					t.Fatalf("change %d comes from %v, the one before went to %v", i, seen[i].From, seen[i-1].To)
				}
			}
		})
	})
	t.Run("nil", func(t *testing.T) {
		if panicOf(func() { gateway.NewCircuit("c", nil).Watch(nil) }) == "" {
			t.Error("no panic")
		}
	})
}
