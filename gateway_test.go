package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-96248d0c/gateway"
)

func TestChain(t *testing.T) {
	var order []string
	mark := func(name string) gateway.Middleware {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				order = append(order, name)
				next.ServeHTTP(w, r)
			})
		}
	}
	mw := []gateway.Middleware{mark("first"), mark("second"), mark("third")}
	chain := gateway.Chain(mw...)
	mw[0] = mark("replaced") // the chain has its own
	chain(text("end")).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	if got := strings.Join(order, " "); got != "first second third" {
		t.Errorf("order: %s", got)
	}
	rec := recorded(gateway.Chain()(text("alone")), nil)
	if rec.Body.String() != "alone" {
		t.Errorf("an empty chain answered %q", rec.Body)
	}
}

func TestWriteError(t *testing.T) {
	secret := errors.New("dial tcp 10.1.2.3:80: secret")
	for _, tt := range []struct {
		name   string
		err    error
		status int
		title  string
		detail string
		header map[string]string
	}{
		{name: "nil", err: nil, status: 500, title: "Internal Server Error"},
		{name: "nil of its type", err: (*gateway.Error)(nil), status: 500, title: "Internal Server Error"},
		{name: "unknown", err: secret, status: 500, title: "Internal Server Error"},
		{name: "unauthenticated", err: gateway.ErrUnauthenticated, status: 401, title: "Unauthorized", header: map[string]string{"Www-Authenticate": "Bearer"}},
		{name: "no credentials", err: gateway.ErrNoCredentials, status: 401, title: "Unauthorized"},
		{name: "forbidden", err: gateway.ErrForbidden, status: 403, title: "Forbidden"},
		{name: "no route", err: gateway.ErrNoRoute, status: 404, title: "Not Found"},
		{name: "body", err: fmt.Errorf("%w: %w", gateway.ErrBodyTooLarge, secret), status: 413, title: "Request Entity Too Large"},
		{name: "body of net/http", err: &http.MaxBytesError{Limit: 1}, status: 413, title: "Request Entity Too Large"},
		{name: "rate", err: gateway.ErrRateLimited, status: 429, title: "Too Many Requests"},
		{name: "upstream", err: fmt.Errorf("%w: %w", gateway.ErrBadGateway, secret), status: 502, title: "Bad Gateway"},
		{name: "circuit", err: gateway.ErrCircuitOpen, status: 503, title: "Service Unavailable"},
		{name: "no target", err: gateway.ErrNoTarget, status: 503, title: "Service Unavailable"},
		{name: "overloaded", err: gateway.ErrOverloaded, status: 503, title: "Service Unavailable"},
		{name: "timeout", err: gateway.ErrTimeout, status: 504, title: "Gateway Timeout"},
		{name: "deadline", err: context.DeadlineExceeded, status: 504, title: "Gateway Timeout"},
		{name: "canceled", err: context.Canceled, status: 400, title: "Bad Request"},
		{name: "own", err: &gateway.Error{Status: 418, Type: "https://x.example/t", Title: "Tea", Detail: "short and stout <\"", Header: http.Header{"X-Pot": {"1"}}, Err: secret},
			status: 418, title: "Tea", detail: "short and stout <\"", header: map[string]string{"X-Pot": "1"}},
		{name: "own wrapped", err: fmt.Errorf("%w: %w", secret, &gateway.Error{Status: 409}), status: 409, title: "Conflict"},
		{name: "own without status", err: &gateway.Error{}, status: 500, title: "Internal Server Error"},
		{name: "own with an impossible status", err: &gateway.Error{Status: 99}, status: 500, title: "Internal Server Error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			// What was meant for another answer.
			rec.Header().Set("Content-Length", "3")
			rec.Header().Set("Etag", `"x"`)
			rec.Header().Set("Content-Encoding", "gzip")
			gateway.WriteError(rec, httptest.NewRequest("GET", "/", nil), tt.err)
			res := rec.Result()
			raw := rec.Body.String()
			if strings.Contains(raw, "secret") || strings.Contains(raw, "10.1.2.3") {
				t.Errorf("the cause was sent: %s", raw)
			}
			p := readProblem(t, res)
			if p.Status != tt.status || p.Title != tt.title || p.Detail != tt.detail {
				t.Errorf("got %d %q %q, want %d %q %q", p.Status, p.Title, p.Detail, tt.status, tt.title, tt.detail)
			}
			if p.Type == "" {
				t.Error("no type")
			}
			for k, v := range tt.header {
				if got := res.Header.Get(k); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			}
			if res.Header.Get("Etag") != "" || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("fields of another answer stand: %v", res.Header)
			}
			if got := res.Header.Get("Content-Length"); got != fmt.Sprint(len(raw)) {
				t.Errorf("Content-Length %s of %d bytes", got, len(raw))
			}
		})
	}
}

func TestWriteErrorLeavesTheErrorAsItIs(t *testing.T) {
	e := &gateway.Error{Status: 401}
	gateway.WriteError(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), e)
	if e.Title != "" || e.Header != nil {
		t.Errorf("changed: %+v", e)
	}
}

// TestWriteErrorRetryAfter: the error in the chain that knows when to retry fills in Retry-After, unless the
// *Error has a value of its own.
func TestWriteErrorRetryAfter(t *testing.T) { synctest.Test(t, testWriteErrorRetryAfter) }

func testWriteErrorRetryAfter(t *testing.T) {
	c := gateway.NewCircuit("c", nil)
	c.Trip(9 * time.Second) // below 10s, Retry-After does not vary
	_, open := c.Allow()
	if open == nil {
		t.Fatal("the circuit is not open")
	}
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"the circuit's":         {open, "9"},
		"inside an Error":       {&gateway.Error{Status: 503, Err: open}, "9"},
		"the Error's own":       {&gateway.Error{Status: 503, Header: http.Header{"Retry-After": {"7"}}, Err: open}, "7"},
		"the own of one inside": {fmt.Errorf("%w: %w", open, &gateway.Error{Status: 503, Header: http.Header{"Retry-After": {"7"}}}), "7"},
	} {
		w := httptest.NewRecorder()
		gateway.WriteError(w, httptest.NewRequest("GET", "/", nil), tt.err)
		if got := w.Result().Header["Retry-After"]; w.Code != 503 || len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: status %d, Retry-After %q, want %q", name, w.Code, got, tt.want)
		}
	}
}

func TestWriteErrorAfterTheAnswerBegan(t *testing.T) {
	h := gateway.Timeout(time.Hour)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		gateway.WriteError(w, r, gateway.ErrBadGateway)
	}))
	rec := recorded(h, nil)
	if rec.Code != 200 || rec.Body.String() != "begun" {
		t.Errorf("got %d %q", rec.Code, rec.Body)
	}
}

func TestErrorIsForLogs(t *testing.T) {
	cause := errors.New("cause")
	err := error(&gateway.Error{Status: 409, Detail: "detail", Err: cause})
	if got := err.Error(); got != "gateway: 409 Conflict: detail: cause" {
		t.Errorf("got %q", got)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}

func TestHandleErrors(t *testing.T) {
	var seen error
	html := gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) {
		seen = gateway.ErrorFrom(r.Context())
		if e.Status == 404 {
			gateway.WriteError(w, r, e) // the problem as it would have been
			return
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(e.Status)
		fmt.Fprintf(w, "<h1>%s</h1>", e.Title)
	})
	var after error = errors.New("not asked")
	fail := func(err error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			gateway.WriteError(w, r, err)
			after = gateway.ErrorFrom(r.Context())
		})
	}
	rec := recorded(html(fail(gateway.ErrUnauthenticated)), nil)
	if rec.Code != 401 || rec.Body.String() != "<h1>Unauthorized</h1>" || rec.Header().Get("WWW-Authenticate") == "" {
		t.Errorf("got %d %q %v", rec.Code, rec.Body, rec.Header())
	}
	if !errors.Is(seen, gateway.ErrUnauthenticated) || after != nil {
		t.Errorf("ErrorFrom: inside %v, after %v", seen, after)
	}
	rec = httptest.NewRecorder()
	html(fail(gateway.ErrNoRoute)).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if p := readProblem(t, rec.Result()); p.Status != 404 {
		t.Errorf("got %+v", p)
	}
	// The inner of two is asked; outside them the problem is back.
	outer := gateway.HandleErrors(func(w http.ResponseWriter, r *http.Request, e *gateway.Error) { w.WriteHeader(299) })
	rec = httptest.NewRecorder()
	outer(html(fail(gateway.ErrForbidden))).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 403 {
		t.Errorf("got %d from the outer handler", rec.Code)
	}
	rec = httptest.NewRecorder()
	outer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		html(text("")).ServeHTTP(w, r)
	})).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 200 {
		t.Errorf("got %d", rec.Code)
	}
}

func TestHandleErrorsThatWritesNothing(t *testing.T) {
	silent := gateway.HandleErrors(func(http.ResponseWriter, *http.Request, *gateway.Error) {})
	rec := httptest.NewRecorder()
	silent(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway.WriteError(w, r, gateway.ErrForbidden)
	})).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 403 {
		t.Errorf("got %d", rec.Code)
	}
}

func TestTimeout(t *testing.T) {
	silent := make(chan struct{})
	h := gateway.Timeout(10 * time.Millisecond)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			io.WriteString(w, "begun")
		}
		select {
		case <-r.Context().Done():
		case <-silent:
		}
	}))
	s := serve(t, h)
	if p := readProblem(t, get(t, s.URL+"/")); p.Status != 504 {
		t.Errorf("got %+v", p)
	}
	res := get(t, s.URL+"/begun")
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "begun" {
		t.Errorf("got %d %q", res.StatusCode, body)
	}
	close(silent)
	rec := recorded(gateway.Timeout(time.Hour)(text("in time")), nil)
	if rec.Code != 200 {
		t.Errorf("got %d", rec.Code)
	}
}

// foreign is a wrapper of somebody else's, without any of the optional methods but Unwrap.
type foreign struct{ http.ResponseWriter }

func (f foreign) Unwrap() http.ResponseWriter { return f.ResponseWriter }

func TestWriterKeepsWhatIsBelow(t *testing.T) {
	inside := func(h http.HandlerFunc) http.Handler {
		wrap := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(foreign{w}, r) })
		}
		return gateway.Chain(gateway.Timeout(time.Hour), wrap, gateway.Timeout(time.Hour))(h)
	}
	t.Run("flush", func(t *testing.T) {
		release := make(chan bool)
		s := serve(t, inside(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "now")
			w.(http.Flusher).Flush()
			<-release
		}))
		res := get(t, s.URL)
		buf := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != "now" {
			t.Errorf("got %q, %v", buf, err)
		}
		close(release)
	})
	t.Run("hijack by assertion", func(t *testing.T) {
		s := serve(t, inside(func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\n\r\nraw")
			rw.Flush()
			conn.Close()
		}))
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		all, _ := io.ReadAll(conn)
		if !bytes.HasSuffix(all, []byte("raw")) {
			t.Errorf("got %q", all)
		}
	})
	t.Run("early hints", func(t *testing.T) {
		s := serve(t, inside(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		}))
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		br := bufio.NewReader(conn)
		first, _ := br.ReadString('\n')
		rest, _ := io.ReadAll(br)
		if !strings.Contains(first, "103") || !strings.Contains(string(rest), "HTTP/1.1 418") {
			t.Errorf("got %q and %q", first, rest)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		s := serve(t, inside(func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
		}))
		get(t, s.URL)
	})
}

func TestFlushThatIsNotSupportedBeginsNothing(t *testing.T) {
	rec := httptest.NewRecorder()
	gateway.Timeout(time.Hour)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		gateway.WriteError(w, r, gateway.ErrForbidden)
	})).ServeHTTP(struct{ http.ResponseWriter }{rec}, httptest.NewRequest("GET", "/", nil)) // as under http.TimeoutHandler
	if rec.Code != http.StatusForbidden {
		t.Errorf("status %d, want 403", rec.Code)
	}
}
