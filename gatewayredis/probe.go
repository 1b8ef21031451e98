package gatewayredis

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	probeEvery = 100 * time.Millisecond
	probeIdle  = time.Second // after the last refused call, probes end
)

// probeScript writes, since a replica or a full memory refuse only that.
var probeScript = makeScript(`redis.call('SET', KEYS[1], redis.call('TIME')[1], 'PX', 1000) return struct.pack('<d', 1)`, 1)

// processStart is the origin of sinceStart.
var processStart = time.Now()

// sinceStart reads the monotonic clock, in nanoseconds.
func sinceStart() int64 { return int64(time.Since(processStart)) }

// ask notes that Redis is wanted, and starts the probe of o if it does not run. It is called for each refused call.
func (l *link) ask(o *outage) {
	l.used.Store(sinceStart())
	if !o.probing.Load() && o.probing.CompareAndSwap(false, true) {
		go l.probe(o)
	}
}

// probe asks Redis until it answers, or until nobody has wanted it for a time. It ends by itself, so a limiter needs no
// Close; the next refused call starts it again.
func (l *link) probe(o *outage) {
	tick := time.NewTimer(o.pause)
	defer tick.Stop()
	for {
		<-tick.C
		if l.answers(o) && l.back(o) {
			return
		}
		tick.Reset(probeEvery)
		if sinceStart()-l.used.Load() > int64(probeIdle) {
			o.probing.Store(false)
			return
		}
	}
}

// answers reports whether Redis runs scripts that write, in time. It asks twice: the first time, the client may have to
// connect, which takes several round trips.
func (l *link) answers(o *outage) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*max(l.timeout, probeEvery))
	defer cancel()
	client := l.client
	switch c := client.(type) {
	case *redis.Client:
		if !dials(ctx, c) {
			return false
		}
		client = c.WithTimeout(l.timeout) // which never hangs; it lacks the hooks of c
	case *redis.ClusterClient:
		// There may be another master by now. The client asks for it by itself only after failures that take longer.
		c.ReloadState(ctx)
	}
	if !runsScripts(ctx, client, o.failed) {
		return false
	}
	start := time.Now()
	return runsScripts(ctx, l.client, o.failed) && time.Since(start) <= l.timeout
}

// runsScripts runs a script that writes and that of a call that failed, with a debt of nothing. The keys have the hash tag
// of the call's, so that in a Cluster the same node answers.
func runsScripts(ctx context.Context, client redis.UniversalClient, failed *call) bool {
	calls := []*call{
		newCall(probeScript, failed.key()+":probe"),
		newCall(failed.script, failed.key(), "owe", "0", failed.args[6], failed.args[7]),
	}
	for i, cmd := range execute(ctx, client, calls, true) {
		answer, err := cmd.Result()
		if err == nil {
			_, err = calls[i].script.parse(answer)
		}
		if err != nil {
			return false
		}
	}
	return true
}

// dials reports whether the server can be reached at all. It keeps failures to connect from the client's pool: after
// many of them, a pool tries only once in a second.
func dials(ctx context.Context, c *redis.Client) bool {
	opts := c.Options()
	if opts.Dialer == nil {
		return true
	}
	conn, err := opts.Dialer(ctx, opts.Network, opts.Addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// back ends the outage o, unless too many workers still hang.
func (l *link) back(o *outage) bool {
	l.mu.Lock()
	if l.orphans > maxOrphans-maxWorkers {
		l.mu.Unlock()
		return false
	}
	l.away.Store(nil)
	l.backAt = time.Now()
	l.mu.Unlock()
	l.changed(o, true)
	return true
}
