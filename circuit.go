package gateway

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway/internal/rolling"
	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// CircuitState is the state of a Circuit. It decides which requests pass.
type CircuitState int

const (
	CircuitClosed   CircuitState = iota // every request passes
	CircuitHalfOpen                     // a few requests pass, as probes of whether the upstream works again
	CircuitOpen                         // no request passes
)

// String returns "closed", "half-open" or "open".
func (s CircuitState) String() string {
	switch s {
	case CircuitClosed:
		return "closed"
	case CircuitHalfOpen:
		return "half-open"
	case CircuitOpen:
		return "open"
	}
	return "CircuitState(" + strconv.Itoa(int(s)) + ")"
}

// CircuitOptions configures when a Circuit opens and how it closes again. NewCircuit panics on a negative
// value, unless the field's comment gives it a meaning.
type CircuitOptions struct {
	Failures    int           // number of consecutive failures that opens the circuit; 0 means 5, negative never
	Ratio       float64       // share of failures in Window that also opens the circuit, at most 1; 0 means none
	MinRequests int           // least number of requests in Window for Ratio to apply; 0 means 20
	Window      time.Duration // length of the rolling window, which advances in 20 steps; 0 means 10s
	SlowCall    time.Duration // a call is a failure if its response header takes longer, not counting the time in which the client sends its body; 0 means none
	OpenFor     time.Duration // how long the circuit stays open; 0 means 10s
	Probes      int           // number of successes that closes a half-open circuit, and largest number of probes in flight; 0 means 1

	// IsFailure reports whether an outcome counts as a failure. An outcome for which it returns false counts
	// as a success. It is not called for neutral outcomes (see Circuit). It is called a second time, with
	// OutcomeAborted, when a response is cut off. It is called without a lock held and must be safe for
	// concurrent use. A panic in it is logged by slog.Default and not passed on; the outcome is then neutral.
	//
	// Nil means that three outcomes are failures: OutcomeTimeout, OutcomeAborted, and OutcomeUpstreamError
	// with any status but 501 and 505. These two are caused by the request: any client can send a method that
	// the upstream does not implement.
	IsFailure func(o Outcome, status int) bool

	// Meter provides three metrics with the attribute gateway.circuit.name. The counter
	// gateway.circuit.changes also has gateway.circuit.state, the new state. The counter
	// gateway.circuit.refusals counts refused requests. The gauge gateway.circuit.state is 0 while the
	// circuit is closed, 1 while it is half-open and 2 while it is open. It is still 2 after OpenFor until
	// the next request turns the circuit half-open. Nil means otel.GetMeterProvider().
	Meter metric.MeterProvider
}

func (o *CircuitOptions) withDefaults() CircuitOptions {
	var d CircuitOptions
	if o != nil {
		d = *o
	}
	switch {
	case math.IsNaN(d.Ratio) || d.Ratio < 0 || d.Ratio > 1:
		panic("gateway: NewCircuit: Ratio must be between 0 and 1")
	case d.MinRequests < 0:
		panic("gateway: NewCircuit: MinRequests must not be negative")
	case d.Window < 0:
		panic("gateway: NewCircuit: Window must not be negative")
	case d.SlowCall < 0:
		panic("gateway: NewCircuit: SlowCall must not be negative")
	case d.OpenFor < 0:
		panic("gateway: NewCircuit: OpenFor must not be negative")
	case d.Probes < 0 || d.Probes > math.MaxInt32:
		panic("gateway: NewCircuit: Probes must be between 0 and 1<<31-1")
	}
	if d.Failures == 0 {
		d.Failures = 5
	}
	if d.MinRequests == 0 {
		d.MinRequests = 20
	}
	if d.Window == 0 {
		d.Window = 10 * time.Second
	}
	if d.OpenFor == 0 {
		d.OpenFor = 10 * time.Second
	}
	if d.Probes == 0 {
		d.Probes = 1
	}
	if d.IsFailure == nil {
		d.IsFailure = isCircuitFailure
	}
	if d.Meter == nil {
		d.Meter = otel.GetMeterProvider()
	}
	return d
}

// Circuit is a circuit breaker, built on sony/gobreaker.
//
// A closed circuit lets every request pass. It opens after CircuitOptions.Failures consecutive failures, or
// when the share of failures in a rolling window reaches CircuitOptions.Ratio. An open circuit refuses every
// request. After CircuitOptions.OpenFor it is half-open and lets a few requests pass as probes. Their
// successes close it; a single failure opens it again.
//
// OutcomeClientCanceled, OutcomeRejected, OutcomeUnavailable and OutcomeInternal are neutral: they count
// neither as success nor as failure. A probe that ends with one of them makes room for another probe.
//
// A Circuit uses no timer. An open circuit becomes half-open at the first call of Allow or State after its
// time is over. A probe that has not ended after OpenFor no longer counts as in flight, and another may
// start. Its result still counts if the circuit is still half-open.
//
// Where to put it: UpstreamOptions.Circuit protects a pool. It is inside retries: each attempt calls Allow
// and reports its result, so the circuit opens as fast as the pool fails. When it opens, a request is not
// retried any more and fails with the error of its last attempt. Breaker protects a route or a handler of
// this process. It is outside retries: it counts one result for each request, that of the last attempt. A
// request whose second attempt succeeds is a success. A pool with a single failing target needs no circuit:
// passive health checks eject that target (see HealthOptions).
//
// Make a Circuit with NewCircuit; the zero value is not usable. A Circuit is safe for concurrent use and
// starts no goroutine. It needs about 6 KB, and more while changes wait for a slow function given to Watch.
type Circuit struct {
	name string
	o    CircuitOptions

	// period is the current period. It is replaced under mu at each change of state. Allow and State read it
	// without a lock.
	period atomic.Pointer[period]

	// mu guards the machine and the fields of the current period. No callback of a user runs while it is
	// held.
	mu sync.Mutex

	// machine makes the changes of state. While the circuit is closed, no result is reported to it, because
	// its counts cannot take back a success. Its own open time is a nanosecond: period.until decides instead,
	// and is checked before the machine is called.
	machine *gobreaker.TwoStepCircuitBreaker[struct{}]
	opening opening // the next opening

	tickets atomic.Pointer[ticketSlab]

	busy    *refusal // the error while the circuit is half-open with all its probes in flight
	news    circuitNews
	metrics circuitMetrics
}

// opening describes an opening of the circuit. stateChanged reads it.
type opening struct {
	d       time.Duration // how long the circuit stays open
	tripped bool          // caused by Trip
}

// The errors that tell gobreaker of probes that did not succeed.
var (
	errProbeFailed  = errors.New("gateway: probe failed")
	errProbeNeutral = errors.New("gateway: probe had a neutral outcome")
)

// NewCircuit returns a closed circuit. The name appears in logs and metrics. A nil opts selects the defaults.
// NewCircuit panics on an option that is out of range.
func NewCircuit(name string, opts *CircuitOptions) *Circuit {
	c := &Circuit{name: name, o: opts.withDefaults()}
	c.opening = opening{d: c.o.OpenFor}
	c.busy = &refusal{circuit: name, wait: time.Second}
	c.machine = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:          name,
		MaxRequests:   uint32(c.o.Probes),
		Timeout:       1,
		ReadyToTrip:   func(gobreaker.Counts) bool { return true },
		IsExcluded:    func(err error) bool { return err == errProbeNeutral },
		OnStateChange: c.stateChanged,
	})
	c.period.Store(c.closedPeriod(time.Now()))
	c.metrics = newCircuitMetrics(c.o.Meter.Meter(scope), name)
	return c
}

// Name returns the name that NewCircuit was given.
func (c *Circuit) Name() string { return c.name }

// State returns the state. An open circuit whose time is over becomes half-open.
func (c *Circuit) State() CircuitState {
	p := c.period.Load()
	if !p.isDue() {
		return p.state
	}
	c.mu.Lock()
	p = c.halfOpenIfDue()
	c.mu.Unlock()
	c.news.deliver(&c.metrics)
	return p.state
}

// Changes returns the last 32 changes of state, oldest first.
func (c *Circuit) Changes() []CircuitChange { return c.news.recent() }

// Watch registers f, which is called after every change of state, in order, until stop is called. No lock is
// held during a call.
//
// f runs on the goroutine that caused the change, or on one that is still delivering earlier changes, so it
// should return quickly. It may use the circuit. Calls of f do not overlap.
//
// After stop has returned, no new call of f begins, but one may still be running. f itself may call stop. A
// panic in f is logged by slog.Default and not passed on. While f blocks, up to 1,024 changes wait, at 88
// bytes each. Beyond that, the oldest are dropped. Watch panics when f is nil.
func (c *Circuit) Watch(f func(CircuitChange)) (stop func()) {
	if f == nil {
		panic("gateway: Circuit.Watch: nil function")
	}
	return c.news.watch(f)
}

// Allow reports whether a request may pass. If it may not, the error wraps ErrCircuitOpen. If it may, the
// caller must call done with the result: a probe without a result counts as in flight for OpenFor. done is
// safe for concurrent use. It does not block, except in the functions given to Watch.
//
// Call done when the response header has arrived, or when the request has failed without one. status is the
// response's, or 0 without a response. If the header counted as a success and the response is then cut off,
// call done a second time, with OutcomeAborted: this replaces the success by a failure.
//
// The count of consecutive failures is then computed as if the call had never succeeded. For example, after
// ok, fail, fail, the first call is cut off: the count is 3. Failures before a later success that still
// counts are not counted again. For example, after ok, fail, ok, fail, the first call is cut off: the count
// is 2. The circuit tracks this for the last 256 successes; older ones always count.
//
// A call of done is ignored when the circuit has changed its state since Allow. Any call of done beyond these
// two is ignored too.
func (c *Circuit) Allow() (done func(o Outcome, status int), err error) {
	t, err := c.allow()
	if err != nil {
		return nil, err
	}
	held := c.newTicket() // with &t instead, t would be on the heap, and a refusal would allocate as well
	*held = t
	return held.done, nil
}

// newTicket returns a ticket for the function that Allow returns. It allocates sixteen tickets at a time. A
// ticket is never reused, since the function may be called much later.
func (c *Circuit) newTicket() *ticket {
	for {
		s := c.tickets.Load()
		if s != nil {
			if i := s.used.Add(1) - 1; i < uint32(len(s.tickets)) {
				return &s.tickets[i]
			}
		}
		c.tickets.CompareAndSwap(s, new(ticketSlab))
	}
}

// ticketSlab holds tickets for Allow.
type ticketSlab struct {
	used    atomic.Uint32 // number of tickets taken; may exceed len(tickets)
	tickets [16]ticket
}

// allow is like Allow, and returns a ticket instead of a function. While the circuit is closed or open, it
// does not allocate. The ticket must not be copied after a call of its done.
func (c *Circuit) allow() (ticket, error) {
	p := c.period.Load()
	if p.state == CircuitClosed {
		return c.pass(p), nil
	}
	if p.state == CircuitOpen && !p.isDue() {
		c.metrics.refusal()
		return ticket{}, p.refusal
	}

	c.mu.Lock()
	before := p
	p = c.halfOpenIfDue()
	var t ticket
	switch p.state {
	case CircuitClosed:
		t = c.pass(p)
	case CircuitHalfOpen:
		t = c.probe(p)
	}
	c.mu.Unlock()
	if p != before {
		c.news.deliver(&c.metrics)
	}
	if t.circuit == nil {
		c.metrics.refusal()
		return t, p.refusal
	}
	return t, nil
}

// pass returns a ticket for a request to a closed circuit.
func (c *Circuit) pass(p *period) ticket {
	t := ticket{circuit: c, period: p}
	if c.o.SlowCall > 0 {
		t.start = time.Now()
	}
	return t
}

// probe returns a ticket for a request to a half-open circuit, or a zero ticket if all probes are in flight.
// The caller holds mu.
func (c *Circuit) probe(p *period) ticket {
	now := time.Now()
	p.freeHung(now, c.o.OpenFor)
	report, err := c.machine.Allow()
	if err != nil && p.freeStalled() {
		report, err = c.machine.Allow()
	}
	if err != nil {
		return ticket{}
	}
	pr := &probe{report: report, start: now}
	p.probes = append(p.probes, pr)
	p.report = report
	return ticket{circuit: c, period: p, start: now, probe: pr}
}

// halfOpenIfDue turns an open circuit half-open if its time is over, and returns the current period. The
// caller holds mu.
func (c *Circuit) halfOpenIfDue() *period {
	if c.period.Load().isDue() {
		c.machine.State() // its own open time is over as well, so it calls stateChanged
	}
	return c.period.Load()
}

// Trip opens the circuit for d, independent of its counts. Use it for an operator's command, or to follow the
// circuit of another gateway. If the circuit is already open, Trip can prolong its time but not shorten it,
// which is not a change of state. Trip does nothing if d is not positive.
func (c *Circuit) Trip(d time.Duration) {
	if d <= 0 {
		return
	}
	c.mu.Lock()
	p := c.period.Load()
	if p.state == CircuitOpen {
		if until := time.Now().Add(d); until.After(p.until) {
			c.period.Store(c.openPeriod(until))
		}
		c.mu.Unlock()
		return
	}
	c.opening = opening{d, true}
	c.open(p)
	c.opening = opening{d: c.o.OpenFor}
	c.mu.Unlock()
	c.news.deliver(&c.metrics)
}

// open opens the circuit, whose current period is p. The machine opens when a call that it has allowed fails,
// so open reports a failed call. The caller holds mu.
func (c *Circuit) open(p *period) {
	report, err := c.machine.Allow()
	if err != nil {
		report = p.report // the circuit is half-open with all its probes in flight
	}
	report(errProbeFailed)
}

// stateChanged is called by gobreaker when its state has changed. mu is held, as in every use of the machine.
func (c *Circuit) stateChanged(_ string, from, to gobreaker.State) {
	now := time.Now()
	change := CircuitChange{Circuit: c.name, At: now, From: circuitState(from), To: circuitState(to)}
	switch change.To {
	case CircuitClosed:
		c.period.Store(c.closedPeriod(now))
	case CircuitHalfOpen:
		c.period.Store(&period{state: CircuitHalfOpen, refusal: c.busy})
	case CircuitOpen:
		change.Until, change.Tripped = now.Add(c.opening.d), c.opening.tripped
		c.period.Store(c.openPeriod(change.Until))
	}
	c.news.add(change)
}

func circuitState(s gobreaker.State) CircuitState {
	switch s {
	case gobreaker.StateClosed:
		return CircuitClosed
	case gobreaker.StateHalfOpen:
		return CircuitHalfOpen
	}
	return CircuitOpen
}

func (c *Circuit) closedPeriod(now time.Time) *period {
	return &period{state: CircuitClosed, window: rolling.New[callCounts](now, c.o.Window)}
}

func (c *Circuit) openPeriod(until time.Time) *period {
	return &period{state: CircuitOpen, until: until, refusal: &refusal{circuit: c.name, until: until}}
}

// count counts the result v of the call with the ticket t, which is of the current period. If late is true, a
// failure takes back the success that the same call reported earlier. The caller holds mu.
func (c *Circuit) count(t *ticket, v verdict, late bool, now time.Time) {
	cut := false
	switch {
	case t.stage == stagePending:
		if v == verdictSuccess && c.o.SlowCall > 0 && t.upstreamTime(now) > c.o.SlowCall {
			v = verdictFailure
		}
		t.stage = stageOver
		if v == verdictSuccess {
			t.stage = stageBegun
		}
	case t.stage == stageBegun && late && v == verdictFailure:
		t.stage = stageOver
		cut = true
	default:
		return
	}
	if t.probe != nil {
		t.period.probeEnded(t.probe, v)
	} else {
		c.countClosed(t, v, cut, now)
	}
}

// countClosed counts a result in the closed period of t. It opens the circuit if there are too many failures.
// If cut is true, the call failed after its success was counted.
func (c *Circuit) countClosed(t *ticket, v verdict, cut bool, now time.Time) {
	p := t.period
	switch {
	case v == verdictNeutral:
		return
	case v == verdictSuccess:
		t.success.Success = p.failures.Succeed()
	case cut:
		p.failures.TakeBack(t.success.Success)
		p.failures.Fail()
	default:
		p.failures.Fail()
	}
	if c.o.Failures > 0 && p.failures.Len() >= c.o.Failures {
		c.open(t.period)
		return
	}

	if c.o.Ratio == 0 {
		return
	}
	p.window.Roll(now)
	if cut {
		p.window.TakeBack(t.success.slot, callCounts{requests: 1})
	}
	call := callCounts{requests: 1}
	if v == verdictFailure {
		call.failures = 1
	}
	t.success.slot = p.window.Add(call)
	if sum := p.window.Total(); sum.requests >= c.o.MinRequests && float64(sum.failures)/float64(sum.requests) >= c.o.Ratio {
		c.open(t.period)
	}
}

// refusal is the error for requests that a circuit does not let pass. All requests that are refused in one
// period share it.
type refusal struct {
	circuit string
	until   time.Time     // when the circuit turns half-open; zero if it already is
	wait    time.Duration // the Retry-After if until is zero; short, since a probe may end at any moment
}

func (r *refusal) Error() string { return ErrCircuitOpen.Error() + ": " + r.circuit }
func (r *refusal) Unwrap() error { return ErrCircuitOpen }

// finished does what finish does, without a search through the chain of errors: an open circuit may refuse
// very many requests.
func (r *refusal) finished() *Error {
	const status = http.StatusServiceUnavailable
	return &Error{
		Status: status, Type: "about:blank", Title: http.StatusText(status), Err: r,
		Header: http.Header{"Retry-After": {seconds(r.retryAfter())}},
	}
}

// retryAfter returns the time until the circuit is half-open, rounded up to whole seconds, as Retry-After
// needs them. It adds up to a tenth at random, so that clients that were refused at the same moment do not
// all return at the same moment.
func (r *refusal) retryAfter() time.Duration {
	if r.until.IsZero() {
		return r.wait
	}
	wait := min(max(0, time.Until(r.until)), math.MaxInt64/2)
	wait = (wait + time.Second - 1).Truncate(time.Second)
	return wait + rand.N(wait/10/time.Second+1)*time.Second
}

// circuitMetrics holds a circuit's instruments and their attributes, which are made only once.
type circuitMetrics struct {
	state      metric.Int64Gauge
	stateAttr  []metric.RecordOption
	changed    metric.Int64Counter
	changeAttr [3][]metric.AddOption // by the state that was entered
	refused    metric.Int64Counter
	refuseAttr []metric.AddOption
}

func newCircuitMetrics(meter metric.Meter, circuit string) circuitMetrics {
	m := circuitMetrics{
		state:   telemetry.Gauge(meter, "gateway.circuit.state", "State of a circuit: 0 closed, 1 half-open, 2 open.", "{state}"),
		changed: telemetry.Counter(meter, "gateway.circuit.changes", "Changes of a circuit's state, by the state that was entered.", "{change}"),
		refused: telemetry.Counter(meter, "gateway.circuit.refusals", "Requests that a circuit did not let through.", "{request}"),
	}
	name := attribute.String("gateway.circuit.name", circuit)
	for s := range m.changeAttr {
		state := attribute.String("gateway.circuit.state", CircuitState(s).String())
		m.changeAttr[s] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(name, state))}
	}
	m.refuseAttr = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(name))}
	m.stateAttr = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(name))}
	m.state.Record(context.Background(), int64(CircuitClosed), m.stateAttr...)
	return m
}

func (m *circuitMetrics) change(to CircuitState) {
	m.changed.Add(context.Background(), 1, m.changeAttr[to]...)
	m.state.Record(context.Background(), int64(to), m.stateAttr...)
}

func (m *circuitMetrics) refusal() {
	m.refused.Add(context.Background(), 1, m.refuseAttr...)
}
