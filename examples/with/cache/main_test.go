package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestCache asks each twice. The answer says which request of the backend it comes from.
func TestCache(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answer  []string // the backend's fields
		first   []string // the first request's fields
		second  []string
		later   time.Duration
		backend int32 // requests in all
		want    string
	}{
		{"fresh", []string{"Cache-Control", "max-age=60"}, nil, nil, 0, 1, "200 answer 1"},
		{"stale", []string{"Cache-Control", "max-age=60"}, nil, nil, time.Minute, 2, "200 answer 2"},
		{"for shared caches", []string{"Cache-Control", "max-age=0, s-maxage=60"}, nil, nil, time.Second, 1, "200 answer 1"},
		{"not for shared caches", []string{"Cache-Control", "private, max-age=60"}, nil, nil, 0, 2, "200 answer 2"},
		{"with a time", []string{"Date", "Tue, 24 Nov 2026 10:00:00 GMT", "Expires", "Tue, 24 Nov 2026 10:01:00 GMT"}, nil, nil, 59 * time.Second, 1, "200 answer 1"},
		{"already old", []string{"Cache-Control", "max-age=60", "Age", "50"}, nil, nil, 11 * time.Second, 2, "200 answer 2"},
		{"nothing said", nil, nil, nil, 0, 2, "200 answer 2"},
		{"nonsense", []string{"Cache-Control", "max-age=-1"}, nil, nil, 0, 2, "200 answer 2"},
		{"a cookie", []string{"Cache-Control", "max-age=60", "Set-Cookie", "a=1"}, nil, nil, 0, 2, "200 answer 2"},
		{"asked with Authorization", []string{"Cache-Control", "max-age=60"}, []string{"Authorization", "a"}, nil, 0, 2, "200 answer 2"},
		{"but public", []string{"Cache-Control", "max-age=60, public"}, []string{"Authorization", "a"}, nil, 0, 1, "200 answer 1"},
		{"the same language", []string{"Cache-Control", "max-age=60", "Vary", "Accept-Language"}, []string{"Accept-Language", "fr"}, []string{"Accept-Language", "fr"}, 0, 1, "200 answer 1"},
		{"another language", []string{"Cache-Control", "max-age=60", "Vary", "Accept-Language"}, []string{"Accept-Language", "fr"}, nil, 0, 2, "200 answer 2"},
		{"a client that wants it new", []string{"Cache-Control", "max-age=60"}, nil, []string{"Cache-Control", "no-cache"}, 0, 2, "200 answer 2"},
		{"still good", []string{"Cache-Control", "max-age=60", "ETag", `"1"`}, nil, nil, time.Hour, 2, "200 answer 1"},
		{"a client that has it", []string{"Cache-Control", "max-age=60", "ETag", `"1"`}, nil, []string{"If-None-Match", `"1"`}, 0, 1, "304 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int32
			backend := ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
				for i := 0; i < len(tt.answer); i += 2 {
					w.Header().Add(tt.answer[i], tt.answer[i+1])
				}
				n := asked.Add(1)
				if tag := w.Header().Get("ETag"); tag != "" && r.Header.Get("If-None-Match") == tag {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				fmt.Fprint(w, "answer ", n)
			})
			c := newCache(backend, 2, 1000)
			began := time.Now()
			now := began
			c.now = func() time.Time { return now }
			srv := ask.Serve(t, gateway.Proxy(c, nil))
			ask.Do(t, "GET", srv+"/a", "", tt.first...)
			now = began.Add(tt.later)
			got := ask.Do(t, "GET", srv+"/a", "", tt.second...)
			if got.String() != tt.want || asked.Load() != tt.backend {
				t.Errorf("%s, and the backend was asked %d times; want %s and %d", got, asked.Load(), tt.want, tt.backend)
			}
		})
	}
}

// TestCacheForgets has writes forget what they change, large answers pass, and the oldest make room.
func TestCacheForgets(t *testing.T) {
	var asked atomic.Int32
	backend := ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60")
		if r.URL.Path == "/large" {
			fmt.Fprint(w, strings.Repeat("x", 1001))
		}
		fmt.Fprint(w, asked.Add(1))
	})
	c := newCache(backend, 2, 1000)
	srv := ask.Serve(t, gateway.Proxy(c, nil))
	for i, step := range []struct {
		method, path string
		asked        int32
	}{
		{"GET", "/a", 1}, {"GET", "/a", 1}, {"HEAD", "/a", 1}, {"PUT", "/a", 2}, {"GET", "/a", 3}, // forgotten
		{"GET", "/b", 4}, {"GET", "/a", 4}, {"GET", "/c", 5}, {"GET", "/a", 5}, {"GET", "/b", 6}, // b made room for c
		{"GET", "/large", 7}, {"GET", "/large", 8},
	} {
		ask.Do(t, step.method, srv+step.path, "")
		if asked.Load() != step.asked {
			t.Fatalf("after step %d, %s %s, the backend was asked %d times; want %d", i, step.method, step.path, asked.Load(), step.asked)
		}
	}
	if len(c.entries) != 2 || c.order.Len() != 2 {
		t.Errorf("%d answers, %d in order; want 2", len(c.entries), c.order.Len())
	}
}
