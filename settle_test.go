package gateway_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// accountLimiter is a scriptLimiter that is a Debtor, too.
type accountLimiter struct{ scriptLimiter }

func (a *accountLimiter) Return(ctx context.Context, key string, n int, d gateway.Decision) error {
	if ctx.Err() != nil || !d.OK {
		a.note("bad return", key, n)
	}
	a.note("return", key, n)
	return a.err
}

func (a *accountLimiter) Owe(ctx context.Context, key string, n int) error {
	if ctx.Err() != nil {
		a.note("bad owe", key, n)
	}
	a.note("owe", key, n)
	return a.err
}

func costs(n int) func(*http.Request) int { return func(*http.Request) int { return n } }

// settled makes a RateLimit that reserves 10 units and settles for what was reported, and records each Usage.
func settled(l gateway.Limiter, used *[]gateway.Usage, change ...func(*gateway.RateLimitOptions)) gateway.Middleware {
	var mu sync.Mutex
	opts := &gateway.RateLimitOptions{Cost: costs(10), Settle: func(_ *http.Request, u gateway.Usage) int {
		mu.Lock()
		defer mu.Unlock()
		*used = append(*used, u)
		return int(u.Units)
	}}
	for _, c := range change {
		c(opts)
	}
	return gateway.RateLimit(l, byName("k"), opts)
}

// acts is a handler that carries out a script, word by word:
//
//	units:3    AddUnits
//	status:404 write the header
//	hello      write the word
//	401        write the error of this status, as a middleware does
//	limited    be refused by another RateLimit; away: its limiter fails
//	panic      panic; abort: with http.ErrAbortHandler
//	as:bob     go on with another context, with an Identity
//	parts:4,3  answer with an Aggregate of parts, which report so many units
func acts(script string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { act(w, r, strings.Fields(script)) })
}

var actErrors = map[string]error{
	"401": gateway.ErrUnauthenticated, "502": gateway.ErrBadGateway,
}

func act(w http.ResponseWriter, r *http.Request, words []string) {
	for i, word := range words {
		word, arg, _ := strings.Cut(word, ":")
		if err := actErrors[word]; err != nil {
			gateway.WriteError(w, r, err)
			continue
		}
		switch word {
		case "units":
			n, _ := strconv.ParseInt(arg, 10, 64)
			gateway.AddUnits(r.Context(), n)
		case "status":
			status, _ := strconv.Atoi(arg)
			w.WriteHeader(status)
		case "limited":
			gateway.RateLimit(&scriptLimiter{}, byName("k"), nil)(acts("units:3 hello")).ServeHTTP(w, r)
		case "away":
			gateway.RateLimit(&scriptLimiter{err: errors.New("away")}, byName("k"), nil)(acts("hello")).ServeHTTP(w, r)
		case "panic":
			panic("at the disco")
		case "abort":
			panic(http.ErrAbortHandler)
		case "as":
			act(w, r.WithContext(gateway.WithIdentity(r.Context(), &gateway.Identity{Subject: arg})), words[i+1:])
			return
		case "parts":
			var parts []gateway.Part
			for i, n := range strings.Split(arg, ",") {
				units, _ := strconv.ParseInt(n, 10, 64)
				parts = append(parts, gateway.Part{Name: strconv.Itoa(i), From: gateway.HandlerTransport(jsonUnits(units)), Path: "/"})
			}
			gateway.Aggregate(parts, nil).ServeHTTP(w, r)
		default:
			_, _ = io.WriteString(w, word)
		}
	}
}

func TestSettle(t *testing.T) {
	granted := gateway.Decision{OK: true, Limit: 100, Remaining: 90}
	U := func(o gateway.Outcome, status int, bytes, units int64) []gateway.Usage {
		return []gateway.Usage{{Outcome: o, Status: status, Bytes: bytes, Units: units}}
	}
	const byUnits = -1 // Settle returns what was reported
	type opts struct {
		refund, reportOnly, free bool
	}
	for _, tt := range []struct {
		name   string
		d      gateway.Decision
		does   string // see acts
		opts   opts
		settle int // what Settle returns
		asked  string
		used   []gateway.Usage // Bytes below 0 are not compared
	}{
		{"less than reserved", granted, "units:3 hello", opts{}, byUnits, "take k 10, return k 7", U(gateway.OutcomeOK, 200, 5, 3)},
		{"as reserved", granted, "units:10 hello", opts{}, byUnits, "take k 10", U(gateway.OutcomeOK, 200, 5, 10)},
		{"more than reserved", granted, "units:25 hello", opts{}, byUnits, "take k 10, owe k 15", U(gateway.OutcomeOK, 200, 5, 25)},
		{"nothing reported", granted, "hello", opts{}, byUnits, "take k 10, return k 10", U(gateway.OutcomeOK, 200, 5, 0)},
		{"negative units add nothing", granted, "units:-3 hello", opts{}, byUnits, "take k 10, return k 10", U(gateway.OutcomeOK, 200, 5, 0)},
		{"units beyond the largest number", granted, "units:9223372036854775807 units:9", opts{}, 12, "take k 10, owe k 2", U(gateway.OutcomeOK, 200, 0, 1<<63-1)},
		{"a negative cost counts as 0", granted, "units:5 hello", opts{}, -7, "take k 10, return k 10", U(gateway.OutcomeOK, 200, 5, 5)},
		{"upstream failed", granted, "units:12 502", opts{}, byUnits, "take k 10, owe k 2", U(gateway.OutcomeUpstreamError, 502, -1, 12)},
		{"upstream failed, with refund", granted, "units:12 502", opts{refund: true}, byUnits, "take k 10, owe k 2", U(gateway.OutcomeUpstreamError, 502, -1, 12)},
		{"panic", granted, "units:12 panic", opts{}, byUnits, "take k 10, owe k 2", U(gateway.OutcomeInternal, 500, 0, 12)},
		{"aborted", granted, "he units:1 abort", opts{}, byUnits, "take k 10, return k 9", U(gateway.OutcomeAborted, 200, 2, 1)},
		{"refused inside", granted, "limited", opts{}, byUnits, "take k 10, return k 10", U(gateway.OutcomeRejected, 429, -1, 0)},
		{"refused inside, Settle wants more", granted, "limited", opts{}, 4, "take k 10, return k 6", U(gateway.OutcomeRejected, 429, -1, 0)},
		{"refused inside, with refund", granted, "limited", opts{refund: true}, 4, "take k 10, return k 10", U(gateway.OutcomeRejected, 429, -1, 0)},
		{"refused inside, with refund, Settle wants more than was taken", granted, "limited", opts{refund: true}, 40, "take k 10, return k 10", U(gateway.OutcomeRejected, 429, -1, 0)},
		{"refused after units were used, with refund", granted, "units:8 401", opts{refund: true}, byUnits, "take k 10, return k 10", U(gateway.OutcomeRejected, 401, -1, 8)},
		{"undecided inside", granted, "away", opts{}, 4, "take k 10, return k 6", U(gateway.OutcomeUnavailable, 503, -1, 0)},
		{"undecided inside, with refund", granted, "away", opts{refund: true}, 4, "take k 10, return k 10", U(gateway.OutcomeUnavailable, 503, -1, 0)},
		{"admitted, with refund", granted, "units:12 hello", opts{refund: true}, byUnits, "take k 10, owe k 2", U(gateway.OutcomeOK, 200, 5, 12)},
		{"refused itself", gateway.Decision{RetryAfter: 1}, "units:3 hello", opts{}, byUnits, "take k 10", nil},
		{"refused itself, report only", gateway.Decision{RetryAfter: 1}, "units:3 hello", opts{reportOnly: true}, byUnits, "take k 10", nil},
		{"waits too long, report only", gateway.Decision{OK: true, Wait: time.Hour}, "units:3 hello", opts{reportOnly: true}, byUnits, "take k 10, return k 7", U(gateway.OutcomeOK, 200, 5, 3)},
		{"free", granted, "units:3 hello", opts{free: true}, byUnits, "", nil},
		{"units of two handlers", granted, "units:4 as:s units:5 hello", opts{}, byUnits, "take k 10, return k 1", U(gateway.OutcomeOK, 200, 5, 9)},
		{"an aggregate's parts", granted, "parts:4,3", opts{}, byUnits, "take k 10, return k 3", U(gateway.OutcomeOK, 200, -1, 7)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			captureDefaultLog(t)
			synctest.Test(t, func(t *testing.T) {
				l := &accountLimiter{scriptLimiter{d: tt.d}}
				var used []gateway.Usage
				limit := settled(l, &used, func(o *gateway.RateLimitOptions) {
					o.Refund, o.ReportOnly = tt.opts.refund, tt.opts.reportOnly
					if tt.opts.free {
						o.Cost = costs(0)
					}
					if byReport := o.Settle; tt.settle != byUnits {
						o.Settle = func(r *http.Request, u gateway.Usage) int { byReport(r, u); return tt.settle }
					}
				})
				slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(time.Second)
					act(w, r, strings.Fields(tt.does))
				})
				_ = panicOf(func() { recorded(limit(slow), nil) })
				if got := l.asked(); got != tt.asked {
					t.Errorf("%s, want %s", got, tt.asked)
				}
				for i := range used {
					if i < len(tt.used) && tt.used[i].Bytes < 0 {
						used[i].Bytes = -1
					}
					if used[i].Took != time.Second {
						t.Errorf("took %v", used[i].Took)
					}
					used[i].Took = 0
				}
				if fmt.Sprint(used) != fmt.Sprint(tt.used) {
					t.Errorf("%+v, want %+v", used, tt.used)
				}
			})
		})
	}
}

func costs2(n int) func(*http.Request, gateway.Usage) int {
	return func(*http.Request, gateway.Usage) int { return n }
}

func jsonUnits(n int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway.AddUnits(r.Context(), n)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	})
}

// A Settle counts the units of what is inside it, and not those that were reported before.
func TestSettleCountsInside(t *testing.T) {
	outer, inner := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true}}}, &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true}}}
	var outerUsed, innerUsed []gateway.Usage
	h := gateway.Chain(settled(outer, &outerUsed), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gateway.AddUnits(r.Context(), 100)
			next.ServeHTTP(w, r)
		})
	}, settled(inner, &innerUsed))(jsonUnits(3))
	recorded(h, nil)
	if outerUsed[0].Units != 103 || innerUsed[0].Units != 3 {
		t.Errorf("outer %+v, inner %+v", outerUsed, innerUsed)
	}
	gateway.AddUnits(context.Background(), 1) // outside a request: nothing happens
}

func TestSettleNeedsADebtor(t *testing.T) {
	for name, f := range map[string]func(){
		"gateway: RateLimit: Settle needs a Limiter that is a Returner and a Debtor": func() {
			gateway.RateLimit(&scriptLimiter{}, byName("k"), &gateway.RateLimitOptions{Settle: costs2(1)})
		},
		`gateway: UnitsFrom: "a": a JSON pointer begins with a slash`: func() { gateway.UnitsFrom("a") },
		"gateway: KeyByCookie: malformed name":                        func() { gateway.KeyByCookie("") },
	} {
		if got := panicOf(f); got != name {
			t.Errorf("panicked with %q, want %q", got, name)
		}
	}
	chosen := &scriptLimiter{d: gateway.Decision{OK: true}}
	w := recorded(gateway.RateLimit(&accountLimiter{}, byName("k"), &gateway.RateLimitOptions{
		Settle: costs2(1), Limiter: func(*http.Request) gateway.Limiter { return chosen },
	})(text("hello")), nil)
	if w.Code != 500 || chosen.asked() != "" {
		t.Errorf("%d, %s", w.Code, chosen.asked())
	}
}

// An error of the limiter at the settlement is in the log, and changes nothing for the client.
func TestSettleFails(t *testing.T) {
	log := captureDefaultLog(t)
	l := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true}}}
	var used []gateway.Usage
	h := gateway.Chain(gateway.Observe(&gateway.ObserveOptions{Logger: slog.Default()}), settled(l, &used))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.err = errors.New("redis is away")
		_, _ = io.WriteString(w, "hello")
	}))
	if w := recorded(h, nil); w.Code != 200 || w.Body.String() != "hello" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "redis is away") {
		t.Errorf("log %q", log)
	}
}

// llm is a fake of an OpenAI-compatible server. A request's X-Tokens are the completion's tokens; it streams if the
// query says so; X-Fault "die" ends the connection in the middle.
func llm(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens, _ := strconv.Atoi(r.Header.Get("X-Tokens"))
		var out io.Writer = w
		flush := w.(http.Flusher).Flush
		if r.Header.Get("X-Gzip") != "" {
			w.Header().Set("Content-Encoding", "gzip")
			zw := gzip.NewWriter(w)
			defer zw.Close()
			out, flush = zw, func() { _ = zw.Flush(); w.(http.Flusher).Flush() }
		}
		usage := fmt.Sprintf(`{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}`, tokens-1, tokens)
		if r.URL.Query().Get("stream") == "" {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			fmt.Fprintf(out, `{"id":"c","choices":[{"message":{"content":"{\"usage\":{\"total_tokens\":9}}"}}],"usage":%s}`, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(out, "data: {\"choices\":[{\"delta\":{\"content\":\"word %d\"}}],\"usage\":null}\n\n", i)
			flush()
			if r.Header.Get("X-Fault") == "wait" && i == 3 {
				<-r.Context().Done()
				return
			}
		}
		fmt.Fprintf(out, "data: {\"choices\":[],\"usage\":%s}\n\n", usage)
		flush()
		if r.Header.Get("X-Fault") == "die" {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(out, "data: [DONE]\n\n")
	}))
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = nil
	return srv
}

// llmGateway is a gateway before it, with a limit by user.
func llmGateway(t *testing.T, l gateway.Limiter, used func(gateway.Usage), reserve int) *httptest.Server {
	t.Helper()
	up := gateway.NewUpstream("llm", gateway.MustTargets(llm(t).URL), nil)
	srv := httptest.NewServer(gateway.RateLimit(l, gateway.KeyByHeader("X-User"), &gateway.RateLimitOptions{
		Name: "tokens",
		Cost: costs(reserve),
		Settle: func(_ *http.Request, u gateway.Usage) int {
			used(u)
			if u.Units == 0 && u.Outcome != gateway.OutcomeRejected {
				return reserve // nothing was reported: the estimate stands
			}
			return int(u.Units)
		},
	})(gateway.Proxy(up, &gateway.ProxyOptions{ModifyResponse: gateway.UnitsFrom("/usage/total_tokens")})))
	t.Cleanup(srv.Close)
	return srv
}

func TestUnitsFrom(t *testing.T) {
	for _, tt := range []struct {
		name, query, fault, gzip string
		units                    int64
		outcome                  gateway.Outcome
		wantErr                  bool
	}{
		{"JSON", "", "", "", 47, gateway.OutcomeOK, false},
		{"stream", "?stream=1", "", "", 47, gateway.OutcomeOK, false},
		{"JSON in gzip", "", "", "1", 47, gateway.OutcomeOK, false},
		{"stream in gzip", "?stream=1", "", "1", 47, gateway.OutcomeOK, false},
		{"the upstream dies after the usage", "?stream=1", "die", "", 47, gateway.OutcomeAborted, true},
		{"the upstream dies after the usage, in gzip", "?stream=1", "die", "1", 47, gateway.OutcomeAborted, true},
		{"the client leaves before the usage", "?stream=1", "wait", "", 0, gateway.OutcomeClientCanceled, true},
		{"the client leaves before the usage, in gzip", "?stream=1", "wait", "1", 0, gateway.OutcomeClientCanceled, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			usages := make(chan gateway.Usage, 10)
			limit := gateway.NewTokenBucket(1e-6, 1000, nil)
			srv := llmGateway(t, limit, func(u gateway.Usage) { usages <- u }, 30)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/chat/completions"+tt.query, nil)
			for name, value := range map[string]string{"X-User": "u", "X-Tokens": "47", "X-Fault": tt.fault, "X-Gzip": tt.gzip, "Accept-Encoding": "gzip"} {
				req.Header.Set(name, value)
			}
			res, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var body io.Reader = res.Body
			if tt.gzip != "" {
				if res.Header.Get("Content-Encoding") != "gzip" {
					t.Error("passed on in another coding")
				}
				if body, err = gzip.NewReader(body); err != nil {
					t.Fatal(err)
				}
			}
			text := bufio.NewReader(body)
			if tt.query != "" { // each event arrives before the next is sent
				for i := range 4 {
					if line, err := text.ReadString('\n'); err != nil || !strings.Contains(line, fmt.Sprintf("word %d", i)) {
						t.Fatalf("%q, %v", line, err)
					}
					_, _ = text.ReadString('\n')
				}
			}
			if tt.fault == "wait" {
				cancel()
			}
			rest, err := io.ReadAll(text)
			if (err != nil) != tt.wantErr || !tt.wantErr && !bytes.Contains(rest, []byte(`"total_tokens":47`)) {
				t.Errorf("%q, %v", rest, err)
			}
			u := <-usages
			if u.Units != tt.units || u.Outcome != tt.outcome || u.Bytes == 0 {
				t.Errorf("%+v", u)
			}
			srv.Close() // waits for the handler
			if len(usages) > 0 {
				t.Error("settled twice")
			}
			want := 1000 - max(int(tt.units), 30)
			if d, _ := limit.Take(t.Context(), "u", 2000); d.Remaining != want {
				t.Errorf("%d remain, want %d", d.Remaining, want)
			}
		})
	}
}

// What UnitsFrom does not read passes as it is.
func TestUnitsFromOthers(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, coding, body string
		want                            int64
	}{
		{"fraction", "application/json", "", `{"n":1.25}`, 2},
		{"vendor's type", "application/vnd.api+json", "", `{"n":3}`, 3},
		{"text", "text/plain", "", `{"n":3}`, 0},
		{"no type", "", "", `{"n":3}`, 0},
		{"negative", "application/json", "", `{"n":-3}`, 0},
		{"huge", "application/json", "", `{"n":1e300}`, 1<<63 - 1},
		{"string", "application/json", "", `{"n":"3"}`, 0},
		{"malformed", "application/json", "", `{"n":3}}`, 0},
		{"not gzip", "application/json", "gzip", `{"n":3}`, 0},
		{"another coding", "application/json", "br", `{"n":3}`, 0},
		{"stream, the last that has it", "text/event-stream", "", "data: {\"n\":5}\n\ndata: {\"n\":7}\n\ndata: {\"n\":null}\n\ndata: x\n\n", 7},
		{"stream, cut off", "text/event-stream", "", "data: {\"n\":5}\n\ndata: {\"n\":8}", 8},
		{"stream, on two lines", "text/event-stream", "", "event: u\ndata: {\"n\":\ndata: 5}\n\n", 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &accountLimiter{scriptLimiter{d: gateway.Decision{OK: true}}}
			var used []gateway.Usage
			backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Content-Type"] = []string{tt.contentType}
				if tt.coding != "" {
					w.Header().Set("Content-Encoding", tt.coding)
				}
				_, _ = io.WriteString(w, tt.body)
			})
			w := recorded(settled(l, &used)(gateway.Proxy(gateway.HandlerTransport(backend), &gateway.ProxyOptions{
				ModifyResponse: gateway.UnitsFrom("/n"),
			})), nil)
			if w.Body.String() != tt.body || len(used) != 1 || used[0].Units != tt.want {
				t.Errorf("%q, %+v", w.Body, used)
			}
		})
	}
}

// Two hundred streams at once: those that are admitted never use more than the budget and what was estimated too low.
func TestSettleManyStreams(t *testing.T) {
	const budget, reserve, actual, streams = 5000, 100, 130, 200
	var units atomic.Int64
	limit := gateway.NewTokenBucket(1e-6, budget, nil)
	srv := llmGateway(t, limit, func(u gateway.Usage) { units.Add(u.Units) }, reserve)
	srv.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = streams
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/?stream=1", nil)
			req.Header.Set("X-User", "u")
			req.Header.Set("X-Tokens", strconv.Itoa(actual))
			res, err := srv.Client().Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			switch {
			case err != nil:
				t.Error(err)
			case res.StatusCode == 200 && bytes.HasSuffix(body, []byte("[DONE]\n\n")):
				admitted.Add(1)
			case res.StatusCode == 429:
				refused.Add(1)
			default:
				t.Errorf("%d %q", res.StatusCode, body)
			}
		})
	}
	wg.Wait()
	srv.Close() // waits for the settlements
	n := admitted.Load()
	if units.Load() != n*actual || n+refused.Load() != streams {
		t.Errorf("%d admitted, %d refused, %d units", n, refused.Load(), units.Load())
	}
	if most := budget + n*(actual-reserve); units.Load() > most {
		t.Errorf("%d units were used; the budget is %d, and %d were estimated too low", units.Load(), budget, most-budget)
	}
	if n < budget/actual || n > budget/reserve {
		t.Errorf("%d admitted", n)
	}
	if d, _ := limit.Take(t.Context(), "u", 1); d.OK != (units.Load() < budget) {
		t.Errorf("%+v after %d units", d, units.Load())
	}
}

func TestRateLimitProblem(t *testing.T) {
	no := gateway.Decision{Limit: 5, Window: time.Second, RetryAfter: time.Second}
	yes := gateway.Decision{OK: true, Limit: 9, Remaining: 8, Window: time.Second, ResetAfter: time.Second}
	limit := func(name string, d gateway.Decision) gateway.Middleware {
		return gateway.RateLimit(&scriptLimiter{d: d}, byName("k"), &gateway.RateLimitOptions{Name: name})
	}
	const start = `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,`
	for _, tt := range []struct {
		name                    string
		mw                      gateway.Middleware
		violated, policy, limit string
	}{
		{"one", limit("", no), `["default"]`, `"default";q=5;w=1`, `"default";r=0;t=1`},
		{"named", limit(`per "user"`, no), `["per \"user\""]`, `"per \"user\"";q=5;w=1`, `"per \"user\"";r=0;t=1`},
		{"the second of one name", gateway.Chain(limit("", yes), limit("", no)), `["default-2"]`,
			`"default";q=9;w=1, "default-2";q=5;w=1`, `"default";r=8;t=1, "default-2";r=0;t=1`},
		{"the third", gateway.Chain(limit("a", yes), limit("a", yes), limit("a", no)), `["a-3"]`,
			`"a";q=9;w=1, "a-2";q=9;w=1, "a-3";q=5;w=1`, `"a";r=8;t=1, "a-2";r=8;t=1, "a-3";r=0;t=1`},
		{"a name that is part of another's", gateway.Chain(limit(`x, "a";q=1`, yes), limit(`\`, yes), limit("a", no)), `["a"]`,
			`"x, \"a\";q=1";q=9;w=1, "\\";q=9;w=1, "a";q=5;w=1`, `"x, \"a\";q=1";r=8;t=1, "\\";r=8;t=1, "a";r=0;t=1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := askServer(t, tt.mw(text("hello")), nil)
			if res.StatusCode != 429 || !strings.HasPrefix(body, start) || !strings.Contains(body, `"violated-policies":`+tt.violated) {
				t.Errorf("%d %s", res.StatusCode, body)
			}
			if got := res.Header.Get("RateLimit-Policy"); got != tt.policy {
				t.Errorf("RateLimit-Policy: %s, want %s", got, tt.policy)
			}
			if got := res.Header.Get("RateLimit"); got != tt.limit {
				t.Errorf("RateLimit: %s, want %s", got, tt.limit)
			}
		})
	}
}

// Three budgets in a chain, of each user, each route and all. With Refund, those outside give back what a refusal
// inside has made useless; without it, the refused pay.
func TestRateLimitSeveralBudgets(t *testing.T) {
	for _, refund := range []bool{true, false} {
		all := gateway.NewTokenBucket(1e-6, 100, nil)
		route := gateway.NewFixedWindow(50, 1000*time.Hour, nil)
		user := gateway.NewSlidingWindow(10, 1000*time.Hour, nil)
		gold := gateway.NewSlidingWindow(20, 1000*time.Hour, nil)
		opts := func(name string) *gateway.RateLimitOptions {
			return &gateway.RateLimitOptions{Name: name, Refund: refund}
		}
		plans := opts("user")
		plans.Limiter = func(r *http.Request) gateway.Limiter {
			if r.Header.Get("X-User") == "gold" {
				return gold
			}
			return nil
		}
		h := gateway.Chain(
			gateway.RateLimit(all, byName("all"), opts("all")),
			gateway.RateLimit(route, byName("route"), opts("route")),
			gateway.RateLimit(user, gateway.KeyByHeader("X-User"), plans),
		)(text("hello"))
		passed := map[string]int{}
		for range 25 {
			for _, u := range []string{"alice", "gold"} {
				w := httptest.NewRecorder()
				r := httptest.NewRequest("GET", "/", nil)
				r.Header.Set("X-User", u)
				h.ServeHTTP(w, r)
				if w.Code == 200 {
					passed[u]++
				}
			}
		}
		if passed["alice"] != 10 || passed["gold"] != 20 {
			t.Errorf("refund %t: %v", refund, passed)
		}
		left := func(l gateway.Limiter, key string) int {
			d, _ := l.Take(t.Context(), key, 1000)
			return d.Remaining
		}
		wantAll, wantRoute := 100-50, 0
		if refund {
			wantAll, wantRoute = 100-30, 50-30
		}
		if left(all, "all") != wantAll || left(route, "route") != wantRoute {
			t.Errorf("refund %t: %d left of all, %d of the route", refund, left(all, "all"), left(route, "route"))
		}
	}
}
