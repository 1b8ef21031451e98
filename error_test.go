package gateway_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
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
