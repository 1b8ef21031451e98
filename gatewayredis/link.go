package gatewayredis

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	maxWorkers = 4    // goroutines that talk to Redis at the same time
	maxBatch   = 128  // calls that one of them sends at once
	maxQueue   = 8192 // calls that wait for one of them
	maxOrphans = 32   // workers that still hang when Redis answers again
)

var (
	errAway    = errors.New("gatewayredis: Redis is away")
	errTimeout = errors.New("gatewayredis: Redis did not answer in time")
	errBusy    = errors.New("gatewayredis: too many calls are waiting for Redis")
)

// link sends scripts to Redis for one limiter.
//
// A go-redis client may hang for longer than its context allows, so a call never runs on its caller's goroutine. Up to
// maxWorkers workers each take the calls that are waiting and send them in one pipeline. A worker is started by a call,
// and ends when no calls are waiting. When a call has not been answered in time, or with an error, Redis counts as away:
// all callers get an error at once, and further calls are refused until a probe is answered. Workers that hang at that
// time are left alone until their client gives up; there are never more than maxOrphans of them, for else Redis stays
// away.
type link struct {
	client  redis.UniversalClient
	timeout time.Duration
	linkEvents

	away atomic.Pointer[outage] // nil: Redis answers
	used atomic.Int64           // time of the last call that was refused, by sinceStart

	mu      sync.Mutex
	queue   []*call
	crew    map[*worker]struct{} // of this period
	orphans int                  // workers of earlier periods
	backAt  time.Time            // end of the last outage
	pause   time.Duration        // before the first probe of the next
}

// linkEvents are the functions that a link calls.
type linkEvents struct {
	begins  func()                     // called before an outage begins, with mu held
	late    func(c *call, answer any)  // called with an answer that arrives after its call has been given up
	changed func(o *outage, back bool) // called after the beginning and the end of each outage, in order
}

// outage is a time in which Redis is not asked.
type outage struct {
	err     error
	failed  *call
	since   time.Time
	pause   time.Duration // before its first probe
	probing atomic.Bool
}

// call is a script to run.
type call struct {
	script *script
	args   []any // of EVALSHA
	at     time.Time
	undo   bool // the link's late is called with an answer for which the caller no longer waits

	state  atomic.Int32
	done   chan struct{} // is closed when state is callDone
	answer any
	err    error
}

const (
	callWaits = iota
	callDone
	callLeft // by its caller
)

func newCall(s *script, key string, args ...any) *call {
	c := &call{script: s, args: make([]any, 0, 8), done: make(chan struct{})}
	c.args = append(append(c.args, "evalsha", s.sha, "1", key), args...)
	return c
}

func (c *call) key() string { return c.args[3].(string) }

// finish ends the wait of the caller, unless it has ended.
func (c *call) finish(answer any, err error) bool {
	if !c.state.CompareAndSwap(callWaits, callDone) {
		return false
	}
	c.answer, c.err = answer, err
	close(c.done)
	return true
}

// do runs c. It returns after the timeout at the latest, and with ctx's error when that ends first.
func (l *link) do(ctx context.Context, c *call) (answer any, err error) {
	if err := l.send(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.state.CompareAndSwap(callWaits, callLeft) {
			return nil, ctx.Err()
		}
		<-c.done
	}
	return c.answer, c.err
}

// refuses reports whether Redis is away, and notes that it is wanted.
func (l *link) refuses() bool {
	o := l.away.Load()
	if o != nil {
		l.ask(o)
	}
	return o != nil
}

// send has c run by a worker.
func (l *link) send(c *call) error {
	if l.refuses() {
		return errAway
	}
	c.at = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.away.Load() != nil:
		return errAway
	case len(l.queue) >= maxQueue:
		return errBusy
	}
	l.queue = append(l.queue, c)
	if len(l.crew) < maxWorkers {
		w := &worker{link: l}
		if l.crew == nil {
			l.crew = make(map[*worker]struct{}, maxWorkers)
		}
		l.crew[w] = struct{}{}
		go w.work()
	}
	return nil
}

// fail ends the period in which Redis answered, unless w is of an earlier one.
func (l *link) fail(w *worker, failed *call, err error) {
	l.mu.Lock()
	if _, ok := l.crew[w]; !ok {
		l.mu.Unlock()
		return
	}
	waiting := l.queue
	for w := range l.crew {
		waiting = append(waiting, w.batch...)
	}
	l.orphans += len(l.crew)
	clear(l.crew)
	l.queue = nil
	o := &outage{err: err, failed: failed, since: time.Now(), pause: l.nextPause()}
	o.probing.Store(true)
	l.begins()
	l.away.Store(o)
	l.mu.Unlock()
	for _, c := range waiting {
		c.finish(nil, errAway)
	}
	l.changed(o, false)
	l.used.Store(sinceStart())
	go l.probe(o)
}

// nextPause returns the pause before the first probe of an outage that begins now. It is longer after each outage that
// follows soon on another, so that changes, and lines in the log, are few. The caller holds mu.
func (l *link) nextPause() time.Duration {
	if time.Since(l.backAt) > 10*time.Second {
		l.pause = 0
	} else {
		l.pause = min(max(2*l.pause, probeEvery), 8*probeEvery)
	}
	return l.pause
}

// worker sends batches of calls.
type worker struct {
	link  *link
	batch []*call // guarded by the link's mu
}

func (w *worker) work() {
	for {
		batch := w.next()
		if batch == nil {
			return
		}
		w.run(batch)
	}
}

// next returns the calls to send next, or nil when the worker shall end.
func (w *worker) next() []*call {
	l := w.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.crew[w]; !ok {
		l.orphans--
		return nil
	}
	n := min(len(l.queue), maxBatch)
	if n == 0 {
		delete(l.crew, w)
		return nil
	}
	w.batch = append(w.batch[:0:0], l.queue[:n]...)
	l.queue = slices.Delete(l.queue, 0, n)
	return w.batch
}

// run sends a batch. The oldest call sets the time by which it must be answered: those in the queue are younger, so none
// waits for longer than the timeout.
func (w *worker) run(batch []*call) {
	batch = slices.DeleteFunc(slices.Clone(batch), func(c *call) bool { return c.state.Load() == callLeft })
	if len(batch) == 0 {
		return
	}
	due := batch[0].at.Add(w.link.timeout)
	watchdog := time.AfterFunc(time.Until(due), func() { w.link.fail(w, batch[0], errTimeout) })
	defer watchdog.Stop()
	ctx, cancel := context.WithDeadline(context.Background(), due)
	defer cancel()

	cmds := execute(ctx, w.link.client, batch, false)
	var unknown []*call
	for i, c := range batch {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			unknown = append(unknown, c)
			continue
		}
		w.finish(c, cmds[i])
	}
	if len(unknown) > 0 {
		for i, cmd := range execute(ctx, w.link.client, unknown, true) {
			w.finish(unknown[i], cmd)
		}
	}
}

func (w *worker) finish(c *call, cmd *redis.Cmd) {
	answer, err := cmd.Result()
	if err == nil {
		_, err = c.script.parse(answer)
	}
	if err != nil {
		w.link.fail(w, c, err)
		c.finish(nil, errAway)
		return
	}
	if !c.finish(answer, nil) && c.undo {
		w.link.late(c, answer)
	}
}

// execute runs calls in one pipeline, with the source of the script or with its hash alone.
func execute(ctx context.Context, client redis.UniversalClient, calls []*call, source bool) []*redis.Cmd {
	pipe := client.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		args := c.args
		if source {
			args = slices.Clone(args)
			args[0], args[1] = "eval", c.script.source
		}
		cmds[i] = redis.NewCmd(ctx, args...)
		cmds[i].SetFirstKeyPos(3)
		_ = pipe.Process(ctx, cmds[i])
	}
	_, _ = pipe.Exec(ctx) // each command has its error
	return cmds
}
