package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// backends are the five services, each on a port of its own.
type backends struct {
	services
	servers []*httptest.Server
	urls    map[string]string // by name
}

// startBackends starts services that take 20, 40, 60, 80 and 100 ms.
func startBackends() *backends {
	b := &backends{urls: make(map[string]string)}
	start := func(name string, after time.Duration, answer http.HandlerFunc) *gateway.Upstream {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(after):
			case <-r.Context().Done():
				return
			}
			w.Header().Set("Content-Type", "application/json")
			answer(w, r)
		}))
		b.servers = append(b.servers, s)
		b.urls[name] = s.URL
		return gateway.NewUpstream(name, gateway.MustTargets(s.URL), nil)
	}
	b.users = start("users", 20*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"id":"u-7","name":"Ada","mail":"ada@example.com","plan":{"name":"family","since":"2021-04-01"}}`)
	})
	b.history = start("history", 40*time.Millisecond, row("Continue watching", 6))
	b.suggestions = start("suggestions", 60*time.Millisecond, row("Because you liked Harbour Lights", 10))
	b.top = start("top", 80*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		if id, ok := strings.CutPrefix(r.URL.Path, "/titles/"); ok {
			fmt.Fprintf(w, `{"id":%q,"title":%q,"artwork":{"large":%q,"small":%q},"cast":[%s],"reviews":[%s]}`, id, titles[0],
				picture(titles[0], "1920x1080"), picture(titles[0], "320x180"),
				strings.Repeat(`{"name":"A. Actor","role":"Themselves"},`, 20)+"{}", strings.Repeat(`{"stars":4,"text":"Worth every minute of the evening."},`, 20)+"{}")
			return
		}
		row("Top 10 today", 10)(w, r)
	})
	b.fresh = start("fresh", 100*time.Millisecond, row("New this week", 8))
	return b
}

func (b *backends) close() {
	for _, s := range b.servers {
		s.Close()
	}
}

var titles = []string{"Harbour Lights", "Salt and Iron", "The Long Tide", "Nightwatch", "Meridian", "Paper Moons", "The Glass Orchard", "Undertow", "North of Noon", "Larkspur"}

func picture(title, size string) string {
	return "https://cdn.example/artwork/" + strings.ReplaceAll(strings.ToLower(title), " ", "-") + "-" + size + ".jpg"
}

// row answers with a row of n titles.
func row(name string, n int) http.HandlerFunc {
	var b strings.Builder
	fmt.Fprintf(&b, `{"title":%q,"items":[`, name)
	for i, title := range titles[:n] {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":%d,"title":%q,"synopsis":"All that there is to say about %s, and a little more.","artwork":{"large":%q,"small":%q},"score":8.75,"tags":["drama","sea"]}`,
			9007199254740993+i, title, title, picture(title, "1920x1080"), picture(title, "320x180"))
	}
	b.WriteString("]}\n")
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, b.String()) }
}
