package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestProxyTrailers(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Announced")
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum")+r.Trailer.Get("X-User-Id"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	})
	r, _ := http.NewRequest("POST", f.URL, io.MultiReader(strings.NewReader("x")))
	r.Trailer = http.Header{"X-Sum": {"1"}, "X-User-Id": {"mallory"}}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if string(body) != "body" || res.Trailer.Get("X-Announced") != "1" || res.Trailer.Get("X-Late") != "2" {
		t.Errorf("got %q and %v", body, res.Trailer)
	}
}

// TestForwardProtocols sends the same things over every pair of protocols.
func TestForwardProtocols(t *testing.T) {
	for _, pair := range [][2]string{{http1, http1}, {http1, http2}, {http1, h2c}, {http2, http1}, {http2, http2}, {h2c, h2c}} {
		before, behind := pair[0], pair[1]
		t.Run(before+" to "+behind, func(t *testing.T) {
			gone := make(chan bool, 1)
			w := newWay(t, before, behind, &gateway.ProxyOptions{MaxFieldBytes: -1}, func(w http.ResponseWriter, r *http.Request) {
				if want := map[string]int{http1: 1, http2: 2, h2c: 2}[behind]; r.ProtoMajor != want {
					t.Errorf("the target was asked over %s", r.Proto)
				}
				h := w.Header()
				switch r.URL.Path {
				case "/echo":
					http.NewResponseController(w).EnableFullDuplex()
					h.Set("Trailer", "X-Announced")
					h["X-Multi"] = []string{"z", "a", "z"}
					h.Set("Date", "Mon, 01 Jan 2024 00:00:00 GMT")
					h.Set("Server", "target")
					h.Set("Content-Type", "text/x")
					w.WriteHeader(203)
					n, err := io.Copy(w, r.Body)
					h.Set("X-Announced", fmt.Sprint(n, err))
					h.Set(http.TrailerPrefix+"X-Unannounced", r.Trailer.Get("X-Sum"))
				case "/empty":
					io.Copy(io.Discard, r.Body)
					h.Set("Trailer", "X-Announced")
					h.Set("X-Seen", fmt.Sprint(r.ContentLength))
					w.WriteHeader(200)
					h.Set("X-Announced", "1"+r.Trailer.Get("X-Sum"))
				case "/late":
					w.WriteHeader(200)
					w.(http.Flusher).Flush()
					h.Set(http.TrailerPrefix+"X-Unannounced", "1")
				case "/length":
					h.Set("Content-Length", "5")
					h.Set("Etag", `"e"`)
					switch r.URL.RawQuery {
					case "304":
						w.WriteHeader(304)
						return
					case "204":
						h.Del("Content-Length")
						w.WriteHeader(204)
						return
					}
					if r.Method != "HEAD" {
						io.WriteString(w, "12345")
					}
				case "/typeless":
					h["Content-Type"] = nil
					io.WriteString(w, "<html>")
				case "/abort":
					io.WriteString(w, "half")
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				case "/short":
					h.Set("Content-Length", "100")
					io.WriteString(w, "half")
				case "/wait":
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					gone <- true
				case "/huge":
					h.Set("X-Size", fmt.Sprint(len(r.Header.Get("X-Huge"))))
					h.Set("X-Huge", strings.Repeat("b", 200<<10))
				}
			})

			t.Run("body and trailers", func(t *testing.T) {
				r := newRequest(t, "POST", w.url+"/echo", io.MultiReader(strings.NewReader(strings.Repeat("x", 100<<10))))
				r.Trailer = http.Header{"X-Sum": {"7"}}
				res := w.do(t, r)
				if _, ok := res.Trailer["X-Announced"]; !ok {
					t.Errorf("announced: %v", res.Trailer)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || len(body) != 100<<10 || res.StatusCode != 203 {
					t.Errorf("got %d, %d bytes, %v", res.StatusCode, len(body), err)
				}
				if res.Trailer.Get("X-Announced") != "102400 <nil>" || res.Trailer.Get("X-Unannounced") != "7" {
					t.Errorf("trailers %v", res.Trailer)
				}
				if !slices.Equal(res.Header["X-Multi"], []string{"z", "a", "z"}) || len(res.Header["Date"]) != 1 ||
					res.Header.Get("Date") != "Mon, 01 Jan 2024 00:00:00 GMT" || res.Header.Get("Server") != "target" {
					t.Errorf("got %v", res.Header)
				}
			})
			t.Run("trailers without a body", func(t *testing.T) {
				r := newRequest(t, "POST", w.url+"/empty", io.MultiReader())
				r.Trailer = http.Header{"X-Sum": {"2"}}
				res := w.do(t, r)
				body, err := io.ReadAll(res.Body)
				if err != nil || len(body) > 0 || res.Trailer.Get("X-Announced") != "12" {
					t.Errorf("got %q, %v, %v", body, err, res.Trailer)
				}
				res = w.do(t, newRequest(t, "GET", w.url+"/late", nil))
				io.Copy(io.Discard, res.Body)
				if res.Trailer.Get("X-Unannounced") != "1" {
					t.Errorf("got %v", res.Trailer)
				}
			})
			t.Run("no body", func(t *testing.T) {
				for _, method := range []string{"GET", "POST", "DELETE"} {
					res := w.do(t, newRequest(t, method, w.url+"/empty", nil))
					if got := res.Header.Get("X-Seen"); got != "0" {
						t.Errorf("%s: the target saw a length of %s", method, got)
					}
				}
			})
			t.Run("lengths", func(t *testing.T) {
				for _, tt := range []struct {
					method, query string
					status        int
					length        string
				}{
					{"GET", "", 200, "5"}, {"HEAD", "", 200, "5"}, {"HEAD", "304", 304, ""}, {"GET", "204", 204, ""},
				} {
					res := w.do(t, newRequest(t, tt.method, w.url+"/length?"+tt.query, nil))
					body, err := io.ReadAll(res.Body)
					if res.StatusCode != tt.status || tt.status != 304 && res.Header.Get("Content-Length") != tt.length || // net/http drops a 304's
						res.Header.Get("Etag") != `"e"` || err != nil || (string(body) == "12345") != (tt.method == "GET" && tt.status == 200) {
						t.Errorf("%s ?%s: %d, %v, %q, %v", tt.method, tt.query, res.StatusCode, res.Header, body, err)
					}
				}
			})
			t.Run("no type is guessed", func(t *testing.T) {
				res := w.do(t, newRequest(t, "GET", w.url+"/typeless", nil))
				if got, ok := res.Header["Content-Type"]; ok {
					t.Errorf("got %q", got)
				}
			})
			t.Run("huge fields", func(t *testing.T) {
				r := newRequest(t, "GET", w.url+"/huge", nil)
				r.Header.Set("X-Huge", strings.Repeat("a", 200<<10))
				res := w.do(t, r)
				if res.Header.Get("X-Size") != "204800" || len(res.Header.Get("X-Huge")) != 200<<10 {
					t.Errorf("the target saw %s, the client %d", res.Header.Get("X-Size"), len(res.Header.Get("X-Huge")))
				}
			})
			for _, path := range []string{"/abort", "/short"} {
				t.Run("the target stops in mid-body"+path, func(t *testing.T) {
					res := w.do(t, newRequest(t, "GET", w.url+path, nil))
					body, err := io.ReadAll(res.Body)
					if err == nil || string(body) != "half" {
						t.Errorf("got %q, %v; want an abort", body, err)
					}
					if line := w.journal.of(t, path); line["outcome"] != "aborted" {
						t.Errorf("logged %v", line)
					}
				})
			}
			t.Run("the client leaves", func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				w.do(t, newRequest(t, "GET", w.url+"/wait", nil).WithContext(ctx))
				cancel()
				select {
				case <-gone:
				case <-time.After(patience):
					t.Fatal("the target was not told")
				}
				if line := w.journal.of(t, "/wait"); line["outcome"] != "client_canceled" {
					t.Errorf("logged %v", line)
				}
			})
		})
	}
}

// TestForwardHTTP10: a client of HTTP/1.0 gets neither chunks nor 1xx, and upgrades nothing.
func TestForwardHTTP10(t *testing.T) {
	w := newWay(t, http1, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			t.Error("an upgrade from HTTP/1.0 came through")
		}
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-T")
		io.WriteString(w, "one")
		w.(http.Flusher).Flush()
		io.WriteString(w, "two")
		w.Header().Set("X-T", "1")
	})
	all, err := io.ReadAll(raw(t, w.server, "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"))
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	if err != nil || body != "onetwo" || !strings.HasPrefix(head, "HTTP/1.0 200 OK\r\n") && !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") ||
		strings.Contains(head, "chunked") || strings.Contains(head, "Trailer") {
		t.Errorf("got %q, %v", all, err)
	}
	// Without a Host there is none to tell.
	conn := raw(t, w.server, "GET / HTTP/1.0\r\nHost:\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 200 {
		t.Errorf("got %v, %v", res, err)
	}
}

// TestForwardLengthAndTrailers: HTTP/2 can announce both, HTTP/1.1 cannot; the trailers are what counts.
func TestForwardLengthAndTrailers(t *testing.T) {
	w := newWay(t, http1, h2c, nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Length", "5")
		w.Header().Set("Trailer", "X-Sum, Authorization, Set-Cookie")
		w.Write(body)
		for _, name := range []string{"X-Sum", "Authorization", "Set-Cookie"} {
			w.Header().Set(name, "1"+r.Trailer.Get(name))
		}
	})
	r := newRequest(t, "POST", w.url, io.MultiReader(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-Sum": {"7"}, "Authorization": {"Basic x"}, "X-Forwarded-For": {"6.6.6.6"}, "Cookie": {"a=b"}}
	res := w.do(t, r)
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" || res.ContentLength != -1 {
		t.Errorf("got %q of %d, %v", body, res.ContentLength, err)
	}
	if len(res.Trailer) != 1 || res.Trailer.Get("X-Sum") != "17" {
		t.Errorf("trailers %v", res.Trailer)
	}

	// And the other way.
	w = newWay(t, h2c, http1, nil, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprint(w, string(body), err, r.Trailer)
	})
	r = newRequest(t, "POST", w.url, strings.NewReader("hello"))
	r.Trailer = http.Header{"X-Sum": {"7"}}
	res = w.do(t, r)
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello<nil> map[X-Sum:[7]]" {
		t.Errorf("got %q, %v", body, err)
	}
}

// TestForwardTrailersOfTheClient, raw: announced or not, they go on; none that stands for something else does.
func TestForwardTrailersOfTheClient(t *testing.T) {
	got := make(chan string, 1)
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		head, _ := readHead(br)
		var rest strings.Builder
		for {
			line, err := br.ReadString('\n')
			rest.WriteString(line)
			if err != nil || strings.HasSuffix(rest.String(), "\r\n\r\n") {
				break
			}
		}
		got <- head[strings.LastIndex(head, "\r\nTrailer:")+1:] + rest.String()
		io.WriteString(conn, "HTTP/1.1 204 x\r\n\r\n")
	})
	conn := raw(t, w.server, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Told, X-User-Id, x_user_id\r\n\r\n"+
		"2\r\nhi\r\n0\r\nX-Told: 1\r\nX-Untold: 2\r\nX-User-Id: mallory\r\nx_user_id: mallory\r\nX.User.ID: mallory\r\nX-Forwarded-For: 6.6.6.6\r\n"+
		"Authorization: x\r\nCookie: a=b\r\nHost: evil\r\nContent-Length: 100\r\nConnection: close\r\nIf-Match: x\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 204 {
		t.Fatalf("got %v, %v", res, err)
	}
	if g := <-got; !strings.Contains(g, "\nTrailer: X-Told\r\n") || !strings.HasSuffix(g, "2\r\nhi\r\n0\r\nX-Told: 1\r\nX-Untold: 2\r\n\r\n") {
		t.Errorf("the target got %q", g)
	}
}
