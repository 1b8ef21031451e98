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

// ConsoleOptions names what Console shows. A part of the page without a value is not shown.
type ConsoleOptions struct {
	Router    *Router            // whose routes are listed and explained
	Stats     *Stats             // figures of the routes: the one in ObserveOptions.Stats
	Upstreams []*Upstream        // whose targets are shown
	Circuits  []*Circuit         // whose states are shown; list the circuits of Upstreams too
	Limiters  map[string]Limiter // by the name that is shown; those without a method Usage(int) iter.Seq2[string, float64] are left out
	ShowKeys  bool               // show the keys of limiters, such as addresses; false shows hashes
}

// Console returns a handler of a page that shows the gateway live: each route with its rate, errors and
// latencies, a form that explains which route a request takes, the targets of the upstreams, the circuits
// with their last changes, and the busiest keys of the limiters.
//
// The page is embedded: a browser loads nothing from elsewhere. It is read-only: it answers GET and HEAD
// alone, and showing a circuit never changes its state. It shows paths of backends and errors of health
// checks, so mount it behind Auth, or on a listener that only operators reach:
//
//	ops.Handle("/console/", http.StripPrefix("/console", gateway.Console(options)))
//
// While nobody looks, nothing runs. While somebody does, the handler of the stream of server-sent events
// reads the figures twice a second at most; several watchers share one reading. A reading that takes long,
// such as that of a limiter with a million keys, is repeated less often, so that it costs under 1 % of a
// core. At most 32 watch at a time; others get 503. A stream ends with its client, with the drain of Serve,
// and after five minutes, when the page opens another and has to pass Auth again. Under a Router with
// Observe, each stream counts as one long request.
//
// The paths below the prefix are "/" (the page), "/console.css", "/console.js", "/events" (the stream), and
// "/explain", which answers with JSON what Router.Explain returns for the request in the query's parameters
// method, host, path and header (such as "X-Beta: 1"; it may occur often). Requests that a page of another
// site makes are refused. A key of a limiter is hashed with a secret of this Console, since a plain hash of an
// address is soon guessed; the same key has the same hash as long as the process runs.
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
	router *Router // nil: none
	feed   *consoleFeed
}

//go:embed console/console.html console/console.css console/console.js
var consoleFiles embed.FS

// consoleFile is a file of the page.
type consoleFile struct {
	contentType, etag string
	content           []byte
}

// consolePages are the files of the page by their path.
var consolePages = map[string]consoleFile{
	"/":            newConsoleFile("console.html", "text/html; charset=utf-8"),
	"/console.css": newConsoleFile("console.css", "text/css; charset=utf-8"),
	"/console.js":  newConsoleFile("console.js", "text/javascript; charset=utf-8"),
}

func newConsoleFile(name, contentType string) consoleFile {
	content, err := consoleFiles.ReadFile("console/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	hash := sha256.Sum256(content)
	return consoleFile{contentType, `"` + hex.EncodeToString(hash[:8]) + `"`, content}
}

// consolePolicy lets the page load its own files and nothing else. Script cannot write markup (Trusted Types),
// so no name or key can become any.
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
			refuse(w, r, &Error{Status: http.StatusForbidden, Detail: "Only the console's own page may ask for this."})
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

// consoleSlash returns where the page is when its URL lacks the slash at the end, without which the page would
// look for its files one level too high. The location is relative: proxies may have removed any prefix.
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

// The bounds of a request to explain.
const (
	maxExplainBytes  = 16 << 10 // of the query
	maxExplainFields = 100      // header fields
	maxExplained     = 200      // candidates that are listed
)

// consoleExplanation is an Explanation as the page gets it.
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

// consoleRoute is a Route as the page gets it.
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

// serveExplain answers what the Router would do with the request that the query describes.
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

// explain is Router.Explain, with a panic of a predicate as an error: the page then says so.
func (c *console) explain(r *http.Request) (x Explanation, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = logPanic("a predicate panicked", p, slog.String("path", bounded(r.URL.Path)))
		}
	}()
	return c.router.Explain(r), nil
}

// explainedRequest returns the request that the query of r describes, as a server would have read it, or what
// is wrong with it, for the client.
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
	consoleBeat   = time.Second      // between the events that show a silent stream to be alive
	consoleStream = 5 * time.Minute  // its longest life
	consoleWrite  = 10 * time.Second // longest time that one write may take
)

// serveEvents sends what the feed has, until the client or the server goes. This goroutine's ticker is the
// only thing that drives a Console.
func (c *console) serveEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodHead {
		if !c.feed.join() {
			refuse(w, r, &Error{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"10"}},
				Detail: "Too many are watching this console."})
			return
		}
		defer c.feed.leave()
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the events back
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
	sent [consoleSections]uint64 // serial of the last event of each section
	beat time.Time               // of the last event
	err  error
}

func (s *consoleStreamer) write(event []byte) {
	if s.err == nil {
		_ = s.rc.SetWriteDeadline(time.Now().Add(consoleWrite)) // not every writer can
		_, s.err = s.w.Write(event)
	}
}

// flush sends what was written, and a beat after a silence. Its error ends the stream.
func (s *consoleStreamer) flush() error {
	if s.err != nil {
		return s.err
	}
	return s.rc.Flush()
}
