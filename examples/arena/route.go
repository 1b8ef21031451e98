package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"

	"github.com/seed-96248d0c/gateway"
)

// The bounds of what a visitor may ask.
const (
	maxQuestion = 16 << 10 // bytes
	maxRules    = 50
)

// question is what a visitor asks of the routing simulator.
type question struct {
	Rules  string // "GET /users/{id} users", one a line
	Method string
	URL    string // "/users/7", or with a host "http://api.example/users/7"
	Fields string // "X-Beta: 1", one a line
}

// verdict is the answer. Where Problem is set, the rules or the request are no good.
type verdict struct {
	Problem    string
	Status     int
	StatusText string
	Service    string // whose rule takes the request
	Reason     string // of a 400
	Location   string // of a 308
	Allow      []string
	PathValues map[string]string
	Candidates []candidate
}

type candidate struct {
	Pattern, Service, Reason string
	Matched                  bool
}

// route answers a question.
func route(w http.ResponseWriter, r *http.Request) {
	var q question
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestion)).Decode(&q); err != nil {
		http.Error(w, "the question is too long or malformed", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(q.verdict())
}

func (q *question) verdict() verdict {
	rt, err := build(q.Rules)
	if err != nil {
		return verdict{Problem: err.Error()}
	}
	r, err := q.request()
	if err != nil {
		return verdict{Problem: err.Error()}
	}
	x := rt.Explain(r)
	v := verdict{Status: x.Status, StatusText: http.StatusText(x.Status), Reason: x.Reason, Location: x.Location, Allow: x.Allow, PathValues: x.PathValues}
	for _, c := range x.Candidates {
		v.Candidates = append(v.Candidates, candidate{c.Route.Pattern, serviceOf(c.Route), c.Reason, c.Matched})
	}
	// And now the request is really sent to the Router.
	rec := httptest.NewRecorder()
	rt.ServeHTTP(rec, r)
	if v.Status = rec.Code; x.Route != nil {
		v.Service = rec.Body.String()
	}
	return v
}

// service is a backend that answers with its name.
type service string

func (s service) ServeHTTP(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }

func serviceOf(r gateway.Route) string {
	s, _ := r.Handler.(service)
	return string(s)
}

// registration is where the library says that a pattern was registered: always the same line of this program.
var registration = regexp.MustCompile(`,? ?\(?(registered )?at [^ )]*\.go:\d+\)?`)

// build makes a Router of rules. The library panics when rules conflict, at setup and not when a request comes;
// the panic's text is the error.
func build(rules string) (rt *gateway.Router, err error) {
	rt = new(gateway.Router)
	n := 0
	for i, line := range strings.Split(rules, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if n++; n > maxRules {
			return nil, fmt.Errorf("line %d: more than %d rules", i+1, maxRules)
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			return nil, fmt.Errorf("line %d: must have a pattern and a service", i+1)
		}
		pattern, name := strings.Join(words[:len(words)-1], " "), words[len(words)-1]
		if err := add(rt, pattern, name); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return rt, nil
}

func add(rt *gateway.Router, pattern, name string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %s", registration.ReplaceAllString(fmt.Sprint(p), ""))
		}
	}()
	rt.Handle(pattern, service(name))
	return nil
}

// request returns the request as a server would have read it.
func (q *question) request() (*http.Request, error) {
	host, target := "", strings.TrimSpace(q.URL)
	if _, rest, ok := strings.Cut(target, "://"); ok {
		host, target, _ = strings.Cut(rest, "/")
		target = "/" + target
	}
	u, err := url.ParseRequestURI(target)
	if err != nil || !strings.HasPrefix(target, "/") || strings.ContainsAny(target, " \t\r\n") {
		return nil, fmt.Errorf("the request's URL must be a path, such as /users/7, or begin with http://")
	}
	r := &http.Request{Method: strings.TrimSpace(q.Method), URL: u, Host: host, RequestURI: target,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody}
	if r.Method == "" {
		r.Method = http.MethodGet
	}
	for line := range strings.Lines(q.Fields) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			r.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
	}
	return r, nil
}
