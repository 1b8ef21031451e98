package examples_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/seed-96248d0c/gateway"
)

// zone is a DNS server on loopback, over UDP and TCP, whose records can be changed.
type zone struct {
	net.Resolver
	mu      sync.Mutex
	records map[string][]dns.RR // by name and type, such as "users.test. A"
	rcode   int                 // of every answer
	silent  bool
	asked   atomic.Int32
}

func newZone(t *testing.T, records ...string) *zone {
	t.Helper()
	z := &zone{}
	z.set(t, records...)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait) // runs last
	for _, s := range []*dns.Server{{Listener: tcp, Handler: z}, {PacketConn: udp, Handler: z}} {
		started := make(chan bool)
		s.NotifyStartedFunc = func() { close(started) }
		all.Go(func() { s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	z.PreferGo = true
	z.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, tcp.Addr().String())
		if udp, ok := conn.(*net.UDPConn); ok {
			return hastyConn{udp}, err
		}
		return conn, err
	}
	return z
}

// hastyConn waits less long for an answer than the resolver would.
type hastyConn struct{ *net.UDPConn }

func (c hastyConn) SetDeadline(time.Time) error {
	return c.UDPConn.SetDeadline(time.Now().Add(2 * time.Second))
}

// set replaces the records, which are lines of a zone file.
func (z *zone) set(t *testing.T, records ...string) {
	t.Helper()
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records, z.rcode, z.silent = make(map[string][]dns.RR), 0, false
	for _, line := range records {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		key := rr.Header().Name + " " + dns.TypeToString[rr.Header().Rrtype]
		z.records[key] = append(z.records[key], rr)
	}
}

// fail makes every answer an error, or none at all.
func (z *zone) fail(rcode int, silent bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.rcode, z.silent = rcode, silent
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.asked.Add(1)
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.silent {
		return
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	name := q.Question[0].Name
	m.Rcode = z.rcode
	if strings.HasPrefix(name, "broken.") {
		m.Rcode = dns.RcodeServerFailure
	}
	if m.Rcode == 0 {
		m.Answer = z.records[name+" "+dns.TypeToString[q.Question[0].Qtype]]
		known := false
		for key := range z.records {
			known = known || strings.HasPrefix(key, name+" ")
		}
		if !known {
			m.Rcode = dns.RcodeNameError
		}
	}
	size := 65535
	if _, ok := w.LocalAddr().(*net.UDPAddr); ok {
		size = 1232
	}
	m.Truncate(size)
	w.WriteMsg(m)
}

// TestDNS asks a real server for every kind of answer.
func TestDNS(t *testing.T) {
	many := func(n int) (records []string) {
		for i := range n {
			records = append(records, fmt.Sprintf("many.test. A 10.1.%d.%d", i/250, i%250+1))
		}
		return records
	}
	var thousand []string
	for i := range 1001 {
		thousand = append(thousand, fmt.Sprintf("_http._tcp.test. SRV 0 1 80 h%d.test.", i))
	}
	z := newZone(t)
	for _, tt := range []struct {
		name, url string
		records   []string
		want      string // targets and weights, or the number of targets, or "error: " and a text
	}{
		{"A", "http://users.test:8080/v1", []string{"users.test. A 10.0.0.2", "users.test. A 10.0.0.1"}, "http://10.0.0.1:8080/v1*1 http://10.0.0.2:8080/v1*1"},
		{"A and AAAA", "http://users.test", []string{"users.test. A 10.0.0.1", "users.test. AAAA fd00::1"}, "http://10.0.0.1*1 http://[fd00::1]*1"},
		{"AAAA alone", "h2c://users.test:50051", []string{"users.test. AAAA fd00::1"}, "h2c://[fd00::1]:50051*1"},
		{"the same twice", "http://users.test", []string{"users.test. A 10.0.0.1", "users.test. A 10.0.0.1"}, "http://10.0.0.1*1"},
		{"over TCP", "http://many.test", many(500), "500"},
		{"a thousand", "http://many.test", many(1000), "1000"},
		{"too many", "http://many.test", many(1001), "error: more than 1000"},
		{"no name", "http://users.test", nil, "error: no such host"},
		{"empty", "http://users.test", []string{"users.test. TXT x"}, "error: no such host"},
		{"nothing that a server can have", "http://users.test", []string{"users.test. A 0.0.0.0", "users.test. AAAA ::", "users.test. A 224.0.0.1"}, "error: no address"},
		{"one that no server can have", "http://users.test", []string{"users.test. A 0.0.0.0", "users.test. A 10.0.0.1"}, "http://10.0.0.1*1"},
		{"SERVFAIL", "http://broken.test", nil, "error: server misbehaving"},

		{"SRV", "http://_http._tcp.test/v1", []string{"_http._tcp.test. SRV 0 5 8080 a.test.", "_http._tcp.test. SRV 0 1 8081 b.test.", "a.test. A 10.0.0.1", "b.test. A 10.0.0.2"},
			"http://10.0.0.1:8080/v1*5 http://10.0.0.2:8081/v1*1"},
		{"SRV, one host, two ports", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 0 80 a.test.", "_http._tcp.test. SRV 0 0 81 a.test.", "a.test. A 10.0.0.1"},
			"http://10.0.0.1:80*1 http://10.0.0.1:81*1"},
		{"SRV, a host with several addresses", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 1 80 a.test.", "_http._tcp.test. SRV 0 1 80 b.test.",
			"a.test. A 10.0.0.1", "b.test. A 10.0.0.2", "b.test. AAAA fd00::2"}, "http://10.0.0.1:80*12 http://10.0.0.2:80*6 http://[fd00::2]:80*6"},
		{"SRV, priorities", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 20 1 80 b.test.", "_http._tcp.test. SRV 10 1 80 a.test.", "a.test. A 10.0.0.1", "b.test. A 10.0.0.2"},
			"http://10.0.0.1:80*1"},
		{"SRV, the first priority is nowhere", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 20 1 80 b.test.", "_http._tcp.test. SRV 10 1 80 a.test.", "b.test. A 10.0.0.2"},
			"http://10.0.0.2:80*1"},
		{"SRV, one host is nowhere", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 1 80 gone.test.", "_http._tcp.test. SRV 0 1 80 a.test.", "a.test. A 10.0.0.1"},
			"http://10.0.0.1:80*1"},
		{"SRV, one host cannot be looked up", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 1 80 broken.test.", "_http._tcp.test. SRV 0 1 80 a.test.", "a.test. A 10.0.0.1"},
			"error: server misbehaving"},
		{"SRV, all are nowhere", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 1 80 gone.test.", "_http._tcp.test. SRV 1 1 80 lost.test."}, "error: no address"},
		{"SRV, no such service", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 0 0 ."}, "error: no address"},
		{"SRV, no port", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 0 0 a.test.", "a.test. A 10.0.0.1"}, "error: no address"},
		{"SRV, no record", "http://_http._tcp.test", nil, "error: no such host"},
		{"SRV, the greatest weights", "http://_http._tcp.test", []string{"_http._tcp.test. SRV 0 65535 80 a.test.", "_http._tcp.test. SRV 0 65535 80 b.test.", "a.test. A 10.0.0.1", "b.test. A 10.0.0.1", "b.test. AAAA fd00::1"},
			"http://10.0.0.1:80*1000000 http://[fd00::1]:80*393210"},
		{"SRV, too many", "http://_http._tcp.test", thousand, "error: more than 1000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			z.set(t, tt.records...)
			find, err := gateway.DNS(tt.url, &z.Resolver)
			if err != nil {
				t.Fatal(err)
			}
			targets, err := find(t.Context())
			if text, ok := strings.CutPrefix(tt.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("found %d, %v, want %q", len(targets), err, text)
				}
				return
			}
			var list []string
			for _, target := range targets {
				list = append(list, fmt.Sprintf("%s*%d", target.URL, target.Weight))
			}
			if got := strings.Join(list, " "); err != nil || got != tt.want && fmt.Sprint(len(targets)) != tt.want {
				t.Errorf("found %q, %v, want %q", got, err, tt.want)
			}
			gateway.NewUpstream("u", targets, nil) // which checks them
		})
	}
}

// TestFollowDNS moves a service from one server to another while clients ask, and lets the resolver fail
// in every way in between. No request fails.
func TestFollowDNS(t *testing.T) {
	var logs syncBuffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logs, nil)))
	defer slog.SetDefault(before)
	name := func(s string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, s+" "+r.Host) })
	}
	one, two := httptest.NewServer(name("one")), httptest.NewServer(name("two"))
	defer one.Close()
	defer two.Close()
	record := func(s *httptest.Server) []string {
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		return []string{"_http._tcp.users.test. SRV 0 1 " + port + " local.test.", "local.test. A 127.0.0.1"}
	}
	z := newZone(t, record(one)...)
	find, err := gateway.DNS("http://_http._tcp.users.test", &z.Resolver)
	if err != nil {
		t.Fatal(err)
	}
	users := gateway.NewUpstream("users", nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { users.Follow(ctx, find, 5*time.Millisecond) })
	answer := func() string {
		rec := httptest.NewRecorder()
		gateway.Proxy(users, nil).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		return rec.Body.String()
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for late := time.Now().Add(time.Minute); !done(); {
			if time.Now().After(late) {
				t.Fatalf("%s: %s", what, answer())
			}
		}
	}
	until("the first server", func() bool { return answer() == "one "+one.Listener.Addr().String() })
	for _, broken := range []struct {
		name   string
		rcode  int
		silent bool
		zone   []string // nil: none
	}{
		{"SERVFAIL", dns.RcodeServerFailure, false, record(one)},
		{"REFUSED", dns.RcodeRefused, false, record(one)},
		{"NXDOMAIN", dns.RcodeNameError, false, record(one)},
		{"empty", 0, false, nil},
		{"nowhere", 0, false, record(one)[:1]},
		{"silent", 0, true, record(one)},
	} {
		z.set(t, broken.zone...)
		z.fail(broken.rcode, broken.silent)
		asked := z.asked.Load()
		until(broken.name, func() bool { return z.asked.Load() > asked+2 || broken.silent && z.asked.Load() > asked })
		if got := answer(); !strings.HasPrefix(got, "one ") {
			t.Errorf("%s: %s", broken.name, got)
		}
	}
	z.set(t, record(two)...)
	until("the second server", func() bool { return strings.HasPrefix(answer(), "two ") })
	if got := strings.Count(logs.String(), "the last ones are kept"); got != 1 && got != 2 { // the first look may be too early
		t.Errorf("logged %s", logs.String())
	}
}

// syncBuffer is a buffer that several goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
