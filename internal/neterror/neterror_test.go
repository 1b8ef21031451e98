package neterror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-96248d0c/gateway/internal/h1"
)

func TestUnsent(t *testing.T) {
	_, refused := http.Get("http://127.0.0.1:1") // where nobody listens
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"connection refused", refused, true},
		{"read failed", &net.OpError{Op: "read", Err: io.EOF}, false},
		{"another error", io.ErrUnexpectedEOF, false},
	} {
		if got := Unsent(test.err); got != test.want {
			t.Errorf("%s: Unsent(%v) = %v, want %v", test.name, test.err, got, test.want)
		}
	}
}

// The texts are those of the Go version in use: each error comes from net/http itself.
func TestRefusalByNetHTTP(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	srv.EnableHTTP2 = true
	srv.Config.MaxHeaderBytes = 8 << 10
	srv.StartTLS()
	defer srv.Close()
	tr := srv.Client().Transport
	for _, test := range []struct {
		name   string
		change func(*http.Request)
		want   int
	}{
		{"good", func(*http.Request) {}, 0},
		{"method", func(r *http.Request) { // over a connection with HTTP/2, net/http does not check it
			r.Method, r.URL.Scheme = "a b", "http"
		}, http.StatusBadRequest},
		{"field name", func(r *http.Request) { r.Header["a b"] = []string{"x"} }, http.StatusBadRequest},
		{"field value", func(r *http.Request) { r.Header["A"] = []string{"x\n"} }, http.StatusBadRequest},
		{"trailer name", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), -1
			r.Trailer = http.Header{"a b": nil}
		}, http.StatusBadRequest},
		{"upgrade", func(r *http.Request) { r.Header["Upgrade"] = []string{"x"} }, http.StatusBadRequest},
		{"long body", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("xyz")), 1
		}, http.StatusBadRequest},
		{"fields over the target's limit", func(r *http.Request) {
			r.Header["A"] = []string{strings.Repeat("x", 64<<10)}
		}, http.StatusRequestHeaderFieldsTooLarge},
	} {
		r, _ := http.NewRequest("POST", srv.URL, nil)
		test.change(r)
		res, err := tr.RoundTrip(r)
		got := 0
		if err == nil {
			res.Body.Close()
		} else {
			got = Refusal(err)
		}
		if got != test.want {
			t.Errorf("%s: Refusal(%v) = %d, want %d", test.name, err, got, test.want)
		}
	}
}

func TestRefusal(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want int
	}{
		{"of internal/h1", fmt.Errorf("x: %w", h1.ErrInvalidRequest), http.StatusBadRequest},
		{"canceled", context.Canceled, 0},
		{"the text is not at the beginning", errors.New("read: http: nil Request"), 0},
	} {
		if got := Refusal(test.err); got != test.want {
			t.Errorf("%s: Refusal = %d, want %d", test.name, got, test.want)
		}
	}
}

func TestEnhanceYourCalm(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"connection", errors.New(`http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=ENHANCE_YOUR_CALM, debug=""`), true},
		{"stream", errors.New("stream error: stream ID 1; ENHANCE_YOUR_CALM"), true},
		{"wrapped", fmt.Errorf("http2: Transport received: %w", errors.New("stream error: stream ID 1; ENHANCE_YOUR_CALM")), true},
		{"another code", errors.New("stream error: stream ID 1; CANCEL"), false},
		{"another text", errors.New("ENHANCE_YOUR_CALM"), false},
	} {
		if got := EnhanceYourCalm(test.err); got != test.want {
			t.Errorf("%s: EnhanceYourCalm = %v, want %v", test.name, got, test.want)
		}
	}
}
