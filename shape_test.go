package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

// titles keeps little.
var titles = gateway.Shape{Only: []string{"items.*.title"}, Rename: map[string]string{"items": "rows"}}

const (
	catalog = `{"items":[{"title":"A","plot":"long"},{"plot":"x","title":"B"}],"debug":{"sql":"secret"}}`
	shaped  = `{"rows":[{"title":"A"},{"title":"B"}]}`
)

// handlerStep is what a handler does next.
type handlerStep struct {
	status int         // to be written
	set    http.Header // fields to be set
	write  string
	flush  bool
	abort  bool
}

// steps is a handler that does its steps in turn.
type steps []handlerStep

func (s steps) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, step := range s {
		maps.Copy(w.Header(), step.set)
		if step.status != 0 {
			w.WriteHeader(step.status)
		}
		if step.write != "" {
			io.WriteString(w, step.write)
		}
		if step.flush {
			w.(http.Flusher).Flush()
		}
		if step.abort {
			panic(http.ErrAbortHandler)
		}
	}
}

// zipped writes text as gzip.
func zipped(w io.Writer, text string) {
	zw := gzip.NewWriter(w)
	io.WriteString(zw, text)
	zw.Close()
}

func fields(pairs ...string) http.Header {
	h := make(http.Header)
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

var jsonType = fields("Content-Type", "application/json")

func TestReshape(t *testing.T) {
	all := fields("Content-Type", "application/json; charset=utf-8", "ETag", `"v1"`, "Content-Length", strconv.Itoa(len(catalog)), "Accept-Ranges", "bytes",
		"Content-Digest", "sha-256=:x:", "Repr-Digest", "sha-256=:x:", "Digest", "x", "Content-MD5", "x", "Last-Modified", "Tue, 24 Nov 2026 00:00:00 GMT", "Cache-Control", "no-transform, max-age=5")
	large := `{"items":[` + strings.Repeat(`{"title":"A film, \"quoted\"","plot":"long"},`, 5000) + `{}]}`
	largeShaped := `{"rows":[` + strings.Repeat(`{"title":"A film, \"quoted\""},`, 5000) + `{}]}`
	for _, tt := range []struct {
		name    string
		method  string
		handler steps
		status  int
		body    string // "problem" is one
		header  map[string]string
		length  int64
	}{
		{"a small body", "GET", steps{{set: all, write: catalog}}, 200, shaped, map[string]string{
			"Etag": `W/"v1"`, "Accept-Ranges": "", "Content-Digest": "", "Repr-Digest": "", "Digest": "", "Content-Md5": "",
			"Last-Modified": "Tue, 24 Nov 2026 00:00:00 GMT", "Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-transform, max-age=5"}, int64(len(shaped))},
		{"in pieces", "GET", steps{{set: jsonType, write: catalog[:1]}, {write: catalog[1:20]}, {write: catalog[20:]}}, 200, shaped, nil, int64(len(shaped))},
		{"in pieces that are flushed", "GET", steps{{set: jsonType, write: catalog[:1], flush: true}, {write: catalog[1:20], flush: true}, {write: catalog[20:]}}, 200, shaped, nil, -1},
		{"flushed before the body", "GET", steps{{set: jsonType, status: 201, flush: true}, {write: catalog}}, 201, shaped, nil, -1},
		{"a large body", "GET", steps{{set: jsonType, write: large}}, 200, largeShaped, nil, -1},
		{"+json", "POST", steps{{set: fields("Content-Type", "Application/HAL+JSON"), status: 201, write: catalog}}, 201, shaped, nil, int64(len(shaped))},
		{"a weak validator", "GET", steps{{set: fields("Content-Type", "application/json", "ETag", `W/"v1"`), write: catalog}}, 200, shaped, map[string]string{"Etag": `W/"v1"`}, int64(len(shaped))},
		{"HEAD", "HEAD", steps{{set: all, status: 200}}, 200, "", map[string]string{"Etag": `W/"v1"`, "Content-Length": "", "Accept-Ranges": ""}, -1},
		{"HEAD without a status", "HEAD", steps{{set: fields("Content-Type", "application/json", "ETag", `"v1"`)}}, 200, "", map[string]string{"Etag": `W/"v1"`}, -1},
		{"304", "GET", steps{{set: fields("ETag", `"v1"`, "Content-Length", "9"), status: 304}}, 304, "", map[string]string{"Etag": `W/"v1"`, "Content-Length": ""}, 0},
		{"304 of something else", "GET", steps{{set: fields("ETag", `"v1"`, "Content-Type", "text/css"), status: 304}}, 304, "", map[string]string{"Etag": `"v1"`}, 0},
		{"204", "GET", steps{{set: jsonType, status: 204}}, 204, "", nil, 0},
		{"an empty body", "GET", steps{{set: jsonType, status: 202}}, 202, "", nil, 0},
		{"nothing at all", "GET", steps{{set: fields("Content-Type", "application/json", "ETag", `"v1"`)}}, 200, "", map[string]string{"Etag": `W/"v1"`}, 0},
		{"another type", "GET", steps{{set: fields("Content-Type", "text/plain", "ETag", `"v1"`, "Accept-Ranges", "bytes"), write: catalog}}, 200, catalog, map[string]string{"Etag": `"v1"`, "Accept-Ranges": "bytes"}, int64(len(catalog))},
		{"no type", "GET", steps{{write: catalog}}, 200, catalog, nil, int64(len(catalog))},
		{"NDJSON", "GET", steps{{set: fields("Content-Type", "application/x-ndjson"), write: "{}\n", flush: true}, {write: "{}\n"}}, 200, "{}\n{}\n", nil, -1},
		{"an error", "GET", steps{{set: fields("Content-Type", "application/problem+json"), status: 404, write: catalog}}, 404, catalog, nil, int64(len(catalog))},
		{"a redirect", "GET", steps{{set: fields("Content-Type", "application/json", "Location", "/x"), status: 307, write: catalog}}, 307, catalog, nil, int64(len(catalog))},
		{"hints before", "GET", steps{{set: fields("Link", "</a>"), status: 103}, {set: jsonType, status: 200, write: catalog}}, 200, shaped, nil, int64(len(shaped))},
		{"two statuses", "GET", steps{{set: jsonType, status: 200, write: catalog}, {status: 500}}, 200, shaped, nil, int64(len(shaped))},
		{"a scalar", "GET", steps{{set: jsonType, write: `"secret"`}}, 200, "null", nil, 4},

		{"malformed", "GET", steps{{set: all, status: 200, write: "<html>"}}, 502, "problem", map[string]string{"Etag": "", "Cache-Control": "no-store"}, -2},
		{"cut off", "GET", steps{{set: jsonType, write: catalog[:40]}}, 502, "problem", nil, -2},
		{"a valid beginning of a number", "GET", steps{{set: fields("Content-Type", "application/json", "Content-Length", "3"), write: "12"}}, 502, "problem", nil, -2},
		{"two texts", "GET", steps{{set: jsonType, write: "{}{}"}}, 502, "problem", nil, -2},
		{"a byte order mark", "GET", steps{{set: jsonType, write: "\ufeff{}"}}, 502, "problem", nil, -2},
		{"nothing but white space", "GET", steps{{set: jsonType, write: " \n"}}, 502, "problem", nil, -2},
		{"UTF-16", "GET", steps{{set: jsonType, write: "{\x00}\x00"}}, 502, "problem", nil, -2},
		{"too deep", "GET", steps{{set: jsonType, write: strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)}}, 502, "problem", nil, -2},
		{"cut off and aborted", "GET", steps{{set: jsonType, write: "<html>"}, {abort: true}}, 502, "problem", nil, -2},
		{"206", "GET", steps{{set: jsonType, status: 206, write: catalog[10:20]}}, 502, "problem", nil, -2},
		{"encoded", "GET", steps{{set: fields("Content-Type", "application/json", "Content-Encoding", "gzip"), write: "\x1f\x8b"}}, 502, "problem", map[string]string{"Content-Encoding": ""}, -2},
		{"encoded, HEAD", "HEAD", steps{{set: fields("Content-Type", "application/json", "Content-Encoding", "br"), status: 200}}, 502, "", nil, -2},
		{"encoded as identity", "GET", steps{{set: fields("Content-Type", "application/json", "Content-Encoding", "identity"), write: catalog}}, 200, shaped, nil, int64(len(shaped))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := serve(t, gateway.Reshape(titles)(tt.handler))
			res, err := srv.Client().Transport.RoundTrip(newRequest(t, tt.method, srv.URL, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if tt.body == "problem" {
				readProblem(t, res)
			} else if got := bodyOf(t, res); got != tt.body {
				t.Errorf("got %.200q\nwant %.200q", got, tt.body)
			}
			if res.StatusCode != tt.status || tt.length > -2 && res.ContentLength != tt.length {
				t.Errorf("status %d, length %d; want %d, %d", res.StatusCode, res.ContentLength, tt.status, tt.length)
			}
			for name, want := range tt.header {
				if got := res.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

// TestReshapeAborts: once something was sent, an answer that is not whole does not end as a whole one does.
func TestReshapeAborts(t *testing.T) {
	large := strings.Repeat(`{"title":"a film"},`, 5000)
	for name, h := range map[string]steps{
		"malformed at the end":    {{set: jsonType, write: `{"items":[` + large + `{}]}x`}},
		"malformed within":        {{set: jsonType, write: `{"items":[` + large + `}`}},
		"cut off":                 {{set: jsonType, write: `{"items":[` + large}},
		"cut off after a flush":   {{set: jsonType, write: `{"items":[{"title":"A"}`, flush: true}},
		"malformed after a flush": {{set: jsonType, write: catalog, flush: true}, {write: "x"}},
		"shorter than its length": {{set: fields("Content-Type", "application/json", "Content-Length", strconv.Itoa(len(catalog)+1)), write: catalog, flush: true}},
		"aborted":                 {{set: jsonType, write: catalog, flush: true}, {abort: true}},
	} {
		for _, protocol := range []string{"http1", "http2"} {
			t.Run(name+"/"+protocol, func(t *testing.T) {
				logged, observe := observed()
				srv := httptest.NewUnstartedServer(observe(gateway.Reshape(titles)(h)))
				srv.EnableHTTP2 = protocol == "http2"
				if srv.EnableHTTP2 {
					srv.StartTLS()
				} else {
					srv.Start()
				}
				t.Cleanup(srv.Close)
				res, err := srv.Client().Get(srv.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if _, err := io.Copy(io.Discard, res.Body); err == nil || res.StatusCode != 200 {
					t.Errorf("status %d, and the body ended well", res.StatusCode)
				}
				if line := logged.next(t); line["outcome"] != "aborted" {
					t.Errorf("log: %v", line)
				}
			})
		}
	}
}

// TestReshapeRequest: what is inside is not asked for a part, or for a coding.
func TestReshapeRequest(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(catalog), 0o600); err != nil {
		t.Fatal(err)
	}
	var inside http.Header
	h := gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside = r.Header
		http.ServeFile(w, r, filepath.Join(dir, "a.json"))
	}))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header = fields("Range", "bytes=60-", "If-Range", `"v1"`, "Accept-Encoding", "gzip, br", "X-Other", "1")
	before := r.Header.Clone()
	w := recorded(h, r)
	if w.Code != 200 || w.Body.String() != shaped || w.Header().Get("Accept-Ranges") != "" {
		t.Errorf("got %d %s %v", w.Code, w.Body, w.Header())
	}
	if want := "map[Accept-Encoding:[identity] X-Other:[1]]"; fmt.Sprint(inside) != want {
		t.Errorf("inside: %v", inside)
	}
	if fmt.Sprint(r.Header) != fmt.Sprint(before) {
		t.Errorf("the request was changed: %v", r.Header)
	}
	recorded(h, nil)
	if len(inside) != 0 {
		t.Errorf("inside: %v", inside)
	}
}

// TestReshapeRevalidates: the weak validator that a client got is one that the handler inside knows.
func TestReshapeRevalidates(t *testing.T) {
	h := gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "a.json", time.Time{}, strings.NewReader(catalog))
	}))
	first := ask(h, "GET", "/")
	if body := bodyOf(t, first); first.StatusCode != 200 || body != shaped {
		t.Fatalf("got %d %s", first.StatusCode, body)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("If-None-Match", first.Header.Get("ETag"))
	if w := recorded(h, r); w.Code != 304 || w.Header().Get("ETag") != `W/"v1"` || w.Body.Len() != 0 {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
}

// TestReshapeUnreadBody: a refusal does not wait for the rest of the client's body.
func TestReshapeUnreadBody(t *testing.T) {
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "<html>")
	}, gateway.Reshape(titles))
	conn := raw(t, f.Server, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegin")
	answer, _ := io.ReadAll(conn) // the connection has a deadline
	if text := string(answer); text != "" && !strings.HasPrefix(text, "HTTP/1.1 502 ") {
		t.Errorf("got %.100q", text)
	}
	if line := f.journal.next(t); line["outcome"] != "aborted" {
		t.Errorf("log: %v", line)
	}
}

// TestReshapeProxy: over connections, with trailers, and with a target that dies.
func TestReshapeProxy(t *testing.T) {
	large := `{"items":[` + strings.Repeat(`{"title":"A","plot":"long"},`, 20_000) + `{"title":"B"}],"debug":1}`
	var got http.Header
	f := newFront(t, nil, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/small":
			io.WriteString(w, catalog)
		case "/length": // long enough for the kernel to copy it
			w.Header().Set("Content-Length", strconv.Itoa(len(large)))
			io.WriteString(w, large)
		case "/chunked":
			io.WriteString(w, large)
		case "/trailer":
			w.Header().Set("Trailer", "X-End, Content-Digest")
			io.WriteString(w, catalog)
			w.Header().Set("X-End", "1")
			w.Header().Set("Content-Digest", "sha-256=:x:")
		case "/dies":
			w.Header().Set("Content-Length", strconv.Itoa(len(catalog)))
			io.WriteString(w, catalog[:50])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			zipped(w, catalog)
		}
	}, gateway.Reshape(titles))
	wantLarge := `{"rows":[` + strings.Repeat(`{"title":"A"},`, 20_000) + `{"title":"B"}]}`
	for path, want := range map[string]string{"/small": shaped, "/length": wantLarge, "/chunked": wantLarge, "/trailer": shaped} {
		res := get(t, f.URL+path)
		if body := bodyOf(t, res); body != want {
			t.Errorf("%s: got %d bytes %.100q", path, len(body), body)
		}
		if got.Get("Accept-Encoding") != "identity" {
			t.Errorf("%s: the target got Accept-Encoding %q", path, got["Accept-Encoding"])
		}
		if path == "/trailer" && (res.Trailer.Get("X-End") != "1" || res.Trailer.Get("Content-Digest") != "") {
			t.Errorf("trailers %v", res.Trailer)
		}
		if path == "/small" && res.ContentLength != int64(len(shaped)) {
			t.Errorf("length %d", res.ContentLength)
		}
	}
	if res := get(t, f.URL+"/gzip"); res.StatusCode != 502 {
		t.Errorf("gzip: status %d", res.StatusCode)
	}
	res, err := f.Client().Get(f.URL + "/dies")
	if err == nil {
		if _, err = io.Copy(io.Discard, res.Body); err == nil && res.StatusCode == 200 {
			t.Error("a body that was cut off ended well")
		}
		res.Body.Close()
	}
}

// TestReshapeTrailers: a small answer keeps its trailers, announced or not, but for digests of the old body.
func TestReshapeTrailers(t *testing.T) {
	for name, h := range map[string]steps{
		"announced": {{set: fields("Content-Type", "application/json", "Trailer", "X-End, Repr-Digest"), write: catalog}, {set: fields("X-End", "1", "Repr-Digest", "x")}},
		"late":      {{set: jsonType, write: catalog}, {set: fields(http.TrailerPrefix+"X-End", "1", http.TrailerPrefix+"Repr-Digest", "x")}},
	} {
		res := get(t, serve(t, gateway.Reshape(titles)(h)).URL)
		if body := bodyOf(t, res); body != shaped || res.Trailer.Get("X-End") != "1" || res.Trailer.Get("Repr-Digest") != "" {
			t.Errorf("%s: got %s, trailers %v", name, body, res.Trailer)
		}
	}
}

// TestReshapeStreams: what was flushed arrives before the rest is there.
func TestReshapeStreams(t *testing.T) {
	next := make(chan bool)
	srv := serve(t, gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"items":[`)
		for range 3 {
			io.WriteString(w, `{"plot":"x","title":"A"},`)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-next
		}
		io.WriteString(w, `{}]}`)
	})))
	res := get(t, srv.URL)
	buf := make([]byte, 100)
	for i, want := range []string{`{"rows":[{"title":"A"}`, `,{"title":"A"}`, `,{"title":"A"}`} {
		n, err := io.ReadFull(res.Body, buf[:len(want)])
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("%d: got %q, %v", i, buf[:n], err)
		}
		next <- true
	}
	if rest := bodyOf(t, res); rest != `,{}]}` {
		t.Errorf("rest %q", rest)
	}
}

// endlessArray writes an array of about size bytes, in pieces.
func endlessArray(w io.Writer, size int) error {
	element := []byte(`{"id":1234567,"title":"The Long Tide","plot":"` + strings.Repeat("All that there is to say. ", 20) + `"},`)
	piece := bytes.Repeat(element, 50)
	if _, err := io.WriteString(w, `{"items":[`); err != nil {
		return err
	}
	for written := 0; written < size; written += len(piece) {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, `{}]}`)
	return err
}

// TestReshapeMemory: an array of 100 MB passes in little memory.
func TestReshapeMemory(t *testing.T) {
	settle(t)
	before := heapInUse()
	most := before
	h := gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for range 4 { // the same text again is malformed, and then nothing more is taken
			err := endlessArray(w, 100<<20)
			most = max(most, heapInUse())
			if err != nil {
				return
			}
		}
	}))
	out := &countingWriter{header: make(http.Header)}
	if v := panicValue(func() { h.ServeHTTP(out, httptest.NewRequest("GET", "/", nil)) }); v != http.ErrAbortHandler {
		t.Errorf("ended with %v", v)
	}
	if out.n < 3<<20 || out.largest > 64<<10 {
		t.Errorf("%d bytes, in writes of up to %d", out.n, out.largest)
	}
	if grown := most - before; grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// countingWriter is a ResponseWriter that counts what is written.
type countingWriter struct {
	header     http.Header
	n, largest int
}

func (w *countingWriter) Header() http.Header { return w.header }
func (w *countingWriter) WriteHeader(int)     {}
func (w *countingWriter) Write(p []byte) (int, error) {
	w.n += len(p)
	w.largest = max(w.largest, len(p))
	return len(p), nil
}

// TestReshapeNested: two shapes on one route, the inner one first.
func TestReshapeNested(t *testing.T) {
	h := gateway.Chain(
		gateway.Reshape(gateway.Shape{Only: []string{"rows.1"}}),
		gateway.Observe(nil),
		gateway.Reshape(titles),
	)
	for _, tt := range []struct {
		in   steps
		code int
		want string
	}{
		{steps{{set: fields("Content-Type", "application/json", "ETag", `"a"`), write: catalog}}, 200, `{"rows":[{"title":"B"}]}`},
		{steps{{set: jsonType, write: "<"}}, 502, ""},
		{steps{{write: catalog}}, 200, catalog},
	} {
		srv := serve(t, h(tt.in))
		res := get(t, srv.URL)
		body := bodyOf(t, res)
		if res.StatusCode != tt.code || tt.want != "" && (body != tt.want || res.ContentLength != int64(len(body))) {
			t.Errorf("got %d %s, length %d", res.StatusCode, body, res.ContentLength)
		}
		if etag := res.Header.Get("ETag"); etag != "" && etag != `W/"a"` {
			t.Errorf("ETag %s", etag)
		}
	}
}

// TestReshapeOutcomes: each middleware outside sees how the answer ended.
func TestReshapeOutcomes(t *testing.T) {
	circuit := gateway.NewCircuit("c", &gateway.CircuitOptions{Failures: 2})
	logged, observe := observed()
	h := observe(gateway.Breaker(circuit, nil)(gateway.Reshape(titles)(steps{{set: jsonType, write: "<html>"}})))
	for range 2 {
		if w := recorded(h, nil); w.Code != 502 {
			t.Errorf("got %d", w.Code)
		}
		if line := logged.next(t); line["outcome"] != "aborted" || line["status"] != "502" || !strings.Contains(line["error"], "malformed JSON") {
			t.Errorf("log: %v", line)
		}
	}
	if circuit.State() != gateway.CircuitOpen {
		t.Errorf("the circuit is %v", circuit.State())
	}

	// Another panic goes up, and whoever recovers it can still answer.
	h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway.Observe(nil)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("recovered %v", v)
				}
				gateway.WriteError(w, r, errors.New("boom"))
			}()
			gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, "{")
				panic("boom")
			})).ServeHTTP(w, r)
		})).ServeHTTP(w, r)
	})
	if w := recorded(h, nil); w.Code != 500 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// TestReshapeEndedRequest: a body that its handler gave up when the request ended is nobody's failure but its own.
func TestReshapeEndedRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logged, observe := observed()
		stalls := gateway.Reshape(titles)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"items":[`)
			<-r.Context().Done()
		}))
		if w := recorded(observe(gateway.Timeout(time.Second)(stalls)), nil); w.Code != 504 {
			t.Errorf("got %d", w.Code)
		}
		if line := logged.next(t); line["outcome"] != "timeout" {
			t.Errorf("log: %v", line)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		recorded(observe(stalls), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
		if line := logged.next(t); line["outcome"] != "client_canceled" {
			t.Errorf("log: %v", line)
		}
	})
}

func TestReshapeSetup(t *testing.T) {
	h := text("x")
	if got := gateway.Reshape(gateway.Shape{})(h); fmt.Sprint(got) != fmt.Sprint(h) {
		t.Error("a Shape that changes nothing wraps the handler")
	}
	for _, s := range []gateway.Shape{{Only: []string{""}}, {Drop: []string{"a..b"}}, {Rename: map[string]string{"a.*": "x"}}, {Rename: map[string]string{"a": "x", "b": "x"}}} {
		if v := panicOf(func() { gateway.Reshape(s) }); !strings.HasPrefix(v, "gateway: Reshape: Shape: path") {
			t.Errorf("%v: %q", s, v)
		}
	}
}

// FuzzReshape: the answer is the projection of the body, or it is no whole answer.
func FuzzReshape(f *testing.F) {
	f.Add([]byte(catalog), 10, false)
	f.Add([]byte(`{"items":[{"title":"\ud800","title":1e999}],"items":[]}`), 1, true)
	f.Add([]byte(`{}{}`), 2, true)
	f.Add([]byte(` [1]`), 3, false)
	f.Fuzz(func(t *testing.T, body []byte, size int, flushed bool) {
		if size < 1 {
			return
		}
		var h steps
		for rest := body; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			h = append(h, handlerStep{set: jsonType, write: string(rest[:min(size, len(rest))]), flush: flushed})
		}
		w := httptest.NewRecorder()
		v := panicValue(func() { gateway.Reshape(titles)(h).ServeHTTP(w, httptest.NewRequest("GET", "/", nil)) })
		part := recorded(gateway.Aggregate([]gateway.Part{{Name: "a", From: answersJSON(200, string(body)), Path: "/", Shape: titles}}, nil), nil)
		switch whole := v == nil && w.Code == 200 && len(body) > 0; {
		case whole != (part.Code == 200):
			t.Fatalf("%q: %d and %v, as a part %d", body, w.Code, v, part.Code)
		case whole && (!json.Valid(w.Body.Bytes()) || part.Body.String() != `{"a":`+w.Body.String()+"}\n"):
			t.Fatalf("%q became %q, as a part %q", body, w.Body, part.Body)
		}
	})
}
