// Command breaker sends load through a gateway to a backend that hangs for a while, once with a circuit and once
// without. It prints a timeline: the circuit's state, what was refused, and the callers' p99.
//
//	go run ./examples/breaker
package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func main() {
	unit := flag.Duration("unit", time.Second, "length of a row of the timeline")
	flag.Parse()
	for _, guarded := range []bool{true, false} {
		title := "without a circuit"
		if guarded {
			title = "with a circuit"
		}
		rows := play(*unit, guarded, overTheWire)
		fmt.Printf("%s; the backend hangs in rows 3 to 8\n\n", title)
		chart(os.Stdout, rows, *unit/4)
		fmt.Printf("\np99 of all callers in rows 4 to 8: %v\n\n", outage(rows))
	}
}

// row is what happened within one unit of time.
type row struct {
	state               string // of the circuit, at the end
	ok, failed, refused int    // refused: by the circuit
	took                []time.Duration
}

const (
	rowsInAll  = 12
	sickFrom   = 2 // rows, counted from 0
	sickBefore = 8
	callers    = 300 // requests in a unit
)

// play runs the load and returns the timeline. Requests to the sick backend time out after a quarter of a unit. connect
// returns a function with which a caller sends a request through the gateway, and one that ends all connections.
func play(unit time.Duration, guarded bool, connect func(*gateway.UpstreamOptions, http.Handler) (ask func() int, stop func())) []row {
	var sick atomic.Bool
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick.Load() {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "ok")
	})
	circuit := gateway.NewCircuit("backend", &gateway.CircuitOptions{Failures: 5, OpenFor: unit})
	opts := &gateway.UpstreamOptions{Timeout: unit / 4}
	if guarded {
		opts.Circuit = circuit
	}
	ask, stop := connect(opts, backend)
	defer stop()

	rows := make([]row, rowsInAll)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range rows {
		sick.Store(i >= sickFrom && i < sickBefore)
		tick := time.NewTicker(unit / callers)
		for range callers {
			<-tick.C
			wg.Go(func() {
				start := time.Now()
				status := ask()
				mu.Lock()
				defer mu.Unlock()
				r := &rows[i]
				r.took = append(r.took, time.Since(start))
				switch status {
				case http.StatusOK:
					r.ok++
				case http.StatusServiceUnavailable:
					r.refused++
				default:
					r.failed++
				}
			})
		}
		tick.Stop()
		mu.Lock()
		if rows[i].state = "-"; guarded {
			rows[i].state = circuit.State().String()
		}
		mu.Unlock()
	}
	wg.Wait()
	return rows
}

// overTheWire puts caller, gateway and backend on real connections.
func overTheWire(opts *gateway.UpstreamOptions, h http.Handler) (ask func() int, stop func()) {
	backend := httptest.NewServer(h)
	upstream := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), opts)
	front := httptest.NewServer(gateway.Proxy(upstream, nil))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	ask = func() int {
		res, err := client.Get(front.URL)
		if err != nil {
			return 0
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	return ask, func() {
		client.CloseIdleConnections()
		front.Close()
		backend.Close()
	}
}

// chart writes a line for each row. The bar is the p99, on a scale on which longest fills it.
func chart(w io.Writer, rows []row, longest time.Duration) {
	fmt.Fprintf(w, "row  state      ok   failed refused p99\n")
	for i, r := range rows {
		p := p99(r.took)
		bar := strings.Repeat("█", min(40, int(40*p/longest)))
		fmt.Fprintf(w, "%3d  %-9s %4d %6d %7d %-8v %s\n", i+1, r.state, r.ok, r.failed, r.refused, p.Round(100*time.Microsecond), bar)
	}
}

// outage returns the p99 of the callers while the backend is sick and the circuit knows it.
func outage(rows []row) time.Duration {
	var all []time.Duration
	for _, r := range rows[sickFrom+1 : sickBefore] {
		all = append(all, r.took...)
	}
	return p99(all)
}

func p99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}
