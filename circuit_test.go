package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// circuitOutcomes are the letters of playCircuit's scripts.
var circuitOutcomes = map[byte]gateway.Outcome{
	's': gateway.OutcomeOK,
	'f': gateway.OutcomeUpstreamError,
	't': gateway.OutcomeTimeout,
	'a': gateway.OutcomeAborted,
	'c': gateway.OutcomeClientCanceled,
	'r': gateway.OutcomeRejected,
	'i': gateway.OutcomeInternal,
	'u': gateway.OutcomeUnavailable,
}

// playCircuit carries out script, word by word:
//
//	s f t a c r i u         a call that ends at once with this outcome; a word may hold several
//	1=allow                 a call begins, named 1
//	1=s                     done of call 1 is called with this outcome; 1=sa: with one, then the other
//	wait:2s                 time passes
//	trip:2s                 Trip is called
//	refused                 Allow must refuse
//	closed half-open open   the state must be this
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
		name, outcomes, isCall := strings.Cut(word, "=")
		verb, arg, _ := strings.Cut(word, ":")
		d, _ := time.ParseDuration(arg)
		switch {
		case isCall && outcomes == "allow":
			calls[name] = allow(word)
		case isCall:
			for i := range len(outcomes) {
				calls[name](circuitOutcomes[outcomes[i]], 200)
			}
		case verb == "wait":
			time.Sleep(d)
		case verb == "trip":
			c.Trip(d)
		case word == "refused":
			if _, err := c.Allow(); !errors.Is(err, gateway.ErrCircuitOpen) {
				t.Fatalf("%s: Allow returns %v, want a refusal", script, err)
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

// successes returns words for n calls that succeed.
func successes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "n%d=allow n%[1]d=s ", i)
	}
	return b.String()
}

// aborts returns words that cut those calls off, the last one first.
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
		{"a neutral outcome is final", nil, "ffff 1=allow 1=cf closed"},
		{"a failure reported twice is one", nil, "1=allow 1=ffffff closed"},
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

		{"cut off: Allow's first example", &gateway.CircuitOptions{Failures: 3}, "1=allow 1=s ff closed 1=a open"},
		{"cut off: Allow's second example", &gateway.CircuitOptions{Failures: 3}, "1=allow 1=s f s f 1=a closed f open"},
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
		{"cut off: one too old to be marked marks no other", &gateway.CircuitOptions{Failures: 4},
			"1=allow 1=s " + strings.Repeat("s", 254) + " ff 2=allow 2=s s 1=a 2=a closed ff open"},
		{"cut off: twice is once", nil, "fff 1=allow 1=saaaa closed f open"},
		{"cut off: only an abort takes back", nil, "ffff 1=allow 1=sftsric closed f closed 1=a open"},
		{"cut off: of an earlier closed period", nil, "1=allow 1=s fffff wait:10s s ffff 1=a closed f open"},
		{"cut off: while open", nil, "1=allow 1=s fffff 1=a open wait:10s 1=a half-open"},
		{"cut off: the probe that closed it", nil, "fffff wait:10s 1=allow 1=s closed ffff 1=a closed f open"},
		{"cut off: a probe, still half-open", &gateway.CircuitOptions{Probes: 2}, "fffff wait:10s 1=allow 1=s half-open 1=a open"},
		{"cut off: unless IsFailure returns false for it", &gateway.CircuitOptions{IsFailure: func(o gateway.Outcome, _ int) bool { return o == gateway.OutcomeTimeout }},
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
		if o == gateway.OutcomeInternal || o == gateway.OutcomeClientCanceled || o == gateway.OutcomeRejected || o == gateway.OutcomeUnavailable {
			t.Errorf("asked about %v, which is neutral whatever it returns", o)
		}
		return status == 429 && c.State() == gateway.CircuitClosed && len(c.Changes()) == 0
	}})
	for _, o := range []gateway.Outcome{gateway.OutcomeInternal, gateway.OutcomeClientCanceled, gateway.OutcomeRejected, gateway.OutcomeUnavailable} {
		done, _ := c.Allow()
		done(o, 429)
	}
	done, _ := c.Allow()
	done(gateway.OutcomeUpstreamError, 500)
	if c.State() != gateway.CircuitClosed {
		t.Fatal("opened by an outcome that IsFailure does not count")
	}
	done, _ = c.Allow()
	done(gateway.OutcomeOK, 429)
	if c.State() != gateway.CircuitOpen {
		t.Fatal("not opened by an outcome that IsFailure counts")
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
			if p := panicOf(func() { gateway.NewCircuit("c", &o) }); !strings.HasPrefix(p, "gateway: NewCircuit: "+strings.Fields(name)[0]) {
				t.Errorf("panicked with %q", p)
			}
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
		// Each turn makes at most three changes. There are so few turns that all changes fit in the queue,
		// however slow the watchers are. So none may be missing.
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
		// The goroutine that delivers the changes has returned by now, so all are delivered.
		if kept := c.Changes(); !slices.Equal(kept, told[max(0, len(told)-len(kept)):]) {
			t.Error("the changes that are kept are not the last that were delivered")
		}
		state := gateway.CircuitClosed
		for i, ch := range told {
			if ch.From != state || ch.To == state {
				t.Fatalf("change %d goes from %v to %v, and before it was %v", i, ch.From, ch.To, state)
			}
			state = ch.To
		}
		total += len(told)

		// The circuit still works: it closes again.
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

// The gauge shows the state that was entered last, from the beginning on.
func TestCircuitGauge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel := new(gatewaytest.Telemetry)
		c := gateway.NewCircuit("payments", &gateway.CircuitOptions{Meter: tel})
		for _, script := range []string{"closed", "fffff open", "wait:10s half-open", "1=allow 1=s closed"} {
			playCircuit(t, c, script)
			s := tel.Series("gateway.circuit.state")
			name := attribute.NewSet(attribute.String("gateway.circuit.name", "payments"))
			if len(s) != 1 || s[0].Last != float64(c.State()) || !s[0].Attributes.Equals(&name) {
				t.Errorf("%s: the gauge has %+v", script, s)
			}
		}
	})
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
