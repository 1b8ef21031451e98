package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestProxyUpgrade(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" || r.Header.Get("Connection") != "Upgrade" {
			w.WriteHeader(400)
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, rw)
		io.WriteString(conn, "bye") // after the client's half is closed
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello")
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "echo" {
		t.Fatalf("got %v, %v", res, err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(br, buf); err != nil || string(buf) != "hello" {
		t.Errorf("got %q, %v", buf, err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if rest, _ := io.ReadAll(br); string(rest) != "bye" {
		t.Errorf("got %q", rest)
	}
	if line := f.journal.next(t); line["status"] != "101" || line["outcome"] != "ok" {
		t.Errorf("logged %v", line)
	}
	res = get(t, f.URL)
	if res.StatusCode != 400 {
		t.Errorf("without an upgrade: %d", res.StatusCode)
	}
}

func TestProxyUpgradeToAnotherProtocol(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
		conn.Close()
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := readProblem(t, res); p.Status != 502 {
		t.Errorf("got %+v", p)
	}
}

// TestForwardUpgradeOffers: which protocols a target is asked for, and which answers of its are believed.
func TestForwardUpgradeOffers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ask    string // fields, and what follows the head
		want   string // Upgrade field that the target sees
		answer string // of the target
		status int    // that the client sees
	}{
		{"one", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 101},
		{"in other case", "Connection: foo, uPGRADE\r\nUpgrade: WebSocket\r\n\r\n", "WebSocket", "101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 101},
		{"several", "Connection: Upgrade\r\nUpgrade: one/1 ,\ttwo\r\n\r\n", "one/1, two", "101 x\r\nConnection: upgrade\r\nUpgrade: two\r\n\r\n", 101},
		{"several lines", "Connection: close\r\nConnection: Upgrade\r\nUpgrade: one\r\nUpgrade: two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: one\r\n\r\n", 101},
		{"another", "Connection: Upgrade\r\nUpgrade: one, two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: three\r\n\r\n", 502},
		{"both at once", "Connection: Upgrade\r\nUpgrade: one, two\r\n\r\n", "one, two", "101 x\r\nConnection: upgrade\r\nUpgrade: one, two\r\n\r\n", 502},
		{"to HTTP all the same", "Connection: Upgrade\r\nUpgrade: one, h2c\r\n\r\n", "one", "101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 502},
		{"to nothing", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\n\r\n", 502},
		{"to an empty name", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade:\r\n\r\n", 502},
		{"to no ASCII", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "101 x\r\nConnection: upgrade\r\nUpgrade: ech\xc3\xb6\r\n\r\n", 502},
		{"unasked", "\r\n", "", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 502},
		{"unasked and to nothing", "\r\n", "", "101 x\r\n\r\n", 502},
		{"not named in Connection", "Upgrade: echo\r\n\r\n", "", "101 x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", 502},
		{"refused", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "426 x\r\nContent-Length: 0\r\n\r\n", 426},
		{"ignored", "Connection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2 by another name", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/2 in other case", "Connection: Upgrade\r\nUpgrade: H2C\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/1.1\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"with a body", "Connection: Upgrade\r\nUpgrade: echo\r\nContent-Length: 2\r\n\r\nhi", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"with a chunked body", "Connection: Upgrade\r\nUpgrade: echo\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", "200 x\r\nContent-Length: 0\r\n\r\n", 200},
		{"no ASCII", "Connection: Upgrade\r\nUpgrade: ech\xc3\xb6\r\n\r\n", "-", "", 400},
		{"no ASCII, second", "Connection: Upgrade\r\nUpgrade: echo\r\nUpgrade: \xff\r\n\r\n", "-", "", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen, closed := make(chan string, 1), make(chan bool, 1)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				head, _ := readHead(br)
				r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
				if err != nil {
					t.Errorf("the target got %q: %v", head, err)
					return
				}
				if got := strings.Join(r.Header["Connection"], "|"); got != "" && got != "Upgrade" {
					t.Errorf("the target saw Connection: %q", got)
				}
				seen <- strings.Join(r.Header["Upgrade"], "|")
				io.WriteString(conn, "HTTP/1.1 "+tt.answer)
				io.Copy(io.Discard, br)
				closed <- true
			})
			conn := raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n"+tt.ask)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || res.StatusCode != tt.status {
				t.Fatalf("got %v, %v", res, err)
			}
			if tt.want != "-" {
				if got := <-seen; got != tt.want {
					t.Errorf("the target saw Upgrade: %q, want %q", got, tt.want)
				}
			}
			if tt.status == 502 {
				<-closed // while the client's connection is still there
				if p := readProblem(t, res); p.Status != 502 {
					t.Errorf("got %+v", p)
				}
			}
			conn.Close()
			if tt.status == 101 {
				<-closed
			}
			w.journal.next(t)
		})
	}
}

// TestForwardUpgraded: what becomes of two connections that are one.
func TestForwardUpgraded(t *testing.T) {
	const ask = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
	const agree = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: Echo\r\nX-Stay: 1\r\n\r\n"
	type end struct {
		*net.TCPConn
		br *bufio.Reader
	}
	says := func(t *testing.T, e end, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(e.br, got); err != nil || string(got) != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	ends := func(t *testing.T, e end) {
		t.Helper()
		if rest, err := io.ReadAll(e.br); err != nil || len(rest) > 0 {
			t.Errorf("read %q, %v; want the end", rest, err)
		}
	}
	for name, play := range map[string]func(t *testing.T, client, target end){
		"the target closes its half": func(t *testing.T, client, target end) {
			io.WriteString(target, "bye")
			target.CloseWrite()
			says(t, client, "bye")
			ends(t, client)
			io.WriteString(client, "still here")
			says(t, target, "still here")
			client.Close()
			ends(t, target)
		},
		"the client closes its half": func(t *testing.T, client, target end) {
			io.WriteString(client, "bye")
			client.CloseWrite()
			says(t, target, "bye")
			ends(t, target)
			io.WriteString(target, "still here")
			says(t, client, "still here")
			target.Close()
			ends(t, client)
		},
		"the client leaves": func(t *testing.T, client, target end) {
			client.SetLinger(0)
			client.Close()
			if _, err := io.Copy(io.Discard, target.br); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		},
		"the target leaves": func(t *testing.T, client, target end) {
			target.SetLinger(0)
			target.Close()
			if _, err := io.Copy(io.Discard, client.br); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
		},
		"much both ways": func(t *testing.T, client, target end) {
			const size = 1 << 20
			var wg sync.WaitGroup
			for _, pair := range [][2]end{{client, target}, {target, client}} {
				wg.Go(func() {
					io.CopyN(pair[0], neverEnds{}, size)
					pair[0].CloseWrite()
				})
				wg.Go(func() {
					if n, err := io.Copy(io.Discard, pair[1].br); n != size || err != nil {
						t.Errorf("%d bytes came, %v", n, err)
					}
				})
			}
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			targets := make(chan end)
			done := make(chan bool)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				io.WriteString(conn, agree+"at once")
				targets <- end{conn.(*net.TCPConn), br}
				<-done
			})
			conn := raw(t, w.server, ask+"early")
			client := end{conn.(*net.TCPConn), bufio.NewReader(conn)}
			head, err := readHead(client.br)
			want := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Echo\r\nX-Stay: 1\r\nX-Trace-Id: "
			if err != nil || !strings.HasPrefix(head, want) {
				t.Fatalf("got %q, %v", head, err)
			}
			target := <-targets
			says(t, client, "at once")
			says(t, target, "early")
			play(t, client, target)
			close(done)
			conn.Close()
			want = "ok"
			if name == "the target leaves" {
				want = "aborted" // with a reset: its circuit counts that as well
			}
			if line := w.journal.next(t); line["status"] != "101" || line["outcome"] != want {
				t.Errorf("logged %v, want %s", line, want)
			}
		})
	}

	t.Run("the context ends", func(t *testing.T) {
		link := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, agree)
			io.Copy(io.Discard, br)
		})
		ctx, cancel := context.WithCancel(context.Background())
		p := gateway.Proxy(gateway.NewUpstream("target", gateway.MustTargets(link), nil), nil)
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.ServeHTTP(w, r.WithContext(ctx))
		}))
		br := bufio.NewReader(raw(t, s, ask))
		if head, err := readHead(br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
			t.Fatalf("got %q, %v", head, err)
		}
		cancel()
		if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
			t.Errorf("got %q, %v", rest, err)
		}
	})
	t.Run("over TLS", func(t *testing.T) {
		// The target would speak HTTP/2, in which there is no upgrade.
		w := newWay(t, http1, http2, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(101)
			conn, buf, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("%s: %v", r.Proto, err)
				return
			}
			defer conn.Close()
			io.Copy(conn, buf)
		})
		conn := raw(t, w.server, strings.Replace(ask, "echo", "websocket", 1)+"hello")
		client := end{conn.(*net.TCPConn), bufio.NewReader(conn)}
		if head, err := readHead(client.br); err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 ") {
			t.Fatalf("got %q, %v", head, err)
		}
		says(t, client, "hello")
		client.CloseWrite()
		ends(t, client)
	})
	t.Run("an upgrade over HTTP/2 is none", func(t *testing.T) {
		w := newWay(t, http2, http1, nil, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Seen", r.Header.Get("Upgrade"))
		})
		r := newRequest(t, "GET", w.url, nil)
		if res := w.do(t, r); res.StatusCode != 200 || res.Header.Get("X-Seen") != "" {
			t.Errorf("got %d %v", res.StatusCode, res.Header)
		}
	})
}

// wire is the body of a 101, without a way to close half of it.
type wire struct {
	io.ReadWriter
	closed chan bool
}

func (w wire) Close() error {
	select {
	case w.closed <- true:
	default:
	}
	return nil
}

// TestForwardUpgradeFails: whatever goes wrong after the target agreed, its connection is closed.
func TestForwardUpgradeFails(t *testing.T) {
	ask := func(modify func(*http.Response) error, body io.ReadCloser, w http.ResponseWriter) {
		r := offersUpgrade(httptest.NewRequest("GET", "/", nil))
		gateway.Proxy(roundTrip(func(r *http.Request) (*http.Response, error) {
			return upgraded(r, body), nil
		}), &gateway.ProxyOptions{ModifyResponse: modify}).ServeHTTP(w, r)
	}
	pipe := func() wire { return wire{struct{ io.ReadWriter }{}, make(chan bool, 1)} }
	for name, tt := range map[string]struct {
		modify func(*http.Response) error
		status int
	}{
		"the client's connection cannot be had": {nil, 500},
		"ModifyResponse says no":                {func(*http.Response) error { return errors.New("no") }, 502},
		"ModifyResponse takes the connection away": {func(res *http.Response) error {
			res.Body = http.NoBody
			return nil
		}, 502},
	} {
		body, rec := pipe(), httptest.NewRecorder()
		ask(tt.modify, body, rec)
		if len(body.closed) != 1 || rec.Code != tt.status {
			t.Errorf("%s: closed %d times, %d", name, len(body.closed), rec.Code)
		}
	}
	t.Run("a panic", func(t *testing.T) {
		body := pipe()
		v := panicOf(func() { ask(func(*http.Response) error { panic("a bug") }, body, httptest.NewRecorder()) })
		if v != "a bug" || len(body.closed) != 1 {
			t.Errorf("panicked with %q, closed %d times", v, len(body.closed))
		}
	})
	t.Run("no connection", func(t *testing.T) {
		body, rec := &closable{}, httptest.NewRecorder()
		ask(nil, body, rec)
		if !body.closed || rec.Code != 502 {
			t.Errorf("closed %v, %d", body.closed, rec.Code)
		}
	})
	t.Run("reading fails", func(t *testing.T) {
		// After the connection is in other hands nothing is written by way of the ResponseWriter.
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		defer far.Close()
		w := &hijackable{ResponseRecorder: httptest.NewRecorder(), conn: near}
		body := wire{struct {
			io.Reader
			io.Writer
		}{io.MultiReader(), io.Discard}, make(chan bool, 1)}
		arrived := pipe()
		ask(func(res *http.Response) error {
			res.Body = body
			return nil
		}, arrived, w)
		if len(body.closed) != 1 || len(arrived.closed) != 1 || w.wrote {
			t.Errorf("closed %d and %d times, wrote %v", len(body.closed), len(arrived.closed), w.wrote)
		}
	})
}

// hijackable notes what is written past the connection that it gave away.
type hijackable struct {
	*httptest.ResponseRecorder
	conn  net.Conn
	wrote bool
}

func (h *hijackable) WriteHeader(code int) { h.wrote = true }
func (h *hijackable) Write(p []byte) (int, error) {
	h.wrote = true
	return len(p), nil
}
func (h *hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// TestUpgradeMeasured: the log line has the bytes of both directions and the time of the whole session, the
// histogram the time up to the switch.
func TestUpgradeMeasured(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
	target := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(conn, rw)
		io.WriteString(conn, "bye")
	}))
	local := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(io.Discard, rw)
	})
	to := gateway.Proxy(gateway.NewUpstream("target", gateway.MustTargets(target.URL), nil), nil)
	for _, tt := range []struct {
		name    string
		handler http.Handler
		foreign bool   // a middleware that is not this package's wraps the writer
		out, in string // bytes to the client and from it
	}{
		{name: "proxied", handler: to, in: "5", out: "8"},
		{name: "proxied under a foreign wrapper", handler: to, foreign: true, in: "5", out: "8"},
		{name: "hijacked by a local handler", handler: local, out: "0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, tel := make(journal, 1), new(gatewaytest.Telemetry)
			h := tt.handler
			if tt.foreign {
				inner := h
				h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					inner.ServeHTTP(unwrapping{w}, r)
				})
			}
			s := serve(t, gateway.Observe(&gateway.ObserveOptions{Logger: j.logger(), Meter: tel})(h))
			asked := time.Now()
			conn := raw(t, s, head+"hello")
			br := bufio.NewReader(conn)
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != 101 {
				t.Fatalf("got %v, %v", res, err)
			}
			switched := time.Since(asked)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, br)
			line := j.next(t)
			if line["bytes"] != tt.out || line["bytes_in"] != tt.in {
				t.Errorf("logged %q bytes to the client and %q from it, want %q and %q", line["bytes"], line["bytes_in"], tt.out, tt.in)
			}
			series := tel.Series("http.server.request.duration")
			if len(series) != 1 || series[0].Count != 1 || series[0].Sum <= 0 || series[0].Sum > switched.Seconds() {
				t.Errorf("recorded %+v, want at most %v, when the client saw the switch", series, switched)
			}
			if whole, err := time.ParseDuration(line["duration"]); err != nil || whole.Seconds() <= series[0].Sum {
				t.Errorf("logged the duration %v (%v), but the switch came after %vs", whole, err, series[0].Sum)
			}
		})
	}
}
