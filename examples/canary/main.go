// Canary brings a new version of a service in behind a gateway, step by step, all in one process on loopback:
// first a shadow gets copies, whose answers nobody sees, then those who ask for it by a header, then a tenth of the
// sessions, each of which stays where it is, then half, and in the end all, while requests go on.
//
//	go run ./examples/canary
//
// The gateway itself is newGateway and rollout.router; the rest shows what they do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// rollout is what stays when the weights change: connections, what is known of the targets' health, budgets.
type rollout struct {
	stable, canary, shadow http.Handler
	observe                gateway.Middleware
}

func newRollout(stable, canary, shadow string, transport http.RoundTripper, log *slog.Logger) *rollout {
	proxy := func(name, target string) http.Handler {
		return gateway.Proxy(gateway.NewUpstream(name, gateway.MustTargets(target), &gateway.UpstreamOptions{Transport: transport}), nil)
	}
	r := &rollout{
		stable:  proxy("cart-stable", stable),
		canary:  proxy("cart-canary", canary),
		observe: gateway.Observe(&gateway.ObserveOptions{Logger: log}),
	}
	// The shadow is an instance with data of its own: what it does must not count. Nobody sees its answers but its
	// log lines.
	r.shadow = gateway.Chain(gateway.Observe(&gateway.ObserveOptions{Logger: log.With("shadow", true)}))(proxy("cart-shadow", shadow))
	return r
}

// router gives the canary percent of the sessions, or with percent 0 the shadow copies of all requests.
func (r *rollout) router(percent int) http.Handler {
	var rt gateway.Router
	rt.Use(r.observe)
	// Testers choose. A route with more conditions goes before one with fewer.
	rt.Add(gateway.Route{
		Name: "cart/tester", Pattern: "/cart", Handler: r.canary,
		Match: []gateway.Match{gateway.MatchHeader("X-Version", "canary")},
	})
	all := gateway.Route{Name: "cart", Pattern: "/cart", Handler: gateway.Split(bySession,
		gateway.Branch{Name: "stable", Weight: 100 - percent, Handler: r.stable},
		gateway.Branch{Name: "canary", Weight: percent, Handler: r.canary},
	)}
	if percent == 0 {
		all.Middleware = []gateway.Middleware{gateway.Mirror(r.shadow, nil)}
	}
	rt.Add(all)
	return &rt
}

// bySession keeps a session where it is, and whoever has none by address.
func bySession(r *http.Request) (string, error) {
	if c, err := r.Cookie("session"); err == nil {
		return c.Value, nil
	}
	return gateway.KeyByIP(r)
}

// version is one version of the service. Its answer is its name.
type version struct {
	name    string
	waiting chan struct{} // takes one when a request waits
	release chan struct{} // lets it go on
}

func (v *version) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, err := io.Copy(io.Discard, r.Body)
	switch {
	case err != nil:
		return
	case r.URL.RawQuery == "wait":
		v.waiting <- struct{}{}
		select {
		case <-v.release:
		case <-r.Context().Done():
		}
	}
	_, _ = io.WriteString(w, v.name)
}

// shadow is an instance that is not ready yet. It gives the bodies that it gets.
type shadow chan string

func (s shadow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if body, err := io.ReadAll(r.Body); err == nil {
		s <- string(body)
	}
	http.Error(w, "not ready yet", http.StatusInternalServerError)
}

// run shows everything. Its error says what was not as it must be.
func run(ctx context.Context, out io.Writer, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var servers []*http.Server
	defer func() {
		for _, srv := range servers {
			_ = srv.Close()
		}
	}()
	serve := func(h http.Handler) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
		servers = append(servers, srv)
		go func() { _ = srv.Serve(l) }()
		return "http://" + l.Addr().String(), nil
	}
	stable := &version{name: "stable", waiting: make(chan struct{}), release: make(chan struct{})}
	canary := &version{name: "canary"}
	copies := make(shadow, mirrored)
	stableURL, err := serve(stable)
	if err != nil {
		return err
	}
	canaryURL, err := serve(canary)
	if err != nil {
		return err
	}
	shadowURL, err := serve(copies)
	if err != nil {
		return err
	}
	transport := gateway.NewTransport(nil)
	defer (&http.Client{Transport: transport}).CloseIdleConnections()
	r := newRollout(stableURL, canaryURL, shadowURL, transport, log)
	var live gateway.Live
	live.Store(r.router(0))
	url, err := serve(&live)
	if err != nil {
		return err
	}
	clients := &http.Transport{MaxIdleConnsPerHost: 16}
	defer clients.CloseIdleConnections()
	d := &demo{
		http: &http.Client{Transport: clients}, cart: url + "/cart", stable: stable, copies: copies,
		set: func(percent int) { live.Store(r.router(percent)) },
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"shadow", d.shadow},
		{"testers", d.testers},
		{"a tenth", d.tenth},
		{"half", d.half},
		{"a swap meanwhile", d.swap},
		{"all", d.all},
	} {
		said, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Fprintf(out, "%-17s %s\n", step.name, said)
	}
	fmt.Fprintln(out, "The canary serves everybody, and no request was lost on the way.")
	return nil
}

const (
	mirrored = 3   // requests
	sessions = 300 // that ask once in each step
)

// demo is the clients, and whoever turns the weights.
type demo struct {
	http   *http.Client
	cart   string
	stable *version
	copies <-chan string // what the shadow was sent
	set    func(percent int)
	before map[string]string // which version served a session last
}

// ask returns the name of the version that answered.
func (d *demo) ask(ctx context.Context, method, query, session, body string, header http.Header) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, d.cart+query, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if header != nil {
		req.Header = header
	}
	req.AddCookie(&http.Cookie{Name: "session", Value: session})
	res, err := d.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return string(answer), err
}

func (d *demo) shadow(ctx context.Context) (string, error) {
	want := make(map[string]bool)
	for n := range mirrored {
		body := fmt.Sprint("order ", n)
		want[body] = true
		by, err := d.ask(ctx, http.MethodPost, "", "s", body, nil)
		if err != nil || by != "stable" {
			return "", fmt.Errorf("answered by %q: %v", by, err)
		}
	}
	for range mirrored {
		select {
		case body := <-d.copies:
			if !want[body] {
				return "", fmt.Errorf("a copy that is none: %q", body)
			}
			delete(want, body)
		case <-ctx.Done():
			return "", fmt.Errorf("%d requests were not copied: %w", len(want), context.Cause(ctx))
		}
	}
	return fmt.Sprintf("%d requests answered by stable; the shadow got copies, failed at each, and no client saw it", mirrored), nil
}

func (d *demo) testers(ctx context.Context) (string, error) {
	for _, t := range []struct{ header, want string }{{"canary", "canary"}, {"other", "stable"}} {
		by, err := d.ask(ctx, http.MethodGet, "", "s", "", http.Header{"X-Version": {t.header}})
		if err != nil {
			return "", err
		}
		if by != t.want {
			return "", fmt.Errorf("X-Version: %s is answered by %s", t.header, by)
		}
	}
	return "X-Version: canary gets the canary", nil
}

// everybody asks for all sessions and returns how many the canary has.
func (d *demo) everybody(ctx context.Context) (by map[string]string, canaries int, err error) {
	by = make(map[string]string)
	for n := range sessions {
		session := fmt.Sprint("session-", n)
		if by[session], err = d.ask(ctx, http.MethodGet, "", session, "", nil); err != nil {
			return nil, 0, err
		}
		if by[session] == "canary" {
			canaries++
		}
	}
	return by, canaries, nil
}

func (d *demo) tenth(ctx context.Context) (string, error) {
	d.set(10)
	by, canaries, err := d.everybody(ctx)
	if err != nil {
		return "", err
	}
	if canaries < sessions*7/100 || canaries > sessions*13/100 {
		return "", fmt.Errorf("%d of %d sessions", canaries, sessions)
	}
	again, _, err := d.everybody(ctx)
	if err != nil {
		return "", err
	}
	for session := range by {
		if again[session] != by[session] {
			return "", fmt.Errorf("%s went from %s to %s", session, by[session], again[session])
		}
	}
	d.before = by
	return fmt.Sprintf("%d of %d sessions have the canary, the same ones again and again", canaries, sessions), nil
}

func (d *demo) half(ctx context.Context) (string, error) {
	d.set(50)
	by, canaries, err := d.everybody(ctx)
	if err != nil {
		return "", err
	}
	if canaries < sessions*43/100 || canaries > sessions*57/100 {
		return "", fmt.Errorf("%d of %d sessions", canaries, sessions)
	}
	for session, v := range d.before {
		if v == "canary" && by[session] != "canary" {
			return "", fmt.Errorf("%s went back to %s", session, by[session])
		}
	}
	d.before = by
	return fmt.Sprintf("%d of %d sessions; who had the canary keeps it", canaries, sessions), nil
}

// swap changes weights while a request is on its way and others keep coming.
func (d *demo) swap(ctx context.Context) (string, error) {
	var old string
	for session, v := range d.before {
		if v == "stable" {
			old = session
		}
	}
	type answer struct {
		by  string
		err error
	}
	slow := make(chan answer, 1)
	go func() {
		by, err := d.ask(ctx, http.MethodGet, "?wait", old, "", nil)
		slow <- answer{by, err}
	}()
	select {
	case <-d.stable.waiting:
	case a := <-slow:
		return "", fmt.Errorf("the slow request did not wait: %q: %v", a.by, a.err)
	}

	const clients, each = 8, 50
	errs := make([]error, clients)
	var running sync.WaitGroup
	for n := range clients {
		running.Go(func() {
			for range each {
				if _, err := d.ask(ctx, http.MethodGet, "", fmt.Sprint("session-", n), "", nil); err != nil {
					errs[n] = err
					return
				}
			}
		})
	}
	for percent := 50; percent <= 100; percent++ {
		d.set(percent)
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	if by, err := d.ask(ctx, http.MethodGet, "", old, "", nil); err != nil || by != "canary" {
		return "", fmt.Errorf("after the swap %s is answered by %q: %v", old, by, err)
	}
	d.stable.release <- struct{}{}
	if a := <-slow; a.err != nil || a.by != "stable" {
		return "", fmt.Errorf("the slow request: %q: %v", a.by, a.err)
	}
	return fmt.Sprintf("weights changed 51 times under %d requests; one that came before ends where it began", clients*each), nil
}

func (d *demo) all(ctx context.Context) (string, error) {
	_, canaries, err := d.everybody(ctx)
	if err == nil && canaries != sessions {
		err = fmt.Errorf("%d of %d sessions", canaries, sessions)
	}
	return fmt.Sprintf("%d of %d sessions", canaries, sessions), err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	// A line for each request would be thousands: what went wrong is logged.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := run(ctx, os.Stdout, log); err != nil {
		fmt.Fprintln(os.Stderr, "canary:", err)
		os.Exit(1)
	}
}
