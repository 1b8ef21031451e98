package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestSessions logs in and on. The session is committed once, with the header of the proxied answer.
func TestSessions(t *testing.T) {
	sessions := scs.New()
	t.Cleanup(sessions.Store.(*memstore.MemStore).StopCleanup)
	srv := ask.Serve(t, newHandler(ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" { // its header is sent before there is a body
			w.(http.Flusher).Flush()
		}
		ask.Echo(w, r)
		fmt.Fprintf(w, " with %d cookies", len(r.Cookies()))
	}), sessions))
	if got := ask.Do(t, "GET", srv+"/items", ""); got.Status != http.StatusUnauthorized || len(got.Header["Set-Cookie"]) > 0 {
		t.Errorf("without a session: %s, cookies %q", got, got.Header["Set-Cookie"])
	}
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	if got := ask.Do(t, "POST", srv+"/login", "user=alice&password=guess", form...); got.Status != http.StatusUnauthorized {
		t.Errorf("a wrong password: %s", got)
	}
	cookie := cookieOf(t, ask.Do(t, "POST", srv+"/login", "user=alice&password=secret", form...))
	for _, path := range []string{"/items", "/stream"} {
		got := ask.Do(t, "GET", srv+path, "", "Cookie", cookie)
		if want := fmt.Sprintf(`200 GET %s by "alice" with 0 cookies`, path); got.String() != want {
			t.Errorf("%s; want %s", got, want)
		}
		cookieOf(t, got)
	}
	if got := ask.Do(t, "POST", srv+"/items", "", "Cookie", cookie, "Origin", "https://evil.example"); got.Status != http.StatusForbidden {
		t.Errorf("from another site: %s", got)
	}
}

// cookieOf returns the one session cookie that an answer sets.
func cookieOf(t *testing.T, a ask.Answer) string {
	t.Helper()
	set := a.Header["Set-Cookie"]
	if len(set) != 1 || !strings.HasPrefix(set[0], "__Host-session=") {
		t.Fatalf("%s sets the cookies %q", a, set)
	}
	cookie, _, _ := strings.Cut(set[0], ";")
	return cookie
}
