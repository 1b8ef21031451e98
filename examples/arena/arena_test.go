package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		h := newArena(ctx)
		post := func(path string) int {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest("POST", path, nil))
			return rec.Code
		}
		if code := post("/fire?n=15"); code != 204 {
			t.Fatalf("fire: %d", code)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, l := range state(t, h).Lanes {
			if l.Passed != 10 || l.Refused != 5 || l.Waiting != 0 || l.Left != 10 {
				t.Errorf("%+v", l)
			}
		}
		for _, n := range []string{"0", "101", "x", ""} {
			if code := post("/fire?n=" + n); code != 400 {
				t.Errorf("n=%s: %d", n, code)
			}
		}
	})
}

func TestCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newArena(t.Context())
		post := func(path string) {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", path, nil))
		}
		post("/backend?mode=failing")
		post("/call?n=5")
		c := state(t, h).Circuit
		if c.State != "open" || c.Asked != 3 || len(c.Calls) != 5 || c.Calls[4].Asked || c.Calls[4].Status != 503 {
			t.Errorf("%+v", c)
		}
		post("/backend?mode=healthy")
		time.Sleep(4 * time.Second)
		if c := state(t, h).Circuit; c.State != "half-open" {
			t.Errorf("%+v", c)
		}
		post("/call?n=2")
		if c := state(t, h).Circuit; c.State != "closed" || c.Mode != "healthy" || len(c.Changes) != 3 {
			t.Errorf("%+v", c)
		}
	})
}

// state reads the first event of the stream.
func state(t *testing.T, h http.Handler) (s struct {
	Lanes   []laneView
	Circuit stageView
}) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &firstEvent{ResponseRecorder: httptest.NewRecorder(), cancel: cancel}
	h.ServeHTTP(w, httptest.NewRequest("GET", "/events", nil).WithContext(ctx))
	data, _, _ := bytes.Cut(w.Body.Bytes(), []byte("\n"))
	if err := json.Unmarshal(bytes.TrimPrefix(data, []byte("data: ")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// firstEvent leaves after one event.
type firstEvent struct {
	*httptest.ResponseRecorder
	cancel func()
}

func (w *firstEvent) Flush() { w.cancel() }

func TestRoute(t *testing.T) {
	const rules = "# a comment\nGET /users/{id} users\nPOST /users accounts\nGET api.example/users/{id} v2\n/files/{path...} files\n"
	for _, tt := range []struct {
		rules, method, url string
		status             int
		service            string
		problem            string
	}{
		{rules, "GET", "/users/7", 200, "users", ""},
		{rules, "GET", "http://api.example/users/7", 200, "v2", ""},
		{rules, "", "/files/a/b", 200, "files", ""},
		{rules, "DELETE", "/users/7", 405, "", ""},
		{rules, "GET", "/files//a", 308, "", ""},
		{rules, "GET", "/users/%2e%2e/x", 400, "", ""},
		{rules, "GET", "/nowhere", 404, "", ""},
		{rules, "GET", "nowhere", 0, "", "must be a path"},
		{rules + "GET /users/{name} again", "GET", "/", 0, "", "line 6: panic: gateway: Router.Handle: pattern"},
		{"/users/{id} a\n/{kind}/7 b", "GET", "/", 0, "", "line 2: panic"},
		{"/users", "GET", "/", 0, "", "line 1: must have"},
		{"users/{ a", "GET", "/", 0, "", "malformed"},
		{strings.Repeat("/a x\n", 1) + strings.Repeat("#\n", 60), "GET", "/a", 200, "x", ""},
	} {
		q := question{Rules: tt.rules, Method: tt.method, URL: tt.url}
		v := q.verdict()
		if v.Status != tt.status || v.Service != tt.service || !strings.Contains(v.Problem, tt.problem) || (v.Problem == "") != (tt.problem == "") {
			t.Errorf("%s %s: %+v", tt.method, tt.url, v)
		}
		if strings.Contains(v.Problem, ".go") {
			t.Errorf("the problem names a file: %s", v.Problem)
		}
	}
	var many strings.Builder
	for range 51 {
		many.WriteString("/" + strings.Repeat("a", many.Len()/3+1) + " x\n")
	}
	q := question{Rules: many.String(), URL: "/"}
	if v := q.verdict(); !strings.Contains(v.Problem, "more than 50") {
		t.Errorf("%.100s", v.Problem)
	}
	rec := httptest.NewRecorder()
	newArena(t.Context()).ServeHTTP(rec, httptest.NewRequest("POST", "/route", strings.NewReader(`{"Rules":"`+strings.Repeat("a", maxQuestion)+`"}`)))
	if rec.Code != 400 {
		t.Errorf("a long question: %d", rec.Code)
	}
}

func TestOtherPagesCannotShoot(t *testing.T) {
	r := httptest.NewRequest("POST", "/fire?n=1", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	rec := httptest.NewRecorder()
	newArena(t.Context()).ServeHTTP(rec, r)
	if rec.Code != 403 {
		t.Errorf("answered %d", rec.Code)
	}
}
