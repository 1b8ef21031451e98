package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestProxyInformational(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("X-Final", "1")
		w.WriteHeader(http.StatusTeapot)
	})
	conn := raw(t, f.Server, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	all, _ := io.ReadAll(conn)
	first, final, _ := strings.Cut(string(all), "\r\n\r\n")
	if !strings.HasPrefix(first, "HTTP/1.1 103") || !strings.Contains(first, "Link: </style.css>") || strings.Contains(first, "X-Trace-Id") {
		t.Errorf("first: %q", first)
	}
	if !strings.HasPrefix(final, "HTTP/1.1 418") || !strings.Contains(final, "X-Final: 1") || !strings.Contains(final, "X-Trace-Id:") || strings.Contains(final, "Link") {
		t.Errorf("final: %q", final)
	}
	if line := f.journal.next(t); line["status"] != "418" {
		t.Errorf("logged %v", line)
	}
}

// TestForwardExpectContinue: a client that waits to be asked for its body is asked when the target asks.
func TestForwardExpectContinue(t *testing.T) {
	const ask = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	for _, tt := range []struct {
		name   string
		answer string // of the target, to the header alone
		want   string // status line that the client gets
	}{
		{"refused", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "HTTP/1.1 403 Forbidden\r\n"},
		{"refused without a body", "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 417 Expectation Failed\r\n"},
		{"refused and closed", "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 401 Unauthorized\r\n"},
		{"redirected", "HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 307 Temporary Redirect\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rest := make(chan string, 1)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				head, _ := readHead(br)
				if !strings.Contains(head, "\r\nExpect: 100-continue\r\n") {
					t.Errorf("the target got %q", head)
				}
				io.WriteString(conn, tt.answer)
				more, _ := io.ReadAll(br)
				rest <- string(more)
			})
			conn := raw(t, w.server, ask)
			br := bufio.NewReader(conn)
			head, err := readHead(br)
			conn.(*net.TCPConn).CloseWrite() // as a client does that sees the connection closing
			if err != nil || !strings.HasPrefix(head, tt.want) || !strings.Contains(head, "\r\nConnection: close\r\n") {
				t.Errorf("got %q, %v", head, err)
			}
			if more := <-rest; more != "" {
				t.Errorf("the target got a body that it had refused: %q", more)
			}
			if more, err := io.ReadAll(br); err != nil || strings.Contains(string(more), "HTTP") {
				t.Errorf("and then %q, %v", more, err)
			}
			if line := w.journal.next(t); line["outcome"] != "ok" {
				t.Errorf("logged %v", line)
			}
		})
	}
	t.Run("wanted", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, 5)
			io.ReadFull(br, body)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", body)
		})
		conn := raw(t, w.server, ask)
		br := bufio.NewReader(conn)
		for _, want := range []string{"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"} {
			if head, err := readHead(br); err != nil || head != want {
				t.Fatalf("got %q, %v", head, err)
			}
		}
		io.WriteString(conn, "hello")
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" || res.Close {
			t.Errorf("got %q, %v, close %v", body, err, res.Close)
		}
	})
	for name, second := range map[string]string{
		"refused, then wanted elsewhere":   "HTTP/1.1 100 Continue\r\n\r\n",
		"refused, then a target is silent": "",
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			link := plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				if conns.Add(1) == 1 {
					io.WriteString(conn, "HTTP/1.1 503 Not now\r\nContent-Length: 0\r\n\r\n")
					if more, _ := io.ReadAll(br); len(more) > 0 {
						t.Errorf("the target got a body that it had refused: %q", more)
					}
					return
				}
				io.WriteString(conn, second)
				body := make([]byte, 5)
				io.ReadFull(br, body)
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n%s", body)
			})
			w := newWayTo(t, http1, gateway.NewUpstream("target", gateway.MustTargets(link), &gateway.UpstreamOptions{
				Transport: &http.Transport{ExpectContinueTimeout: 1500 * time.Millisecond},
				Retry:     gateway.RetryOptions{Attempts: 2, Backoff: time.Microsecond},
			}), nil)
			conn := raw(t, w.server, strings.Replace(ask, "POST", "PUT", 1))
			br := bufio.NewReader(conn)
			if head, err := readHead(br); err != nil || head != "HTTP/1.1 100 Continue\r\n\r\n" {
				t.Fatalf("got %q, %v", head, err)
			}
			io.WriteString(conn, "hello")
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("got %v, %v", res, err)
			}
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" {
				t.Errorf("got %q, %v", body, err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		w := newWayTo(t, http1, gateway.NewUpstream("dead", gateway.MustTargets("http://127.0.0.1:1"), nil), nil)
		res, err := http.ReadResponse(bufio.NewReader(raw(t, w.server, ask)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := readProblem(t, res); p.Status != 502 || !res.Close {
			t.Errorf("got %+v, close %v", p, res.Close)
		}
	})
	t.Run("too large", func(t *testing.T) {
		w := toPlain(t, &gateway.ProxyOptions{MaxBodyBytes: 4}, func(conn net.Conn, br *bufio.Reader) { t.Error("the target was asked") })
		res, err := http.ReadResponse(bufio.NewReader(raw(t, w.server, ask)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p := readProblem(t, res); p.Status != 413 || !res.Close {
			t.Errorf("got %+v, close %v", p, res.Close)
		}
	})
}

// TestForwardInformational: 1xx go on as they come and leave the final answer alone.
func TestForwardInformational(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http2, http2}, {http1, h2c}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			w := newWay(t, pair[0], pair[1], nil, func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h["Link"] = []string{"</a>", "</b>"}
				w.WriteHeader(http.StatusEarlyHints)
				h.Add("Link", "</c>")
				w.WriteHeader(http.StatusProcessing)
				h.Del("Link")
				w.WriteHeader(150)
				h.Set("X-Final", "1")
				io.WriteString(w, "hello")
			})
			var got []string
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				got = append(got, fmt.Sprint(code, h["Link"], len(h["X-Trace-Id"])))
				return nil
			}}
			r := newRequest(t, "GET", w.url, nil)
			res := w.do(t, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
			body, err := io.ReadAll(res.Body)
			if want := []string{"103 [</a> </b>] 0", "102 [</a> </b> </c>] 0", "150 [] 0"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if err != nil || string(body) != "hello" || res.Header.Get("X-Final") != "1" || len(res.Header["Link"]) > 0 || res.Header.Get("X-Trace-Id") == "" {
				t.Errorf("got %v, %q, %v", res.Header, body, err)
			}
		})
	}
	t.Run("hop-by-hop", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
		})
		br := bufio.NewReader(raw(t, w.server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		if head, err := readHead(br); err != nil || head != "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" {
			t.Errorf("got %q, %v", head, err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			for {
				if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					return
				}
			}
		})
		res := w.do(t, newRequest(t, "GET", w.url, nil))
		if p := readProblem(t, res); p.Status != 502 {
			t.Errorf("got %+v", p)
		}
		if line := w.journal.next(t); line["outcome"] != "upstream_error" {
			t.Errorf("logged %v", line)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		// The client leaves at the first 1xx, while more of them come. Those must touch nothing any more.
		w := newWayTo(t, http1, gateway.NewUpstream("flood", gateway.MustTargets(plainTarget(t, func(conn net.Conn, br *bufio.Reader) {
			readHead(br)
			for range 20 {
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
			}
		})), nil), nil)
		ctx, cancel := context.WithCancel(context.Background())
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { cancel(); return nil }}
		r := newRequest(t, "GET", w.url, nil)
		if res, err := w.Do(r.WithContext(httptrace.WithClientTrace(ctx, trace))); err == nil {
			res.Body.Close()
		}
		w.journal.next(t)
	})
}

// A target that sends informational responses without end fails. It does not use up those of the target that is asked
// next.
func TestInterimsAreBoundedPerAttempt(t *testing.T) {
	for _, scheme := range []string{"http", "h2c"} {
		t.Run(scheme, func(t *testing.T) {
			target := func(interims int, body string) string {
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					for range interims {
						w.WriteHeader(http.StatusEarlyHints)
					}
					_, _ = io.WriteString(w, body)
				}))
				s.Config.Protocols = new(http.Protocols)
				s.Config.Protocols.SetHTTP1(true)
				s.Config.Protocols.SetUnencryptedHTTP2(true)
				s.Start()
				t.Cleanup(s.Close)
				return strings.Replace(s.URL, "http", scheme, 1)
			}
			u := gateway.NewUpstream("u", gateway.MustTargets(target(101, "flood"), target(100, "good")), &gateway.UpstreamOptions{
				Balancer: new(outcomes), // the first, and then the other
				Retry:    gateway.RetryOptions{Attempts: 2, Backoff: -1},
				Health:   gateway.HealthOptions{Unhealthy: 1},
			})
			front := serve(t, gateway.Proxy(u, nil))
			passed := 0
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				passed++
				return nil
			}})
			req, _ := http.NewRequestWithContext(ctx, "GET", front.URL, nil)
			res, err := front.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); string(body) != "good" || err != nil || passed != 200 {
				t.Errorf("%s, %q, %v, %d informational responses", res.Status, body, err, passed)
			}
			if s := u.Status(); s[0].Healthy || !s[1].Healthy {
				t.Errorf("%+v", s)
			}
		})
	}
}
