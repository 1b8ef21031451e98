package main

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway/examples/with/internal/ask"
	"github.com/seed-96248d0c/gateway/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.CheckGoroutines(m) }

func start(t *testing.T, backend http.HandlerFunc) string {
	h, err := newHandler(ask.Upstream(t, backend))
	if err != nil {
		t.Fatal(err)
	}
	return ask.Serve(t, h)
}

func TestCompression(t *testing.T) {
	page := strings.Repeat("a line of text\n", 1000)
	srv := start(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("ETag", `"1"`)
		io.WriteString(w, page[:min(len(page), int(r.ContentLength))])
	})
	large := ask.Do(t, "POST", srv, page, "Accept-Encoding", "gzip")
	if large.Header.Get("Content-Encoding") != "gzip" || large.Header.Get("ETag") != `"1-gzip"` || len(large.Body) > len(page)/10 {
		t.Errorf("a large answer has %d bytes and %v", len(large.Body), large.Header)
	}
	z, err := gzip.NewReader(strings.NewReader(large.Body))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(z); err != nil || string(text) != page {
		t.Errorf("%d bytes, %v; want %d", len(text), err, len(page))
	}
	if plain := ask.Do(t, "POST", srv, page, "Accept-Encoding", "identity"); plain.Body != page || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("without gzip: %d bytes, %v", len(plain.Body), plain.Header)
	}
	if small := ask.Do(t, "POST", srv, "123456789", "Accept-Encoding", "gzip"); small.Body != page[:9] {
		t.Errorf("a small answer is %q", small.Body)
	}
}

// TestEvents reads each event before the backend sends the next.
func TestEvents(t *testing.T) {
	next := make(chan bool)
	srv := start(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			if !<-next {
				return
			}
		}
	})
	for _, encoding := range []string{"gzip", "identity"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", srv, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", encoding)
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		body := io.Reader(res.Body)
		if encoding == "gzip" {
			if got := res.Header.Get("Content-Encoding"); got != "gzip" {
				t.Fatalf("Content-Encoding %q", got)
			}
			if body, err = gzip.NewReader(res.Body); err != nil {
				t.Fatal(err)
			}
		}
		events := bufio.NewScanner(body)
		for i := range 3 {
			if !events.Scan() || events.Text() != fmt.Sprint("data: ", i) || !events.Scan() {
				t.Fatalf("%s: event %d is %q, %v", encoding, i, events.Text(), events.Err())
			}
			next <- i < 2
		}
		if events.Scan() || events.Err() != nil {
			t.Errorf("%s: %q, %v after the last event", encoding, events.Text(), events.Err())
		}
		res.Body.Close()
	}
}
