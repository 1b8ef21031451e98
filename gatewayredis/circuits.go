package gatewayredis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/seed-96248d0c/gateway"
)

const (
	circuitsChannel = "gateway:circuits"

	maxNewsBytes = 1024      // of a message; longer ones are ignored
	maxTrip      = time.Hour // longer openings are shared for this time
	retryEvery   = 200 * time.Millisecond
	repeatAfter  = 2 * time.Second // an opening is published again, for those that have just lost Redis
)

// clockScript returns the time of Redis. All gateways ask for it with the same key, so that in a Cluster the same node
// answers.
var clockScript = makeScript(scriptClock+`return struct.pack('<d', now)`, 1)

// circuitNews is a message. Until is the end of the opening on Redis' clock, in microseconds, and For how long it lasts.
// So no clock of a gateway counts, and news that was held up is judged by what is left of it.
type circuitNews struct {
	From    string `json:"from"` // id of the sender
	Circuit string `json:"circuit"`
	Until   int64  `json:"until"`
	For     int64  `json:"for"`
}

// ShareCircuits tells other gateways when one of circuits opens by its own count, and trips the circuit of the same name
// here when it opened there. It blocks until ctx ends, and then returns ctx.Err(). So call it on a goroutine of its own:
//
//	go gatewayredis.ShareCircuits(ctx, client, payments, users)
//
// Circuits go on deciding locally, and no request waits for Redis: news arrive by publish/subscribe on the channel
// "gateway:circuits", usually within milliseconds. A tripped circuit stays open for as long as the other one has left, at
// most an hour, and then finds out by its own probes whether the upstream works again. News of an opening whose time is
// over is ignored. What is left is measured on Redis' clock, so the clocks of gateways need not agree.
//
// An opening that came from another gateway is not passed on. One's own is published twice, two seconds apart, since another
// gateway may just have lost Redis. While Redis is away, each gateway is alone; an opening that still lasts is published when
// Redis is back. ShareCircuits logs by slog.Default
// when an opening cannot be published, and when it can again. When ctx ends while Redis hangs, it returns when the client's
// own timeout is over.
//
// A circuit is known by its name. Publish/subscribe has no databases: deployments that share one Redis need different
// names. Who can publish to that channel can open circuits.
//
// It panics when client or a circuit is nil.
func ShareCircuits(ctx context.Context, client redis.UniversalClient, circuits ...*gateway.Circuit) error {
	if client == nil {
		panic("gatewayredis: ShareCircuits: nil client")
	}
	s := &sharing{
		client: client, id: rand.Text(),
		byName: make(map[string][]*gateway.Circuit), opened: make(map[string]opening), wake: make(chan struct{}, 1),
	}
	for _, c := range circuits {
		if c == nil {
			panic("gatewayredis: ShareCircuits: nil Circuit")
		}
		s.byName[c.Name()] = append(s.byName[c.Name()], c)
	}
	for _, c := range circuits {
		defer c.Watch(s.changed)()
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.publish(ctx) })
	wg.Go(func() { s.listen(ctx) })
	wg.Wait()
	return ctx.Err()
}

// sharing is one call of ShareCircuits.
type sharing struct {
	client redis.UniversalClient
	id     string
	byName map[string][]*gateway.Circuit

	lost   bool          // openings cannot be published; of publish alone
	wake   chan struct{} // has a value when opened has
	mu     sync.Mutex
	opened map[string]opening // to be published, by name
}

// opening is when a circuit is half-open again, and for how long it is open.
type opening struct {
	until time.Time
	lasts time.Duration
	twice bool // it has been published once
}

// changed is called by a circuit. It leaves the rest to publish.
func (s *sharing) changed(c gateway.CircuitChange) {
	if c.To != gateway.CircuitOpen || c.Tripped {
		return
	}
	s.mu.Lock()
	s.opened[c.Circuit] = opening{until: c.Until, lasts: c.Until.Sub(c.At)}
	s.mu.Unlock()
	s.rouse()
}

func (s *sharing) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// publish publishes openings until ctx ends. Those that cannot be published are tried again while they last.
func (s *sharing) publish(ctx context.Context) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		opened := s.opened
		s.opened = make(map[string]opening)
		s.mu.Unlock()
		for name, o := range opened {
			err := s.publishOne(ctx, name, o)
			s.report(ctx, err)
			switch {
			case err != nil:
				s.again(name, o)
			case !o.twice:
				o.twice = true
				time.AfterFunc(repeatAfter, func() { s.again(name, o) })
			}
		}
		if s.waits() && !pause(ctx, retryEvery) {
			return
		}
	}
}

// again has o published later, unless a newer opening of the circuit is.
func (s *sharing) again(name string, o opening) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, newer := s.opened[name]; !newer && time.Until(o.until) > 0 {
		s.opened[name] = o
		s.rouse()
	}
}

func (s *sharing) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.opened) > 0
}

func (s *sharing) publishOne(ctx context.Context, name string, o opening) error {
	now, err := s.now(ctx)
	if err != nil {
		return err
	}
	left := time.Until(o.until) // after the answer, so that a slow one makes it shorter
	if left <= 0 {
		return nil
	}
	news, err := json.Marshal(circuitNews{s.id, name, now + left.Microseconds(), o.lasts.Microseconds()})
	if err != nil {
		return nil // a name that is no text
	}
	return s.client.Publish(ctx, circuitsChannel, news).Err()
}

// now returns the time of Redis in microseconds.
func (s *sharing) now(ctx context.Context) (int64, error) {
	answer, err := s.client.Eval(ctx, clockScript.source, []string{circuitsChannel}).Result()
	if err != nil {
		return 0, err
	}
	f, err := clockScript.parse(answer)
	return int64(f[0]), err
}

// listen receives news until ctx ends. The client subscribes again when it has lost Redis, which a ping finds out where
// nothing else does.
func (s *sharing) listen(ctx context.Context) {
	sub := s.client.Subscribe(ctx, circuitsChannel)
	defer sub.Close()
	messages := sub.Channel(redis.WithChannelHealthCheckInterval(time.Second))
	for {
		select {
		case m := <-messages:
			if m != nil {
				s.received(ctx, m.Payload)
			}
		case <-ctx.Done():
			return
		}
	}
}

// received trips the circuits that a message is about.
func (s *sharing) received(ctx context.Context, payload string) {
	var news circuitNews
	if len(payload) > maxNewsBytes || json.Unmarshal([]byte(payload), &news) != nil || news.From == s.id {
		return
	}
	circuits := s.byName[news.Circuit]
	if len(circuits) == 0 || news.For <= 0 {
		return
	}
	now, err := s.now(ctx)
	if err != nil || news.Until <= now {
		return // how old the news is cannot be told, or it is too old
	}
	// A clock of Redis that goes back makes no opening longer than it was.
	left := min(news.Until-now, news.For, maxTrip.Microseconds())
	for _, c := range circuits {
		c.Trip(time.Duration(left) * time.Microsecond)
	}
}

// report logs when openings cannot be published, and when they can be again.
func (s *sharing) report(ctx context.Context, err error) {
	lost := err != nil
	if lost == s.lost || ctx.Err() != nil {
		return
	}
	s.lost = lost
	if lost {
		slog.LogAttrs(ctx, slog.LevelWarn, "gatewayredis: the opening of a circuit cannot be shared yet", slog.String("error", err.Error()))
	} else {
		slog.LogAttrs(ctx, slog.LevelInfo, "gatewayredis: openings of circuits are shared again")
	}
}

// pause reports whether ctx still goes on after d.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
