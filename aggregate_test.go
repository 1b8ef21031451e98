package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// echoes answers with what it was asked for.
var echoes = gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%q", r.RequestURI)
}))

func TestAggregateStitchesByteForByte(t *testing.T) {
	const odd = `{"z": 1, "a":12345678901234567890.10, "e":1E+5, "s":"\u00e9\/<>é\ud800", "l":[1 ,2], "z":{}}`
	h := gateway.Aggregate([]gateway.Part{
		{Name: "odd", From: answersJSON(200, " \n"+odd+"\n"), Path: "/"},
		{Name: "scalar", From: answersJSON(201, "0.10"), Path: "/"},
		{Name: `say "<é>"`, From: answersJSON(200, `"x"`), Path: "/"},
		{Name: "none", From: answersJSON(204, ""), Path: "/", Pick: "/a"},
		{Name: "gone", From: answersJSON(404, `{"no":1}`), Path: "/", NotFoundNull: true},
		{Name: "picked", From: answersJSON(200, odd), Path: "/", Pick: "/l/1"},
	}, nil)
	w := recorded(h, nil)
	want := `{"odd":` + odd + `,"scalar":0.10,"say \"\u003cé\u003e\"":"x","none":null,"gone":null,"picked":2}` + "\n"
	if w.Code != 200 || w.Body.String() != want {
		t.Errorf("got %d %s\nwant %s", w.Code, w.Body, want)
	}
	if ct, cc := w.Header().Get("Content-Type"), w.Header().Get("Cache-Control"); ct != "application/json" || cc != "" {
		t.Errorf("Content-Type %q, Cache-Control %q", ct, cc)
	}
}

// The parts are asked at the same time and stand in their order, whichever comes first.
func TestAggregateOrder(t *testing.T) {
	const n = 5
	for last := range n {
		var arrived sync.WaitGroup
		arrived.Add(n)
		done := make([]chan bool, n)
		parts := make([]gateway.Part, n)
		for i := range n {
			done[i] = make(chan bool)
		}
		for i := range n {
			// Each answers after the next one has, round from last.
			parts[i] = gateway.Part{Name: string(rune('a' + i)), Path: "/", From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				arrived.Done()
				arrived.Wait()
				if i != last {
					<-done[(i+1)%n]
				}
				fmt.Fprint(w, i)
				w.(http.Flusher).Flush()
				close(done[i])
			}))}
		}
		if got := recorded(gateway.Aggregate(parts, nil), nil).Body.String(); got != `{"a":0,"b":1,"c":2,"d":3,"e":4}`+"\n" {
			t.Errorf("got %s", got)
		}
	}
}

// What a hostile or broken backend sends over a real connection fails its part and nothing else.
func TestAggregateHostileBodies(t *testing.T) {
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			io.WriteString(w, `{"ok":true}`)
		case "/empty":
		case "/html":
			io.WriteString(w, "<html>")
		case "/garbage":
			io.WriteString(w, `{"a":1}}`)
		case "/two":
			io.WriteString(w, `{},"admin":true,"x":{}`)
		case "/utf8":
			io.WriteString(w, "{\"a\":\"\xff\"}")
		case "/deep":
			io.WriteString(w, deep)
		case "/large":
			io.WriteString(w, `"`+strings.Repeat("x", 64<<10)+`"`)
		case "/endless":
			for {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 4<<10)); err != nil {
					return
				}
			}
		case "/short":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, `{}`)
		case "/cut":
			io.WriteString(w, `{"a":`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/redirect":
			http.Redirect(w, r, "/good", http.StatusFound)
		case "/partial":
			w.WriteHeader(500)
		case "/teapot":
			w.WriteHeader(http.StatusTeapot)
		case "/duplicate":
			io.WriteString(w, `{"a":1,"a":2}`)
		}
	}))
	upstream := gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil)
	for _, c := range []struct {
		path, pick, outcome string
		status              int
	}{
		{"/empty", "", "upstream_error", 502},
		{"/html", "", "upstream_error", 502},
		{"/garbage", "", "upstream_error", 502},
		{"/two", "", "upstream_error", 502},
		{"/utf8", "", "upstream_error", 502},
		{"/deep", "", "upstream_error", 502},
		{"/large", "", "upstream_error", 502},
		{"/endless", "", "upstream_error", 502},
		{"/short", "", "aborted", 502},
		{"/cut", "", "aborted", 502},
		{"/abort", "", "upstream_error", 502},
		{"/redirect", "", "upstream_error", 502},
		{"/partial", "", "upstream_error", 502},
		{"/teapot", "", "upstream_error", 502},
		{"/duplicate", "/a", "upstream_error", 502},
		{"/good", "/missing", "upstream_error", 502},
	} {
		for name, from := range map[string]struct {
			rt   http.RoundTripper
			base string
		}{"upstream": {upstream, ""}, "transport": {http.DefaultTransport, backend.URL}} {
			t.Run(name+c.path, func(t *testing.T) {
				part := gateway.Part{Name: "bad", From: from.rt, Path: from.base + c.path, Pick: c.pick, Optional: true, Default: json.RawMessage(" [1] ")}
				good := gateway.Part{Name: "good", From: from.rt, Path: from.base + "/good"}
				opts := &gateway.AggregateOptions{MaxBytes: 48 << 10}
				w := recorded(gateway.Aggregate([]gateway.Part{part, good}, opts), nil)
				want := fmt.Sprintf(`{"bad":[1],"good":{"ok":true},"errors":[{"name":"bad","status":%d,"outcome":"%s"}]}`+"\n", c.status, c.outcome)
				if w.Code != 200 || w.Body.String() != want {
					t.Errorf("got %d %s\nwant %s", w.Code, w.Body, want)
				}
				if cc := w.Header().Get("Cache-Control"); cc != "no-store" {
					t.Errorf("Cache-Control %q", cc)
				}

				part.Optional, part.Default = false, nil
				srv := serve(t, gateway.Aggregate([]gateway.Part{good, part}, opts))
				res, err := srv.Client().Get(srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				if p := readProblem(t, res); p.Status != c.status || p.Detail != "" {
					t.Errorf("required: got %+v", p)
				}
			})
		}
	}
}

func TestAggregateRequiredFailure(t *testing.T) {
	fails := func(err error) http.RoundTripper {
		return roundTrip(func(*http.Request) (*http.Response, error) { return nil, err })
	}
	with := func(status int, header http.Header) http.RoundTripper {
		return roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader("{}"))}, nil
		})
	}
	gatewayWithin := func(err error) http.RoundTripper {
		return gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { gateway.WriteError(w, r, err) }))
	}
	quiet := context.WithValue(t.Context(), http.ServerContextKey, &http.Server{ErrorLog: log.New(io.Discard, "", 0)})
	panics := gateway.HandlerTransport(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }))
	for _, c := range []struct {
		name    string
		from    http.RoundTripper
		status  int
		outcome string
		header  http.Header // that must be there; nil values: must not
	}{
		{"401", with(401, http.Header{"Www-Authenticate": {"Bearer realm=x", "Basic"}}), 401, "ok", http.Header{"Www-Authenticate": {"Bearer realm=x", "Basic"}}},
		{"403", with(403, http.Header{"Retry-After": {"1"}, "Set-Cookie": {"a=b"}}), 403, "ok", http.Header{"Retry-After": nil, "Set-Cookie": nil}},
		{"404", with(404, nil), 404, "ok", nil},
		{"410", with(410, nil), 410, "ok", nil},
		{"429", with(429, http.Header{"Retry-After": {"17"}}), 429, "ok", http.Header{"Retry-After": {"17"}}},
		{"400", with(400, nil), 502, "upstream_error", nil},
		{"409", with(409, nil), 502, "upstream_error", nil},
		{"500", with(500, nil), 502, "upstream_error", nil},
		{"503", with(503, http.Header{"Retry-After": {"17"}}), 502, "upstream_error", http.Header{"Retry-After": nil}},
		{"dial", fails(errors.New("dial: refused 10.0.0.1")), 502, "upstream_error", nil},
		{"no answer", fails(nil), 502, "upstream_error", nil},
		{"circuit", fails(fmt.Errorf("%w: payments", gateway.ErrCircuitOpen)), 503, "rejected", nil},
		{"circuit with its time", fails(&gateway.Error{Status: 503, Err: gateway.ErrCircuitOpen, Header: http.Header{"Retry-After": {"5"}}}), 503, "rejected", http.Header{"Retry-After": {"5"}}},
		{"no target", fails(gateway.ErrNoTarget), 503, "rejected", nil},
		{"timeout", fails(gateway.ErrTimeout), 504, "timeout", nil},
		{"limit", fails(gateway.ErrRateLimited), 429, "rejected", nil},
		{"another's cancel", fails(context.Canceled), 502, "upstream_error", nil},
		{"panic", panics, 502, "internal", nil},
		{"refused by a gateway within", gatewayWithin(fmt.Errorf("%w", gateway.ErrOverloaded)), 503, "rejected", nil},
		{"timed out in a gateway within", gatewayWithin(gateway.ErrTimeout), 504, "timeout", nil},
		{"failed in a gateway within", gatewayWithin(gateway.ErrBadGateway), 502, "upstream_error", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			logged := make(journal, 1)
			part := gateway.Part{Name: "part", From: c.from, Path: "/"}
			h := gateway.Observe(&gateway.ObserveOptions{Logger: logged.logger()})(gateway.Aggregate([]gateway.Part{part}, nil))
			r := httptest.NewRequestWithContext(quiet, "GET", "/", nil)
			w := recorded(h, r)
			if w.Code != c.status {
				t.Errorf("got %d, want %d", w.Code, c.status)
			}
			p := readProblem(t, w.Result())
			if len(p.TraceID) != 32 || strings.Contains(w.Body.String(), "10.0.0.1") {
				t.Errorf("body %s", w.Body)
			}
			for name, values := range c.header {
				if got := w.Header()[name]; fmt.Sprint(got) != fmt.Sprint(values) {
					t.Errorf("%s: got %q, want %q", name, got, values)
				}
			}
			if line := logged.next(t); line["outcome"] != c.outcome {
				t.Errorf("want outcome %s: %v", c.outcome, line)
			}

			part.Optional = true
			want := fmt.Sprintf(`{"part":null,"errors":[{"name":"part","status":%d,"outcome":"%s"}]}`+"\n", c.status, c.outcome)
			if w := recorded(gateway.Aggregate([]gateway.Part{part}, nil), r); w.Code != 200 || w.Body.String() != want {
				t.Errorf("optional: got %d %s, want %s", w.Code, w.Body, want)
			}
		})
	}
}

func TestAggregateFieldsOfOtherParts(t *testing.T) {
	const user = `{"id":"a b/ü","n":12345678901234567890,"yes":true,"deep":{"x":[{"y":"z"}]},"null":null,"empty":"","dots":"..","up":"../x","esc":"\u0041"}`
	for _, c := range []struct{ name, path, want string }{
		{"path and query", "/o/{user.id}?u={user.id}&n=1", `"/o/a%20b%2F%C3%BC?u=a+b%2F%C3%BC&n=1"`},
		{"big number", "/o/{user.n}", `"/o/12345678901234567890"`},
		{"boolean", "/o?{user.yes}=1", `"/o?true=1"`},
		{"deep", "/o/{user.deep.x.0.y}", `"/o/z"`},
		{"escaped", "/o/{user.esc}", `"/o/A"`},
		{"path value", "/o/{id}/{user.yes}", `"/o/7/true"`},
		{"null", "/o/{user.null}", ""},
		{"empty", "/o/{user.empty}", ""},
		{"dots", "/o?a={user.dots}", ""},
		{"up", "/o/{user.up}", ""},
		{"object", "/o/{user.deep}", ""},
		{"list", "/o/{user.deep.x}", ""},
		{"missing", "/o/{user.missing}", ""},
		{"no such path value", "/o/{other}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gateway.Aggregate([]gateway.Part{
				{Name: "orders", From: echoes, Path: c.path, Optional: true},
				{Name: "user", From: answersJSON(200, user), Path: "/me"},
			}, nil)
			r := httptest.NewRequest("GET", "/", nil)
			r.SetPathValue("id", "7")
			want := `{"orders":` + c.want + `,"user":` + user + "}\n"
			if c.want == "" {
				want = `{"orders":null,"user":` + user + `,"errors":[{"name":"orders","status":502,"outcome":"upstream_error"}]}` + "\n"
			}
			if got := recorded(h, r).Body.String(); got != want {
				t.Errorf("got %swant %s", got, want)
			}
		})
	}

	t.Run("of a Default", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{
			{Name: "user", From: answersJSON(500, ""), Path: "/", Optional: true, Default: json.RawMessage(`{"id":"nobody"}`)},
			{Name: "orders", From: echoes, Path: "/{user.id}"},
		}, nil)
		want := `{"user":{"id":"nobody"},"orders":"/nobody","errors":[{"name":"user","status":502,"outcome":"upstream_error"}]}` + "\n"
		if got := recorded(h, nil).Body.String(); got != want {
			t.Errorf("got %s", got)
		}
	})
	t.Run("after Pick", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{
			{Name: "user", From: answersJSON(200, `{"data":{"id":3}}`), Path: "/", Pick: "/data"},
			{Name: "orders", From: echoes, Path: "/{user.id}"},
			{Name: "more", From: echoes, Path: "/{user.id}{user.id}/{user.id}"},
			{Name: "items", From: answersJSON(200, `["x"]`), Path: "/{orders.0}", Optional: true},
		}, nil)
		want := `{"user":{"id":3},"orders":"/3","more":"/33/3","items":null,"errors":[{"name":"items","status":502,"outcome":"upstream_error"}]}` + "\n"
		if got := recorded(h, nil).Body.String(); got != want {
			t.Errorf("got %s", got)
		}
	})
	t.Run("of a part that failed", func(t *testing.T) {
		h := gateway.Aggregate([]gateway.Part{
			{Name: "user", From: roundTrip(func(*http.Request) (*http.Response, error) { return nil, gateway.ErrCircuitOpen }), Path: "/", Optional: true},
			{Name: "orders", From: echoes, Path: "/{user.id}", Optional: true},
			{Name: "items", From: echoes, Path: "/{orders.id}", Optional: true},
		}, nil)
		want := `{"user":null,"orders":null,"items":null,"errors":[{"name":"user","status":503,"outcome":"rejected"},` +
			`{"name":"orders","status":503,"outcome":"rejected"},{"name":"items","status":503,"outcome":"rejected"}]}` + "\n"
		if got := recorded(h, nil).Body.String(); got != want {
			t.Errorf("got %s", got)
		}
	})
	t.Run("as soon as it arrives", func(t *testing.T) {
		asked := make(chan bool)
		h := gateway.Aggregate([]gateway.Part{
			{Name: "slow", Path: "/", From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-asked // only the part that needs user ends this
				io.WriteString(w, "1")
			}))},
			{Name: "user", From: answersJSON(200, `{"id":1}`), Path: "/"},
			{Name: "orders", Path: "/{user.id}", From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(asked)
				io.WriteString(w, "2")
			}))},
		}, nil)
		if got := recorded(h, nil).Body.String(); got != `{"slow":1,"user":{"id":1},"orders":2}`+"\n" {
			t.Errorf("got %s", got)
		}
	})
}

// balancer tells how each attempt at its one target ended.
type balancer chan gateway.Outcome

func (b balancer) Pick(*http.Request, []gateway.Target) (int, func(gateway.Outcome)) {
	return 0, func(o gateway.Outcome) { b <- o }
}

// A required part's failure cancels the others, and that is not held against their upstream.
func TestAggregateCancelsOthers(t *testing.T) {
	before := runtime.NumGoroutine()
	arrived := make(chan bool)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			io.WriteString(w, `{"a":`)
			w.(http.Flusher).Flush()
		}
		arrived <- true
		<-r.Context().Done()
	}))
	outcomes := make(balancer, 2)
	transport := gateway.NewTransportUnderTest(nil)
	slow := gateway.NewUpstream("slow", gateway.MustTargets(backend.URL), &gateway.UpstreamOptions{Balancer: outcomes, Transport: transport})
	asked := false
	h := gateway.Aggregate([]gateway.Part{
		{Name: "a", From: slow, Path: "/header"},
		{Name: "b", From: slow, Path: "/body", Optional: true},
		{Name: "c", Path: "/", From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-arrived
			<-arrived
			w.WriteHeader(http.StatusGone)
		}))},
		{Name: "d", Path: "/{c.id}", From: roundTrip(func(*http.Request) (*http.Response, error) { asked = true; return nil, nil })},
	}, nil)
	if w := recorded(h, nil); w.Code != http.StatusGone {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	for range 2 {
		if o := <-outcomes; o != gateway.OutcomeClientCanceled {
			t.Errorf("an attempt ended as %v", o)
		}
	}
	if asked {
		t.Error("a part was asked after all was lost")
	}
	backend.Close()
	transport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	waitGoroutines(t, before)
}

func TestAggregateClientLeaves(t *testing.T) {
	for _, optional := range []bool{false, true} {
		before := runtime.NumGoroutine()
		arrived, ended := make(chan bool), make(chan error, 1)
		part := gateway.Part{Name: "a", Path: "/", Optional: optional, From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			arrived <- true
			<-r.Context().Done()
			ended <- r.Context().Err()
		}))}
		later := gateway.Part{Name: "b", Path: "/{a.id}", Optional: optional, From: answersJSON(200, "1")}
		logged := make(journal, 1)
		srv := httptest.NewServer(gateway.Observe(&gateway.ObserveOptions{Logger: logged.logger()})(gateway.Aggregate([]gateway.Part{part, later}, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		if res, err := srv.Client().Do(newRequest(t, "GET", srv.URL, nil).WithContext(ctx)); err == nil {
			res.Body.Close()
			t.Error("an answer after the client left")
		}
		if err := <-ended; err != context.Canceled {
			t.Errorf("the part's context ended with %v", err)
		}
		if line := logged.next(t); line["status"] != "499" || line["outcome"] != "client_canceled" {
			t.Errorf("log: %v", line)
		}
		srv.Close()
		waitGoroutines(t, before)
	}
}

func TestAggregateTimeouts(t *testing.T) {
	waits := roundTrip(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	stalls := gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "[")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	deaf := gateway.HandlerTransport(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }))
	after := func(d time.Duration) http.RoundTripper {
		return gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(d)
			io.WriteString(w, `{"id":1}`)
		}))
	}
	for _, c := range []struct {
		name  string
		parts []gateway.Part
		opts  gateway.AggregateOptions
		took  time.Duration
		code  int
		body  string // "" is not looked at
	}{
		{"default", []gateway.Part{{Name: "a", From: waits}}, gateway.AggregateOptions{}, 5 * time.Second, 504, ""},
		{"of the whole", []gateway.Part{{Name: "a", From: waits}}, gateway.AggregateOptions{Timeout: time.Second}, time.Second, 504, ""},
		{"in the body", []gateway.Part{{Name: "a", From: stalls}}, gateway.AggregateOptions{Timeout: time.Second}, time.Second, 504, ""},
		{"of a handler that does not listen", []gateway.Part{{Name: "a", From: deaf}}, gateway.AggregateOptions{Timeout: time.Second}, time.Second, 504, ""},
		{"of a part", []gateway.Part{{Name: "a", From: waits, Timeout: 300 * time.Millisecond, Optional: true}, {Name: "b", From: after(time.Second)}},
			gateway.AggregateOptions{}, time.Second, 200, `{"a":null,"b":{"id":1},"errors":[{"name":"a","status":504,"outcome":"timeout"}]}`},
		{"of a part, from when it is asked", []gateway.Part{{Name: "a", From: after(time.Second)}, {Name: "b", From: after(time.Second), Path: "/{a.id}", Timeout: 1500 * time.Millisecond}},
			gateway.AggregateOptions{}, 2 * time.Second, 200, `{"a":{"id":1},"b":{"id":1}}`},
		{"of the whole before the part's", []gateway.Part{{Name: "a", From: waits, Timeout: time.Hour}}, gateway.AggregateOptions{Timeout: time.Second}, time.Second, 504, ""},
		{"nothing is asked after it", []gateway.Part{{Name: "a", From: waits, Optional: true, Default: json.RawMessage(`{"id":1}`)}, {Name: "b", From: waits, Path: "/{a.id}", Optional: true}},
			gateway.AggregateOptions{Timeout: time.Second}, time.Second, 200, `{"a":{"id":1},"b":null,"errors":[{"name":"a","status":504,"outcome":"timeout"},{"name":"b","status":504,"outcome":"timeout"}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for i := range c.parts {
					if c.parts[i].Path == "" {
						c.parts[i].Path = "/"
					}
				}
				h := gateway.Aggregate(c.parts, &c.opts)
				began := time.Now()
				w := recorded(h, nil)
				if took := time.Since(began); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if w.Code != c.code || c.body != "" && w.Body.String() != c.body+"\n" {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
				time.Sleep(time.Hour) // until the handler that does not listen has ended too
			})
		})
	}
}

func TestAggregateBounds(t *testing.T) {
	exact := `"` + strings.Repeat("x", 998) + `"`
	part := func(name, body string) gateway.Part {
		return gateway.Part{Name: name, From: answersJSON(200, body), Path: "/", Optional: true}
	}
	count := func(w *httptest.ResponseRecorder) int { return strings.Count(w.Body.String(), `"status":502`) }
	if w := recorded(gateway.Aggregate([]gateway.Part{part("a", exact), part("b", exact+" ")}, &gateway.AggregateOptions{MaxBytes: 1000}), nil); count(w) != 1 || strings.Contains(w.Body.String(), `"b":"`) {
		t.Errorf("MaxBytes: got %s", w.Body)
	}
	if w := recorded(gateway.Aggregate([]gateway.Part{part("a", exact), part("b", exact)}, &gateway.AggregateOptions{MaxTotalBytes: 2000}), nil); count(w) != 0 {
		t.Errorf("MaxTotalBytes: got %s", w.Body)
	}
	if w := recorded(gateway.Aggregate([]gateway.Part{part("a", exact), part("b", exact), part("c", exact)}, &gateway.AggregateOptions{MaxTotalBytes: 2999}), nil); count(w) < 1 {
		t.Errorf("MaxTotalBytes: got %s", w.Body)
	}

	// An endless body is not read for long.
	endless := gateway.Part{Name: "a", Path: "/", Optional: true, From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for n := 0; ; n++ {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			} else if n > 1<<10 {
				t.Error("the body was read to no end")
				return
			}
		}
	}))}
	if w := recorded(gateway.Aggregate([]gateway.Part{endless}, &gateway.AggregateOptions{MaxBytes: 1 << 30, MaxTotalBytes: 1000}), nil); count(w) != 1 {
		t.Errorf("endless: got %s", w.Body)
	}

	var running, most atomic.Int32
	var parts []gateway.Part
	gate := make(chan bool)
	for i := range 6 {
		parts = append(parts, gateway.Part{Name: string(rune('a' + i)), Path: "/", From: gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := running.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			select { // in pairs
			case gate <- true:
			case <-gate:
			}
			running.Add(-1)
			io.WriteString(w, "1")
		}))})
	}
	if w := recorded(gateway.Aggregate(parts, &gateway.AggregateOptions{MaxInFlight: 2}), nil); w.Code != 200 || most.Load() != 2 {
		t.Errorf("MaxInFlight: %d at once, %d", most.Load(), w.Code)
	}
}

func TestAggregateMerge(t *testing.T) {
	merge := &gateway.AggregateOptions{Merge: true}
	many := func(n int) string {
		var b strings.Builder
		b.WriteByte('{')
		for i := range n {
			fmt.Fprintf(&b, `"%d":0,`, i)
		}
		return b.String() + `"z":0}`
	}
	for _, c := range []struct{ name, a, b, want string }{
		{"side by side", `{"x":1, "y" : 2.50}`, `{"z":3}`, `{"x":1,"y" : 2.50,"z":3}`},
		{"the earlier stands", `{"x":1}`, `{"x":2,"y":3}`, `{"x":1,"y":3}`},
		{"in other letters", `{"x":1}`, `{"\u0078":2}`, `{"x":1}`},
		{"two in one part", `{"x":1,"x":2}`, `{"x":3}`, `{"x":1,"x":2}`},
		{"no object", `{"x":1}`, `[{}]`, `{"x":1,"b":[{}]}`},
		{"no object first", `7`, `{"a":1,"c":2}`, `{"a":7,"c":2}`},
		{"no object under a name that is taken", `{"b":1}`, `null`, `{"b":1}`},
		{"nothing", `{}`, ` { } `, `{}`},
		{"forged errors", `{"errors":[],"x":1}`, `{"error\u0073":2}`, `{"x":1}`},
		{"too many members", `{"x":1}`, many(10_000), `{"x":1,"b":null,"errors":[{"name":"b","status":502,"outcome":"upstream_error"}]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gateway.Aggregate([]gateway.Part{
				{Name: "a", From: answersJSON(200, c.a), Path: "/"},
				{Name: "b", From: answersJSON(200, c.b), Path: "/", Optional: true},
			}, merge)
			if got := recorded(h, nil).Body.String(); got != c.want+"\n" {
				t.Errorf("got %swant %s", got, c.want)
			}
		})
	}
	h := gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(200, many(9_999)), Path: "/"}}, merge)
	if got := recorded(h, nil).Body.String(); got != many(9_999)+"\n" {
		t.Errorf("got %.100s", got)
	}
	h = gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(500, ""), Path: "/", Optional: true, Default: json.RawMessage(`{"x":0}`)}}, merge)
	if got := recorded(h, nil).Body.String(); got != `{"x":0,"errors":[{"name":"a","status":502,"outcome":"upstream_error"}]}`+"\n" {
		t.Errorf("Default: got %s", got)
	}
}

func TestAggregateServerTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		after := func(status int, d time.Duration) http.RoundTripper {
			return gateway.HandlerTransport(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(d)
				w.WriteHeader(status)
				io.WriteString(w, "1")
			}))
		}
		timing := &gateway.AggregateOptions{ServerTiming: true}
		h := gateway.Aggregate([]gateway.Part{
			{Name: "a b,é", From: after(200, 1500*time.Microsecond), Path: "/"},
			{Name: "c", From: after(500, 2*time.Millisecond), Path: "/", Optional: true},
		}, timing)
		if got := recorded(h, nil).Header().Get("Server-Timing"); got != "a_b__;dur=1.500, c;dur=2.000" {
			t.Errorf("got %q", got)
		}
		h = gateway.Aggregate([]gateway.Part{{Name: "a", From: after(404, time.Millisecond), Path: "/"}}, timing)
		if got := recorded(h, nil).Header().Get("Server-Timing"); got != "a;dur=1.000" {
			t.Errorf("problem: got %q", got)
		}
	})
}

// An open circuit refuses its part at once, and says when to come back.
func TestAggregateOpenCircuit(t *testing.T) {
	circuit := gateway.NewCircuit("payments", nil)
	circuit.Trip(time.Minute)
	payments := gateway.NewUpstream("payments", gateway.MustTargets("http://127.0.0.1:1"), &gateway.UpstreamOptions{Circuit: circuit})
	part := gateway.Part{Name: "orders", From: payments, Path: "/", Optional: true}
	want := `{"orders":null,"errors":[{"name":"orders","status":503,"outcome":"rejected"}]}` + "\n"
	if got := recorded(gateway.Aggregate([]gateway.Part{part}, nil), nil).Body.String(); got != want {
		t.Errorf("got %s", got)
	}
	part.Optional = false
	w := recorded(gateway.Aggregate([]gateway.Part{part}, nil), nil)
	if wait := w.Header().Get("Retry-After"); w.Code != 503 || wait == "" || wait == "0" {
		t.Errorf("required: got %d, Retry-After %q", w.Code, wait)
	}
}

// A panic on a part's goroutine goes up where the server can see it, after the other parts have ended.
func TestAggregatePanicGoesUp(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, value := range []any{"boom", http.ErrAbortHandler} {
		waiting := make(chan bool)
		h := gateway.Aggregate([]gateway.Part{
			{Name: "a", Path: "/", Optional: true, From: roundTrip(func(*http.Request) (*http.Response, error) { <-waiting; panic(value) })},
			{Name: "b", Path: "/", From: roundTrip(func(r *http.Request) (*http.Response, error) {
				close(waiting)
				<-r.Context().Done()
				return nil, r.Context().Err()
			})},
		}, nil)
		got := panicValue(func() { recorded(h, nil) })
		if value == http.ErrAbortHandler && got != value {
			t.Errorf("got %v", got)
		}
		if text := fmt.Sprint(got); value == "boom" && (!strings.HasPrefix(text, `boom [part "a"]`) || !strings.Contains(text, "aggregate_test.go")) {
			t.Errorf("got %v", got)
		}
	}
	waitGoroutines(t, before)
}

func TestAggregateHead(t *testing.T) {
	srv := serve(t, gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(200, "1"), Path: "/"}}, nil))
	res, err := srv.Client().Head(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || res.ContentLength != int64(len(`{"a":1}`)+1) || len(body) != 0 {
		t.Errorf("got %d, length %d, body %q", res.StatusCode, res.ContentLength, body)
	}
}

// A part's connection is used again after an answer that was not wanted.
func TestAggregateReusesConnections(t *testing.T) {
	peers := make(chan string, 4)
	backend := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peers <- r.RemoteAddr
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, strings.Repeat("x", 3000))
	}))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	null := gateway.Aggregate([]gateway.Part{{Name: "a", From: transport, Path: backend.URL, NotFoundNull: true}}, nil)
	fails := gateway.Aggregate([]gateway.Part{{Name: "a", From: transport, Path: backend.URL}}, nil)
	for _, h := range []http.Handler{null, fails, null, null} {
		recorded(h, nil)
	}
	first := <-peers
	for range 3 {
		if p := <-peers; p != first {
			t.Error("another connection")
		}
	}
}

func TestAggregateSetupPanics(t *testing.T) {
	one := answersJSON(200, "1")
	ok := gateway.Part{Name: "a", From: one, Path: "/"}
	request := func(in *http.Request) (*http.Request, error) { return in, nil }
	for name, c := range map[string]struct {
		parts []gateway.Part
		opts  *gateway.AggregateOptions
	}{
		"no parts":                 {nil, nil},
		"no name":                  {[]gateway.Part{{From: one, Path: "/"}}, nil},
		"errors":                   {[]gateway.Part{{Name: "errors", From: one, Path: "/"}}, nil},
		"name not UTF-8":           {[]gateway.Part{{Name: "\xff", From: one, Path: "/"}}, nil},
		"duplicate name":           {[]gateway.Part{ok, ok}, nil},
		"no From":                  {[]gateway.Part{{Name: "a", Path: "/"}}, nil},
		"no Path":                  {[]gateway.Part{{Name: "a", From: one}}, nil},
		"Path and Request":         {[]gateway.Part{{Name: "a", From: one, Path: "/", Request: request}}, nil},
		"bad Path":                 {[]gateway.Part{{Name: "a", From: one, Path: "/{x"}}, nil},
		"unknown part":             {[]gateway.Part{{Name: "a", From: one, Path: "/{b.id}"}}, nil},
		"itself":                   {[]gateway.Part{{Name: "a", From: one, Path: "/{a.id}"}}, nil},
		"bad Pick":                 {[]gateway.Part{{Name: "a", From: one, Path: "/", Pick: "x"}}, nil},
		"bad Default":              {[]gateway.Part{{Name: "a", From: one, Path: "/", Default: json.RawMessage("{"), Optional: true}}, nil},
		"Default without Optional": {[]gateway.Part{{Name: "a", From: one, Path: "/", Default: json.RawMessage("{}")}}, nil},
		"negative part Timeout":    {[]gateway.Part{{Name: "a", From: one, Path: "/", Timeout: -1}}, nil},
		"plain transport":          {[]gateway.Part{{Name: "a", From: http.DefaultTransport, Path: "/"}}, nil},
		"URL for a handler":        {[]gateway.Part{{Name: "a", From: one, Path: "http://h/"}}, nil},
		"cycle":                    {[]gateway.Part{ok, {Name: "b", From: one, Path: "/{c.x}"}, {Name: "c", From: one, Path: "/{d.x}?{a.x}"}, {Name: "d", From: one, Path: "/?{b.x}"}}, nil},
		"negative Timeout":         {[]gateway.Part{ok}, &gateway.AggregateOptions{Timeout: -1}},
		"negative MaxBytes":        {[]gateway.Part{ok}, &gateway.AggregateOptions{MaxBytes: -1}},
		"negative MaxTotalBytes":   {[]gateway.Part{ok}, &gateway.AggregateOptions{MaxTotalBytes: -1}},
		"negative MaxInFlight":     {[]gateway.Part{ok}, &gateway.AggregateOptions{MaxInFlight: -1}},
		"bad field name":           {[]gateway.Part{ok}, &gateway.AggregateOptions{Headers: []string{"a b"}}},
		"bad identity field":       {[]gateway.Part{ok}, &gateway.AggregateOptions{Identity: map[string]string{"": "sub"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if v := panicOf(func() { gateway.Aggregate(c.parts, c.opts) }); !strings.HasPrefix(v, "gateway: Aggregate: ") {
				t.Errorf("got %q", v)
			}
		})
	}
}

// FuzzAggregate: whatever a part sends, the answer is JSON, and what was JSON is in it as it was.
func FuzzAggregate(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.50]}`, "", "[", `{"a":1,"a":2}`, `"\ud800"`, "\"\xff\"", ` {"errors" : 1 } `, `1e999`, `},"x":{`} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, body []byte, merge bool) {
		h := gateway.Aggregate([]gateway.Part{
			{Name: "a", From: answersJSON(200, string(body)), Path: "/", Optional: true},
			{Name: "b", From: answersJSON(200, `{"z":"{a.x}"}`), Path: "/", Optional: true},
			{Name: "c", From: echoes, Path: "/{a.a}?{a.b}=1", Optional: true},
		}, &gateway.AggregateOptions{Merge: merge})
		w := recorded(h, nil)
		got := w.Body.Bytes()
		if w.Code != 200 || !json.Valid(got) {
			t.Fatalf("got %d %q", w.Code, got)
		}
		if clean := bytes.Trim(body, " \t\r\n"); !merge && json.Valid(clean) && regexp.MustCompile(`^[ -~]+$`).Match(clean) && !bytes.HasPrefix(got, append([]byte(`{"a":`), clean...)) {
			t.Fatalf("%q became %q", body, got)
		}
	})
}
