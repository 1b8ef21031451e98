package gunzip

import (
	"bytes"
	"compress/gzip"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

func zip(parts ...string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, p := range parts {
		_, _ = w.Write([]byte(p))
		_ = w.Flush()
	}
	_ = w.Close()
	return b.Bytes()
}

func TestWriter(t *testing.T) {
	text := strings.Repeat("some text, and more of it. ", 5000)
	for name, tt := range map[string]struct {
		in   []byte
		want string
	}{
		"text":         {zip(text), text},
		"two members":  {append(zip("a"), zip("b")...), "ab"},
		"garbage":      {[]byte("not gzip at all, but long enough"), ""},
		"garbage then": {append(zip("a"), "garbage"...), "a"},
		"cut":          {zip(text, "rest")[:len(zip(text, "rest"))-12], text},
	} {
		for range 20 {
			var got strings.Builder
			w := New(func(p []byte) { got.Write(p) })
			for in := bytes.Clone(tt.in); len(in) > 0; {
				n := 1 + rand.IntN(len(in))
				w.Write(in[:n])
				clear(in[:n]) // nothing of it is kept
				in = in[n:]
			}
			w.Close()
			w.Write([]byte("late"))
			w.Close()
			if !strings.HasPrefix(got.String(), tt.want) || name != "cut" && got.Len() != len(tt.want) {
				t.Errorf("%s: %d bytes, want %d", name, got.Len(), len(tt.want))
			}
		}
	}
}

// What the sender has flushed is handed on by the Write that brings it.
func TestWriterDelaysNothing(t *testing.T) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	got := ""
	w := New(func(p []byte) { got += string(p) })
	defer w.Close()
	for _, event := range []string{"one", "two", "three"} {
		_, _ = zw.Write([]byte(event))
		_ = zw.Flush()
		w.Write(b.Bytes())
		b.Reset()
		if !strings.HasSuffix(got, event) {
			t.Fatalf("%q after %q", got, event)
		}
	}
	got = ""
	whole := New(func(p []byte) { got += string(p) })
	defer whole.Close()
	if whole.Write(zip("all")); got != "all" {
		t.Errorf("%q", got)
	}
}

func TestWriterEndsWithClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		w := New(func([]byte) {})
		w.Write(zip("text")[:12])
		w.Close()
		New(func([]byte) {}).Close()
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}
