package gateway

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// CircuitChange is one change of a Circuit's state.
type CircuitChange struct {
	Circuit  string // the circuit's name
	At       time.Time
	From, To CircuitState
	Until    time.Time // if To is CircuitOpen, when the circuit may turn half-open; Trip may prolong it without another change
	Tripped  bool      // opened by Trip and not by failures
}

const (
	keptChanges   = 32   // number of changes that Changes returns
	queuedChanges = 1024 // number of changes that can wait for a watcher
)

// circuitNews keeps the last changes of a circuit and delivers each of them to the watchers. The zero value
// is ready for use.
//
// add may be called with the circuit's mutex held, so it never calls a watcher. deliver calls the watchers,
// with no lock held.
type circuitNews struct {
	mu         sync.Mutex
	kept       []CircuitChange // the last changes, at most keptChanges
	queue      []CircuitChange // changes that deliver has not taken yet
	serial     uint64          // number of the last change
	watchers   []*circuitWatcher
	delivering bool // a goroutine is in deliver's loop
}

// circuitWatcher is one call of Watch.
type circuitWatcher struct {
	f       func(CircuitChange)
	after   uint64 // number of the last change before Watch was called
	stopped atomic.Bool
}

// add appends a change. If the queue is full, the watchers never get its oldest change.
func (n *circuitNews) add(change CircuitChange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.serial++
	if len(n.kept) == keptChanges {
		n.kept = slices.Delete(n.kept, 0, 1)
	}
	n.kept = append(n.kept, change)
	if len(n.queue) == queuedChanges {
		n.queue = n.queue[1:]
	}
	n.queue = append(n.queue, change)
}

// recent returns a copy of the last changes, oldest first.
func (n *circuitNews) recent() []CircuitChange {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.kept)
}

// watch registers f for every change that is added from now on, until stop is called.
func (n *circuitNews) watch(f func(CircuitChange)) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &circuitWatcher{f: f, after: n.serial}
	// The slice is replaced and never modified, because deliver reads it without the lock.
	n.watchers = append(slices.Clip(n.watchers), w)
	return func() {
		w.stopped.Store(true)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.watchers = slices.DeleteFunc(slices.Clone(n.watchers), func(other *circuitWatcher) bool { return other == w })
	}
}

// deliver counts the queued changes in m and passes them to the watchers. It returns at once if another call
// of deliver is in progress, which delivers them as well. That call may be on the same goroutine, if a
// watcher uses the circuit.
func (n *circuitNews) deliver(m *circuitMetrics) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.delivering {
		return
	}
	n.delivering = true
	defer func() { n.delivering = false }()
	for len(n.queue) > 0 {
		serial := n.serial - uint64(len(n.queue)-1)
		change := n.queue[0]
		if n.queue = n.queue[1:]; len(n.queue) == 0 {
			n.queue = nil
		}
		n.deliverOne(change, serial, m)
	}
}

// deliverOne is called with mu held. It releases mu while the watchers run. It locks mu again even if a
// watcher calls runtime.Goexit.
func (n *circuitNews) deliverOne(change CircuitChange, serial uint64, m *circuitMetrics) {
	watchers := n.watchers
	n.mu.Unlock()
	defer n.mu.Lock()
	m.change(change.To)
	for _, w := range watchers {
		if serial > w.after && !w.stopped.Load() {
			w.call(change)
		}
	}
}

func (w *circuitWatcher) call(change CircuitChange) {
	defer func() {
		if p := recover(); p != nil {
			_ = logPanic("a circuit's watcher panicked", p, slog.String("circuit", change.Circuit))
		}
	}()
	w.f(change)
}
