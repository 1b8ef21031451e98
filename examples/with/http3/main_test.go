package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

// TestHTTP3 asks with a QUIC client: for an answer, with a body, for events one by one, and for an answer
// that breaks off.
func TestHTTP3(t *testing.T) {
	next := make(chan bool)
	backend := ask.Upstream(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/broken":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/events":
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n", i)
				http.NewResponseController(w).Flush()
				<-next
			}
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s for %s", r.Header.Get("X-Forwarded-Proto"), body, r.Header.Get("X-Forwarded-For"))
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	testTLS := httptest.NewTLSServer(nil) // for its certificate
	defer testTLS.Close()
	client := testTLS.Client().Transport.(*http.Transport).TLSClientConfig
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() {
		served <- run(ctx, l, newHandler(backend), &tls.Config{Certificates: testTLS.TLS.Certificates})
	}()

	url := "https://" + l.Addr().String()
	tcp := &http.Transport{TLSClientConfig: client}
	defer tcp.CloseIdleConnections()
	port := l.Addr().(*net.TCPAddr).Port
	if got := ask.DoWith(t, tcp, "GET", url, ""); !strings.Contains(got.Header.Get("Alt-Svc"), fmt.Sprintf(`h3=":%d"`, port)) {
		t.Errorf("Alt-Svc over TCP is %q", got.Header.Get("Alt-Svc"))
	}

	quic := &http3.Transport{TLSClientConfig: client}
	defer quic.Close()
	if got, want := ask.DoWith(t, quic, "POST", url, "hello").String(), "200 https hello for 127.0.0.1"; got != want {
		t.Errorf("%s; want %s", got, want)
	}

	get := func(path string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return quic.RoundTrip(r)
	}
	res, err := get("/broken")
	if err == nil { // else the reset of the stream came before the header
		if half, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("the broken answer is taken for complete: %q", half)
		}
		res.Body.Close()
	}
	if res, err = get("/events"); err != nil {
		t.Fatal(err)
	}
	if res.ProtoMajor != 3 {
		t.Errorf("over %s", res.Proto)
	}
	events := bufio.NewScanner(res.Body)
	for i := range 3 {
		if !events.Scan() || events.Text() != fmt.Sprint("data: ", i) {
			t.Fatalf("event %d is %q, %v", i, events.Text(), events.Err())
		}
		if i == 2 {
			stop() // while it is answered
		}
		next <- true
	}
	if events.Scan() || events.Err() != nil {
		t.Errorf("%q, %v after the last event", events.Text(), events.Err())
	}
	res.Body.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
