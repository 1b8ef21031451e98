package gateway_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/seed-96248d0c/gateway"
)

// Routes may share a pattern and differ in predicates. Explain tells which one a request takes, and why
// the others lost.
func ExampleRouter_Explain() {
	handler := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name) })
	}
	var rt gateway.Router
	rt.Handle("/", handler("site"))
	rt.Handle("GET /users/me", handler("me"))
	rt.Add(gateway.Route{Name: "users", Pattern: "GET /users/{id}", Handler: handler("users")})
	rt.Add(gateway.Route{
		Name:    "users-beta",
		Pattern: "GET /users/{id}",
		Match:   []gateway.Match{gateway.MatchHeader("X-Beta", "1")},
		Handler: handler("users-beta"),
	})
	rt.Add(gateway.Route{Name: "make-user", Pattern: "POST /users/{id}", Handler: handler("make-user")})

	fmt.Print(rt.Explain(httptest.NewRequest("GET", "/users/7", nil)))
	// Output:
	// 200 OK: users, id="7"
	// - users-beta  GET /users/{id}   header X-Beta = "1"
	// + users       GET /users/{id}   taken
	// - make-user   POST /users/{id}  method
	// - /           /                 precedence
	// 1 of another path
}

// A twentieth of the users see the new version, and keep seeing it.
func ExampleSplit() {
	version := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Println(r.Header.Get("X-User"), name) })
	}
	h := gateway.Split(gateway.KeyByHeader("X-User"),
		gateway.Branch{Name: "stable", Weight: 95, Handler: version("stable")},
		gateway.Branch{Name: "canary", Weight: 5, Handler: version("canary")},
	)
	for _, user := range []string{"alice", "bob", "alice"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-User", user)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	// Output:
	// alice stable
	// bob canary
	// alice stable
}
