// Ratelimit shows the four algorithms side by side: the same requests come to each, and a chart shows when how many of
// them pass. All four are set to ten a second.
//
//	go run ./examples/ratelimit
//
// It takes five seconds, because the limiters use the clock.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/seed-96248d0c/gateway"
)

const (
	step  = 100 * time.Millisecond // a column of the chart
	steps = 50
)

// arrivals returns how many requests come in each step: twelve just before the end of a second and twelve just after,
// then an even stream at the limit, and at last one of three times the limit.
func arrivals() (n [steps]int) {
	n[9], n[10] = 12, 12
	for i := 20; i < 35; i++ {
		n[i] = 1
	}
	for i := 35; i < 45; i++ {
		n[i] = 3
	}
	return n
}

// contender is a limiter and what it let pass.
type contender struct {
	name    string
	limiter *gateway.MemoryLimiter
	passed  [steps + 20]int // by step; a leaky bucket lets requests wait
	refused int
}

func contenders() []*contender {
	return []*contender{
		{name: "token bucket", limiter: gateway.NewTokenBucket(10, 10, nil)},
		{name: "leaky bucket", limiter: gateway.NewLeakyBucket(10, 9, nil)},
		{name: "fixed window", limiter: gateway.NewFixedWindow(10, time.Second, nil)},
		{name: "sliding window", limiter: gateway.NewSlidingWindow(10, time.Second, nil)},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	all := contenders()
	// The windows are aligned to whole seconds of the clock, and so is the chart.
	start := time.Now().Truncate(time.Second).Add(time.Second)
	for i, n := range arrivals() {
		select {
		case <-time.After(time.Until(start.Add(time.Duration(i)*step + step/2))):
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, c := range all {
			for range n {
				if err := c.ask(ctx, i); err != nil {
					return err
				}
			}
		}
	}
	draw(out, all)
	return nil
}

// ask sends one request to the limiter.
func (c *contender) ask(ctx context.Context, at int) error {
	d, err := c.limiter.Take(ctx, "key", 1)
	switch {
	case err != nil:
		return err
	case d.OK:
		c.passed[at+int((d.Wait+step/2)/step)]++
	default:
		c.refused++
	}
	return nil
}

// draw writes the chart: a column for each tenth of a second, and a character for how many.
func draw(out io.Writer, all []*contender) {
	came := arrivals()
	fmt.Fprintf(out, "%-15s|%s\n", "seconds", "0         1         2         3         4         5    ")
	fmt.Fprintf(out, "%-15s|%s|\n", "they come", columns(came[:], steps+10))
	for _, c := range all {
		total := 0
		for _, n := range c.passed {
			total += n
		}
		fmt.Fprintf(out, "%-15s|%s| %d pass, %d refused\n", c.name, columns(c.passed[:], steps+10), total, c.refused)
	}
	fmt.Fprint(out, `
One character is the number of requests in a tenth of a second; + is more than nine. The token bucket lets a burst of
ten pass and then ten a second. The leaky bucket lets them wait, and pass evenly. The fixed window lets ten pass on
either side of a second's end, twenty at once. The sliding window counts the second before as well.
`)
}

func columns(n []int, width int) string {
	var b strings.Builder
	for i := range width {
		switch {
		case i >= len(n) || n[i] == 0:
			b.WriteByte(' ')
		case n[i] > 9:
			b.WriteByte('+')
		default:
			fmt.Fprint(&b, n[i])
		}
	}
	return b.String()
}
