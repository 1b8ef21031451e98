package browsertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/seed-96248d0c/gateway"
)

// shop is a gateway to look at, with backends that can be broken.
type shop struct {
	t        *testing.T
	router   *gateway.Router
	broken   atomic.Bool // payments
	console  http.Handler
	addr     string // of the gateway; the same after a restart
	shutdown func()
}

func newShop(t *testing.T) *shop {
	s := &shop{t: t}
	backend := func(name string, pause time.Duration) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if pause > 0 {
				select {
				case <-time.After(pause/2 + rand.N(pause)):
				case <-r.Context().Done():
				}
			}
			if name == "payments" && s.broken.Load() {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			_, _ = w.Write([]byte(`{"from":"` + name + `"}`))
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	circuit := gateway.NewCircuit("payments", &gateway.CircuitOptions{Failures: 3, OpenFor: 2 * time.Second})
	search := gateway.NewCircuit("search", nil)
	users := gateway.NewUpstream("users", gateway.MustTargets(backend("users", 2*time.Millisecond), backend("users", 4*time.Millisecond), "http://127.0.0.1:9"),
		&gateway.UpstreamOptions{Retry: gateway.RetryOptions{Attempts: 3, Budget: 1}, Health: gateway.HealthOptions{EjectFor: time.Minute}})
	payments := gateway.NewUpstream("payments", gateway.MustTargets(backend("payments", 30*time.Millisecond)), &gateway.UpstreamOptions{Circuit: circuit})
	catalog := gateway.NewUpstream("catalog", gateway.MustTargets(backend("catalog", 8*time.Millisecond), backend("catalog", 8*time.Millisecond)),
		&gateway.UpstreamOptions{Circuit: search})
	perAddress, perCaller := gateway.NewTokenBucket(200, 400, nil), gateway.NewTokenBucket(2, 25, nil)

	stats := new(gateway.Stats)
	s.router = new(gateway.Router)
	s.router.Use(gateway.Observe(&gateway.ObserveOptions{Stats: stats}), gateway.RateLimit(perAddress, gateway.KeyByIP, nil))
	s.router.Add(gateway.Route{Name: "users", Pattern: "GET /users/{id}", Handler: gateway.Proxy(users, nil)})
	s.router.Add(gateway.Route{Name: "users-beta", Pattern: "GET /users/{id}", Match: []gateway.Match{gateway.MatchHeader("X-Beta", "1")}, Handler: gateway.Proxy(users, nil)})
	s.router.Add(gateway.Route{Name: "checkout", Pattern: "POST /checkout", Handler: gateway.Proxy(payments, nil)})
	s.router.Add(gateway.Route{Name: "orders", Pattern: "/orders/{id}", Handler: gateway.Proxy(payments, nil),
		Middleware: []gateway.Middleware{gateway.RateLimit(perCaller, gateway.KeyByHeader("X-Caller"), nil)}})
	s.router.Add(gateway.Route{Name: "search", Pattern: "GET /search", Handler: gateway.Proxy(catalog, nil)})
	s.router.Add(gateway.Route{Name: "catalog", Pattern: "/catalog/{path...}", Handler: gateway.Proxy(catalog, nil)})
	s.router.Add(gateway.Route{Name: "admin", Pattern: "admin.example/", Handler: http.NotFoundHandler()})
	s.console = gateway.Console(gateway.ConsoleOptions{
		Router: s.router, Stats: stats, Upstreams: []*gateway.Upstream{users, payments, catalog},
		Circuits: []*gateway.Circuit{circuit, search},
		Limiters: map[string]gateway.Limiter{"address": perAddress, "orders": perCaller},
	})
	s.start("127.0.0.1:0")
	t.Cleanup(func() { s.shutdown() })
	return s
}

// start serves the gateway and its console on addr.
func (s *shop) start(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle("/", s.router)
	mux.Handle("/ops/console/", http.StripPrefix("/ops/console", s.console))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- gateway.Serve(ctx, &http.Server{Handler: mux}, &gateway.ServeOptions{Listener: l, Drain: time.Minute})
	}()
	s.shutdown = func() {
		stop()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		s.shutdown = func() {}
	}
}

func (s *shop) ask(method, path, caller string) int {
	r, err := http.NewRequest(method, "http://"+s.addr+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("X-Caller", caller)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// traffic sends requests until stop is called.
func (s *shop) traffic() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			s.ask("GET", fmt.Sprintf("/users/%d", n%7), "")
			if n%2 == 0 {
				s.ask("GET", "/search?q=go", "")
			}
			if n%3 == 0 {
				s.ask("GET", "/catalog/books/12", "")
			}
			if n%4 == 0 {
				s.ask("POST", "/checkout", "")
			}
			if n%5 == 0 {
				s.ask("GET", "/orders/1", []string{"mobile", "web", "mobile", "partner", "mobile"}[n/5%5])
			}
			if n%40 == 0 {
				s.ask("GET", "/nowhere", "")
			}
		}
	}()
	return func() { cancel(); <-done }
}

const live = `document.getElementById("link-text").textContent === "Live"`

// rateBars is how many bars a route has.
func rateBars(route string) string {
	return `(document.querySelector('tr[data-route=` + quote(route) + `] .rate').getAttribute("d").match(/V/g) || []).length`
}

func (b *tab) openConsole(s *shop) {
	b.t.Helper()
	b.run(chromedp.Navigate("http://" + s.addr + "/ops/console/"))
	b.waitFor("the page is live", live, 5*time.Second)
}

func TestConsole(t *testing.T) {
	s := newShop(t)
	b := open(t, 1280, false)
	b.openConsole(s)
	if n := eval[int](b, `document.querySelectorAll("#routes-body tr").length`); n != 7 {
		t.Errorf("%d rows", n)
	}
	b.quiet()

	t.Run("a burst moves the bars", func(t *testing.T) {
		b.t = t
		defer func() { b.t = t }()
		b.waitFor("the first figures", `statsAt > 0`, 3*time.Second)
		if n := eval[int](b, rateBars("search")); n != 0 {
			t.Errorf("%d bars before any request", n)
		}
		for range 20 {
			s.ask("GET", "/search", "")
		}
		took := b.waitFor("bars", rateBars("search")+" > 0", 3*time.Second)
		t.Logf("bars after %v", took)
		if rate := b.text(`tr[data-route="search"] td:nth-of-type(2)`); rate == "0/s" {
			t.Errorf("rate %q", rate)
		}
	})

	t.Run("a circuit opens", func(t *testing.T) {
		b.t = t
		// The page shows it within a second. A busy machine gets five openings to show one so soon.
		for opening := 1; ; opening++ {
			s.broken.Store(true)
			for range 3 {
				s.ask("POST", "/checkout", "")
			}
			took := b.waitFor("the open circuit", `document.querySelector("#circuits .state").textContent.startsWith("open")`, 2*time.Second)
			t.Logf("seen after %v", took)
			s.broken.Store(false)
			b.waitFor("the time over", `document.querySelector("#circuits .state").textContent.includes("probe")`, 5*time.Second)
			s.ask("POST", "/checkout", "")
			b.waitFor("the closed circuit", `document.querySelector("#circuits .state").textContent === "closed"`, 2*time.Second)
			if took <= time.Second {
				break
			}
			if opening == 5 {
				t.Fatalf("seen after %v, and later in four earlier openings", took)
			}
		}
		if n := eval[int](b, `document.querySelectorAll("#circuits .band rect").length`); n < 4 {
			t.Errorf("%d parts of the band", n)
		}
		b.t = t
		b.quiet()
	})
}

func TestConsoleExplains(t *testing.T) {
	s := newShop(t)
	b := open(t, 1280, false)
	b.openConsole(s)
	for _, tt := range []struct{ method, host, path, headers string }{
		{"GET", "", "/users/7", ""},
		{"GET", "", "/users/7", "X-Beta: 1"},
		{"DELETE", "", "/users/7", ""},
		{"POST", "", "/checkout", "Host: admin.example"},
		{"GET", "admin.example", "/catalog/a", ""},
		{"GET", "", "/catalog//a", ""},
		{"GET", "", "/a/../b", ""},
		{"GET", "", "/nowhere", ""},
		{"GET", "", "/catalog/%3Cimg%20src=x%20onerror=alert(1)%3E", ""},
	} {
		t.Run(tt.method+" "+tt.path+" "+tt.headers, func(t *testing.T) {
			b.t = t
			u, err := url.ParseRequestURI(tt.path)
			if err != nil {
				t.Fatal(err)
			}
			r := &http.Request{Method: tt.method, URL: u, Host: tt.host, Header: make(http.Header)}
			switch tt.headers {
			case "X-Beta: 1":
				r.Header.Set("X-Beta", "1")
			case "Host: admin.example":
				r.Host = "admin.example"
			}
			want := s.router.Explain(r)
			fill := func(id, value string) chromedp.Action[chromedp.Void] {
				return chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.getElementById(%q).value = %q`, id, value))
			}
			b.run(fill("explain-method", tt.method), fill("explain-host", tt.host), fill("explain-path", tt.path), fill("explain-headers", tt.headers),
				chromedp.Evaluate[chromedp.Void](`document.getElementById("explained").replaceChildren()`),
				chromedp.Click(chromedp.CSS("#explain button")))
			b.waitFor("an answer", `document.getElementById("explain-answer") !== null`, 3*time.Second)
			got := b.text("#explain-answer")
			name := ""
			if want.Route != nil {
				name = ": " + want.Route.Name
			}
			if prefix := fmt.Sprintf("%d %s%s", want.Status, http.StatusText(want.Status), name); len(got) < len(prefix) || got[:len(prefix)] != prefix {
				t.Errorf("%q, want %q", got, prefix)
			}
			for _, c := range want.Candidates {
				outcome := "✗ " + c.Reason
				if c.Matched {
					outcome = "✓ taken"
				}
				if !eval[bool](b, fmt.Sprintf(`[...document.querySelectorAll("#explained tbody tr")].some(row =>
					row.firstChild.firstChild.textContent === %q && row.lastChild.textContent === %q)`, c.Route.Name, outcome)) {
					t.Errorf("the page does not say of %s: %s", c.Route.Name, outcome)
				}
			}
			for name, value := range want.PathValues {
				if !eval[bool](b, fmt.Sprintf(`[...document.querySelectorAll("#explained .values li")].some(li => li.textContent === %q + " = " + JSON.stringify(%q))`, name, value)) {
					t.Errorf("the page does not have %s = %q", name, value)
				}
			}
			b.quiet()
		})
	}
}

func TestConsoleReconnects(t *testing.T) {
	s := newShop(t)
	b := open(t, 1280, false)
	b.openConsole(s)
	b.quiet()
	addr := s.addr
	began := time.Now()
	s.shutdown()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the page held the gateway's drain up for %v", took)
	}
	b.waitFor("the loss", `document.getElementById("link-text").textContent.startsWith("Connection lost")`, 10*time.Second)
	s.start(addr)
	took := b.waitFor("the page is live again", live, 10*time.Second)
	t.Logf("live again after %v", took)
	b.forget()
	for range 10 {
		s.ask("GET", "/search", "")
	}
	b.waitFor("bars", rateBars("search")+" > 0", 3*time.Second)
	b.quiet()
}

func TestConsoleByKeyboard(t *testing.T) {
	s := newShop(t)
	b := open(t, 1280, false)
	b.openConsole(s)
	var reached []string
	for range 12 {
		b.run(chromedp.KeyEvent("\t"))
		reached = append(reached, eval[string](b, `document.activeElement.id || document.activeElement.className || document.activeElement.textContent`))
	}
	for _, want := range []string{"skip", "routes-order", "routes-filter", "explain-method", "explain-host", "explain-path", "explain-headers", "Explain"} {
		found := false
		for _, id := range reached {
			found = found || id == want
		}
		if !found {
			t.Errorf("Tab does not reach %s, but %q", want, reached)
		}
	}
	if unnamed := eval[int](b, `[...document.querySelectorAll("input, select, textarea")].filter(e => e.labels.length === 0).length`); unnamed != 0 {
		t.Errorf("%d fields without a label", unnamed)
	}
}

// The pictures show half a minute of traffic when they are written, and else what there is after a second.
func TestConsoleLayout(t *testing.T) {
	s := newShop(t)
	pages := []struct {
		name          string
		width, height int
		dark          bool
	}{
		{"console.png", 1200, 1500, false},
		{"console-dark.png", 1200, 1500, true},
		{"console-phone.png", 360, 2600, false},
	}
	var tabs []*tab
	for _, p := range pages {
		b := open(t, p.width, p.dark)
		b.openConsole(s)
		tabs = append(tabs, b)
	}
	stop := s.traffic()
	watch := time.Second
	if *screenshots != "" {
		watch = 24 * time.Second
	}
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-t.Context().Done():
		}
	}
	wait(watch / 2)
	s.broken.Store(true)
	wait(watch / 8)
	s.broken.Store(false)
	wait(watch / 4)
	s.broken.Store(true)
	wait(watch / 8)
	stop()
	for i, p := range pages {
		b := tabs[i]
		b.run(chromedp.Evaluate[chromedp.Void](`document.getElementById("explain-path").value = "/users/7"`), chromedp.Click(chromedp.CSS("#explain button")))
		b.waitFor("an answer", `document.getElementById("explain-answer") !== null`, 3*time.Second)
		b.fits()
		b.shoot(p.name, p.width, p.height)
		b.quiet()
	}
}
