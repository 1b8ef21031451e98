package gateway_test

import (
	"bufio"
	"context"
	"errors"
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
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// blameWay is a gateway in front of one target, with a circuit and health checks by traffic that have their defaults.
type blameWay struct {
	*way
	circuit *gateway.Circuit
	up      *gateway.Upstream
	pending atomic.Int64 // requests in the gateway

	link      string // of the target
	transport http.RoundTripper
}

type blameOptions struct {
	before, behind string
	proxy          *gateway.ProxyOptions
	upstream       gateway.UpstreamOptions
	inside         gateway.Middleware // between Observe and Proxy; nil: none
	server         func(*http.Server) // of the gateway; nil changes nothing
	targetServer   func(*http.Server) // nil changes nothing
	target         http.HandlerFunc
}

func newBlameWay(t *testing.T, o blameOptions) *blameWay {
	t.Helper()
	target := httptest.NewUnstartedServer(o.target)
	if o.targetServer != nil {
		o.targetServer(target.Config)
	}
	w := &blameWay{circuit: gateway.NewCircuit("c", nil)}
	o.upstream.Circuit = w.circuit
	w.link, w.transport = startTarget(t, o.behind, target, gateway.TransportOptions{})
	o.upstream.Transport = w.transport
	w.up = gateway.NewUpstream("target", gateway.MustTargets(w.link), &o.upstream)
	j, observe := observed()
	h := gateway.Proxy(w.up, o.proxy)
	if o.inside != nil {
		h = o.inside(h)
	}
	h = observe(h)
	count := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.pending.Add(1)
		defer w.pending.Add(-1)
		h.ServeHTTP(rw, r)
	})
	s := httptest.NewUnstartedServer(count)
	if o.server != nil {
		o.server(s.Config)
	}
	startServer(t, o.before, s)
	w.way = &way{Client: clientOf(t, o.before, s), url: s.URL, journal: j, server: s}
	return w
}

// stall sends a part of a body and then nothing more until the answer is here.
func (w *blameWay) stall(t *testing.T, length int64, header http.Header) *http.Response {
	t.Helper()
	in, out := io.Pipe()
	defer in.CloseWithError(errors.New("enough"))
	r := newRequest(t, "POST", w.url, in)
	r.ContentLength = length
	for name, values := range header {
		r.Header[name] = values
	}
	go io.WriteString(out, "half")
	res, err := w.Do(r)
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

// check fails the test unless circuit and target are as good as new.
func (w *blameWay) check(t *testing.T) {
	t.Helper()
	if w.circuit.State() != gateway.CircuitClosed {
		t.Errorf("circuit %v", w.circuit.State())
	}
	for _, s := range w.up.Status() {
		if !s.Healthy || s.Pending != 0 {
			t.Errorf("target %+v", s)
		}
	}
}

func readAll(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// deadlineIn is a foreign middleware that gives the context a deadline.
func deadlineIn(d time.Duration) gateway.Middleware {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), d)
			defer cancel()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// TestStalledUploads: whatever ends the wait for a client that stalls, the client gets 408 in time, and the target is
// not to blame.
func TestStalledUploads(t *testing.T) {
	const short = time.Second // more than twice of what the gateway and the target need, on a slow and busy machine too
	all := newCrowd(t)
	defer all.wait()
	for _, tt := range []struct {
		name string
		o    blameOptions
	}{
		{"BodyTimeout", blameOptions{proxy: &gateway.ProxyOptions{BodyTimeout: short}}},
		{"BodyTimeout after Upstream's", blameOptions{proxy: &gateway.ProxyOptions{BodyTimeout: 2 * short}, upstream: gateway.UpstreamOptions{Timeout: short}}},
		{"Timeout", blameOptions{inside: gateway.Timeout(short)}},
		{"context", blameOptions{inside: deadlineIn(short)}},
		{"Mirror", blameOptions{inside: gateway.Mirror(http.NotFoundHandler(), &gateway.MirrorOptions{BodyTimeout: short})}},
		{"the server's ReadTimeout", blameOptions{server: func(s *http.Server) { s.ReadTimeout = short }}},
		{"the target's ReadTimeout", blameOptions{proxy: &gateway.ProxyOptions{BodyTimeout: 3 * short}, targetServer: func(s *http.Server) { s.ReadTimeout = short }}},
		{"retries", blameOptions{inside: gateway.Timeout(short), upstream: gateway.UpstreamOptions{Retry: gateway.RetryOptions{Attempts: 3}}}},
	} {
		for _, before := range []string{http1, http2} {
			for _, behind := range []string{http1, http2, h2c} {
				all.run(tt.name+"/"+before+" to "+behind, func(t *testing.T) {
					o := tt.o
					o.before, o.behind, o.target = before, behind, readAll
					w := newBlameWay(t, o)
					connect(t, w.link, w.transport)
					var wg sync.WaitGroup
					for n := range 6 {
						wg.Go(func() {
							length := int64(100)
							if n%2 == 0 {
								length = -1
							}
							if res := w.stall(t, length, nil); res != nil && res.StatusCode != 408 {
								t.Errorf("got %d", res.StatusCode)
							}
						})
					}
					wg.Wait()
					for range 6 {
						if line := w.journal.next(t); line["status"] != "408" || line["outcome"] != "rejected" || line["level"] == "ERROR" {
							t.Errorf("logged %v", line)
						}
					}
					w.check(t)
				})
			}
		}
	}
}

// TestManyStalledUploads: none of many is left when their time is over, and neither are their connections.
func TestManyStalledUploads(t *testing.T) {
	w := newBlameWay(t, blameOptions{before: http1, behind: http1, inside: gateway.Timeout(3 * time.Second), target: readAll})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") {
				t.Errorf("got %.60q, %v", answer, err)
			}
		})
	}
	wg.Wait()
	if n := w.pending.Load(); n != 0 {
		t.Errorf("%d pending", n)
	}
	w.check(t)
}

// TestSilentTargetIsToBlame: the client has sent everything, or the target does not take it.
func TestSilentTargetIsToBlame(t *testing.T) {
	for _, behind := range []string{http1, h2c} {
		for _, size := range []int{10, 8 << 20} {
			t.Run(fmt.Sprint(behind, size), func(t *testing.T) {
				done := make(chan bool)
				w := newBlameWay(t, blameOptions{before: http1, behind: behind,
					upstream: gateway.UpstreamOptions{Timeout: 50 * time.Millisecond},
					target: func(w http.ResponseWriter, r *http.Request) {
						http.NewResponseController(w).EnableFullDuplex()
						<-done
					}})
				t.Cleanup(func() { close(done) })
				r := newRequest(t, "POST", w.url, io.LimitReader(neverEnds{}, int64(size)))
				r.ContentLength = int64(size)
				if res, err := w.Do(r); err == nil {
					res.Body.Close()
					if res.StatusCode != 504 {
						t.Errorf("got %d", res.StatusCode)
					}
				}
				if line := w.journal.next(t); line["status"] != "504" || line["outcome"] != "timeout" {
					t.Errorf("logged %v", line)
				}
			})
		}
	}
}

// TestUpstreamTimeoutMeasuresTheTarget runs an attempt whose client and target are slow in turn.
func TestUpstreamTimeoutMeasuresTheTarget(t *testing.T) {
	for _, tt := range []struct {
		name           string
		client, target []time.Duration // before each part of the body, and before it is taken
		last           time.Duration   // from the end of the body to the response
		want           error
		after          time.Duration
	}{
		{"slow client", []time.Duration{time.Hour, time.Hour}, []time.Duration{0, 0}, 29 * time.Second, nil, 2*time.Hour + 29*time.Second},
		{"slow, and then the target as well", []time.Duration{time.Hour, 0}, []time.Duration{0, 0}, 31 * time.Second, gateway.ErrTimeout, time.Hour + 30*time.Second},
		{"slow target, steadily", []time.Duration{0, 0, 0, 0}, []time.Duration{20 * time.Second, 20 * time.Second, 20 * time.Second, 20 * time.Second}, 0, nil, 80 * time.Second},
		{"the target does not take it", []time.Duration{0, time.Minute, 0}, []time.Duration{0, 40 * time.Second, 0}, 0, gateway.ErrTimeout, 90 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
					Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
						wait := func(d time.Duration) error {
							select {
							case <-time.After(d):
								return r.Context().Err()
							case <-r.Context().Done():
								return r.Context().Err()
							}
						}
						buf := make([]byte, 1)
						for _, d := range tt.target {
							if _, err := io.ReadFull(r.Body, buf); err != nil {
								return nil, err
							}
							if err := wait(d); err != nil {
								return nil, err
							}
						}
						if _, err := r.Body.Read(buf); err != io.EOF {
							return nil, fmt.Errorf("at the end: %v", err)
						}
						if err := wait(tt.last); err != nil {
							return nil, err
						}
						return answered(r, 200, http.NoBody), nil
					}),
				})
				in, out := io.Pipe()
				go func() {
					defer out.Close()
					for _, d := range tt.client {
						time.Sleep(d)
						if _, err := out.Write([]byte("x")); err != nil {
							return
						}
					}
				}()
				defer in.Close()
				start := time.Now()
				res, err := u.RoundTrip(httptest.NewRequestWithContext(t.Context(), "POST", "/", in))
				if res != nil {
					res.Body.Close()
				}
				if took := time.Since(start); !errors.Is(err, tt.want) || took != tt.after {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// TestGRPCDeadlineIsTheClients: a call that ends by the deadline that its client chose is no failure of the target.
func TestGRPCDeadlineIsTheClients(t *testing.T) {
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprint("begun ", begun), func(t *testing.T) {
			w := newBlameWay(t, blameOptions{before: h2c, behind: h2c, target: func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if begun {
					w.(http.Flusher).Flush()
				}
				<-time.After(10 * time.Millisecond)
				panic(http.ErrAbortHandler)
			}})
			for range 6 {
				r := newRequest(t, "POST", w.url, strings.NewReader("call"))
				r.Header.Set("Content-Type", "application/grpc")
				r.Header.Set("Grpc-Timeout", "10m")
				if res, err := w.Do(r); err == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				line := w.journal.next(t)
				if line["outcome"] != "client_canceled" || line["level"] == "ERROR" || !strings.Contains(line["error"], "grpc-timeout") {
					t.Errorf("logged %v", line)
				}
			}
			w.check(t)
		})
	}
	// Without a deadline, or before it, the target is to blame.
	for _, timeout := range []string{"", "10S", "99999999H", "10", "m", "-1m", "1 m", "123456789m"} {
		w := newBlameWay(t, blameOptions{before: h2c, behind: h2c, target: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }})
		r := newRequest(t, "POST", w.url, strings.NewReader("call"))
		r.Header.Set("Content-Type", "application/grpc")
		r.Header.Set("Grpc-Timeout", timeout)
		if res, err := w.Do(r); err == nil {
			res.Body.Close()
		}
		if line := w.journal.next(t); line["outcome"] != "upstream_error" {
			t.Errorf("%q: logged %v", timeout, line)
		}
	}
}

// TestLogSaysThatTheClientLeft: the client resets its stream before or after the answer has begun.
func TestLogSaysThatTheClientLeft(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http2, http1}, {h2c, h2c}} {
		for _, begun := range []bool{false, true} {
			t.Run(fmt.Sprint(pair[0], " to ", pair[1], begun), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				asked := make(chan bool, 1)
				w := newBlameWay(t, blameOptions{before: pair[0], behind: pair[1], target: func(w http.ResponseWriter, r *http.Request) {
					if begun {
						w.(http.Flusher).Flush()
					}
					asked <- true
					<-r.Context().Done()
				}})
				go func() {
					<-asked
					if !begun {
						cancel()
					}
				}()
				res, err := w.Do(newRequest(t, "GET", w.url, nil).WithContext(ctx))
				if err == nil {
					cancel()
					res.Body.Close()
				}
				line := w.journal.next(t)
				if line["outcome"] != "client_canceled" || !strings.Contains(line["error"], "the client left") || strings.Contains(line["error"], "upstream failed") {
					t.Errorf("logged %v", line)
				}
				w.check(t)
			})
		}
	}
}

// TestClientSpoilsItsBodyAfterTheAnswerBegan: what then becomes of the answer is not the target's failure.
func TestClientSpoilsItsBodyAfterTheAnswerBegan(t *testing.T) {
	for _, behind := range []string{http1, h2c} {
		for name, ask := range map[string][2]string{
			"stalls":    {"Content-Length: 100\r\n\r\nhalf", ""},
			"malformed": {"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "no chunk\r\n"},
		} {
			t.Run(name+" "+behind, func(t *testing.T) {
				w := newBlameWay(t, blameOptions{before: http1, behind: behind, proxy: &gateway.ProxyOptions{BodyTimeout: 40 * time.Millisecond},
					target: func(w http.ResponseWriter, r *http.Request) {
						http.NewResponseController(w).EnableFullDuplex()
						w.(http.Flusher).Flush()
						readAll(w, r)
					}})
				for range 6 {
					conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\n"+ask[0])
					br := bufio.NewReader(conn)
					if _, err := readHead(br); err != nil {
						t.Fatal(err)
					}
					io.WriteString(conn, ask[1])
					io.Copy(io.Discard, br)
					if line := w.journal.next(t); line["outcome"] != "rejected" {
						t.Errorf("logged %v", line)
					}
				}
				w.check(t)
			})
		}
	}
}

// TestRefusalDoesNotWaitForTheBody: a client that sends no more of its body gets the answer to a failed request all
// the same, and its connection ends.
func TestRefusalDoesNotWaitForTheBody(t *testing.T) {
	dead := gateway.NewUpstream("dead", gateway.MustTargets("http://127.0.0.1:1"), nil)
	s := serve(t, gateway.Proxy(dead, nil))
	for _, body := range []string{"Content-Length: 20000\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"} {
		answer, err := io.ReadAll(raw(t, s, "POST / HTTP/1.1\r\nHost: x\r\n"+body))
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 502 ") {
			t.Errorf("got %.60q, %v", answer, err)
		}
	}
}

// TestEarlyAnswerLeavesNoConnectionOpen: the answer is complete before the body, of which nothing more comes.
func TestEarlyAnswerLeavesNoConnectionOpen(t *testing.T) {
	for _, readTimeout := range []time.Duration{0, time.Second, time.Minute} {
		w := newBlameWay(t, blameOptions{before: http1, behind: http1, server: func(s *http.Server) { s.ReadTimeout = readTimeout },
			target: func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).EnableFullDuplex()
				io.WriteString(w, "early")
			}})
		answer, err := io.ReadAll(raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\nhalf"))
		if err != nil || !strings.HasSuffix(string(answer), "early") {
			t.Errorf("ReadTimeout %v: got %q, %v", readTimeout, answer, err)
		}
	}
}

// TestTimeoutEndsReadsOfALocalHandler: not only Proxy reads bodies.
func TestTimeoutEndsReadsOfALocalHandler(t *testing.T) {
	for _, protocol := range []string{http1, http2} {
		for name, mw := range map[string]gateway.Middleware{
			"Timeout": gateway.Timeout(300 * time.Millisecond),
			"Mirror":  gateway.Mirror(http.NotFoundHandler(), &gateway.MirrorOptions{BodyTimeout: 300 * time.Millisecond}),
		} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				failed := make(chan error, 1)
				j, observe := observed()
				s := serveProtocol(t, protocol, gateway.Chain(observe, mw)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					_, err := io.ReadAll(r.Body)
					failed <- err
				})))
				w := &blameWay{way: &way{Client: clientOf(t, protocol, s), url: s.URL, journal: j, server: s}}
				if res := w.stall(t, 100, nil); res != nil && res.StatusCode != 408 {
					t.Errorf("got %d", res.StatusCode)
				}
				if err := <-failed; err == nil {
					t.Error("half a body was taken for a whole one")
				}
				if line := j.next(t); line["status"] != "408" || line["outcome"] != "rejected" {
					t.Errorf("logged %v", line)
				}
			})
		}
	}
}

// TestExpectedBodyDoesNotStopTheClock: the target begins a response without the body, which the client therefore does
// not send, and then stops. That is not the client's time.
func TestExpectedBodyDoesNotStopTheClock(t *testing.T) {
	transport := newTransport(t, nil)
	link := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
		readHead(br)
		io.WriteString(conn, "HTTP/1.1 2")
		io.Copy(io.Discard, br)
	})
	up := gateway.NewUpstream("target", gateway.MustTargets(link), &gateway.UpstreamOptions{Transport: transport, Timeout: 1500 * time.Millisecond})
	w := newWayTo(t, http1, up, nil)
	conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n")
	if head, err := readHead(bufio.NewReader(conn)); err != nil || !strings.HasPrefix(head, "HTTP/1.1 504 ") {
		t.Errorf("got %q, %v", head, err)
	}
}

// TestPostWithoutWaste holds how much is allocated for a body that is not sent again.
func TestPostWithoutWaste(t *testing.T) {
	settle(t)
	const size = 32 << 10
	body := strings.Repeat("x", size)
	buf := make([]byte, 16<<10)
	u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), &gateway.UpstreamOptions{
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			for {
				if _, err := r.Body.Read(buf); err != nil {
					break
				}
			}
			return answered(r, 200, http.NoBody), nil
		}),
	})
	h := gateway.Proxy(u, nil)
	for _, method := range []string{"POST", "PUT"} {
		const runs = 200
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			r := httptest.NewRequest(method, "/", strings.NewReader(body))
			h.ServeHTTP(httptest.NewRecorder(), r)
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / runs; each > size {
			t.Errorf("%s: %d bytes for a body of %d", method, each, size)
		}
	}
}

// TestBodyTimeoutOfAStream: a body without a length may pause once its answer has begun.
func TestBodyTimeoutOfAStream(t *testing.T) {
	const limit = 500 * time.Millisecond // in which the answer begins
	backend := serveProtocol(t, h2c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		io.Copy(w, r.Body)
	}))
	up := gateway.NewUpstream("u", gateway.MustTargets("h2c://"+backend.Listener.Addr().String()), nil)
	front := serveProtocol(t, http2, gateway.Proxy(up, &gateway.ProxyOptions{BodyTimeout: limit}))
	body, w := io.Pipe()
	res, err := front.Client().Do(newRequest(t, "POST", front.URL, body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	<-time.After(2 * limit)
	io.WriteString(w, "late")
	w.Close()
	if got, err := io.ReadAll(res.Body); string(got) != "late" || err != nil {
		t.Errorf("echoed %q, %v", got, err)
	}
}

// TestCanceledUpload: when other code cancels the request's context, an upload that stalls ends.
func TestCanceledUpload(t *testing.T) {
	backend := serveProtocol(t, http1, http.HandlerFunc(readAll))
	returned := make(chan bool)
	h := gateway.Proxy(gateway.NewUpstream("u", gateway.MustTargets(backend.URL), nil), nil)
	front := serveProtocol(t, http1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(returned)
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		time.AfterFunc(50*time.Millisecond, cancel)
		h.ServeHTTP(w, r.WithContext(ctx))
	}))
	raw(t, front, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	select {
	case <-returned:
	case <-time.After(patience):
		t.Error("the handler waits for the client")
	}
}

// deadlines is a writer that counts the read deadlines that are set.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetReadDeadline(time.Time) error { d.set++; return nil }

// TestRefusalKeepsTheServersDeadline: before a refusal, the time for the rest of the body is bounded, unless the server has
// a ReadTimeout: that is never extended.
func TestRefusalKeepsTheServersDeadline(t *testing.T) {
	for limit, want := range map[time.Duration]int{0: 1, time.Second: 0} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		ctx := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{ReadTimeout: limit})
		r := httptest.NewRequestWithContext(ctx, "POST", "/", strings.NewReader(strings.Repeat("a", longBody)))
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			io.CopyN(io.Discard, r.Body, 1)
			return nil, io.ErrUnexpectedEOF
		}), nil).ServeHTTP(w, r)
		if w.Code != 502 || w.set != want {
			t.Errorf("ReadTimeout %v: status %d, %d deadlines", limit, w.Code, w.set)
		}
	}
}
