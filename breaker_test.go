package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// letters of the scripts below.
var circuitOutcomes = map[byte]gateway.Outcome{
	's': gateway.OutcomeOK,
	'f': gateway.OutcomeUpstreamError,
	't': gateway.OutcomeTimeout,
	'a': gateway.OutcomeAborted,
	'c': gateway.OutcomeClientCanceled,
	'r': gateway.OutcomeRejected,
	'i': gateway.OutcomeInternal,
}

// playCircuit does what script says, word by word:
//
//	s f t a c r i    a call that ends so at once; several may stand in one word
//	1=allow          a call that is named 1
//	1=s              its done is called so
//	wait:2s          time passes
//	trip:2s          Trip
//	refused          Allow refuses
//	closed half-open open   the state
func playCircuit(t *testing.T, c *gateway.Circuit, script string) {
	t.Helper()
	calls := make(map[string]func(gateway.Outcome, int))
	allow := func(word string) func(gateway.Outcome, int) {
		done, err := c.Allow()
		if err != nil {
			t.Fatalf("%s: at %q: refused: %v", script, word, err)
		}
		return done
	}
	for _, word := range strings.Fields(script) {
		name, said, isCall := strings.Cut(word, "=")
		verb, arg, _ := strings.Cut(word, ":")
		d, _ := time.ParseDuration(arg)
		switch {
		case isCall && said == "allow":
			calls[name] = allow(word)
		case isCall:
			for i := range len(said) {
				calls[name](circuitOutcomes[said[i]], 200)
			}
		case verb == "wait":
			time.Sleep(d)
		case verb == "trip":
			c.Trip(d)
		case word == "refused":
			if _, err := c.Allow(); !errors.Is(err, gateway.ErrCircuitOpen) {
				t.Fatalf("%s: Allow says %v, want a refusal", script, err)
			}
		case word == "closed", word == "half-open", word == "open":
			if got := c.State().String(); got != word {
				t.Fatalf("%s: state is %s, want %s", script, got, word)
			}
		default:
			for i := range len(word) {
				o, ok := circuitOutcomes[word[i]]
				if !ok {
					t.Fatalf("%s: what is %q?", script, word)
				}
				allow(word)(o, 200)
			}
		}
	}
}

// successes are words for n calls that succeed, aborts for their ends, last to first.
func successes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "n%d=allow n%[1]d=s ", i)
	}
	return b.String()
}

func aborts(n int) string {
	var b strings.Builder
	for i := n - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "n%d=a ", i)
	}
	return b.String()
}

func TestCircuit(t *testing.T) {
	never := &gateway.CircuitOptions{Failures: -1}
	ratio := &gateway.CircuitOptions{Failures: -1, Ratio: 0.5, MinRequests: 4, Window: 20 * time.Second}
	tests := []struct {
		name   string
		opts   *gateway.CircuitOptions
		script string
	}{
		{"defaults open at five", nil, "ffff closed f open refused"},
		{"kinds of failure", nil, "ftaf closed t open"},
		{"a success ends the row", nil, "ffff s ffff closed f open"},
		{"neutral ends no row", nil, "ffff cri closed f open"},
		{"neutral is no failure", nil, "cccccc rrrrrr iiiiii closed"},
		{"Failures 1", &gateway.CircuitOptions{Failures: 1}, "s closed f open"},
		{"Failures negative", never, "ffffffffffffffffffffffffffffff closed"},
		{"a neutral that is said first is the last word", nil, "ffff 1=allow 1=cf closed"},
		{"a failure said twice is one", nil, "1=allow 1=ffffff closed"},
		{"a failure then abort is one", nil, "fff 1=allow 1=fa closed f open"},
		{"a success after a failure is ignored", nil, "ffff 1=allow 1=f open"},

		{"OpenFor default", nil, "fffff wait:9999ms refused open wait:1ms half-open"},
		{"OpenFor", &gateway.CircuitOptions{OpenFor: time.Second}, "fffff wait:999ms refused wait:1ms half-open"},
		{"half-open by Allow", nil, "fffff wait:10s s closed"},
		{"a probe fails", nil, "fffff wait:10s f open refused wait:9999ms open wait:1ms half-open s closed"},
		{"one probe", nil, "fffff wait:10s 1=allow refused half-open refused 1=s closed s"},
		{"a neutral probe frees its place", nil, "fffff wait:10s 1=allow refused 1=c half-open 2=allow refused 2=r 3=allow 3=i 4=allow 4=s closed"},
		{"two probes", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s 1=allow 2=allow refused 1=s half-open refused 2=s closed"},
		{"two probes one after the other", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s s half-open s closed"},
		{"success then failure of probes", &gateway.CircuitOptions{Probes: 3}, "fffff wait:10s s half-open s half-open f open"},
		{"a neutral between probes", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s s c s closed"},
		{"the row starts anew", nil, "fffff wait:10s s ffff closed f open"},
		{"a probe of an earlier half-open is ignored", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s 1=allow 2=allow 2=f open 1=s wait:10s half-open 1=s s half-open s closed"},
		{"a call of the closed period is no probe", nil, "1=allow 2=allow fffff wait:10s half-open 1=f 2=s half-open s closed 1=f 2=f fff closed"},

		{"a hung probe", nil, "fffff wait:10s 1=allow wait:9999ms refused wait:1ms 2=allow refused 2=s closed"},
		{"a hung probe frees one place, once", nil, "fffff wait:10s 1=allow wait:10s 2=allow 1=c refused 2=c 3=allow refused"},
		{"a hung probe succeeds late", nil, "fffff wait:10s 1=allow wait:10s 2=allow 1=s closed"},
		{"a hung probe fails late", nil, "fffff wait:10s 1=allow wait:10s 2=allow 1=f open 2=s open"},
		{"two hang", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s 1=allow wait:5s 2=allow refused wait:5s 3=allow refused wait:5s 4=allow refused 3=s half-open 4=s closed"},

		{"cut off: back to the row before", nil, "ffff 1=allow 1=s closed 1=a open"},
		{"cut off: plus those since", nil, "ff 1=allow 1=s ff closed 1=a open"},
		{"cut off: not one more", nil, "ff 1=allow 1=s f closed 1=a closed f open"},
		{"cut off: a later success stands", nil, "ffff 1=allow 1=s s 1=a closed fff closed f open"},
		{"cut off: a later success stands, with failures", nil, "ffff 1=allow 1=s s ff 1=a f closed f open"},
		{"cut off: the later was cut off too", nil, "fff 1=allow 1=s 2=allow 2=s 2=a closed 1=a open"},
		{"cut off: the later of two, but one", nil, "ff 1=allow 1=s 2=allow 2=s 2=a closed 1=a closed f open"},
		{"cut off: three, the first stays", nil, "ffff s 1=allow 1=s 2=allow 2=s 1=a 2=a closed ff closed f open"},
		{"cut off: the middle, the last, the first", nil, "ff 1=allow 1=s 2=allow 2=s 3=allow 3=s 2=a 3=a closed 1=a open"},
		{"cut off: neutral between", nil, "ffff 1=allow 1=s cri 1=a open"},
		{"cut off: many successes ago", nil, "1=allow 1=sa " + strings.Repeat("s", 254) + " ff 2=allow 2=s f s 2=a closed fff closed f open"},
		{"cut off: known of the last 256", &gateway.CircuitOptions{Failures: 1000},
			strings.Repeat("f", 500) + " 1=allow 1=s s " + successes(256) + " closed " + aborts(256) + " 1=a closed " + strings.Repeat("f", 742) + " closed f open"},
		{"cut off: twice is once", nil, "fff 1=allow 1=saaaa closed f open"},
		{"cut off: only an abort takes back", nil, "ffff 1=allow 1=sftsric closed f closed 1=a open"},
		{"cut off: of an earlier closed period", nil, "1=allow 1=s fffff wait:10s s ffff 1=a closed f open"},
		{"cut off: while open", nil, "1=allow 1=s fffff 1=a open wait:10s 1=a half-open"},
		{"cut off: the probe that closed it", nil, "fffff wait:10s 1=allow 1=s closed ffff 1=a closed f open"},
		{"cut off: a probe, still half-open", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s 1=allow 1=s half-open 1=a open"},
		{"cut off: unless IsFailure knows better", &gateway.CircuitOptions{IsFailure: func(o gateway.Outcome, _ int) bool { return o == gateway.OutcomeTimeout }},
			"tttt 1=allow 1=sa tttt closed t open"},

		{"ratio", ratio, "fsf closed s open"},
		{"ratio, too few", ratio, "fff closed f open"},
		{"ratio, not reached", ratio, "sssf sf sf f closed f open"},
		{"ratio, neutral is not counted", ratio, "fff ccrrii closed s open"},
		{"ratio, the window rolls", ratio, "fff wait:20s s closed ss f closed ff open"},
		{"ratio, within the window", ratio, "fff wait:19s s open"},
		{"ratio, bucket by bucket", ratio, "ff wait:10s f wait:10s ss closed s closed f closed f open"},
		{"ratio, cut off is one request", ratio, "ss 1=allow 1=sa closed s closed ff open"},
		{"ratio, cut off after the window", ratio, "1=allow 1=s wait:21s sss closed 1=a closed f closed f open"},
		{"ratio of one", &gateway.CircuitOptions{Failures: -1, Ratio: 1, MinRequests: 3}, "ff s fffffff closed wait:10s ff closed f open"},
		{"ratio with decimals", &gateway.CircuitOptions{Failures: -1, Ratio: 0.1, MinRequests: 30}, "ff sssssssss sssssssss sssssssss closed f open"},
		{"ratio and row", &gateway.CircuitOptions{Failures: 3, Ratio: 0.5, MinRequests: 100}, "fff open"},
		{"ratio's defaults", &gateway.CircuitOptions{Failures: -1, Ratio: 0.5}, "fffff fffff fffff ffff wait:9s closed f open"},
		{"ratio's default window", &gateway.CircuitOptions{Failures: -1, Ratio: 0.5}, "fffff fffff fffff ffff wait:10s f closed"},
		{"ratio starts anew", ratio, "ffff wait:10s s fff closed f open"},

		{"slow", &gateway.CircuitOptions{SlowCall: time.Second, Failures: 2}, "1=allow 2=allow wait:1001ms 1=s closed 2=s open"},
		{"not slow", &gateway.CircuitOptions{SlowCall: time.Second, Failures: 1}, "1=allow wait:1s 1=s closed"},
		{"slow and neutral", &gateway.CircuitOptions{SlowCall: time.Second, Failures: 1}, "1=allow wait:2s 1=c closed"},
		{"slow, cut off", &gateway.CircuitOptions{SlowCall: time.Second, Failures: 2}, "1=allow wait:2s 1=sa closed f open"},
		{"not slow, ends late", &gateway.CircuitOptions{SlowCall: time.Second, Failures: 2}, "f 1=allow 1=s wait:2s 1=a open"},
		{"slow probe", &gateway.CircuitOptions{SlowCall: time.Second}, "fffff wait:10s 1=allow wait:2s 1=s open"},
		{"none slow", nil, "1=allow wait:1h 1=s closed"},

		{"trip", nil, "trip:1m open refused wait:59999ms open wait:1ms half-open s closed"},
		{"trip prolongs", nil, "trip:1m wait:30s trip:1m wait:59s open wait:1s half-open"},
		{"trip does not shorten", nil, "trip:1m trip:1s wait:59s open wait:1s half-open"},
		{"trip prolongs its own count's", nil, "fffff trip:11s wait:10s open wait:1s half-open"},
		{"trip in half-open", nil, "fffff wait:10s half-open trip:3s open wait:3s half-open s closed"},
		{"trip with every place taken", nil, "fffff wait:10s 1=allow refused trip:3s open 1=s open wait:3s half-open s closed"},
		{"trip with a success and a place taken", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s s 1=allow refused trip:3s open wait:3s 2=allow 3=allow refused"},
		{"trip after the time, before half-open", nil, "fffff wait:11s trip:3s open wait:3s half-open"},
		{"trip of nothing", nil, "trip:0s closed trip:-1s closed"},
		{"trip, then its own again", nil, "trip:1s wait:1s half-open f wait:9999ms open wait:1ms half-open"},
		{"trip ends the closed period", nil, "ffff 1=allow trip:1s 1=f wait:1s half-open s ffff closed"},
		{"trip works where nothing else opens", never, "trip:1s refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				playCircuit(t, gateway.NewCircuit("c", tt.opts), tt.script)
			})
		})
	}
}

func TestCircuitIsFailureGetsTheStatusAndNoLock(t *testing.T) {
	var c *gateway.Circuit
	c = gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1, IsFailure: func(o gateway.Outcome, status int) bool {
		if o == gateway.OutcomeInternal || o == gateway.OutcomeClientCanceled || o == gateway.OutcomeRejected {
			t.Errorf("asked about %v, which is neutral whatever it says", o)
		}
		return status == 429 && c.State() == gateway.CircuitClosed && len(c.Changes()) == 0
	}})
	for _, o := range []gateway.Outcome{gateway.OutcomeInternal, gateway.OutcomeClientCanceled, gateway.OutcomeRejected} {
		done, _ := c.Allow()
		done(o, 429)
	}
	done, _ := c.Allow()
	done(gateway.OutcomeUpstreamError, 500)
	if c.State() != gateway.CircuitClosed {
		t.Fatal("opened by what IsFailure called none")
	}
	done, _ = c.Allow()
	done(gateway.OutcomeOK, 429)
	if c.State() != gateway.CircuitOpen {
		t.Fatal("not opened by what IsFailure called one")
	}
}

func TestNewCircuitPanics(t *testing.T) {
	for name, o := range map[string]gateway.CircuitOptions{
		"Ratio over 1":         {Ratio: 1.01},
		"Ratio negative":       {Ratio: -0.1},
		"Ratio NaN":            {Ratio: math.NaN()},
		"Ratio infinite":       {Ratio: math.Inf(1)},
		"MinRequests negative": {MinRequests: -1},
		"Window negative":      {Window: -1},
		"SlowCall negative":    {SlowCall: -1},
		"OpenFor negative":     {OpenFor: -1},
		"Probes negative":      {Probes: -1},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.HasPrefix(p, "gateway: NewCircuit: "+strings.Fields(name)[0]) {
					t.Errorf("panicked with %q", p)
				}
			}()
			gateway.NewCircuit("c", &o)
		})
	}
}

func TestCircuitOptionsAreCopied(t *testing.T) {
	o := gateway.CircuitOptions{Failures: 1}
	c := gateway.NewCircuit("c", &o)
	o.Failures = -1
	if o.OpenFor != 0 {
		t.Error("the caller's options were changed")
	}
	done, _ := c.Allow()
	done(gateway.OutcomeTimeout, 0)
	if c.State() != gateway.CircuitOpen {
		t.Error("changed by the caller's options")
	}
}

func TestCircuitNames(t *testing.T) {
	if got := gateway.NewCircuit("payments", nil).Name(); got != "payments" {
		t.Errorf("Name() = %q", got)
	}
	for s, want := range map[gateway.CircuitState]string{
		gateway.CircuitClosed: "closed", gateway.CircuitHalfOpen: "half-open", gateway.CircuitOpen: "open", 7: "CircuitState(7)",
	} {
		if got := s.String(); got != want {
			t.Errorf("%d is %q, want %q", int(s), got, want)
		}
	}
}

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
		var logged bytes.Buffer
		logger, output, flags := slog.Default(), log.Writer(), log.Flags()
		slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
		defer func() {
			slog.SetDefault(logger)
			log.SetOutput(output)
			log.SetFlags(flags)
			if n := strings.Count(logged.String(), "circuit=c panic=oops"); n != 4 {
				t.Errorf("logged %d times: %s", n, logged.String())
			}
		}()
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
			// The goroutine that opened it is busy with the watcher; nobody else is.
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
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		gateway.NewCircuit("c", nil).Watch(nil)
	})
}

// circuitModel is the contract in the plainest words: it keeps all that happened in a closed period.
type circuitModel struct {
	o     gateway.CircuitOptions
	state gateway.CircuitState
	until time.Time

	began  time.Time // of the closed period
	row    int
	events []*circuitEvent

	calls     map[*circuitCall]bool // of the half-open period, that hold a place
	successes int
	period    int
}

type circuitEvent struct {
	success bool
	stands  bool // a success that was not taken back
	before  int  // the row before it
	failed  bool // in the window
	slot    int64
}

type circuitCall struct {
	done   func(gateway.Outcome, int)
	period int
	probe  bool
	start  time.Time
	said   int // 0 nothing, 1 success, 2 all
	event  *circuitEvent
}

func (m *circuitModel) to(s gateway.CircuitState, d time.Duration) {
	m.state, m.until = s, time.Now().Add(d)
	m.period++
	m.began, m.row, m.events = time.Now(), 0, nil
	m.calls, m.successes = make(map[*circuitCall]bool), 0
}

func (m *circuitModel) now() gateway.CircuitState {
	if m.state == gateway.CircuitOpen && !time.Now().Before(m.until) {
		m.to(gateway.CircuitHalfOpen, 0)
	}
	return m.state
}

func (m *circuitModel) allow(call *circuitCall) bool {
	switch m.now() {
	case gateway.CircuitOpen:
		return false
	case gateway.CircuitHalfOpen:
		for other := range m.calls {
			if time.Since(other.start) >= m.o.OpenFor {
				delete(m.calls, other)
			}
		}
		// Late successes of probes whose place was given away took none.
		if len(m.calls)+m.placed() >= m.o.Probes {
			return false
		}
		m.calls[call] = true
		call.probe = true
	}
	call.period, call.start = m.period, time.Now()
	return true
}

// placed counts the successes that came in their place, which gobreaker keeps.
func (m *circuitModel) placed() int {
	n := 0
	for _, e := range m.events {
		if e.success {
			n++
		}
	}
	return n
}

func (m *circuitModel) done(call *circuitCall, o gateway.Outcome) {
	neutral := o == gateway.OutcomeClientCanceled || o == gateway.OutcomeRejected || o == gateway.OutcomeInternal
	failed := o == gateway.OutcomeTimeout || o == gateway.OutcomeUpstreamError || o == gateway.OutcomeAborted
	cut := false
	switch {
	case call.said == 0 && (neutral || failed):
		call.said = 2
	case call.said == 0:
		if call.said = 1; m.o.SlowCall > 0 && time.Since(call.start) > m.o.SlowCall {
			failed, call.said = true, 2
		}
	case call.said == 1 && o == gateway.OutcomeAborted:
		call.said, cut = 2, true
	default:
		return
	}
	if call.period != m.period {
		return
	}
	if call.probe {
		placed := m.calls[call]
		delete(m.calls, call)
		switch {
		case neutral:
		case failed:
			m.to(gateway.CircuitOpen, m.o.OpenFor)
		default:
			m.events = append(m.events, &circuitEvent{success: placed})
			if m.successes++; m.successes == m.o.Probes {
				m.to(gateway.CircuitClosed, 0)
			}
		}
		return
	}
	if neutral {
		return
	}
	slot := int64(time.Since(m.began) / (m.o.Window / 20))
	event := &circuitEvent{success: !failed, stands: !failed, before: m.row, failed: failed, slot: slot}
	switch {
	case !failed:
		m.row = 0
		call.event = event
	case cut:
		i := slices.Index(m.events, call.event)
		since, laterStands := 0, false
		for _, e := range m.events[i+1:] {
			if !e.success {
				since++
			}
			laterStands = laterStands || e.stands
		}
		if laterStands {
			m.row++
		} else {
			m.row = call.event.before + since + 1
		}
		call.event.stands = false
		call.event.slot = -1000 // its request is counted as the failure that it was
	default:
		m.row++
	}
	m.events = append(m.events, event)
	if m.o.Failures > 0 && m.row >= m.o.Failures {
		m.to(gateway.CircuitOpen, m.o.OpenFor)
		return
	}
	requests, failures := 0, 0
	for _, e := range m.events {
		if e.slot > slot-20 {
			requests++
			if e.failed {
				failures++
			}
		}
	}
	if m.o.Ratio > 0 && requests >= m.o.MinRequests && float64(failures)/float64(requests) >= m.o.Ratio {
		m.to(gateway.CircuitOpen, m.o.OpenFor)
	}
}

func (m *circuitModel) trip(d time.Duration) {
	if d <= 0 {
		return
	}
	if m.state != gateway.CircuitOpen {
		m.to(gateway.CircuitOpen, d)
	} else if until := time.Now().Add(d); until.After(m.until) {
		m.until = until
	}
}

func TestCircuitAgainstModel(t *testing.T) {
	runs := 800
	if testing.Short() {
		runs = 200
	}
	seen := make(map[gateway.CircuitState]int)
	for seed := range uint64(runs) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			o := gateway.CircuitOptions{
				Failures:    []int{-1, 1, 3, 5, 8}[rnd.IntN(5)],
				Ratio:       []float64{0, 0, 0.3, 0.5, 1}[rnd.IntN(5)],
				MinRequests: 1 + rnd.IntN(12),
				Window:      time.Duration(2+rnd.IntN(10)) * time.Second,
				SlowCall:    time.Duration(rnd.IntN(3)) * time.Second,
				OpenFor:     time.Duration(1+rnd.IntN(5)) * time.Second,
				Probes:      1 + rnd.IntN(4),
			}
			c := gateway.NewCircuit("c", &o)
			m := &circuitModel{o: o}
			m.to(gateway.CircuitClosed, 0)
			var calls []*circuitCall
			var log []string
			bad := rnd.Float64() * 0.7 // how ill the upstream is
			for range 150 {
				switch n := rnd.IntN(100); {
				case n < 35:
					call := &circuitCall{}
					done, err := c.Allow()
					log = append(log, fmt.Sprintf("allow %d: %v", len(calls), err))
					if want := m.allow(call); want != (err == nil) {
						t.Fatalf("seed %d, %+v\n%s\nmodel lets through: %v", seed, o, strings.Join(log, "\n"), want)
					}
					if err == nil {
						call.done = done
						calls = append(calls, call)
					}
				case n < 80 && len(calls) > 0:
					i := rnd.IntN(len(calls))
					if rnd.IntN(2) == 0 {
						i = len(calls) - 1 // a young one, which is not yet done
					}
					call, outcome := calls[i], gateway.Outcome(rnd.IntN(7))
					if call.said == 1 && rnd.IntN(2) == 0 {
						outcome = gateway.OutcomeAborted
					} else if rnd.Float64() > bad {
						outcome = gateway.OutcomeOK
					}
					log = append(log, fmt.Sprintf("done %d: %v", i, outcome))
					call.done(outcome, 200)
					m.done(call, outcome)
				case n < 97:
					d := time.Duration(rnd.IntN(1500)) * time.Millisecond
					log = append(log, "wait "+d.String())
					time.Sleep(d)
				default:
					d := time.Duration(rnd.IntN(4000)-500) * time.Millisecond
					log = append(log, "trip "+d.String())
					c.Trip(d)
					m.trip(d)
				}
				if rnd.IntN(3) > 0 {
					got, want := c.State(), m.now()
					log = append(log, "state "+got.String())
					if seen[got]++; got != want {
						t.Fatalf("seed %d, %+v\n%s\nmodel says %v", seed, o, strings.Join(log, "\n"), want)
					}
				}
			}
		})
	}
	for s := gateway.CircuitClosed; s <= gateway.CircuitOpen; s++ {
		if seen[s] < 100 {
			t.Errorf("the runs were %v only %d times", s, seen[s])
		}
	}
}

func TestCircuitConcurrently(t *testing.T) {
	total := 0
	for round := range 60 {
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{
			Failures: 3, Ratio: 0.9, Window: time.Millisecond, SlowCall: time.Millisecond, OpenFor: 20 * time.Microsecond, Probes: 3,
		})
		var told []gateway.CircuitChange
		var inside atomic.Int32
		c.Watch(func(ch gateway.CircuitChange) {
			if inside.Add(1) != 1 {
				t.Error("a watcher was called twice at once")
			}
			told = append(told, ch)
			inside.Add(-1)
		})
		var wg sync.WaitGroup
		// So many that their changes, at most three for each turn, fit in the queue however slow the
		// telling is: none may be missing.
		for g := range 16 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(round), uint64(g)))
				for range 20 {
					switch rnd.IntN(20) {
					case 0:
						c.Trip(time.Duration(rnd.IntN(50)) * time.Microsecond)
						continue
					case 1:
						c.Watch(func(gateway.CircuitChange) { c.State() })()
						continue
					case 2:
						c.Changes()
						continue
					}
					done, err := c.Allow()
					for ; err != nil; done, err = c.Allow() {
						if !errors.Is(err, gateway.ErrCircuitOpen) {
							t.Errorf("refused with %v", err)
						}
					}
					var both sync.WaitGroup
					o := gateway.Outcome(rnd.IntN(7))
					both.Go(func() { done(o, 200) })
					both.Go(func() { done(gateway.OutcomeAborted, 200) })
					both.Wait()
				}
			})
		}
		wg.Wait()
		// Whoever told the changes has returned by now, and so all are told.
		if kept := c.Changes(); !slices.Equal(kept, told[max(0, len(told)-len(kept)):]) {
			t.Error("what is kept is not what was told last")
		}
		state := gateway.CircuitClosed
		for i, ch := range told {
			if ch.From != state || ch.To == state {
				t.Fatalf("change %d goes from %v to %v, and before it was %v", i, ch.From, ch.To, state)
			}
			state = ch.To
		}
		total += len(told)

		// Unhurt: it comes back.
		for c.State() != gateway.CircuitClosed {
			if done, err := c.Allow(); err == nil {
				done(gateway.OutcomeOK, 200)
			}
		}
	}
	if total < 200 {
		t.Errorf("only %d changes", total)
	}
}

func TestCircuitAllocations(t *testing.T) {
	closed := gateway.NewCircuit("closed", &gateway.CircuitOptions{Ratio: 0.5, SlowCall: time.Second})
	open := gateway.NewCircuit("open", nil)
	open.Trip(time.Hour)
	for _, tt := range []struct {
		name string
		most float64
		f    func()
	}{
		{"closed", 2, func() { done, _ := closed.Allow(); done(gateway.OutcomeOK, 200) }},
		{"open", 0, func() { _, _ = open.Allow() }},
	} {
		if got := testing.AllocsPerRun(100, tt.f); got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.most)
		}
	}
}

// circuitMeter counts what is added, by the instrument and its attributes.
type circuitMeter struct {
	noop.Meter
	counts map[string]int64
	made   []string
}

type circuitMeters struct {
	noop.MeterProvider
	meter *circuitMeter
	name  string // of the scope
}

func (p *circuitMeters) Meter(name string, _ ...metric.MeterOption) metric.Meter {
	p.name = name
	return p.meter
}

func (m *circuitMeter) Int64Counter(name string, _ ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	m.made = append(m.made, name)
	return &circuitCount{meter: m, name: name}, nil
}

type circuitCount struct {
	noop.Int64Counter
	meter *circuitMeter
	name  string
}

func (c *circuitCount) Add(_ context.Context, n int64, opts ...metric.AddOption) {
	set := metric.NewAddConfig(opts).Attributes()
	c.meter.counts[c.name+" "+set.Encoded(attribute.DefaultEncoder())] += n
}

func TestCircuitMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &circuitMeter{counts: make(map[string]int64)}
		p := &circuitMeters{meter: m}
		c := gateway.NewCircuit("payments", &gateway.CircuitOptions{Meter: p})
		playCircuit(t, c, "s fffff refused refused wait:10s 1=allow refused 1=f refused wait:10s s closed")
		want := map[string]int64{
			"gateway.circuit.changes gateway.circuit.name=payments,gateway.circuit.state=open":      2,
			"gateway.circuit.changes gateway.circuit.name=payments,gateway.circuit.state=half-open": 2,
			"gateway.circuit.changes gateway.circuit.name=payments,gateway.circuit.state=closed":    1,
			"gateway.circuit.refusals gateway.circuit.name=payments":                                4,
		}
		if !reflect.DeepEqual(m.counts, want) {
			t.Errorf("counted %v, want %v", m.counts, want)
		}
		if len(m.made) != 2 || p.name != "github.com/seed-96248d0c/gateway" {
			t.Errorf("made %v in scope %q", m.made, p.name)
		}
	})
}

// serveBreaker sends one request through h without a connection, and returns the answer; a panic of h is
// returned too.
func serveBreaker(h http.Handler, ctx context.Context) (res *http.Response, panicked any) {
	w := httptest.NewRecorder()
	defer func() {
		panicked = recover()
		res = w.Result()
	}()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	return
}

func TestBreakerCounts(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	gone, leave := context.WithCancel(context.Background())
	leave()
	late, cancel := context.WithTimeout(context.Background(), -1)
	defer cancel()
	openCircuit := func() *gateway.Circuit {
		c := gateway.NewCircuit("inner", nil)
		c.Trip(time.Hour)
		return c
	}
	// Behind a circuit that opens at the second failure in a row, after one failure: what does the
	// handler make of it?
	const failure, success, neutral = "failure", "success", "neutral"
	tests := []struct {
		name   string
		h      http.Handler
		ctx    context.Context
		want   string
		panics any
	}{
		{"200", status(200), nil, success, nil},
		{"404", status(404), nil, success, nil},
		{"silence", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil, success, nil},
		{"a body without a status", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), nil, success, nil},
		{"101", status(101), nil, success, nil},
		{"103, then 500", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(500) }), nil, failure, nil},
		{"500", status(500), nil, failure, nil},
		{"503", status(503), nil, failure, nil},
		{"an upstream's failure", breakerWrites(gateway.ErrBadGateway), nil, failure, nil},
		{"an upstream's timeout", breakerWrites(gateway.ErrTimeout), nil, failure, nil},
		{"an unknown error", breakerWrites(errors.New("oops")), nil, failure, nil},
		{"401 of the gateway", breakerWrites(gateway.ErrUnauthenticated), nil, neutral, nil},
		{"429 of the gateway", breakerWrites(gateway.ErrRateLimited), nil, neutral, nil},
		{"413 of the gateway", breakerWrites(gateway.ErrBodyTooLarge), nil, neutral, nil},
		{"overload", breakerWrites(gateway.ErrOverloaded), nil, neutral, nil},
		{"an open circuit inside", gateway.Breaker(openCircuit(), nil)(status(200)), nil, neutral, nil},
		{"an open circuit inside, with a fallback", gateway.Breaker(openCircuit(), &gateway.BreakerOptions{Fallback: status(200)})(status(200)), nil, neutral, nil},
		{"an open circuit inside, with a fallback that fails", gateway.Breaker(openCircuit(), &gateway.BreakerOptions{Fallback: status(500)})(status(200)), nil, neutral, nil},
		{"a client that left, 500", status(500), gone, neutral, nil},
		{"a client that left, 200", status(200), gone, neutral, nil},
		{"a client that left, silence", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), gone, neutral, nil},
		{"a client that left, cancel answered", breakerWrites(context.Canceled), gone, neutral, nil},
		{"a client that left, aborted", breakerPanics(http.ErrAbortHandler), gone, neutral, http.ErrAbortHandler},
		{"time over, 503", status(503), late, failure, nil},
		{"time over, silence", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), late, failure, nil},
		{"a panic", breakerPanics("oops"), nil, neutral, "oops"},
		{"a panic after the headers", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); panic("oops") }), nil, success, "oops"},
		{"aborted before the headers", breakerPanics(http.ErrAbortHandler), nil, failure, http.ErrAbortHandler},
		{"aborted after the headers", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); panic(http.ErrAbortHandler) }), nil, failure, http.ErrAbortHandler},
		{"aborted after a body", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "ok")
			panic(http.ErrAbortHandler)
		}), nil, failure, http.ErrAbortHandler},
		{"aborted after a 500", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); panic(http.ErrAbortHandler) }), nil, failure, http.ErrAbortHandler},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := &gateway.CircuitOptions{Failures: 2}
			ctx := tt.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			// A failure opens it at once, a neutral at the next failure, a success at the one after.
			c := gateway.NewCircuit("c", opts)
			playCircuit(t, c, "f")
			_, p := serveBreaker(gateway.Breaker(c, nil)(tt.h), ctx)
			if p != tt.panics {
				t.Errorf("panicked with %v, want %v", p, tt.panics)
			}
			got := success
			if c.State() == gateway.CircuitOpen {
				got = failure
			} else if playCircuit(t, c, "f"); c.State() == gateway.CircuitOpen {
				got = neutral
			}
			if got != tt.want {
				t.Errorf("is a %s, want %s", got, tt.want)
			}

			// The same around the same: both circuits hear of it, also through a foreign wrapper.
			outer, inner := gateway.NewCircuit("outer", opts), gateway.NewCircuit("inner", opts)
			playCircuit(t, outer, "f")
			playCircuit(t, inner, "f")
			foreign := func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					next.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
				})
			}
			serveBreaker(gateway.Chain(gateway.Breaker(outer, nil), foreign, gateway.Breaker(inner, nil))(tt.h), ctx)
			for _, c := range []*gateway.Circuit{outer, inner} {
				if opened := c.State() == gateway.CircuitOpen; opened != (tt.want == failure) {
					t.Errorf("of two, the %s is open: %v", c.Name(), opened)
				}
			}
		})
	}
}

func breakerWrites(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, err) })
}

func breakerPanics(v any) http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(v) })
}

// A stream must not hold a probe's place, and may be taken back while it lasts.
func TestBreakerTellsAtTheHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, outer := gateway.NewCircuit("c", nil), gateway.NewCircuit("outer", nil)
		h := gateway.Chain(gateway.Breaker(outer, nil), gateway.Breaker(c, nil))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			if c.State() != gateway.CircuitClosed || outer.State() != gateway.CircuitClosed {
				t.Error("the circuits do not know of the headers")
			}
		}))
		playCircuit(t, c, "fffff")
		playCircuit(t, outer, "fffff wait:10s")
		serveBreaker(h, context.Background())
		playCircuit(t, c, "closed ffff")
		serveBreaker(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(200)
			playCircuit(t, c, "closed")
			panic(http.ErrAbortHandler)
		})), context.Background())
		playCircuit(t, c, "open")
	})
}

func TestBreakerRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := gateway.NewCircuit("payments", nil)
		var calls int
		h := gateway.Breaker(c, nil)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
		check := func(when, retryAfter string) {
			t.Helper()
			res, _ := serveBreaker(h, context.Background())
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != 503 || res.Header.Get("Retry-After") != retryAfter ||
				res.Header.Get("Content-Type") != "application/problem+json" || strings.Contains(string(body), "payments") {
				t.Errorf("%s: got %d %v %s", when, res.StatusCode, res.Header, body)
			}
			if calls != 0 {
				t.Errorf("%s: the handler was called", when)
			}
		}
		playCircuit(t, c, "fffff")
		check("open", "10")
		time.Sleep(3500 * time.Millisecond)
		check("open for a while", "7")
		c.Trip(time.Minute)
		check("prolonged", "60")
		time.Sleep(time.Minute - time.Nanosecond)
		check("almost over", "1")
		time.Sleep(time.Nanosecond)
		playCircuit(t, c, "1=allow")
		check("half-open, all places taken", "1")
		playCircuit(t, c, "wait:10s")
		if res, _ := serveBreaker(h, context.Background()); res.StatusCode != 200 || calls != 1 {
			t.Error("a hung probe's place was not given to another")
		}
	})
}

func TestBreakerFallback(t *testing.T) {
	c := gateway.NewCircuit("c", nil)
	c.Trip(time.Hour)
	var before, during, after error
	fallback := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		during = gateway.ErrorFrom(r.Context())
		w.Header().Set("X-From", "fallback")
		_, _ = io.WriteString(w, "stale")
	})
	outer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			before = gateway.ErrorFrom(r.Context())
			next.ServeHTTP(w, r)
			after = gateway.ErrorFrom(r.Context())
		})
	}
	// What counts at all opens this one.
	judge := gateway.NewCircuit("judge", &gateway.CircuitOptions{Failures: 1, IsFailure: func(gateway.Outcome, int) bool { return true }})
	h := gateway.Chain(gateway.Breaker(judge, nil), outer, gateway.Breaker(c, &gateway.BreakerOptions{Fallback: fallback}))(breakerPanics("called"))
	res, p := serveBreaker(h, context.Background())
	body, _ := io.ReadAll(res.Body)
	if p != nil || res.StatusCode != 200 || string(body) != "stale" || res.Header.Get("X-From") != "fallback" {
		t.Errorf("got %d %v %q, panic %v", res.StatusCode, res.Header, body, p)
	}
	var e *gateway.Error
	if !errors.Is(during, gateway.ErrCircuitOpen) || !errors.As(during, &e) || e.Status != 503 {
		t.Errorf("inside the fallback, ErrorFrom is %v", during)
	}
	if before != nil || after != nil {
		t.Errorf("outside the fallback, ErrorFrom is %v and %v", before, after)
	}
	if judge.State() != gateway.CircuitClosed {
		t.Error("a refusal that a fallback answered counted for the circuit around it")
	}

	t.Run("a panic restores too", func(t *testing.T) {
		h := gateway.Breaker(c, &gateway.BreakerOptions{Fallback: breakerPanics("fallback")})(breakerPanics("called"))
		_, p := serveBreaker(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gateway.HandleErrors(func(http.ResponseWriter, *http.Request, *gateway.Error) {})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if err := gateway.ErrorFrom(r.Context()); err != nil {
						t.Errorf("ErrorFrom is %v", err)
					}
				}()
				h.ServeHTTP(w, r)
			})).ServeHTTP(w, r)
		}), context.Background())
		if p != "fallback" {
			t.Errorf("panicked with %v", p)
		}
	})
	t.Run("another circuit in the fallback counts for itself", func(t *testing.T) {
		for _, tt := range []struct {
			name string
			h    http.Handler
			want gateway.CircuitState
		}{
			{"failure", breakerWrites(gateway.ErrBadGateway), gateway.CircuitOpen},
			{"500", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }), gateway.CircuitOpen},
			{"refusal", breakerWrites(gateway.ErrRateLimited), gateway.CircuitClosed},
			{"success", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), gateway.CircuitClosed},
		} {
			second := gateway.NewCircuit("second", &gateway.CircuitOptions{Failures: 1})
			h := gateway.Breaker(c, &gateway.BreakerOptions{Fallback: gateway.Breaker(second, nil)(tt.h)})(breakerPanics("called"))
			serveBreaker(h, context.Background())
			if got := second.State(); got != tt.want {
				t.Errorf("%s: the second circuit is %v, want %v", tt.name, got, tt.want)
			}
		}
	})
}

// A refusal is known for one, whoever the request's identity was said to be on the way.
func TestBreakerBetweenIdentities(t *testing.T) {
	c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2})
	identify := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: "ada"})))
		})
	}
	first := gateway.Breaker(gateway.NewCircuit("first", nil), nil)
	playCircuit(t, c, "f")
	serveBreaker(gateway.Chain(first, identify, gateway.Breaker(c, nil), identify)(breakerWrites(gateway.ErrForbidden)), context.Background())
	playCircuit(t, c, "closed f open")
}

func TestBreakerInsideItsOwnCircuit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		inside func(c *gateway.Circuit, u *gateway.Upstream, h http.Handler) http.Handler
	}{
		{"Breaker", func(c *gateway.Circuit, _ *gateway.Upstream, h http.Handler) http.Handler {
			return gateway.Chain(gateway.Breaker(gateway.NewCircuit("between", nil), nil), gateway.Breaker(c, nil))(h)
		}},
		{"Upstream", func(_ *gateway.Circuit, u *gateway.Upstream, _ http.Handler) http.Handler {
			return gateway.Proxy(u, nil)
		}},
		{"part of an aggregate", func(_ *gateway.Circuit, u *gateway.Upstream, _ http.Handler) http.Handler {
			return gateway.Aggregate([]gateway.Part{{Name: "a", From: u, Path: "/"}}, nil)
		}},
		{"HandlerTransport", func(c *gateway.Circuit, _ *gateway.Upstream, h http.Handler) http.Handler {
			return gateway.Proxy(gateway.HandlerTransport(gateway.Breaker(c, nil)(h)), nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := gateway.NewCircuit("c", nil)
				status := 500
				local := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
					Circuit: c,
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						return answered(r, status, io.NopCloser(strings.NewReader("{}"))), nil
					}),
				})
				h := gateway.Breaker(c, nil)(tt.inside(c, u, local))
				serveBreaker(h, t.Context())
				playCircuit(t, c, "fff closed") // one failure, not two
				serveBreaker(h, t.Context())
				playCircuit(t, c, "open wait:10s half-open")
				status = 200
				serveBreaker(h, t.Context())
				playCircuit(t, c, "closed")
				res, err := u.RoundTrip(httptest.NewRequest("GET", "/", nil))
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
			})
		})
	}
}

func TestBreakerPanicsAtSetup(t *testing.T) {
	defer func() {
		if p := recover(); p != "gateway: Breaker: nil circuit" {
			t.Errorf("panicked with %v", p)
		}
	}()
	gateway.Breaker(nil, nil)
}

// The whole way, through a listener: it fails, opens, refuses at once, and comes back.
func TestBreakerOnTheWire(t *testing.T) {
	c := gateway.NewCircuit("payments", &gateway.CircuitOptions{Failures: 3, OpenFor: 100 * time.Millisecond})
	var ill atomic.Bool
	var calls atomic.Int32
	srv := httptest.NewServer(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.URL.Path == "/cut" {
			_, _ = io.WriteString(w, "half of")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if ill.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})))
	defer srv.Close()
	get := func(path string) *http.Response {
		t.Helper()
		res, err := srv.Client().Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res
	}
	recovers := func() {
		t.Helper()
		// State would turn it half-open, should this have taken long.
		if changes := c.Changes(); len(changes) == 0 || changes[len(changes)-1].To != gateway.CircuitOpen {
			t.Fatalf("it has not opened: %v", changes)
		}
		reached := calls.Load()
		for deadline := time.Now().Add(10 * time.Second); ; {
			res := get("/")
			if res.StatusCode == 200 {
				break
			}
			if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" {
				t.Fatalf("while open: %d %v", res.StatusCode, res.Header)
			}
			if time.Now().After(deadline) {
				t.Fatal("it never comes back")
			}
		}
		if n := calls.Load() - reached; n != 1 {
			t.Errorf("the handler was called %d times, want once, by the probe", n)
		}
	}

	ill.Store(true)
	for i := range 3 {
		if res := get("/"); res.StatusCode != 502 {
			t.Fatalf("request %d: %d", i, res.StatusCode)
		}
	}
	ill.Store(false)
	recovers()

	for range 3 {
		get("/cut")
	}
	recovers()

	away := gateway.NewCircuit("away", nil)
	away.Trip(time.Hour)
	refuses := httptest.NewServer(gateway.Breaker(away, nil)(breakerPanics("called")))
	defer refuses.Close()
	res, err := refuses.Client().Get(refuses.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var problem struct{ Status int }
	if err := json.NewDecoder(res.Body).Decode(&problem); err != nil || problem.Status != 503 || res.StatusCode != 503 || res.Header.Get("Retry-After") != "3600" {
		t.Errorf("an open circuit: %d %v, %v", res.StatusCode, res.Header, err)
	}

	// A client that leaves is nobody's failure.
	left := make(chan bool)
	slow := httptest.NewServer(gateway.Breaker(c, nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		<-r.Context().Done()
		gateway.WriteError(w, r, fmt.Errorf("asking: %w", r.Context().Err()))
	})))
	defer slow.Close()
	before := len(c.Changes())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", slow.URL, nil)
	if _, err := slow.Client().Do(req); err == nil {
		t.Fatal("the client did not leave")
	}
	<-left
	if n := len(c.Changes()); n != before || c.State() != gateway.CircuitClosed {
		t.Errorf("%d changes by a client that left", n-before)
	}
}
