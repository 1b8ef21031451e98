package gateway_test

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// paced is a body, or a connection, that says a word after each pause and nothing more until it is closed.
type paced struct {
	pauses []time.Duration
	ends   bool // after the last word
	closed chan bool
	heard  int // bytes written to it
}

func (p *paced) Read(b []byte) (int, error) {
	if len(p.pauses) == 0 {
		if p.ends {
			return 0, io.EOF
		}
		<-p.closed
		return 0, errors.New("read of a closed body")
	}
	select {
	case <-time.After(p.pauses[0]):
		p.pauses = p.pauses[1:]
		return copy(b, "word"), nil
	case <-p.closed:
		return 0, errors.New("read of a closed body")
	}
}

func (p *paced) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

// pacedConn can be written to.
type pacedConn struct{ *paced }

func (c pacedConn) Write(b []byte) (int, error) { c.heard += len(b); return len(b), nil }

// TestUpstreamIdle: how long a target may pause within a body. Only the time of reads counts.
func TestUpstreamIdle(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name   string
		idle   time.Duration
		pauses []time.Duration
		ends   bool
		slow   time.Duration // of the reader, between reads
		words  int
		abort  bool
	}{
		{"short pauses", 10 * s, []time.Duration{9 * s, 9 * s, 9 * s}, true, 0, 3, false},
		{"a long pause", 10 * s, []time.Duration{9 * s, 11 * s}, true, 0, 1, true},
		{"no more words", 10 * s, []time.Duration{s}, false, 0, 1, true},
		{"no words", 10 * s, nil, false, 0, 0, true},
		{"a slow reader", 10 * s, []time.Duration{s, s, s}, true, time.Hour, 3, false},
		{"no limit", 0, []time.Duration{1000 * time.Hour}, true, 0, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				circuit := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
				body := &paced{pauses: tt.pauses, ends: tt.ends, closed: make(chan bool)}
				up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{
					Idle: tt.idle, Circuit: circuit,
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) { return answered(r, 200, body), nil }),
				})
				res, err := up.RoundTrip(newRequest(t, "GET", "http://x/", nil))
				if err != nil {
					t.Fatal(err)
				}
				words := 0
				for {
					_, err = res.Body.Read(make([]byte, 10))
					if err != nil {
						break
					}
					words++
					time.Sleep(tt.slow)
				}
				res.Body.Close()
				if words != tt.words || (err != io.EOF) != tt.abort || (circuit.State() == gateway.CircuitOpen) != tt.abort {
					t.Errorf("got %d words, %v, circuit %v", words, err, circuit.State())
				}
				if tt.abort && !strings.Contains(err.Error(), "paused for too long: nothing for 10s") {
					t.Errorf("the cause is %q", err)
				}
			})
		})
	}
}

// TestUpstreamIdleUpload: a target that waits for the rest of the client's body does not pause.
func TestUpstreamIdleUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{
			Idle: 10 * time.Second,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				go io.Copy(io.Discard, r.Body)
				return answered(r, 200, &paced{pauses: []time.Duration{time.Hour, 11 * time.Second}, closed: make(chan bool)}), nil
			}),
		})
		upload, client := io.Pipe()
		time.AfterFunc(time.Hour-time.Second, func() { client.Close() })
		res, err := up.RoundTrip(newRequest(t, "POST", "http://x/", upload))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		if string(got) != "word" || err == nil || !strings.Contains(err.Error(), "paused for too long") {
			t.Errorf("got %q, %v; want what came while the client was slow", got, err)
		}
		res.Body.Close()
	})
}

// TestUpstreamIdleConnection: an upgraded connection ends when both ends are silent, which is nobody's failure.
func TestUpstreamIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		circuit := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 1})
		conn := pacedConn{&paced{pauses: []time.Duration{9 * time.Second}, closed: make(chan bool)}}
		up := gateway.NewUpstream("u", gateway.MustTargets("http://a.example"), &gateway.UpstreamOptions{
			Idle: 10 * time.Second, Circuit: circuit,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return upgraded(r, conn), nil
			}),
		})
		res, err := up.RoundTrip(offersUpgrade(newRequest(t, "GET", "http://x/", nil)))
		if err != nil {
			t.Fatal(err)
		}
		both := res.Body.(io.ReadWriteCloser)
		start := time.Now()
		go func() { // the client speaks after 8, 16 and 24 seconds
			for range 3 {
				time.Sleep(8 * time.Second)
				both.Write([]byte("hello"))
			}
		}()
		b := make([]byte, 10)
		for err == nil {
			_, err = both.Read(b)
		}
		if took := time.Since(start); took != 34*time.Second || conn.heard != 15 {
			t.Errorf("closed after %v, with %d bytes heard", took, conn.heard)
		}
		if err == io.EOF || circuit.State() != gateway.CircuitClosed || up.Status()[0].Pending != 0 {
			t.Errorf("%v, circuit %v, %+v", err, circuit.State(), up.Status())
		}
	})
}

// TestProxyIdle: the client of a target that pauses gets what there was and sees that it is incomplete.
func TestProxyIdle(t *testing.T) {
	for _, behind := range []string{http1, http2, h2c} {
		t.Run(behind, func(t *testing.T) {
			target := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					upgradeTarget(w, r)
					return
				}
				io.WriteString(w, "half")
				http.NewResponseController(w).Flush()
				<-r.Context().Done() // the gateway gives up
			}))
			o := gateway.UpstreamOptions{Idle: 400 * time.Millisecond}
			w := newWayTo(t, http1, newTarget(t, behind, target, gateway.TransportOptions{}, o), nil)
			res := w.do(t, newRequest(t, "GET", w.url, nil))
			body, err := io.ReadAll(res.Body)
			if string(body) != "half" || err == nil {
				t.Errorf("got %q, %v", body, err)
			}
			line := w.journal.next(t)
			if line["outcome"] != "aborted" || !strings.Contains(line["error"], "paused for too long") {
				t.Errorf("logged %v", line)
			}
			if behind == h2c {
				return
			}
			conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			br := bufio.NewReader(conn)
			if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
				t.Fatalf("got %v, %v", res, err)
			}
			if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
				t.Errorf("got %q, %v; want the end of the connection", rest, err)
			}
			if line := w.journal.next(t); line["status"] != "101" || line["outcome"] != "ok" {
				t.Errorf("logged %v", line)
			}
		})
	}
}
