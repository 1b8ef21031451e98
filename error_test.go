package gateway_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-96248d0c/gateway"
)

// upperWriter changes what is written, as a compressing writer does.
type upperWriter struct{ http.ResponseWriter }

func (w upperWriter) Write(p []byte) (int, error) {
	_, err := w.ResponseWriter.Write(bytes.ToUpper(p))
	return len(p), err
}

// unwrapper is an upperWriter that http.ResponseController can unwrap.
type unwrapper struct{ upperWriter }

func (w unwrapper) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteError adds nothing to a response that has begun, whatever stands between.
func TestWriteErrorUnderAForeignWrapper(t *testing.T) {
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"none":    func(w http.ResponseWriter) http.ResponseWriter { return w },
		"unwraps": func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{upperWriter{w}} },
		"hides":   func(w http.ResponseWriter) http.ResponseWriter { return upperWriter{w} },
		"two":     func(w http.ResponseWriter) http.ResponseWriter { return upperWriter{unwrapper{upperWriter{w}}} },
	} {
		for _, begun := range []bool{true, false} {
			h := gateway.Chain(gateway.Observe(nil), func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(wrap(w), r) })
			})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if begun {
					io.WriteString(w, "BEGUN")
				}
				gateway.WriteError(w, r, errors.New("x"))
			}))
			w := recorded(h, nil)
			if got := w.Body.String(); begun && (got != "BEGUN" || w.Header().Get("Cache-Control") != "") || !begun && (w.Code != 500 || got == "") {
				t.Errorf("%s, begun %v: %d %q", name, begun, w.Code, got)
			}
		}
	}
}

// A problem is written by hand, and must be what encoding/json would write.
func TestProblemIsJSON(t *testing.T) {
	texts := []string{"plain", "", "quote \" and \\ slash", "<a href='x'>&", "line\nbreak\x00", "ümlaut \u2028", "bad \xff\xfe", "~ \x7f"}
	for _, text := range texts {
		w := httptest.NewRecorder()
		gateway.WriteError(w, httptest.NewRequest("GET", "/", nil), &gateway.Error{Status: 400, Type: "t" + text, Title: text, Detail: text})
		type problem struct {
			Type   string `json:"type"`
			Title  string `json:"title,omitempty"`
			Status int    `json:"status"`
			Detail string `json:"detail,omitempty"`
		}
		title := text
		if title == "" {
			title = "Bad Request"
		}
		want, _ := json.Marshal(problem{"t" + text, title, 400, text})
		if got := w.Body.String(); got != string(want)+"\n" {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}
