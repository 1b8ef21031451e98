// Scs authenticates by sessions of github.com/alexedwards/scs: the login is here, the backends know nothing
// of it. The session's cookie is set when the answer's header is written, whoever writes it: a handler, Proxy
// or a refusal.
package main

import (
	"context"
	"log"
	"net/http"

	"github.com/alexedwards/scs/v2"

	"github.com/seed-96248d0c/gateway"
)

func newHandler(backend http.RoundTripper, sessions *scs.SessionManager) http.Handler {
	sessions.Cookie.Name = "__Host-session"
	sessions.Cookie.Secure = true // browsers send it to https and localhost alone
	bySession := gateway.AuthenticatorFunc(func(r *http.Request) (*gateway.Identity, error) {
		user := sessions.GetString(r.Context(), "user")
		if user == "" {
			return nil, gateway.ErrNoCredentials
		}
		return &gateway.Identity{Subject: user}, nil
	})
	var rt gateway.Router
	rt.Use(gateway.Observe(nil), sessions.LoadAndSave)
	rt.Handle("POST /login", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("user") != "alice" || r.PostFormValue("password") != "secret" { // a stand-in
			gateway.WriteError(w, r, gateway.ErrUnauthenticated)
			return
		}
		if err := sessions.RenewToken(r.Context()); err != nil { // against session fixation
			gateway.WriteError(w, r, err)
			return
		}
		sessions.Put(r.Context(), "user", "alice")
		w.WriteHeader(http.StatusNoContent)
	}))
	// Origins, even if it is empty: a session comes in a cookie, which browsers send with other sites'
	// requests too.
	signedIn := rt.With(gateway.Auth(bySession, &gateway.AuthOptions{Origins: []string{}}))
	signedIn.Handle("/", gateway.Proxy(backend, &gateway.ProxyOptions{
		RequestFields: gateway.FieldEdits{Drop: []string{"Cookie"}}, // no backend needs the session's token
	}), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sessions.Put(r.Context(), "last", r.URL.Path) // any change: committed with the proxied answer's header
			next.ServeHTTP(w, r)
		})
	})
	return &rt
}

func main() {
	backend := gateway.NewUpstream("backend", gateway.MustTargets("http://127.0.0.1:9000"), nil)
	h := newHandler(backend, scs.New()) // with several gateways, set Store to one on a database
	log.Fatal(gateway.Serve(context.Background(), &http.Server{Addr: "127.0.0.1:8080", Handler: h}, nil))
}
