package gateway

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway/internal/httpfield"
)

// ConsoleOptions configures what Console shows. If a field is empty, the page does not have that part.
type ConsoleOptions struct {
	Router    *Router            // its routes are listed and explained
	Stats     *Stats             // figures of the routes; use the value of ObserveOptions.Stats
	Upstreams []*Upstream        // their targets are shown
	Circuits  []*Circuit         // their states are shown; also list the circuits of Upstreams
	Limiters  map[string]Limiter // by the name that is shown; one without a method Usage(int) iter.Seq2[string, float64] is left out
	ShowKeys  bool               // show the keys of limiters, such as addresses; false shows hashes
}

// Console returns a handler for a page that shows the gateway live: each route with its rate, errors and
// latencies, a form that explains which route a request takes, the targets of the upstreams, the circuits
// with their last changes, and the busiest keys of the limiters.
//
// The page is embedded in the binary: a browser loads nothing from elsewhere. The page is read-only: the
// handler answers only GET and HEAD, and reading a circuit's state for the page never changes it. The page
// shows addresses of backends and errors of health checks. So mount it behind Auth, or on a listener that
// only operators reach:
//
//	ops.Handle("/console/", http.StripPrefix("/console", gateway.Console(options)))
//
// An open page receives a stream of server-sent events. While no page is open, nothing runs. Otherwise the
// stream's handler reads the figures at most twice a second, once for all open pages. A reading that takes
// long, such as that of a limiter with a million keys, is repeated less often, so that it costs less than 1 %
// of a core. At most 32 pages may be open; others get 503. A stream ends when its client leaves, when Serve
// drains, and after five minutes. The page then opens another stream, which has to pass Auth again. Inside
// Observe, each stream counts as one long request.
//
// The paths below the prefix are "/" (the page), "/console.css", "/console.js", "/events" (the stream), and
// "/explain". The latter returns, as JSON, the result of Router.Explain for the request that its query
// describes: the parameters method, host, path and header (such as "X-Beta: 1"; may be repeated). Requests
// that a page of another site makes are refused. The hash of a limiter's key uses a secret of this Console,
// since a plain hash of an address is easily guessed. It stays the same while the process runs.
//
// Console panics on a nil Upstream, Circuit or Limiter. It is safe for concurrent use.
func Console(opts ConsoleOptions) http.Handler {
	if slices.Contains(opts.Upstreams, nil) {
		panic("gateway: Console: nil Upstream")
	}
	if slices.Contains(opts.Circuits, nil) {
		panic("gateway: Console: nil Circuit")
	}
	for name, l := range opts.Limiters {
		if l == nil {
			panic("gateway: Console: nil Limiter " + name)
		}
	}
	opts.Upstreams, opts.Circuits = slices.Clone(opts.Upstreams), slices.Clone(opts.Circuits)
	opts.Limiters = maps.Clone(opts.Limiters)
	return &console{router: opts.Router, feed: newConsoleFeed(opts)}
}

// console is the handler that Console returns.
type console struct {
	router *Router // nil for none
	feed   *consoleFeed
}

//go:embed console/console.html console/console.css console/console.js
var consoleFiles embed.FS

// consoleFile is a file of the page.
type consoleFile struct {
	contentType, etag string
	content           []byte
}

// consolePages holds the files of the page, by path.
var consolePages = map[string]consoleFile{
	"/":            newConsoleFile("console.html", "text/html; charset=utf-8"),
	"/console.css": newConsoleFile("console.css", "text/css; charset=utf-8"),
	"/console.js":  newConsoleFile("console.js", "text/javascript; charset=utf-8"),
}

func newConsoleFile(name, contentType string) consoleFile {
	content, err := consoleFiles.ReadFile("console/" + name)
	if err != nil {
		panic(err) // cannot happen: the file is embedded
	}
	hash := sha256.Sum256(content)
	return consoleFile{contentType, `"` + hex.EncodeToString(hash[:8]) + `"`, content}
}

// consolePolicy permits the page to load its own files and nothing else. Trusted Types keep the script from
// writing HTML, so that the name of a route or a key of a limiter cannot become HTML.
const consolePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

func (c *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, r, &Error{Status: http.StatusMethodNotAllowed, Header: http.Header{"Allow": {"GET, HEAD"}}})
		return
	}
	h := w.Header()
	h.Set("Content-Security-Policy", consolePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	switch r.URL.Path {
	case "", "/":
		if to, ok := consoleSlash(r); ok {
			h.Set("Location", to)
			w.WriteHeader(http.StatusPermanentRedirect)
			return
		}
		consolePages["/"].serve(w, r)
	case "/events", "/explain":
		if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
			refuse(w, r, &Error{Status: http.StatusForbidden, Detail: "Only the console's own page may request this."})
			return
		}
		if r.URL.Path == "/events" {
			c.serveEvents(w, r)
		} else {
			c.serveExplain(w, r)
		}
	default:
		if f, ok := consolePages[r.URL.Path]; ok {
			f.serve(w, r)
			return
		}
		refuse(w, r, &Error{Status: http.StatusNotFound})
	}
}

// consoleSlash returns the redirect to the page if the URL lacks the slash at the end. Without the slash, the
// browser would resolve the page's relative links one level too high. The location is relative, because a
// proxy may have removed a prefix.
func consoleSlash(r *http.Request) (to string, ok bool) {
	asked, _, _ := strings.Cut(r.RequestURI, "?")
	if r.URL.Path != "" || asked == "" || strings.HasSuffix(asked, "/") {
		return "", false
	}
	return "./" + path.Base(asked) + "/", true
}

func (f consoleFile) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("Etag", f.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}

// The limits of a request to explain.
const (
	maxExplainBytes  = 16 << 10 // of the query
	maxExplainFields = 100      // header fields
	maxExplained     = 200      // candidates that are listed
)

// consoleExplanation is an Explanation in the JSON form for the page.
type consoleExplanation struct {
	Status     int                `json:"status"`
	StatusText string             `json:"statusText"`
	Route      *consoleRoute      `json:"route"`
	Reason     string             `json:"reason,omitempty"`
	Location   string             `json:"location,omitempty"`
	Allow      []string           `json:"allow,omitempty"`
	PathValues map[string]string  `json:"pathValues,omitempty"`
	Candidates []consoleCandidate `json:"candidates"`
	More       int                `json:"more"` // candidates that are not listed
	Text       string             `json:"text"` // Explanation.String
}

// consoleRoute is a Route in the JSON form for the page.
type consoleRoute struct {
	Name    string   `json:"name"`
	Pattern string   `json:"pattern"`
	Match   []string `json:"match,omitempty"` // names of the predicates
}

type consoleCandidate struct {
	consoleRoute
	Matched bool   `json:"matched"`
	Reason  string `json:"reason"`
}

func newConsoleRoute(r *Route) consoleRoute {
	c := consoleRoute{Name: r.Name, Pattern: r.Pattern}
	for _, m := range r.Match {
		c.Match = append(c.Match, m.Name)
	}
	return c
}

// serveExplain explains what the Router would do with the request that the query describes.
func (c *console) serveExplain(w http.ResponseWriter, r *http.Request) {
	if c.router == nil {
		refuse(w, r, &Error{Status: http.StatusNotFound, Detail: "This console has no router."})
		return
	}
	asked, problem := explainedRequest(r)
	if problem != "" {
		refuse(w, r, &Error{Status: http.StatusBadRequest, Detail: problem})
		return
	}
	x, err := c.explain(asked)
	if err != nil {
		refuse(w, r, &Error{Status: http.StatusInternalServerError, Detail: "A predicate of the router panicked.", Err: err})
		return
	}
	a := consoleExplanation{
		Status: x.Status, StatusText: http.StatusText(x.Status), Reason: x.Reason, Location: x.Location, Allow: x.Allow,
		PathValues: x.PathValues, Candidates: []consoleCandidate{}, Text: x.String(),
	}
	if x.Route != nil {
		route := newConsoleRoute(x.Route)
		a.Route = &route
	}
	for _, candidate := range x.Candidates[:min(len(x.Candidates), maxExplained)] {
		a.Candidates = append(a.Candidates, consoleCandidate{newConsoleRoute(&candidate.Route), candidate.Matched, candidate.Reason})
	}
	a.More = len(x.Candidates) - len(a.Candidates)
	body, err := json.Marshal(a)
	if err != nil {
		WriteError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body)
}

// explain calls Router.Explain, and returns a panic of a predicate as an error, which the page shows.
func (c *console) explain(r *http.Request) (x Explanation, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = logPanic("a predicate panicked", p, slog.String("path", bounded(r.URL.Path)))
		}
	}()
	return c.router.Explain(r), nil
}

// explainedRequest returns the request that the query of r describes, in the form in which net/http's server
// would pass it to a handler. problem is what is wrong with the query, in words for the client, or "".
func explainedRequest(r *http.Request) (asked *http.Request, problem string) {
	if len(r.URL.RawQuery) > maxExplainBytes {
		return nil, fmt.Sprintf("The request is longer than %d bytes.", maxExplainBytes)
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, "The query is malformed."
	}
	method, target, host := query.Get("method"), query.Get("path"), query.Get("host")
	if method == "" {
		method = http.MethodGet
	}
	if !httpfield.IsToken(method) {
		return nil, "The method is not a token."
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || target[0] != '/' || strings.ContainsFunc(target, func(c rune) bool { return c <= ' ' || c == 0x7F }) {
		return nil, "The path must begin with a slash, and encode spaces as %20."
	}
	asked = &http.Request{
		Method: method, URL: u, Host: host, RequestURI: target, RemoteAddr: r.RemoteAddr,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody,
	}
	fields := query["header"]
	if len(fields) > maxExplainFields {
		return nil, fmt.Sprintf("There are more than %d header fields.", maxExplainFields)
	}
	for _, line := range fields {
		name, value, ok := strings.Cut(line, ":")
		if name, value = strings.TrimSpace(name), strings.TrimSpace(value); !ok || !httpfield.IsToken(name) {
			return nil, "A header field must have the form Name: value."
		}
		if strings.EqualFold(name, "Host") {
			asked.Host = value
			continue
		}
		asked.Header.Add(name, value)
	}
	return asked, ""
}

// The times of a stream of events.
const (
	consoleTick   = 500 * time.Millisecond
	consoleBeat   = time.Second      // interval of the events that show that a silent stream is alive
	consoleStream = 5 * time.Minute  // longest time of a stream
	consoleWrite  = 10 * time.Second // longest time of one write
)

// serveEvents sends the events of the feed, until the client leaves, the server stops or consoleStream is
// over. The feed reads figures only when this ticker fires.
func (c *console) serveEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodHead {
		if !c.feed.join() {
			refuse(w, r, &Error{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"10"}},
				Detail: "Too many pages of this console are open."})
			return
		}
		defer c.feed.leave()
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // otherwise nginx buffers the events
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	s := consoleStreamer{w: w, rc: http.NewResponseController(w)}
	defer func() { _ = s.rc.SetWriteDeadline(time.Time{}) }()
	tick, end := time.NewTicker(consoleTick), time.NewTimer(consoleStream)
	defer tick.Stop()
	defer end.Stop()
	stopping := servingFrom(r.Context()).stops()
	s.write([]byte("retry: 1000\n\n"))
	for {
		c.feed.send(&s)
		if s.flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-stopping:
			return
		case <-end.C:
			return
		}
	}
}

// consoleStreamer is one stream of events.
type consoleStreamer struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	sent [consoleSections]uint64 // number of the last event that was sent, by section
	beat time.Time               // when the last event was sent
	err  error
}

func (s *consoleStreamer) write(event []byte) {
	if s.err == nil {
		_ = s.rc.SetWriteDeadline(time.Now().Add(consoleWrite)) // not every writer supports it
		_, s.err = s.w.Write(event)
	}
}

// flush sends what was written. Its error ends the stream.
func (s *consoleStreamer) flush() error {
	if s.err != nil {
		return s.err
	}
	return s.rc.Flush()
}
