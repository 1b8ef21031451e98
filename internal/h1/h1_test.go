package h1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when a goroutine of this package, or of a connection that it holds, is left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leftBehind(); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

func leftBehind() string {
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	deadline := time.Now().Add(5 * time.Second)
	for {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for stack := range strings.SplitSeq(string(buf), "\n\n") {
			switch {
			case strings.Contains(stack, "h1.leftBehind"), strings.Contains(stack, "testing.(*M)"),
				strings.Contains(stack, "os/signal."), strings.Contains(stack, "runtime.ensureSigM"):
			default:
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return ""
		}
		if time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
		runtime.Gosched()
	}
}

// serve accepts connections and gives each to handle in a goroutine of its own, with its number from 0. All end with the
// test.
func serve(t testing.TB, handle func(n int, c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, handle)
	return l.Addr().String()
}

func serveOn(t testing.TB, l net.Listener, handle func(n int, c net.Conn)) {
	t.Helper()
	conns, done := make(chan net.Conn, 10000), make(chan struct{})
	running := make(chan struct{}, 10000)
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			running <- struct{}{}
			go func() {
				defer func() { <-running }()
				defer c.Close()
				handle(n, c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		close(conns)
		for c := range conns {
			c.Close()
		}
		for range cap(running) {
			running <- struct{}{}
		}
	})
}

// answerAll answers each request on a connection with the same bytes.
func answerAll(answer string) func(int, net.Conn) {
	return func(_ int, c net.Conn) {
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}
}

func newTransport(t testing.TB, opts *Options) *Transport {
	tr := New(opts)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// ask makes a round trip and reads the body.
func ask(t testing.TB, rt http.RoundTripper, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res, string(body)
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"

func TestRoundTrip(t *testing.T) {
	addr := serve(t, answerAll(okAnswer))
	tr := newTransport(t, nil)
	for range 3 {
		if res, body := ask(t, tr, newRequest(t, "GET", "http://"+addr+"/", nil)); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
	for range 3 {
		if res, body := ask(t, tr, newRequest(t, "POST", "http://"+addr+"/", strings.NewReader("hello"))); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
	for range 3 {
		big := io.LimitReader(zeros{}, 1<<20)
		if res, body := ask(t, tr, newRequest(t, "POST", "http://"+addr+"/", big)); res.StatusCode != 200 || body != "ok" {
			t.Fatal(res, body)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
