package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// finder is a function for Follow whose answer can be changed.
type finder struct {
	mu      sync.Mutex
	targets []gateway.Target
	err     error
	panics  bool
	asked   []time.Time
}

func (f *finder) answer(err error, targets ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets, f.err = gateway.MustTargets(targets...), err
}

func (f *finder) find(ctx context.Context) ([]gateway.Target, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if by, ok := ctx.Deadline(); !ok || time.Until(by) > 10*time.Second {
		panic("no deadline")
	}
	f.asked = append(f.asked, time.Now())
	if f.panics {
		panic("find panics")
	}
	return f.targets, f.err
}

// count returns how often find was asked since the last call, and the shortest and longest pause in between.
func (f *finder) count() (n int, shortest, longest time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	shortest = time.Hour
	for i := 1; i < len(f.asked); i++ {
		pause := f.asked[i].Sub(f.asked[i-1])
		shortest, longest = min(shortest, pause), max(longest, pause)
	}
	n, f.asked = len(f.asked), nil
	return n, shortest, longest
}

// TestFollow goes through what a resolver may do: the targets change, and while it fails in whatever way
// the last ones stay, with one line in the log.
func TestFollow(t *testing.T) {
	logs := captureDefaultLog(t)
	synctest.Test(t, func(t *testing.T) {
		f := new(finder)
		f.answer(errors.New("no resolver"))
		u := gateway.NewUpstream("users", nil, &gateway.UpstreamOptions{Transport: newWard()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- u.Follow(ctx, f.find, time.Minute) }()
		logged := 0
		expect := func(step, states1 string, wait time.Duration, lines ...string) {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			if got := states(u); got != states1 {
				t.Errorf("%s: %q, want %q", step, got, states1)
			}
			text := logs.String()[logged:]
			logged += len(text)
			if strings.Count(text, "\n") != len(lines) {
				t.Errorf("%s: logged %q, want %d lines", step, text, len(lines))
			}
			for _, line := range lines {
				if !strings.Contains(text, line) {
					t.Errorf("%s: logged %q, want %q", step, text, line)
				}
			}
		}
		expect("away at the start", "", 30*time.Second, "level=ERROR")
		if n, _, longest := f.count(); n < 4 || n > 6 || longest > 20*time.Second {
			t.Errorf("asked %d times in 30 s, with pauses up to %v", n, longest)
		}
		f.answer(nil, "http://a", "http://b")
		expect("found", "a b", 32*time.Second, "targets are found again", "added=\"http://a http://b\"")
		f.answer(nil, "http://b", "http://a")
		expect("another order", "a b", 63*time.Second)
		f.answer(nil, "http://c", "http://b")
		expect("another target", "c b", 63*time.Second, "added=http://c removed=http://a")
		f.answer(errors.New("SERVFAIL\nlevel=INFO"))
		expect("away", "c b", 5*time.Hour, "level=ERROR")
		f.count()
		expect("still away", "c b", 5*time.Hour)
		if n, shortest, longest := f.count(); n < 290 || n > 310 || shortest < 57*time.Second || longest > 63*time.Second || shortest == longest {
			t.Errorf("asked %d times in 5 h, with pauses of %v to %v", n, shortest, longest)
		}
		f.answer(nil, "http://c", "http://b")
		expect("back", "c b", 63*time.Second, "targets are found again")
		f.answer(nil)
		expect("empty", "c b", time.Hour, "the list of targets is empty")
		f.answer(nil, "http://c", "http://b")
		expect("back again", "c b", 63*time.Second, "targets are found again")
		f.mu.Lock()
		f.targets = append(f.targets, gateway.Target{URL: &url.URL{Scheme: "ftp", Host: "x"}})
		f.mu.Unlock()
		expect("a target that is none", "c b", time.Hour, "scheme must be")
		f.answer(nil, "http://c", "http://b")
		expect("back once more", "c b", 63*time.Second, "targets are found again")
		f.mu.Lock()
		f.panics = true
		f.mu.Unlock()
		time.Sleep(63 * time.Second)
		synctest.Wait()
		if text := logs.String()[logged:]; states(u) != "c b" || !strings.Contains(text, "find panics") {
			t.Errorf("%s, logged %q", states(u), text)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
		f.count()
		if err := u.Follow(ctx, f.find, time.Minute); !errors.Is(err, context.Canceled) {
			t.Errorf("Follow of the past: %v", err)
		}
		if n, _, _ := f.count(); n != 0 {
			t.Error("Follow of the past has asked")
		}
	})
	if panicOf(func() { gateway.NewUpstream("u", nil, nil).Follow(t.Context(), nil, time.Second) }) == "" ||
		panicOf(func() { gateway.NewUpstream("u", nil, nil).Follow(t.Context(), new(finder).find, 0) }) == "" {
		t.Error("Follow takes nonsense")
	}
}

// TestFollowEndsWhileAsking: the end of the context ends a find that takes long, whose answer is not used.
func TestFollowEndsWhileAsking(t *testing.T) {
	logs := captureDefaultLog(t)
	synctest.Test(t, func(t *testing.T) {
		u := gateway.NewUpstream("u", gateway.MustTargets("http://a"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		var calls atomic.Int32
		go func() {
			done <- u.Follow(ctx, func(ctx context.Context) ([]gateway.Target, error) {
				calls.Add(1)
				<-ctx.Done()
				return gateway.MustTargets("http://b"), nil
			}, time.Minute)
		}()
		time.Sleep(time.Second)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || states(u) != "a" || logs.String() != "" || calls.Load() != 1 {
			t.Errorf("%v, targets %s, logged %q", err, states(u), logs)
		}
	})
}

// TestFollowKeepsConnections: a target that stays while others come and go keeps its connections, its
// ejection and its requests in flight.
func TestFollowKeepsConnections(t *testing.T) {
	captureDefaultLog(t)
	arrived, release := make(chan string, 10), make(chan bool)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.RemoteAddr
		if r.URL.Path == "/slow" {
			<-release
		}
	})
	stays, goes := serve(t, h), serve(t, h)
	u := gateway.NewUpstream("u", nil, &gateway.UpstreamOptions{Transport: newTransport(t, nil), Balancer: gateway.RoundRobin()})
	f := new(finder)
	f.answer(nil, stays.URL)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { u.Follow(ctx, f.find, time.Millisecond) })
	await := func(n int) {
		t.Helper()
		for late := deadline(); len(u.Status()) != n; {
			if time.Now().After(late) {
				t.Fatalf("%d targets, want %d", len(u.Status()), n)
			}
		}
	}
	send := func(path string) {
		if got := recorded(gateway.Proxy(u, nil), httptest.NewRequest("GET", path, nil)).Code; got != 200 {
			t.Errorf("%s: status %d", path, got)
		}
	}
	await(1)
	send("/")
	first := <-arrived
	f.answer(nil, goes.URL, stays.URL)
	await(2)
	all.Go(func() { send("/slow") }) // to either
	slow := <-arrived
	f.answer(nil, stays.URL)
	await(1)
	if slow != first {
		send("/")
		if got := <-arrived; got != first {
			t.Errorf("a new connection from %s", got)
		}
	}
	close(release)
	cancel()
	all.Wait()
}

// TestDNSOverTLS finds a target by its address, and checks its certificate by the name in TransportOptions.TLS.
func TestDNSOverTLS(t *testing.T) {
	for _, protocol := range []string{http2, "TLS alone"} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.ProtoMajor, " ", r.TLS.ServerName)
		}))
		want := "1 example.com"
		if protocol == http2 {
			s.EnableHTTP2 = true
			want = "2 example.com"
		}
		s.StartTLS()
		t.Cleanup(s.Close)
		targets, err := must(gateway.DNS(s.URL, nil))(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"example.com": want, "other.test": ""} {
			transport := newTransport(t, &gateway.TransportOptions{TLS: &tls.Config{RootCAs: rootsOf(s), ServerName: name}})
			u := gateway.NewUpstream("u", targets, &gateway.UpstreamOptions{Transport: transport})
			if rec := recorded(gateway.Proxy(u, nil), nil); (rec.Code == 200) != (want != "") || rec.Code == 200 && rec.Body.String() != want {
				t.Errorf("%s as %s: %d %s", protocol, name, rec.Code, rec.Body)
			}
		}
	}
}

func TestDNSArguments(t *testing.T) {
	for raw, ok := range map[string]bool{
		"http://users.internal": true, "https://users.internal:8443/v1": true, "h2c://_grpc._tcp.users.internal": true, "http://10.0.0.1": true,
		"users.internal": false, "": false, "unix:///run/a.sock": false, "http://_http._tcp.users:80": false, "ftp://x": false, "http://x?q": false, "http://%zz": false,
	} {
		find, err := gateway.DNS(raw, nil)
		if (err == nil) != ok || (find != nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "gateway: DNS: ") {
			t.Errorf("%q: %v", raw, err)
		}
	}
	for raw, want := range map[string]string{
		"http://127.0.0.1/v1": "http://127.0.0.1/v1", "https://[::1]:8443": "https://[::1]:8443", "h2c://[2001:db8::1]": "h2c://[2001:db8::1]",
		"http://[::ffff:10.0.0.1]:80": "http://10.0.0.1:80", "http://0.0.0.0": "", "http://[::]": "", "http://224.0.0.1": "", "http://255.255.255.255": "",
	} {
		targets, err := must(gateway.DNS(raw, nil))(t.Context())
		got := ""
		if err == nil {
			got = fmt.Sprint(targets[0].URL)
		}
		if got != want {
			t.Errorf("%s: %q, %v", raw, got, err)
		}
	}
}
