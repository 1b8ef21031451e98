package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/seed-96248d0c/gateway/examples/internal/steps"
)

// check starts everything, sends real HTTP through all gateways, and prints what it asked, expected and saw. The first
// difference is its error.
func check(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := &checker{ctx: ctx, client: &http.Client{Timeout: 10 * time.Second}}
	defer c.client.CloseIdleConnections()
	var err error
	if c.stack, err = start(ctx, slog.New(slog.NewTextHandler(&c.logged, nil))); err != nil {
		return err
	}
	defer c.close()

	return steps.Run(out, c.steps())
}

type checker struct {
	*stack
	ctx    context.Context
	client *http.Client
	logged log
}

// steps are tried in this order.
func (c *checker) steps() []steps.Step {
	inTurn := func(user string) func() string {
		return func() string { return c.inTurn(user) }
	}
	return []steps.Step{
		steps.New("12 requests of alice, at the three gateways in turn", "10 pass, 2 get 429", inTurn("alice")),
		steps.New("12 requests of bob", "10 pass, 2 get 429", inTurn("bob")),
		steps.New("Redis is killed; 12 requests of carol", "10 pass, 2 get 429", func() string {
			c.meet()
			c.redis.kill()
			return c.inTurn("carol")
		}),
		steps.New("what the gateways log", "Redis is away: 3 of 3", func() string { return c.reported("Redis is away") }),
		steps.New("Redis is started again", "Redis is back: 3 of 3", func() string {
			if err := c.redis.start(c.ctx); err != nil {
				return err.Error()
			}
			return c.reported("Redis is back")
		}),
		steps.New("12 requests of dave", "10 pass, 2 get 429", inTurn("dave")),
		steps.New("the backend breaks; 3 requests at the first gateway", "500 500 500", func() string {
			<-time.After(2 * time.Second) // for the subscriptions
			c.backend.broken.Store(true)
			c.backend.asked.Store(0)
			return c.ask(0, "erin") + " " + c.ask(0, "erin") + " " + c.ask(0, "erin")
		}),
		steps.New("one at the second and one at the third", "503 503, and the backend was asked 3 times", func() string {
			<-time.After(1500 * time.Millisecond) // for the news
			second, third := c.ask(1, "erin"), c.ask(2, "erin")
			return fmt.Sprintf("%s %s, and the backend was asked %d times", second, third, c.backend.asked.Load())
		}),
	}
}

// inTurn sends 12 requests of a user.
func (c *checker) inTurn(user string) string {
	var passed, refused int
	for i := range 12 {
		switch got := c.ask(i%3, user); got {
		case "200":
			passed++
		case "429":
			refused++
		default:
			return got
		}
	}
	return fmt.Sprintf("%d pass, %d get 429", passed, refused)
}

// ask sends one request and returns its status.
func (c *checker) ask(gateway int, user string) string {
	r, err := http.NewRequestWithContext(c.ctx, "GET", c.gateways[gateway].url+"/hello", nil)
	if err != nil {
		return err.Error()
	}
	r.Header.Set("X-User", user)
	res, err := c.client.Do(r)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return fmt.Sprint(res.StatusCode)
}

// meet lets the gateways see each other: each announces itself every two seconds in which it decides.
func (c *checker) meet() {
	for range 2 {
		<-time.After(2100 * time.Millisecond)
		for i := range c.gateways {
			c.ask(i, "somebody")
		}
	}
	<-time.After(100 * time.Millisecond)
}

// reported waits until all gateways have logged a message.
func (c *checker) reported(message string) string {
	for range 2000 {
		if c.logged.count(message) == len(c.gateways) {
			break
		}
		for i := range c.gateways {
			c.ask(i, "nobody")
		}
		<-time.After(10 * time.Millisecond)
	}
	return fmt.Sprintf("%s: %d of %d", message, c.logged.count(message), len(c.gateways))
}

// log counts messages.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), message)
}
