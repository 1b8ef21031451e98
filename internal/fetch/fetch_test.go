package fetch

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Cache-Control": {"max-age=60"}}, Body: io.NopCloser(strings.NewReader(body))}
}

// network redirects each URL in it, and answers any other with a document.
type network map[string]string

func (n network) RoundTrip(r *http.Request) (*http.Response, error) {
	to, ok := n[r.URL.String()]
	if !ok {
		return response(200, "{}"), nil
	}
	res := response(302, "")
	res.Header.Set("Location", to)
	return res, nil
}

func parse(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestRedirects(t *testing.T) {
	refused := errors.New("refused by the caller")
	for _, tt := range []struct {
		name string
		by   network
		own  func(*http.Request, []*http.Request) error
		want string // part of the error; "" for none
	}{
		{"none", network{}, nil, ""},
		{"within the host", network{"https://id.example/keys": "/v2/keys"}, nil, ""},
		{"to another host", network{"https://id.example/keys": "https://evil.example/keys"}, nil, "another host"},
		{"to another port", network{"https://id.example/keys": "https://id.example:8443/keys"}, nil, "another host"},
		{"from https to http on the same host", network{"https://id.example/keys": "http://id.example/keys"}, nil, "another host"},
		{"to another host in the second step", network{"https://id.example/keys": "/2", "https://id.example/2": "//evil.example/"}, nil, "another host"},
		{"three", network{"https://id.example/keys": "/1", "https://id.example/1": "/2", "https://id.example/2": "/3"}, nil, ""},
		{"four", network{"https://id.example/keys": "/1", "https://id.example/1": "/2", "https://id.example/2": "/3", "https://id.example/3": "/4"}, nil, "too many redirects"},
		{"a circle", network{"https://id.example/keys": "/keys"}, nil, "too many redirects"},
		{"the caller's rule", network{"https://id.example/keys": "/v2/keys"}, func(*http.Request, []*http.Request) error { return refused }, refused.Error()},
	} {
		client := &http.Client{Transport: tt.by, CheckRedirect: tt.own}
		_, _, err := NewClient(client, 100).Get(t.Context(), parse(t, "https://id.example/keys"))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if tt.own == nil && client.CheckRedirect != nil {
			t.Error("the caller's client was changed")
		}
	}
}

func TestGet(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   string // part of the error; "" for none
	}{
		{"a document", 200, "{}", ""}, {"at the limit", 200, "12345678", ""}, {"over the limit", 200, "123456789", "more than 8 bytes"},
		{"empty", 200, "", ""}, {"created", 201, "{}", "status 201"}, {"not found", 404, "{}", "status 404"}, {"failed", 500, "{}", "status 500"},
	} {
		c := NewClient(&http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Method != "GET" || r.Header.Get("Accept") != "application/json" || !r.Close {
				t.Errorf("%s: asked by %s %v, close %v", tt.name, r.Method, r.Header, r.Close)
			}
			return response(tt.status, tt.body), nil
		})}, 8)
		body, header, err := c.Get(t.Context(), parse(t, "https://user:secret@id.example/keys"))
		switch {
		case tt.want == "":
			if err != nil || string(body) != tt.body || header.Get("Cache-Control") != "max-age=60" {
				t.Errorf("%s: %q, %v, %v", tt.name, body, header, err)
			}
		case err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		for _, tt := range []struct{ set, want time.Duration }{{0, 5 * time.Second}, {-1, 5 * time.Second}, {time.Second, time.Second}} {
			c := NewClient(&http.Client{Transport: silent, Timeout: tt.set}, 8)
			start := time.Now()
			_, _, err := c.Get(t.Context(), parse(t, "https://id.example/"))
			if took := time.Since(start); err == nil || took != tt.want || c.Timeout() != tt.want {
				t.Errorf("%v: %v after %v, want %v", tt.set, err, took, tt.want)
			}
		}
		if d := NewClient(nil, 8).Timeout(); d != 5*time.Second {
			t.Errorf("the default has %v", d)
		}
	})
}

func TestParseURL(t *testing.T) {
	for raw, ok := range map[string]bool{
		"https://id.example/keys": true, "https://10.0.0.1:8443": true, "http://localhost:8080/keys": true, "http://LocalHost": true,
		"http://127.0.0.1:1": true, "http://127.1.2.3": true, "http://[::1]:1": true,
		"http://id.example": false, "http://10.0.0.1": false, "http://localhost.evil.example": false, "http://127.0.0.1.evil.example": false,
		"ftp://localhost": false, "//id.example": false, "/keys": false, "": false, "https://": false, "https:///keys": false, "https://%zz": false,
	} {
		if u, err := ParseURL(raw, false); (err == nil) != ok || ok && u.String() != raw {
			t.Errorf("%q: %v, %v", raw, u, err)
		}
		plain := strings.HasPrefix(raw, "http://")
		if u, err := ParseURL(raw, true); (err == nil) != (ok || plain) || err == nil && u.String() != raw {
			t.Errorf("%q, http allowed: %v, %v", raw, u, err)
		}
	}
	if _, err := ParseURL("http://user:secret@id.example/", false); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

// TestPanic: a panic of the transport, or of the body that it returns, is an error.
func TestPanic(t *testing.T) {
	for name, transport := range map[string]roundTrip{
		"transport": func(*http.Request) (*http.Response, error) { panic("broken") },
		"body": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: brokenBody{}}, nil
		},
	} {
		body, header, err := NewClient(&http.Client{Transport: transport}, 8).Get(t.Context(), parse(t, "https://id.example/"))
		if body != nil || header != nil || err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s: %q, %v, %v", name, body, header, err)
		}
	}
}

type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { panic("broken") }
func (brokenBody) Close() error             { return nil }
