package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// backend is one of the services behind the gateway. Each listens on a port of its own. POST /break makes
// all its answers 500, POST /heal makes them good again.
type backend struct {
	name   string
	url    string
	answer http.HandlerFunc
	broken atomic.Bool
	asked  atomic.Int64 // requests, without /break and /heal
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if turn := r.Method + " " + r.URL.Path; turn == "POST /break" || turn == "POST /heal" {
		b.broken.Store(turn == "POST /break")
		fmt.Fprintln(w, b.name, "is", map[bool]string{true: "broken", false: "healthy"}[b.broken.Load()])
		return
	}
	b.asked.Add(1)
	if b.broken.Load() {
		http.Error(w, b.name+" is broken", http.StatusInternalServerError)
		return
	}
	b.answer(w, r)
}

// newBackends returns the services of a streaming provider: who watches, who pays, and the five behind the
// home page.
func newBackends() map[string]*backend {
	backends := make(map[string]*backend)
	add := func(name string, answer http.HandlerFunc) {
		backends[name] = &backend{name: name, answer: answer}
	}
	add("users", user)
	add("payments", pay)
	add("recommendations", row("Because you liked Harbour Lights", "Salt and Iron", "The Long Tide", "Nightwatch"))
	add("continue-watching", row("Continue watching", "Harbour Lights", "Meridian"))
	add("top-10", row("Top 10 today", "Meridian", "Paper Moons", "The Glass Orchard", "Nightwatch", "Undertow",
		"Salt and Iron", "Harbour Lights", "North of Noon", "The Quiet Engine", "Larkspur"))
	add("my-list", row("My list", "Paper Moons", "Undertow"))
	add("new-releases", row("New this week", "The Quiet Engine", "Larkspur", "North of Noon"))
	return backends
}

// user answers GET /users/{id} with the user and with what it was told in the request's fields.
// ?wait=2s lets it think for a while, at most 8s.
func user(w http.ResponseWriter, r *http.Request) {
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	select {
	case <-time.After(min(wait, 8*time.Second)):
	case <-r.Context().Done():
		return
	}
	told := r.Header.Clone()
	told.Del("Authorization")
	writeJSON(w, http.StatusOK, map[string]any{
		"id":   strings.TrimPrefix(r.URL.Path, "/users/"),
		"name": "Ada",
		"told": told,
	})
}

var orders atomic.Int64

// pay answers POST /checkout.
func pay(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusCreated, map[string]any{
		"order":   orders.Add(1),
		"paid_by": r.Header.Get("X-User-ID"),
	})
}

// row answers GET /row with a row of the home page, at most ?limit=n titles long.
func row(title string, titles ...string) http.HandlerFunc {
	type item struct {
		Title    string `json:"title"`
		Artwork  string `json:"artwork"`
		Synopsis string `json:"synopsis"`
	}
	return func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 0 || limit > len(titles) {
			limit = len(titles)
		}
		items := make([]item, limit)
		for i, t := range titles[:limit] {
			slug := strings.ReplaceAll(strings.ToLower(t), " ", "-")
			items[i] = item{t, "/artwork/" + slug + "-1920x1080.jpg", "All that there is to say about " + t + "."}
		}
		writeJSON(w, http.StatusOK, map[string]any{"title": title, "for": r.Header.Get("X-User-ID"), "items": items})
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
