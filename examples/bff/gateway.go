package main

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// services are the five backends. All gateways use the same Upstreams, so that a target that is out for one client is out
// for all.
type services struct {
	users, history, suggestions, top, fresh *gateway.Upstream
}

// home returns the parts of the home page, in the order in which they are shown. Each client's gateway begins with these
// and asks for less. Only users and top are indispensable.
func (s services) home() []gateway.Part {
	return []gateway.Part{
		{Name: "user", From: s.users, Path: "/me"},
		{Name: "history", From: s.history, Path: "/history?user={user.id}", Optional: true, Default: json.RawMessage(`{"items":[]}`)},
		{Name: "suggestions", From: s.suggestions, Path: "/suggestions", Optional: true, Timeout: 300 * time.Millisecond},
		{Name: "top", From: s.top, Path: "/top"},
		{Name: "fresh", From: s.fresh, Path: "/fresh", Optional: true, NotFoundNull: true},
	}
}

// web is the gateway of the browser: all there is, and the title pages as they are.
func web(s services) http.Handler {
	var rt gateway.Router
	rt.Handle("GET /home", gateway.Aggregate(s.home(), &gateway.AggregateOptions{ServerTiming: true}))
	rt.Handle("GET /titles/{id}", gateway.Proxy(s.top, nil))
	return &rt
}

// mobile is the gateway of the phone. Of each row it needs the first three titles, without texts and large pictures.
func mobile(s services) http.Handler {
	row := gateway.Shape{Rename: map[string]string{"items.*.artwork": "art"}}
	for _, item := range []string{"items.0", "items.1", "items.2"} {
		row.Only = append(row.Only, item+".id", item+".title", item+".artwork.small")
	}
	parts := s.home()
	parts[0].Shape = gateway.Shape{Only: []string{"name"}} // history needs the id, the phone does not
	for i := range parts[1:] {
		parts[1+i].Shape = row
	}

	var rt gateway.Router
	rt.Handle("GET /home", gateway.Aggregate(parts, nil))
	// The phone gets the same title page as the browser, without what it does not show. Any route can be reshaped.
	rt.Handle("GET /titles/{id}", gateway.Proxy(s.top, nil),
		gateway.Reshape(gateway.Shape{Drop: []string{"artwork.large", "cast", "reviews"}}))
	return &rt
}

// television is the gateway of the television: the rows side by side in one object.
func television(s services) http.Handler {
	parts := s.home()[2:]
	for i := range parts {
		parts[i].Shape = gateway.Shape{Only: []string{"items"}, Rename: map[string]string{"items": parts[i].Name}}
	}
	var rt gateway.Router
	rt.Handle("GET /tv/home", gateway.Aggregate(parts, &gateway.AggregateOptions{Merge: true}))
	return &rt
}

// clients chooses the gateway: by the host, by a field of the request or by the path.
func clients(s services, outside ...gateway.Middleware) http.Handler {
	var rt gateway.Router
	rt.Use(outside...)
	phone := mobile(s)
	rt.Add(gateway.Route{Name: "mobile", Pattern: "m.example/", Handler: phone})
	rt.Add(gateway.Route{Name: "mobile-app", Pattern: "/", Match: []gateway.Match{gateway.MatchHeader("X-Client", "mobile")}, Handler: phone})
	rt.Add(gateway.Route{Name: "tv", Pattern: "/tv/", Handler: television(s)})
	rt.Add(gateway.Route{Name: "web", Pattern: "/", Handler: web(s)})
	return &rt
}
