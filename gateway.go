// Package gateway holds composable net/http middleware and a Router from which a service builds its own
// API gateway. A whole one:
//
//	keys, err := gateway.NewJWKS("https://id.example/.well-known/jwks.json", nil)
//	if err != nil {
//		log.Fatal(err)
//	}
//	tokens := gateway.NewJWT(keys, gateway.JWTOptions{Issuer: "https://id.example", Audience: "api", Algorithms: []string{"RS256"}})
//
//	users := gateway.NewUpstream("users", gateway.MustTargets("http://10.0.0.1:80", "http://10.0.0.2:80"), nil)
//	payments := gateway.NewUpstream("payments", gateway.MustTargets("http://10.0.0.5:80"), &gateway.UpstreamOptions{
//		Timeout: 2 * time.Second,
//		Circuit: gateway.NewCircuit("payments", nil),
//	})
//
//	var rt gateway.Router
//	rt.Use(
//		gateway.Observe(&gateway.ObserveOptions{Logger: slog.Default()}),
//		gateway.RateLimit(gateway.NewTokenBucket(100, 200, nil), gateway.KeyByIP, &gateway.RateLimitOptions{Name: "address"}),
//		gateway.Auth(tokens, nil),
//		gateway.RateLimit(gateway.NewTokenBucket(10, 20, nil), gateway.KeyBySubject, &gateway.RateLimitOptions{Name: "caller"}),
//	)
//	rt.Handle("GET /users/{id}", gateway.Proxy(users, nil))
//	rt.Handle("POST /checkout", gateway.Proxy(payments, nil), gateway.RequireScopes("pay"))
//	rt.Handle("GET /home", gateway.Aggregate([]gateway.Part{
//		{Name: "user", From: users, Path: "/me"},
//		{Name: "orders", From: payments, Path: "/orders?user={user.id}", Optional: true, Timeout: 300 * time.Millisecond},
//	}, nil))
//
//	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
//	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
//	srv := &http.Server{Addr: ":8080", Handler: &rt, ReadHeaderTimeout: 5 * time.Second}
//	if err := gateway.Serve(ctx, srv, nil); err != nil {
//		log.Fatal(err)
//	}
//
// Each concern stands alone as well, around any http.Handler and under any router:
//
//	mux.Handle("POST /checkout", gateway.Chain(
//		gateway.Auth(tokens, nil),
//		gateway.RateLimit(perUser, gateway.KeyBySubject, nil),
//		gateway.Breaker(circuit, nil),
//	)(checkout))
//
// What keeps state, such as a [MemoryLimiter], a [Circuit] or an [Upstream], is a value that the caller
// builds and may share: one limiter is one budget wherever it is applied. Every refusal leaves through
// [WriteError] as application/problem+json (RFC 9457), every ending is one [Outcome], by which circuits,
// metrics and the access log judge alike. A trailing pointer to options may be nil, for all defaults; it is
// copied. Setup mistakes panic; what comes from strings, files or the network returns an error.
package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Middleware wraps a handler. It is an alias, so a value drops into chi, alice, otelhttp or a plain loop
// unchanged.
type Middleware = func(http.Handler) http.Handler

// Chain composes middleware; the first is outermost. Without any it returns the handler as it is. A nil one
// panics.
func Chain(mw ...Middleware) Middleware {
	mw = checkMiddleware("Chain", mw)
	return func(next http.Handler) http.Handler {
		for i := len(mw) - 1; i >= 0; i-- {
			next = mw[i](next)
		}
		return next
	}
}

// Error is a refusal or failure with its HTTP face. Detail is sent; Err is only logged.
//
// The zero value is a 500 that says nothing.
type Error struct {
	Status int         // HTTP status; 0 means 500
	Type   string      // RFC 9457 problem type; "" means about:blank
	Title  string      // "" means the status text
	Detail string      // for the client; "" sends none
	Header http.Header // extra response fields: Retry-After, WWW-Authenticate
	Err    error       // cause; never sent
}

// Error is for logs: it tells the cause, which a client must not see.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("gateway: ")
	b.WriteString(strconv.Itoa(e.status()))
	b.WriteByte(' ')
	b.WriteString(e.title())
	if e.Detail != "" {
		b.WriteString(": ")
		b.WriteString(e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// status is the status that is sent. One that is no final answer means 500.
func (e *Error) status() int {
	if e.Status < 200 || e.Status > 999 {
		return http.StatusInternalServerError
	}
	return e.Status
}

func (e *Error) title() string {
	switch {
	case e.Title != "":
		return e.Title
	case e.Status == statusClientClosed:
		return "Client Closed Request"
	}
	return http.StatusText(e.status())
}

// Conditions that callers branch on with errors.Is.
var (
	ErrUnauthenticated = errors.New("gateway: unauthenticated")     // 401
	ErrForbidden       = errors.New("gateway: forbidden")           // 403
	ErrNoRoute         = errors.New("gateway: no route")            // 404, or 405 with Allow
	ErrBodyTooLarge    = errors.New("gateway: body too large")      // 413
	ErrRateLimited     = errors.New("gateway: rate limited")        // 429
	ErrBadGateway      = errors.New("gateway: upstream failed")     // 502
	ErrCircuitOpen     = errors.New("gateway: circuit open")        // 503
	ErrNoTarget        = errors.New("gateway: no target available") // 503
	ErrOverloaded      = errors.New("gateway: overloaded")          // 503
	ErrTimeout         = errors.New("gateway: upstream timed out")  // 504
	ErrNoCredentials   = errors.New("gateway: no credentials")      // an Authenticator found none of its kind
)

// statusClientClosed is what the log says of a client that left before its answer (after nginx); nobody
// ever receives it.
const statusClientClosed = 499

// statuses maps conditions to the status that answers them; the first that holds counts.
var statuses = []struct {
	err    error
	status int
}{
	{ErrUnauthenticated, http.StatusUnauthorized},
	{ErrNoCredentials, http.StatusUnauthorized},
	{ErrForbidden, http.StatusForbidden},
	{ErrNoRoute, http.StatusNotFound},
	{ErrBodyTooLarge, http.StatusRequestEntityTooLarge},
	{ErrRateLimited, http.StatusTooManyRequests},
	{ErrCircuitOpen, http.StatusServiceUnavailable},
	{ErrNoTarget, http.StatusServiceUnavailable},
	{ErrOverloaded, http.StatusServiceUnavailable},
	{ErrTimeout, http.StatusGatewayTimeout},
	{ErrBadGateway, http.StatusBadGateway},
	{context.DeadlineExceeded, http.StatusGatewayTimeout},
	{context.Canceled, statusClientClosed},
}

// waiter is an error that knows when asking again could help.
type waiter interface{ retryAfter() time.Duration }

// finish returns err as an Error with every field filled in that the client will see. It never changes
// err.
func finish(err error) *Error {
	var e Error
	var given *Error
	var tooLarge *http.MaxBytesError
	switch {
	case err == error(given): // nil, but for its type
		err, e.Status = nil, http.StatusInternalServerError
	case errors.As(err, &given) && given != nil:
		e = *given
		e.Header = given.Header.Clone()
		if err != error(given) {
			e.Err = err // the log is told the whole chain
		}
		e.Status = given.status()
	case errors.As(err, &tooLarge):
		e.Status, e.Err = http.StatusRequestEntityTooLarge, err
	default:
		e.Status, e.Err = http.StatusInternalServerError, err
		for _, s := range statuses {
			if errors.Is(err, s.err) {
				e.Status = s.status
				break
			}
		}
	}
	if e.Type == "" {
		e.Type = "about:blank"
	}
	e.Title = e.title()
	if e.Header == nil {
		e.Header = make(http.Header)
	}
	var wait waiter
	if errors.As(err, &wait) && e.Header.Get("Retry-After") == "" {
		e.Header.Set("Retry-After", seconds(wait.retryAfter()))
	}
	if e.Status == http.StatusUnauthorized && e.Header.Get("WWW-Authenticate") == "" {
		e.Header.Set("WWW-Authenticate", "Bearer")
	}
	return &e
}

// seconds writes d for Retry-After: whole seconds, rounded up, at least 1.
func seconds(d time.Duration) string {
	return strconv.Itoa(int(max(1, math.Ceil(d.Seconds()))))
}

// WriteError is the one exit for every refusal: RFC 9457 application/problem+json with the trace id,
// unless HandleErrors stands outside. An unknown error becomes 500 without its text. What the client is
// sent is Error's Status, Type, Title, Detail and Header; the cause goes to the log and the span.
//
// The errors above get their status and an *Error has its own; an *http.MaxBytesError gets 413, an ended
// context 504, and a cancelled one 499, which nobody receives. When the response has already begun,
// WriteError writes nothing: the error is noted alone.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e := finish(err)
	answerError(w, r, e, ending{err: e, gone: leftEarly(r.Context())})
}

// refuse answers with err and notes that it was the gateway that refused, whatever the status.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	answerError(w, r, finish(err), ending{refused: true})
}

// answerError sends e, which is finished, and notes how that ends the exchange.
func answerError(w http.ResponseWriter, r *http.Request, e *Error, end ending) {
	ex := exchangeFrom(r.Context())
	ex.note(end.outcome(), e)
	if rw, ok := w.(*responseWriter); ok && rw.started() {
		return
	}

	h := w.Header()
	// What was meant for the answer that is not sent.
	for _, name := range []string{"Content-Encoding", "Content-Length", "Content-Range", "Etag", "Last-Modified"} {
		delete(h, name)
	}
	h.Set("Cache-Control", "no-store")
	for name, values := range e.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}

	var traceID string
	if ex != nil {
		ex.mu.Lock()
		traceID = ex.traceID
		onError := ex.onError
		answered := ex.answering
		if onError != nil {
			ex.onError, ex.answering = nil, e // what onError itself writes is not handed to it again
		}
		ex.mu.Unlock()
		if onError != nil {
			defer func() {
				ex.mu.Lock()
				ex.onError, ex.answering = onError, answered
				ex.mu.Unlock()
			}()
			onError(w, r, e)
			if rw, ok := w.(*responseWriter); ok && !rw.started() {
				rw.WriteHeader(e.Status) // not the 200 of a handler that is silent
			}
			return
		}
	}

	body, _ := json.Marshal(struct {
		Type    string `json:"type"`
		Title   string `json:"title,omitempty"`
		Status  int    `json:"status"`
		Detail  string `json:"detail,omitempty"`
		TraceID string `json:"trace_id,omitempty"`
	}{e.Type, e.Title, e.Status, e.Detail, traceID})
	body = append(body, '\n')
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.Status)
	_, _ = w.Write(body)
}

// ErrorFrom returns the error that is being answered, to a fallback or an error handler; nil elsewhere.
func ErrorFrom(ctx context.Context) error {
	ex := exchangeFrom(ctx)
	if ex == nil {
		return nil
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.answering == nil {
		return nil
	}
	return ex.answering
}

// HandleErrors replaces the way errors are written by everything inside it. h gets the finished error:
// status, fields and all; its Header is in w's already. What h writes by WriteError is a problem as
// without it. When h writes nothing, the status is sent alone. Of two, the inner is asked. It panics when h is
// nil.
func HandleErrors(h func(w http.ResponseWriter, r *http.Request, e *Error)) Middleware {
	if h == nil {
		panic("gateway: HandleErrors: nil function")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			ex.mu.Lock()
			outer := ex.onError
			ex.onError = h
			ex.mu.Unlock()
			defer func() {
				ex.mu.Lock()
				ex.onError = outer
				ex.mu.Unlock()
			}()
			next.ServeHTTP(rw, r)
		})
	}
}

// Timeout gives what is inside it d for the whole answer: its context ends, and if nothing was written the client
// gets 504. A stream that has begun is cut: for the time to an answer's beginning, see UpstreamOptions.Timeout. It buffers nothing and starts no goroutine, so a handler that ignores its context is waited
// for. It panics when d is not positive.
func Timeout(d time.Duration) Middleware {
	if d <= 0 {
		panic("gateway: Timeout: duration must be positive")
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			ctx, cancel := context.WithTimeout(r.Context(), d)
			defer cancel()
			limited := r.WithContext(ctx)
			ex.derived(r, limited)
			next.ServeHTTP(rw, limited)
			if ctx.Err() == context.DeadlineExceeded && r.Context().Err() == nil && !rw.started() {
				WriteError(rw, r, ErrTimeout)
			}
		})
	}
}

// Outcome is how an attempt or an exchange ended. One function decides it, once for each attempt and once
// for the exchange; circuit, metrics and the access log all judge by it, so they never disagree.
type Outcome int

const (
	OutcomeOK             Outcome = iota // an answer below 500 reached the client
	OutcomeClientCanceled                // the client left first; nobody's failure
	OutcomeRejected                      // the gateway refused: auth, limit, open circuit, shedding
	OutcomeTimeout                       // the upstream was too slow
	OutcomeUpstreamError                 // dial, protocol or 5xx; of a local handler too
	OutcomeAborted                       // the upstream died after its response began
	OutcomeInternal                      // a panic in this process; no upstream is to blame
)

// String returns the word for logs and labels, such as "client_canceled".
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeClientCanceled:
		return "client_canceled"
	case OutcomeRejected:
		return "rejected"
	case OutcomeTimeout:
		return "timeout"
	case OutcomeUpstreamError:
		return "upstream_error"
	case OutcomeAborted:
		return "aborted"
	case OutcomeInternal:
		return "internal"
	}
	return "Outcome(" + strconv.Itoa(int(o)) + ")"
}

// TrustProxies says from whom to believe where a request came from. Inside it, ClientAddr walks
// X-Forwarded-For, or Forwarded (RFC 7239) where that is absent, from the right past these prefixes; when
// all are trusted, the leftmost is the client. Without it nobody is believed.
//
// Name only the addresses of your own load balancers. What no address can be read from ends the walk:
// the address to its right is the client. A request that does not come from one of the prefixes is taken
// as it is. An invalid prefix panics.
func TrustProxies(prefixes ...netip.Prefix) Middleware {
	trusted := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() {
			panic("gateway: TrustProxies: invalid prefix")
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		trusted[i] = p.Masked()
	}
	trusts := func(a netip.Addr) bool {
		for _, p := range trusted {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ex, rw, r := enter(w, r)
			peer := remoteAddr(r)
			client, via := peer, trusts(peer)
			if via {
				client = walkBack(r.Header, peer, trusts)
			}
			ex.mu.Lock()
			ex.client, ex.viaProxy = client, via
			ex.mu.Unlock()
			next.ServeHTTP(rw, r)
		})
	}
}

// walkBack follows the fields in which each proxy names the one before it, from peer back to the first
// that is not trusted.
func walkBack(h http.Header, peer netip.Addr, trusts func(netip.Addr) bool) netip.Addr {
	lines, parse := h["X-Forwarded-For"], parseNode
	if len(lines) == 0 {
		lines, parse = h["Forwarded"], parseForwarded
	}
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for more := true; more; {
			var element string
			rest, element, more = cutLastElement(rest)
			hop, ok := parse(element)
			if !ok {
				return peer
			}
			peer = hop
			if !trusts(hop) {
				return peer
			}
		}
	}
	return peer
}

// cutLastElement cuts the last element from a comma-separated list, in which a comma may stand quoted, and in
// the quotes a quote behind a backslash.
func cutLastElement(list string) (rest, last string, more bool) {
	for i, quoted := len(list)-1, false; i >= 0; i-- {
		switch {
		case list[i] == '"':
			escapes := len(list[:i]) - len(strings.TrimRight(list[:i], `\`))
			quoted = quoted != (escapes%2 == 0)
		case list[i] == ',' && !quoted:
			return list[:i], list[i+1:], true
		}
	}
	return "", list, false
}

// parseForwarded finds the node of "for" in one element of Forwarded (RFC 7239 section 4). What other pairs
// have in quotes may be the client's own words, as the Host that it sent.
func parseForwarded(element string) (netip.Addr, bool) {
	for more := true; more; {
		var pair string
		pair, element, more = cutPair(element)
		name, value, _ := strings.Cut(pair, "=")
		if strings.EqualFold(strings.Trim(name, " \t"), "for") {
			value = strings.Trim(value, " \t")
			if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return parseNode(value)
		}
	}
	return netip.Addr{}, false
}

// cutPair cuts the first pair from an element of Forwarded, in which a semicolon may stand quoted.
func cutPair(element string) (pair, rest string, more bool) {
	for i, quoted := 0, false; i < len(element); i++ {
		switch c := element[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ';' && !quoted:
			return element[:i], element[i+1:], true
		}
	}
	return element, "", false
}

// parseNode reads an address, with or without port; an IPv6 address may stand in brackets.
func parseNode(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	a, err := netip.ParseAddr(s)
	if err != nil {
		if n := len(s); n > 2 && s[0] == '[' && s[n-1] == ']' {
			a, err = netip.ParseAddr(s[1 : n-1])
		} else {
			var ap netip.AddrPort
			ap, err = netip.ParseAddrPort(s)
			a = ap.Addr()
		}
	}
	return a.Unmap().WithZone(""), err == nil
}

// remoteAddr is the address of the connection's other end; the zero Addr when it has none, as on a Unix
// socket.
func remoteAddr(r *http.Request) netip.Addr {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	a, _ := parseNode(r.RemoteAddr)
	return a
}

// ClientAddr is the client's address, for limits, forwarding and the log alike: RemoteAddr's, unless
// TrustProxies found another. IPv4 comes as IPv4, and without a zone. It is the zero Addr where RemoteAddr
// is none, as on a Unix socket.
func ClientAddr(r *http.Request) netip.Addr {
	ex := exchangeFrom(r.Context())
	if ex == nil {
		return remoteAddr(r)
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if !ex.client.IsValid() {
		ex.client = remoteAddr(r)
	}
	return ex.client
}
