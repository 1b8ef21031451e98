package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// markup is text that must stay text wherever the page has it.
const markup = "</script><img src=x onerror=alert(1)>\n\nevent: routes\ndata: {}\x00\xff\u2028"

// consoleRouter has routes that lose for every reason.
func consoleRouter() *gateway.Router {
	rt := new(gateway.Router)
	rt.Handle("GET /users/{id}", text("user"))
	rt.Add(gateway.Route{Name: "beta", Pattern: "GET /users/{id}", Match: []gateway.Match{gateway.MatchHeader("X-Beta", "1")}, Handler: text("beta")})
	rt.Handle("POST /pay", text("pay"))
	rt.Handle("admin.example/", text("admin"))
	rt.Add(gateway.Route{Name: "panics", Pattern: "/panics", Match: []gateway.Match{{Name: "bug", Func: func(*http.Request) bool { panic("bug") }}}, Handler: text("")})
	return rt
}

func TestConsoleFiles(t *testing.T) {
	console := gateway.Console(gateway.ConsoleOptions{})
	mux := http.NewServeMux()
	mux.Handle("/", console)
	mux.Handle("/ops/console/", http.StripPrefix("/ops/console", console))
	mux.Handle("/bare", http.StripPrefix("/bare", console))
	for _, tt := range []struct {
		path        string
		status      int
		contentType string
		location    string
	}{
		{"/", 200, "text/html; charset=utf-8", ""},
		{"/console.css", 200, "text/css; charset=utf-8", ""},
		{"/console.js", 200, "text/javascript; charset=utf-8", ""},
		{"/ops/console/", 200, "text/html; charset=utf-8", ""},
		{"/ops/console/console.js", 200, "text/javascript; charset=utf-8", ""},
		{"/bare", 308, "", "./bare/"},
		{"/bare?x=/", 308, "", "./bare/"},
		{"/console.html", 404, "application/problem+json", ""},
		{"/ops/console/console.js/", 404, "application/problem+json", ""},
		{"/explain?path=/", 404, "application/problem+json", ""}, // it has no router
	} {
		res := recorded(mux, httptest.NewRequest("GET", tt.path, nil)).Result()
		h := res.Header
		if res.StatusCode != tt.status || h.Get("Content-Type") != tt.contentType || h.Get("Location") != tt.location {
			t.Errorf("%s: %d, %q, to %q", tt.path, res.StatusCode, h.Get("Content-Type"), h.Get("Location"))
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'; style-src 'self';") || strings.Contains(csp, "unsafe") ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: fields %v", tt.path, h)
		}
		if body := bodyOf(t, res); tt.status == 200 {
			for _, bad := range []string{"https://", `src="http`, `href="http`, "innerHTML", " style=", "<script>", " onclick"} {
				if strings.Contains(body, bad) {
					t.Errorf("%s has %s", tt.path, bad)
				}
			}
			again := httptest.NewRequest("GET", tt.path, nil)
			again.Header.Set("If-None-Match", h.Get("Etag"))
			if code := recorded(mux, again).Code; code != 304 {
				t.Errorf("%s again: %d", tt.path, code)
			}
		}
	}
}

func TestConsoleReadsOnly(t *testing.T) {
	console := gateway.Console(gateway.ConsoleOptions{Router: consoleRouter()})
	for _, path := range []string{"/", "/console.js", "/events", "/explain?path=/", "/nowhere"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} {
			rec := recorded(console, httptest.NewRequest(method, path, nil))
			if rec.Code != 405 || rec.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, rec.Code, rec.Header().Get("Allow"))
			}
		}
		if rec := recorded(console, httptest.NewRequest("HEAD", path, nil)); path != "/nowhere" && rec.Code != 200 {
			t.Errorf("HEAD %s: %d", path, rec.Code)
		}
	}
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200, "": 200} {
		r := httptest.NewRequest("GET", "/explain?path=/", nil)
		r.Header.Set("Sec-Fetch-Site", site)
		if rec := recorded(console, r); rec.Code != want {
			t.Errorf("from %q: %d", site, rec.Code)
		}
	}
}

// explained is what the page gets of an Explanation.
type explained struct {
	Status           int
	Reason, Location string
	Route            *struct{ Name, Pattern string }
	Allow            []string
	PathValues       map[string]string
	Candidates       []struct {
		Name, Pattern, Reason string
		Matched               bool
	}
	More int
	Text string
}

func TestConsoleExplain(t *testing.T) {
	rt := consoleRouter()
	console := gateway.Console(gateway.ConsoleOptions{Router: rt})
	for _, tt := range []struct {
		method, host, path string
		headers            []string
	}{
		{"GET", "", "/users/7", nil},
		{"GET", "", "/users/7?x=1", []string{"X-Beta: 1"}},
		{"GET", "", "/users/7", []string{"x-beta:1", "X-Other: a"}},
		{"GET", "", "/users/%2F%3Cb%3E", nil},
		{"DELETE", "", "/users/7", nil},
		{"OPTIONS", "", "/pay", nil},
		{"GET", "admin.example:443", "/any", nil},
		{"GET", "other.example", "/any", []string{"Host: ADMIN.example"}},
		{"GET", "", "/users//7", nil},
		{"GET", "", "/users/../pay", nil},
		{"GET", "", "/nowhere", nil},
	} {
		r := &http.Request{Method: tt.method, Host: tt.host, URL: must(url.ParseRequestURI(tt.path)), Header: make(http.Header)}
		query := url.Values{"method": {tt.method}, "host": {tt.host}, "path": {tt.path}, "header": tt.headers}
		for _, line := range tt.headers {
			name, value, _ := strings.Cut(line, ":")
			if name == "Host" {
				r.Host = strings.TrimSpace(value)
			}
			r.Header.Set(name, strings.TrimSpace(value))
		}
		want := rt.Explain(r)
		rec := recorded(console, httptest.NewRequest("GET", "/explain?"+query.Encode(), nil))
		var got explained
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || rec.Code != 200 {
			t.Fatalf("%v: %d, %v", tt, rec.Code, err)
		}
		if got.Text != want.String() || got.Status != want.Status || got.Reason != want.Reason || got.Location != want.Location ||
			!slices.Equal(got.Allow, want.Allow) || fmt.Sprint(got.PathValues) != fmt.Sprint(want.PathValues) || got.More != 0 {
			t.Errorf("%v: %+v, want %+v", tt, got, want)
		}
		if (got.Route == nil) != (want.Route == nil) || got.Route != nil && got.Route.Name != want.Route.Name {
			t.Errorf("%v: route %v, want %v", tt, got.Route, want.Route)
		}
		if len(got.Candidates) != len(want.Candidates) {
			t.Fatalf("%v: %d candidates", tt, len(got.Candidates))
		}
		for i, c := range want.Candidates {
			if g := got.Candidates[i]; g.Name != c.Route.Name || g.Pattern != c.Route.Pattern || g.Matched != c.Matched || g.Reason != c.Reason {
				t.Errorf("%v: candidate %d is %v, want %v", tt, i, g, c)
			}
		}
	}
}

func TestConsoleExplainRefuses(t *testing.T) {
	captureDefaultLog(t)
	console := gateway.Console(gateway.ConsoleOptions{Router: consoleRouter()})
	for name, tt := range map[string]struct {
		query  string
		status int
	}{
		"no path":              {"", 400},
		"path without a slash": {"path=users", 400},
		"path with a space":    {"path=/a%20b", 400},
		"path with a newline":  {"path=/a%0Ab", 400},
		"whole URL":            {"path=http://x/", 400},
		"bad escape":           {"path=/%25zz", 400},
		"bad query":            {"path=/%zz", 400},
		"bad method":           {"path=/&method=A%20B", 400},
		"field without colon":  {"path=/&header=X", 400},
		"field with bad name":  {"path=/&header=a%20b:1", 400},
		"too many fields":      {"path=/" + strings.Repeat("&header=a:1", 101), 400},
		"too long":             {"path=/" + strings.Repeat("a", 17<<10), 400},
		"panicking predicate":  {"path=/panics", 500},
		"hostile path":         {"path=/" + url.QueryEscape(url.PathEscape(markup)), 400}, // it has NUL
	} {
		rec := recorded(console, httptest.NewRequest("GET", "/explain?"+tt.query, nil))
		if name == "hostile path" {
			if strings.ContainsAny(rec.Body.String(), "<>\x00\u2028") {
				t.Errorf("%s: %s", name, rec.Body)
			}
			continue
		}
		if p := readProblem(t, rec.Result()); p.Status != tt.status || p.Detail == "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestConsoleExplainBound(t *testing.T) {
	rt := new(gateway.Router)
	for n := range 1000 {
		rt.Handle(fmt.Sprintf("/r%d", n), text(""))
	}
	rec := recorded(gateway.Console(gateway.ConsoleOptions{Router: rt}), httptest.NewRequest("GET", "/explain?path=/r7", nil))
	var got explained
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || len(got.Candidates) != 200 || got.More != 800 || !got.Candidates[0].Matched {
		t.Errorf("%d candidates, %d more, %v", len(got.Candidates), got.More, err)
	}
}

// stream is a stream of server-sent events that a test reads.
type stream struct {
	t      *testing.T
	reader *bufio.Reader
	body   io.Closer
}

func watchConsole(t *testing.T, address string) *stream {
	t.Helper()
	res := get(t, address)
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	return &stream{t, bufio.NewReader(res.Body), res.Body}
}

// next returns the data of the next event of a name.
func (s *stream) next(name string) string {
	s.t.Helper()
	event := ""
	for {
		line, err := s.reader.ReadString('\n')
		if err != nil {
			s.t.Fatalf("waiting for %s: %v", name, err)
		}
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			event = rest
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok && event == name {
			return data
		}
	}
}

// fullLimiter reports one busy key.
type fullLimiter struct {
	gateway.Limiter
	key string
}

func (l fullLimiter) Usage(int) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) { yield(l.key, 0.75) }
}

func TestConsoleEvents(t *testing.T) {
	stats := new(gateway.Stats)
	rt := new(gateway.Router)
	rt.Use(gateway.Observe(&gateway.ObserveOptions{Stats: stats}))
	rt.Add(gateway.Route{Name: markup, Pattern: "/{name}", Handler: named("X")})
	circuit := gateway.NewCircuit(markup, nil)
	circuit.Trip(time.Hour)
	u := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1:80", "unix:///run/a.sock"), nil)
	bucket := gateway.NewTokenBucket(1e-6, 10, nil)
	must(bucket.Take(t.Context(), "203.0.113.9", 5))
	for range 4 {
		rt.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/x", nil))
	}
	opts := gateway.ConsoleOptions{
		Router: rt, Stats: stats, Upstreams: []*gateway.Upstream{u}, Circuits: []*gateway.Circuit{circuit},
		Limiters: map[string]gateway.Limiter{"bucket": bucket, "own": fullLimiter{key: markup}, "without": struct{ gateway.Limiter }{bucket}},
	}
	limiters := make(map[bool]string)
	for _, show := range []bool{false, true} {
		opts.ShowKeys = show
		srv := serve(t, gateway.Console(opts))
		s := watchConsole(t, srv.URL+"/events")
		routes, state, figures := s.next("routes"), s.next("state"), s.next("stats")
		limiters[show] = s.next("limiters")
		for _, data := range []string{routes, state, figures, limiters[show]} {
			if !json.Valid([]byte(data)) || strings.ContainsAny(data, "<>\x00\u2028") {
				t.Errorf("data %q", data)
			}
		}
		for data, want := range map[string]string{
			routes:  `"pattern":"/{name}"`,
			state:   `"url":"unix:///run/a.sock","weight":1,"healthy":true,"pending":0`,
			figures: `\u2028",`,
		} {
			if !strings.Contains(data, want) {
				t.Errorf("%s lacks %s", data, want)
			}
		}
		if !strings.Contains(state, `"state":"open"`) || !strings.Contains(state, `"tripped":true`) || !strings.HasSuffix(figures, ",4,0,0,0,0,0,0,0]]}") {
			t.Errorf("state %s, figures %s", state, figures)
		}
		if strings.Contains(limiters[show], "without") || !strings.Contains(limiters[show], `{"name":"own","keys":-1,"busy":[{"key":"`) {
			t.Errorf("limiters %s", limiters[show])
		}
		s.body.Close()
	}
	if !strings.Contains(limiters[true], `"203.0.113.9"`) || strings.Contains(limiters[false], "203.0.113.9") ||
		strings.Contains(limiters[false], "script") || !strings.Contains(limiters[false], `"spent":0.4`) && !strings.Contains(limiters[false], `"spent":0.5`) {
		t.Errorf("limiters %v", limiters)
	}
}

// A watcher sees a change of a circuit at the next tick, and looking at an open circuit does not change it.
func TestConsoleSeesAndLeavesACircuit(t *testing.T) {
	synctest.Test(t, testConsoleSeesAndLeavesACircuit)
}

func testConsoleSeesAndLeavesACircuit(t *testing.T) {
	circuit := gateway.NewCircuit("c", nil)
	console := gateway.HandlerTransport(gateway.Console(gateway.ConsoleOptions{Circuits: []*gateway.Circuit{circuit}}))
	res := must(console.RoundTrip(newRequest(t, "GET", "/events", nil)))
	defer res.Body.Close()
	s := &stream{t, bufio.NewReader(res.Body), res.Body}
	if state := s.next("state"); !strings.Contains(state, `"state":"closed"`) {
		t.Errorf("first %s", state)
	}
	began := time.Now()
	circuit.Trip(time.Nanosecond)
	if state := s.next("state"); !strings.Contains(state, `"state":"open"`) {
		t.Errorf("then %s", state)
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("seen after %v", took)
	}
	s.next("beat")
	if changes := circuit.Changes(); len(changes) != 1 {
		t.Errorf("looking at it made %v", changes)
	}
}

// streamWriter is a client that reads nothing, so that a stream can run in a bubble.
type streamWriter struct {
	*httptest.ResponseRecorder
	written int
}

func (w *streamWriter) Write(p []byte) (int, error) { w.written++; return len(p), nil }

// Several watchers share one reading, and when the last has gone there is none.
func TestConsoleSharesReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readings := 0
		console := gateway.Console(gateway.ConsoleOptions{Limiters: map[string]gateway.Limiter{"l": countingLimiter{readings: &readings}}})
		var stops []context.CancelFunc
		var writers []*streamWriter
		done := make(chan int, 64)
		for range 32 {
			ctx, cancel := context.WithCancel(t.Context())
			w := &streamWriter{ResponseRecorder: httptest.NewRecorder()}
			stops, writers = append(stops, cancel), append(writers, w)
			go func() {
				console.ServeHTTP(w, httptest.NewRequest("GET", "/events", nil).WithContext(ctx))
				done <- 1
			}()
		}
		synctest.Wait()
		if rec := recorded(console, httptest.NewRequest("GET", "/events", nil)); rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
			t.Errorf("one too many: %d %v", rec.Code, rec.Header())
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if readings < 9 || readings > 12 {
			t.Errorf("%d readings in ten seconds", readings)
		}
		for i, w := range writers {
			if w.written < 10 {
				t.Errorf("watcher %d got %d events", i, w.written)
			}
		}
		for _, stop := range stops {
			stop()
		}
		for range stops {
			<-done
		}
		before := readings
		time.Sleep(time.Minute)
		if readings != before {
			t.Errorf("%d readings while nobody looks", readings-before)
		}
		// A stream is not for ever: Auth has to see its client again.
		began := time.Now()
		console.ServeHTTP(&streamWriter{ResponseRecorder: httptest.NewRecorder()}, httptest.NewRequest("GET", "/events", nil))
		if took := time.Since(began); took != 5*time.Minute {
			t.Errorf("the stream ended after %v", took)
		}
	})
}

// A reading that takes long is repeated less often.
func TestConsolePacesSlowReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readings := 0
		console := gateway.Console(gateway.ConsoleOptions{Limiters: map[string]gateway.Limiter{
			"l": countingLimiter{readings: &readings, takes: 40 * time.Millisecond},
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		console.ServeHTTP(&streamWriter{ResponseRecorder: httptest.NewRecorder()}, httptest.NewRequest("GET", "/events", nil).WithContext(ctx))
		if readings < 8 || readings > 11 { // one in six seconds
			t.Errorf("%d readings of 40 ms in a minute", readings)
		}
	})
}

// countingLimiter counts how often it is asked for its usage.
type countingLimiter struct {
	gateway.Limiter
	readings *int
	takes    time.Duration
}

func (l countingLimiter) Usage(int) iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		*l.readings++
		time.Sleep(l.takes)
		yield("key", float64(*l.readings)/1000)
	}
}

// An open page does not hold up the drain of Serve.
func TestConsoleEndsWithServe(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	srv := &http.Server{Handler: gateway.Console(gateway.ConsoleOptions{Circuits: []*gateway.Circuit{gateway.NewCircuit("c", nil)}})}
	go func() { served <- gateway.Serve(ctx, srv, &gateway.ServeOptions{Listener: l, Drain: time.Minute}) }()
	s := watchConsole(t, "http://"+l.Addr().String()+"/events")
	s.next("state")
	began := time.Now()
	stop()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if _, err := io.Copy(io.Discard, s.reader); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
}

func TestConsoleEndsWithItsClient(t *testing.T) {
	ended := make(chan bool, 1)
	console := gateway.Console(gateway.ConsoleOptions{Circuits: []*gateway.Circuit{gateway.NewCircuit("c", nil)}})
	srv := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		console.ServeHTTP(w, r)
		ended <- true
	}))
	s := watchConsole(t, srv.URL+"/events")
	s.next("state")
	s.body.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the stream goes on without its client")
	}
}

func TestConsolePanics(t *testing.T) {
	for name, opts := range map[string]gateway.ConsoleOptions{
		"Upstream": {Upstreams: []*gateway.Upstream{nil}},
		"Circuit":  {Circuits: []*gateway.Circuit{nil}},
		"Limiter":  {Limiters: map[string]gateway.Limiter{"x": nil}},
	} {
		if got := panicOf(func() { gateway.Console(opts) }); !strings.HasPrefix(got, "gateway: Console: nil "+name) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
