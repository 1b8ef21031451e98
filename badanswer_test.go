package gateway_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// badTarget is a target that breaks the rules, behind a gateway of one Proxy. It answers /next/N with "next N" like an
// honest one, also on a connection on which it has just sent something else.
type badTarget struct {
	front *httptest.Server
	early string                                      // sent on each connection before it is asked
	odd   func(path string) (send string, stays bool) // the answer to any other path; unless it stays, the connection closes
	ended chan bool                                   // has one for a connection that the gateway has ended after such an answer
}

// start returns the gateway, over that transport.
func (b *badTarget) start(t testing.TB, transport http.RoundTripper) {
	t.Helper()
	b.ended = make(chan bool, 1)
	up := gateway.NewUpstream("target", gateway.MustTargets(plainTarget(t, b.serve)), &gateway.UpstreamOptions{
		Transport: transport,
		Health:    gateway.HealthOptions{Unhealthy: -1},
	})
	b.front = httptest.NewServer(gateway.Proxy(up, nil))
	t.Cleanup(func() {
		b.front.Close()
		transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	})
}

// serve is what the target does on a connection.
func (b *badTarget) serve(conn net.Conn, br *bufio.Reader) {
	io.WriteString(conn, b.early)
	asked := false
	for {
		head, err := readHead(br)
		if err != nil {
			if asked {
				b.end()
			}
			return
		}
		path := strings.Fields(head)[1]
		if n, ok := strings.CutPrefix(path, "/next/"); ok {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nnext %s", len("next ")+len(n), n)
			continue
		}
		asked = true
		send, stays := b.odd(path)
		if io.WriteString(conn, send); !stays {
			return
		}
	}
}

// end reports the end of a connection, if anybody cares.
func (b *badTarget) end() {
	select {
	case b.ended <- true:
	default:
	}
}

// dial returns a client of the gateway.
func (b *badTarget) dial(t testing.TB) *badClient {
	t.Helper()
	conn, err := net.Dial("tcp", b.front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(deadline())
	return &badClient{conn, bufio.NewReader(conn)}
}

// badClient is a client that forgives nothing in what the gateway sends.
type badClient struct {
	net.Conn
	br *bufio.Reader
}

// ask sends a request without a body and returns the status and the body of the answer, "502" alone for a problem, and
// "cut" after an answer that breaks off.
func (c *badClient) ask(t testing.TB, method, path string) string {
	t.Helper()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", method, path)
	for {
		if method == "HEAD" {
			res, err := http.ReadResponse(c.br, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("the client got %v", err)
			}
			return strconv.Itoa(res.StatusCode)
		}
		m, err := readStrict(c.br, true)
		if err != nil && (m.line == "" || err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF)) {
			t.Fatalf("the client got %+v: %v", m, err)
		}
		status := strings.Fields(m.line)[1]
		switch {
		case status[0] == '1' && err == nil:
			continue
		case m.value("Content-Type") == "application/problem+json":
			return status
		case err != nil:
			return status + " " + m.body + " cut"
		}
		return status + " " + m.body
	}
}

// TestNoRequestGetsAnothersAnswer: a target sends more than the answer that it was asked for, or something that is no
// answer, and stays connected. The client gets the very answer or 502. Whoever asks next gets its own.
func TestNoRequestGetsAnothersAnswer(t *testing.T) {
	log.SetOutput(io.Discard) // net/http logs what comes after an answer
	defer log.SetOutput(os.Stderr)
	const (
		ok     = "HTTP/1.1 200 OK\r\n"
		hi     = ok + "Content-Length: 2\r\n\r\nhi"
		chunks = ok + "Transfer-Encoding: chunked\r\n\r\n"
		evil   = ok + "Content-Length: 4\r\n\r\nevil"
	)
	for _, tt := range []struct {
		name, method string
		early        string
		send         string
		want         string
		// more means that bytes stand behind the answer. net/http closes such a connection, but only once it is idle:
		// a request of that very moment can still get them. So over net/http the next request waits until it is closed.
		more bool
	}{
		{name: "nothing wrong", send: hi, want: "200 hi"},
		{name: "a byte after the answer", send: hi + "x", want: "200 hi", more: true},
		{name: "an empty line after the answer", send: hi + "\r\n", want: "200 hi", more: true},
		{name: "a second answer", send: hi + evil, want: "200 hi", more: true},
		{name: "many answers", send: hi + strings.Repeat(evil, 1000), want: "200 hi", more: true},
		{name: "an interim answer after the answer", send: hi + "HTTP/1.1 100 Continue\r\n\r\n" + evil, want: "200 hi", more: true},
		{name: "408 after the answer", send: hi + "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", want: "200 hi", more: true},
		{name: "a second answer after chunks", send: chunks + "2\r\nhi\r\n0\r\n\r\n" + evil, want: "200 hi", more: true},
		{name: "a second answer after a trailer", send: chunks + "2\r\nhi\r\n0\r\nX-A: b\r\n\r\n" + evil, want: "200 hi", more: true},
		{name: "two last chunks", send: chunks + "2\r\nhi\r\n0\r\n\r\n0\r\n\r\n", want: "200 hi", more: true},
		{name: "a second answer after an empty one", send: ok + "Content-Length: 0\r\n\r\n" + evil, want: "200 ", more: true},
		{name: "204 with a body", send: "HTTP/1.1 204 No Content\r\n\r\n" + evil, want: "204 ", more: true},
		{name: "204 with a body and its length", send: "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil", want: "204 ", more: true},
		{name: "204 with chunks", send: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", want: "204 ", more: true},
		{name: "304 with a body", send: "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", want: "304 ", more: true},
		{name: "304 with chunks", send: "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", want: "304 ", more: true},
		{name: "HEAD with a body", method: "HEAD", send: evil, want: "200", more: true},
		{name: "HEAD with a body that is an answer", method: "HEAD", send: hi[:len(hi)-2] + evil, want: "200", more: true},
		{name: "HEAD with chunks", method: "HEAD", send: chunks + "4\r\nevil\r\n0\r\n\r\n", want: "200", more: true},
		{name: "length and chunks", send: ok + "Content-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", want: "200 hi"},
		{name: "an answer that nobody has asked for", early: hi, send: evil, want: "200 hi"},
		{name: "half an answer that nobody has asked for", early: hi[:20], send: hi[20:], want: "200 hi"},
		{name: "an answer that nobody has asked for, and more", early: hi + evil, send: evil, want: "200 hi"},
		{name: "interim answers without end", send: strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100_000), want: "502"},
		{name: "101 that nobody asked for", send: "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + evil, want: "502"},
		{name: "no colon", send: ok + "Content-Length 2\r\n\r\n" + evil, want: "502"},
		{name: "two lengths", send: ok + "Content-Length: 2\r\nContent-Length: 6\r\n\r\nhi" + evil, want: "502"},
		{name: "10 MB of fields", send: ok + strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 10_000) + "\r\n", want: "502"},
		{name: "wrong end of a chunk", send: chunks + "2\r\nhi\r0\r\n\r\n" + evil, want: "200 hi cut"},
		{name: "extension of 1 MB", send: chunks + "2\r\nhi\r\n2;" + strings.Repeat("a", 1<<20) + "\r\nhi\r\n0\r\n\r\n" + evil, want: "200 hi cut"},
	} {
		for name, transport := range gateway.TransportsUnderTest() {
			t.Run(tt.name+" over "+name, func(t *testing.T) {
				b := &badTarget{early: tt.early, odd: func(string) (string, bool) { return tt.send, true }}
				b.start(t, transport)
				client := b.dial(t)
				defer client.Close()
				method := tt.method
				if method == "" {
					method = "GET"
				}
				if got := client.ask(t, method, "/odd"); got != tt.want && !(tt.early != "" && name == "net/http" && got == "502") {
					t.Errorf("the client got %q, want %q", got, tt.want)
				}
				if strings.HasSuffix(tt.want, "cut") {
					client = b.dial(t)
					defer client.Close()
				}
				if tt.early != "" {
					return // when it arrived decides what the connection is good for, see internal/h1
				}
				if tt.more && name == "net/http" {
					select {
					case <-b.ended:
					case <-time.After(patience):
						t.Fatal("the connection with more than the answer is still open")
					}
				}
				for i := range 5 {
					path := fmt.Sprint("next/", i)
					if got, want := client.ask(t, "GET", "/"+path), fmt.Sprint("200 next ", i); got != want {
						t.Errorf("the next client got %q, want %q", got, want)
					}
				}
			})
		}
	}
}

// TestAnswersCutAtEveryByte: a target that breaks off, wherever it does, never makes a client believe that it has the
// whole answer.
func TestAnswersCutAtEveryByte(t *testing.T) {
	answers := []struct{ send, body string }{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nX-A: b\r\n\r\n", "hello"},
		{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", ""},
	}
	for name, transport := range gateway.TransportsUnderTest() {
		t.Run(name, func(t *testing.T) {
			b := &badTarget{odd: func(path string) (string, bool) {
				var answer, cut int
				fmt.Sscanf(path, "/%d/%d", &answer, &cut)
				return answers[answer].send[:cut], false
			}}
			b.start(t, transport)
			for i, answer := range answers {
				for cut := range len(answer.send) + 1 {
					client := b.dial(t)
					got := client.ask(t, "GET", fmt.Sprintf("/%d/%d", i, cut))
					client.Close()
					status, body, _ := strings.Cut(got, " ")
					part, isCut := strings.CutSuffix(body, " cut")
					switch {
					case cut == len(answer.send):
						if isCut || body != answer.body {
							t.Errorf("the whole of %q: %q", answer.send, got)
						}
					case isCut && status == "200" && strings.HasPrefix(answer.body, part), got == "502":
					default:
						t.Errorf("after %q: %q", answer.send[:cut], got)
					}
				}
			}
		})
	}
}
