package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/seed-96248d0c/gateway/examples/internal/steps"
)

// check starts everything on free ports, sends real HTTP through all of it and prints what it asked,
// expected and saw. The first difference is its error.
func check(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := &checker{ctx: ctx, client: &http.Client{Timeout: 10 * time.Second}}
	defer c.client.CloseIdleConnections()
	var err error
	if c.stack, err = start("127.0.0.1:0", "127.0.0.1:0", slog.New(slog.NewTextHandler(&c.logged, nil))); err != nil {
		return err
	}
	defer c.close()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	c.stop, c.served = stop, make(chan error, 1)
	go func() { c.served <- c.serve(serving) }()

	return steps.Run(out, c.steps())
}

type checker struct {
	*stack
	ctx    context.Context
	client *http.Client
	sent   atomic.Int64 // requests to the gateway
	logged lineCounter  // lines of its access log
	stop   context.CancelFunc
	served chan error
}

// steps are tried in this order.
func (c *checker) steps() []steps.Step {
	alice := c.token("alice", "pay", nil)
	carol := c.token("carol", "pay", nil)
	payments, users := c.backends["payments"], c.backends["users"]
	var webBytes int

	refused := func(asked, token string) steps.Step {
		return steps.New("GET /users/7 "+asked, "401 problem, challenge", func() string {
			return c.ask("GET", "/users/7", token, nil).String()
		})
	}
	return []steps.Step{
		steps.New("GET /users/7", "200 user 7", func() string {
			a := c.ask("GET", "/users/7", alice, nil)
			return a.String() + " user " + a.user().ID
		}),
		steps.New("GET /users/7 with forged identity fields", "200, users is told X-User-Id: alice", func() string {
			a := c.ask("GET", "/users/7", alice, func(r *http.Request) {
				r.Header = http.Header{
					"X-User-Id": {"admin"}, "X_User_Id": {"admin"}, "x.user.id": {"admin"}, "XUserID": {"admin"},
					"Connection": {"X-User-Id"},
				}
			})
			return a.String() + ", users is told " + strings.Join(a.user().identity(), ", ")
		}),
		steps.New("GET /users/7 with a trace id of the client's own", "200, a new id, the same in answer and backend", func() string {
			const own = "0123456789abcdef0123456789abcdef"
			a := c.ask("GET", "/users/7", alice, func(r *http.Request) { r.Header.Set("X-Trace-ID", own) })
			id, told := a.header.Get("X-Trace-ID"), a.user().Told
			switch {
			case len(id) != 32 || id == own:
				return "the answer's trace id is " + strconv.Quote(id)
			case told.Get("X-Trace-ID") != id || !strings.Contains(told.Get("Traceparent"), id):
				return fmt.Sprintf("the answer's trace id is %s, the backend's %s", id, told.Get("X-Trace-ID"))
			}
			return a.String() + ", a new id, the same in answer and backend"
		}),

		refused("without a token", ""),
		refused("with an expired token", c.token("alice", "pay", func(m jwt.MapClaims) {
			m["exp"] = time.Now().Add(-time.Minute).Unix()
		})),
		refused("with a token signed by another key", c.forged("alice")),
		refused("with a token of alg none", c.signed(jwt.SigningMethodNone, "alice", jwt.UnsafeAllowNoneSignatureType)),
		refused("with the public key as a secret", c.signed(jwt.SigningMethodHS256, "alice", c.idp.keySet)),
		refused("with another issuer's token", c.token("alice", "pay", func(m jwt.MapClaims) { m["iss"] = "https://id.example" })),
		refused("with a token for another audience", c.token("alice", "pay", func(m jwt.MapClaims) { m["aud"] = "another" })),

		steps.New("GET /nowhere", "404 problem", func() string { return c.ask("GET", "/nowhere", alice, nil).String() }),
		steps.New("DELETE /users/7", "405 problem, Allow: GET, HEAD, OPTIONS", func() string { return c.ask("DELETE", "/users/7", alice, nil).String() }),

		steps.New("POST /checkout", "201 paid by alice", func() string {
			a := c.ask("POST", "/checkout", alice, nil)
			var paid struct {
				By string `json:"paid_by"`
			}
			_ = json.Unmarshal(a.body, &paid)
			return a.String() + " paid by " + paid.By
		}),
		steps.New("POST /checkout without the scope pay", "403 problem, challenge", func() string {
			return c.ask("POST", "/checkout", c.token("alice", "read", nil), nil).String()
		}),
		steps.New("POST /checkout with a body over the limit", "413 problem", func() string {
			return c.ask("POST", "/checkout", alice, func(r *http.Request) {
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 64<<10+1))), 64<<10+1
			}).String()
		}),
		steps.New("POST /checkout until the limit is reached", "at least 5 pass, then 429 problem, Retry-After", func() string {
			bob := c.token("bob", "pay", nil)
			passed, a := 0, c.ask("POST", "/checkout", bob, nil)
			for ; a.status == http.StatusCreated && passed < 50; passed++ {
				a = c.ask("POST", "/checkout", bob, nil)
			}
			return count(passed, 5) + " pass, then " + a.String()
		}),

		steps.New("POST /checkout 3 times, payments broken", "500, 500, 500", func() string {
			c.turn(payments, "break")
			var seen []string
			for range 3 {
				seen = append(seen, c.ask("POST", "/checkout", carol, nil).String())
			}
			return strings.Join(seen, ", ")
		}),
		steps.New("POST /checkout once more", "503 problem, Retry-After, payments asked 0 times", func() string {
			before := payments.asked.Load()
			a := c.ask("POST", "/checkout", carol, nil)
			return fmt.Sprintf("%v, payments asked %d times", a, payments.asked.Load()-before)
		}),
		steps.New("POST /checkout until tried again", "500, then 503 problem, Retry-After", func() string {
			a := c.askWhile(http.StatusServiceUnavailable, "POST", "/checkout", carol)
			return fmt.Sprintf("%v, then %v", a, c.ask("POST", "/checkout", carol, nil))
		}),
		steps.New("POST /checkout, payments healed but not tried yet", "503 problem, Retry-After", func() string {
			c.turn(payments, "heal")
			return c.ask("POST", "/checkout", carol, nil).String()
		}),
		steps.New("POST /checkout until tried again", "201, then 201", func() string {
			a := c.askWhile(http.StatusServiceUnavailable, "POST", "/checkout", carol)
			return fmt.Sprintf("%v, then %v", a, c.ask("POST", "/checkout", c.token("dave", "pay", nil), nil))
		}),

		steps.New("GET /homepage", "200 continue-watching, my-list, top-10, recommendations, new-releases", func() string {
			a := c.ask("GET", "/homepage", alice, nil)
			webBytes = len(a.body)
			return a.String() + " " + strings.Join(members(a.body), ", ")
		}),
		steps.New("GET /homepage: for whom the rows are", "200, 5 rows for alice", func() string {
			a := c.ask("GET", "/homepage", alice, nil)
			return fmt.Sprintf("%v, %d rows for alice", a, bytes.Count(a.body, []byte(`"for":"alice"`)))
		}),
		steps.New("GET /mobile/homepage", "200 continue, top, less than half the size", func() string {
			a := c.ask("GET", "/mobile/homepage", alice, nil)
			size := ", less than half the size"
			if len(a.body) >= webBytes/2 {
				size = fmt.Sprintf(", %d bytes beside %d", len(a.body), webBytes)
			}
			return a.String() + " " + strings.Join(members(a.body), ", ") + size
		}),
		steps.New("GET /homepage, recommendations broken", "200 recommendations null, errors [recommendations 502]", func() string {
			defer c.broken("recommendations")()
			a := c.ask("GET", "/homepage", alice, nil)
			return a.String() + " " + gaps(a.body)
		}),
		steps.New("GET /mobile/homepage, continue-watching broken", "200 continue null, errors [continue 502]", func() string {
			defer c.broken("continue-watching")()
			a := c.ask("GET", "/mobile/homepage", alice, nil)
			return a.String() + " " + gaps(a.body)
		}),
		steps.New("GET /homepage, the required top-10 broken", "502 problem", func() string {
			defer c.broken("top-10")()
			return c.ask("GET", "/homepage", alice, nil).String()
		}),

		steps.New("GET /metrics: routes", "200 /checkout /homepage /mobile/homepage /users/{id}", func() string {
			return c.metric("http_server_request_duration_seconds_count", func(series []string) string {
				var routes []string
				for _, line := range series {
					if route := label(line, "http_route"); route != "" {
						routes = append(routes, route)
					}
				}
				slices.Sort(routes)
				return strings.Join(slices.Compact(routes), " ")
			})
		}),
		steps.New("GET /metrics: changes of the circuit", "200 closed 1, half-open 2, open 2", func() string {
			return c.metric("gateway_circuit_changes_total", func(series []string) string {
				var changes []string
				for _, line := range series {
					changes = append(changes, label(line, "gateway_circuit_state")+line[strings.LastIndexByte(line, ' '):])
				}
				slices.Sort(changes)
				return strings.Join(changes, ", ")
			})
		}),

		steps.New("GET /console/explain of GET /users/7", "200 GET /users/{id} with id 7", func() string {
			r, err := http.NewRequestWithContext(c.ctx, http.MethodGet, c.ops+"/console/explain?path=/users/7", nil)
			if err != nil {
				return err.Error()
			}
			a := c.do(r)
			var x struct {
				Route      struct{ Name string }
				PathValues struct{ ID string }
			}
			_ = json.Unmarshal(a.body, &x)
			return a.String() + " " + x.Route.Name + " with id " + x.PathValues.ID
		}),

		steps.New("GET /users/7, and stop while it is under way", "200, no new connection, stopped without error", func() string {
			before := users.asked.Load()
			answered := make(chan answer, 1)
			go func() { answered <- c.ask("GET", "/users/7?wait=1s", alice, nil) }()
			c.until(func() bool { return users.asked.Load() > before })
			select {
			case a := <-answered:
				return a.String() + " before it was stopped"
			default:
			}
			c.stop()
			listens := "no new connection"
			if !c.until(func() bool { return !c.accepts() }) {
				listens = "new connections"
			}
			a := <-answered
			end := "stopped without error"
			if err := <-c.served; err != nil {
				end = err.Error()
			}
			return fmt.Sprintf("%v, %s, %s", a, listens, end)
		}),
		steps.New("the access log", "one line for each request", func() string {
			if sent, logged := c.sent.Load(), c.logged.Load(); sent != logged {
				return fmt.Sprintf("%d lines for %d requests", logged, sent)
			}
			return "one line for each request"
		}),
	}
}

// token is a token of the identity provider's, good unless change spoils it.
func (c *checker) token(subject, scope string, change func(jwt.MapClaims)) string {
	claims := c.idp.claims(subject, scope)
	if change != nil {
		change(claims)
	}
	token, err := c.idp.token(claims)
	if err != nil {
		panic(err)
	}
	return token
}

// signed is a token whose claims are good and whose signature is not the identity provider's.
func (c *checker) signed(method jwt.SigningMethod, subject string, key any) string {
	token, err := sign(method, c.idp.claims(subject, "pay"), key)
	if err != nil {
		panic(err)
	}
	return token
}

func (c *checker) forged(subject string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return c.signed(jwt.SigningMethodES256, subject, key)
}

// ask sends a request to the gateway.
func (c *checker) ask(method, path, token string, change func(*http.Request)) answer {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(`{"cart":"c-1"}`)
	}
	r, err := http.NewRequestWithContext(c.ctx, method, c.gateway+path, body)
	if err != nil {
		return answer{err: err}
	}
	if change != nil {
		change(r)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	c.sent.Add(1)
	return c.do(r)
}

// askWhile asks for as long as the answer is unwanted, at most for some seconds.
func (c *checker) askWhile(unwanted int, method, path, token string) (a answer) {
	c.until(func() bool {
		a = c.ask(method, path, token, nil)
		return a.status != unwanted
	})
	return a
}

func (c *checker) do(r *http.Request) answer {
	res, err := c.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return answer{res.StatusCode, res.Header, body, err}
}

// turn breaks or heals a backend, as anybody can by curl.
func (c *checker) turn(b *backend, how string) {
	r, err := http.NewRequestWithContext(c.ctx, http.MethodPost, b.url+"/"+how, nil)
	if err == nil {
		c.do(r)
	}
}

// broken breaks a backend until heal is called.
func (c *checker) broken(name string) (heal func()) {
	c.turn(c.backends[name], "break")
	return func() { c.turn(c.backends[name], "heal") }
}

// metric asks for the metrics and says what of makes of the series of one name.
func (c *checker) metric(name string, of func(series []string) string) string {
	r, err := http.NewRequestWithContext(c.ctx, http.MethodGet, c.ops+"/metrics", nil)
	if err != nil {
		return err.Error()
	}
	a := c.do(r)
	var series []string
	for line := range strings.Lines(string(a.body)) {
		if strings.HasPrefix(line, name+"{") {
			series = append(series, strings.TrimSpace(line))
		}
	}
	return a.String() + " " + of(series)
}

// label finds the value of one label in a line of Prometheus' format.
func label(line, name string) string {
	_, rest, _ := strings.Cut(line, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// until polls done for at most some seconds, and returns what it said last.
func (c *checker) until(done func() bool) bool {
	ctx, cancel := context.WithTimeout(c.ctx, 8*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// accepts reports whether the gateway still takes connections.
func (c *checker) accepts() bool {
	conn, err := net.DialTimeout("tcp", c.listener.Addr().String(), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

// String says what the table says of an answer: its status, whether it is a problem as it must be, and
// which fields help the client.
func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	s := strconv.Itoa(a.status)
	if a.header.Get("Content-Type") == "application/problem+json" {
		var p struct {
			Title   string
			Status  int
			TraceID string `json:"trace_id"`
		}
		switch err := json.Unmarshal(a.body, &p); {
		case err != nil || p.Status != a.status || p.Title == "":
			s += " malformed problem"
		case p.TraceID == "" || p.TraceID != a.header.Get("X-Trace-ID"):
			s += " problem without the trace id"
		case bytes.Contains(a.body, []byte("127.0.0.1")):
			s += " problem that tells a backend's address"
		default:
			s += " problem"
		}
	}
	if strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Bearer") {
		s += ", challenge"
	}
	if allow := a.header.Get("Allow"); allow != "" {
		s += ", Allow: " + allow
	}
	if seconds, err := strconv.Atoi(a.header.Get("Retry-After")); err == nil && seconds >= 1 {
		s += ", Retry-After"
	}
	return s
}

// seenUser is the answer of the backend users.
type seenUser struct {
	ID   string
	Told http.Header
}

func (a answer) user() (u seenUser) {
	_ = json.Unmarshal(a.body, &u)
	return u
}

// identity are the fields that some server could take for X-User-ID.
func (u seenUser) identity() (fields []string) {
	for name, values := range u.Told {
		if strings.EqualFold(strings.NewReplacer("-", "", "_", "", ".", "").Replace(name), "XUserID") {
			fields = append(fields, name+": "+strings.Join(values, ", "))
		}
	}
	slices.Sort(fields)
	return fields
}

// members names the members of a home page, in their order, and says which are null and what failed.
func members(body []byte) (names []string) {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return []string{"no object"}
	}
	for d.More() {
		name, _ := d.Token()
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return append(names, err.Error())
		}
		said := fmt.Sprint(name)
		switch {
		case name == "errors":
			var failed []struct {
				Name   string
				Status int
			}
			_ = json.Unmarshal(value, &failed)
			for i, f := range failed {
				said += fmt.Sprintf("%s%s %d", []string{" [", ", "}[min(i, 1)], f.Name, f.Status)
			}
			said += "]"
		case string(value) == "null":
			said += " null"
		}
		names = append(names, said)
	}
	return names
}

// gaps are the members that tell of something missing.
func gaps(body []byte) string {
	return strings.Join(slices.DeleteFunc(members(body), func(said string) bool {
		return !strings.HasPrefix(said, "errors") && !strings.HasSuffix(said, " null")
	}), ", ")
}

// count says n, but no more than that it is enough.
func count(n, enough int) string {
	if n >= enough {
		return "at least " + strconv.Itoa(enough)
	}
	return strconv.Itoa(n)
}

// lineCounter counts the records that a slog.TextHandler writes.
type lineCounter struct{ atomic.Int64 }

func (n *lineCounter) Write(p []byte) (int, error) {
	n.Add(1)
	return len(p), nil
}
