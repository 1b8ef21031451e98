// Package bodywait tracks for whom a request waits while its body is sent: for the client during a read of
// the body, and for the target between two reads. From that it tells whether the client or the target is to
// blame when the time runs out or the target breaks off.
package bodywait

import "time"

const (
	// stuckFor is how long a target must not read the body before the delay is the target's fault.
	stuckFor = time.Second
	// stalledFor is how long a client must send nothing before it is the reason why a target breaks off.
	stalledFor = 25 * time.Millisecond
	// unsentFor is how long a client must send nothing before it is the reason why a target answers with an
	// error.
	unsentFor = 100 * time.Millisecond
)

// Clock is the state of one request. Start it with Start. It is not safe for concurrent use.
type Clock struct {
	began    time.Time     // of the whole
	since    time.Time     // when the present wait began, of the client or of the target
	reading  bool          // the present wait is for the client
	waited   time.Duration // the waits for the client that are over
	complete bool          // the whole body has been read
}

// Start returns the clock of a request that begins now. complete is true if there is no body to wait for.
func Start(complete bool) Clock { return StartAt(time.Now(), complete) }

// StartAt is Start for a caller that knows the time.
func StartAt(now time.Time, complete bool) Clock {
	return Clock{began: now, since: now, complete: complete}
}

// BeginRead begins a read. After the last byte there is nothing that the client has to send, so a read then
// is no wait for it.
func (c *Clock) BeginRead() {
	if c.complete {
		return
	}
	c.reading, c.since = true, time.Now()
}

// EndRead ends a read. complete is true if it was the last of the body.
func (c *Clock) EndRead(complete bool) {
	if c.reading {
		now := time.Now()
		c.waited += now.Sub(c.since)
		c.reading, c.since = false, now
	}
	c.complete = c.complete || complete
}

// Reading reports whether a read is under way that waits for the client.
func (c *Clock) Reading() bool { return c.reading }

// Complete reports whether the whole body has been read.
func (c *Clock) Complete() bool { return c.complete }

// Since returns when the current wait began: when the last read began or ended.
func (c *Clock) Since() time.Time { return c.since }

// ClientTime returns how long the request has waited for its client.
func (c *Clock) ClientTime() time.Duration {
	if c.reading {
		return c.waited + time.Since(c.since)
	}
	return c.waited
}

// ClientIsLate reports whether a request whose time ran out was late because of its client: the body is not
// complete, and the target kept reading it. A target that has not read for a second, or for half of the whole
// time, is late itself.
func (c *Clock) ClientIsLate() bool {
	if c.complete {
		return false
	}
	idle := time.Since(c.since)
	return c.reading || idle < stuckFor && idle < time.Since(c.began)/2
}

// Stalled reports whether a target that breaks off may do so because of a client that does not send its body.
func (c *Clock) Stalled() bool {
	return c.ClientIsLate() && c.reading && time.Since(c.since) >= stalledFor || c.KeptWaiting()
}

// KeptWaiting reports whether the body has been late for so long that a limit of the target's own may have
// passed: the body has taken long, or the client has sent nothing for most of the time.
func (c *Clock) KeptWaiting() bool {
	if !c.ClientIsLate() {
		return false
	}
	whole, pause := time.Since(c.began), time.Since(c.since)
	return whole >= stuckFor || c.reading && pause >= unsentFor && pause >= whole/2
}
