package gateway_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// strictMessage is an HTTP/1.1 message as a reader has it that forgives nothing.
type strictMessage struct {
	line   string
	fields []string // as they came
	body   string
}

// value returns the value of the one field of that name.
func (m strictMessage) value(name string) string {
	for _, f := range m.fields {
		if n, v, _ := strings.Cut(f, ": "); strings.EqualFold(n, name) {
			return v
		}
	}
	return ""
}

// readStrict reads a message and refuses all in which two readers could differ: line ends other than CR LF,
// blanks around names and values, folded lines, control characters, two Hosts, two framings, chunk extensions.
func readStrict(br *bufio.Reader, isResponse bool) (m strictMessage, err error) {
	line := func() (string, error) {
		s, err := br.ReadString('\n')
		if err != nil {
			return s, err
		}
		s, ok := strings.CutSuffix(s, "\r\n")
		if !ok || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
			return s, fmt.Errorf("malformed line %q", s)
		}
		return s, nil
	}
	fields := func() (all []string, err error) {
		for {
			s, err := line()
			if err != nil || s == "" {
				return all, err
			}
			name, value, ok := strings.Cut(s, ":")
			if ok && value != "" {
				value, ok = strings.CutPrefix(value, " ")
			}
			if !ok || name == "" || strings.ContainsAny(name, " \t\"(),/:;<=>?@[\\]{}") || strings.Trim(value, " \t") != value {
				return all, fmt.Errorf("malformed field %q", s)
			}
			all = append(all, s)
		}
	}
	if m.line, err = line(); err != nil {
		return m, err
	}
	parts := strings.SplitN(m.line, " ", 3)
	if len(parts) != 3 || isResponse && (parts[0] != "HTTP/1.1" && parts[0] != "HTTP/1.0" || len(parts[1]) != 3) ||
		!isResponse && (parts[2] != "HTTP/1.1" || !strings.HasPrefix(parts[1], "/")) {
		return m, fmt.Errorf("malformed first line %q", m.line)
	}
	if m.fields, err = fields(); err != nil {
		return m, err
	}
	counts := map[string]int{}
	for _, f := range m.fields {
		name, _, _ := strings.Cut(f, ":")
		counts[strings.ToLower(name)]++
	}
	if counts["host"] != 1 && !isResponse || counts["content-length"]+counts["transfer-encoding"] > 1 {
		return m, fmt.Errorf("Host, Content-Length or Transfer-Encoding: %q", m.fields)
	}
	switch {
	case isResponse && (parts[1] == "204" || parts[1] == "304" || parts[1][0] == '1'):
	case counts["content-length"] == 1:
		n, err := strconv.ParseUint(m.value("Content-Length"), 10, 31)
		if err != nil || m.value("Content-Length") != fmt.Sprint(n) {
			return m, fmt.Errorf("Content-Length %q", m.value("Content-Length"))
		}
		body := make([]byte, n)
		got, err := io.ReadFull(br, body)
		m.body = string(body[:got])
		return m, err
	case counts["transfer-encoding"] == 1:
		if te := m.value("Transfer-Encoding"); te != "chunked" {
			return m, fmt.Errorf("Transfer-Encoding %q", te)
		}
		for {
			size, err := line()
			if err != nil {
				return m, err
			}
			n, err := strconv.ParseUint(size, 16, 31)
			if err != nil || size != fmt.Sprintf("%x", n) {
				return m, fmt.Errorf("chunk size %q", size)
			}
			if n == 0 {
				trailers, err := fields()
				m.fields = append(m.fields, trailers...)
				return m, err
			}
			chunk := make([]byte, n+2)
			got, err := io.ReadFull(br, chunk)
			m.body += strings.TrimSuffix(string(chunk[:got]), "\r\n")
			if err != nil {
				return m, err
			}
			if !strings.HasSuffix(string(chunk), "\r\n") {
				return m, fmt.Errorf("chunk ends with %q", chunk[n:])
			}
		}
	case isResponse:
		rest, err := io.ReadAll(br)
		m.body = string(rest)
		return m, err
	}
	return m, nil
}

// badRequest is what a hostile client sends, and what comes of it.
type badRequest struct {
	name string
	send string // and the sentinel after it, unless it says otherwise
	// want are the statuses that the client gets, in turn; a last 200 is the sentinel's.
	want string
	// seen is each request that the target gets, as its line and its body; the sentinel left out.
	seen string
	cut  bool // no sentinel: the client closes its half instead
}

const sentinel = "GET /sentinel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// post returns a POST with these fields, each line ended, and all that follows.
func post(rest string) string { return "POST /p HTTP/1.1\r\nHost: x\r\n" + rest }

func withField(line string) string { return "GET /p HTTP/1.1\r\nHost: x\r\n" + line + "\r\n\r\n" }

func chunked(body string) string { return post("Transfer-Encoding: chunked\r\n\r\n" + body) }

const (
	plain = "GET /p HTTP/1.1:"
	hi    = "POST /p HTTP/1.1:hi"
)

func badRequests() []badRequest {
	all := []badRequest{
		{name: "nothing wrong", send: "GET /p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain},
		{name: "nothing wrong with a body", send: post("Content-Length: 2\r\n\r\nhi"), want: "200 200", seen: hi},
		{name: "nothing wrong with chunks", send: chunked("1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"), want: "200 200", seen: hi},

		// How long the body is.
		{name: "length twice", send: post("Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"), want: "200 200", seen: hi},
		{name: "two lengths", send: post("Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi"), want: "400"},
		{name: "two lengths, the other way", send: post("Content-Length: 0\r\ncontent-length: 2\r\n\r\nhi"), want: "400"},
		{name: "length as a list", send: post("Content-Length: 2, 2\r\n\r\nhi"), want: "400"},
		{name: "lengths as a list", send: post("Content-Length: 2,3\r\n\r\nhi"), want: "400"},
		{name: "length with a zero", send: post("Content-Length: 02\r\n\r\nhi"), want: "200 200", seen: hi},
		{name: "length and length by Connection", send: post("Connection: Content-Length\r\nContent-Length: 2\r\n\r\nhi"), want: "200 200", seen: hi},
		{name: "chunks by Connection", send: post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "Host by Connection", send: "GET /p HTTP/1.1\r\nHost: x\r\nConnection: Host\r\n\r\n", want: "200 200", seen: plain},
		{name: "chunks and length", send: post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "chunks and length, the other way", send: post("Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "chunks in other case", send: post("transfer-encoding: ChUnKeD\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "chunks in HTTP/1.0", send: "POST /p HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi", want: "200", seen: hi},
		{name: "chunks alone in HTTP/1.0", send: "POST /p HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", want: "200", seen: "POST /p HTTP/1.1:"},

		// Chunks.
		{name: "size with zeros", send: chunked("0002\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "size in capitals", send: chunked("A\r\n0123456789\r\n0\r\n\r\n"), want: "200 200", seen: "POST /p HTTP/1.1:0123456789"},
		{name: "extension", send: chunked("2;a=b\r\nhi\r\n0;c\r\n\r\n"), want: "200 200", seen: hi},
		{name: "quoted extension", send: chunked("2;a=\"b;c\"\r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "blank after the size", send: chunked("2 \r\nhi\r\n0\r\n\r\n"), want: "200 200", seen: hi},
		{name: "end that is cut", send: chunked("2\r\nhi\r\n0\r\n"), want: "400", cut: true},
		{name: "chunk that is cut", send: chunked("5\r\nhi"), want: "400", cut: true},
		{name: "size that is cut", send: chunked("2\r\nhi\r\n"), want: "400", cut: true},
		{name: "body that is cut", send: post("Content-Length: 10\r\n\r\nhi"), want: "400", cut: true},

		// Lines.
		{name: "folded value", send: withField("X-A: b\r\n c\r\n\td"), want: "200 200", seen: plain + "[X-A: b c d]"},
		{name: "folded length", send: post("Content-Length:\r\n 2\r\n\r\nhi"), want: "200 200", seen: hi},
		{name: "folded first line", send: "GET /p HTTP/1.1\r\n Host: x\r\n\r\n", want: "400"},
		{name: "bare LF", send: "GET /p HTTP/1.1\nHost: x\nX-A: b\n\n", want: "200 200", seen: plain + "[X-A: b]"},
		{name: "bare LF after one", send: "GET /p HTTP/1.1\r\nHost: x\r\nX-A: b\nX-C: d\r\n\r\n", want: "200 200", seen: plain + "[X-A: b]"},
		{name: "blanks around a value", send: withField("X-A:\t  b \t "), want: "200 200", seen: plain + "[X-A: b]"},
		{name: "empty value", send: withField("X-A:"), want: "200 200", seen: plain + "[X-A:]"},
		{name: "no ASCII in a value", send: withField("X-A: \xc3\xa4\xff"), want: "200 200", seen: plain + "[X-A: \xc3\xa4\xff]"},

		// Targets.
		{name: "absolute", send: "GET http://x/p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain},
		{name: "absolute, another host", send: "GET http://y.example/p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain + "[X-Forwarded-Host: y.example]"},
		{name: "absolute, of another scheme", send: "GET ftp://y.example/p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain + "[X-Forwarded-Host: y.example]"},
		{name: "absolute, with a user", send: "GET http://u:p@y.example/p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain + "[X-Forwarded-Host: y.example]"},
		{name: "absolute, without a path", send: "GET http://y.example HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "GET / HTTP/1.1:"},
		{name: "absolute, without a host", send: "GET http:///p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: plain},
		{name: "two slashes", send: "GET //y.example/p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "GET //y.example/p HTTP/1.1:"},
		{name: "a word", send: "GET p HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},
		{name: "opaque", send: "GET a:p HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "opaque with slashes within", send: "GET http:p//y HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "asterisk", send: "GET * HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "OPTIONS asterisk", send: "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200"}, // net/http's own answer
		{name: "CONNECT", send: "CONNECT y.example:443 HTTP/1.1\r\nHost: y.example:443\r\n\r\n", want: "501 200"},
		{name: "CONNECT to a path", send: "CONNECT /p HTTP/1.1\r\nHost: x\r\n\r\n", want: "501 200"},
		{name: "raw bytes", send: "GET /\xff\xc3\xa4|<>\"?a=\xff|# HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "GET /%FF%C3%A4%7C%3C%3E%22?a=%FF%7C%23 HTTP/1.1:"},
		{name: "fragment", send: "GET /p#q HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "GET /p%23q HTTP/1.1:"},
		{name: "broken escape", send: "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},
		{name: "NUL, escaped", send: "GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "CR LF, escaped", send: "GET /%0d%0aX-A:%20b HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "GET /%0d%0aX-A:%20b HTTP/1.1:"},
		{name: "dot segments", send: "GET /a/../p HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "dot segments in an absolute one", send: "GET http://x/a/..%2fp HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 200"},
		{name: "very long", send: "GET /" + strings.Repeat("a", 2<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", want: "431"},
		{name: "endless field", send: withField("X-A: " + strings.Repeat("a", 2<<20)), want: "431"},
		{name: "endless fields", send: withField(strings.Repeat("X-A: b\r\n", 200<<10) + "X-A: c"), want: "431"},

		// First lines.
		{name: "empty lines before", send: "\r\n\r\nGET /p HTTP/1.1\r\nHost: x\r\n\r\n", want: "400"},
		{name: "method in small letters", send: "get /p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "get /p HTTP/1.1:"},
		{name: "unknown method", send: "M-SEARCH /p HTTP/1.1\r\nHost: x\r\n\r\n", want: "200 200", seen: "M-SEARCH /p HTTP/1.1:"},
		{name: "HTTP/1.2", send: "GET /p HTTP/1.2\r\nHost: x\r\n\r\n", want: "200 200", seen: plain},
		{name: "HTTP/2.0", send: "GET /p HTTP/2.0\r\nHost: x\r\n\r\n", want: "505"},
		{name: "HTTP/0.9", send: "GET /p HTTP/0.9\r\nHost: x\r\n\r\n", want: "505"},
		{name: "the preface of HTTP/2", send: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: "400"},

		// Hosts.
		{name: "no Host", send: "GET /p HTTP/1.1\r\nX-A: b\r\n\r\n", want: "400"},
		{name: "empty Host", send: "GET /p HTTP/1.1\r\nHost:\r\n\r\n", want: "200 200", seen: plain},
		{name: "Host twice", send: "GET /p HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", want: "400"},
		{name: "two Hosts", send: "GET /p HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", want: "400"},
		{name: "Host with two ports", send: "GET /p HTTP/1.1\r\nHost: admin.example:80:80\r\n\r\n", want: "400 200"}, // nginx reads admin.example
		{name: "Host with a port that is none", send: "GET /p HTTP/1.1\r\nHost: admin.example:[\r\n\r\n", want: "400 200"},
		{name: "name in brackets", send: "GET /p HTTP/1.1\r\nHost: [admin.example]\r\n\r\n", want: "400 200"},
		{name: "Host with two dots at its end", send: "GET /p HTTP/1.1\r\nHost: admin.example..\r\n\r\n", want: "400 200"},
		{name: "Hosts as a list", send: "GET /p HTTP/1.1\r\nHost: x,y\r\n\r\n", want: "400 200"},
		{name: "other expectations", send: withField("Expect: wonders"), want: "417"},
		{name: "trailer with a blank in its name", send: chunked("2\r\nhi\r\n0\r\nX-A : b\r\nX-User-ID : mallory\r\n\r\n"), want: "200 200", seen: hi},
		{name: "length as a trailer", send: post("Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"), want: "400"},
		{name: "length as an unannounced trailer", send: chunked("2\r\nhi\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: y\r\n\r\n"), want: "200 200", seen: hi},
	}
	refused := func(status, group string, sends map[string]string) {
		for name, send := range sends {
			all = append(all, badRequest{name: group + name, send: send, want: status})
		}
	}
	lengths := map[string]string{}
	for _, value := range []string{"-2", "+2", "0x2", "2a", "2.0", "1e1", "", " ", "2 2", "\"2\"", "18446744073709551618", "9223372036854775808", "\xd9\xa2", "2;", "_2", "1_0"} {
		lengths[value] = post("Content-Length: " + value + "\r\n\r\nhi")
	}
	refused("400", "length ", lengths)
	encodings := map[string]string{}
	for _, value := range []string{"chunked, chunked", "identity", "chunked, identity", "identity, chunked", "x, chunked", "chunked, x", "gzip, chunked", "xchunked", "chunked;q=1", "\"chunked\"", "chunke", "chunked,", ",chunked", ""} {
		encodings[value] = post("Transfer-Encoding: " + value + "\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	}
	encodings["twice"] = post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	encodings["twice, once identity"] = post("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	refused("501", "encoding ", encodings)
	refused("400", "encoding with ", map[string]string{
		"a vertical tab": post("Transfer-Encoding: \vchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
		"a NUL":          post("Transfer-Encoding: chunked\x00\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
		"a CR":           post("Transfer-Encoding: chun\rked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
		"a blank":        post("Transfer-Encoding : chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
	})
	chunks := map[string]string{}
	for _, size := range []string{"0x2", "+2", "-2", " 2", "\t2", "", "g", "2g", "fffffffffffffffff", "ffffffffffffffff2", "2,", "2\x00", "2\v", "\xd9\xa2"} {
		chunks[size] = chunked(size + "\r\nhi\r\n0\r\n\r\n")
	}
	chunks["too small"] = chunked("1\r\nhi\r\n0\r\n\r\n")
	chunks["too large"] = chunked("3\r\nhi\r\n0\r\n\r\n")
	chunks["with a CR"] = chunked("2\r\rhi\r\n0\r\n\r\n")
	chunks["with an endless extension"] = chunked("2;" + strings.Repeat("a", 1<<20) + "\r\nhi\r\n0\r\n\r\n")
	chunks["and a malformed trailer"] = chunked("2\r\nhi\r\n0\r\nno colon\r\n\r\n")
	chunks["and endless trailers"] = chunked("2\r\nhi\r\n0\r\n" + strings.Repeat("X-A: b\r\n", 10<<10) + "\r\n")
	refused("400", "chunk size ", chunks)
	fields := map[string]string{}
	for _, line := range []string{
		"X-A : b", "X-A\t: b", "Content-Length : 2", " X-A: b\r\nX-C : d", ": b", "X-A", "X A: b", "X(A): b", "X\x00A: b", "X\xc3\xa4: b", "X-A\r: b", "\"X-A\": b",
		"X-A: b\x00c", "X-A: \x00", "X-A: b\rc", "X-A: b\r", "X-A: b\r\rc", "X-A: b\x7f", "X-A: \x01", "X-A: b\vc", "X-A: b\fc", "X-A: b\r\n\x00", "X-A: b\rX-User-ID: mallory",
	} {
		fields[strconv.Quote(line)] = withField(line)
	}
	refused("400", "field ", fields)
	lines := map[string]string{}
	for _, line := range []string{
		"GET  /p HTTP/1.1", "GET /p  HTTP/1.1", "GET\t/p\tHTTP/1.1", " GET /p HTTP/1.1", "GET /p HTTP/1.1 ", "GET /p", "GET", "GET /p HTTP/1", "GET /p HTTP/1.1.1", "GET /p HTTP/01.1",
		"GET /p http/1.1", "GET /p HTTP/1.x", "GET /p HTTP/-1.1", "GET /a b HTTP/1.1", "GET /p\x00 HTTP/1.1", "GET /\x01 HTTP/1.1", "GET /p\r HTTP/1.1", "G\x00T /p HTTP/1.1", "G(T /p HTTP/1.1", "/p HTTP/1.1",
		"GET http://[::1/p HTTP/1.1", "GET http://y example/p HTTP/1.1", "GET /p?a b HTTP/1.1", "GET /p?\x00 HTTP/1.1", "{}",
	} {
		lines[strconv.Quote(line)] = line + "\r\nHost: x\r\n\r\n"
	}
	refused("400", "line ", lines)
	hosts := map[string]string{}
	for _, host := range []string{"a b", "a/b", "a\\b", "a@b", "a\"b", "a<b", "a?b", "a#b", "\xc3\xa4", "a\x00b", "a|b", "a{b}", "a^b", "a`b"} {
		hosts[strconv.Quote(host)] = "GET /p HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	}
	refused("400", "Host ", hosts)
	slices.SortStableFunc(all, func(a, b badRequest) int { return strings.Compare(a.name, b.name) })
	return all
}

// TestBadRequests sends what no honest client does. It is refused, or goes on in a form that has one reading;
// the sentinel behind it, if it is answered, is a request of its own to the gateway and to the target.
func TestBadRequests(t *testing.T) {
	seen := make(chan strictMessage, 10)
	w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
		for {
			m, err := readStrict(br, false)
			if err != nil {
				if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "closed") {
					t.Errorf("the target got %+v: %v", m, err)
				}
				return
			}
			seen <- m
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	for _, tt := range badRequests() {
		t.Run(tt.name, func(t *testing.T) {
			if got := sendBad(t, w.server.Listener.Addr().String(), tt); got != tt.want {
				t.Errorf("the client got %s, want %s", got, tt.want)
			}
			var got []string
			for len(seen) > 0 {
				m := <-seen
				if strings.HasPrefix(m.line, "GET /sentinel ") {
					continue
				}
				line := m.line + ":" + m.body
				if _, want, ok := strings.Cut(tt.seen, "["); ok {
					want = strings.TrimSuffix(want, "]")
					if slices.Contains(m.fields, want) || slices.Contains(m.fields, strings.TrimSuffix(want, ":")+": ") {
						line += "[" + want + "]"
					} else {
						line += fmt.Sprintf("%q", m.fields)
					}
				}
				if h := m.value("Host"); !strings.HasPrefix(h, "127.0.0.1:") {
					t.Errorf("the target got Host %q", h)
				}
				got = append(got, line)
			}
			if got := strings.Join(got, " "); got != tt.seen {
				t.Errorf("the target got %q, want %q", got, tt.seen)
			}
			for len(w.journal) > 0 {
				if line := <-w.journal; tt.want[0] != '2' && line["path"] != "/sentinel" && line["outcome"] != "rejected" && line["outcome"] != "client_canceled" && line["status"] != "200" {
					t.Errorf("logged %v", line)
				}
			}
		})
	}
}

// sendBad sends a bad request and the sentinel and returns the statuses of the answers.
func sendBad(t *testing.T, addr string, tt badRequest) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(deadline())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		// The gateway may refuse before it has read all.
		if tt.cut {
			io.WriteString(conn, tt.send)
			conn.(*net.TCPConn).CloseWrite()
		} else {
			io.WriteString(conn, tt.send+sentinel)
		}
	})
	var got []string
	br := bufio.NewReader(conn)
	for {
		m, err := readStrict(br, true)
		if err != nil {
			if err != io.EOF && !strings.Contains(err.Error(), "reset") {
				t.Errorf("the client got %+v: %v", m, err)
			}
			return strings.Join(got, " ")
		}
		if len(got) == 0 && strings.Contains(m.body, "smuggled") {
			t.Errorf("the client got %+v", m)
		}
		got = append(got, strings.Fields(m.line)[1])
	}
}

// badAnswer is what a broken or hostile target sends, and what the client gets.
type badAnswer struct {
	name string
	send string // after the request's head; then the connection closes, unless more is asked by it
	want string // the status and the body; "cut" after it when the answer breaks off
}

func badAnswers() []badAnswer {
	const ok = "HTTP/1.1 200 OK\r\n"
	all := []badAnswer{
		{"nothing wrong", ok + "Content-Length: 2\r\n\r\nhi", "200 hi"},
		{"nothing wrong with chunks", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "200 hi"},
		{"until it closes", ok + "\r\nhi", "200 hi"},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nhi", "200 hi"},

		{"length twice", ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"length with a zero", ok + "Content-Length: 02\r\n\r\nhi", "200 hi"},
		{"chunks and length", ok + "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "200 hi"},
		{"chunks in other case", ok + "transfer-encoding: CHUNKED\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "200 hi"},
		{"chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"too short", ok + "Content-Length: 5\r\n\r\nhi", "200 hi cut"},
		{"too long", ok + "Content-Length: 2\r\n\r\nhi, and more", "200 hi"},
		{"another answer after it", ok + "Content-Length: 2\r\n\r\nhi" + ok + "Content-Length: 4\r\n\r\nevil", "200 hi"},
		{"a body where none may be", "HTTP/1.1 204 x\r\nContent-Length: 4\r\n\r\nevil", "204 "},
		{"a body where none may be, in chunks", "HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n", "304 "},
		{"extension", ok + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", "200 hi"},
		{"chunk that is cut", ok + "Transfer-Encoding: chunked\r\n\r\n5\r\nhi", "200 hi cut"},
		{"end that is cut", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "200 hi cut"},
		{"malformed trailer", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nno colon\r\n\r\n", "200 hi cut"},
		{"endless trailers", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n" + strings.Repeat("X-A: b\r\n", 10<<10) + "\r\n", "200 hi cut"},
		{"endless extension", ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n2;" + strings.Repeat("a", 1<<20), "200 hi cut"},

		{"folded value", ok + "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\nhi", "200 hi[X-A: b c]"},
		{"bare LF", "HTTP/1.1 200 OK\nX-A: b\nContent-Length: 2\n\nhi", "200 hi[X-A: b]"},
		{"blank before a colon", ok + "X-A : b\r\nContent-Length: 2\r\n\r\nhi", "200 hi"}, // the field is dropped
		{"blank before the length's colon", ok + "Content-Length : 100\r\n\r\nhi", "200 hi"},
		{"blank in a name", ok + "X A: b\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"two blanks", "HTTP/1.1  200 x\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"control characters for a reason", "HTTP/1.1 200 O\x00K\x01\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
		{"unknown status", "HTTP/1.1 799 x\r\nContent-Length: 2\r\n\r\nhi", "799 hi"},
		{"status 999", "HTTP/1.1 999 x\r\nContent-Length: 2\r\n\r\nhi", "999 hi"},
		{"informational, then good", "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 102 x\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi", "102 200 hi"},
		{"informational alone", "HTTP/1.1 102 x\r\n\r\n", "102 502"},
		{"101 that nobody asked for", "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "502"},
		{"what is for one hop", ok + "Connection: X-A\r\nX-A: b\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Encoding\r\nKeep-Alive: x\r\n\r\n2\r\nhi\r\n0\r\nContent-Encoding: br\r\nX-Late: 1\r\n\r\n", "200 hi"},
	}
	refused := func(group string, sends ...string) {
		for _, send := range sends {
			name := send
			if len(name) > 50 {
				name = name[:50]
			}
			all = append(all, badAnswer{group + strconv.Quote(name), send, "502"})
		}
	}
	for _, value := range []string{"2, 2", "2,3", "-2", "+2", "0x2", "2a", "2.0", "\"2\"", "18446744073709551618", "9223372036854775808", "2 2", "\xd9\xa2", "", "3\r\nContent-Length: 2"} {
		refused("length ", ok+"Content-Length: "+value+"\r\n\r\nhi")
	}
	for _, value := range []string{"chunked, chunked", "identity", "gzip, chunked", "chunked, gzip", "xchunked", "chunked;q=1", "chunked,", "chunked\r\nTransfer-Encoding: chunked", "", "\"chunked\"", "\vchunked"} {
		refused("encoding ", ok+"Transfer-Encoding: "+value+"\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
	}
	for _, line := range []string{": b", "X-A", "X(A): b", "X\x00A: b", "X\xc3\xa4: b", "X-A: b\x00", "X-A: b\rc", "X-A: b\rX-User-ID: mallory", "X-A: b\x7f", "X-A: \x01", "X-A: b\vc", "X-A\r: b"} {
		refused("field ", ok+line+"\r\nContent-Length: 2\r\n\r\nhi")
	}
	refused("", ok+" X-A: b\r\nContent-Length: 2\r\n\r\nhi")
	for _, line := range []string{
		"", "I am no HTTP server", "ICY 200 OK", "HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 abc x", "HTTP/1.1 20 x", "HTTP/1.1 0200 x", "HTTP/1.1 -20 x", "HTTP/1.1 +20 x", "HTTP/1.1 1000 x", "HTTP/1.1 000 x",
		"HTTP/1.1 099 x", "HTTP/1.1 2x0 x", "HTTP/1.1\t200\tx", "http/1.1 200 x", "HTTP/x.1 200 x", "HTTP/1.1.1 200 x", " HTTP/1.1 200 x", "HTTP /1.1 200 x", "HTTP/1.1 20\x00 x", "\x16\x03\x01\x00\x01",
		"HTTP/1.1 200OK", "HTTP/1.1 200\tOK", "HTTP/1.1 200,x", "HTTP/1.1 2 00", "HTTP/1.1 1e2 x", "HTTP/1.1 0x8 x", "HTTP/1.1 \xef\xbc\x9200 x", "HTTP/1.1200 x",
		"HTTP/11 200 x", "HTTP/1,1 200 x", "HTTP/2 200 x", "\xef\xbb\xbfHTTP/1.1 200 x", "\x00HTTP/1.1 200 x", "XHTTP/1.1 200 x", "200 OK", "HTTP/1.1 200 x\r\nHTTP/1.1 200 x",
	} {
		refused("line ", line+"\r\nContent-Length: 2\r\n\r\nhi")
	}
	refused("cut after ", "", "H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nX-A: b", "HTTP/1.1 200 OK\r\nX-A: b\r\n")
	for _, size := range []string{"0x2", "+2", "-2", " 2", "\t2", "2 2", "", "g", "2g", "fffffffffffffffff", "2,", "2\x00", "2\r", "\xd9\xa2"} {
		all = append(all, badAnswer{"chunk size " + strconv.Quote(size), ok + "Transfer-Encoding: chunked\r\n\r\n" + size + "\r\nhi\r\n0\r\n\r\n", "200  cut"})
	}
	for _, end := range []string{"", "\n", "\r", "\n\r", "\r\r\n", "xx", " \r\n", "\x00\x00", ";a\r\n"} {
		all = append(all, badAnswer{"chunk end " + strconv.Quote(end), ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi" + end + "0\r\n\r\n", "200 hi cut"})
	}
	return all
}

// TestBadAnswers has targets that break the rules. The client gets 502, or a well-formed answer, or sees that
// it breaks off.
func TestBadAnswers(t *testing.T) {
	log.SetOutput(io.Discard) // net/http logs what comes after an answer
	defer log.SetOutput(os.Stderr)
	for _, tt := range badAnswers() {
		t.Run(tt.name, func(t *testing.T) {
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				head, err := readHead(br)
				if err != nil {
					return
				}
				if strings.HasPrefix(head, "GET /next ") {
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnext")
					return
				}
				io.WriteString(conn, tt.send)
			})
			conn := raw(t, w.server, "GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
			br := bufio.NewReader(conn)
			var got strings.Builder
			var m strictMessage
			for {
				var err error
				if m, err = readStrict(br, true); err != nil {
					if m.line == "" || !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
						t.Fatalf("the client got %+v: %v", m, err)
					}
					m.body += " cut"
				}
				status := strings.Fields(m.line)[1]
				got.WriteString(status)
				if status[0] != '1' {
					break
				}
				got.WriteByte(' ')
			}
			if m.value("Content-Type") != "application/problem+json" {
				got.WriteString(" " + m.body)
			}
			want := tt.want
			if i := strings.IndexByte(want, '['); i >= 0 {
				if !slices.Contains(m.fields, strings.Trim(want[i:], "[]")) {
					t.Errorf("the client got %q", m.fields)
				}
				want = want[:i]
			}
			if got.String() != want {
				t.Errorf("the client got %q, want %q", got.String(), want)
			}
			for _, f := range m.fields {
				name, value, _ := strings.Cut(f, ": ")
				switch name {
				case "Date", "Content-Length", "Transfer-Encoding", "X-Trace-Id", "Content-Type", "Cache-Control", "X-Content-Type-Options":
				case "X-A":
					if !strings.Contains(tt.want, "[") {
						t.Errorf("the client got %q", f)
					}
				case "X-Late":
				case "Connection":
					if value != "close" {
						t.Errorf("the client got %q", f)
					}
				default:
					t.Errorf("the client got %q", f)
				}
			}
			line := w.journal.next(t)
			if strings.Contains(tt.want, "502") && line["outcome"] != "upstream_error" || strings.HasSuffix(tt.want, "cut") && line["outcome"] != "aborted" {
				t.Errorf("logged %v", line)
			}
			if strings.HasSuffix(tt.want, "cut") || strings.Contains(tt.send, "evil") || strings.Contains(tt.send, "more") {
				// The connection is gone. Where a target says too much, net/http closes its connection, but only once
				// that is idle: a request of the same moment could still get it.
				return
			}
			io.WriteString(conn, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
			if m, err := readStrict(br, true); err != nil || m.body != "next" {
				t.Errorf("then the client got %+v, %v", m, err)
			}
		})
	}
}

// TestEndlessAnswers has targets whose header has no end. They get no further than the transport's bound.
func TestEndlessAnswers(t *testing.T) {
	for name, send := range map[string][2]string{
		"fields":      {"HTTP/1.1 200 OK\r\n", "X-A: b\r\n"},
		"a field":     {"HTTP/1.1 200 OK\r\nX-A: ", "bbbbbbbb"},
		"a name":      {"HTTP/1.1 200 OK\r\n", "X-A"},
		"folds":       {"HTTP/1.1 200 OK\r\nX-A: b", "\r\n "},
		"first lines": {"HTTP/1.1 200 ", "OK"},
		"empty lines": {"", "\r\n"},
		"zeros":       {"", "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			stopped := make(chan int, 1)
			w := toPlain(t, nil, func(conn net.Conn, br *bufio.Reader) {
				readHead(br)
				io.WriteString(conn, send[0])
				piece := strings.Repeat(send[1], 8<<10)
				for n := 0; ; n += len(piece) {
					if _, err := io.WriteString(conn, piece); err != nil {
						stopped <- n
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
			if n := <-stopped; n > 32<<20 {
				t.Errorf("it was stopped after %d bytes", n)
			}
		})
	}
}
