package gateway_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// expiring returns an Auth whose Identity expires after d.
func expiring(d, grace time.Duration) gateway.Middleware {
	return gateway.Auth(gateway.AuthenticatorFunc(func(*http.Request) (*gateway.Identity, error) {
		return &gateway.Identity{Subject: "u", Expiry: time.Now().Add(d)}, nil
	}), &gateway.AuthOptions{UpgradeGrace: grace})
}

// echoUpgrade answers an upgrade with 101 and echoes what follows, until its connection is closed.
var echoUpgrade = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
	io.Copy(conn, rw)
})

// TestUpgradeEndsWithCredentials: an upgraded connection is closed when the client's credentials have
// expired, forwarded or taken over by a handler, and a WebSocket is asked to leave first.
func TestUpgradeEndsWithCredentials(t *testing.T) {
	backend := serve(t, echoUpgrade)
	proxy := gateway.Proxy(gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil), nil)
	const soon = time.Second // after the echo, on a busy machine too
	all := newCrowd(t)
	defer all.wait()
	const goingAway = "\x88\x02\x03\xe9"
	for _, tt := range []struct {
		name, protocol string
		h              http.Handler
		expiry, grace  time.Duration
		ends           bool
		want           string // what comes after the echo
	}{
		{"WebSocket", "websocket", proxy, soon, time.Millisecond, true, goingAway},
		{"another protocol", "echo", proxy, soon, time.Millisecond, true, ""},
		{"a handler's own", "echo", echoUpgrade, soon, time.Millisecond, true, ""},
		{"by the grace", "echo", echoUpgrade, 0, soon, true, ""},
		{"within the default grace", "echo", proxy, 0, 0, false, ""},
		{"a handler's own, within the default grace", "echo", echoUpgrade, 0, 0, false, ""},
		{"no limit", "echo", proxy, 0, -1, false, ""},
	} {
		all.run(tt.name, func(t *testing.T) {
			j, observe := observed()
			s := serve(t, gateway.Chain(observe, expiring(tt.expiry, tt.grace))(tt.h))
			conn := raw(t, s, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: "+tt.protocol+"\r\n\r\n\x81\x03abc")
			br := bufio.NewReader(conn)
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != 101 {
				t.Fatalf("%v, %v", res, err)
			}
			echo := make([]byte, 5)
			if _, err := io.ReadFull(br, echo); err != nil || string(echo) != "\x81\x03abc" {
				t.Fatalf("echo %q, %v", echo, err)
			}
			if !tt.ends {
				conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			}
			rest, err := io.ReadAll(br)
			if (err == nil) != tt.ends || string(rest) != tt.want {
				t.Errorf("%q, %v", rest, err)
			}
			conn.Close()
			if line := j.next(t); line["outcome"] != "ok" || strings.Contains(line["remarks"], "expired") != (tt.ends && strings.HasPrefix(tt.name, "WebSocket") || tt.name == "another protocol") {
				t.Errorf("logged %v", line)
			}
		})
	}
}

// TestUpgradeEndIsTheFirst: of nested Auths, the one whose credentials expire first ends the connection.
func TestUpgradeEndIsTheFirst(t *testing.T) {
	for _, mw := range []gateway.Middleware{
		gateway.Chain(expiring(50*time.Millisecond, 1), expiring(time.Hour, 1)),
		gateway.Chain(expiring(time.Hour, 1), expiring(50*time.Millisecond, 1)),
	} {
		s := httptest.NewServer(mw(echoUpgrade))
		conn := raw(t, s, "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
		s.Close()
	}
}
