package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// phoenix is a target that can be killed, with all its connections, and started again on the same port.
type phoenix struct {
	addr    string
	handler http.Handler
	server  *http.Server
	served  chan struct{}
	open    atomic.Int64 // connections
}

func newPhoenix(t *testing.T, h http.Handler) *phoenix {
	p := &phoenix{addr: "127.0.0.1:0", handler: h}
	p.rise(t)
	t.Cleanup(p.die)
	return p
}

func (p *phoenix) rise(t *testing.T) {
	t.Helper()
	l := listenAgain(t, p.addr)
	p.addr = l.Addr().String()
	p.server = &http.Server{Handler: p.handler, ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			p.open.Add(1)
		case http.StateClosed:
			p.open.Add(-1)
		}
	}}
	p.served = make(chan struct{})
	go func(srv *http.Server, done chan struct{}) { srv.Serve(l); close(done) }(p.server, p.served)
}

func (p *phoenix) die() {
	p.server.Close()
	<-p.served
}

// TestTargetsDieUnderLoad kills and restarts three targets in turn under 200 clients. No request that may be
// made twice fails, none that may not is done twice, and nothing is left behind.
func TestTargetsDieUnderLoad(t *testing.T) {
	var mu sync.Mutex
	done := map[string]int{} // POSTs, by id
	work := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.Method == "POST" {
			mu.Lock()
			done[string(body)]++
			mu.Unlock()
		}
		w.Write(body)
	})
	var targets []*phoenix
	var urls []string
	for range 3 {
		p := newPhoenix(t, work)
		targets = append(targets, p)
		urls = append(urls, "http://"+p.addr)
	}
	transport := newTransport(t, nil)
	u := gateway.NewUpstream("u", gateway.MustTargets(urls...), &gateway.UpstreamOptions{
		Transport: transport,
		Retry:     gateway.RetryOptions{Attempts: 3},
	})
	s := httptest.NewServer(gateway.Proxy(u, nil))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 300}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		s.Close()
	})

	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	var idempotent, posts, failed atomic.Int64
	for n := range 200 {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				method, id := [...]string{"GET", "PUT", "DELETE", "POST"}[i%4], fmt.Sprintf("%d-%d", n, i)
				r, _ := http.NewRequest(method, s.URL, strings.NewReader(id))
				res, err := client.Do(r)
				if err != nil {
					t.Errorf("%s: %v", method, err)
					return
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				switch {
				case method == "POST":
					posts.Add(1)
					if res.StatusCode != 200 {
						failed.Add(1)
					}
				case res.StatusCode != 200 || err != nil || string(body) != id:
					t.Errorf("%s: %d, %q, %v", method, res.StatusCode, body, err)
				default:
					idempotent.Add(1)
				}
			}
		})
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	waitFor := func(more int64) {
		for want := idempotent.Load() + more; idempotent.Load() < want && !t.Failed(); {
			<-look.C
		}
	}
	waitFor(1000)
	for range 2 {
		for _, p := range targets {
			p.die()
			waitFor(500)
			p.rise(t)
			waitFor(500)
		}
	}
	stop()
	clients.Wait()
	mu.Lock()
	defer mu.Unlock()
	for id, n := range done {
		if n > 1 {
			t.Errorf("POST %s was done %d times", id, n)
		}
	}
	for _, st := range u.Status() {
		if st.Pending != 0 {
			t.Errorf("%d pending at %s", st.Pending, st.Target.URL)
		}
	}
	// What is idle can be closed, and nothing else is open: no attempt has kept its connection.
	for end := deadline(); ; runtime.Gosched() {
		transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
		open := int64(0)
		for _, p := range targets {
			open += p.open.Load()
		}
		if open == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections to the targets are left", open)
		}
	}
	twice := 0
	for _, n := range done {
		if n > 1 {
			twice++
		}
	}
	t.Logf("%d idempotent requests went well; of %d POSTs %d failed, %d were done twice", idempotent.Load(), posts.Load(), failed.Load(), twice)
}

// TestTargetFaults is how a target can fail, one by one, over the wire.
func TestTargetFaults(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name    string
		sends   string // before it closes the connection
		then    string // sent again and again after that, if not empty
		resets  bool   // instead of closing
		stays   bool   // closes only when the test ends
		status  int
		outcome string
		whole   bool
	}{
		{name: "reset before headers", resets: true, status: 502, outcome: "upstream_error", whole: true},
		{name: "closed before headers", status: 502, outcome: "upstream_error", whole: true},
		{name: "closed in mid-headers", sends: ok + "X-A: ", status: 502, outcome: "upstream_error", whole: true},
		{name: "closed in mid-body", sends: ok + "Content-Length: 10\r\n\r\nhalf", status: 200, outcome: "aborted"},
		{name: "chunks cut off", sends: ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", status: 200, outcome: "aborted"},
		{name: "garbage chunk", sends: ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", status: 200, outcome: "aborted"},
		{name: "slow headers", stays: true, status: 504, outcome: "timeout", whole: true},
		{name: "headers that never end", sends: ok, then: "X-Endless: " + strings.Repeat("x", 1000) + "\r\n", status: 502, outcome: "upstream_error", whole: true},
		{name: "status line that never ends", then: strings.Repeat("x", 1000), status: 502, outcome: "upstream_error", whole: true},
		{name: "garbage status line", sends: "SSH-2.0-OpenSSH_9.6\r\n\r\n", status: 502, outcome: "upstream_error", whole: true},
		{name: "impossible status", sends: "HTTP/1.1 42 What\r\n\r\n", status: 502, outcome: "upstream_error", whole: true},
		{name: "two lengths", sends: ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", status: 502, outcome: "upstream_error", whole: true},
		{name: "slow body", sends: ok + "Content-Length: 10\r\n\r\nhalf", stays: true, status: 200, outcome: "timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			patience := 10 * time.Second
			if tt.name == "slow headers" {
				patience = 100 * time.Millisecond
			}
			target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				_, err := io.WriteString(conn, tt.sends)
				for err == nil && tt.then != "" {
					_, err = io.WriteString(conn, tt.then)
				}
				if tt.stays {
					<-t.Context().Done()
				}
				if tt.resets {
					conn.(*net.TCPConn).SetLinger(0)
				}
			})
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
			transport := newTransport(t, nil)
			u := gateway.NewUpstream("u", gateway.MustTargets(target), &gateway.UpstreamOptions{Timeout: patience, Circuit: c, Transport: transport})
			f := new(front)
			h := gateway.Proxy(u, nil)
			if tt.name == "slow body" {
				h = gateway.Timeout(time.Second)(h) // in which the header arrives, on a busy machine too
			}
			f.start(t, h)
			res := get(t, f.URL)
			body, err := io.ReadAll(res.Body)
			if res.StatusCode != tt.status || (err == nil) != tt.whole {
				t.Errorf("got %d, %q, %v", res.StatusCode, body, err)
			}
			if line := f.journal.next(t); line["outcome"] != tt.outcome {
				t.Errorf("logged %v", line)
			}
			if opened := c.State() == gateway.CircuitOpen; opened != (tt.outcome != "timeout" || tt.status != 200) {
				t.Errorf("circuit %v", c.State())
			}
			for _, s := range u.Status() {
				if s.Pending != 0 {
					t.Errorf("%d pending", s.Pending)
				}
			}
		})
	}
}
