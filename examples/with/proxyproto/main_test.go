package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// start returns the address of a gateway that believes balancers, with a backend that answers with what it is
// told.
func start(t *testing.T, balancers ...string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	backend := ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Forwarded-For")) })
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- run(ctx, l, newHandler(backend), balancers...) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// send opens a connection, writes before and a request, and returns the answer's status and body, or
// "closed".
func send(t *testing.T, addr, before string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, before+"GET / HTTP/1.1\r\nHost: gw.example\r\nX-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "closed"
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(res.StatusCode, " ", string(body))
}

func header(t *testing.T, version byte, client string) string {
	t.Helper()
	addr, err := net.ResolveTCPAddr("tcp", client)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if _, err := proxyproto.HeaderProxyFromAddrs(version, addr, addr).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestProxyProtocol(t *testing.T) {
	believing, other := start(t, "127.0.0.0/8"), start(t, "10.0.0.0/8")
	for _, tt := range []struct{ name, addr, before, want string }{
		{"version 1", believing, header(t, 1, "192.0.2.7:4711"), "200 192.0.2.7"},
		{"version 2", believing, header(t, 2, "192.0.2.8:4711"), "200 192.0.2.8"},
		{"IPv6", believing, header(t, 2, "[2001:db8::1]:4711"), "200 2001:db8::1"},
		{"none announced", believing, "", "closed"},
		{"nonsense", believing, "PROXY TCP4 nobody\r\n", "closed"},
		{"announced by somebody", other, header(t, 1, "192.0.2.7:4711"), "closed"},
		{"somebody", other, "", "200 127.0.0.1"},
	} {
		if got := send(t, tt.addr, tt.before); got != tt.want {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
	// Each announced client has an allowance of its own.
	for i, want := range []string{"200", "200", "429"} {
		if got := send(t, believing, header(t, 1, "192.0.2.9:4711")); !strings.HasPrefix(got, want) {
			t.Errorf("request %d: %s; want %s", i, got, want)
		}
	}
}
