package gateway_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

// endedBackend answers by path, each in its own way. reached gets a value when a request that does not end by itself
// has arrived.
type endedBackend struct {
	*httptest.Server
	reached chan bool
}

func newEndedBackend(t *testing.T) *endedBackend {
	b := &endedBackend{reached: make(chan bool, 10)}
	b.Server = serve(t, b)
	return b
}

func (b *endedBackend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	way := strings.TrimPrefix(r.URL.Path, "/")
	if status, err := strconv.Atoi(way); err == nil {
		w.WriteHeader(status)
		return
	}
	if status, ok := strings.CutPrefix(way, "grpc-"); ok {
		answerGRPC(w, r, status)
		return
	}
	switch way {
	case "hang":
		b.reached <- true
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	case "stream":
		_, _ = io.WriteString(w, "half of")
		_ = http.NewResponseController(w).Flush()
		b.reached <- true
		<-r.Context().Done()
	case "abort":
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half of")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "reset":
		conn, _, _ := http.NewResponseController(w).Hijack()
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	case "echo", "dies":
		conn, rw, _ := http.NewResponseController(w).Hijack()
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = rw.ReadByte() // the client's first byte
		if way == "dies" {
			_ = conn.(*net.TCPConn).SetLinger(0)
			return
		}
		_, _ = conn.Write([]byte{0x88, 0x02, 0x03, 0xe8}) // close, 1000
		_, _ = rw.ReadByte()                              // the client's close
	default:
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	}
}

// answerGRPC ends a call with a status, after a message or, with the suffix "-alone", without one.
func answerGRPC(w http.ResponseWriter, r *http.Request, status string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	status, alone := strings.CutSuffix(status, "-alone")
	if alone {
		w.Header().Set("Grpc-Status", status)
		return
	}
	_, _ = io.WriteString(w, "\x00\x00\x00\x00\x00")
	_ = http.NewResponseController(w).Flush()
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", status)
}

// verdictOf finds out what c, which opens after five failures and had one, has counted since: it is failed until it
// opens.
func verdictOf(t *testing.T, c *gateway.Circuit) string {
	t.Helper()
	for n := 0; ; n++ {
		done, err := c.Allow()
		if err != nil {
			return []string{"4 failures", "3 failures", "2 failures", "failure", "neutral", "success"}[n]
		}
		done(gateway.OutcomeUpstreamError, 500)
	}
}

// endedClient sends one request to the gateway and ends it in its own way.
type endedClient func(t *testing.T, url string, b *endedBackend)

func asks(method, body string) endedClient {
	return func(t *testing.T, url string, _ *endedBackend) {
		req, _ := http.NewRequest(method, url, strings.NewReader(body))
		if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
}

// calls makes a call of gRPC, with a deadline unless that is "".
func calls(deadline string) endedClient {
	return func(t *testing.T, url string, _ *endedBackend) {
		req, _ := http.NewRequest("POST", url, http.NoBody)
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		if deadline != "" {
			req.Header.Set("Grpc-Timeout", deadline)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}

// leaves ends the request when the backend has it, before or after the response headers.
func leaves(t *testing.T, url string, b *endedBackend) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-b.reached
		if !strings.HasSuffix(url, "/stream") { // else when the client has the header
			cancel()
		}
	}()
	req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
	if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
		_, _ = io.ReadFull(res.Body, make([]byte, 4))
		cancel()
		res.Body.Close()
	}
}

// hasDeadline is a client that waits for a second.
func hasDeadline(t *testing.T, url string, _ *endedBackend) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
	if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
		res.Body.Close()
	}
}

// dials sends bytes and returns when the gateway has closed the connection, or closes it after the first answer.
func dials(head, rest string, reset bool) endedClient {
	return func(t *testing.T, url string, _ *endedBackend) {
		host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(deadline())
		fmt.Fprintf(conn, head, "/"+path, host)
		br := bufio.NewReader(conn)
		if rest != "" {
			if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
				t.Errorf("%v, %v", res, err)
				return
			}
			_, _ = io.WriteString(conn, rest)
		}
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
			return
		}
		if rest != "" {
			_, _ = io.ReadFull(br, make([]byte, 4))                    // the target's close
			_, _ = conn.Write([]byte{0x88, 0x82, 0, 0, 0, 0, 3, 0xe8}) // ours
		}
		_, _ = io.Copy(io.Discard, br)
	}
}

const upgradeHead = "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// full returns a Shed whose only place is taken until the test ends.
func full(t *testing.T) gateway.Middleware {
	shed := gateway.Shed(&gateway.ShedOptions{Min: 1, Max: 1, Queue: -1})
	return func(next http.Handler) http.Handler {
		entered, leave := make(chan bool), make(chan bool)
		h := shed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "HOLD" {
				close(entered)
				<-leave
				return
			}
			next.ServeHTTP(w, r)
		}))
		held := make(chan bool)
		go func() {
			defer close(held)
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("HOLD", "/", nil))
		}()
		<-entered
		t.Cleanup(func() { close(leave); <-held })
		return h
	}
}

// Each way in which an exchange can end, through a real listener, and what each who judges it has recorded.
func TestOutcomeTable(t *testing.T) {
	const dead = "http://127.0.0.1:1"
	const short = 400 * time.Millisecond // more than twice of what anybody needs, on a busy machine too
	get := asks("GET", "")
	local := func(h http.HandlerFunc) http.Handler { return h }
	tripped := gateway.NewCircuit("tripped", nil)
	tripped.Trip(time.Hour)
	auth := func(err error) gateway.Middleware {
		return gateway.Auth(gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
			return &gateway.Identity{Subject: "a"}, err
		}), nil)
	}
	spent := gateway.NewTokenBucket(1e-9, 1, nil)
	_, _ = spent.Take(t.Context(), "", 1)
	oneKey := func(*http.Request) (string, error) { return "", nil }
	failures := []gateway.Outcome{gateway.OutcomeTimeout, gateway.OutcomeAborted, gateway.OutcomeUpstreamError}
	for _, tt := range []struct {
		name   string
		path   string // of the backend: how it answers
		client endedClient
		mw     gateway.Middleware
		local  http.Handler // instead of the Upstream
		target string       // instead of the backend; "none"
		opts   gateway.UpstreamOptions

		retryGRPC bool

		outcome  gateway.Outcome
		status   string // in the log
		circuit  string // of the Upstream; "" means neutral
		attempts string // in the log; "" for none
		ejected  bool
		attempt  string // outcome of the attempts; "" for none
	}{
		{name: "200", path: "200", client: get, outcome: gateway.OutcomeOK, status: "200", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "404", path: "404", client: get, outcome: gateway.OutcomeOK, status: "404", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "500", path: "500", client: get, outcome: gateway.OutcomeUpstreamError, status: "500", circuit: "failure", attempts: "1", attempt: "upstream_error"},
		{name: "503", path: "503", client: get, outcome: gateway.OutcomeUpstreamError, status: "503", circuit: "2 failures", attempts: "2", ejected: true, attempt: "upstream_error"},
		{name: "503 to a POST", path: "503", client: asks("POST", "x"), outcome: gateway.OutcomeUpstreamError, status: "503", circuit: "failure", attempts: "1", ejected: true, attempt: "upstream_error"},
		{name: "reset", path: "reset", client: get, outcome: gateway.OutcomeUpstreamError, status: "502", circuit: "2 failures", attempts: "2", ejected: true, attempt: "upstream_error"},
		{name: "abort in mid-body", path: "abort", client: get, outcome: gateway.OutcomeAborted, status: "200", circuit: "failure", attempts: "1", ejected: true, attempt: "ok"},
		{name: "dial refused", target: dead, client: get, outcome: gateway.OutcomeUpstreamError, status: "502", circuit: "2 failures", attempts: "2", ejected: true, attempt: "upstream_error"},
		{name: "TLS failure", target: "tls", client: get, outcome: gateway.OutcomeUpstreamError, status: "502", circuit: "2 failures", attempts: "2", ejected: true, attempt: "upstream_error"},
		{name: "deadline of the attempt", path: "hang", client: get, opts: gateway.UpstreamOptions{Timeout: short}, outcome: gateway.OutcomeTimeout, status: "504", circuit: "2 failures", attempts: "2", ejected: true, attempt: "timeout"},
		{name: "deadline of the whole", path: "hang", client: get, mw: gateway.Timeout(short), outcome: gateway.OutcomeTimeout, status: "504", circuit: "failure", attempts: "1", ejected: true, attempt: "timeout"},
		{name: "client leaves before the headers", path: "hang", client: leaves, outcome: gateway.OutcomeClientCanceled, status: "499", attempts: "1", attempt: "client_canceled"},
		{name: "client leaves after the headers", path: "stream", client: leaves, outcome: gateway.OutcomeClientCanceled, status: "499", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "deadline of the client", path: "hang", client: hasDeadline, outcome: gateway.OutcomeClientCanceled, status: "499", attempts: "1", attempt: "client_canceled"},
		{name: "client too slow", path: "ok", client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx", "", false), outcome: gateway.OutcomeRejected, status: "408", attempts: "1", attempt: "rejected"},
		{name: "client too slow, short body", path: "ok", client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n\r\nx", "", false), outcome: gateway.OutcomeRejected, status: "408"},
		{name: "client too slow for Timeout", path: "ok", mw: gateway.Timeout(short), client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx", "", false), outcome: gateway.OutcomeRejected, status: "408", attempts: "1", attempt: "rejected"},
		{name: "client too slow for Timeout, short body", path: "ok", mw: gateway.Timeout(short), client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n\r\nx", "", false), outcome: gateway.OutcomeRejected, status: "408"},
		{name: "client too slow for a handler", mw: gateway.Timeout(short), client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n\r\nx", "", false), local: local(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				w.WriteHeader(500)
			}
		}), outcome: gateway.OutcomeClientCanceled, status: "499"},
		{name: "client resets in its body", path: "ok", client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx", "", true), outcome: gateway.OutcomeClientCanceled, status: "499", attempts: "1", attempt: "client_canceled"},
		{name: "client resets in its body, short body", path: "ok", client: dials("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n\r\nx", "", true), outcome: gateway.OutcomeClientCanceled, status: "499"},
		{name: "WebSocket closed normally", path: "echo", client: dials(upgradeHead, "x", false), outcome: gateway.OutcomeOK, status: "101", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "WebSocket reset by the client", path: "echo", client: dials(upgradeHead, "x", true), outcome: gateway.OutcomeOK, status: "101", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "WebSocket reset by the target", path: "dies", client: dials(upgradeHead, "x", false), outcome: gateway.OutcomeAborted, status: "101", circuit: "failure", attempts: "1", ejected: true, attempt: "ok"},
		{name: "gRPC OK", path: "grpc-0", client: calls(""), outcome: gateway.OutcomeOK, status: "200", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "gRPC NOT_FOUND", path: "grpc-5", client: calls(""), outcome: gateway.OutcomeOK, status: "200", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "gRPC UNAVAILABLE", path: "grpc-14", client: calls(""), outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "failure", attempts: "1", ejected: true, attempt: "ok"},
		{name: "gRPC UNAVAILABLE, without a message", path: "grpc-14-alone", client: calls(""), outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "failure", attempts: "1", ejected: true, attempt: "upstream_error"},
		{name: "gRPC UNAVAILABLE, which may be repeated", path: "grpc-14-alone", client: calls(""), retryGRPC: true, outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "2 failures", attempts: "2", ejected: true, attempt: "upstream_error"},
		{name: "gRPC INTERNAL", path: "grpc-13", client: calls(""), outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "gRPC INTERNAL, without a message", path: "grpc-13-alone", client: calls(""), outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "success", attempts: "1", attempt: "upstream_error"},
		{name: "gRPC DEADLINE_EXCEEDED", path: "grpc-4", client: calls(""), outcome: gateway.OutcomeUpstreamError, status: "200", circuit: "failure", attempts: "1", ejected: true, attempt: "ok"},
		{name: "gRPC deadline of the client", path: "grpc-4", client: calls("1S"), outcome: gateway.OutcomeClientCanceled, status: "499", circuit: "success", attempts: "1", attempt: "ok"},
		{name: "gRPC deadline of the client, without a message", path: "grpc-4-alone", client: calls("1S"), outcome: gateway.OutcomeClientCanceled, status: "499", attempts: "1", attempt: "client_canceled"},
		{name: "no target", target: "none", client: get, outcome: gateway.OutcomeRejected, status: "503"},
		{name: "circuit of the Upstream", path: "200", client: get, opts: gateway.UpstreamOptions{Circuit: tripped}, outcome: gateway.OutcomeRejected, status: "503"},
		{name: "Breaker", path: "200", client: get, mw: gateway.Breaker(tripped, nil), outcome: gateway.OutcomeRejected, status: "503"},
		{name: "Auth", path: "200", client: get, mw: auth(gateway.ErrUnauthenticated), outcome: gateway.OutcomeRejected, status: "401"},
		{name: "Auth cannot tell", path: "200", client: get, mw: auth(&gateway.Error{Status: 503}), outcome: gateway.OutcomeUnavailable, status: "503"},
		{name: "RequireScopes", path: "200", client: get, mw: gateway.Chain(auth(nil), gateway.RequireScopes("pay")), outcome: gateway.OutcomeRejected, status: "403"},
		{name: "RateLimit", path: "200", client: get, mw: gateway.RateLimit(spent, oneKey, nil), outcome: gateway.OutcomeRejected, status: "429"},
		{name: "RateLimit cannot tell", path: "200", client: get, mw: gateway.RateLimit(brokenLimiter{}, oneKey, nil), outcome: gateway.OutcomeUnavailable, status: "503"},
		{name: "Shed", path: "200", client: get, mw: full(t), outcome: gateway.OutcomeRejected, status: "503"},
		{name: "MaxBodyBytes", path: "200", client: asks("POST", strings.Repeat("x", 2000)), outcome: gateway.OutcomeRejected, status: "413"},
		{name: "Router", path: "nowhere/at/all", client: get, outcome: gateway.OutcomeRejected, status: "404"},
		{name: "panic in a handler", client: get, local: local(func(http.ResponseWriter, *http.Request) { panic("bug") }), outcome: gateway.OutcomeInternal, status: "500"},
		{name: "ErrAbortHandler", client: get, local: local(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), outcome: gateway.OutcomeAborted, status: "500"},
		{name: "handler answers 500", client: get, local: local(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }), outcome: gateway.OutcomeUpstreamError, status: "500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newEndedBackend(t)
			target := b.URL
			switch tt.target {
			case "":
			case "tls":
				s := httptest.NewTLSServer(b) // with a certificate that nobody trusts
				s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
				defer s.Close()
				target = s.URL
			default:
				target = tt.target
			}
			tel, stats, j := new(gatewaytest.Telemetry), new(gateway.Stats), make(journal, 10)
			preloaded := func() *gateway.Circuit {
				c := gateway.NewCircuit("c", nil)
				done, _ := c.Allow()
				done(gateway.OutcomeUpstreamError, 500)
				return c
			}
			upstream, breaker := preloaded(), preloaded()
			if tt.opts.Circuit == nil {
				tt.opts.Circuit = upstream
			}
			tt.opts.Meter = tel
			tt.opts.Retry = gateway.RetryOptions{Attempts: 2, Backoff: -1, GRPC: tt.retryGRPC}
			tt.opts.Health = gateway.HealthOptions{Unhealthy: 1, MaxEjected: 1, EjectFor: time.Hour}
			var targets []gateway.Target
			if target != "none" {
				targets = gateway.MustTargets(target)
			}
			u := gateway.NewUpstream("u", targets, &tt.opts)
			inner := tt.local
			if inner == nil {
				inner = gateway.Proxy(u, &gateway.ProxyOptions{MaxBodyBytes: 1000, BodyTimeout: short})
			}
			var rt gateway.Router
			rt.Use(gateway.Observe(&gateway.ObserveOptions{Tracer: tel, Meter: tel, Stats: stats, Logger: j.logger()}))
			mw := []gateway.Middleware{gateway.Breaker(breaker, nil)}
			if tt.mw != nil {
				mw = []gateway.Middleware{tt.mw, mw[0]}
			}
			rt.Handle("/{way}", inner, mw...)
			front := httptest.NewUnstartedServer(&rt)
			front.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			front.Start()
			defer front.Close()

			tt.client(t, front.URL+"/"+cmp.Or(tt.path, "ok"), b)
			var line map[string]string
			select {
			case line = <-j:
			case <-time.After(patience):
				t.Fatal("the exchange does not end")
			}

			outcome := tt.outcome.String()
			if line["outcome"] != outcome || line["status"] != tt.status || line["attempts"] != tt.attempts {
				t.Errorf("logged %v, want %s, %s, %s attempts", line, outcome, tt.status, tt.attempts)
			}
			status, _ := strconv.Atoi(tt.status)
			level, errorType := slog.LevelInfo, ""
			switch tt.outcome {
			case gateway.OutcomeTimeout, gateway.OutcomeAborted, gateway.OutcomeInternal:
				level, errorType = slog.LevelError, outcome
			case gateway.OutcomeUpstreamError, gateway.OutcomeUnavailable:
				level, errorType = slog.LevelError, tt.status
				if status < 500 { // of gRPC
					errorType = outcome
				}
			case gateway.OutcomeRejected:
				if status >= 500 {
					level, errorType = slog.LevelWarn, tt.status
				}
			}
			if line["level"] != level.String() {
				t.Errorf("logged as %s, want %v", line["level"], level)
			}

			if got := verdictOf(t, upstream); got != cmp.Or(tt.circuit, "neutral") {
				t.Errorf("the Upstream's circuit counted %s, want %s", got, cmp.Or(tt.circuit, "neutral"))
			}
			want := "neutral"
			switch tt.outcome {
			case gateway.OutcomeOK:
				want = "success"
			case gateway.OutcomeTimeout, gateway.OutcomeAborted, gateway.OutcomeUpstreamError:
				want = "failure"
				if strings.HasPrefix(tt.path, "grpc-13") {
					want = "success"
				}
			case gateway.OutcomeClientCanceled:
				if tt.attempt == "ok" {
					want = "success" // told at the headers
				}
			}
			if got := verdictOf(t, breaker); got != want {
				t.Errorf("Breaker's circuit counted %s, want %s", got, want)
			}
			for _, s := range u.Status() {
				if s.Healthy == tt.ejected || s.Pending != 0 {
					t.Errorf("target %+v, want ejected: %v", s, tt.ejected)
				}
			}

			routes := stats.Routes()
			if len(routes) != 1 || routes[0].Requests != 1 || routes[0].Outcomes[tt.outcome] != 1 || (routes[0].ErrorRate == 1) != slices.Contains(failures, tt.outcome) {
				t.Errorf("Stats has %+v", routes)
			}
			checkSeries := func(instrument, outcome string, count int) {
				t.Helper()
				got := 0
				for _, s := range tel.Series(instrument) {
					o, _ := s.Attributes.Value("gateway.outcome")
					if got += s.Count; o.AsString() != outcome {
						t.Errorf("%s has %v, want %s", instrument, s.Attributes.ToSlice(), outcome)
					}
					if kind, _ := s.Attributes.Value("error.type"); instrument == "http.server.request.duration" && kind.AsString() != errorType {
						t.Errorf("%s has error.type %q, want %q", instrument, kind.AsString(), errorType)
					}
				}
				if got != count {
					t.Errorf("%s has %d, want %d", instrument, got, count)
				}
			}
			checkSeries("http.server.request.duration", outcome, 1)
			attempts, _ := strconv.Atoi(tt.attempts)
			checkSeries("http.client.request.duration", tt.attempt, attempts)

			var served []gatewaytest.Span
			asked := 0
			for _, s := range tel.Spans() {
				if s.Kind == trace.SpanKindServer {
					served = append(served, s)
					continue
				}
				asked++
				if o, _ := s.Attributes.Value("gateway.outcome"); o.AsString() != tt.attempt && tt.attempt != "ok" {
					t.Errorf("an attempt's span has %v, want %s", s.Attributes.ToSlice(), tt.attempt)
				}
			}
			if len(served) != 1 || asked != attempts {
				t.Fatalf("%d spans of the server, %d of attempts", len(served), asked)
			}
			if got := served[0].Status == codes.Error; got != (errorType != "") {
				t.Errorf("the span's status is %v", served[0].Status)
			}
			if o, _ := served[0].Attributes.Value("gateway.outcome"); o.AsString() != outcome {
				t.Errorf("the span has %v", served[0].Attributes.ToSlice())
			}
		})
	}
}
