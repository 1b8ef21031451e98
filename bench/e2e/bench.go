//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A bench holds what all workloads of a run share.
type bench struct {
	settings *settings
	cpus     cpus
	dir      string // removed at the end
	launcher *launcher
	target   *process
	place    place // of the contenders, but for the address that each has of its own
	backend  string
	token    string
	tls      *tls.Config
	field    []*contender
	notes    []string // who was left out and why, and what else was seen
	progress *progress
}

func newBench(s *settings, at cpus) (b *bench, err error) {
	dir, err := os.MkdirTemp("", "gateway-e2e-")
	if err != nil {
		return nil, err
	}
	b = &bench{settings: s, cpus: at, dir: dir, launcher: newLauncher(), progress: newProgress(os.Stderr)}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.token, err = prepare(dir); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	b.tls = &tls.Config{RootCAs: roots, ServerName: "localhost"}
	if err := b.startTarget(); err != nil {
		return nil, fmt.Errorf("the target: %w", err)
	}
	for _, c := range contenders {
		if len(s.contenders) == 0 || c.name == reference || slices.Contains(s.contenders, c.name) {
			b.field = append(b.field, c)
		}
	}
	for _, w := range s.with {
		b.field = append(b.field, foreign(w[0], w[1]))
	}
	b.field = slices.DeleteFunc(b.field, func(c *contender) bool { // once and loudly, not for each workload
		if c.name != "nginx" && c.name != "haproxy" {
			return false
		}
		_, err := installed(c.name)
		if err != nil {
			b.leaveOut(err.Error())
		}
		return err != nil
	})
	return b, nil
}

// startTarget starts nginx as the target or, where there is none that runs, a server of this program.
func (b *bench) startTarget() (err error) {
	for _, t := range []struct {
		what    string
		command func(place) (argv, env []string, err error)
	}{
		{"nginx, one process", nginxTarget},
		{"a Go server of this program, dearer than nginx would be", role("target")},
	} {
		if err != nil {
			b.leaveOut("nginx as the target: " + err.Error())
		}
		if err = b.tryTarget(t.command); err == nil {
			b.backend = t.what
			return nil
		}
	}
	return err
}

func (b *bench) tryTarget(command func(place) (argv, env []string, err error)) error {
	listen, err := freeAddr()
	if err != nil {
		return err
	}
	p := place{listen: listen, target: listen, dir: b.dir}
	argv, env, err := command(p)
	if err != nil {
		return err
	}
	target, err := b.launcher.start(b.cpus.load, argv, env)
	if err != nil {
		return err
	}
	if err := target.await(listen); err != nil {
		target.end()
		return err
	}
	b.target, b.place = target, place{target: listen, dir: b.dir}
	return nil
}

func (b *bench) leaveOut(why string) { b.note("LEFT OUT: " + why) }

func (b *bench) note(what string) {
	b.notes = append(b.notes, what)
	b.progress.say(what)
}

func (b *bench) close() {
	if b.target != nil {
		b.target.end()
	}
	b.launcher.close()
	os.RemoveAll(b.dir)
}

// An entry is a contender that runs for a workload.
type entry struct {
	*contender
	process *process
	addr    string
	load    *load
	samples []sample
}

func (e *entry) end() {
	if e.load != nil {
		e.load.close()
	}
	if e.process != nil {
		e.process.end()
	}
}

// enter starts a contender, opens n connections to it and sends two requests over each, so that the connections to
// the target are there, too.
func (b *bench) enter(ctx context.Context, w *workload, c *contender, n int) (*entry, error) {
	e := &entry{contender: c}
	var err error
	if e.addr, err = freeAddr(); err != nil {
		return nil, err
	}
	p := b.place
	p.listen, p.tls = e.addr, w.tls
	argv, env, err := c.command(p)
	if err != nil {
		return nil, err
	}
	if b.settings.profiles != "" {
		env = append(env, profileEnv+"="+filepath.Join(b.settings.profiles, w.name+"-"+c.name+".prof"))
	}
	if e.process, err = b.launcher.start(b.cpus.contender, argv, env); err != nil {
		return nil, err
	}
	request := w.callFor(c, b.token)
	err = e.process.await(e.addr)
	if err == nil && w.parts > 0 && c.name != reference {
		request.want, err = w.probeAggregate(c, e.addr, b.token)
	}
	if err == nil {
		e.load, err = open(e.addr, b.tlsFor(w), n, request)
	}
	if err == nil {
		_, err = e.load.send(ctx, 2*n, 0)
	}
	if err != nil {
		e.end()
		return nil, err
	}
	if c.foreign {
		e.process.follow()
	}
	return e, nil
}

func (b *bench) tlsFor(w *workload) *tls.Config {
	if w.tls {
		return b.tls
	}
	return nil
}

// A sample is one contender in one round.
type sample struct {
	cpu       float64 // µs a request
	rate      float64 // requests a second
	p50, p99  float64 // µs
	perConn   float64 // bytes of memory for an idle connection
	others    float64 // share of the two processors that other load and the host took
	disturbed bool    // too much of them
}

// A series is one contender over all rounds of a workload.
type series struct {
	name    string
	samples []sample
	peak    int64 // bytes
}

// A result is a workload that was measured.
type result struct {
	*workload
	series []series
	rate   float64 // requests a second that a paced workload sent
}

// enterAll starts every contender of a workload. Those that cannot run are left out, but for the reference. What it
// returns is the caller's to end, also beside an error.
func (b *bench) enterAll(ctx context.Context, w *workload) (entries []*entry, err error) {
	for _, c := range b.field {
		if w.parts > 0 && c.name != reference && !c.gathers {
			continue
		}
		b.progress.show(w.title + ": starting " + c.name)
		e, err := b.enter(ctx, w, c, b.settings.clients)
		if ctx.Err() != nil {
			return entries, ctx.Err()
		}
		if err != nil {
			if c.name == reference {
				return entries, fmt.Errorf("%s: %w", c.name, err)
			}
			b.leaveOut(fmt.Sprintf("%s from %q: %v", c.name, w.title, err))
			continue
		}
		if w.kind == idle {
			e.end() // it can run; each round starts it anew
			e = &entry{contender: c}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// measure runs the rounds of a workload. In each, every contender has its turn, in an order that rotates. Rounds
// are run until every contender has as many undisturbed ones as asked for, at most twice as many.
func (b *bench) measure(ctx context.Context, w *workload) (*result, error) {
	entries, err := b.enterAll(ctx, w)
	defer func() {
		for _, e := range entries {
			e.end()
		}
	}()
	if err != nil {
		return nil, err
	}
	b.progress.say(fmt.Sprintf("%s: %d contenders, %d to %d rounds", w.title, len(entries), b.settings.rounds, 2*b.settings.rounds))
	r := &result{workload: w}
	if w.kind == paced {
		// Half of what the reference reaches in a round that counts for nothing else.
		s, err := b.round(ctx, w, entries[0], 0)
		if err != nil {
			return nil, err
		}
		r.rate = s.rate / 2
	}
	clean, began := 0, time.Now()
	for round := 0; clean < b.settings.rounds && round < 2*b.settings.rounds; round++ {
		turns := slices.Concat(entries[round%len(entries):], entries[:round%len(entries)])
		for i, e := range turns {
			b.progress.show(fmt.Sprintf("%s: round %d, %d of %d undisturbed, %s %s", w.title, round+1, clean, b.settings.rounds,
				e.name, remaining(began, round*len(turns)+i, b.settings.rounds*len(turns))))
			measure := b.round
			if w.kind == idle {
				measure = b.idleRound
			}
			s, err := measure(ctx, w, e, r.rate)
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case err != nil && e.name == reference:
				return nil, fmt.Errorf("%s: %w", e.name, err)
			case err != nil:
				b.leaveOut(fmt.Sprintf("%s from %q: %v", e.name, w.title, err))
				entries = slices.DeleteFunc(entries, func(other *entry) bool { return other == e })
				e.end()
			default:
				e.samples = append(e.samples, s)
			}
		}
		clean = fewestClean(entries)
		if w.kind == idle && round >= 2 && round+1 >= b.settings.rounds/3 {
			break // each has started every contender anew, and memory hardly varies
		}
	}
	for _, e := range entries {
		s := series{name: e.name, samples: e.samples}
		if e.load != nil && e.load.reopened.Load() > 0 {
			b.note(fmt.Sprintf("%s closed %d connections after an answer in %q", e.name, e.load.reopened.Load(), w.title))
		}
		if e.process != nil {
			s.peak = e.process.memory("VmHWM")
		}
		r.series = append(r.series, s)
	}
	done := fmt.Sprintf("%s: done, %d rounds", w.title, len(entries[0].samples))
	if w.kind != idle {
		done += fmt.Sprintf(", at least %d undisturbed; others took %.0f %% of the two processors in the median turn", clean, 100*medianOthers(entries))
	}
	b.progress.say(done)
	return r, nil
}

// fewestClean is in how many rounds a contender and the reference were both undisturbed, of the contender with the fewest.
func fewestClean(entries []*entry) int {
	fewest := len(entries[0].samples)
	for _, e := range entries {
		n := 0
		for i, s := range e.samples {
			if !s.disturbed && !entries[0].samples[i].disturbed {
				n++
			}
		}
		fewest = min(fewest, n)
	}
	return fewest
}

// medianOthers is the share of the processors that other load took, the median of all contenders and rounds.
func medianOthers(entries []*entry) float64 {
	var all []float64
	for _, e := range entries {
		for _, s := range e.samples {
			all = append(all, s.others)
		}
	}
	slices.Sort(all)
	return quantile(all, 0.5)
}

func (b *bench) requests(w *workload) int {
	return max(b.settings.requests/w.share, b.settings.clients)
}

// round loads a contender once. Requests that are not measured go first: they wake what has fallen asleep.
func (b *bench) round(ctx context.Context, w *workload, e *entry, rate float64) (sample, error) {
	n := b.requests(w)
	if _, err := e.load.send(ctx, max(n/20, b.settings.clients), 0); err != nil {
		return sample{}, err
	}
	watch := b.watch(e.process)
	cpu, began := e.process.cpu(), time.Now()
	took, err := e.load.send(ctx, n, rate)
	if err != nil {
		return sample{}, err
	}
	wall := time.Since(began)
	s := sample{
		cpu:  float64(e.process.cpu()-cpu) / float64(n) / 1e3,
		rate: float64(n) / wall.Seconds(),
	}
	s.others, s.disturbed = watch()
	slices.Sort(took)
	s.p50 = float64(took[n/2]) / 1e3
	s.p99 = float64(took[min(n-1, n*99/100)]) / 1e3
	return s, nil
}

// idleRound measures what a connection costs that waits: the growth of a fresh process's memory from 8 clients to many.
func (b *bench) idleRound(ctx context.Context, w *workload, as *entry, _ float64) (s sample, err error) {
	e, err := b.enter(ctx, w, as.contender, 8)
	if err != nil {
		return s, err
	}
	defer e.end()
	// A process that has served for a while: its heap is warm, and what grows from here is for the connections.
	if _, err := e.load.send(ctx, max(b.settings.requests/10, 100), 0); err != nil {
		return s, err
	}
	before := e.process.memory("VmRSS")
	many, err := open(e.addr, nil, b.settings.idle, e.load.call)
	if err != nil {
		return s, err
	}
	defer many.close()
	for _, c := range many.clients {
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		c.conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := c.do(many.call); err != nil {
			return s, err
		}
	}
	s.perConn = float64(e.process.memory("VmRSS")-before) / float64(b.settings.idle)
	return s, nil
}

// watch begins to look for other load on the two processors. A round is disturbed when others took more than 8 % of
// them, or the host more than 4 %; what is below three ticks of the kernel's clock cannot be told.
func (b *bench) watch(p *process) func() (share float64, disturbed bool) {
	if !b.cpus.pinned() {
		return func() (float64, bool) { return 0, false }
	}
	look := func() (others, stolen time.Duration) {
		for _, cpu := range []int{b.cpus.contender, b.cpus.load} {
			ran, gone := busy(cpu)
			others += ran
			stolen += gone
		}
		return others - p.cpu() - b.target.cpu() - cpuOf(os.Getpid()), stolen
	}
	began := time.Now()
	others, stolen := look()
	return func() (float64, bool) {
		both := 2 * time.Since(began)
		othersNow, stolenNow := look()
		others, stolen = othersNow-others, stolenNow-stolen
		return max(0, float64(others+stolen)/float64(both)), others > max(both*8/100, 3*tick) || stolen > max(both*4/100, 3*tick)
	}
}

// remaining estimates how long it takes from done to all.
func remaining(began time.Time, done, all int) string {
	if done == 0 || done >= all {
		return ""
	}
	left := time.Since(began) / time.Duration(done) * time.Duration(all-done)
	return fmt.Sprintf("(%s left)", left.Round(time.Second))
}

// A progress is a line that is overwritten where it goes to a terminal. Elsewhere it is printed now and then.
type progress struct {
	to       *os.File
	terminal bool
	last     time.Time
	width    int
}

func newProgress(to *os.File) *progress {
	info, err := to.Stat()
	return &progress{to: to, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *progress) show(line string) {
	if p.terminal {
		fmt.Fprintf(p.to, "\r%s%s", line, strings.Repeat(" ", max(p.width-len(line), 0)))
		p.width = len(line)
	} else if time.Since(p.last) > 5*time.Second {
		p.last = time.Now()
		fmt.Fprintln(p.to, line)
	}
}

// say prints a line that stays.
func (p *progress) say(line string) {
	p.end()
	fmt.Fprintln(p.to, line)
}

func (p *progress) end() {
	if p.terminal && p.width > 0 {
		fmt.Fprintf(p.to, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}

var errRole = errors.New("want: role NAME SCHEME LISTEN TARGET DIR")
