package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The sections of the page. Each is a separate event, which is sent when the section has changed.
const (
	consoleRoutes = iota
	consoleState
	consoleStats
	consoleLimits
	consoleSections
)

const (
	maxWatchers = 32
	busiestKeys = 5 // keys shown of each limiter

	// consoleShare limits the cost of a Console: after a reading that took 1 ms, the next one begins 150 ms
	// later at the earliest.
	consoleShare = 150
	consoleLate  = 15 * time.Second // longest time between two readings
)

// consoleFeed reads the figures for all watchers. It reads nothing unless send is called. It keeps the last
// event of each section in memory, and nothing while there are no watchers.
type consoleFeed struct {
	router    *Router
	stats     *Stats
	upstreams []*Upstream
	circuits  []*Circuit
	limiters  []usedLimiter
	showKeys  bool
	secret    []byte // for the hashes of keys

	mu       sync.Mutex
	watchers int
	sections [consoleSections]consoleSection
}

// consoleSection is one part of the page.
type consoleSection struct {
	name   string
	every  time.Duration // interval of the readings; 0 means only one
	read   func() any    // nil if the page does not have this section
	next   time.Time     // when to read next
	serial uint64        // number of event
	event  []byte        // the last event, in the form of the stream
}

// usedLimiter is a limiter that reports its busiest keys.
type usedLimiter struct {
	name  string
	usage func(n int) iter.Seq2[string, float64]
	size  func() int // number of keys; nil if it is not known
}

func newConsoleFeed(opts ConsoleOptions) *consoleFeed {
	f := &consoleFeed{
		router: opts.Router, stats: opts.Stats, upstreams: opts.Upstreams, circuits: opts.Circuits,
		showKeys: opts.ShowKeys, secret: make([]byte, sha256.Size),
	}
	_, _ = rand.Read(f.secret) // never fails
	for _, name := range slices.Sorted(maps.Keys(opts.Limiters)) {
		l, ok := opts.Limiters[name].(interface {
			Usage(n int) iter.Seq2[string, float64]
		})
		if !ok {
			continue
		}
		u := usedLimiter{name: name, usage: l.Usage}
		if sized, ok := l.(interface{ Len() int }); ok {
			u.size = sized.Len
		}
		f.limiters = append(f.limiters, u)
	}
	f.sections = [consoleSections]consoleSection{
		consoleRoutes: {name: "routes", read: f.readRoutes},
		consoleState:  {name: "state", every: consoleTick, read: f.readState},
		consoleStats:  {name: "stats", every: time.Second, read: f.readStats},
		consoleLimits: {name: "limiters", every: time.Second, read: f.readLimiters},
	}
	if f.stats == nil {
		f.sections[consoleStats].read = nil
	}
	if len(f.limiters) == 0 {
		f.sections[consoleLimits].read = nil
	}
	return f
}

// join admits one more watcher, and reports whether there is room.
func (f *consoleFeed) join() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == maxWatchers {
		return false
	}
	f.watchers++
	return true
}

// leave removes a watcher. After the last one, it drops the events.
func (f *consoleFeed) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers--; f.watchers > 0 {
		return
	}
	for i := range f.sections {
		f.sections[i].event, f.sections[i].next = nil, time.Time{}
	}
}

// send writes to s the events that s has not been sent yet. After consoleBeat without an event, it writes one
// that shows that the stream is alive.
func (f *consoleFeed) send(s *consoleStreamer) {
	var events [consoleSections][]byte
	f.mu.Lock()
	for i := range f.sections {
		section := &f.sections[i]
		if section.read == nil {
			continue
		}
		section.refresh()
		if section.serial != s.sent[i] {
			events[i], s.sent[i] = section.event, section.serial
		}
	}
	f.mu.Unlock()
	now := time.Now()
	for _, event := range events {
		if event != nil {
			s.write(event)
			s.beat = now
		}
	}
	if now.Sub(s.beat) >= consoleBeat-consoleTick/2 {
		s.write([]byte("event: beat\ndata: 0\n\n"))
		s.beat = now
	}
}

// refresh reads the section again if its interval is over.
func (s *consoleSection) refresh() {
	began := time.Now()
	if s.event != nil && (s.every == 0 || began.Before(s.next)) {
		return
	}
	event := append([]byte("event: "+s.name+"\ndata: "), marshalEvent(s.read())...)
	event = append(event, "\n\n"...)
	if string(event) != string(s.event) {
		s.event = event
		s.serial++
	}
	pause := min(max(s.every, consoleShare*time.Since(began)), consoleLate)
	s.next = began.Add(pause - consoleTick/5) // a tick may be a little early
}

// marshalEvent returns v as JSON in one line. Invalid UTF-8 becomes U+FFFD.
func marshalEvent(v any) []byte {
	if raw, ok := v.(json.RawMessage); ok {
		return raw
	}
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null") // cannot happen for the types of this file
	}
	return b
}

// consoleOverview is the section that does not change while the process runs.
type consoleOverview struct {
	Router   bool           `json:"router"`
	Stats    bool           `json:"stats"`
	Routes   []consoleRoute `json:"routes"`
	Outcomes []string       `json:"outcomes"` // names, in the order of the counts in the stats
	Failures []int          `json:"failures"` // indexes of the outcomes that are errors
	Hashed   bool           `json:"hashed"`   // keys of limiters are hashes
}

func (f *consoleFeed) readRoutes() any {
	o := consoleOverview{Router: f.router != nil, Stats: f.stats != nil, Routes: []consoleRoute{}, Hashed: !f.showKeys}
	if f.router != nil {
		for r := range f.router.Routes() {
			o.Routes = append(o.Routes, newConsoleRoute(&r))
		}
	}
	for i := range outcomeCount {
		o.Outcomes = append(o.Outcomes, Outcome(i).String())
		if isUpstreamFailure(Outcome(i)) {
			o.Failures = append(o.Failures, i)
		}
	}
	return o
}

// consolePools is the state of upstreams and circuits.
type consolePools struct {
	Upstreams []consoleUpstream `json:"upstreams"`
	Circuits  []consoleCircuit  `json:"circuits"`
}

type consoleUpstream struct {
	Name    string          `json:"name"`
	Targets []consoleTarget `json:"targets"`
}

type consoleTarget struct {
	URL     string `json:"url"`
	Weight  int    `json:"weight"`
	Healthy bool   `json:"healthy"`
	Pending int    `json:"pending"`
	Reason  string `json:"reason,omitempty"`
}

// consoleCircuit has times in milliseconds of Unix time.
type consoleCircuit struct {
	Name    string          `json:"name"`
	State   string          `json:"state"`
	Until   int64           `json:"until,omitempty"` // while it is open
	Changes []consoleChange `json:"changes"`         // oldest first
}

type consoleChange struct {
	At      int64  `json:"at"`
	To      string `json:"to"`
	Tripped bool   `json:"tripped,omitempty"`
}

func (f *consoleFeed) readState() any {
	s := consolePools{Upstreams: []consoleUpstream{}, Circuits: []consoleCircuit{}}
	for _, u := range f.upstreams {
		view := consoleUpstream{Name: u.Name(), Targets: []consoleTarget{}}
		for _, t := range u.Status() {
			view.Targets = append(view.Targets, consoleTarget{
				URL: t.Target.URL.Redacted(), Weight: max(1, t.Target.Weight),
				Healthy: t.Healthy, Pending: t.Pending, Reason: bounded(t.Reason),
			})
		}
		s.Upstreams = append(s.Upstreams, view)
	}
	for _, c := range f.circuits {
		p := c.period.Load() // State would turn an open circuit half-open
		view := consoleCircuit{Name: c.name, State: p.state.String(), Changes: []consoleChange{}}
		if p.state == CircuitOpen {
			view.Until = p.until.UnixMilli()
		}
		for _, change := range c.Changes() {
			view.Changes = append(view.Changes, consoleChange{change.At.UnixMilli(), change.To.String(), change.Tripped})
		}
		s.Circuits = append(s.Circuits, view)
	}
	return s
}

// consoleLimiter is the state of a limiter.
type consoleLimiter struct {
	Name string       `json:"name"`
	Keys int          `json:"keys"` // number of keys in memory; -1 if it is not known
	Busy []consoleKey `json:"busy"` // the busiest first
}

type consoleKey struct {
	Key   string  `json:"key"`
	Spent float64 `json:"spent"` // share of the allowance
}

func (f *consoleFeed) readLimiters() any {
	all := make([]consoleLimiter, 0, len(f.limiters))
	for _, l := range f.limiters {
		view := consoleLimiter{Name: l.name, Keys: -1, Busy: []consoleKey{}}
		for key, spent := range l.usage(busiestKeys) {
			if spent != spent || len(view.Busy) == busiestKeys { // JSON has no NaN
				break
			}
			view.Busy = append(view.Busy, consoleKey{f.keyLabel(key), min(max(spent, 0), 1e6)})
		}
		if l.size != nil {
			view.Keys = l.size()
		}
		all = append(all, view)
	}
	return all
}

// keyLabel returns the text that the page shows for a key.
func (f *consoleFeed) keyLabel(key string) string {
	if f.showKeys {
		return bounded(key)
	}
	mac := hmac.New(sha256.New, f.secret)
	mac.Write([]byte(key))
	return hex.EncodeToString(mac.Sum(nil)[:6])
}

// readStats returns an array for each route that has had a request: its name, rate, share of errors, three
// percentiles in milliseconds, and the counts of the outcomes. The JSON is made by hand, which for a thousand
// routes takes a fifth of the time of encoding/json.
func (f *consoleFeed) readStats() any {
	now := time.Now()
	b := strconv.AppendInt([]byte(`{"at":`), now.UnixMilli(), 10)
	b = append(b, `,"routes":[`...)
	for i, r := range f.stats.Routes() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '[')
		b = append(b, marshalEvent(bounded(r.Route))...)
		for _, v := range [...]float64{r.Rate, r.ErrorRate, milliseconds(r.P50), milliseconds(r.P95), milliseconds(r.P99)} {
			b = append(b, ',')
			b = strconv.AppendFloat(b, v, 'g', 5, 64)
		}
		for o := range outcomeCount {
			b = append(b, ',')
			b = strconv.AppendInt(b, r.Outcomes[Outcome(o)], 10)
		}
		b = append(b, ']')
	}
	return json.RawMessage(append(b, "]}"...))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
