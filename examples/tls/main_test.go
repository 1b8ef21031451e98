package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-96248d0c/gateway"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestTLS asks over both ports, and goes on to ask while the certificate is replaced.
func TestTLS(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=0")
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "http://"+r.Host+"/new", http.StatusFound)
			return
		}
		fmt.Fprint(w, r.Header.Get("X-Forwarded-Proto"), " ", r.Method)
	}))
	defer backend.Close()
	dir := t.TempDir()
	files, err := selfSigned(dir, "gw.example")
	if err != nil {
		t.Fatal(err)
	}
	https, http1 := listen(t), listen(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() {
		served <- run(ctx, https, http1, "gw.example", gateway.NewUpstream("backend", gateway.MustTargets(backend.URL), nil), files)
	}()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	const year = "max-age=31536000; includeSubDomains"
	over := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	secure, plain := "https://"+https.Addr().String(), "http://"+http1.Addr().String()
	for _, tt := range []struct{ method, url, want, location, hsts string }{
		{"GET", secure + "/", "200 https GET", "", year},
		{"POST", secure + "/", "200 https POST", "", year},
		{"GET", secure + "/a/../b", "400", "", year},
		{"GET", secure + "/old", "302", "https://" + https.Addr().String() + "/new", year},
		{"GET", plain + "/a%2Fb?c=d", "308", "https://gw.example/a%2Fb?c=d", ""},
		{"GET", plain + "//evil.example/", "308", "https://gw.example//evil.example/", ""},
		{"POST", plain + "/", "403", "", ""},
	} {
		res, body := ask(t, over, tt.method, tt.url)
		if got := fmt.Sprint(res.StatusCode, " ", body); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s %s: %s; want %s", tt.method, tt.url, got, tt.want)
		}
		if got := res.Header.Get("Location"); got != tt.location {
			t.Errorf("%s %s: redirected to %q; want %q", tt.method, tt.url, got, tt.location)
		}
		if got := strings.Join(res.Header["Strict-Transport-Security"], " and "); got != tt.hsts {
			t.Errorf("%s %s: HSTS %q; want %q", tt.method, tt.url, got, tt.hsts)
		}
	}
	if conn, err := tls.Dial("tcp", https.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}

	if _, err := selfSigned(dir, "gw.example"); err != nil {
		t.Fatal(err)
	}
	want, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); ; {
		res, body := ask(t, over, "GET", secure)
		if body != "https GET" {
			t.Fatalf("while the certificate is replaced: %s", body)
		}
		if res.TLS.PeerCertificates[0].Equal(want.Leaf) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("the old certificate is still served")
		}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ask(t *testing.T, over http.RoundTripper, method, url string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := over.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}
