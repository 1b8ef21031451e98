package gateway_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// lateTarget is a target whose handler is h and which has a second one beside it that gets next to nothing, so that it
// may be ejected.
func lateTarget(t *testing.T, protocol string, o gateway.UpstreamOptions, readTimeout time.Duration, h http.HandlerFunc) *gateway.Upstream {
	t.Helper()
	target := httptest.NewUnstartedServer(h)
	target.Config.ReadTimeout = readTimeout
	up := newTarget(t, protocol, target, gateway.TransportOptions{}, o)
	first := up.Status()[0].Target.URL
	up.SetTargets([]gateway.Target{{URL: first, Weight: 1_000_000}, gateway.MustTargets(first.String() + "/second")[0]})
	return up
}

// checkBlameless fails the test unless the circuit is closed and every target is in.
func checkBlameless(t *testing.T, c *gateway.Circuit, up *gateway.Upstream) {
	t.Helper()
	if c.State() != gateway.CircuitClosed {
		t.Errorf("the circuit is %v", c.State())
	}
	for _, s := range up.Status() {
		if !s.Healthy {
			t.Errorf("%v is out: %s", s.Target.URL, s.Reason)
		}
	}
}

// longBody is a length from which on Proxy asks the target before it has read the whole body.
const longBody = 20_000

// allButLast is a POST whose body lacks its last byte, a "b".
func allButLast(length int) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", length, strings.Repeat("a", length-1))
}

// postLate sends a request whose last byte comes after pause, and never if that is negative. It returns the status.
func postLate(t *testing.T, s *httptest.Server, length int, pause time.Duration) int {
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	conn.SetDeadline(deadline())
	io.WriteString(conn, allButLast(length))
	if pause >= 0 {
		<-time.After(pause)
		io.WriteString(conn, "b")
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// TestBlameSlowBody: a body that comes late is the client's, whichever limit it meets.
func TestBlameSlowBody(t *testing.T) {
	all := newCrowd(t)
	defer all.wait()
	slowCall := &gateway.CircuitOptions{SlowCall: time.Second}
	for _, tt := range []struct {
		name    string
		circuit *gateway.CircuitOptions
		mw      func(*gateway.Circuit) gateway.Middleware // nil: the circuit is the upstream's
		limit   time.Duration                             // of the target's server, for the whole request
		takes   time.Duration                             // the target, for its answer
		fails   int                                       // its status when its limit has passed
		pause   time.Duration
		status  int
	}{
		{name: "SlowCall", circuit: slowCall, pause: 1200 * time.Millisecond, status: 200},
		{name: "SlowCall of a Breaker", circuit: slowCall, mw: func(c *gateway.Circuit) gateway.Middleware { return gateway.Breaker(c, nil) },
			pause: 1200 * time.Millisecond, status: 200},
		{name: "Timeout", mw: func(*gateway.Circuit) gateway.Middleware { return gateway.Timeout(2 * time.Second) },
			takes: 5 * time.Second, pause: 1900 * time.Millisecond, status: 408},
		{name: "the target's own limit, 500", limit: 1100 * time.Millisecond, fails: 500, pause: -1, status: 408},
		{name: "the target's own short limit, 500", limit: 300 * time.Millisecond, fails: 500, pause: -1, status: 408},
		{name: "the target's own limit, 503", limit: 1100 * time.Millisecond, fails: 503, pause: -1, status: 408},
	} {
		for _, behind := range []string{http1, h2c, "small " + http1} {
			length := longBody
			if strings.HasPrefix(behind, "small ") {
				if tt.pause < 0 {
					continue // the target is not asked
				}
				length, behind = 2, http1
			}
			all.run(fmt.Sprintf("%s/%s, %d bytes", tt.name, behind, length), func(t *testing.T) {
				c := gateway.NewCircuit("c", tt.circuit)
				var o gateway.UpstreamOptions
				if !strings.Contains(tt.name, "Breaker") {
					o.Circuit = c
				}
				up := lateTarget(t, behind, o, tt.limit, func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						w.WriteHeader(tt.fails)
					}
					if tt.takes > 0 {
						select {
						case <-time.After(tt.takes):
						case <-r.Context().Done():
						}
					}
				})
				h := gateway.Proxy(up, nil)
				if tt.mw != nil {
					h = tt.mw(c)(h)
				}
				j, observe := observed()
				front := serveProtocol(t, http1, observe(h))
				var clients sync.WaitGroup
				for range 6 {
					clients.Go(func() {
						if status := postLate(t, front, length, tt.pause); status != tt.status {
							t.Errorf("status %d", status)
						}
					})
				}
				clients.Wait()
				for range 6 {
					if line := j.next(t); line["outcome"] != "ok" && line["outcome"] != "rejected" {
						t.Errorf("logged %v", line)
					}
				}
				checkBlameless(t, c, up)
			})
		}
	}
}

// TestBlameSlowMessages: a gRPC server's own deadline for a stream passes while its client sends no message.
func TestBlameSlowMessages(t *testing.T) {
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprintf("alone %v", alone), func(t *testing.T) {
			t.Parallel()
			c, outer := gateway.NewCircuit("c", nil), gateway.NewCircuit("outer", nil)
			up := lateTarget(t, h2c, gateway.UpstreamOptions{Circuit: c}, 300*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/grpc")
				name := "Grpc-Status"
				if !alone {
					w.(http.Flusher).Flush()
					name = http.TrailerPrefix + name
				}
				io.Copy(io.Discard, r.Body)
				w.Header().Set(name, "4")
			})
			j, observe := observed()
			front := serveProtocol(t, http2, observe(gateway.Breaker(outer, nil)(gateway.Proxy(up, nil))))
			var clients sync.WaitGroup
			for range 6 {
				clients.Go(func() {
					body, unsent := io.Pipe()
					defer unsent.Close()
					req, _ := http.NewRequestWithContext(t.Context(), "POST", front.URL+"/svc/M", body)
					req.Header.Set("Content-Type", "application/grpc")
					res, err := front.Client().Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if res.Header.Get("Grpc-Status")+res.Trailer.Get("Grpc-Status") != "4" {
						t.Errorf("header %v, trailer %v", res.Header, res.Trailer)
					}
				})
			}
			clients.Wait()
			for range 6 {
				if line := j.next(t); line["outcome"] != "client_canceled" {
					t.Errorf("logged %v", line)
				}
			}
			checkBlameless(t, c, up)
			checkBlameless(t, outer, up)
		})
	}
}

// TestBlameFailsEarly: a target that fails at once is to blame, though its client has more to send.
func TestBlameFailsEarly(t *testing.T) {
	c := gateway.NewCircuit("c", nil)
	target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, br)
		}
	})
	up := gateway.NewUpstream("target", gateway.MustTargets(target), &gateway.UpstreamOptions{Circuit: c})
	front := serveProtocol(t, http1, gateway.Proxy(up, nil))
	for n := 0; c.State() == gateway.CircuitClosed; n++ {
		status := postLate(t, front, longBody, -1)
		if status != 503 && status != 408 || n == 100 { // 408 if this machine took so long that the client may be to blame
			t.Fatalf("status %d, and the circuit is %v", status, c.State())
		}
	}
}

// TestBlameLatePart: a target that was asked when the time was nearly over is not to blame for the rest. It is where it
// had all of the time.
func TestBlameLatePart(t *testing.T) {
	wait := func(d time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
			fmt.Fprint(w, `{"id":1}`)
		}
	}
	for _, tt := range []struct {
		limit, first, second time.Duration
		closed               bool
	}{
		{600 * time.Millisecond, 500 * time.Millisecond, 300 * time.Millisecond, true},
		{2 * time.Second, 0, time.Minute, false}, // of which it has at least the half, on a busy machine too
	} {
		t.Run(tt.first.String(), func(t *testing.T) {
			t.Parallel()
			c := gateway.NewCircuit("c", nil)
			first := lateTarget(t, http1, gateway.UpstreamOptions{}, 0, wait(tt.first))
			second := lateTarget(t, http1, gateway.UpstreamOptions{Circuit: c}, 0, wait(tt.second))
			front := serveProtocol(t, http1, gateway.Aggregate([]gateway.Part{
				{Name: "first", From: first, Path: "/"},
				{Name: "second", From: second, Path: "/{first.id}"},
			}, &gateway.AggregateOptions{Timeout: tt.limit}))
			var clients sync.WaitGroup
			for range 6 {
				clients.Go(func() {
					res, err := front.Client().Get(front.URL)
					if err != nil {
						t.Error(err)
						return
					}
					if res.Body.Close(); res.StatusCode != 504 {
						t.Errorf("status %d", res.StatusCode)
					}
				})
			}
			clients.Wait()
			if tt.closed {
				checkBlameless(t, c, second)
			} else if c.State() != gateway.CircuitOpen {
				t.Errorf("the circuit is %v", c.State())
			}
		})
	}
}

// TestBlameSlowProbe: a client that stalls as the probe of a half-open circuit does not keep others out.
func TestBlameSlowProbe(t *testing.T) {
	for _, outside := range []bool{false, true} {
		t.Run(fmt.Sprintf("Breaker %v", outside), func(t *testing.T) {
			c := gateway.NewCircuit("c", &gateway.CircuitOptions{OpenFor: time.Minute})
			arrived := make(chan bool, 1)
			var o gateway.UpstreamOptions
			if !outside {
				o.Circuit = c
			}
			up := lateTarget(t, http1, o, 0, func(_ http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					arrived <- true
				}
				io.Copy(io.Discard, r.Body)
			})
			h := gateway.Proxy(up, nil)
			if outside {
				h = gateway.Breaker(c, nil)(h)
			}
			front := serveProtocol(t, http1, h)
			c.Trip(time.Nanosecond)
			slow := raw(t, front, allButLast(longBody))
			<-arrived
			for late := deadline(); c.State() != gateway.CircuitClosed; {
				res, err := front.Client().Get(front.URL)
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				if time.Now().After(late) {
					t.Fatalf("status %d, and the circuit is %v", res.StatusCode, c.State())
				}
			}
			io.WriteString(slow, "b")
			if res, err := http.ReadResponse(bufio.NewReader(slow), nil); err != nil || res.StatusCode != 200 {
				t.Error(res, err)
			}
		})
	}
}

// TestBlameCutWhileStalled: a target that breaks off its response while its client has still to send is not to blame. It
// is where the client has sent everything.
func TestBlameCutWhileStalled(t *testing.T) {
	target := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		if r, err := http.ReadRequest(br); err == nil {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
			all := make(chan bool)
			go func() {
				io.Copy(io.Discard, r.Body)
				close(all)
			}()
			if r.URL.Path == "/whole" {
				<-all
			}
			<-time.After(100 * time.Millisecond)
		}
	})
	const length = longBody
	for sent, want := range map[int]gateway.CircuitState{1: gateway.CircuitClosed, length: gateway.CircuitOpen} {
		path := "/begun"
		if sent == length {
			path = "/whole"
		}
		c := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
		up := gateway.NewUpstream("u", gateway.MustTargets(target), &gateway.UpstreamOptions{Circuit: c})
		front := serveProtocol(t, http1, gateway.Proxy(up, nil))
		conn := raw(t, front, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, length, strings.Repeat("a", sent)))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(res.Body); string(got) != "ab" || err == nil {
			t.Errorf("%d sent: read %q, %v", sent, got, err)
		}
		if c.State() != want {
			t.Errorf("%d sent: the circuit is %v", sent, c.State())
		}
	}
}
