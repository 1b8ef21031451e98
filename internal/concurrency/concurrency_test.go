package concurrency

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const ms = time.Millisecond

// run plays n requests on a server of some workers, always as many at once as the limit allows: latency grows with the
// requests above the workers. It returns the mean limit of the second half.
func run(l *Limit, n, workers int, service time.Duration, r *rand.Rand) float64 {
	sum := 0.0
	for i := range n {
		running := l.Limit()
		took := float64(service) * max(1, float64(running)/float64(workers)) * (0.5 + r.Float64())
		l.Ended(l.Started(running), time.Duration(took))
		if i >= n/2 {
			sum += float64(l.Limit())
		}
	}
	return sum / float64(n-n/2)
}

func TestLimitFindsTheWorkers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, workers := range []int{5, 20, 100, 400} {
		l := New(4, 1000)
		for _, step := range []struct {
			workers int
			service time.Duration
		}{{workers, 10 * ms}, {workers / 2, 10 * ms}, {workers / 2, 40 * ms}, {workers, 5 * ms}} {
			got := run(l, 300*max(20, workers), step.workers, step.service, r)
			if got < 0.95*float64(step.workers) || got > 2.2*float64(step.workers)+4 {
				t.Errorf("%d workers of %v: the limit is %.1f on average", step.workers, step.service, got)
			}
		}
	}
}

func TestLimitStaysWithinItsBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, bounds := range [][2]int{{1, 1}, {4, 4}, {3, 50}, {30, 60}} {
		l := New(bounds[0], bounds[1])
		for range 20_000 {
			took := time.Duration(math.Exp(r.Float64()*20) * 100)
			l.Ended(l.Started(r.IntN(60)), took)
			if n := l.Limit(); n < bounds[0] || n > bounds[1] {
				t.Fatalf("limit %d of %v", n, bounds)
			}
		}
		l.Ended(l.epoch, 0)
		l.Ended(l.epoch, -1)
	}
}

func TestLimitGrowsOnlyWhenItIsReached(t *testing.T) {
	l := New(4, 1000)
	for range 1000 {
		l.Ended(l.Started(5), 10*ms)
	}
	if l.Limit() != 20 {
		t.Errorf("%d", l.Limit())
	}
}

// A few requests that are very slow, such as uploads over a bad line, do not move the limit.
func TestLimitWithstandsTheSlow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	l := New(4, 1000)
	run(l, 5000, 50, 10*ms, r)
	for i := range 20_000 {
		took := time.Duration(float64(10*ms) * max(1, float64(l.Limit())/50))
		if i%50 == 0 {
			took = time.Minute
		}
		l.Ended(l.Started(l.Limit()), took)
		if !l.probing && l.Limit() < 40 {
			t.Fatalf("limit %d after %d", l.Limit(), i)
		}
	}
}

func TestSlower(t *testing.T) {
	l := New(4, 10)
	if l.Slower(time.Hour) {
		t.Error("than nothing")
	}
	for range 20 {
		l.Ended(l.Started(1), 10*ms)
	}
	if l.Slower(9*ms) || !l.Slower(11*ms) {
		t.Error("than 10 ms")
	}
}
