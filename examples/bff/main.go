// Bff shows backends for frontends: a gateway for each kind of client, made of shared parts over the same five backends.
// It compares each gateway's home page with a client that calls the five itself, over a link with a delay of 80 ms.
//
//	go run ./examples/bff
//
// It takes about five seconds.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, 80*time.Millisecond, 9); err != nil {
		log.Fatal(err)
	}
}

// way is a way to get what a home page needs.
type way struct {
	name string
	load func(context.Context, *http.Client) (requests int, err error)
}

// run prints a table. Each way is taken once over new connections, and then rounds times over open ones.
func run(ctx context.Context, out io.Writer, delay time.Duration, rounds int) error {
	b := startBackends()
	defer b.close()
	front := httptest.NewServer(clients(b.services))
	defer front.Close()

	page := func(path, client string) func(context.Context, *http.Client) (int, error) {
		return func(ctx context.Context, c *http.Client) (int, error) {
			_, err := get(ctx, c, front.URL+path, client)
			return 1, err
		}
	}
	ways := []way{
		{"a client that calls the five itself", b.byHand},
		{"web: GET /home", page("/home", "")},
		{"mobile: GET /home", page("/home", "mobile")},
		{"television: GET /tv/home", page("/tv/home", "")},
	}
	fmt.Fprintf(out, "The backends take 20, 40, 60, 80 and 100 ms; the one of 40 needs the id that the one of 20 tells.\nThe link has %v there and back.\n\n", delay)
	fmt.Fprintf(out, "%-36s %8s %8s %14s %14s\n", "", "requests", "bytes", "first", "open, median")
	for _, w := range ways {
		if err := w.measure(ctx, out, delay, rounds); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}

	fmt.Fprintln(out, "\nBeside the backends, without the link:")
	near := way{"web: GET /home", page("/home", "")}
	if err := near.measure(ctx, out, 0, rounds); err != nil {
		return err
	}
	body, err := get(ctx, front.Client(), front.URL+"/home", "mobile")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nWhat the phone gets:\n%.400s…\n", body)
	return nil
}

// measure takes the way and prints what it took.
func (w way) measure(ctx context.Context, out io.Writer, delay time.Duration, rounds int) error {
	l := &link{delay: delay}
	client := l.client()
	defer client.CloseIdleConnections()
	var times []time.Duration
	var bytes int64
	requests := 0
	for range 1 + rounds {
		before, began := l.received.Load(), time.Now()
		n, err := w.load(ctx, client)
		if err != nil {
			return err
		}
		times = append(times, time.Since(began))
		requests, bytes = n, l.received.Load()-before
	}
	first := times[0]
	open := times[1:]
	slices.Sort(open)
	_, err := fmt.Fprintf(out, "%-36s %8d %8d %11.1f ms %11.1f ms\n", w.name, requests, bytes, milliseconds(first), milliseconds(open[len(open)/2]))
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// byHand is a client without a gateway: it asks four at once, and the fifth when it knows the user.
func (b *backends) byHand(ctx context.Context, c *http.Client) (requests int, err error) {
	errs := make([]error, 4)
	var all sync.WaitGroup
	for i, url := range []string{b.urls["suggestions"] + "/suggestions", b.urls["top"] + "/top", b.urls["fresh"] + "/fresh"} {
		all.Go(func() { _, errs[i] = get(ctx, c, url, "") })
	}
	all.Go(func() {
		body, err := get(ctx, c, b.urls["users"]+"/me", "")
		var user struct {
			ID string `json:"id"`
		}
		if err == nil {
			err = json.Unmarshal(body, &user)
		}
		if err == nil {
			_, err = get(ctx, c, b.urls["history"]+"/history?user="+user.ID, "")
		}
		errs[3] = err
	})
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return 5, nil
}

// get returns the body of an answer with 200. client is the value of the field X-Client.
func get(ctx context.Context, c *http.Client, url, client string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return nil, err
	}
	if client != "" {
		r.Header.Set("X-Client", client)
	}
	res, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, res.Status)
	}
	return body, err
}
