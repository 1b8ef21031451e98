package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-96248d0c/gateway"
)

//go:embed page
var files embed.FS

// arena is the page with all that it shows. Everybody who opens it plays with the same limiters and circuit.
type arena struct {
	ctx     context.Context // ends the streams
	lanes   []*lane
	circuit *stage
	firing  chan struct{} // a place for each request under way
}

// newArena returns the page's handler. Its streams end with ctx.
func newArena(ctx context.Context) http.Handler {
	a := &arena{ctx: ctx, circuit: newStage(), firing: make(chan struct{}, 1000)}
	const perSecond, burst, window = 2, 10, 5 * time.Second
	a.lanes = []*lane{
		newLane("token bucket", burst, gateway.NewTokenBucket(perSecond, burst, nil)),
		newLane("leaky bucket", burst, gateway.NewLeakyBucket(perSecond, burst-1, nil)),
		newLane("fixed window", burst, gateway.NewFixedWindow(burst, window, nil)),
	}
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // it is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(page))
	mux.HandleFunc("GET /events", a.events)
	mux.HandleFunc("POST /fire", a.fire)
	mux.HandleFunc("POST /call", a.call)
	mux.HandleFunc("POST /backend", a.backend)
	mux.HandleFunc("POST /route", route)
	protect := http.NewCrossOriginProtection() // no other page's script shoots here
	return protect.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	}))
}

// lane is one limiter with what has passed it.
type lane struct {
	name    string
	limit   int
	limiter *gateway.MemoryLimiter
	handler http.Handler

	waiting, passed, refused atomic.Int64
}

func newLane(name string, limit int, l *gateway.MemoryLimiter) *lane {
	n := &lane{name: name, limit: limit, limiter: l}
	n.handler = gateway.RateLimit(l, sameKey, &gateway.RateLimitOptions{MaxWait: time.Minute})(
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	return n
}

// sameKey lets all visitors share one allowance.
func sameKey(*http.Request) (string, error) { return "visitor", nil }

// shoot sends one request to the lane.
func (n *lane) shoot(ctx context.Context) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return
	}
	n.waiting.Add(1)
	w := &statusWriter{header: make(http.Header)}
	n.handler.ServeHTTP(w, r)
	n.waiting.Add(-1)
	if w.status == http.StatusNoContent {
		n.passed.Add(1)
	} else {
		n.refused.Add(1)
	}
}

// statusWriter is an answer of which only the status counts.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) Write(p []byte) (int, error) { w.WriteHeader(http.StatusOK); return len(p), nil }
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// laneView is a lane as the page gets it.
type laneView struct {
	Name                     string
	Limit                    int
	Left                     float64 // of the allowance
	Waiting, Passed, Refused int64
}

func (n *lane) view() laneView {
	v := laneView{Name: n.name, Limit: n.limit, Left: float64(n.limit), Waiting: n.waiting.Load(), Passed: n.passed.Load(), Refused: n.refused.Load()}
	for _, spent := range n.limiter.Usage(1) {
		v.Left = max(0, float64(n.limit)*(1-spent))
	}
	return v
}

// fire sends a burst to every lane.
func (a *arena) fire(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil || n < 1 || n > 100 {
		http.Error(w, "n must be between 1 and 100", http.StatusBadRequest)
		return
	}
	for range n {
		for _, lane := range a.lanes {
			select {
			case a.firing <- struct{}{}:
			default:
				http.Error(w, "too many requests are under way", http.StatusServiceUnavailable)
				return
			}
			go func() {
				lane.shoot(a.ctx)
				<-a.firing
			}()
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// stage is a backend that can be broken, behind an Upstream with a circuit.
type stage struct {
	circuit *gateway.Circuit
	handler http.Handler
	mode    atomic.Value // "healthy", "failing" or "hanging"
	asked   atomic.Int64 // requests that reached the backend

	mu   sync.Mutex
	last []callView // the last 40
}

// callView is a call as the page gets it.
type callView struct {
	Status int
	Took   float64 // milliseconds
	Asked  bool    // the backend was asked
}

func newStage() *stage {
	s := &stage{circuit: gateway.NewCircuit("backend", &gateway.CircuitOptions{Failures: 3, OpenFor: 4 * time.Second, Probes: 2})}
	s.mode.Store("healthy")
	upstream := gateway.NewUpstream("backend", gateway.MustTargets("http://backend.example"), &gateway.UpstreamOptions{
		Circuit: s.circuit, Timeout: 500 * time.Millisecond, Transport: s,
	})
	s.handler = gateway.Proxy(upstream, nil)
	return s
}

// RoundTrip is the backend.
func (s *stage) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	status := http.StatusOK
	switch s.mode.Load() {
	case "failing":
		status = http.StatusInternalServerError
	case "hanging":
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	pause := time.NewTimer(30 * time.Millisecond)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody, Request: r}, nil
}

func (s *stage) call(ctx context.Context) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return
	}
	before, began := s.asked.Load(), time.Now()
	w := &statusWriter{header: make(http.Header)}
	s.handler.ServeHTTP(w, r)
	c := callView{w.status, float64(time.Since(began).Microseconds()) / 1000, s.asked.Load() > before}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last = append(s.last, c); len(s.last) > 40 {
		s.last = s.last[len(s.last)-40:]
	}
}

// stageView is the stage as the page gets it.
type stageView struct {
	Mode, State string
	Until       int64 // milliseconds of Unix time, while it is open
	Asked       int64
	Calls       []callView
	Changes     []changeView
}

type changeView struct {
	At int64
	To string
}

func (s *stage) view() stageView {
	v := stageView{Mode: s.mode.Load().(string), State: s.circuit.State().String(), Asked: s.asked.Load(), Calls: []callView{}, Changes: []changeView{}}
	for _, c := range s.circuit.Changes() {
		v.Changes = append(v.Changes, changeView{c.At.UnixMilli(), c.To.String()})
		v.Until = 0
		if c.To == gateway.CircuitOpen {
			v.Until = c.Until.UnixMilli()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.Calls = append(v.Calls, s.last...)
	return v
}

// call makes calls one after the other.
func (a *arena) call(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil || n < 1 || n > 10 {
		http.Error(w, "n must be between 1 and 10", http.StatusBadRequest)
		return
	}
	for range n {
		a.circuit.call(r.Context())
	}
	w.WriteHeader(http.StatusNoContent)
}

// backend switches the backend's mode.
func (a *arena) backend(w http.ResponseWriter, r *http.Request) {
	switch mode := r.FormValue("mode"); mode {
	case "healthy", "failing", "hanging":
		a.circuit.mode.Store(mode)
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "mode must be healthy, failing or hanging", http.StatusBadRequest)
	}
}

// events streams the state ten times a second.
func (a *arena) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		state := struct {
			At      int64
			Lanes   []laneView
			Circuit stageView
		}{At: time.Now().UnixMilli(), Circuit: a.circuit.view()}
		for _, n := range a.lanes {
			state.Lanes = append(state.Lanes, n.view())
		}
		data, err := json.Marshal(state)
		if err == nil {
			_, err = fmt.Fprintf(w, "data: %s\n\n", data)
		}
		if errors.Join(err, rc.Flush()) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-a.ctx.Done():
			return
		}
	}
}
