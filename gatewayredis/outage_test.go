package gatewayredis

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewayredis/internal/redistest"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(strings.SplitSeq(strings.TrimSpace(l.b.String()), "\n"))
}

// patience is for what comes by itself, on a machine that is slow and busy too.
const patience = 30 * time.Second

// until waits for a condition that comes by itself.
func until(t *testing.T, what string, within time.Duration, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(began) > within {
			t.Fatalf("%s: not within %v", what, within)
		}
		<-tick.C
	}
	return time.Since(began)
}

const testTimeout = 60 * time.Millisecond

// slack is how late a goroutine may come on a machine with much other work. A client with its defaults hangs for longer.
const slack = 1500 * time.Millisecond

// TestOutages: whatever happens to Redis, one decision waits for it, the next do not, and then Redis decides again.
func TestOutages(t *testing.T) {
	for _, tt := range []struct {
		name          string
		breaks, heals func(*redistest.Server)
		waits         bool // no answer comes, so that only the timeout tells
	}{
		{"killed", (*redistest.Server).Kill, (*redistest.Server).Restart, false},
		{"stopped", (*redistest.Server).Pause, (*redistest.Server).Resume, true},
		{"read-only", (*redistest.Server).ReadOnly, (*redistest.Server).ReadWrite, false},
		{"out of memory", (*redistest.Server).FillMemory, (*redistest.Server).FreeMemory, false},
	} {
		for _, config := range []struct {
			name string
			opts redis.Options
		}{
			{"", redis.Options{}},
			{", heeding contexts", redis.Options{ContextTimeoutEnabled: true, MaxRetries: -1}},
		} {
			t.Run(tt.name+config.name, func(t *testing.T) {
				t.Parallel()
				s := redistest.Start(t)
				tel, log := new(gatewaytest.Telemetry), new(lines)
				l := NewTokenBucket(s.ClientWith(config.opts), 0.001, 100, &Options{
					Timeout: testTimeout, Meter: tel, Logger: slog.New(slog.NewTextHandler(log, nil)),
				})
				l.roster.seen.Store(&gateways{count: 4, rank: 3})
				l.roster.announced.Store(sinceStart() + int64(time.Hour)) // the count stays
				take := func(n int) (gateway.Decision, time.Duration) {
					t.Helper()
					began := time.Now()
					d, err := l.Take(t.Context(), "k", n)
					if err != nil {
						t.Fatal(err)
					}
					return d, time.Since(began)
				}
				until(t, "a decision by Redis", patience, func() bool {
					d, err := l.Take(t.Context(), "another key", 1)
					return err == nil && splitsToRedis(d)
				})
				earlier := len(log.all()) // lines, when a slow machine has lost Redis already
				if log.all()[0] == "" {
					earlier = 0
				}
				tt.breaks(s)
				d, took := take(1)
				if took > testTimeout+slack || tt.waits && took < testTimeout*9/10 {
					t.Errorf("the first decision takes %v, want at most %v", took, testTimeout)
				}
				if splitsToRedis(d) || !d.OK || d.Remaining != 24 || d.Limit != 100 {
					t.Errorf("the first decision is %+v, want one of a share of 25", d)
				}
				slow := 0
				for i := range 200 {
					d, took := take(1)
					if want := i < 24; splitsToRedis(d) || d.OK != want {
						t.Fatalf("decision %d without Redis: %+v, want OK %t", i, d, want)
					}
					if took > time.Millisecond {
						slow++
					}
				}
				if slow > 20 {
					t.Errorf("%d of 200 decisions take longer than a millisecond", slow)
				}

				// It stays away, through some probes.
				for range 50 {
					<-time.After(5 * time.Millisecond)
					if d, _ := take(1); splitsToRedis(d) {
						t.Fatalf("Redis counts as back: %+v", d)
					}
				}

				tt.heals(s)
				took = until(t, "a decision by Redis", patience, func() bool { d, _ := take(1); return splitsToRedis(d) })
				t.Logf("back after %v", took)
				if took > time.Second+slack {
					t.Errorf("Redis decides %v after it is back, want a second", took)
				}
				if earlier == 0 {
					wantReports(t, tel, log)
				}
			})
		}
	}
}

func splitsToRedis(d gateway.Decision) bool { _, ok := splitRef(d.Ref); return ok }

func wantReports(t *testing.T, tel *gatewaytest.Telemetry, log *lines) {
	t.Helper()
	until(t, "two lines in the log", patience, func() bool { return len(log.all()) >= 2 })
	got := log.all()
	if len(got) != 2 || !strings.Contains(got[0], "Redis is away") || !strings.Contains(got[0], "limiter=token:0.001:100") ||
		!strings.Contains(got[0], "gateways=4") || !strings.Contains(got[1], "Redis is back") {
		t.Errorf("the log has %q", got)
	}
	if f := tel.Series("gateway.redis.fallbacks"); len(f) != 1 || f[0].Sum < 201 {
		t.Errorf("gateway.redis.fallbacks: %+v", f)
	}
	if c := tel.Series("gateway.redis.changes"); len(c) != 2 || c[0].Sum != 1 || c[1].Sum != 1 {
		t.Errorf("gateway.redis.changes: %+v", c)
	}
}

// latency is a hook that delays what a client sends.
type latency struct{ ns *atomic.Int64 }

func (latency) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (latency) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (l latency) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		<-time.After(time.Duration(l.ns.Load()))
		return next(ctx, cmds)
	}
}

// TestSlowRedis: one that answers, but always late, is away, and does not come back between.
func TestSlowRedis(t *testing.T) {
	t.Parallel()
	var ns atomic.Int64
	client := redistest.Start(t).Client()
	client.AddHook(latency{&ns})
	log := new(lines)
	l := NewTokenBucket(client, 1, 1000, &Options{Timeout: testTimeout, Logger: slog.New(slog.NewTextHandler(log, nil))})
	until(t, "a decision by Redis", patience, func() bool { return splitsToRedis(mustTake(t, l)) })
	before := len(log.all())
	ns.Store(int64(4 * testTimeout))
	for range 100 {
		<-time.After(5 * time.Millisecond)
		if splitsToRedis(mustTake(t, l)) {
			t.Fatal("a slow Redis decides")
		}
	}
	if got := log.all(); len(got) > before+1 {
		t.Errorf("the log has %q", got)
	}
	ns.Store(0)
	until(t, "a decision by Redis", time.Second+slack, func() bool { return splitsToRedis(mustTake(t, l)) })
}

// answers is a hook that replaces what scripts answer.
type answers struct{ with any }

func (answers) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (answers) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (a answers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if c, ok := cmd.(*redis.Cmd); ok {
				c.SetErr(nil)
				c.SetVal(a.with)
			}
		}
		return err
	}
}

// TestNonsense: answers that no script gives count as an outage.
func TestNonsense(t *testing.T) {
	s := redistest.Start(t)
	for _, with := range []any{
		nil, int64(1), "", "OK", strings.Repeat("x", 23), strings.Repeat("\xff", 24), strings.Repeat("\x00", 23) + "\x7f", []any{"a"}, true,
	} {
		client := s.Client()
		client.AddHook(answers{with})
		opts := patient()
		opts.Logger = slog.New(slog.DiscardHandler)
		l := NewTokenBucket(client, 1, 10, opts)
		if d, err := l.Take(t.Context(), "k", 1); err != nil || !d.OK || splitsToRedis(d) {
			t.Errorf("%q: %+v, %v; want a decision of the fallback", with, d, err)
		}
		if d := mustTake(t, l); splitsToRedis(d) || l.link.away.Load() == nil {
			t.Errorf("%q: Redis counts as back", with)
		}
	}
}

func mustTake(t *testing.T, l *Limiter) gateway.Decision {
	t.Helper()
	d, err := l.Take(t.Context(), "k", 1)
	if err != nil {
		t.Error(err)
	}
	return d
}

// TestNoRedis: what answers is no Redis at all.
func TestNoRedis(t *testing.T) {
	for name, says := range map[string]string{
		"HTTP": "HTTP/1.1 400 Bad Request\r\n\r\n", "nothing": "", "noise": "\x00\xff\r\n\r\n$-5\r\n", "a huge bulk": "$9999999999\r\n", "lists": strings.Repeat("*1\r\n", 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						buf := make([]byte, 1024)
						for {
							if _, err := c.Read(buf); err != nil {
								return
							}
							_, _ = io.WriteString(c, says)
						}
					}()
				}
			}()
			client := redis.NewClient(&redis.Options{Addr: ln.Addr().String(), ReadTimeout: 200 * time.Millisecond, MaxRetries: 1})
			defer client.Close()
			l := NewFixedWindow(client, 10, time.Hour, &Options{Timeout: testTimeout, Logger: slog.New(slog.DiscardHandler)})
			began := time.Now()
			if d := mustTake(t, l); !d.OK || splitsToRedis(d) || time.Since(began) > testTimeout+slack {
				t.Errorf("%+v after %v, want a decision of the fallback", d, time.Since(began))
			}
		})
	}
}

// TestHungRedisHoldsFewGoroutines: a Redis that hangs for long does not collect goroutines, whatever comes.
func TestHungRedisHoldsFewGoroutines(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := NewTokenBucket(s.Client(), 1, 1_000_000, &Options{Timeout: testTimeout, Logger: slog.New(slog.DiscardHandler)})
	mustTake(t, l)
	s.Pause()
	defer s.Resume()
	var wg sync.WaitGroup
	var slowest atomic.Int64
	for i := range 500 {
		wg.Go(func() {
			for range 20 {
				began := time.Now()
				if _, err := l.Take(t.Context(), fmt.Sprint(i), 1); err != nil {
					t.Error(err)
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(began))))
			}
		})
	}
	wg.Wait()
	if d := time.Duration(slowest.Load()); d > testTimeout+slack {
		t.Errorf("a decision takes %v", d)
	}
	l.link.mu.Lock()
	orphans, crew, queue := l.link.orphans, len(l.link.crew), len(l.link.queue)
	l.link.mu.Unlock()
	if orphans > maxWorkers || crew > 0 || queue > 0 {
		t.Errorf("%d workers hang, %d work, %d calls wait", orphans, crew, queue)
	}
}

// TestProbeEndsWhenNobodyAsks: a limiter that is not used any more leaves nothing behind, and one that is used again
// finds Redis.
func TestProbeEndsWhenNobodyAsks(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	l := NewTokenBucket(s.Client(), 1, 100, &Options{Timeout: testTimeout, Logger: slog.New(slog.DiscardHandler)})
	mustTake(t, l)
	s.Kill()
	mustTake(t, l)
	o := l.link.away.Load()
	if o == nil {
		t.Fatal("Redis is not away")
	}
	until(t, "the end of the probe", patience, func() bool { return !o.probing.Load() })
	s.Restart()
	until(t, "a decision by Redis", time.Second+slack, func() bool { return splitsToRedis(mustTake(t, l)) })
}

// TestFallback: a limiter of the caller's decides, gets back what it gave, and owes.
func TestFallback(t *testing.T) {
	s := redistest.Start(t)
	own := gateway.NewFixedWindow(10, 1000*time.Hour, nil)
	l := NewTokenBucket(s.Client(), 1, 100, &Options{Timeout: testTimeout, Fallback: own, Logger: slog.New(slog.DiscardHandler)})
	ofRedis := mustTake(t, l)
	s.Kill()
	d := mustTake(t, l)
	if splitsToRedis(d) || d.Limit != 10 || d.Remaining != 9 {
		t.Fatalf("%+v, want a decision of the fallback", d)
	}
	if err := l.Return(t.Context(), "k", 1, d); err != nil {
		t.Error(err)
	}
	if err := l.Owe(t.Context(), "k", 3); err != nil {
		t.Error(err)
	}
	if d := mustTake(t, l); d.Remaining != 6 {
		t.Errorf("%+v, want 6 to remain", d)
	}
	if err := l.Return(t.Context(), "k", 1, ofRedis); err == nil {
		t.Error("units of Redis are returned while it is away")
	}
	if d := mustTake(t, l); d.Remaining != 5 {
		t.Errorf("units of Redis were returned to the fallback: %+v", d)
	}
}

// TestShare: the parts of the gateways are the whole.
func TestShare(t *testing.T) {
	for _, limit := range []int{1, 2, 7, 10, 1000} {
		for count := 1; count <= 12; count++ {
			sum := 0
			for rank := range count {
				sum += gateways{count, rank}.part(limit)
			}
			if want := max(limit, count); sum != want {
				t.Errorf("%d gateways have %d of %d", count, sum, limit)
			}
		}
	}
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for _, kind := range kinds {
		w := kind.redis(client, 10, time.Minute, nil)
		l := w.algorithm.local(gateways{count: 3, rank: 2})
		if d, _ := l.Take(t.Context(), "k", 11); d.OK || d.RetryAfter != 0 || d.Limit != 10 {
			t.Errorf("%s: a cost above the limit: %+v", kind.name, d)
		}
		if d, _ := l.Take(t.Context(), "k", 7); !d.OK || d.Remaining != 0 || d.ResetAfter < 40*time.Second {
			t.Errorf("%s: a cost above the share: %+v", kind.name, d)
		}
		if d, _ := l.Take(t.Context(), "k", 1); d.OK || d.RetryAfter <= 0 {
			t.Errorf("%s: after a cost above the share: %+v", kind.name, d)
		}
	}
}

// TestRoster: gateways find each other, and forget those that are gone.
func TestRoster(t *testing.T) {
	s := redistest.Start(t)
	client := s.Client()
	opts := patient()
	var all []*Limiter
	for range 5 {
		all = append(all, NewTokenBucket(client, 1, 100, opts))
	}
	client.Set(t.Context(), all[0].roster.key, "of another type", 0)
	seen := func(l *Limiter) gateways {
		l.roster.announced.Store(0)
		mustTake(t, l)
		until(t, "the announcement", patience, func() bool { return !l.roster.busy.Load() })
		return l.roster.known()
	}
	for i, l := range all {
		if got := seen(l); got.count != i+1 {
			t.Errorf("gateway %d sees %d", i, got.count)
		}
	}
	ranks := map[int]bool{}
	for _, l := range all {
		ranks[seen(l).rank] = true
	}
	if len(ranks) != 5 {
		t.Errorf("5 gateways have the ranks %v", ranks)
	}
	if ttl := client.PTTL(t.Context(), all[0].roster.key).Val(); ttl <= 0 || ttl > 10*time.Second {
		t.Errorf("the roster expires in %v", ttl)
	}
	client.HSet(t.Context(), all[0].roster.key, all[1].roster.id, time.Now().Add(-11*time.Second).UnixMicro())
	client.HSet(t.Context(), all[0].roster.key, all[2].roster.id, "never")
	all[0].roster.back()
	if got := seen(all[0]); got.count != 5 {
		t.Errorf("%d gateways are seen after an outage, with 5 before", got.count)
	}
	all[0].roster.backAt.Store(0)
	if got := seen(all[0]); got.count != 3 {
		t.Errorf("%d gateways are seen, of which two are gone", got.count)
	}
}
