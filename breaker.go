package gateway

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/seed-96248d0c/gateway/internal/telemetry"
)

// CircuitState says what a Circuit does with who asks to pass.
type CircuitState int

const (
	CircuitClosed   CircuitState = iota // all pass
	CircuitHalfOpen                     // a few pass, to see whether it works again
	CircuitOpen                         // nobody passes
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

// CircuitOptions say when a Circuit opens and how it closes again. Where a field does not say what a
// negative value means, it panics.
type CircuitOptions struct {
	Failures    int           // in a row that open it; 0 means 5, negative never
	Ratio       float64       // or this share of failures in Window, in (0, 1]; 0 means none
	MinRequests int           // in Window before Ratio counts; 0 means 20
	Window      time.Duration // rolling, in steps of a twentieth; 0 means 10s
	SlowCall    time.Duration // slower than this to the response headers counts as a failure; 0 means none
	OpenFor     time.Duration // 0 means 10s
	Probes      int           // successes in half-open that close it, and how many may be in flight; 0 means 1

	// IsFailure says what counts against the circuit, all else but the neutral outcomes being a
	// success. It is asked about an answer that was cut off as well. It is called with no lock held,
	// from several goroutines at once. Nil means OutcomeTimeout, OutcomeUpstreamError and OutcomeAborted.
	IsFailure func(o Outcome, status int) bool

	// Meter has the counters gateway.circuit.changes, by gateway.circuit.name and the
	// gateway.circuit.state that was entered, and gateway.circuit.refusals, by name.
	// Nil means otel.GetMeterProvider().
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
		d.IsFailure = func(o Outcome, _ int) bool {
			return o == OutcomeTimeout || o == OutcomeUpstreamError || o == OutcomeAborted
		}
	}
	if d.Meter == nil {
		d.Meter = otel.GetMeterProvider()
	}
	return d
}

// CircuitChange is one change of a Circuit's state.
type CircuitChange struct {
	Circuit  string // its name
	At       time.Time
	From, To CircuitState
	Until    time.Time // when open: the earliest half-open; Trip may prolong it without another change
	Tripped  bool      // by Trip, not by its own count
}

const (
	keptChanges   = 32   // what Changes returns
	queuedChanges = 1024 // that wait for a watcher
)

// Circuit is a circuit breaker, built on sony/gobreaker. It opens after failures in a row, or when their
// share in a rolling window is too high; stays open for a time; and then lets a few probes through, whose
// successes close it and of which one failure opens it again.
//
// OutcomeClientCanceled, OutcomeRejected and OutcomeInternal are neutral, whatever IsFailure says: they
// count for nothing and free a probe's place. An open circuit turns half-open at the next Allow or State
// after its time; no timer runs. A probe that hangs gives its place back after OpenFor; should it end
// while the circuit is still half-open, it counts nevertheless.
//
// A Circuit is safe for concurrent use, starts no goroutine and keeps about 5 KB, besides the changes
// that wait for a slow watcher. Make it with NewCircuit.
type Circuit struct {
	name string
	o    CircuitOptions

	// period is what holds at present. It is replaced under mu at each change of state, and read
	// without a lock by all who ask to pass.
	period atomic.Pointer[period]

	// mu guards all below and what is counted in the period. No code of others runs under it.
	mu sync.Mutex

	// machine knows open and half-open. While the circuit is closed it hears nothing: its counts cannot
	// take back a success. Its own open time is as good as none, since until is the gate before it.
	machine *gobreaker.TwoStepCircuitBreaker[struct{}]
	opening opening // what the next opening will be like

	changes  []CircuitChange // the last keptChanges
	queue    []CircuitChange // what the watchers do not know yet
	serial   uint64          // of the last change
	watchers []*watcher      // replaced, never changed
	telling  bool            // some goroutine tells the watchers

	busy       *refusal // to those who come when all places of probes are taken
	changed    metric.Int64Counter
	refused    metric.Int64Counter
	changeAttr [3][]metric.AddOption // by the state that was entered
	refuseAttr []metric.AddOption
}

type opening struct {
	d       time.Duration
	tripped bool
}

// What gobreaker is told of a probe that was no success.
var (
	errProbeFailed  = errors.New("gateway: probe failed")
	errProbeNeutral = errors.New("gateway: probe says nothing")
)

// NewCircuit returns a closed circuit. The name is for logs and metrics. A bad option panics.
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
		OnStateChange: c.moved,
	})
	c.period.Store(&period{state: CircuitClosed, window: window{start: time.Now()}})

	meter := c.o.Meter.Meter(scope)
	c.changed = telemetry.Counter(meter, "gateway.circuit.changes", "Changes of a circuit's state, by the state that was entered.", "{change}")
	c.refused = telemetry.Counter(meter, "gateway.circuit.refusals", "Requests that a circuit did not let through.", "{request}")
	attr := attribute.String("gateway.circuit.name", name)
	for s := range c.changeAttr {
		c.changeAttr[s] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attr,
			attribute.String("gateway.circuit.state", CircuitState(s).String())))}
	}
	c.refuseAttr = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attr))}
	return c
}

// Name returns the name that NewCircuit was given.
func (c *Circuit) Name() string { return c.name }

// State returns the state. An open circuit whose time is over turns half-open by it.
func (c *Circuit) State() CircuitState {
	p := c.period.Load()
	if !p.ripe() {
		return p.state
	}
	c.mu.Lock()
	p = c.ripen()
	c.mu.Unlock()
	c.tell()
	return p.state
}

// Changes returns the last changes of state, oldest first, at most 32.
func (c *Circuit) Changes() []CircuitChange {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.changes)
}

// Allow asks to go through; ErrCircuitOpen if not. Who is let through must call done, or a probe's place
// stays taken for OpenFor. done is safe for concurrent use; it never blocks, except for what watchers do.
//
// done is called at the response headers, or at the failure before them; and once more with
// OutcomeAborted if a response that began well is then cut off, which counts as a failure: in the same
// closed period, if no later success stands, the row of failures is what it was before that success, plus
// those since, plus one; otherwise it grows by one. After a change of state it is ignored. Other calls
// than these are ignored too. That a success no longer stands is known of the last 256.
func (c *Circuit) Allow() (done func(o Outcome, status int), err error) {
	t, err := c.allow()
	if err != nil {
		return nil, err
	}
	held := new(ticket) // not &t, which would cost the refused an allocation as well
	*held = t
	return held.done, nil
}

// allow is Allow for this package's own use: it allocates nothing while the circuit is closed or open.
// The ticket must not be copied once its done has been called.
func (c *Circuit) allow() (ticket, error) {
	p := c.period.Load()
	if p.state == CircuitClosed {
		return c.pass(p), nil
	}
	if p.state == CircuitOpen && !p.ripe() {
		c.refused.Add(context.Background(), 1, c.refuseAttr...)
		return ticket{}, p.refusal
	}

	c.mu.Lock()
	before := p
	p = c.ripen()
	var t ticket
	switch {
	case p.state == CircuitClosed:
		t = c.pass(p)
	case p.state == CircuitHalfOpen:
		t = c.probe(p)
	}
	c.mu.Unlock()
	if p != before {
		c.tell()
	}
	if t.c == nil {
		c.refused.Add(context.Background(), 1, c.refuseAttr...)
		return t, p.refusal
	}
	return t, nil
}

// pass lets through a closed circuit.
func (c *Circuit) pass(p *period) ticket {
	t := ticket{c: c, period: p}
	if c.o.SlowCall > 0 {
		t.start = time.Now()
	}
	return t
}

// probe lets through a half-open circuit, if a place is free; otherwise the ticket is zero. The caller
// holds mu.
func (c *Circuit) probe(p *period) ticket {
	now := time.Now()
	for len(p.probes) > 0 && now.Sub(p.probes[0].start) >= c.o.OpenFor {
		p.probes[0].report(errProbeNeutral)
		p.probes[0].freed = true
		p.probes = p.probes[1:]
	}
	report, err := c.machine.Allow()
	if err != nil {
		return ticket{}
	}
	pr := &probe{report: report, start: now}
	p.probes = append(p.probes, pr)
	p.report = report
	return ticket{c: c, period: p, start: now, probe: pr}
}

// ripen turns an open circuit half-open if its time is over, and returns the period. The caller holds mu.
func (c *Circuit) ripen() *period {
	if c.period.Load().ripe() {
		c.machine.State() // sees that its own open time is over, too
	}
	return c.period.Load()
}

// Trip opens the circuit for d, as another gateway's news or an operator's hand would; on an open one it
// can only prolong, which is no change of state. A d that is not positive does nothing.
func (c *Circuit) Trip(d time.Duration) {
	if d <= 0 {
		return
	}
	c.mu.Lock()
	p := c.period.Load()
	if p.state == CircuitOpen {
		if until := time.Now().Add(d); until.After(p.until) {
			c.period.Store(c.opened(until))
		}
		c.mu.Unlock()
		return
	}
	c.opening = opening{d, true}
	c.open(p)
	c.opening = opening{d: c.o.OpenFor}
	c.mu.Unlock()
	c.tell()
}

// open makes the machine open. The caller holds mu.
func (c *Circuit) open(p *period) {
	report, err := c.machine.Allow()
	if err != nil {
		report = p.report // half-open, and every place is taken
	}
	report(errProbeFailed)
}

// moved is what gobreaker calls when its state has changed, always under mu.
func (c *Circuit) moved(_ string, from, to gobreaker.State) {
	now := time.Now()
	change := CircuitChange{Circuit: c.name, At: now, From: circuitState(from), To: circuitState(to)}
	p := &period{state: change.To}
	switch change.To {
	case CircuitClosed:
		p.window.start = now
	case CircuitHalfOpen:
		p.refusal = c.busy
	case CircuitOpen:
		change.Until, change.Tripped = now.Add(c.opening.d), c.opening.tripped
		p = c.opened(change.Until)
	}
	c.period.Store(p)

	c.serial++
	if len(c.changes) == keptChanges {
		c.changes = slices.Delete(c.changes, 0, 1)
	}
	c.changes = append(c.changes, change)
	if len(c.queue) == queuedChanges {
		c.queue = c.queue[1:]
	}
	c.queue = append(c.queue, change)
}

func (c *Circuit) opened(until time.Time) *period {
	return &period{state: CircuitOpen, until: until, refusal: &refusal{circuit: c.name, until: until}}
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

// Watch calls f after every change, in order, with no lock held, until stop is called.
//
// f runs on the goroutine that caused a change, or on one that is telling the changes before it: it
// should be quick, and may use the circuit. It is never called twice at once. A call that is under way
// when stop returns goes on; no later one begins, also when f itself called stop. A panic in f is logged
// by slog.Default and goes no further. While f blocks, up to 1,024 changes wait for it, at 88 bytes
// each; of more, the oldest are lost to watchers. A nil f panics.
func (c *Circuit) Watch(f func(CircuitChange)) (stop func()) {
	if f == nil {
		panic("gateway: Circuit.Watch: nil function")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &watcher{f: f, after: c.serial}
	c.watchers = append(slices.Clip(c.watchers), w)
	return func() {
		w.stopped.Store(true)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watchers = slices.DeleteFunc(slices.Clone(c.watchers), func(other *watcher) bool { return other == w })
	}
}

type watcher struct {
	f       func(CircuitChange)
	after   uint64 // serial of the last change before it began
	stopped atomic.Bool
}

// tell hands what is queued to the watchers, unless another goroutine, or this one further up its stack,
// does so already.
func (c *Circuit) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.telling {
		return
	}
	c.telling = true
	defer func() { c.telling = false }()
	for len(c.queue) > 0 {
		serial := c.serial - uint64(len(c.queue)-1)
		change := c.queue[0]
		if c.queue = c.queue[1:]; len(c.queue) == 0 {
			c.queue = nil
		}
		c.tellOne(change, serial, c.watchers)
	}
}

// tellOne is called with mu held, and gives it back while others' code runs, however that ends.
func (c *Circuit) tellOne(change CircuitChange, serial uint64, watchers []*watcher) {
	c.mu.Unlock()
	defer c.mu.Lock()
	c.changed.Add(context.Background(), 1, c.changeAttr[change.To]...)
	for _, w := range watchers {
		if serial > w.after && !w.stopped.Load() {
			w.call(change)
		}
	}
}

func (w *watcher) call(change CircuitChange) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("gateway: a circuit's watcher panicked", "circuit", change.Circuit, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	w.f(change)
}

// refusal is the error of a circuit that lets nobody through. It is made once for each opening.
type refusal struct {
	circuit string
	until   time.Time     // zero: ask again after wait
	wait    time.Duration // small, since a probe may end at any moment
}

func (r *refusal) Error() string { return ErrCircuitOpen.Error() + ": " + r.circuit }
func (r *refusal) Unwrap() error { return ErrCircuitOpen }

func (r *refusal) retryAfter() time.Duration {
	if r.until.IsZero() {
		return r.wait
	}
	return max(0, time.Until(r.until))
}

// period is the time between two changes of state. What was counted in it goes with it. A prolonged
// opening is a new period as well.
type period struct {
	state   CircuitState
	until   time.Time // open: the earliest half-open
	refusal *refusal  // for those who are not let through; nil when closed

	// What follows is guarded by the circuit's mu.

	// Closed.
	row       int           // failures since the last success that stands
	failures  uint64        // of this period
	successes uint64        // of this period; its value after a success is that success' number
	cut       [keptCut]bool // of the last successes, by number: it does not stand
	window    window

	// Half-open.
	probes []*probe    // that hold a place, oldest first
	report func(error) // of some probe: gobreaker takes more than one word from each
}

const keptCut = 256

type probe struct {
	report func(error)
	start  time.Time
	freed  bool // its place was given back while it hung
}

// ripe reports whether it is an opening whose time is over.
func (p *period) ripe() bool {
	return p.state == CircuitOpen && !time.Now().Before(p.until)
}

// laterStands reports whether a success after the one of that number stands.
func (p *period) laterStands(number uint64) bool {
	for n := p.successes; n > number; n-- {
		if p.successes-n >= keptCut || !p.cut[n%keptCut] {
			return true
		}
	}
	return false
}

// ticket is the leave to pass once. Its fields are guarded by the circuit's mu, but for the first line.
// The zero value's done does nothing.
type ticket struct {
	c      *Circuit
	period *period
	start  time.Time // zero if nobody will ask
	probe  *probe    // in half-open

	stage stage

	// What a success in a closed period must know to be taken back.
	number   uint64 // among the successes of the period
	row      int    // of failures, before it
	failures uint64 // of the period, before it
	slot     int64  // of the window that it was counted in
}

type stage uint8

const (
	stagePending stage = iota
	stageBegun         // counted as a success, which may be taken back
	stageOver
)

type verdict uint8

const (
	verdictNeutral verdict = iota
	verdictSuccess
	verdictFailure
)

// done is what Allow returns.
func (t *ticket) done(o Outcome, status int) {
	c := t.c
	if c == nil {
		return
	}
	v := verdictSuccess
	switch {
	case o == OutcomeClientCanceled, o == OutcomeRejected, o == OutcomeInternal:
		v = verdictNeutral
	case c.o.IsFailure(o, status):
		v = verdictFailure
	}
	var now time.Time
	if c.o.SlowCall > 0 || c.o.Ratio > 0 {
		now = time.Now()
	}
	c.mu.Lock()
	before := c.period.Load()
	if before == t.period {
		c.count(t, o, v, now)
	}
	changed := c.period.Load() != before
	c.mu.Unlock()
	if changed {
		c.tell()
	}
}

// count counts what is said of t, which is of the present period. The caller holds mu.
func (c *Circuit) count(t *ticket, o Outcome, v verdict, now time.Time) {
	cut := false
	switch {
	case t.stage == stagePending:
		if v == verdictSuccess && c.o.SlowCall > 0 && now.Sub(t.start) > c.o.SlowCall {
			v = verdictFailure
		}
		t.stage = stageOver
		if v == verdictSuccess {
			t.stage = stageBegun
		}
	case t.stage == stageBegun && o == OutcomeAborted && v == verdictFailure:
		t.stage = stageOver
		cut = true
	default:
		return
	}
	if t.probe != nil {
		c.countProbe(t, v)
	} else {
		c.countClosed(t, v, cut, now)
	}
}

func (c *Circuit) countProbe(t *ticket, v verdict) {
	if i := slices.Index(t.period.probes, t.probe); i >= 0 {
		t.period.probes = slices.Delete(t.period.probes, i, i+1)
	}
	switch v {
	case verdictSuccess:
		t.probe.report(nil)
	case verdictFailure:
		t.probe.report(errProbeFailed)
	default:
		if !t.probe.freed {
			t.probe.report(errProbeNeutral)
		}
	}
}

func (c *Circuit) countClosed(t *ticket, v verdict, cut bool, now time.Time) {
	p := t.period
	switch {
	case v == verdictNeutral:
		return
	case v == verdictSuccess:
		t.row, t.failures = p.row, p.failures
		p.row = 0
		p.successes++
		t.number = p.successes
		p.cut[t.number%keptCut] = false
	case cut:
		if !p.laterStands(t.number) {
			p.row = t.row + int(p.failures-t.failures)
		}
		if p.successes-t.number < keptCut {
			p.cut[t.number%keptCut] = true
		}
		fallthrough
	default:
		p.row++
		p.failures++
	}
	if c.o.Failures > 0 && p.row >= c.o.Failures {
		c.open(p)
		return
	}

	if c.o.Ratio == 0 {
		return
	}
	w := &p.window
	w.roll(now, c.o.Window)
	if cut {
		w.takeBack(t.slot)
	}
	t.slot = w.slot
	w.add(v == verdictFailure)
	if w.requests >= c.o.MinRequests && float64(w.failures)/float64(w.requests) >= c.o.Ratio {
		c.open(p)
	}
}

// windowSlots is how finely a window rolls: it forgets what is older than its length, and may forget
// a slot's length earlier.
const windowSlots = 20

// window counts what happened lately.
type window struct {
	start              time.Time // of slot 0
	slot               int64     // the present one
	requests, failures int       // of all slots
	slots              [windowSlots]struct{ requests, failures int }
}

// roll forgets what is too old at now.
func (w *window) roll(now time.Time, length time.Duration) {
	slot := int64(now.Sub(w.start) / max(1, length/windowSlots))
	if slot-w.slot >= windowSlots {
		*w = window{start: w.start, slot: slot}
	}
	// A now that was read before another's, and comes after it, counts as that.
	for w.slot < slot {
		w.slot++
		s := &w.slots[w.slot%windowSlots]
		w.requests -= s.requests
		w.failures -= s.failures
		s.requests, s.failures = 0, 0
	}
}

func (w *window) add(failed bool) {
	s := &w.slots[w.slot%windowSlots]
	s.requests++
	w.requests++
	if failed {
		s.failures++
		w.failures++
	}
}

// takeBack takes back a success that was counted in slot.
func (w *window) takeBack(slot int64) {
	if w.slot-slot < windowSlots {
		w.slots[slot%windowSlots].requests--
		w.requests--
	}
}

// BreakerOptions say what Breaker does while its circuit is open.
type BreakerOptions struct {
	// Fallback answers instead of the 503. ErrorFrom tells it why it was asked. The exchange remains
	// OutcomeRejected, whatever it answers. Nil means none.
	Fallback http.Handler
}

// Breaker wraps a handler: while c is open it answers 503 with Retry-After at once, and the handler is
// not called.
//
// The circuit is told how the handler did when the final status goes out, so that a long stream does not
// hold a probe's place, and again should the response then be cut off. A 5xx counts as a failure. What
// the gateway refuses inside (401, 429), a client that leaves, and a panic, which goes on up, count for
// nothing. Several Breakers may share one circuit; where one stands inside another, or an Upstream with that
// circuit does, the outer one alone asks and tells it. A nil c panics.
func Breaker(c *Circuit, opts *BreakerOptions) Middleware {
	if c == nil {
		panic("gateway: Breaker: nil circuit")
	}
	var fallback http.Handler
	if opts != nil {
		fallback = opts.Fallback
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			if ex.admits(c) {
				next.ServeHTTP(rw, r)
				return
			}
			t, err := c.allow()
			if err != nil {
				if fallback == nil {
					refuse(rw, r, err)
				} else {
					ex.answerInstead(fallback, rw, r, err)
				}
				return
			}
			g := &guard{ticket: t, w: rw}
			r = g.watch(ex, r)
			defer g.end()
			next.ServeHTTP(rw, r)
		})
	}
}

// guard reports to a circuit how the handler behind a Breaker did.
type guard struct {
	ticket  ticket
	ctx     context.Context
	w       *responseWriter
	record  *exchange // in which failures inside are noted
	ex      *exchange // of the request that Breaker got
	admits  admission // in ex, while the handler runs
	outside startHook // of the writer, before this guard's
}

// watch registers the guard with the record and the writer, and returns the request for the handler.
func (g *guard) watch(ex *exchange, r *http.Request) *http.Request {
	ex.mu.Lock()
	g.ex, g.admits = ex, admission{circuit: g.ticket.c, outer: ex.admitted}
	ex.admitted = &g.admits
	ex.mu.Unlock()
	g.record = ex
	if ex.whole != nil {
		g.record = ex.whole
	}
	g.record.mu.Lock()
	noted := g.record.noted
	g.record.mu.Unlock()
	if noted {
		// This Breaker is in the fallback of another one, whose refusal has been noted for the exchange.
		// How the fallback ends is noted in a record of its own.
		g.record = ex.variant(r.Context())
		r = r.WithContext(g.record)
	}
	g.ctx = r.Context()

	g.w.ex.mu.Lock()
	g.outside, g.w.starts = g.w.starts, g
	g.w.ex.mu.Unlock()
	return r
}

// starting is called when the final status is sent.
func (g *guard) starting(status int) {
	g.report(result{status: status, err: g.ctx.Err()})
	if g.outside != nil {
		g.outside.starting(status)
	}
}

// end is deferred around the handler.
func (g *guard) end() {
	panicked := recover()
	left := g.ctx.Err()
	g.ex.mu.Lock()
	g.ex.admitted = g.admits.outer
	g.ex.mu.Unlock()
	g.w.ex.mu.Lock()
	g.w.starts = g.outside
	e := g.w.result(left, panicked)
	g.w.ex.mu.Unlock()
	g.report(e)
	if panicked != nil {
		panic(panicked)
	}
}

// report tells the circuit the outcome that was noted inside, or else the one that e has.
func (g *guard) report(e result) {
	g.record.mu.Lock()
	noted, o := g.record.noted, g.record.outcome
	g.record.mu.Unlock()
	if !noted {
		o = e.outcome()
	}
	g.ticket.done(o, e.status)
}
